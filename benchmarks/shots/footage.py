"""Films with hand-made annotations of their cuts, and what a scan of them stores.

An annotation is a JSON file `NAME.json` for a film `NAME`:

video            the film's file name
hard_cuts        [{"frame": first frame of the new shot, counted from 0}]
gradual          [{"type": …, "start_frame": …, "end_frame": …}]
dont_care        [{"start_frame": …, "end_frame": …}]: neither right nor wrong
split            "train" or "test"; those without one are for training
"""

from __future__ import annotations

import glob
import hashlib
import itertools
import json
import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from clipmill.stages.media.read.fast import FastVideo
from clipmill.stages.media.read.lean_measures import NUMBER, SECONDS
from clipmill.stages.media.read.needed import NeededVideo
from clipmill.stages.media.read.shots.find import Scanned
from clipmill.stages.media.read.shots.measures import ShotMeasures
from clipmill.stages.media.read.shots.thumbnails import HEIGHT, WIDTH

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(__file__).parent / "data"
ANNOTATIONS = DATA / "annotations.json"
VIDEOS = ROOT.parent / "shared" / "videos"
CACHE = ROOT / "build" / "shots"

_STORES = ("measures", "candidates", "windows", "blends", "compared", "thumbnails")
Decode = Literal["all", "needed"]

TOLERANCE = 2
"""Frames by which a found cut may be off."""
# Types of gradual transitions that end a shot: others are overlays, titles and the like.
_FADES = ("fade_in", "fade_out", "fade_to", "fade_from", "dip", "fade")
_OTHERS = ("dissolve", "wipe", "crossfade")


@dataclass(frozen=True)
class Gradual:
    kind: str
    first: int
    last: int


@dataclass(frozen=True)
class Film:
    """An annotated film. `group`: films with pictures in common, tested together."""

    name: str
    path: Path
    split: str
    group: str
    cuts: tuple[int, ...]
    gradual: tuple[Gradual, ...]
    ignored: tuple[tuple[int, int], ...]

    def labels(self, numbers: Sequence[int]) -> np.ndarray:
        """See `labelled`; also -1 in stretches where neither is right."""
        found = labelled(numbers, self.cuts)
        ignored = np.array([self.is_ignored(number) for number in numbers], bool)
        return np.where(ignored & (found == 0), -1, found)

    def is_ignored(self, index: int) -> bool:
        return any(a - 3 <= index <= b + 3 for a, b in self.ignored)


def labelled(numbers: Sequence[int], cuts: Sequence[int]) -> np.ndarray:
    """1 for the frame nearest to each cut, -1 for others within the tolerance, 0 elsewhere."""
    at = np.array(numbers, np.intp)
    found = np.zeros(len(at), np.intp)
    if not len(at):
        return found
    for cut in cuts:
        found[np.abs(at - cut) <= TOLERANCE] = -1
    for cut in cuts:
        nearest = int(np.abs(at - cut).argmin())
        if abs(at[nearest] - cut) <= TOLERANCE:
            found[nearest] = 1
    return found


def films(
    annotations: Path = ANNOTATIONS, videos: Sequence[Path] = (VIDEOS,), split: str | None = None
) -> list[Film]:
    """The annotated films whose files are there."""
    found = []
    for entry in json.loads(annotations.read_text("utf-8")):
        film = film_of(entry, videos)
        if film is not None and split in (None, film.split):
            found.append(film)
    return found


def film_of(entry: dict[str, Any], videos: Sequence[Path]) -> Film | None:
    paths = [folder / entry["video"] for folder in videos]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return None
    spans = [(g["type"], g["start_frame"], g["end_frame"]) for g in entry.get("gradual", ())]
    return Film(
        entry["video"],
        path,
        entry.get("split", "train"),
        entry.get("group", entry["video"]),
        tuple(cut["frame"] for cut in entry["hard_cuts"]),
        tuple(
            Gradual(kind, first, last)
            for name, first, last in spans
            if (kind := kind_of(name)) is not None
        ),
        tuple((first, last) for _, first, last in spans)
        + tuple((d["start_frame"], d["end_frame"]) for d in entry.get("dont_care", ())),
    )


def kind_of(name: str) -> str | None:
    """`fade`, `dissolve` or `wipe`; None for what ends no shot."""
    if name.startswith(_FADES):
        return "fade"
    if name.startswith(_OTHERS):
        return "wipe" if name.startswith("wipe") else "dissolve"
    return None


@dataclass(frozen=True)
class Scan:
    """What a scan stores, with all decoded every thumbnail [pictures, 27, 48, 3], and the time
    with decoding."""

    scanned: Scanned
    pictures: np.ndarray
    cpu_seconds: float


def scan(path: Path, decode: Decode = "all") -> Scan:
    """The scan of a film, read again from `build/` if neither it nor the scan's code changed."""
    kind = "scan" if decode == "all" else f"{decode}-scan"
    key = hashlib.sha256(f"{state_of(path)} {_code(decode)}".encode()).hexdigest()[:16]
    kept = CACHE / f"{path.name}.{kind}.{key}.pickle"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        for old in CACHE.glob(f"{glob.escape(path.name)}.{kind}.*.pickle"):
            old.unlink()
        kept.write_bytes(pickle.dumps(_scan(path, decode)))
    found: Scan = pickle.loads(kept.read_bytes())
    return found


def _scan(path: Path, decode: Decode) -> Scan:
    started = time.process_time()
    cv2.setNumThreads(1)
    measures = ShotMeasures()
    numbers, seconds, pictures = [], [], []
    video = NeededVideo(path) if decode == "needed" else FastVideo(path, lean=True)
    for picture in video.pictures():
        measures.add(picture)
        numbers.append(picture.number)
        seconds.append(picture.seconds)
        if decode == "all":
            pictures.append(picture.tiny)
    spent = time.process_time() - started
    kept = np.stack(pictures) if pictures else np.empty((0, HEIGHT, WIDTH, 3), np.uint8)
    return Scan(_scanned(measures, numbers, seconds), kept, spent)


def _scanned(measures: ShotMeasures, numbers: Sequence[int], seconds: Sequence[float]) -> Scanned:
    """As the stage finds it in a row of a scan."""
    columns = measures.finish()
    columns["statistics"] |= {NUMBER: numbers, SECONDS: seconds}
    return Scanned.of(columns)


@dataclass(frozen=True)
class _Rendered:
    number: int
    seconds: float
    tiny: np.ndarray


def scan_of_pictures(pictures: np.ndarray, rate: float) -> Scanned:
    """The scan of a film of which only thumbnails are there."""
    measures = ShotMeasures()
    seconds = [number / rate for number in range(len(pictures))]
    for number, picture in enumerate(pictures):
        measures.add(_Rendered(number, seconds[number], picture))
    return _scanned(measures, range(len(seconds)), seconds)


def state_of(path: Path) -> str:
    """Changes when the file does."""
    found = path.stat()
    return f"{path.name} {found.st_size} {found.st_mtime_ns}"


def _code(decode: Decode) -> str:
    """Changes when what a scan stores may change."""
    folder = ROOT / "stages" / "media" / "read"
    names = ("planes.py", *(f"shots/{name}.py" for name in _STORES))
    if decode == "needed":
        names = (*names, "needed.py", "needed_packets.py")
    return hashlib.sha256(b"".join((folder / name).read_bytes() for name in names)).hexdigest()


def shots_without(film: Film, count: int, least: int = 20) -> list[tuple[int, int]]:
    """Runs of frames of one shot each, without transitions: [first, last)."""
    edges = [0, *film.cuts, count]
    runs = []
    for begin, end in itertools.pairwise(edges):
        at = begin
        for span in sorted([*film.ignored, (end, end)]):
            first, last = (int(n) for n in np.clip((span[0] - 2, span[1] + 3), begin, end))
            if first - at >= least:
                runs.append((at, first))
            at = max(at, last)
    return runs
