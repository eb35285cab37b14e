"""Frames of real films as stages get them, and how a stage compares with a bare loop."""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa

from benchmarks.bare_loops import spent_on
from clipmill.schemas.tables import FRAME
from clipmill.stages.protocol import Stage, Workspace

FOOTAGE = Path(__file__).resolve().parents[2].parent / "shared" / "videos"
SUFFIXES = (".mp4", ".webm", ".ts", ".mov", ".avi", ".3gp", ".mkv")
SHARES = (0.2, 0.45, 0.7)
SHORT_SIDE = 384


def parsed(stage: str, what: str | None, options: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog=f"python -m benchmarks.signal_models --stage {stage}",
        description=(what or "").partition("\n")[0],
    )
    parser.add_argument("--videos", nargs="+", type=Path, default=[FOOTAGE], help="folders")
    parser.add_argument("--rounds", type=int, default=5, help="times that both are timed")
    parser.add_argument("--frames", type=int, default=48, help="frames that are timed")
    return parser.parse_args(options)


def film_frames(folders: Sequence[Path]) -> dict[str, bytes]:
    """Three keyframes of each film, as JPEG with 384 pixels on the short side."""
    found = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.suffix not in SUFFIXES:
                continue
            with av.open(str(path)) as container:
                stream = container.streams.video[0]
                stream.codec_context.skip_frame = "NONKEY"
                length = container.duration or 0
                for share in SHARES:
                    container.seek(int(length * share))
                    picture = next(container.decode(stream), None)
                    if picture is not None:
                        name = f"{path.name} {share:.0%}"
                        found[name] = _jpeg(picture.to_ndarray(format="bgr24"))
    return found


def _jpeg(image: np.ndarray) -> bytes:
    factor = SHORT_SIDE / min(image.shape[:2])
    if factor < 1:
        image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 90])[1])


def as_clips(jpegs: Sequence[bytes], per_clip: int = 4) -> pa.Table:
    clips = [
        [
            {"frame_number": at, "seconds": float(at), "jpeg": jpeg}
            for at, jpeg in enumerate(jpegs[start : start + per_clip])
        ]
        for start in range(0, len(jpegs), per_clip)
    ]
    keys = [f"clip-{number}" for number in range(len(clips))]
    return pa.table({"clip_id": keys, "frames": pa.array(clips, pa.list_(FRAME))})


def compare(
    stage: Stage, table: pa.Table, loops: dict[str, Callable[[], object]], rounds: int
) -> None:
    """Prints each loop's time as a share of the stage's, in turns over the same frames."""
    frames = sum(len(clip) for clip in table["frames"].to_pylist())
    place = Path(tempfile.gettempdir())
    print("| bare loop | its processor time | its time | stage, processor ms per frame |")
    print("|---|---|---|---|")
    with stage.open(Workspace(place, place)) as transform:
        for name, loop in loops.items():
            both = (loop, lambda: transform(table))
            for one in both:
                one()
            shares, spent = [], []
            for number in range(rounds):
                turns = both if number % 2 == 0 else both[::-1]
                first, second = (spent_on(one) for one in turns)
                bare, staged = (first, second) if number % 2 == 0 else (second, first)
                shares.append((bare[0] / staged[0], bare[1] / staged[1]))
                spent.append(staged[0] / frames * 1000)
            cpu, clock = (statistics.median(column) for column in zip(*shares, strict=True))
            print(f"| {name} | {cpu:.2f} | {clock:.2f} | {statistics.median(spent):.1f} |")
