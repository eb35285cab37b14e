"""Runs FFmpeg's filters over pictures or files, and reads what they say of each frame."""

from __future__ import annotations

import subprocess
from collections.abc import Iterable
from pathlib import Path

import imageio_ffmpeg
import numpy as np

Told = list[dict[str, float]]


def of_pictures(
    pictures: Iterable[Iterable[np.ndarray]], filters: str, pixels: str = "yuvj420p", rate: int = 25
) -> Told:
    """What filters say of pictures given as planes, in the order of the pixel format."""
    raw, size = [], (0, 0)
    for planes in map(list, pictures):
        size = planes[0].shape[1], planes[0].shape[0]
        raw += [np.ascontiguousarray(plane).tobytes() for plane in planes]
    given = f"-f rawvideo -pix_fmt {pixels} -s {size[0]}x{size[1]} -r {rate} -i -".split()
    return _told(given, filters, b"".join(raw))


def of_file(
    path: Path,
    filters: str,
    *,
    start: float | None = None,
    seconds: float | None = None,
    frames: int | None = None,
) -> Told:
    """What filters say of the frames of a file, or of some of them."""
    given = [] if start is None else ["-ss", str(start)]
    given += ["-i", str(path), "-map", "0:v:0", "-fps_mode", "passthrough"]
    given += [] if seconds is None else ["-t", str(seconds)]
    given += [] if frames is None else ["-frames:v", str(frames)]
    return _told(given, filters, None)


def _told(given: list[str], filters: str, raw: bytes | None) -> Told:
    words = [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-threads", "1", *given]
    words += ["-vf", f"{filters},metadata=mode=print:file=-", "-f", "null", "-"]
    done = subprocess.run(words, input=raw, capture_output=True, check=True)
    found: Told = []
    for line in done.stdout.decode().splitlines():
        if line.startswith("frame:"):
            found.append({"seconds": float(line.split("pts_time:")[1])})
        elif "=" in line:
            name, _, value = line.partition("=")
            found[-1][name.removeprefix("lavfi.")] = float(value)
    return found
