"""Renders transitions from the shots of real films, as thumbnails: their truth is known.

Real negatives are plenty, but annotated dissolves are few and wipes are none.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

KINDS = ("cut", "dissolve", "wipe", "light", "flash", "switch", "frozen", "bars")
SUDDEN = ("flash", "switch", "frozen", "bars")
"""Changes within a shot that look like cuts."""
RATES = (24.0, 25.0, 30.0)
LENGTHS = (0.2, 0.3, 0.4, 0.5, 0.7, 1.0, 1.5, 2.0)
_BESIDE = 45


@dataclass(frozen=True)
class Rendered:
    """`first` and `last` are the transition's; of a cut, the new shot's first picture twice."""

    kind: str
    pictures: np.ndarray
    rate: float
    first: int
    last: int

    @property
    def seconds(self) -> float:
        return (self.last - self.first) / self.rate


def rendered(shots: Sequence[np.ndarray], count: int, seed: int) -> Iterator[Rendered]:
    """About `count` joints of two random shots, or changes within one."""
    chance = np.random.default_rng(seed)
    for _ in range(count):
        one, other = (shots[i] for i in chance.choice(len(shots), 2, replace=False))
        kind = str(chance.choice(KINDS))
        rate = float(chance.choice(RATES))
        length = round(rate * float(chance.choice(LENGTHS)))
        found = _joint(chance, kind, one, other, rate, length)
        if found is not None:
            yield found


def _joint(
    chance: np.random.Generator,
    kind: str,
    one: np.ndarray,
    other: np.ndarray,
    rate: float,
    length: int,
) -> Rendered | None:
    if kind not in ("cut", "dissolve", "wipe"):
        return _changed(chance, kind, one, rate, length)
    if kind == "cut":
        before, after = one[-_BESIDE:], other[:_BESIDE]
        at = len(before)
        return Rendered(kind, np.concatenate([before, after]), rate, at, at)
    if length > min(len(one), len(other)) - 6:
        return None
    before = one[max(0, len(one) - length - _BESIDE) :]
    after = other[: length + _BESIDE]
    first = len(before) - length
    share = ((np.arange(length) + 1) / (length + 1)).astype(np.float32)[:, None, None, None]
    if kind == "wipe":
        share = _wiped(chance, share)
    mix = before[first:] * (1 - share) + after[:length] * share
    mixed = np.clip(mix + 0.5, 0, 255).astype(np.uint8)
    pictures = np.concatenate([before[:first], mixed, after[length:]])
    return Rendered(kind, pictures, rate, first, first + length - 1)


def _wiped(chance: np.random.Generator, share: np.ndarray) -> np.ndarray:
    size = (27, 48)
    axis = int(chance.integers(2))
    line = np.arange(size[axis], dtype=np.float32) / size[axis]
    if chance.integers(2):
        line = line[::-1]
    place = line[:, None, None] if axis == 0 else line[None, :, None]
    # One pixel wide, as area averaging leaves an edge.
    edge: np.ndarray = np.clip((share - place[None]) * size[axis] + 0.5, 0, 1)
    return np.broadcast_to(edge, (len(share), *size, 1))


def _changed(
    chance: np.random.Generator, kind: str, one: np.ndarray, rate: float, length: int
) -> Rendered | None:
    """A shot in which something changes that ends none."""
    if len(one) < 3 * _BESIDE:
        return None
    pictures = one[: 3 * _BESIDE].astype(np.float32)
    first = last = _BESIDE
    if kind == "flash":
        last = first + int(chance.integers(1, 5)) - 1
        strength = np.linspace(1.0, 0.3, last - first + 1, dtype=np.float32)[:, None, None, None]
        part = pictures[first : last + 1]
        pictures[first : last + 1] += (255 - part) * strength * float(chance.uniform(0.3, 1.0))
    elif kind == "frozen":
        first = last - int(chance.integers(4, 11))
        pictures[first:last] = pictures[first]
    elif kind == "bars":
        high = int(chance.integers(2, 5))
        pictures[first:, :high] = pictures[first:, -high:] = 0
    else:
        # The light is switched, or changes slowly.
        last = first if kind == "switch" else first + length
        factor = float(chance.choice([0.3, 0.5, 1.5, 1.9]))
        gain = np.interp(np.arange(len(pictures)), [first - 1, last], [1.0, factor])
        pictures *= gain.astype(np.float32)[:, None, None, None]
    lit = np.clip(pictures + 0.5, 0, 255).astype(np.uint8)
    return Rendered(kind, lit, rate, first, min(last, len(lit) - 1))
