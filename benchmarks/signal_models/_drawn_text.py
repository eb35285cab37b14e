"""Frames of real films with text drawn on them, whose places and words are known."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

WORDS = [
    *("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "while", "seven", "wizards"),
    *("quietly", "mix", "bright", "potions", "near", "old", "river", "bank", "market", "street"),
    *("open", "today", "only", "fresh", "coffee", "and", "bread", "world", "news", "report"),
    *("weather", "tomorrow", "final", "score", "championship", "live", "interview", "chapter"),
]
SHORT_SIDE = 384


@dataclass
class Drawn:
    """A picture, and the corners, kinds and words of the lines on it."""

    image: np.ndarray
    corners: list[np.ndarray] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)


def film_frames(path: Path, count: int, *, seconds: float = 12.0) -> list[np.ndarray]:
    """RGB frames at equal distances in the first seconds, of the size of kept frames."""
    import av

    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        found, last = [], -1.0
        for frame in container.decode(stream):
            at = float(frame.time or 0.0) - float((stream.start_time or 0) * stream.time_base)
            if at > seconds:
                break
            if at - last >= seconds / count - 1e-6 or last < 0:
                last = at
                scale = SHORT_SIDE / min(frame.width, frame.height)
                size = (round(frame.width * scale / 2) * 2, round(frame.height * scale / 2) * 2)
                found.append(frame.reformat(*size, format="rgb24").to_ndarray())
    return found[:count]


def phrase(rng: np.random.Generator, words: int) -> str:
    return " ".join(str(word) for word in rng.choice(WORDS, words, replace=False)).capitalize()


def draw_line(
    drawn: Drawn,
    text: str,
    at: tuple[float, float],
    height: float,
    *,
    kind: str = "scene",
    centred: bool = False,
    colour: tuple[int, int, int] = (245, 245, 245),
    outlined: bool = True,
    degrees: float = 0.0,
    file: str | None = None,
) -> None:
    """Draws a line whose capitals are about 0.7 `height` high; what lies outside is cut off."""
    font: Any = ImageFont.truetype(file, height) if file else ImageFont.load_default(size=height)
    stroke = max(1, round(height / 14)) if outlined else 0
    left, _, right, _ = font.getbbox(text, stroke_width=stroke)
    # From the ascenders to the descenders, whichever letters there are.
    _, top, _, bottom = font.getbbox("dp", stroke_width=stroke)
    size = (int(right - left + 4), int(bottom - top + 4))
    mask = Image.new("L", size)
    edge = Image.new("L", size)
    where = (2 - left, 2 - top)
    ImageDraw.Draw(edge).text(where, text, 255, font=font, stroke_width=stroke)
    ImageDraw.Draw(mask).text(where, text, 255, font=font)
    x = at[0] - size[0] / 2 if centred else at[0]
    middle = (size[0] / 2, size[1] / 2)
    turn = cv2.getRotationMatrix2D(middle, -degrees, 1.0)
    turn[:, 2] += (x, at[1])
    canvas = (drawn.image.shape[1], drawn.image.shape[0])
    for layer, paint in ((edge, (0, 0, 0)), (mask, colour)):
        share = cv2.warpAffine(np.asarray(layer), turn, canvas)[:, :, None] / 255.0
        drawn.image = (drawn.image * (1 - share) + np.array(paint) * share).astype(np.uint8)
    box = np.array([[2, 2], [size[0] - 2, 2], [size[0] - 2, size[1] - 2], [2, size[1] - 2]])
    drawn.corners.append((box @ turn[:, :2].T + turn[:, 2]).astype(np.float32))
    drawn.kinds.append(kind)
    drawn.texts.append(text)


def pages(
    frames: Sequence[np.ndarray], rng: np.random.Generator, heights: Sequence[float]
) -> Iterator[tuple[float, Drawn]]:
    """Each frame once per height of text, with three lines of it in different places."""
    for frame in frames:
        rows, columns = frame.shape[:2]
        for height in heights:
            drawn = Drawn(frame.copy())
            for third in range(3):
                words = int(rng.integers(1, 5))
                x = float(rng.uniform(5, columns * 0.5))
                y = float(rng.uniform(third / 3 + 0.04, third / 3 + 0.2)) * rows
                colour = (245, 245, 245) if rng.random() < 0.7 else (240, 220, 40)
                text = phrase(rng, words)
                draw_line(drawn, text, (x, y), height, colour=colour, outlined=rng.random() < 0.5)
            yield height, drawn


def staged_clip(
    frames: Sequence[np.ndarray], rng: np.random.Generator, kinds: Sequence[str]
) -> list[Drawn]:
    """The frames of one clip with lines of these kinds: overlays stay, subtitles change, text of
    the scene drifts."""
    rows, columns = frames[0].shape[:2]
    clip = [Drawn(frame.copy()) for frame in frames]
    if "overlay" in kinds:
        corner = [(0.04, 0.05), (0.72, 0.05), (0.04, 0.78)][int(rng.integers(3))]
        text = phrase(rng, 2)[:14]
        for at, drawn in enumerate(clip):
            said = f"00:0{at}:{17 * at % 60:02d}" if corner[1] > 0.5 else text
            where = (corner[0] * columns, corner[1] * rows)
            draw_line(drawn, said, where, 20, kind="overlay")
    if "subtitle" in kinds:
        for drawn in clip:
            draw_line(
                drawn,
                phrase(rng, int(rng.integers(3, 6))),
                (columns / 2, rows * 0.88),
                24,
                kind="subtitle",
                centred=True,
            )
    if "scene" in kinds:
        start, speed = rng.uniform(0.15, 0.5, 2) * columns, rng.uniform(0.05, 0.12)
        text, side = phrase(rng, 2), float(rng.choice([-1, 1]))
        for at, drawn in enumerate(clip):
            x = start[0] + side * speed * columns * at
            draw_line(drawn, text, (x, rows * (0.35 + 0.03 * at)), 26, outlined=False)
    return clip
