"""Measures detect_speech: its cost against a bare loop over the same model, and real films.

    python -m benchmarks.signal_models --stage detect_speech [FILE ...] [--repeats 5]

The bare loop decodes the sound with PyAV, resamples it and calls ONNX Runtime on 512 windows at a
time, all in one process; the stage does its reading in a helper process. Both are measured in
processor seconds, in turns. The share of speech of each film is printed, and the processor time per
hour of sound.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import onnxruntime
import pyarrow as pa

from clipmill.stages.find_speech import FindSpeech
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.protocol import Workspace
from clipmill.stages.usage import HELPER_CPU_SECONDS, used

FOOTAGE = Path(__file__).resolve().parents[2].parent / "shared" / "videos"
SUFFIXES = (".mp4", ".webm", ".ts", ".mov", ".mkv")


def main(options: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.signal_models --stage detect_speech",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args(options)
    files = given.files or [
        path for path in sorted(FOOTAGE.iterdir()) if path.suffix in SUFFIXES and _seconds(path)
    ]
    stage = FindSpeech()
    weights = local_file(stage.weights, setting="weights")
    workspace = Workspace(Path(tempfile.gettempdir()), Path(tempfile.gettempdir()))
    with stage.open(workspace) as transform:

        def ours(path: Path) -> dict[str, object]:
            row = {"video_id": "v", "path": str(path)}
            found = transform(pa.Table.from_pylist([row]))
            assert isinstance(found, pa.Table)
            return dict(found.to_pylist()[0])

        ours(files[0])  # starts the helper
        session = _session(weights)
        rows = []
        for path in files:
            length = _seconds(path)
            found = ours(path)
            said = found["speech_seconds"]
            share = said / length if isinstance(said, float) and length else float("nan")
            stages, bares = [], []
            for _ in range(given.repeats):
                stages.append(_cost(lambda path=path: ours(path)))
                bares.append(_cost(lambda path=path: _bare(path, session)))
            rows.append((length, statistics.median(stages), statistics.median(bares)))
            print(
                f"{path.name:36} {length:6.1f} s  speech {share:4.2f}  "
                f"stage {rows[-1][1]:.3f}  bare loop {rows[-1][2]:.3f} CPU s"
            )
    hours = sum(length for length, _, _ in rows) / 3600
    stage_cpu, bare_cpu = (sum(row[n] for row in rows) for n in (1, 2))
    print(
        f"all: {stage_cpu / hours:.1f} CPU s per hour of sound, "
        f"{bare_cpu / stage_cpu:.2f} of the bare loop"
    )


def _seconds(path: Path) -> float:
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return 0.0
        return float(container.duration or 0) / av.time_base


def _cost(act: Callable[[], object]) -> float:
    """Processor seconds, with those of the helper process."""
    began = time.process_time() + used()[HELPER_CPU_SECONDS]
    act()
    return time.process_time() + float(used()[HELPER_CPU_SECONDS]) - began


def _session(weights: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(str(weights), sess_options=options)


def _bare(path: Path, session: onnxruntime.InferenceSession) -> np.ndarray:
    pieces = []
    with av.open(str(path)) as container:
        resampler = av.AudioResampler(format="flt", layout="mono", rate=16000)
        for frame in container.decode(audio=0):
            pieces += [made.to_ndarray().reshape(-1) for made in resampler.resample(frame)]
        pieces += [made.to_ndarray().reshape(-1) for made in resampler.resample(None)]
    sound = np.concatenate(pieces)
    windows = np.pad(sound, (0, -len(sound) % 512)).reshape(-1, 512)
    before = np.vstack([np.zeros((1, 64), np.float32), windows[:-1, -64:]])
    every = np.hstack([before, windows]).astype(np.float32)
    state = [np.zeros((1, 1, 128), np.float32)] * 2
    found = []
    for at in range(0, len(every), 512):
        inputs = {"input": every[at : at + 512], "h": state[0], "c": state[1]}
        probabilities, *state = session.run(["speech_probs", "hn", "cn"], inputs)
        found.append(probabilities)
    return np.concatenate(found)
