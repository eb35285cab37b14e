"""Training data for the demo's models: drawn frames with their truth, prompts with summaries.

Frames are drawn at the models' input size by the code that draws the films, then degraded as by
video and JPEG compression; no video is encoded or read from disk.
"""

from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np

from clipmill.jobs.demo import world
from clipmill.jobs.demo.render import draw_background, draw_shape
from clipmill.jobs.demo.summary_prompt import render_summary_prompt
from clipmill.jobs.demo.world import (
    BACKGROUNDS,
    BLACK_CAPTION,
    COLOURS,
    DARK_BELOW,
    FADE_FRAMES,
    FRAMES_PER_SECOND,
    MOTION_WORDS,
    PATTERNS,
    POSITION_WORDS,
    SHAPES,
    Motion,
    Shot,
    caption_position,
    contrasts,
    name_position,
    name_subject,
)

T = TypeVar("T")

IMAGE_SIZE = 96
"""Frames are squeezed to a square of this side, whatever their aspect ratio: nothing is cropped.
"""

POSITIONS = tuple(POSITION_WORDS)
TAG_TEMPLATES = ("{}", "a photo of {}", "a photo of a {}", "a picture of a {}")
_INTERPOLATIONS = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC)
_SIZES = ((640, 360), (320, 180), (256, 144), (192, 108))


@dataclass(frozen=True, slots=True)
class Specimens:
    """Drawn frames; the labels are indices into `COLOURS`, `SHAPES` and `POSITIONS`."""

    images: np.ndarray
    """uint8, `[n, 3, IMAGE_SIZE, IMAGE_SIZE]`, RGB."""
    colours: np.ndarray
    shapes: np.ndarray
    positions: np.ndarray
    horizontal: np.ndarray
    """Whether the shape is on the line of shapes that move left and right."""
    vertical: np.ndarray
    black: np.ndarray
    """Frames of a fade that show nothing; their other labels are meaningless."""
    boxes: np.ndarray
    """Centre (x, y) and height of every shape, as in `Shot`: float `[n, 3]`."""
    appeal: np.ndarray
    """1 to 10: how large and how central the shape is; 1 for black frames."""

    def captions(self) -> list[str]:
        return [
            BLACK_CAPTION
            if self.black[row]
            else caption_position(
                name_subject(tuple(COLOURS)[self.colours[row]], SHAPES[self.shapes[row]]),
                POSITIONS[self.positions[row]],
            )
            for row in range(len(self.images))
        ]


def rate_appeal(x: float, y: float, size: float) -> float:
    """1 to 10: half for the shape's size, half for how near it is to the middle."""
    off_centre = min(1.0, (((x - 0.5) / 0.34) ** 2 + ((y - 0.5) / 0.3) ** 2) ** 0.5)
    largeness = min(1.0, max(0.0, (size - 0.35) / 0.11))
    return float(1 + 4.5 * largeness + 4.5 * (1 - off_centre))


def draw_specimens(seed: int, n: int) -> Specimens:
    rng = np.random.default_rng(seed)
    images = np.empty((n, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    labels = np.zeros((n, 3), dtype=np.int64)
    lines = np.zeros((n, 2), dtype=bool)
    black = np.zeros(n, dtype=bool)
    boxes = np.zeros((n, 3), dtype=np.float32)
    appeal = np.ones(n, dtype=np.float32)
    for row in range(n):
        background = _pick(rng, tuple(BACKGROUNDS))
        colour = _pick(rng, tuple(name for name in COLOURS if contrasts(name, background)))
        shape = _pick(rng, SHAPES)
        x, y = _pick_centre(rng)
        size = float(rng.uniform(0.35, 0.46))
        boxes[row] = (x, y, size)
        light = float(rng.random()) if rng.random() < 0.12 else 1.0
        black[row] = light < DARK_BELOW
        width, height = _SIZES[rng.choice(4, p=(0.1, 0.4, 0.3, 0.2))]
        seed_of_pattern = int(rng.integers(2**31))
        picture = draw_background(background, _pick(rng, PATTERNS), seed_of_pattern, width, height)
        draw_shape(picture, shape, colour, (x, y), size)
        images[row] = _wear(rng, cv2.convertScaleAbs(picture, alpha=light))
        position = name_position(x, y)
        named = tuple(COLOURS).index(colour), SHAPES.index(shape), POSITIONS.index(position)
        labels[row] = named
        lines[row] = position not in ("top", "bottom"), position not in ("left", "right")
        if not black[row]:
            appeal[row] = rate_appeal(x, y, size)
    return Specimens(
        images=np.ascontiguousarray(images.transpose(0, 3, 1, 2)),
        colours=labels[:, 0],
        shapes=labels[:, 1],
        positions=labels[:, 2],
        horizontal=lines[:, 0],
        vertical=lines[:, 1],
        black=black,
        boxes=boxes,
        appeal=appeal,
    )


def _pick(rng: np.random.Generator, values: tuple[T, ...]) -> T:
    return values[int(rng.integers(len(values)))]


def _pick_centre(rng: np.random.Generator) -> tuple[float, float]:
    beside = float(rng.uniform(-0.035, 0.035))
    kind = rng.random()
    if kind < 0.4:
        return 0.5 + float(rng.uniform(-1, 1)) * (world.SWEEP_X + 0.01), 0.5 + beside
    if kind < 0.8:
        return 0.5 + beside, 0.5 + float(rng.uniform(-1, 1)) * (world.SWEEP_Y + 0.005)
    # The ends of the lines, where shapes that turn round or stay still spend their time.
    x, y = world.POSITION_CENTRES[_pick(rng, POSITIONS)]
    return x + float(rng.uniform(-0.03, 0.03)), y + float(rng.uniform(-0.03, 0.03))


def _wear(rng: np.random.Generator, picture: np.ndarray) -> np.ndarray:
    """Blurs, compresses, tints and resizes the picture a little, as on its way to a model."""
    if rng.random() < 0.4:
        picture = cv2.GaussianBlur(picture, (0, 0), float(rng.uniform(0.3, 1.0)))
    if rng.random() < 0.5:
        quality = int(rng.integers(40, 96))
        packed = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
        unpacked = cv2.imdecode(packed, cv2.IMREAD_COLOR)
        assert unpacked is not None  # it was packed just now
        picture = unpacked
    interpolation = _INTERPOLATIONS[int(rng.choice(3, p=(0.6, 0.2, 0.2)))]
    worn = cv2.resize(picture, (IMAGE_SIZE, IMAGE_SIZE), interpolation=interpolation)
    tint = rng.normal(1, 0.02, size=3) * rng.normal(1, 0.03)
    noise = rng.normal(0, 2, size=worn.shape) if rng.random() < 0.3 else 0
    return np.clip(worn * tint + noise, 0, 255).astype(np.uint8)


def make_summary_pair(rng: np.random.Generator) -> tuple[str, str]:
    """A prompt with typical errors of captioners, and the correct summary."""
    shot, stranger = _pick_shot(rng), _pick_shot(rng)
    frames = _pick_frames(rng, shot)
    fine = [_misread(rng, shot.caption_at(frame)) for frame in frames]
    if rng.random() < 0.15:
        # The end of a neighbouring shot, as if a cut had been placed a little off.
        fine.insert(0 if rng.random() < 0.5 else len(fine), stranger.caption_at(0))
    if rng.random() < 0.3:
        fine = [text for at, text in enumerate(fine) if at == 0 or text != fine[at - 1]]
    if rng.random() < 0.02:
        fine = []
    coarse = _misread(rng, shot.caption_at((shot.start_frame + shot.end_frame) // 2))
    return render_summary_prompt(coarse, fine, _pick_tags(rng, shot)), shot.summary


def _pick_shot(rng: np.random.Generator) -> Shot:
    motion: Motion = _pick(rng, tuple(MOTION_WORDS))
    swings = motion in ("side_to_side", "up_and_down")
    fade_in, fade_out = rng.random() < 0.1, rng.random() < 0.1
    n_frames = int(rng.integers(72 if swings else 56, 100)) + (fade_in + fade_out) * FADE_FRAMES
    return Shot(
        start_frame=0,
        end_frame=n_frames,
        transition_in="fade" if fade_in else "cut",
        transition_out="fade" if fade_out else "cut",
        object=_pick(rng, SHAPES),
        colour=_pick(rng, tuple(COLOURS)),
        motion=motion,
        fast=swings or (motion != "still" and rng.random() < 0.35),
        position=_pick(rng, POSITIONS),
        size=0.4,
        drift=0.0,
        background="navy",
        pattern="plain",
        pattern_seed=0,
        tone_hz=220.0,
    )


def _pick_frames(rng: np.random.Generator, shot: Shot) -> list[int]:
    """Frames as samplers choose them: at a rate per second, or a fixed number, from any start."""
    n_frames = shot.end_frame - shot.start_frame
    if rng.random() < 0.7:
        step = FRAMES_PER_SECOND / float(rng.choice([1, 1, 1, 1.5, 2]))
        n = max(1, int(n_frames / step + rng.random()))
    else:
        n = int(rng.integers(3, 11) if rng.random() < 0.8 else rng.integers(11, 21))
    step = n_frames / n
    first = float(rng.choice([0.0, 0.5, rng.random()])) * step
    return [min(n_frames - 1, int(first + step * at)) for at in range(n)]


def _misread(rng: np.random.Generator, caption: str) -> str:
    """The caption, with a probability of 1 in 17 with a wrong colour, shape or position."""
    if caption == BLACK_CAPTION or rng.random() >= 0.06:
        return caption
    words = caption.split(" ")
    colour, shape, position = words[1], words[2], " ".join(words[3:])
    wrong = int(rng.integers(3))
    if wrong == 0:
        colour = _pick(rng, tuple(COLOURS))
    elif wrong == 1:
        shape = _pick(rng, SHAPES)
    else:
        position = _pick(rng, tuple(POSITION_WORDS.values()))
    return f"{name_subject(colour, shape)} {position}"


def _pick_tags(rng: np.random.Generator, shot: Shot) -> list[str]:
    """Up to six tags: usually the true ones first, then other high-scoring ones."""
    others = [tag for tag in world.TAGS if tag not in (shot.colour, shot.object)]
    rng.shuffle(others)
    true = [shot.colour, shot.object]
    rng.shuffle(true)
    kept = [tag for tag in true if rng.random() < 0.95]
    return (kept + others)[: int(rng.integers(0, 7))]
