"""The films of `clipmill demo --real`: with and without text, with speech, tones and silence."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import wave
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import av
import cv2
import numpy as np

from clipmill.jobs.demo.render import SOUND_RATE_HZ, draw_frames
from clipmill.jobs.demo.world import FRAME_HEIGHT, FRAME_WIDTH, FRAMES_PER_SECOND, make_world

SPEAKER = "espeak-ng"
# Each take lasts this long.
TAKE_SECONDS = 3.0
_SEED = 2027
_FONT = cv2.FONT_HERSHEY_DUPLEX
_SOUND_CHUNK = 1024

Sound = Literal["speech", "tones", "silence"]


@dataclass(frozen=True)
class Line:
    """A line of text: its middle as shares of the picture, and its height in pixels."""

    text: str
    across: float
    down: float
    pixels: int = 26


@dataclass(frozen=True)
class Take:
    """An unbroken take of a film; without `shape`, a slide of one colour."""

    lines: tuple[Line, ...] = ()
    shape: int | None = None
    paper: tuple[int, int, int] = (250, 250, 250)
    sound: Sound | None = None
    says: str = ""

    @property
    def words(self) -> list[str]:
        return [word for line in self.lines for word in line.text.split()]


@dataclass(frozen=True)
class RealFilm:
    """A film with what is in it: the language of its title, and its takes."""

    name: str
    title: str
    language: str
    takes: tuple[Take, ...]
    copy_of: str | None = None
    """The film that it shows again, smaller and with more compression."""

    @property
    def has_sound(self) -> bool:
        return any(take.sound for take in self.takes)


def _slide(heading: str, *points: str, paper: tuple[int, int, int], says: str) -> Take:
    lines = [Line(heading, 0.5, 0.2, 40)]
    lines += [Line(point, 0.5, 0.42 + 0.16 * place) for place, point in enumerate(points)]
    return Take(tuple(lines), None, paper, "speech", says)


def _said_below(text: str, shape: int) -> Take:
    return Take((Line(text, 0.5, 0.86),), shape, sound="tones")


_LOGO = Line("CLIPMILL", 0.85, 0.1, 22)

FILMS = (
    RealFilm(
        "knife",
        "How to sharpen a kitchen knife in three steps",
        "en",
        (
            _slide(
                "Sharpening",
                "Soak the stone in water",
                "Hold the blade flat",
                paper=(250, 250, 250),
                says="Before you begin, soak the stone in water for ten minutes.",
            ),
            _slide(
                "The stroke",
                "Push the edge forward",
                "Count to twenty",
                paper=(250, 205, 120),
                says="Then push the edge forward slowly, and count to twenty.",
            ),
            _slide(
                "The test",
                "Cut a sheet of paper",
                "Repeat on both sides",
                paper=(120, 190, 230),
                says="At last, cut a sheet of paper. It should not tear.",
            ),
        ),
    ),
    RealFilm(
        "harbour",
        "Ein Spaziergang durch den alten Hafen bei Nacht",
        "de",
        (
            _said_below("We walk along the water", 0),
            _said_below("The boats are coming home", 1),
            _said_below("Nobody else is here", 2),
        ),
    ),
    RealFilm(
        "garden",
        "Deux enfants jouent au ballon dans le jardin",
        "fr",
        (Take(shape=3), Take(shape=4), Take(shape=12)),
    ),
    RealFilm(
        "bicycle",
        "Cómo reparar una bicicleta vieja paso a paso",
        "es",
        (
            Take((_LOGO,), 6, sound="silence"),
            Take(
                (_LOGO,),
                13,
                sound="speech",
                says="First we take off the wheel and look at the chain.",
            ),
            Take((_LOGO,), 14, sound="tones"),
        ),
    ),
    RealFilm(
        "garden_again",
        "Due bambini giocano a palla in giardino",
        "it",
        (Take(shape=3), Take(shape=4), Take(shape=12)),
        "garden",
    ),
)


def can_speak() -> bool:
    """Whether a voice can be synthesised here; otherwise what would be speech is silence."""
    return shutil.which(SPEAKER) is not None


def render_films(folder: Path) -> Iterator[RealFilm]:
    """Writes the films, and yields each when it is there."""
    for film in FILMS:
        small = film.copy_of is not None
        size = (FRAME_WIDTH // 2, FRAME_HEIGHT // 2) if small else (FRAME_WIDTH, FRAME_HEIGHT)
        _render(film, folder / f"{film.name}.mp4", size, quality=34 if small else 20)
        yield film


def _pictures(take: Take, size: tuple[int, int]) -> Iterator[np.ndarray]:
    count = round(TAKE_SECONDS * FRAMES_PER_SECOND)
    if take.shape is None:
        frames: Iterator[np.ndarray] = iter(
            [np.full((FRAME_HEIGHT, FRAME_WIDTH, 3), take.paper, np.uint8)] * count
        )
    else:
        # A take each of different films, so that they hardly look alike.
        shot = make_world(_SEED, take.shape + 1)[take.shape].shots[0]
        found = list(draw_frames(shot, FRAME_WIDTH, FRAME_HEIGHT))
        frames = iter((found * 2)[:count])
    for frame in frames:
        picture = frame.copy()
        for line in take.lines:
            _write(picture, line, dark=take.shape is None)
        yield (
            picture
            if size == (FRAME_WIDTH, FRAME_HEIGHT)
            else cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
        )


def _write(picture: np.ndarray, line: Line, *, dark: bool) -> None:
    scale = cv2.getFontScaleFromHeight(_FONT, round(line.pixels * 0.7), 1)
    (width, height), _ = cv2.getTextSize(line.text, _FONT, scale, 1)
    at = (
        round(line.across * FRAME_WIDTH - width / 2),
        round(line.down * FRAME_HEIGHT + height / 2),
    )
    if not dark:  # light letters with a dark edge, as subtitles have
        for right, below in ((-1, 0), (1, 0), (0, -1), (0, 1), (-1, -1), (1, 1), (1, -1), (-1, 1)):
            edge = (at[0] + right, at[1] + below)
            cv2.putText(picture, line.text, edge, _FONT, scale, (0, 0, 0), 1, cv2.LINE_AA)
    colour = (20, 20, 30) if dark else (250, 250, 250)
    cv2.putText(picture, line.text, at, _FONT, scale, colour, 1, cv2.LINE_AA)


def _samples(film: RealFilm) -> np.ndarray:
    """The film's sound, mono, as 32-bit floats."""
    length = round(TAKE_SECONDS * SOUND_RATE_HZ)
    at = np.arange(length) / SOUND_RATE_HZ
    parts = []
    for place, take in enumerate(film.takes):
        part = np.zeros(length, np.float32)
        if take.sound == "tones":
            pitch = 220.0 * 2 ** (5 * place / 12)
            part = (0.1 * np.sin(2 * np.pi * pitch * at) * (np.sin(np.pi * at) ** 2)).astype("f4")
        elif take.sound == "speech" and can_speak():
            said = _spoken(take.says)[:length]
            part[: len(said)] = said
        parts.append(part)
    return np.concatenate(parts)


def _spoken(text: str) -> np.ndarray:
    """A synthesised voice, at the films' rate."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "said.wav")
        subprocess.run(
            [SPEAKER, "-v", "en", "-s", "165", "-w", str(path), text],
            check=True,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=60,
        )
        with wave.open(str(path)) as file:
            rate = file.getframerate()
            data = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    count = len(data) * SOUND_RATE_HZ // rate
    spoken: np.ndarray = np.interp(
        np.arange(count) * rate / SOUND_RATE_HZ, np.arange(len(data)), data / 32768
    )
    spoken = spoken.astype(np.float32)
    return spoken


def _render(film: RealFilm, path: Path, size: tuple[int, int], *, quality: int) -> None:
    with av.open(str(path), "w", format="mp4") as container:
        video = container.add_stream(
            "libx264",
            rate=FRAMES_PER_SECOND,
            options={"crf": str(quality), "preset": "veryfast", "threads": "1"},
        )
        (video.width, video.height), video.pix_fmt = size, "yuv420p"
        video.time_base = Fraction(1, FRAMES_PER_SECOND)
        sound = None
        if film.has_sound:
            sound = container.add_stream("aac", rate=SOUND_RATE_HZ, layout="mono")
        number = 0
        for take in film.takes:
            for picture in _pictures(take, size):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, FRAMES_PER_SECOND)
                container.mux(video.encode(frame))
                number += 1
        container.mux(video.encode(None))
        if sound is None:
            return
        samples = _samples(film)
        for start in range(0, len(samples), _SOUND_CHUNK):
            chunk = av.AudioFrame.from_ndarray(
                samples[None, start : start + _SOUND_CHUNK], format="fltp", layout="mono"
            )
            chunk.sample_rate, chunk.pts = SOUND_RATE_HZ, start
            chunk.time_base = Fraction(1, SOUND_RATE_HZ)
            container.mux(sound.encode(chunk))
        container.mux(sound.encode(None))
