"""Pieces of a video on its frames' times: given spans, equal parts, repeats."""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipmill.schemas.ids import clip_id

SMALLEST_SECONDS = 1e-9
"""The possible rounding error in sums of decimal seconds."""


@dataclass(frozen=True)
class Part:
    """A piece of one video: times `[start, end)` and indexes `[first, last)` of its frames."""

    start_seconds: float
    end_seconds: float
    first: int
    last: int
    caption: str | None = None
    extra: Any = None
    captions: list[str] | None = None
    rule: str | None = None
    transition: str | None = None


def equal_parts(part: Part, count: int, seconds: Sequence[float]) -> list[Part]:
    """`count` parts as equal as the frames allow; each begins with a frame."""
    length = (part.end_seconds - part.start_seconds) / count
    starts = [part.start_seconds + length * i - SMALLEST_SECONDS for i in range(1, count)]
    edges = [bisect.bisect_left(seconds, start, part.first, part.last) for start in starts]
    # Fewer parts than requested if frames are too far apart.
    edges = [part.first, *sorted({e for e in edges if part.first < e < part.last}), part.last]
    times = [part.start_seconds, *(seconds[e] for e in edges[1:-1]), part.end_seconds]
    return [
        replace(
            part,
            start_seconds=times[i],
            end_seconds=times[i + 1],
            first=edges[i],
            last=edges[i + 1],
        )
        for i in range(len(edges) - 1)
    ]


def given_shot(row: dict[str, Any], span: dict[str, Any]) -> Part:
    """A given span, limited to the video; one without a frame is dropped by rule."""
    seconds = row["seconds"]
    start = span["start_seconds"]
    end = span["end_seconds"]
    end = row["end_seconds"] if end is None else min(end, row["end_seconds"])
    first = 0 if start is None else bisect.bisect_left(seconds, start)
    last = bisect.bisect_left(seconds, end)
    if first < last and (start is None or row["frame_numbers"][first] == 0):
        # Nothing is shown before the first frame, so a clip cannot begin earlier.
        start = seconds[first]
    empty = first >= last
    return Part(
        end if start is None else start,
        end,
        first,
        last,
        caption=span["caption"] or row["caption_given"],
        extra=span["extra"],
        captions=span.get("captions") if span["caption"] else row.get("captions_given"),
        rule="split_clips.boundaries" if empty else None,
    )


def without_repeats(video_id: str, clips: list[list[Part]]) -> list[list[Part]]:
    """Without repeated spans, because a clip's id is its time."""
    seen: set[str] = set()
    result = []
    for parts in clips:
        kept = []
        for part in parts:
            name = clip_id(video_id, part.start_seconds, part.end_seconds)
            repeated = part.rule is None and name in seen
            kept.append(replace(part, rule="split_clips.boundaries") if repeated else part)
            if part.rule is None:
                seen.add(name)
        result.append(kept)
    return result


def end_frame(row: dict[str, Any], part: Part) -> int | None:
    """The number of the frame after the part's last one; None for a part without frames."""
    return row["frame_numbers"][part.last - 1] + 1 if part.first < part.last else None


def times_inside(times: Sequence[float], part: Part) -> Sequence[float]:
    """The ascending times that are in the part."""
    return times[
        bisect.bisect_left(times, part.start_seconds - SMALLEST_SECONDS) : bisect.bisect_left(
            times, part.end_seconds - SMALLEST_SECONDS
        )
    ]


def trimmed(shot: Part, seconds: Sequence[float], at_start: float, at_end: float) -> Part:
    """The shot without so many seconds at its start and end; it begins and ends with a frame."""
    first, last = shot.first, shot.last
    start, end = shot.start_seconds, shot.end_seconds
    if at_start:
        first = bisect.bisect_left(seconds, start + at_start - SMALLEST_SECONDS, first, last)
        start = seconds[first] if first < last else end
    if at_end:
        last = bisect.bisect_left(seconds, end - at_end - SMALLEST_SECONDS, first, last)
        end = seconds[last] if last < shot.last else end
    return replace(shot, start_seconds=start, end_seconds=end, first=first, last=last)


def early_ends(row: dict[str, Any], most_seconds: float | None) -> dict[int, float]:
    """Frames preceded by a hole, or a picture held longer than this, with the time at which the
    shot before ends."""
    seconds = row["seconds"]
    ends = {
        bisect.bisect_left(seconds, hole["end_seconds"] - SMALLEST_SECONDS): hole["start_seconds"]
        for hole in row.get("holes") or ()
    }
    if most_seconds is not None:
        after = [*seconds[1:], row["end_seconds"]]
        for number, (at, end) in enumerate(zip(seconds, after, strict=True), 1):
            if end - at > most_seconds:
                ends.setdefault(number, at + most_seconds)
    return ends
