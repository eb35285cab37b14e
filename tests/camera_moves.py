"""Footage of a camera over a large picture, with known moves: a window that moves over it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import cv2
import numpy as np

SIZE = (256, 144)


@dataclass(frozen=True)
class Move:
    """Rates in the units of the columns of `clips`; `shake` is each axis' standard deviation, in
    % of the longer side, drawn anew per frame. `sprites` pieces of picture move apart, at
    `sprite_speed` % of the longer side per second."""

    pan: float = 0.0
    tilt: float = 0.0
    zoom: float = 0.0
    roll: float = 0.0
    shake: float = 0.0
    sprites: int = 0
    sprite_speed: float = 20.0
    noise: float = 2.0
    seconds: float = 3.0


def textured(size: tuple[int, int] = (1280, 720), seed: int = 0) -> np.ndarray:
    """A grey picture with details of all sizes, and edges."""
    noise = np.random.default_rng(seed)
    width, height = size
    picture = np.zeros((height, width), np.float32)
    for scale in (4, 8, 16, 32, 64):
        coarse = noise.normal(0, 1, (height // scale + 2, width // scale + 2)).astype(np.float32)
        picture += cv2.resize(coarse, size, interpolation=cv2.INTER_CUBIC)
    picture = 128 + 40 * picture / picture.std()
    for _ in range(60):
        x, y = noise.integers(0, width), noise.integers(0, height)
        w, h = noise.integers(10, 120, 2)
        picture[y : y + h, x : x + w] += noise.normal(0, 40)
    return np.clip(picture, 0, 255).astype(np.uint8)


def filmed(
    picture: np.ndarray,
    move: Move,
    *,
    rate: float = 25,
    size: tuple[int, int] = SIZE,
    seed: int = 0,
) -> Iterator[np.ndarray]:
    """The frames, grey. In the middle of the time the window is half as wide as the picture."""
    noise = np.random.default_rng(seed)
    sprites = _sprites(picture, move, size, noise)
    for number in range(round(move.seconds * rate)):
        seconds = number / rate - move.seconds / 2
        image = _window(picture, move, seconds, size, noise)
        for place, velocity, sprite in sprites:
            side = sprite.shape[0]
            at = (place + velocity * seconds) % (size[0] - side, size[1] - side)
            x, y = at.astype(int)
            image[y : y + side, x : x + side] = sprite
        if move.noise:
            image = image + noise.normal(0, move.noise, image.shape)
        yield np.clip(image, 0, 255).astype(np.uint8)


def write(path: Path, frames: Iterable[np.ndarray], *, rate: int) -> None:
    """Encodes grey frames as H.264."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=rate, options={"preset": "veryfast"})
        stream.pix_fmt = "yuv420p"
        for number, image in enumerate(frames):
            if not number:
                stream.height, stream.width = image.shape
            frame = av.VideoFrame.from_ndarray(image, "gray").reformat(format="yuv420p")
            frame.pts = number
            output.mux(stream.encode(frame))
        output.mux(stream.encode())


def _window(
    picture: np.ndarray,
    move: Move,
    seconds: float,
    size: tuple[int, int],
    noise: np.random.Generator,
) -> np.ndarray:
    height, width = picture.shape
    across = width / 2 * np.exp(-move.zoom / 100 * seconds)
    down = across * size[1] / size[0]
    shake = noise.normal(0, move.shake, 2) / 100 * max(across, down)
    center = (
        width / 2 + move.pan / 100 * width / 2 * seconds + shake[0],
        height / 2 - move.tilt / 100 * width / 2 * size[1] / size[0] * seconds + shake[1],
    )
    scale, turn = across / size[0], np.radians(move.roll * seconds)
    matrix = scale * np.array(((np.cos(turn), -np.sin(turn)), (np.sin(turn), np.cos(turn))))
    middle = (np.array(size) - 1) / 2
    shift = np.array(center) - matrix @ middle
    # Reduced pictures must not alias.
    soft = cv2.GaussianBlur(picture, (0, 0), max(0.1, 0.45 * scale)) if scale > 1 else picture
    return cv2.warpAffine(
        soft,
        np.column_stack((matrix, shift)),
        size,
        flags=cv2.INTER_CUBIC | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REFLECT,
    )


def _sprites(
    picture: np.ndarray, move: Move, size: tuple[int, int], noise: np.random.Generator
) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    found = []
    side = max(size) // 10
    for _ in range(move.sprites):
        angle = noise.uniform(0, 2 * np.pi)
        speed = move.sprite_speed / 100 * max(size)
        velocity = speed * np.array((np.cos(angle), np.sin(angle)))
        x, y = (noise.integers(0, edge - 4 * side) for edge in picture.shape[::-1])
        sprite = cv2.resize(
            picture[y : y + 4 * side, x : x + 4 * side], (side, side), interpolation=cv2.INTER_AREA
        )
        found.append((noise.uniform(0, 1, 2) * size, velocity, 255 - sprite))
    return found
