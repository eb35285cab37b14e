"""Measures the cost of decoding in a helper process: its start, and the transfer of results.

    python -m benchmarks.isolation [FILE] [--repeats 9]

The helper decodes the file once and keeps the results. Then it transfers them repeatedly without
decoding, with one progress report per frame.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.split import DEFAULT_FILES, FOOTAGE
from clipmill.stages.media.isolation.isolated import (
    Limits,
    collect_isolated,
    end_helpers,
    run_isolated,
)
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.media.read.measures import WantedMeasures
from clipmill.stages.media.read.scan import ScanSettings, scan_video

_SETTINGS = ScanSettings(False, None, None, True, 384, 90, 2.0, WantedMeasures())
_made: list[Any] = []


def decode(path: Path) -> tuple[float, int, int]:
    """Decodes the file and keeps the results here; returns seconds, frames, and bytes kept."""
    began, parts, scan = time.perf_counter(), [], scan_video(path, _SETTINGS)
    while True:
        try:
            parts.append(next(scan))
        except StopIteration as end:
            _made[:] = parts, end.value
            return (
                time.perf_counter() - began,
                len(end.value["seconds"]),
                sum(len(part["jpeg"]) for part in parts),
            )


def hand_over(path: Path) -> Iterator[dict[str, Any]]:
    """Sends the kept results like a scan of the file, without decoding."""
    parts, columns = _made
    for number in range(len(columns["seconds"])):
        beat(number)
    yield from parts
    return columns


def main() -> None:
    from benchmarks import isolation  # a helper finds functions by their module's name

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("file", nargs="?", type=Path, default=FOOTAGE / DEFAULT_FILES[0])
    parser.add_argument("--repeats", type=int, default=9, help="times that each is done")
    options = parser.parse_args()
    starts, overs = [], []
    for _ in range(options.repeats):
        end_helpers()
        began = time.perf_counter()
        run_isolated(isolation.nothing, options.file, limits=Limits())
        starts.append(time.perf_counter() - began)
    seconds, frames, kept = run_isolated(isolation.decode, options.file, limits=Limits())
    for _ in range(options.repeats):
        began = time.perf_counter()
        collect_isolated(isolation.hand_over, options.file, limits=Limits())
        overs.append(time.perf_counter() - began)
    over = float(np.median(overs))
    print("| start, s | decoding, s | frames | kept MB | handing over, s | of decoding |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {np.median(starts):.2f} | {seconds:.1f} | {frames} | {kept / 1e6:.1f} | {over:.3f} "
        f"| {over / seconds:.2%} |"
    )


def nothing(path: Path) -> None:
    """An empty task for the helper."""


if __name__ == "__main__":
    main()
