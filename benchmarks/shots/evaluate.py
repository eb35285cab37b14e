"""Compares detectors on annotated films: cuts within two frames, gradual transitions, time.

    python -m benchmarks.shots.evaluate [--split test] [--videos FOLDER ...] [--each]

content 27         PySceneDetect's content detector, as in its command and in Clipmill's recipes
tuned              the best of PySceneDetect's content and adaptive settings on the training films
TransNetV2 0.4     the network over every frame, as its authors run it
cascade            Clipmill's own detector
cascade + network  the same, with `judge: transnetv2`

Films of the split `train` are those that the weights were fitted to: there, each is tested with
weights of the cascade that were fitted without it and an eighth of the others. Intervals of 95%
come from resampled films. The processor time includes decoding. Scans are kept in `build/shots`.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shots import footage
from benchmarks.shots.examples import judge_or_none
from benchmarks.shots.others import content_scan, network_answers, pyscenedetect_cuts, tuned
from benchmarks.shots.train import weights_without
from clipmill.stages.cascade_shots import CASCADE_MIN_SCENE_LEN, least_seconds
from clipmill.stages.media.read.shots import find, model

CONTENT, TUNED, NETWORK = "content 27", "tuned", "TransNetV2 0.4"
CASCADE, JUDGED = "cascade", "cascade + network"
DETECTORS = (CONTENT, TUNED, NETWORK, CASCADE, JUDGED)
MIN_SCENE_SECONDS = least_seconds(CASCADE_MIN_SCENE_LEN, 0.0)
NETWORK_THRESHOLD = 0.4
_RESAMPLED = 2000


@dataclass
class Counts:
    """What a detector found in one film."""

    hits: int = 0
    missed: list[int] = field(default_factory=list)
    false: list[int] = field(default_factory=list)
    gradual: int = 0
    all_gradual: int = 0
    cpu_seconds: float = 0.0


def counted(
    film: footage.Film, cuts: Sequence[int], spans: Sequence[tuple[int, int]], cpu_seconds: float
) -> Counts:
    """Each true cut is found by at most one, each found one finds at most one."""
    free = sorted(cuts)
    missed = []
    for cut in film.cuts:
        near = [found for found in free if abs(found - cut) <= footage.TOLERANCE]
        if near:
            free.remove(min(near, key=lambda found: abs(found - cut)))
        else:
            missed.append(cut)
    false = [found for found in free if not film.is_ignored(found)]
    points = [(cut, cut) for cut in cuts]
    gradual = sum(
        any(first <= span.last + 2 and last >= span.first - 2 for first, last in (*points, *spans))
        for span in film.gradual
    )
    hits = len(film.cuts) - len(missed)
    return Counts(hits, missed, false, gradual, len(film.gradual), cpu_seconds)


@dataclass(frozen=True)
class Found:
    cuts: list[int]
    spans: list[tuple[int, int]]
    cpu_seconds: float


Method = Callable[[footage.Film], Found]


def content(film: footage.Film) -> Found:
    statistics, spent = content_scan(film.path)
    return Found(pyscenedetect_cuts(statistics), [], spent)


def best(settings: dict[str, Any], film: footage.Film) -> Found:
    statistics, spent = content_scan(film.path)
    return Found(pyscenedetect_cuts(statistics, **settings), [], spent)


def network(film: footage.Film) -> Found:
    scan = footage.scan(film.path)
    answers, spent = network_answers(film.path, scan.pictures)
    cuts = []
    for is_cut, run in itertools.groupby(
        range(len(answers)), lambda i: answers[i] > NETWORK_THRESHOLD
    ):
        if is_cut:
            # The answer is about the last picture of a shot.
            cuts.append(max(run, key=lambda i: answers[i]) + 1)
    return Found(cuts, [], scan.cpu_seconds + spent)


def cascade(judge: Any, is_training: bool, decode: footage.Decode, film: footage.Film) -> Found:
    scan = footage.scan(film.path, decode)
    weights = weights_without(film.group) if is_training else model.shipped()
    started = time.process_time()
    found = find.find_shots(scan.scanned, 0.5, MIN_SCENE_SECONDS, judge, weights)
    spent = time.process_time() - started
    spans = [(span.first, span.last) for span in found.transitions]
    return Found(found.cuts, spans, scan.cpu_seconds + spent)


def scores(counts: Sequence[Counts]) -> tuple[float, float, float]:
    """F1, precision and recall over all cuts of these films."""
    hits = sum(count.hits for count in counts)
    missed = sum(len(count.missed) for count in counts)
    false = sum(len(count.false) for count in counts)
    whole = 2 * hits + missed + false
    return (
        2 * hits / whole if whole else 1.0,
        hits / (hits + false) if hits + false else 1.0,
        hits / (hits + missed) if hits + missed else 1.0,
    )


def intervals(counts: Sequence[Counts]) -> list[tuple[float, float]]:
    """95% of the scores of films drawn again."""
    chance = np.random.default_rng(0)
    drawn = [
        scores([counts[i] for i in chance.integers(0, len(counts), len(counts))])
        for _ in range(_RESAMPLED)
    ]
    return [(float(a), float(b)) for a, b in np.quantile(drawn, (0.025, 0.975), axis=0).T]


def methods(
    names: Sequence[str],
    training: Sequence[footage.Film],
    *,
    is_training: bool,
    decode: footage.Decode,
) -> Iterator[tuple[str, Method]]:
    def f1(found: list[list[int]]) -> float:
        counts = [counted(film, cuts, [], 0) for film, cuts in zip(training, found, strict=True)]
        return scores(counts)[0]

    judge = judge_or_none() if {NETWORK, JUDGED} & set(names) else None
    if CONTENT in names:
        yield CONTENT, content
    if TUNED in names:
        settings = tuned(training, f1)
        print("tuned:", ", ".join(f"{name} {value}" for name, value in settings.items()))
        yield TUNED, functools.partial(best, settings)
    if NETWORK in names and judge is not None:
        yield NETWORK, network
    if CASCADE in names:
        yield CASCADE, functools.partial(cascade, None, is_training, decode)
    if JUDGED in names and judge is not None:
        yield JUDGED, functools.partial(cascade, judge, is_training, decode)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--split", choices=("train", "test"), default="test")
    parser.add_argument("--videos", type=Path, nargs="*", default=[footage.VIDEOS])
    parser.add_argument("--decode", choices=("all", "needed"), default="all", help="by cascade")
    parser.add_argument("--without", nargs="*", default=[], help="films that are left out")
    parser.add_argument("--each", action="store_true", help="what is missed and false, by film")
    parser.add_argument("--detectors", nargs="*", choices=DETECTORS, default=DETECTORS)
    options = parser.parse_args(arguments)
    films = footage.films(videos=options.videos, split=options.split)
    films = [film for film in films if film.name not in options.without]
    training = footage.films(videos=options.videos, split="train")
    if not films:
        parser.error("no file of an annotated film was found; name their folder with --videos")
    seconds = sum(footage.scan(film.path).scanned.seconds[-1] for film in films)
    print(f"{len(films)} films, {seconds / 60:.1f} minutes, {sum(len(f.cuts) for f in films)} cuts")
    rows = []
    is_training = options.split == "train"
    for name, method in methods(
        options.detectors, training, is_training=is_training, decode=options.decode
    ):
        counts = []
        for film in films:
            found = method(film)
            counts.append(counted(film, found.cuts, found.spans, found.cpu_seconds))
            if options.each and (counts[-1].missed or counts[-1].false):
                print(f"  {name}: {film.name}: missed {counts[-1].missed} false {counts[-1].false}")
        rows.append((name, counts))
    print("\n| detector | F1 | precision | recall | gradual | CPU seconds |")
    print("|---|---|---|---|---|---|")
    for name, counts in rows:
        shown = [
            f"{score:.3f} ({low:.2f}–{high:.2f})"
            for score, (low, high) in zip(scores(counts), intervals(counts), strict=True)
        ]
        gradual = f"{sum(c.gradual for c in counts)} of {sum(c.all_gradual for c in counts)}"
        spent = sum(c.cpu_seconds for c in counts)
        print(f"| {name} | {' | '.join(shown)} | {gradual} | {spent:.1f} |")


if __name__ == "__main__":
    main()
