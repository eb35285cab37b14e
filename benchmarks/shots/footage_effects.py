"""Builds the frames of constructed films and records what happens at which frame.

A `Reel` is a film in the making: shots are appended with a cut, a dissolve, a wipe or a fade
between them, and effects within a shot (flashes, shake, captions) are recorded as checked
non-cuts. What it records has the form of the annotations of edited films.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import cv2
import numpy as np

Picture = np.ndarray
Shot = list[Picture]


class Source:
    """A clip with one continuous shot, held at the size in use while it is among the last few."""

    _held: ClassVar[dict[tuple[Path, tuple[int, int]], Shot]] = {}

    def __init__(self, path: Path, size: tuple[int, int]) -> None:
        self.name = path.stem
        self._path, self._size = path, size

    def pictures(self) -> Shot:
        key = (self._path, self._size)
        held = self._held.pop(key, None) or list(read_pictures(self._path, self._size))
        self._held[key] = held
        for old in list(self._held)[:-4]:
            del self._held[old]
        return held

    def take(self, chance: np.random.Generator, length: int) -> Shot:
        """A stretch of `length` frames, or all where there are fewer."""
        pictures = self.pictures()
        length = min(length, len(pictures))
        start = int(chance.integers(0, len(pictures) - length + 1))
        return pictures[start : start + length]


def read_pictures(path: Path, size: tuple[int, int]) -> Iterator[Picture]:
    """RGB frames, scaled to cover `size` (width, height) and cropped in the middle."""
    width, height = size
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            scale = max(width / frame.width, height / frame.height)
            wide = max(width, round(frame.width * scale / 2) * 2)
            high = max(height, round(frame.height * scale / 2) * 2)
            picture = frame.reformat(wide, high, "rgb24", interpolation="AREA").to_ndarray()
            x, y = (wide - width) // 2, (high - height) // 2
            yield picture[y : y + height, x : x + width]


def prepare(path: Path, out: Path, most: int = 220) -> None:
    """Writes the first frames of a clip with a short side of 288, so that films read it fast."""
    with av.open(str(path)) as container, av.open(str(out), "w") as written:
        stream = None
        for number, frame in enumerate(container.decode(video=0)):
            if number >= most:
                break
            scale = 288 / min(frame.width, frame.height)
            wide, high = (round(v * scale / 2) * 2 for v in (frame.width, frame.height))
            if stream is None:
                options = {"crf": "12", "preset": "ultrafast", "threads": "1"}
                stream = written.add_stream("libx264", rate=25, options=options)
                stream.width, stream.height, stream.pix_fmt = wide, high, "yuv420p"
            small = frame.reformat(stream.width, stream.height, "yuv420p", interpolation="AREA")
            small.pts, small.time_base = number, Fraction(1, 25)
            written.mux(stream.encode(small))
        if stream is not None:
            written.mux(stream.encode(None))


@dataclass
class Reel:
    """Frames of a film and the record of its cuts, transitions and non-cuts."""

    rate: float
    pictures: Shot = field(default_factory=list)
    cuts: list[tuple[int, str]] = field(default_factory=list)
    gradual: list[dict[str, Any]] = field(default_factory=list)
    dont_care: list[dict[str, Any]] = field(default_factory=list)
    negatives: list[dict[str, Any]] = field(default_factory=list)

    def room(self) -> int:
        """How many frames there are since the last cut or transition ended."""
        ends = [c for c, _ in self.cuts[-1:]] + [g["end_frame"] for g in self.gradual[-1:]]
        return len(self.pictures) - max(ends, default=0)

    def cut(self, shot: Sequence[Picture], note: str = "") -> int:
        """Appends a shot after a hard cut; returns its first frame."""
        start = len(self.pictures)
        if start:
            self.cuts.append((start, note))
        self.pictures.extend(shot)
        return start

    def cut_if_seen(self, shot: Sequence[Picture], least: float, note: str = "") -> int:
        """As `cut`, but a change of less than `least` counts as neither right nor wrong."""
        if not self.pictures or distance(self.pictures[-1], shot[0]) >= least:
            return self.cut(shot, note)
        start = self.extend(shot)
        self.unclear(start - 1, start + 1, "a cut too small to see")
        return start

    def extend(self, shot: Sequence[Picture]) -> int:
        """Appends frames that go on with the same shot."""
        start = len(self.pictures)
        self.pictures.extend(shot)
        return start

    def blend(self, shot: Sequence[Picture], length: int, mix: Mix, kind: str) -> None:
        """Appends a shot whose first `length` frames mix with the last ones of this film."""
        start = len(self.pictures) - length
        for step in range(length):
            share = (step + 1) / (length + 1)
            self.pictures[start + step] = mix(self.pictures[start + step], shot[step], share)
        self.pictures.extend(shot[length:])
        self.note_gradual(kind, start - 1, start + length)

    def note_gradual(self, kind: str, first: int, last: int, boundary: bool = True) -> None:
        self.gradual.append(
            {"type": kind, "start_frame": first, "end_frame": last, "shot_boundary": boundary}
        )

    def not_a_cut(self, first: int, last: int, what: str) -> None:
        last = min(last, len(self.pictures) - 1)
        self.negatives.append({"start_frame": first, "end_frame": last, "what": what})

    def unclear(self, first: int, last: int, why: str) -> None:
        self.dont_care.append({"start_frame": first, "end_frame": last, "why": why})


Mix = Callable[[Picture, Picture, float], Picture]


def dissolve(one: Picture, other: Picture, share: float) -> Picture:
    return cv2.addWeighted(one, 1 - share, other, share, 0)


def wipe(direction: str) -> Mix:
    """A wipe along x, y, the diagonal, a clock hand, or from the middle."""
    orders: dict[tuple[int, ...], Picture] = {}

    def order(height: int, width: int) -> Picture:
        y, x = np.mgrid[0:height, 0:width].astype(np.float32)
        x, y = x / width, y / height
        return {
            "left": x,
            "right": 1 - x,
            "down": y,
            "diagonal": (x + y) / 2,
            "clock": np.arctan2(y - 0.5, x - 0.5) / (2 * np.pi) + 0.5,
            "iris": np.hypot(x - 0.5, y - 0.5) / 0.71,
        }[direction]

    def mix(one: Picture, other: Picture, share: float) -> Picture:
        size = one.shape[:2]
        if size not in orders:
            orders[size] = order(*size)
        weight = np.clip((share * 1.1 - orders[size]) * 10 + 0.5, 0, 1)
        return cv2.blendLinear(other, one, weight, 1 - weight)

    return mix


def push(one: Picture, other: Picture, share: float) -> Picture:
    """The new picture pushes the old one out to the left."""
    edge = round(one.shape[1] * share)
    return np.concatenate([one[:, edge:], other[:, :edge]], axis=1) if edge else one


def through(level: int) -> Mix:
    """Fades out to a level (0 black, 255 white) and in again."""

    def mix(one: Picture, other: Picture, share: float) -> Picture:
        picture, weight = (one, 1 - 2 * share) if share < 0.5 else (other, 2 * share - 1)
        return cv2.addWeighted(picture, weight, np.full_like(picture, level), 1 - weight, 0)

    return mix


def distance(one: Picture, other: Picture) -> float:
    """The mean difference of two pictures, of 255."""
    return float(np.abs(one[::4, ::4].astype(np.int16) - other[::4, ::4]).mean())


def lit(picture: Picture, gain: float, offset: float = 0.0) -> Picture:
    return np.clip(picture.astype(np.float32) * gain + offset, 0, 255).astype(np.uint8)


def grey(picture: Picture) -> Picture:
    return cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)


def noisy(picture: Picture, chance: np.random.Generator, strength: float) -> Picture:
    height, width = picture.shape[:2]
    noise = chance.normal(0, strength, (height, width, 1)).astype(np.float32)
    return np.clip(picture + noise, 0, 255).astype(np.uint8)


def window(
    picture: Picture, centre: tuple[float, float], zoom: float, turn: float = 0.0
) -> Picture:
    """The part of a picture around `centre` (0–1), `zoom` times enlarged, turned by degrees."""
    height, width = picture.shape[:2]
    half_x, half_y = 0.5 / zoom, 0.5 / zoom
    x = min(max(centre[0], half_x), 1 - half_x) * width
    y = min(max(centre[1], half_y), 1 - half_y) * height
    matrix = cv2.getRotationMatrix2D((x, y), turn, zoom)
    matrix[:, 2] += (width / 2 - x, height / 2 - y)
    return cv2.warpAffine(picture, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)


def motion_blur(picture: Picture, x: float, y: float) -> Picture:
    """Blurs along a line of `x` and `y` pixels, as a fast pan does."""
    length = int(np.hypot(x, y))
    if length < 3:
        return picture
    kernel = np.zeros((length, length), np.float32)
    centre = (length - 1) / 2
    step = np.array([x, y]) / np.hypot(x, y) * centre
    first = tuple(int(v) for v in np.round(centre - step))
    last = tuple(int(v) for v in np.round(centre + step))
    cv2.line(kernel, first, last, 1.0)
    return cv2.filter2D(picture, -1, kernel / kernel.sum())


def pan(
    picture: Picture, start: tuple[float, float], end: tuple[float, float], steps: int, zoom: float
) -> Shot:
    """A window that moves over a still picture, faster in the middle, with motion blur."""
    places = [(1 - np.cos(np.pi * i / max(1, steps - 1))) / 2 for i in range(steps)]
    shot, height, width = [], *picture.shape[:2]
    before = 0.0
    for place in places:
        centre = tuple(a + (b - a) * place for a, b in zip(start, end, strict=True))
        moved = place - before
        before = place
        blur_x = (end[0] - start[0]) * moved * width * zoom * 0.6
        blur_y = (end[1] - start[1]) * moved * height * zoom * 0.6
        shot.append(motion_blur(window(picture, (centre[0], centre[1]), zoom), blur_x, blur_y))
    return shot


def shake(shot: Sequence[Picture], chance: np.random.Generator, strength: float) -> Shot:
    """Moves and turns each frame as a held camera does: a slow drift and quick jerks."""
    x = y = turn = 0.0
    out = []
    for picture in shot:
        x = x * 0.8 + float(chance.normal(0, strength))
        y = y * 0.8 + float(chance.normal(0, strength))
        turn = turn * 0.8 + float(chance.normal(0, strength * 40))
        out.append(window(picture, (0.5 + x, 0.5 + y), 1.15, turn))
    return out


def caption(picture: Picture, text: str, place: str = "bottom") -> Picture:
    """White letters with a dark edge, or a filled lower third."""
    picture = picture.copy()
    height, width = picture.shape[:2]
    scale = height / 420
    if place == "third":
        cv2.rectangle(
            picture,
            (0, int(height * 0.74)),
            (int(width * 0.55), int(height * 0.9)),
            (200, 30, 40),
            -1,
        )
        origin = (int(width * 0.04), int(height * 0.84))
    elif place == "middle":
        origin = (int(width * 0.12), int(height * 0.5))
        scale *= 2
    else:
        origin = (int(width * 0.12), int(height * 0.92))
    font = cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(
        picture, text, origin, font, scale, (0, 0, 0), max(2, round(5 * scale)), cv2.LINE_AA
    )
    cv2.putText(
        picture, text, origin, font, scale, (255, 255, 255), max(1, round(2 * scale)), cv2.LINE_AA
    )
    return picture


def logo(picture: Picture) -> Picture:
    picture = picture.copy()
    height, width = picture.shape[:2]
    cv2.circle(picture, (int(width * 0.91), int(height * 0.12)), height // 16, (240, 240, 240), -1)
    cv2.circle(picture, (int(width * 0.91), int(height * 0.12)), height // 28, (220, 60, 30), -1)
    return picture


def letterboxed(picture: Picture, share: float) -> Picture:
    picture = picture.copy()
    bar = int(picture.shape[0] * share)
    picture[:bar] = picture[-bar:] = 0
    return picture


def write(reel: Reel, path: Path, quality: int, codec: str = "libx264", keys: int = 250) -> None:
    """Encodes a film: x264 at a CRF, or MPEG-4 and VP8 at a quantizer."""
    height, width = reel.pictures[0].shape[:2]
    rate = round(reel.rate * 1001) if reel.rate % 1 else int(reel.rate)
    with av.open(str(path), "w") as container:
        options = {"crf": str(quality), "preset": "veryfast", "threads": "1"}
        if codec == "mpeg4":
            options = {"qmin": str(quality // 4), "qmax": str(quality // 4), "bf": "2"}
        if codec == "libvpx":
            options = {"crf": str(quality), "b": "2M", "deadline": "realtime", "cpu-used": "8"}
        stream = container.add_stream(
            codec, rate=Fraction(rate, 1001 if reel.rate % 1 else 1), options=options
        )
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = (
            width,
            height,
            "yuv420p",
            keys,
        )
        for picture in reel.pictures:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
