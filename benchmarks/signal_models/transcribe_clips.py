"""Measures transcribe_clips' first step against a bare loop of transformers over the same windows.

    python -m benchmarks.signal_models --stage transcribe_clips [FILE] [--repeats 3] [--tokens 60]

The model has the size of whisper-tiny and random weights; both write the same number of tokens per
window, with the times of words. Processor seconds, in turns; the stage also reads the sound, finds
out the language and makes words of tokens.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.signal_models.detect_speech import FOOTAGE
from clipmill.stages.find_speech import FindSpeech
from clipmill.stages.media.read.samples import RATE, SampleReader
from clipmill.stages.models.transcripts import parts_to_read, windows
from clipmill.stages.protocol import Workspace
from clipmill.stages.transcribe_clips import TranscribeClips
from clipmill.stages.usage import HELPER_CPU_SECONDS, used
from tests.speech_model_factory import make_whisper


def main(options: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.signal_models --stage transcribe_clips",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("file", nargs="?", type=Path, default=FOOTAGE / "slides_talk_123s.mp4")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=60)
    given = parser.parse_args(options)
    with tempfile.TemporaryDirectory() as place:
        _measure(given.file, Path(place), given.repeats, given.tokens)


def _measure(file: Path, place: Path, repeats: int, tokens: int) -> None:
    folder = make_whisper(place / "model", width=384, layers=4, heads=6)
    workspace = Workspace(place, place)
    row: dict[str, Any] = {"video_id": "v", "path": str(file)}
    with FindSpeech().open(workspace) as find:
        found = find(pa.Table.from_pylist([row]))
        assert isinstance(found, pa.Table)
        row |= {name: found[name][0].as_py() for name in ("speech_spans", "speech_reason")}
    stage = TranscribeClips(model=folder, dtype="float32", max_new_tokens=tokens).steps()[0]
    batch = [
        window.samples
        for start, sound in _pieces(file, row["speech_spans"])
        for window in windows(start, sound, 30.0)
    ]
    bare = _bare_loop(folder, tokens)
    with stage.open(workspace) as transform:
        ours, theirs = [], []
        for turn in range(repeats + 1):
            costs = (
                _cost(lambda: transform(pa.Table.from_pylist([row]))),
                _cost(lambda: bare(batch)),
            )
            if turn:  # the first of each warms up
                ours.append(costs[0])
                theirs.append(costs[1])
    mine, bares = statistics.median(ours), statistics.median(theirs)
    seconds = sum(map(len, batch)) / RATE
    print(
        f"{file.name}: {len(batch)} windows, {seconds:.0f} s of speech; stage {mine:.2f}, "
        f"bare loop {bares:.2f} CPU s: {bares / mine:.2f} of the bare loop"
    )


def _pieces(file: Path, speech: Sequence[dict[str, float]]) -> list[tuple[float, np.ndarray]]:
    parts = parts_to_read((span["start_seconds"], span["end_seconds"]) for span in speech)
    found: list[tuple[float, list[np.ndarray]]] = []
    for piece in SampleReader(file, 0.0, parts).pieces():
        if piece.begins:
            found.append((piece.seconds, []))
        found[-1][1].append(piece.values)
    return [(start, np.concatenate(sound)) for start, sound in found]


def _bare_loop(folder: Path, tokens: int) -> Callable[[Sequence[np.ndarray]], Any]:
    import torch
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(
        folder, attn_implementation="eager"
    )

    def loop(batch: Sequence[np.ndarray]) -> None:
        for at in range(0, len(batch), 8):
            heard = processor.feature_extractor(
                list(batch[at : at + 8]),
                sampling_rate=RATE,
                return_tensors="pt",
                return_attention_mask=True,
            )
            with torch.inference_mode():
                model.generate(
                    heard["input_features"],
                    attention_mask=heard["attention_mask"],
                    return_token_timestamps=True,
                    task="transcribe",
                    max_new_tokens=tokens,
                )

    return loop


def _cost(act: Callable[[], object]) -> float:
    """Processor seconds, with those of the helper process."""
    began = time.process_time() + used()[HELPER_CPU_SECONDS]
    act()
    return time.process_time() + float(used()[HELPER_CPU_SECONDS]) - began
