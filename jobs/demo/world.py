"""The demo's small world: a description of every film, before any pixel is drawn.

A film is a sequence of shots. A shot shows one coloured shape with one motion on one background.
All that is measured later (cuts, captions, motions) is derived from these records, so the truth is
known exactly. `render.py` turns the records into pixels and sound.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

FRAME_WIDTH = 640
FRAME_HEIGHT = 360
FRAMES_PER_SECOND = 24

FADE_FRAMES = 12
"""Length of each half of a fade through black: out, and in."""

DARK_BELOW = 0.12
"""Below this share of its brightness, a frame in a fade counts as black."""

SHAPES = ("circle", "square", "triangle", "star", "cross")
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 30, 35),
    "orange": (250, 140, 15),
    "yellow": (250, 230, 40),
    "green": (35, 165, 55),
    "blue": (35, 80, 230),
    "purple": (150, 45, 200),
    "white": (245, 245, 245),
}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "navy": (22, 30, 72),
    "sand": (208, 186, 138),
    "forest": (30, 66, 40),
    "plum": (78, 36, 70),
    "sky": (146, 190, 214),
    "charcoal": (44, 44, 48),
    "clay": (122, 76, 58),
    "mint": (160, 206, 176),
}
PATTERNS = ("plain", "gradient", "stripes", "checks", "mottled")

Transition = Literal["start", "cut", "fade"]
Motion = Literal["still", "right", "left", "down", "up", "side_to_side", "up_and_down"]

MOTION_WORDS: dict[Motion, str] = {
    "still": "stays still",
    "right": "moves to the right",
    "left": "moves to the left",
    "down": "moves down",
    "up": "moves up",
    "side_to_side": "moves from side to side",
    "up_and_down": "moves up and down",
}
POSITION_WORDS = {
    "left": "on the left",
    "middle": "in the middle",
    "right": "on the right",
    "top": "at the top",
    "bottom": "at the bottom",
}
POSITION_CENTRES = {
    "left": (0.18, 0.5),
    "middle": (0.5, 0.5),
    "right": (0.82, 0.5),
    "top": (0.5, 0.24),
    "bottom": (0.5, 0.76),
}
BLACK_CAPTION = "a black picture"
TAGS = (*COLOURS, *SHAPES)

MIDDLE_REACH = 0.13
SWEEP_X = 0.33
SWEEP_Y = 0.265
_SWING_SECONDS = 2.6
_SWING_GAIN = 1.6


@dataclass(frozen=True, slots=True)
class Shot:
    """One unbroken take: frames `[start_frame, end_frame)` of its film."""

    start_frame: int
    end_frame: int
    transition_in: Transition
    transition_out: Transition | Literal["end"]
    object: str
    colour: str
    motion: Motion
    fast: bool
    position: str
    size: float
    """Height of the shape as a share of the frame's height."""
    drift: float
    """Distance of the shape's line of motion from the middle, relative to the frame."""
    background: str
    pattern: str
    pattern_seed: int
    tone_hz: float

    @property
    def start_seconds(self) -> float:
        return self.start_frame / FRAMES_PER_SECOND

    @property
    def end_seconds(self) -> float:
        return self.end_frame / FRAMES_PER_SECOND

    @property
    def subject(self) -> str:
        return name_subject(self.colour, self.object)

    @property
    def summary(self) -> str:
        """The true caption of the whole shot."""
        return f"{self.subject} {MOTION_WORDS[self.motion]}"

    def centre_at(self, frame: int) -> tuple[float, float]:
        """The shape's centre relative to the frame's width and height, y pointing down."""
        if self.motion == "still":
            x, y = POSITION_CENTRES[self.position]
            at_a_side = self.position in ("left", "right")
            return (x, y + self.drift) if at_a_side else (x + self.drift, y)
        n_frames = self.end_frame - self.start_frame
        along = _sweep(self.motion, self.fast, frame - self.start_frame, n_frames)
        if self.motion in ("left", "right", "side_to_side"):
            return 0.5 + SWEEP_X * along, 0.5 + self.drift
        return 0.5 + self.drift, 0.5 + SWEEP_Y * along

    def brightness_at(self, frame: int) -> float:
        """1 outside fades; inside, the remaining share of the picture's light."""
        light = 1.0
        if self.transition_in == "fade":
            light = min(light, (frame - self.start_frame) / FADE_FRAMES)
        if self.transition_out == "fade":
            light = min(light, (self.end_frame - 1 - frame) / FADE_FRAMES)
        return max(light, 0.0)

    def caption_at(self, frame: int) -> str:
        """The true caption of one frame, including the shape's position."""
        if self.brightness_at(frame) < DARK_BELOW:
            return BLACK_CAPTION
        return caption_position(self.subject, name_position(*self.centre_at(frame)))


@dataclass(frozen=True, slots=True)
class Film:
    """One rendered source video with its ground truth."""

    name: str
    shots: tuple[Shot, ...]

    @property
    def n_frames(self) -> int:
        return self.shots[-1].end_frame

    @property
    def duration_seconds(self) -> float:
        return self.n_frames / FRAMES_PER_SECOND

    @property
    def hard_cuts(self) -> tuple[int, ...]:
        """First frame of every shot that follows a hard cut."""
        return tuple(shot.start_frame for shot in self.shots if shot.transition_in == "cut")

    @property
    def gradual_transitions(self) -> tuple[tuple[int, int], ...]:
        """Frames `[start, end)` of every fade."""
        return tuple(
            (shot.start_frame - FADE_FRAMES, shot.start_frame + FADE_FRAMES)
            for shot in self.shots
            if shot.transition_in == "fade"
        )

    def shot_at(self, seconds: float) -> Shot:
        """The shot on screen; times outside the film give its first or last shot."""
        frame = math.floor(seconds * FRAMES_PER_SECOND + 1e-6)
        for shot in self.shots:
            if frame < shot.end_frame:
                return shot
        return self.shots[-1]

    def caption_at(self, seconds: float) -> str:
        """The true caption of the frame on screen at this time."""
        frame = math.floor(seconds * FRAMES_PER_SECOND + 1e-6)
        return self.shot_at(seconds).caption_at(min(max(frame, 0), self.n_frames - 1))

    def shot_overlapping(self, start_seconds: float, end_seconds: float) -> Shot:
        """The shot that shares the most time with a span."""
        return max(
            self.shots,
            key=lambda shot: (
                min(shot.end_seconds, end_seconds) - max(shot.start_seconds, start_seconds)
            ),
        )


def name_subject(colour: str, shape: str) -> str:
    return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {shape}"


def name_position(x: float, y: float) -> str:
    """The word for a centre given relative to the frame's width and height."""
    right, down = x - 0.5, y - 0.5
    if max(abs(right), abs(down)) < MIDDLE_REACH:
        return "middle"
    if abs(right) >= abs(down):
        return "right" if right > 0 else "left"
    return "bottom" if down > 0 else "top"


def caption_position(subject: str, position: str) -> str:
    return f"{subject} {POSITION_WORDS[position]}"


def _sweep(motion: Motion, fast: bool, frame: int, n_frames: int) -> float:
    """A moving shape's position on its line, from -1 (left or top) to 1 (right or bottom)."""
    if motion in ("side_to_side", "up_and_down"):
        # Clamped at both ends, so that the shape dwells there and few frames are in the middle.
        turn = 2 * math.pi * frame / FRAMES_PER_SECOND / _SWING_SECONDS
        return max(-1.0, min(1.0, -_SWING_GAIN * math.cos(turn)))
    done = frame / max(n_frames - 1, 1)
    if fast:
        done = max(0.0, min(1.0, (done - 0.25) / 0.45))
    return (2 * done - 1) * (1 if motion in ("right", "down") else -1)


def contrasts(colour: str, background: str) -> bool:
    """Whether a shape of this colour is visible on this background."""
    difference = np.subtract(COLOURS[colour], BACKGROUNDS[background])
    return float(np.abs(difference).sum()) >= 170


def make_world(seed: int, n_films: int) -> list[Film]:
    """The films of one seed; the same seed always gives the same films."""
    return [
        _make_film(np.random.default_rng([seed, index]), f"film_{seed:04d}_{index:03d}")
        for index in range(n_films)
    ]


def _make_film(rng: np.random.Generator, name: str) -> Film:
    shots: list[Shot] = []
    n_shots = int(rng.integers(4, 6))
    fade_into = int(rng.integers(1, n_shots)) if rng.random() < 0.4 else None
    start_frame = 0
    for index in range(n_shots):
        transition_in: Transition = (
            "start" if index == 0 else "fade" if index == fade_into else "cut"
        )
        following: Transition | Literal["end"] = (
            "end" if index + 1 == n_shots else "fade" if index + 1 == fade_into else "cut"
        )
        shot = _make_shot(rng, start_frame, transition_in, following, shots[-1:])
        shots.append(shot)
        start_frame = shot.end_frame
    return Film(name=name, shots=tuple(shots))


def _make_shot(
    rng: np.random.Generator,
    start_frame: int,
    transition_in: Transition,
    transition_out: Transition | Literal["end"],
    before: Sequence[Shot],
) -> Shot:
    motion = list(MOTION_WORDS)[int(rng.integers(len(MOTION_WORDS)))]
    swings = motion in ("side_to_side", "up_and_down")
    n_frames = int(rng.integers(72, 97)) if swings else int(rng.integers(62, 97))
    fades = (transition_in == "fade") + (transition_out == "fade")
    background = _pick_background(rng, before)
    colours = [colour for colour in COLOURS if contrasts(colour, background)]
    shapes = [shape for shape in SHAPES if all(shape != shot.object for shot in before)]
    # Semitones, so that shots rarely sound alike and none sounds harsh.
    tone_hz = 220.0 * 2 ** (int(rng.integers(0, 25)) / 12)
    return Shot(
        start_frame=start_frame,
        end_frame=start_frame + n_frames + fades * FADE_FRAMES,
        transition_in=transition_in,
        transition_out=transition_out,
        object=shapes[int(rng.integers(len(shapes)))],
        colour=colours[int(rng.integers(len(colours)))],
        motion=motion,
        fast=swings or (motion != "still" and bool(rng.random() < 0.35)),
        position=list(POSITION_WORDS)[int(rng.integers(len(POSITION_WORDS)))],
        size=round(float(rng.uniform(0.36, 0.45)), 3),
        drift=round(float(rng.uniform(-0.03, 0.03)), 3),
        background=background,
        pattern=PATTERNS[int(rng.integers(len(PATTERNS)))],
        pattern_seed=int(rng.integers(2**31)),
        tone_hz=round(tone_hz, 2),
    )


def _pick_background(rng: np.random.Generator, before: Sequence[Shot]) -> str:
    """Any background; after another shot, one different enough for a visible cut."""
    allowed = [
        name
        for name in BACKGROUNDS
        if all(background_distance(name, shot.background) >= 50 for shot in before)
    ]
    return allowed[int(rng.integers(len(allowed)))]


def background_distance(one: str, other: str) -> float:
    """Mean difference in hue (0-179), saturation and value (0-255): what cut detectors weigh."""
    return float(np.abs(_to_hsv(BACKGROUNDS[one]) - _to_hsv(BACKGROUNDS[other])).mean())


def _to_hsv(rgb: tuple[int, int, int]) -> np.ndarray:
    value = max(rgb)
    spread = value - min(rgb)
    saturation = 255 * spread / value
    red, green, blue = rgb
    if value == red:
        hue = 30 * (green - blue) / spread
    elif value == green:
        hue = 60 + 30 * (blue - red) / spread
    else:
        hue = 120 + 30 * (red - green) / spread
    return np.array([hue % 180, saturation, value])


def save_truth(films: Sequence[Film], path: Path) -> None:
    path.write_text(json.dumps([asdict(film) for film in films], indent=1) + "\n", encoding="utf-8")


def load_truth(path: Path) -> list[Film]:
    """Reads what `save_truth` wrote."""
    return [
        Film(name=record["name"], shots=tuple(Shot(**shot) for shot in record["shots"]))
        for record in json.loads(path.read_text(encoding="utf-8"))
    ]
