"""Draws the demo's films: pixels with OpenCV, H.264 and AAC in mp4 with PyAV."""

import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np

from clipmill.jobs.demo.world import (
    BACKGROUNDS,
    COLOURS,
    FRAME_HEIGHT,
    FRAME_WIDTH,
    FRAMES_PER_SECOND,
    Film,
    Shot,
)

SOUND_RATE_HZ = 44_100
_SOUND_CHUNK = 1024
_OUTLINE_RGB = (15, 15, 15)
# OpenCV takes polygon corners as fixed-point numbers with this many binary places.
_CORNER_SHIFT = 4


def draw_background(
    name: str, pattern: str, pattern_seed: int, width: int, height: int
) -> np.ndarray:
    """An RGB background; its pattern varies brightness by at most a seventh."""
    across = np.linspace(0, 1, width, dtype=np.float32)[None, :].repeat(height, axis=0)
    down = np.linspace(0, 1, height, dtype=np.float32)[:, None].repeat(width, axis=1)
    rng = np.random.default_rng(pattern_seed)
    relief: np.ndarray
    if pattern == "gradient":
        relief = (down if rng.random() < 0.5 else across) * 2 - 1
    elif pattern == "stripes":
        relief = np.sign(np.sin((across * 16 + down * 9 * rng.choice([-1, 0, 1])) * np.pi))
    elif pattern == "checks":
        relief = np.sign(np.sin(across * 16 * np.pi) * np.sin(down * 9 * np.pi))
    elif pattern == "mottled":
        coarse = rng.uniform(-1, 1, size=(9, 16)).astype(np.float32)
        relief = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    else:
        relief = np.zeros((height, width), dtype=np.float32)
    strength = np.float32(rng.uniform(0.06, 0.14))
    picture = np.array(BACKGROUNDS[name], dtype=np.float32) * (1 + strength * relief[..., None])
    shown: np.ndarray = np.clip(picture, 0, 255)
    return shown.astype(np.uint8)


def _make_outlines() -> dict[str, np.ndarray]:
    """Corners of every shape in a box of side 1 around the origin, y pointing down."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    points = np.arange(10) * np.pi / 5
    reach = np.where(np.arange(10) % 2 == 0, 0.52, 0.21)
    third = 1 / 6
    arms = [
        (-third, -0.5), (third, -0.5), (third, -third), (0.5, -third), (0.5, third),
        (third, third), (third, 0.5), (-third, 0.5), (-third, third), (-0.5, third),
        (-0.5, -third), (-third, -third),
    ]  # fmt: skip
    return {
        "circle": np.stack([np.cos(turn), np.sin(turn)], axis=1) * 0.5,
        "square": np.array([(-0.46, -0.46), (0.46, -0.46), (0.46, 0.46), (-0.46, 0.46)]),
        "triangle": np.array([(0.0, -0.5), (0.54, 0.46), (-0.54, 0.46)]),
        "star": np.stack([np.sin(points), -np.cos(points)], axis=1) * reach[:, None],
        "cross": np.array(arms),
    }


_OUTLINES = _make_outlines()


def draw_shape(
    picture: np.ndarray, shape: str, colour: str, centre: tuple[float, float], size: float
) -> None:
    """Draws onto an RGB picture; `centre` and `size` are relative to the picture, as in `Shot`."""
    height, width = picture.shape[:2]
    corners = _OUTLINES[shape] * size * height + np.array([centre[0] * width, centre[1] * height])
    fixed = np.round(corners * 2**_CORNER_SHIFT).astype(np.int32)
    cv2.fillPoly(picture, [fixed], COLOURS[colour], cv2.LINE_AA, _CORNER_SHIFT)
    thickness = max(1, round(height / 90))
    cv2.polylines(picture, [fixed], True, _OUTLINE_RGB, thickness, cv2.LINE_AA, _CORNER_SHIFT)


def draw_frames(shot: Shot, width: int, height: int) -> Iterator[np.ndarray]:
    """Every frame of a shot as RGB."""
    background = draw_background(shot.background, shot.pattern, shot.pattern_seed, width, height)
    for frame in range(shot.start_frame, shot.end_frame):
        picture = background.copy()
        draw_shape(picture, shot.object, shot.colour, shot.centre_at(frame), shot.size)
        light = shot.brightness_at(frame)
        yield picture if light == 1 else cv2.convertScaleAbs(picture, alpha=light)


def _make_sound(film: Film) -> np.ndarray:
    """One tone per shot, mono, as 32-bit floats; its level drops to zero at every change."""
    tones = []
    for shot in film.shots:
        start, end = (
            round(frame * SOUND_RATE_HZ / FRAMES_PER_SECOND)
            for frame in (shot.start_frame, shot.end_frame)
        )
        at = np.arange(end - start)
        swell = np.minimum(1, np.minimum(at, at[::-1]) / 500)
        tones.append(0.2 * swell * np.sin(2 * np.pi * shot.tone_hz * at / SOUND_RATE_HZ))
    return np.concatenate(tones).astype(np.float32)


def render_film(film: Film, path: Path) -> None:
    """Writes the film as mp4; the same film gives the same bytes on the same machine."""
    with av.open(str(path), "w", format="mp4") as container:
        # One thread: x264's output depends on how many it uses.
        video = container.add_stream(
            "libx264",
            rate=FRAMES_PER_SECOND,
            options={"crf": "20", "preset": "veryfast", "threads": "1"},
        )
        video.width, video.height, video.pix_fmt = FRAME_WIDTH, FRAME_HEIGHT, "yuv420p"
        video.time_base = Fraction(1, FRAMES_PER_SECOND)
        video.gop_size = 2 * FRAMES_PER_SECOND
        sound = container.add_stream("aac", rate=SOUND_RATE_HZ, layout="mono")
        number = 0
        for shot in film.shots:
            for picture in draw_frames(shot, FRAME_WIDTH, FRAME_HEIGHT):
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = number
                frame.time_base = Fraction(1, FRAMES_PER_SECOND)
                container.mux(video.encode(frame))
                number += 1
        container.mux(video.encode(None))
        samples = _make_sound(film)
        for start in range(0, len(samples), _SOUND_CHUNK):
            chunk = av.AudioFrame.from_ndarray(
                samples[None, start : start + _SOUND_CHUNK], format="fltp", layout="mono"
            )
            chunk.sample_rate = SOUND_RATE_HZ
            chunk.pts = start
            chunk.time_base = Fraction(1, SOUND_RATE_HZ)
            container.mux(sound.encode(chunk))
        container.mux(sound.encode(None))


def write_truncated(whole: Path, path: Path, share: float = 0.6) -> None:
    """The first part of a file; an mp4 cut this way has lost its index and cannot be opened."""
    content = whole.read_bytes()
    path.write_bytes(content[: int(len(content) * share)])


def write_html_page(path: Path) -> None:
    """A web page, as sites send in place of a video that they withhold."""
    path.write_text(
        "<!DOCTYPE html>\n<html><head><title>Sign in</title></head>\n"
        "<body><h1>Sign in to watch this video</h1></body></html>\n",
        encoding="utf-8",
    )


def write_duplicate(whole: Path, path: Path) -> None:
    """The same bytes under another name."""
    shutil.copyfile(whole, path)
