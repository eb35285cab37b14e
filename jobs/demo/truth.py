"""Compares a pipeline's results on the demo's films with the ground truth."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from clipmill.jobs.demo.world import (
    COLOURS,
    MOTION_WORDS,
    POSITION_WORDS,
    SHAPES,
    Film,
    Motion,
    Shot,
)


@dataclass(frozen=True, slots=True)
class CutCounts:
    """Hard cuts of one film or, added up, of many."""

    found: int = 0
    missed: int = 0
    invented: int = 0

    def __add__(self, other: "CutCounts") -> "CutCounts":
        return CutCounts(
            self.found + other.found, self.missed + other.missed, self.invented + other.invented
        )

    @property
    def precision(self) -> float:
        """1 if nothing was detected."""
        return self.found / (self.found + self.invented) if self.found + self.invented else 1.0

    @property
    def recall(self) -> float:
        """1 if there was nothing to find."""
        return self.found / (self.found + self.missed) if self.found + self.missed else 1.0


def count_cuts(film: Film, detected_frames: Iterable[int], tolerance_frames: int = 1) -> CutCounts:
    """Compares detections (first frame of each new shot) with the film's hard cuts.

    Each true cut matches at most one detection. Detections inside a gradual transition are
    ignored.
    """
    gradual = film.gradual_transitions
    open_cuts = list(film.hard_cuts)
    found = invented = 0
    for frame in sorted(set(detected_frames)):
        near = [cut for cut in open_cuts if abs(cut - frame) <= tolerance_frames]
        if near:
            open_cuts.remove(min(near, key=lambda cut: abs(cut - frame)))
            found += 1
        elif not any(start <= frame <= end for start, end in gradual):
            invented += 1
    return CutCounts(found=found, missed=len(open_cuts), invented=invented)


@dataclass(frozen=True, slots=True)
class CaptionFacts:
    """What a text says about a shape; None for what it doesn't mention or contradicts."""

    colour: str | None
    object: str | None
    motion: str | None
    position: str | None


def read_caption(text: str) -> CaptionFacts:
    """Parses a caption of this world, ignoring everything else in it."""
    words = text.lower().replace(".", " ").replace(",", " ").split()
    line = f" {' '.join(words)} "
    return CaptionFacts(
        colour=_only([colour for colour in COLOURS if colour in words]),
        object=_only([shape for shape in SHAPES if shape in words]),
        motion=_longest([name for name in MOTION_WORDS if f" {MOTION_WORDS[name]} " in line]),
        position=_only([name for name, phrase in POSITION_WORDS.items() if f" {phrase} " in line]),
    )


def _only(names: Sequence[str]) -> str | None:
    return names[0] if len(names) == 1 else None


def _longest(names: Sequence[Motion]) -> Motion | None:
    """ "moves up and down" also contains "moves up": the longest match counts."""
    if not names:
        return None
    return max(names, key=lambda name: len(MOTION_WORDS[name]))


@dataclass(frozen=True, slots=True)
class CaptionMark:
    """Whether one clip's text is right about the shot that overlaps the clip most."""

    subject: bool
    """Colour and object both."""
    motion: bool


def mark_summary(film: Film, start_seconds: float, end_seconds: float, text: str) -> CaptionMark:
    shot: Shot = film.shot_overlapping(start_seconds, end_seconds)
    said = read_caption(text)
    return CaptionMark(
        subject=(said.colour, said.object) == (shot.colour, shot.object),
        motion=said.motion == shot.motion,
    )


def rank_auc(right: Sequence[float], wrong: Sequence[float]) -> float:
    """Probability that a right caption scores higher than a wrong one; ties count half."""
    if not len(right) or not len(wrong):
        raise ValueError("rank_auc needs at least one right and one wrong score")
    ordered = np.sort(np.asarray(wrong, dtype=np.float64))
    below = np.searchsorted(ordered, right, side="left")
    not_above = np.searchsorted(ordered, right, side="right")
    return float((below + not_above).mean() / 2 / len(ordered))
