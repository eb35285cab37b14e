"""A gradual transition, as a span of pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["fade", "dissolve", "wipe"]


@dataclass(frozen=True)
class Span:
    """`first` and `last` are indexes of its first and last picture that belong to no shot."""

    kind: Kind
    first: int
    last: int
    probability: float = 1.0
