"""The shots of a scanned video by the detector `cascade`, with gradual transitions between them."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from clipmill.schemas.extras import extras_explained
from clipmill.stages.clip_parts import Part

CASCADE_MIN_SCENE_LEN = "0.07s"
"""Two frames of a cinema film: trailers have such shots, and `min_clip_seconds` drops them."""
TRANSITION_RULE = "split_clips.transition"
"""Why a transition gives no clip."""


@dataclass(frozen=True)
class Transition:
    """A fade, dissolve or wipe: indexes of its frames, `[first, last)`."""

    kind: str
    first: int
    last: int


@dataclass(frozen=True)
class CascadeSettings:
    """`threshold` is the least probability of a cut; `judge` is asked where it is unclear."""

    threshold: float
    min_scene_len: str
    trim_transitions: bool
    judge: str


def cascade_cuts(
    row: Mapping[str, Any], settings: CascadeSettings
) -> tuple[list[int], list[Transition]]:
    """Indexes of the frames that begin a shot or a transition, and the transitions."""
    from clipmill.stages.media.read.shots.find import Scanned, find_shots

    found = find_shots(
        Scanned.of(row),
        settings.threshold,
        least_seconds(settings.min_scene_len, row["fps"]),
        judge_named(settings.judge),
    )
    numbers = row["frame_numbers"]
    count = len(numbers)

    def at(number: int) -> int:
        return bisect.bisect_left(numbers, number)

    transitions = [
        Transition(span.kind, at(span.first), at(span.last + 1)) for span in found.transitions
    ]
    edges = set(map(at, found.cuts))
    for transition in transitions:
        ends = (transition.first, transition.last)
        if settings.trim_transitions:
            edges.update(ends)
        elif ends[0] > 0 and ends[1] < count:
            # The shots meet in the middle.
            edges.add(sum(ends) // 2)
    return sorted(edge for edge in edges if 0 < edge < count), transitions


def judge_named(name: str) -> Any:
    """The network, loaded once per worker; None for `none`."""
    if name == "none":
        return None
    with extras_explained("shots"):
        from clipmill.stages.media.read.shots.judge import load_judge

        return load_judge()


def with_transitions(
    shots: Sequence[Part], transitions: Sequence[Transition], row: Mapping[str, Any]
) -> list[Part]:
    """The shots, of which those that are transitions say so; others are put beside them."""
    marked = []
    seen = set()
    for shot in shots:
        inside = next(
            (t for t in transitions if t.first <= shot.first and shot.last <= t.last), None
        )
        if inside is not None:
            seen.add(inside)
            marked.append(replace(shot, transition=inside.kind, rule=TRANSITION_RULE))
        else:
            marked.append(shot)
    seconds = [*row["seconds"], row["end_seconds"]]
    for transition in transitions:
        if transition not in seen:
            first, last, kind = transition.first, transition.last, transition.kind
            part = Part(seconds[first], seconds[last], first, last, rule=TRANSITION_RULE)
            marked.append(replace(part, transition=kind))
    return sorted(marked, key=lambda part: (part.start_seconds, part.transition is not None))


def least_seconds(length: str, fps: float) -> float:
    """A length as PySceneDetect writes it (`15` frames, `0.6s`, `00:00:00.600`), in seconds."""
    if length.isdigit():
        return int(length) / fps if fps else 0.0
    if length.endswith("s"):
        return float(length[:-1])
    seconds = 0.0
    for part in length.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds
