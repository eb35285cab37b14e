"""Renders montages from the shots of real films, as thumbnails: shots of a few frames each, also
seen in a frame that stays. Such films are rare, and their cuts hard to annotate."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from benchmarks.shots.rendered import RATES
from clipmill.stages.media.read.shots.thumbnails import HEIGHT, WIDTH

_BESIDE = 40
_SHORTEST = 2
# What a piece may be instead of a part of a shot, and how often.
_DARK, _LIGHT = 0.05, 0.03
_IN_TURNS = 0.15
_AGAIN, _FLASHED, _BLENDED, _SHAKEN, _FRAMED = 0.25, 0.12, 0.15, 0.3, 0.35
# Neighbouring pieces that hardly differ are one.
_LEAST_CHANGE = 8.0
_LEAST_JUMP = 4.0


@dataclass(frozen=True)
class Montage:
    """`cuts` are the first pictures of its pieces, but for the first piece."""

    pictures: np.ndarray
    rate: float
    cuts: list[int]


def montages(shots: Sequence[np.ndarray], count: int, seed: int) -> Iterator[Montage]:
    """Each is of a few shots, of which parts are shown in turns, or of many."""
    chance = np.random.default_rng(seed)
    for _ in range(count):
        yield _montage(chance, shots)


def _montage(chance: np.random.Generator, shots: Sequence[np.ndarray]) -> Montage:
    most = float(chance.choice([4, 8, 14, 30]))
    used = [shots[i] for i in chance.integers(0, len(shots), int(chance.integers(2, 24)))]
    last: list[int] = []
    pieces: list[np.ndarray] = []
    for at in range(int(chance.integers(8, 24))):
        is_long = not at or chance.random() < 0.08
        length = _BESIDE if is_long else int(chance.uniform(_SHORTEST, most + 1))
        which = int(chance.integers(len(used)))
        if which in last[-3:] and chance.random() > _IN_TURNS:
            continue
        last.append(which)
        piece = _piece(chance, used[which], length)
        if pieces and np.abs(piece[0].astype(int) - pieces[-1][-1]).mean() < _LEAST_CHANGE:
            continue
        pieces.append(piece)
    cuts = np.cumsum([len(piece) for piece in pieces])[:-1].tolist()
    pictures = np.concatenate(pieces)
    for cut in cuts:
        if chance.random() < _BLENDED:
            share = chance.uniform(0.2, 0.8)
            mix = pictures[cut - 1] * share + pictures[cut] * (1 - share)
            pictures[cut - int(share > 0.5)] = mix
        elif chance.random() < _FLASHED:
            lasting = int(chance.integers(1, 3))
            part = pictures[cut : cut + lasting].astype(np.float32)
            lit = part + (255 - part) * chance.uniform(0.3, 1.0)
            pictures[cut : cut + lasting] = lit
    if chance.random() < _FRAMED:
        pictures = _framed(chance, pictures, used)
    return Montage(pictures, float(chance.choice(RATES)), cuts)


def _piece(chance: np.random.Generator, shot: np.ndarray, length: int) -> np.ndarray:
    way = chance.random()
    if way < _DARK + _LIGHT:
        level = chance.uniform(0, 12) if way < _DARK else chance.uniform(235, 255)
        return np.full((length, HEIGHT, WIDTH, 3), level, np.uint8)
    length = min(length, len(shot))
    first = int(chance.integers(0, len(shot) - length + 1))
    piece = shot[first : first + length].copy()
    if chance.random() < _AGAIN:
        piece = piece[:, :, ::-1]
    if chance.random() < _SHAKEN:
        moves = np.cumsum(chance.normal(0, chance.uniform(0.5, 3), (length, 2)), 0)
        moved = zip(piece, moves - moves.mean(0), strict=True)
        piece = np.stack([_warped(picture, 1.15, *move) for picture, move in moved])
    return np.ascontiguousarray(piece)


UNRESTS = ("held", "blasts", "flicker", "parts", "jolts")


def unrests(shots: Sequence[np.ndarray], count: int, seed: int) -> Iterator[Montage]:
    """Shots in which pictures change at once, and often, without a cut."""
    chance = np.random.default_rng(seed)
    for number in range(count):
        shot = shots[int(chance.integers(len(shots)))]
        other = shots[int(chance.integers(len(shots)))]
        pictures = _unrest(chance, UNRESTS[number % len(UNRESTS)], shot[:150], other)
        if chance.random() < _FRAMED / 2:
            pictures = _framed(chance, pictures, [other])
        yield Montage(pictures, float(chance.choice(RATES)), [])


def _unrest(
    chance: np.random.Generator, kind: str, shot: np.ndarray, other: np.ndarray
) -> np.ndarray:
    count = len(shot)
    pictures = shot.astype(np.float32)
    if kind == "held":
        # Drawn films show each picture two to four times; what moves jumps then.
        faster, times = int(chance.integers(1, 5)), int(chance.integers(2, 5))
        drawn = shot[:: faster * times] if count >= 10 * faster * times else shot[::times]
        by = chance.choice([0.0, 1.0, 3.0])
        # A camera that zooms and pans as fast as in a cartoon.
        zoom = 1.1 * np.exp(np.cumsum(chance.normal(0, by / 12, len(drawn))))
        away = np.cumsum(chance.normal(0, by, (len(drawn), 2)), 0)
        moved = [
            _warped(picture, float(np.clip(scale, 1.0, 4.0)), *place)
            for picture, scale, place in zip(drawn, zoom, away, strict=True)
        ]
        return np.repeat(np.stack(moved), times, 0)
    for first in range(int(chance.integers(4, 16)), count - 8, int(chance.integers(8, 40))):
        lasting = int(chance.integers(1, 7))
        part = slice(first, first + lasting)
        if kind == "blasts":
            y, x = np.mgrid[:HEIGHT, :WIDTH]
            centre = chance.uniform(0, HEIGHT), chance.uniform(0, WIDTH)
            away = np.hypot(y - centre[0], x - centre[1])
            colour = chance.uniform(120, 255, 3) * (1, chance.uniform(0.4, 1), chance.uniform(0, 1))
            for at in range(first, first + lasting):
                inside = away < chance.uniform(4, 40)
                pictures[at][inside] = colour
                pictures[at] = _shifted(chance, pictures[at] * chance.uniform(1, 1.6), 2)
        elif kind == "flicker":
            pictures[part] *= chance.uniform(0.2, 1.8)
        elif kind == "jolts":
            for at in range(first, first + lasting):
                pictures[at] = _shifted(chance, pictures[at], 5)
        else:
            wide, high = int(chance.integers(6, 30)), int(chance.integers(5, 16))
            left, top = int(chance.integers(WIDTH - wide)), int(chance.integers(HEIGHT - high))
            ends = count if chance.random() < 0.3 else first + int(chance.integers(3, 60))
            small = cv2.resize(other[0], (wide, high), interpolation=cv2.INTER_AREA)
            if chance.random() < 0.5:
                small = np.full_like(small, chance.integers(0, 256, 3))
            pictures[first:ends, top : top + high, left : left + wide] = small
    return np.clip(pictures, 0, 255).astype(np.uint8)


def _shifted(chance: np.random.Generator, picture: np.ndarray, by: float) -> np.ndarray:
    return _warped(picture, 1.1, *chance.normal(0, by, 2))


def _warped(picture: np.ndarray, scale: float, right: float, down: float) -> np.ndarray:
    """A part of the picture, larger."""
    middle = (1 - scale) * WIDTH / 2 + right, (1 - scale) * HEIGHT / 2 + down
    matrix = np.array([[scale, 0, middle[0]], [0, scale, middle[1]]])
    source = np.ascontiguousarray(picture)
    moved: np.ndarray = cv2.warpAffine(
        source, matrix, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT
    )
    return moved


def jumps(shots: Sequence[np.ndarray], count: int, seed: int) -> Iterator[Montage]:
    """Shots of which parts are left out, some of them shown larger from then on."""
    chance = np.random.default_rng(seed)
    long = [shot for shot in shots if len(shot) >= 3 * _BESIDE]
    for _ in range(count):
        shot = long[int(chance.integers(len(long)))]
        pieces, at, scale = [], 0, 1.0
        while at + _BESIDE < len(shot) and len(pieces) < 6:
            length = int(chance.integers(15, _BESIDE + 1))
            piece = shot[at : at + length]
            if chance.random() < 0.3:
                scale = float(chance.uniform(1.1, 1.5)) if scale == 1.0 else 1.0
            if scale > 1.0:
                piece = np.stack([_warped(picture, scale, 0, 0) for picture in piece])
            pieces.append(piece)
            at += length + int(chance.integers(10, 80))
        apart = [
            np.abs(after[0].astype(int) - before[-1]).mean()
            for before, after in itertools.pairwise(pieces)
        ]
        if len(apart) and min(apart) >= _LEAST_JUMP:
            cuts = np.cumsum([len(piece) for piece in pieces])[:-1].tolist()
            pictures = np.concatenate(pieces)
            if chance.random() < _FRAMED:
                pictures = _framed(chance, pictures, [shots[0]])
            yield Montage(pictures, float(chance.choice(RATES)), cuts)


def _framed(
    chance: np.random.Generator, pictures: np.ndarray, shots: Sequence[np.ndarray]
) -> np.ndarray:
    """The pictures in a part of the screen, the rest of which stays: bars, a border, a still."""
    way = chance.random()
    if way < 0.4:
        wide, high = int(chance.integers(14, 30)), HEIGHT
    elif way < 0.6:
        wide, high = WIDTH, int(chance.integers(14, 22))
    else:
        wide, high = int(chance.integers(20, 40)), int(chance.integers(14, 24))
    left = (WIDTH - wide) // 2 if way < 0.6 else int(chance.integers(0, WIDTH - wide + 1))
    top = (HEIGHT - high) // 2 if way < 0.6 else int(chance.integers(0, HEIGHT - high + 1))
    around = np.full((HEIGHT, WIDTH, 3), chance.integers(0, 256, 3), np.uint8)
    if way < 0.5:
        around[:] = 0
    elif way > 0.8:
        around = cv2.blur(shots[0][0], (9, 9))
    found = np.repeat(around[None], len(pictures), 0)
    if wide < WIDTH / 2 and high == HEIGHT:
        # A tall film: the middle of a wide one.
        found[:, :, left : left + wide] = pictures[:, :, left : left + wide]
        return found
    for picture, into in zip(pictures, found, strict=True):
        into[top : top + high, left : left + wide] = cv2.resize(
            picture, (wide, high), interpolation=cv2.INTER_AREA
        )
    return found
