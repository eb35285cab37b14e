"""Footage for tests, rendered by PyAV: every frame is known, so are all cuts and times.

Scenes are moving bars on a coloured ground; `render` is the one line that makes a file:

    render(path, [Scene("red", 2.0), Scene("blue", 1.5)], rate=25, size=(320, 180))

The same call with the same arguments is made once a session (`cached`).
"""

from __future__ import annotations

import functools
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from clipmill.stages.media.cutting.encoders import open_encoder

SHARED_VIDEOS = Path(__file__).resolve().parents[2] / "shared" / "videos"
COLOURS = {
    "red": (200, 30, 30),
    "green": (30, 170, 40),
    "blue": (40, 60, 210),
    "yellow": (220, 200, 40),
    "grey": (120, 120, 120),
    "black": (0, 0, 0),
    "white": (245, 245, 245),
}


@dataclass(frozen=True)
class Scene:
    """One shot; `speed` is the bar's, in pixels per frame; `fade` goes from or to black."""

    colour: str
    seconds: float
    speed: int = 3
    fade: bool = False


def draw(scene: Scene, number: int, count: int, size: tuple[int, int]) -> np.ndarray:
    """Frame `number` of the `count` frames of a scene, RGB."""
    width, height = size
    image = np.empty((height, width, 3), np.float32)
    image[:] = COLOURS[scene.colour]
    left = (10 + number * scene.speed) % max(1, width - width // 8)
    image[height // 4 : height // 2, left : left + width // 8] = (250, 250, 250)
    # The upper left is always brighter, so that a rotated picture can be distinguished from an
    # upright one.
    image[: height // 8, : width // 4] += 40
    if scene.fade:
        image *= min(1.0, 2 * number / count, 2 * (count - 1 - number) / count)
    return np.clip(image, 0, 255).astype(np.uint8)


def frame_counts(scenes: Sequence[Scene], rate: float) -> list[int]:
    return [round(scene.seconds * rate) for scene in scenes]


def cuts_of(scenes: Sequence[Scene], rate: float) -> list[int]:
    """Number of the first frame of every scene but the first."""
    return np.cumsum(frame_counts(scenes, rate))[:-1].tolist()


def render(
    path: Path,
    scenes: Sequence[Scene],
    *,
    rate: int = 25,
    size: tuple[int, int] = (320, 180),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    start_seconds: float = 0.0,
    uneven: bool = False,
    rotation: int = 0,
    interlaced: bool = False,
    audio: bool | np.ndarray = False,
    keyframes: int = 250,
    hdr: bool = False,
    ticks: int = 512,
    codec_options: Mapping[str, str] | None = None,
    container_options: Mapping[str, str] | None = None,
    frame_of: Callable[[np.ndarray], av.VideoFrame] | None = None,
) -> list[float]:
    """Writes the file and returns the presentation times of all frames.

    `uneven` makes every third frame last three times as long (variable frame rate); `rotation` is
    only written to the header, in degrees counter-clockwise. A frame lasts `ticks` units of the
    time base (some codecs need 1); `frame_of` converts pictures if the conversion matters.
    `audio` is a tone, or the samples themselves, 16,000 per second.
    """
    time_base = Fraction(1, rate * ticks)
    times = []
    with av.open(str(path), "w", options=dict(container_options or {})) as output:
        options = {"g": str(keyframes), "preset": "veryfast"} if codec == "libx264" else {}
        if interlaced:
            options["x264-params"] = "tff=1"
        options |= codec_options or {}
        stream = output.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.time_base = time_base
        sound = None if audio is False else output.add_stream("aac", rate=16000)
        if hdr:
            stream.codec_context.color_primaries = 9
            stream.codec_context.color_trc = 16
            stream.codec_context.colorspace = 9
        if rotation:
            stream.set_display_rotation(rotation)
        open_encoder(stream)
        stamp = round(start_seconds / time_base)
        number = 0
        for scene, count in zip(scenes, frame_counts(scenes, rate), strict=True):
            for at in range(count):
                image = draw(scene, at, count, size)
                frame = (
                    av.VideoFrame.from_ndarray(image, "rgb24").reformat(format=pixels)
                    if frame_of is None
                    else frame_of(image)
                )
                frame.pts, frame.time_base = stamp, time_base
                times.append(float(stamp * time_base))
                stamp += ticks * (3 if uneven and number % 3 == 2 else 1)
                number += 1
                output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound is not None:
            tone = np.sin(np.arange(int(float(stamp * time_base) * 16000)) / 8)
            _add_sound(output, sound, tone if audio is True else np.asarray(audio))
    return times


def _add_sound(output, sound, samples: np.ndarray) -> None:
    samples = samples.astype(np.float32)
    for start in range(0, len(samples) - 1023, 1024):
        frame = av.AudioFrame.from_ndarray(
            samples[None, start : start + 1024], format="fltp", layout="mono"
        )
        frame.sample_rate, frame.pts = 16000, start
        output.mux(sound.encode(frame))
    output.mux(sound.encode())


THREE_SHOTS = (Scene("red", 2.0), Scene("blue", 1.6), Scene("yellow", 2.4))


@functools.cache
def _folder() -> Path:
    import atexit

    folder = Path(tempfile.mkdtemp(prefix="clipmill-footage-"))
    atexit.register(shutil.rmtree, folder, True)
    return folder


@functools.cache
def cached(
    scenes: tuple[Scene, ...] = THREE_SHOTS, suffix: str = ".mp4", **settings: object
) -> tuple[Path, tuple[float, ...]]:
    """A rendered file (not to be changed) and its frames' times."""
    path = _folder() / f"footage{len(list(_folder().iterdir()))}{suffix}"
    return path, tuple(render(path, scenes, **settings))
