"""Text on the frames of a clip: where it is, of which kind, what it says, and how long it stays."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import cv2
import numpy as np

from clipmill.stages.models.text_boxes import TextBox, TextDetector, covered
from clipmill.stages.models.text_kinds import Kind, PlacedText, in_place, kinds_of, same_words
from clipmill.stages.models.text_reading import ReadText, TextReader, line_of

# Frames and lines look the same if no cell of such a small picture changes by so many grey levels.
_FRAME_ROWS = 96
_FRAME_LEVELS = 10
_LINE_ROWS = 12
_LINE_LEVELS = 20
# Areas are counted in pixels of pictures of at most this short side.
_AREA_SIDE = 480
# A rotated box is this much higher than its line.
_UPRIGHT_HEIGHT = 1.3
# Shorter texts that stand elsewhere in the next frame are two texts.
_LEAST_MOVED = 3


@dataclass
class ClipFrames:
    """A clip's frames: their times, and which of its different pictures each shows."""

    seconds: list[float]
    pictures: list[np.ndarray]
    shows: list[int]
    boxes: list[list[TextBox]] = field(default_factory=list)
    texts: list[list[ReadText | None]] = field(default_factory=list)

    @classmethod
    def of(cls, seconds: Sequence[float], frames: Iterable[np.ndarray]) -> ClipFrames:
        """Frames that look the same count as one picture."""
        found = cls(list(seconds), [], [])
        small: list[np.ndarray] = []
        for frame in frames:
            reduced = _reduced(frame, _FRAME_ROWS)
            same = [at for at, one in enumerate(small) if _alike(one, reduced, _FRAME_LEVELS)]
            if not same:
                small.append(reduced)
                found.pictures.append(frame)
            found.shows.append(same[0] if same else len(small) - 1)
        found.boxes = [[] for _ in found.pictures]
        found.texts = [[] for _ in found.pictures]
        return found


def _reduced(image: np.ndarray, rows: int) -> np.ndarray:
    """The picture in grey, averaged to so many rows."""
    columns = max(1, round(image.shape[1] * rows / image.shape[0]))
    grey = cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)
    return cv2.resize(grey, (columns, rows), interpolation=cv2.INTER_AREA)


def _alike(one: np.ndarray, other: np.ndarray, levels: int) -> bool:
    return one.shape == other.shape and int(cv2.absdiff(one, other).max()) <= levels


def detect(clips: Sequence[ClipFrames], detector: TextDetector) -> None:
    """Fills `boxes`: the different pictures of all clips, in the detector's batches."""
    found = iter(detector([picture for clip in clips for picture in clip.pictures]))
    for clip in clips:
        clip.boxes = [next(found) for _ in clip.pictures]
        clip.texts = [[None] * len(boxes) for boxes in clip.boxes]


def read(clips: Sequence[ClipFrames], reader: TextReader) -> None:
    """Fills `texts`: each line once, if it is the same in several pictures of a clip."""
    lines: list[np.ndarray] = []
    number: list[list[list[int]]] = []
    for clip in clips:
        seen: list[tuple[PlacedText, np.ndarray, int]] = []
        number.append([])
        for picture, boxes in zip(clip.pictures, clip.boxes, strict=True):
            placed = [place(box, picture.shape) for box in boxes]
            proportion = picture.shape[1] / picture.shape[0]
            own = []
            for box, where in zip(boxes, placed, strict=True):
                line = line_of(picture, box.wide)
                small = _reduced(line, _LINE_ROWS)
                known = next(
                    (
                        at
                        for other, looks, at in seen
                        if in_place(where, other, proportion) and _same_line(looks, small)
                    ),
                    None,
                )
                if known is None:
                    known = len(lines)
                    lines.append(line)
                    seen.append((where, small, known))
                own.append(known)
            number[-1].append(own)
    texts = reader(lines)
    for clip, pictures in zip(clips, number, strict=True):
        clip.texts = [[texts[at] for at in own] for own in pictures]


def _same_line(one: np.ndarray, other: np.ndarray) -> bool:
    if abs(one.shape[1] - other.shape[1]) > 2:
        return False
    fitted = cv2.resize(other, (one.shape[1], one.shape[0]), interpolation=cv2.INTER_LINEAR)
    return _alike(one, fitted, _LINE_LEVELS)


def place(box: TextBox, shape: Sequence[int], text: str | None = None) -> PlacedText:
    """The box's bounds as shares of its picture."""
    left, top, right, bottom = box.bounds
    first, second, _, last = box.corners
    sides = (np.linalg.norm(second - first), np.linalg.norm(last - first))
    is_upright = bottom - top <= _UPRIGHT_HEIGHT * float(min(sides)) and sides[0] >= sides[1]
    height, width = shape[:2]
    return PlacedText(left / width, top / height, right / width, bottom / height, is_upright, text)


@dataclass
class ScreenLine:
    """A line of text from the first to the last of the frames that show it."""

    text: str | None
    confidence: float | None
    kind: Kind | None
    seconds: float
    last_seconds: float
    frames: int
    place: PlacedText


@dataclass(frozen=True)
class ScreenText:
    """What a clip's frames show: shares of the picture by frame, and lines in time order."""

    areas: list[float]
    boxes: list[int]
    areas_of: dict[Kind, list[float]] | None
    """None where kinds can't be told apart: of a single frame."""
    subtitle_band: tuple[float, float] | None
    lines: list[ScreenLine]


_KINDS: tuple[Kind, ...] = ("subtitle", "overlay", "scene")


def screen_text(clip: ClipFrames, *, least_confidence: float) -> ScreenText:
    """Sums up a clip; readings that are less sure than `least_confidence` are left out."""
    several = len(clip.shows) > 1
    proportion = clip.pictures[0].shape[1] / clip.pictures[0].shape[0]
    placed: list[list[PlacedText]] = []
    readings: list[list[ReadText | None]] = []
    for shown in clip.shows:
        sure = [
            one if one is not None and one.text and one.confidence >= least_confidence else None
            for one in clip.texts[shown]
        ]
        readings.append(sure)
        placed.append(
            [
                place(box, clip.pictures[shown].shape, one.text if one else None)
                for box, one in zip(clip.boxes[shown], sure, strict=True)
            ]
        )
    kinds: Sequence[Sequence[Kind | None]] = [[None] * len(boxes) for boxes in placed]
    if several:
        kinds = kinds_of(placed, clip.seconds, proportion)
    areas, by_kind = _areas(clip, kinds)
    subtitles = [
        text
        for texts, own in zip(placed, kinds, strict=True)
        for text, kind in zip(texts, own, strict=True)
        if kind == "subtitle"
    ]
    return ScreenText(
        areas,
        [len(boxes) for boxes in placed],
        by_kind if several else None,
        (min(one.top for one in subtitles), max(one.bottom for one in subtitles))
        if subtitles
        else None,
        _followed(clip.seconds, placed, readings, kinds, proportion),
    )


def _areas(
    clip: ClipFrames, kinds: Sequence[Sequence[Kind | None]]
) -> tuple[list[float], dict[Kind, list[float]]]:
    """The share of each frame under boxes, and of each kind; what two kinds cover is of the first
    of `_KINDS`."""
    areas: list[float] = []
    by_kind: dict[Kind, list[float]] = {kind: [] for kind in _KINDS}
    for shown, own in zip(clip.shows, kinds, strict=True):
        height, width = clip.pictures[shown].shape[:2]
        scale = min(1.0, _AREA_SIDE / min(height, width))
        shape = (max(1, round(height * scale)), max(1, round(width * scale)))
        corners = [box.corners * scale for box in clip.boxes[shown]]
        taken = np.zeros(shape, bool)
        for kind in _KINDS:
            of_kind = [at for at, one in zip(corners, own, strict=True) if one == kind]
            fresh = covered(of_kind, shape) & ~taken if of_kind else None
            by_kind[kind].append(0.0 if fresh is None else float(fresh.mean()))
            if fresh is not None:
                taken |= fresh
        areas.append(float(covered(corners, shape).mean()) if corners else 0.0)
    return areas, by_kind


def _followed(
    seconds: Sequence[float],
    placed: Sequence[Sequence[PlacedText]],
    readings: Sequence[Sequence[ReadText | None]],
    kinds: Sequence[Sequence[Kind | None]],
    proportion: float,
) -> list[ScreenLine]:
    """The lines of all frames; one that is also in the frame before goes on."""
    lines: list[ScreenLine] = []
    before: list[ScreenLine] = []
    for at, texts, read_texts, own in zip(seconds, placed, readings, kinds, strict=True):
        now: list[ScreenLine] = []
        for text, reading, kind in zip(texts, read_texts, own, strict=True):
            line = next(
                (one for one in before if one not in now and _goes_on(one, text, proportion)), None
            )
            if line is None:
                line = ScreenLine(None, None, kind, at, at, 0, text)
                lines.append(line)
            line.last_seconds = at
            line.frames += 1
            if reading is not None and reading.confidence > (line.confidence or 0.0):
                line.text, line.confidence = reading.text, reading.confidence
                line.place = text
            now.append(line)
        before = now
    return lines


def _goes_on(line: ScreenLine, text: PlacedText, proportion: float) -> bool:
    if in_place(line.place, text, proportion):
        return same_words(line.text, text.text)
    if line.text is None or text.text is None or len(text.text) < _LEAST_MOVED:
        return False
    return same_words(line.text, text.text)
