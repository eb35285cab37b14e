"""Chooses the packets of a file that need not be decoded to find what happens in it.

About half of the pictures of most films are needed by no other: decoders may leave them out. They
lie between pictures that others refer to, and follow the later one of those in the file. If
something new is shown in between, that picture can't be predicted from the ones before, so its
packet is large. Only then, and after a key frame, what lies in between is decoded.
"""

from __future__ import annotations

import bisect
import itertools
import statistics
from collections import deque
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field

from clipmill.stages.media.read.packets import PacketIndex

LARGE = 1.5
"""A packet is large from this many times the median of the last ones of its kind."""

_LAST = 12
# Of pictures further apart (four frames at 24 per second), one in between is decoded: kept frames
# and motion need some.
LONGEST_SECONDS = 0.17
# Leaving out fewer pictures than this share is not worth the trouble.
_LEAST_SHARE = 0.05


@dataclass
class _Sizes:
    """The sizes of the last packets of one kind."""

    last: deque[int] = field(default_factory=lambda: deque(maxlen=_LAST))

    def is_large(self, size: int) -> bool:
        usual = statistics.median(self.last) if self.last else 0.0
        self.last.append(size)
        return size > LARGE * usual


def left_out(index: PacketIndex) -> frozenset[int]:
    """The places of the packets that are not decoded, if all else goes well."""
    calm = set(_in_calm(index))
    if len(calm) < _LEAST_SHARE * len(index.sizes):
        return frozenset()
    longest = round(LONGEST_SECONDS / index.time_base)
    calm.difference_update(_bridges(index, calm, longest))
    # The end of the video is that of its last picture.
    calm.difference_update((index.places[0], index.places[-1]))
    return frozenset(calm)


def _in_calm(index: PacketIndex) -> Iterator[int]:
    """The pictures that no other needs, in groups in which nothing seems to happen.

    A group begins with a picture that is shown after all before it, and ends with the next such
    picture that others need.
    """
    keys = {entry.place for entry in index.entries}
    kinds = {"later": _Sizes(), "between": _Sizes(), "unneeded": _Sizes()}
    latest: int | None = None
    # Until a group begins, nothing is known.
    something_in_group = something_lately = True
    for place, (stamp, size) in enumerate(zip(index.stamps, index.sizes, strict=True)):
        if place in index.unneeded:
            if kinds["unneeded"].is_large(size) and size > statistics.median(
                kinds["later"].last or [0]
            ):
                continue
            if not (something_in_group or something_lately):
                yield place
        elif latest is None or stamp > latest:
            latest = stamp
            something_in_group = kinds["later"].is_large(size) or place in keys
            something_lately = False
        else:
            something_lately = kinds["between"].is_large(size)


def _bridges(index: PacketIndex, calm: Collection[int], longest: int) -> Iterator[int]:
    """Pictures that would leave a gap of more than `longest` if they were left out as well."""
    shown = [number for number, place in enumerate(index.places) if place not in calm]
    for before, after in itertools.pairwise(shown):
        at, pts = before, index.pts
        while pts[after] - pts[at] > longest:
            following = bisect.bisect_right(pts, pts[at] + longest, at + 1, after) - 1
            at = max(at + 1, following)
            if at >= after:
                break
            yield index.places[at]
