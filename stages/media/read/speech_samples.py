"""Writes the parts of a file's sound in which somebody speaks, for models in another process."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipmill.stages.media.read.samples import SampleReader

Piece = tuple[float, int]
"""Uninterrupted sound: when it begins in the video, and the number of its samples."""


def write_speech(
    path: Path, target: Path, parts: Sequence[tuple[float, float]], file_zero_seconds: float
) -> tuple[list[Piece], str | None]:
    """Writes 32-bit floats to `target`, one channel at 16 kHz, and returns the pieces in order.

    With them comes why there is nothing, if that is so. Runs in a helper process.
    """
    reader = SampleReader(path, file_zero_seconds, parts)
    pieces: list[Piece] = []
    with target.open("wb") as file:
        for samples in reader.pieces():
            file.write(samples.values.astype("<f4", copy=False).tobytes())
            if samples.begins or not pieces:
                pieces.append((samples.seconds, len(samples.values)))
            else:
                began, length = pieces[-1]
                pieces[-1] = (began, length + len(samples.values))
    return pieces, reader.problem
