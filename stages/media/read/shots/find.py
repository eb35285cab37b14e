"""Finds the cuts and gradual transitions of a scanned video, from what the scan stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clipmill.stages.media.read.lean_measures import NUMBER, SECONDS
from clipmill.stages.media.read.shots import blends, mixes, model
from clipmill.stages.media.read.shots.candidates import RULE, candidates, relative
from clipmill.stages.media.read.shots.fades import fades
from clipmill.stages.media.read.shots.features import NAMES, described
from clipmill.stages.media.read.shots.measures import differences
from clipmill.stages.media.read.shots.spans import Kind, Span
from clipmill.stages.media.read.shots.thumbnails import HEIGHT, WIDTH, by_number
from clipmill.stages.media.read.shots.windows import AFTER, BEFORE, around

Floats = NDArray[np.float64]

SURE = 0.85
"""From here on, and up to 1 minus this, no network is asked."""
_MIXED = {"dissolve": 0.6, "wipe": 0.6}
# Between these shares of the second shot a picture belongs to neither.
_FIRST_SHARE, _LAST_SHARE = 0.06, 0.94
_SHAPE = (HEIGHT, WIDTH, 3)
FUSED = ("features", "network")
"""What a judged candidate is decided by: the logits of the features and of the judge."""
_ROUNDING = 1e-9


class JudgesWindows(Protocol):
    """Says how much 16 thumbnails look like a cut in their middle."""

    def logits(self, windows: np.ndarray) -> np.ndarray: ...


@dataclass(frozen=True)
class Scanned:
    """What the scan of a video stored: lists with one entry per picture that was decoded."""

    numbers: Sequence[int]
    seconds: Floats
    statistics: Mapping[str, Sequence[float]]
    thumbnails: Mapping[int, np.ndarray]

    @staticmethod
    def of(row: Mapping[str, Any]) -> Scanned:
        """From a row of scan_videos."""
        statistics = dict(row["statistics"])
        return Scanned(
            [int(number) for number in statistics[NUMBER]],
            np.array(statistics[SECONDS], float),
            statistics,
            by_number(row["thumbnails"] or ()),
        )


@dataclass(frozen=True)
class Found:
    """`cuts` are the numbers of frames that begin a shot, ascending, with their probabilities;
    transitions are in frame numbers, too."""

    cuts: list[int]
    probabilities: list[float]
    transitions: list[Span]


@dataclass(frozen=True)
class Candidates:
    """Pictures that may begin a shot, with their features and thumbnails."""

    indexes: NDArray[np.intp]
    features: Floats
    windows: np.ndarray


def find_shots(
    scanned: Scanned,
    threshold: float,
    min_scene_seconds: float = 0.0,
    judge: JudgesWindows | None = None,
    weights: model.Weights | None = None,
) -> Found:
    """The cuts whose probability is at least `threshold`, and the transitions.

    Of cuts closer than `min_scene_seconds` the most probable one stays. `weights` are the shipped
    ones, unless given.
    """
    weights = weights or model.shipped()
    found = candidates_of(scanned)
    probabilities = probabilities_of(found, judge, weights)
    transitions = _transitions(scanned, found.indexes, probabilities, weights)
    inside = np.zeros(len(scanned.seconds) + 1, bool)
    for span in transitions:
        inside[span.first + 1 : span.last + 1] = True
    is_cut = (probabilities >= threshold) & ~inside[found.indexes]
    cuts = _apart(found.indexes[is_cut], probabilities[is_cut], scanned.seconds, min_scene_seconds)
    number = scanned.numbers
    return Found(
        [number[cut] for cut, _ in cuts],
        [sure for _, sure in cuts],
        [replace(span, first=number[span.first], last=number[span.last]) for span in transitions],
    )


def candidates_of(scanned: Scanned) -> Candidates:
    """The places at which a cut may be, described."""
    count = len(scanned.seconds)
    numbers = np.array(scanned.numbers, np.intp)
    values = differences(numbers, scanned.seconds, [0] * count, scanned.statistics)
    times = relative(values)
    stored = np.flatnonzero(np.isin(numbers, np.fromiter(scanned.thumbnails, np.intp)))
    places = np.flatnonzero(candidates(times, RULE))
    # The two pictures at a place must be there.
    places = places[np.isin(places, stored) & np.isin(places - 1, stored)]
    pictures = np.array([scanned.thumbnails[scanned.numbers[at]] for at in stored.tolist()])
    of_stored = np.searchsorted(stored, places)
    ends = np.zeros_like(places), np.full_like(places, len(stored) - 1)
    shown = around(numbers[stored], of_stored, values.steps[places], *ends)
    windows = pictures[shown] if len(places) else np.empty((0, BEFORE + AFTER, *_SHAPE), np.uint8)
    described_ = described(windows, stored[shown], numbers, places, times, values)
    return Candidates(places, described_, windows)


def probabilities_of(
    found: Candidates, judge: JudgesWindows | None, weights: model.Weights
) -> Floats:
    """How probable each candidate is a cut; the judge decides where the features don't."""
    probabilities = weights[model.CUTS].probabilities(found.features, NAMES)
    if judge is None:
        return probabilities
    unsure = np.flatnonzero((probabilities < SURE) & (probabilities > 1 - SURE))
    if len(unsure):
        own = np.log(probabilities[unsure] / (1 - probabilities[unsure]))
        rows = np.c_[own, judge.logits(found.windows[unsure])]
        probabilities[unsure] = weights[model.JUDGED].probabilities(rows, FUSED)
    return probabilities


def places_of(scanned: Scanned) -> tuple[list[mixes.Place], np.ndarray]:
    """The pictures that may be amid a dissolve or a wipe, with the thumbnails around them."""
    places, shown = [], []
    for length, half in blends.HALVES.items():
        apart, left, split = (np.array(scanned.statistics[name]) for name in blends.names(length))
        for index in blends.peaks(scanned.seconds, apart, left, split, half):
            around = blends.spread(scanned.seconds, index, half)
            numbers = [scanned.numbers[i] for i in around]
            if all(number in scanned.thumbnails for number in numbers):
                places.append(
                    mixes.Place(int(index), half, apart[index], left[index], split[index])
                )
                shown.append(np.stack([scanned.thumbnails[number] for number in numbers]))
    pictures = np.stack(shown) if shown else np.empty((0, blends.PER_SPREAD, *_SHAPE), np.uint8)
    return places, pictures


def _transitions(
    scanned: Scanned, cuts: NDArray[np.intp], sure: Floats, weights: model.Weights
) -> list[Span]:
    faded = fades(scanned.statistics, scanned.seconds)
    hard = cuts[sure >= SURE]
    mixed = _mixed(scanned, weights)
    kept = list(faded)
    for span in sorted(mixed, key=lambda span: -span.probability):
        has_cut = bool(np.any((hard > span.first) & (hard <= span.last)))
        if not has_cut and all(_is_apart(span, other) for other in kept):
            kept.append(span)
    return sorted(kept, key=lambda span: span.first)


def _is_apart(one: Span, other: Span) -> bool:
    return one.last < other.first or other.last < one.first


def _mixed(scanned: Scanned, weights: model.Weights) -> list[Span]:
    """Dissolves and wipes, which may overlap."""
    places, pictures = places_of(scanned)
    if not places:
        return []
    rows = mixes.described(pictures, places)
    share, _, _ = mixes.shares(pictures)
    kinds: list[Kind] = [place.kind for place in places]
    spans = []
    for kind, name in (("dissolve", model.DISSOLVES), ("wipe", model.WIPES)):
        chosen = [i for i, found in enumerate(kinds) if found == kind]
        if not chosen:
            continue
        probabilities = weights[name].probabilities(rows[chosen], mixes.NAMES)
        for i, probability in zip(chosen, probabilities, strict=True):
            if probability >= _MIXED[kind]:
                around = blends.spread(scanned.seconds, places[i].index, places[i].half)
                first, last = _extent(share[i], scanned.seconds[around])
                begin, end = (int(n) for n in np.searchsorted(scanned.seconds, (first, last)))
                end = min(max(end - 1, begin), len(scanned.seconds) - 1)
                spans.append(Span(kinds[i], begin, end, float(probability)))
    return spans


def _extent(share: Floats, seconds: Floats) -> tuple[float, float]:
    """When the share of the second shot leaves 0, and when it reaches 1."""
    middle = len(share) // 2
    below = np.flatnonzero(share[: middle + 1] <= _FIRST_SHARE)
    above = np.flatnonzero(share[middle:] >= _LAST_SHARE) + middle
    first = int(below[-1]) if len(below) else 0
    last = int(above[0]) if len(above) else len(share) - 1
    begin = _crossing(share, seconds, first, _FIRST_SHARE)
    end = _crossing(share, seconds, last - 1, _LAST_SHARE)
    return begin, end


def _crossing(share: Floats, seconds: Floats, at: int, level: float) -> float:
    """When the share crosses the level, between two thumbnails."""
    before, after = share[at], share[at + 1]
    part = (level - before) / (after - before) if after > before else 0.5
    return float(seconds[at] + np.clip(part, 0, 1) * (seconds[at + 1] - seconds[at]))


def _apart(
    cuts: NDArray[np.intp], sure: Floats, seconds: Floats, least: float
) -> list[tuple[int, float]]:
    """The cuts at least this many seconds apart, and from the ends; the surest first."""
    kept: list[tuple[int, float]] = []
    for order in np.argsort(-sure, kind="stable"):
        cut = int(cuts[order])
        if all(abs(seconds[cut] - seconds[other]) >= least - _ROUNDING for other, _ in kept):
            kept.append((cut, float(sure[order])))
    return sorted(kept)
