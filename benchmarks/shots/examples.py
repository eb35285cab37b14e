"""Makes the examples that `train` learns from, out of annotated films: `data/*.npz`.

    python -m benchmarks.shots.examples [--annotations FOLDER ...] [--videos FOLDER ...]

The examples are in the tree, so that training needs no film. `--annotations` adds the annotations
in these folders to `data/annotations.json`.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.shots import footage
from benchmarks.shots.montages import Montage, jumps, montages, unrests
from benchmarks.shots.rendered import SUDDEN, Rendered, rendered
from clipmill.stages.media.read.shots import blends, features, find, mixes, model
from clipmill.stages.media.read.shots.find import Scanned

CUTS, MIXES = footage.DATA / "cuts.npz", footage.DATA / "mixes.npz"
RENDERED_COUNT = 500
MONTAGES = {"montage": (montages, 200), "unrest": (unrests, 250), "jumps": (jumps, 120)}
RENDERED = "rendered"
# Features of both ways to decode that differ no more than this are one example.
_SAME = 0.05
_KEPT = ("video", "split", "group", "hard_cuts", "gradual", "dont_care")
# Wider than where the network is asked in the end: other films have other probabilities.
_ASKED = 0.03
# A place shows both shots if its thumbnails cover this share of the transition.
_COVERED = 0.9


@dataclass
class Examples:
    """Rows of features with what they are of; `labels` are 1, 0, or -1 for neither."""

    names: tuple[str, ...]
    films: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    frames: list[int] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    rows: list[np.ndarray] = field(default_factory=list)
    logits: list[float] = field(default_factory=list)

    def add(
        self,
        film: tuple[str, str, str],
        kind: str,
        frame: int,
        label: int,
        row: np.ndarray,
        logit: float = np.nan,
    ) -> None:
        for values, value in zip((self.films, self.groups, self.splits), film, strict=True):
            values.append(value)
        self.kinds.append(kind)
        self.frames.append(frame)
        self.labels.append(label)
        self.rows.append(row)
        self.logits.append(logit)

    def write(self, path: Path) -> None:
        np.savez_compressed(
            path,
            names=np.array(self.names),
            **{name: np.array(getattr(self, name)) for name in _TEXTS},
            frames=np.array(self.frames, np.int32),
            labels=np.array(self.labels, np.int8),
            rows=np.array(self.rows, np.float16).reshape(len(self.labels), len(self.names)),
            logits=np.array(self.logits, np.float32),
        )

    @staticmethod
    def read(path: Path) -> Examples:
        with np.load(path) as found:
            return Examples(
                tuple(found["names"].tolist()),
                *(found[name].tolist() for name in (*_TEXTS, "frames", "labels")),
                list(found["rows"].astype(float)),
                found["logits"].tolist(),
            )


_TEXTS = ("films", "groups", "splits", "kinds")


def answers(name: str, numbers: Sequence[int], found: find.Candidates, judge: Any) -> np.ndarray:
    """The network's answers about candidates that are not obvious; NaN for others.

    Without the network, those that it gave before.
    """
    known = {} if judge is not None else _earlier().get(name, {})
    logits = np.array([known.get(number, np.nan) for number in numbers])
    if judge is not None and len(logits):
        sure = find.probabilities_of(found, None, model.shipped())
        asked = np.flatnonzero((sure > _ASKED) & (sure < 1 - _ASKED))
        logits[asked] = judge.logits(found.windows[asked])
    return logits


@functools.cache
def _earlier() -> dict[str, dict[int, float]]:
    """Answers in the examples in the tree, by film and frame."""
    found: dict[str, dict[int, float]] = {}
    if CUTS.exists():
        kept = Examples.read(CUTS)
        for film, frame, logit in zip(kept.films, kept.frames, kept.logits, strict=True):
            found.setdefault(film, {})[frame] = logit
    return found


def add_cuts(
    examples: Examples,
    film: footage.Film,
    scanned: Scanned,
    judge: Any,
    known: dict[int, np.ndarray],
) -> None:
    """The candidates of a film, but for those that are `known` as they are, which it adds."""
    found = find.candidates_of(scanned)
    numbers = [scanned.numbers[index] for index in found.indexes]
    logits = answers(film.name, numbers, found, judge)
    labels = film.labels(numbers)
    for number, label, row, logit in zip(numbers, labels, found.features, logits, strict=True):
        if number in known and np.abs(known[number] - row).max() <= _SAME:
            continue
        known.setdefault(number, row)
        examples.add(
            (film.name, film.group, film.split), "cut", number, int(label), row, float(logit)
        )


def add_mixes(examples: Examples, film: footage.Film, scanned: Scanned) -> None:
    """The places in a film that may be amid a dissolve or a wipe."""
    places, pictures = find.places_of(scanned)
    for place, row in zip(places, mixes.described(pictures, places), strict=True):
        spans = [g for g in film.gradual if g.kind == place.kind]
        label = max((_mix_label(place, scanned.seconds, g.first, g.last) for g in spans), default=0)
        if label < 1 and (film.is_ignored(place.index) or _holds_cut(film, place, scanned)):
            label = -1
        examples.add((film.name, film.group, film.split), place.kind, place.index, label, row)


def _holds_cut(film: footage.Film, place: mixes.Place, scanned: Scanned) -> bool:
    """Whether a cut is amid the place: it may be blended, and then the cut decides."""
    at = scanned.seconds[np.clip(film.cuts, 0, len(scanned.seconds) - 1)] if film.cuts else []
    return any(abs(second - scanned.seconds[place.index]) <= place.half for second in at)


def _mix_label(place: mixes.Place, seconds: np.ndarray, first: int, last: int) -> int:
    """1 amid the transition, -1 if the place shows only a part of it, 0 elsewhere."""
    last = min(last, len(seconds) - 1)
    if not first - 2 <= place.index <= last + 2:
        return 0
    length = seconds[last] - seconds[first]
    return 1 if 2 * blends.SPREAD * place.half >= _COVERED * length else -1


def add_rendered(cuts: Examples, mixed: Examples, made: Rendered) -> None:
    scanned = footage.scan_of_pictures(made.pictures, made.rate)
    film = (RENDERED, RENDERED, "train")
    places, pictures = find.places_of(scanned)
    for place, row in zip(places, mixes.described(pictures, places), strict=True):
        label = 0
        if made.kind in ("dissolve", "wipe"):
            label = _mix_label(place, scanned.seconds, made.first, made.last)
            label = -1 if label == 1 and place.kind != made.kind else label
        mixed.add(film, place.kind, place.index, label, row)
    if made.kind not in ("cut", *SUDDEN):
        return
    found = find.candidates_of(scanned)
    for index, row in zip(found.indexes, found.features, strict=True):
        is_near = made.first - 2 <= index <= made.last + 2
        if is_near:
            cuts.add(film, made.kind, int(index), int(made.kind == "cut"), row)


def add_montage(cuts: Examples, kind: str, made: Montage) -> None:
    found = find.candidates_of(footage.scan_of_pictures(made.pictures, made.rate))
    labels = footage.labelled(found.indexes.tolist(), made.cuts)
    for index, label, row in zip(found.indexes, labels, found.features, strict=True):
        cuts.add((RENDERED, RENDERED, "train"), kind, int(index), int(label), row)


def merge_annotations(folders: Iterable[Path]) -> None:
    """Adds what is in these folders to the file in the tree, in place of older annotations."""
    kept = {entry["video"]: entry for entry in json.loads(footage.ANNOTATIONS.read_text("utf-8"))}
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            entry = json.loads(path.read_text("utf-8"))
            group = kept.get(entry["video"], {}).get("group")
            kept[entry["video"]] = _short({"group": group, **entry})
    lines = ",\n".join(json.dumps(kept[name], separators=(",", ":")) for name in sorted(kept))
    footage.ANNOTATIONS.write_text(f"[\n{lines}\n]\n", "utf-8")


def _short(entry: dict[str, Any]) -> dict[str, Any]:
    found = {name: entry[name] for name in _KEPT if entry.get(name)}
    found["hard_cuts"] = [{"frame": cut["frame"]} for cut in entry["hard_cuts"]]
    for name in ("gradual", "dont_care"):
        if name in found:
            columns = ("type", "start_frame", "end_frame")
            found[name] = [{c: span[c] for c in columns if c in span} for span in found[name]]
    return found


def judge_or_none() -> Any:
    """The network if its package is installed."""
    from clipmill.schemas.errors import ClipmillError

    try:
        from clipmill.stages.media.read.shots.judge import load_judge

        return load_judge()
    except (ImportError, ClipmillError) as problem:
        print(f"without the network's answers: {problem}")
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--annotations", type=Path, nargs="*", default=[])
    parser.add_argument("--videos", type=Path, nargs="*", default=[footage.VIDEOS])
    parser.add_argument("--split", default="train", help="train, test or all")
    parser.add_argument("--network", action="store_true", help="ask the network, too")
    options = parser.parse_args(arguments)
    if options.annotations:
        merge_annotations(options.annotations)
    judge = judge_or_none() if options.network else None
    cuts, mixed = Examples((*features.NAMES,)), Examples(mixes.NAMES)
    shots: list[np.ndarray] = []
    split = None if options.split == "all" else options.split
    for film in footage.films(videos=options.videos, split=split):
        scan = footage.scan(film.path)
        known: dict[int, np.ndarray] = {}
        add_cuts(cuts, film, scan.scanned, judge, known)
        add_cuts(cuts, film, footage.scan(film.path, "needed").scanned, judge, known)
        add_mixes(mixed, film, scan.scanned)
        if film.split == "train":
            runs = footage.shots_without(film, len(scan.pictures))
            shots += [scan.pictures[first:last] for first, last in runs]
        print(f"{film.name}: {len(scan.pictures)} frames, {len(film.cuts)} cuts", flush=True)
    for made in rendered(shots, RENDERED_COUNT, seed=0):
        add_rendered(cuts, mixed, made)
    for seed, (kind, (render, count)) in enumerate(MONTAGES.items()):
        for montage in render(shots, count, seed + 1):
            add_montage(cuts, kind, montage)
    cuts.write(CUTS)
    mixed.write(MIXES)
    for path in (CUTS, MIXES):
        print(f"{path}: {path.stat().st_size / 1024:.0f} kB")


if __name__ == "__main__":
    main()
