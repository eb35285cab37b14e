"""A clip's loudness, peak, silence and zero crossings, from the blocks that a scan measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pyarrow as pa

SOUND_SIGNALS = pa.schema(
    [
        ("loudness", pa.float32()),
        ("sound_peak", pa.float32()),
        ("silence_share", pa.float32()),
        ("zero_crossings", pa.float32()),
    ]
)

SOUND_UNITS = {
    "loudness": "integrated loudness of EBU R 128, LUFS",
    "sound_peak": "largest sample, dBFS",
    "silence_share": "share of the sound that is below -60 dBFS",
    "zero_crossings": "changes of sign per second, mean of the channels",
}
"""What they are, with their units."""

BLOCK_SECONDS = 0.1
WINDOW_SECONDS = 0.4
"""The loudness of a block is that of so much sound, which ends with it."""

# ITU-R BS.1770-4: what is quieter than these is not counted, LUFS and LU below the mean.
_ABSOLUTE_GATE, _RELATIVE_GATE = -70.0, -10.0
_OFFSET = 0.691
_PER_WINDOW = round(WINDOW_SECONDS / BLOCK_SECONDS)
# Blocks don't begin with the clip.
_HALF_BLOCK = BLOCK_SECONDS / 2 + 1e-6

_NONE_HERE = "its video's sound track has nothing at that time"
_SHORT = "it has less than 0.4 s of sound"
_SILENT = "it is silent"

Stretch = Mapping[str, Any]
"""A struct of the column `sound` of SCANS."""


def sound_signals(
    stretches: Sequence[Stretch] | None,
    problem: str | None,
    start_seconds: float,
    end_seconds: float,
) -> Iterator[tuple[str, float | None, str]]:
    """Each signal of a clip: its name, its value or None, and why it is None."""
    near = [
        stretch
        for stretch in stretches or ()
        if stretch["start_seconds"] < end_seconds and stretch["end_seconds"] > start_seconds
    ]
    heard = sum(_overlap(stretch, start_seconds, end_seconds) for stretch in near)
    if not heard:
        reason = problem or _NONE_HERE
        yield from ((name, None, reason) for name in SOUND_SIGNALS.names)
        return
    windows = [one for stretch in near for one in _windows(stretch, start_seconds, end_seconds)]
    loudness = integrated([one for one in windows if one is not None])
    yield "loudness", loudness, _SILENT if windows else _SHORT
    blocks = [block for stretch in near for block in _blocks(stretch, start_seconds, end_seconds)]
    peak = max((peak for peak, _, _ in blocks), default=0.0)
    yield "sound_peak", 20 * math.log10(peak) if peak > 0 else None, _SILENT if blocks else _SHORT
    silent = sum(
        _overlap(silence, start_seconds, end_seconds)
        for stretch in near
        for silence in stretch["silences"]
    )
    yield "silence_share", min(1.0, silent / heard), _NONE_HERE
    seconds = sum(length for _, _, length in blocks)
    crossings = sum(crossings for _, crossings, _ in blocks)
    yield "zero_crossings", crossings / seconds if seconds else None, _SHORT


def integrated(windows: Sequence[float]) -> float | None:
    """The gated loudness of windows with these loudnesses, LUFS; None if all is silence."""
    energies = [_energy(one) for one in windows if one >= _ABSOLUTE_GATE]
    if not energies:
        return None
    gate = _energy(_loudness(energies) + _RELATIVE_GATE)
    return _loudness([energy for energy in energies if energy >= gate])


def _energy(loudness: float) -> float:
    return float(10 ** ((loudness + _OFFSET) / 10))


def _loudness(energies: Sequence[float]) -> float:
    return 10 * math.log10(math.fsum(energies) / len(energies)) - _OFFSET


def _overlap(span: Mapping[str, Any], start_seconds: float, end_seconds: float) -> float:
    first = max(float(span["start_seconds"]), start_seconds)
    return max(0.0, min(float(span["end_seconds"]), end_seconds) - first)


def _windows(stretch: Stretch, start_seconds: float, end_seconds: float) -> Sequence[float | None]:
    """The loudness of the windows inside the clip, rounded to blocks; None for silence."""
    first_end = start_seconds + WINDOW_SECONDS - _HALF_BLOCK - stretch["start_seconds"]
    last_end = end_seconds + _HALF_BLOCK - stretch["start_seconds"]
    first = max(_PER_WINDOW - 1, math.ceil(first_end / BLOCK_SECONDS) - 1)
    last = min(_full_blocks(stretch), math.floor(last_end / BLOCK_SECONDS))
    windows: Sequence[float | None] = stretch["loudness"][first : max(first, last)]
    return windows


def _full_blocks(stretch: Stretch) -> int:
    length: float = stretch["end_seconds"] - stretch["start_seconds"]
    return math.floor(length / BLOCK_SECONDS + 1e-6)


def _blocks(
    stretch: Stretch, start_seconds: float, end_seconds: float
) -> Iterator[tuple[float, float, float]]:
    """Peak, crossings and length of the blocks whose middle is in the clip; the last is short."""
    began, length = stretch["start_seconds"], stretch["end_seconds"] - stretch["start_seconds"]
    first = max(0, math.ceil((start_seconds - began) / BLOCK_SECONDS - 0.5))
    last = min(len(stretch["peaks"]), math.ceil((end_seconds - began) / BLOCK_SECONDS - 0.5))
    for number in range(first, last):
        yield (
            stretch["peaks"][number],
            stretch["crossings"][number],
            min(BLOCK_SECONDS, length - number * BLOCK_SECONDS),
        )
