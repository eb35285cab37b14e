"""Draws films: flat animation, games, slides. Every cut is known because it was put there."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from .footage_effects import Picture, Reel, Shot, dissolve, lit, push, through, window

Chance = np.random.Generator
Colour = tuple[int, int, int]


def _colour(chance: Chance, low: int = 20, high: int = 240) -> Colour:
    r, g, b = (int(v) for v in chance.integers(low, high, 3))
    return r, g, b


def _ramp(size: tuple[int, int], top: Colour, bottom: Colour) -> Picture:
    width, height = size
    share = np.linspace(0, 1, height, dtype=np.float32)[:, None, None]
    rows = np.array(top, np.float32) * (1 - share) + np.array(bottom, np.float32) * share
    return np.repeat(rows, width, axis=1).astype(np.uint8)


def backdrop(chance: Chance, size: tuple[int, int]) -> Picture:
    """A flat landscape, street or room, twice as wide as the film."""
    width, height = size[0] * 2, size[1]
    picture = _ramp((width, height), _colour(chance), _colour(chance))
    kind = chance.integers(0, 3)
    if kind == 0:
        for layer in range(3):
            colour = _colour(chance, 20, 200)
            xs = np.arange(0, width + 40, 40)
            ys = height * (0.45 + 0.15 * layer) + chance.normal(0, height * 0.06, len(xs))
            hill = np.stack([np.r_[xs, width, 0], np.r_[ys, height, height]], axis=1)
            cv2.fillPoly(picture, [hill.astype(np.int32)], colour)
    elif kind == 1:
        x = 0
        while x < width:
            wide, high = int(chance.integers(30, 90)), int(height * chance.uniform(0.3, 0.8))
            cv2.rectangle(
                picture, (x, height - high), (x + wide, height), _colour(chance, 30, 170), -1
            )
            lights = _colour(chance, 120, 255)
            for wx in range(x + 6, x + wide - 8, 14):
                for wy in range(height - high + 8, height - 12, 18):
                    if chance.random() < 0.6:
                        cv2.rectangle(picture, (wx, wy), (wx + 6, wy + 8), lights, -1)
            x += wide + int(chance.integers(0, 20))
    else:
        cv2.rectangle(picture, (0, int(height * 0.75)), (width, height), _colour(chance), -1)
        for _ in range(int(chance.integers(3, 9))):
            x, y = int(chance.integers(0, width)), int(chance.integers(0, int(height * 0.6)))
            wide, high = int(chance.integers(20, 110)), int(chance.integers(20, 80))
            cv2.rectangle(picture, (x, y), (x + wide, y + high), _colour(chance), -1)
            cv2.rectangle(picture, (x, y), (x + wide, y + high), (20, 20, 20), 2)
    return picture


class Figure:
    """A body with a face that walks, talks and blinks, drawn in steps of two or three frames."""

    def __init__(self, chance: Chance, size: tuple[int, int]) -> None:
        self.skin, self.coat = _colour(chance, 120, 250), _colour(chance)
        self.x, self.y = float(chance.uniform(0.25, 0.75)), float(chance.uniform(0.55, 0.75))
        self.pace = float(chance.normal(0, 0.004))
        self.scale = float(chance.uniform(0.25, 0.7)) * size[1]
        self.beat = float(chance.uniform(0.2, 0.9))

    def draw(self, picture: Picture, step: int) -> None:
        height, width = picture.shape[:2]
        x = int((self.x + self.pace * step) * width)
        y = int(self.y * height + np.sin(step * self.beat) * self.scale * 0.03)
        s = self.scale
        axes = (int(s * 0.22), int(s * 0.35))
        cv2.ellipse(picture, (x, int(y + s * 0.35)), axes, 0, 0, 360, self.coat, -1)
        cv2.ellipse(picture, (x, int(y + s * 0.35)), axes, 0, 0, 360, (15, 15, 15), 2)
        swing = int(np.sin(step * self.beat) * s * 0.2)
        for side in (-1, 1):
            shoulder = (x + side * axes[0], int(y + s * 0.2))
            hand = (x + side * int(s * 0.35), int(y + s * 0.35) + side * swing)
            cv2.line(picture, shoulder, hand, self.coat, max(2, int(s * 0.06)))
        cv2.circle(picture, (x, y - int(s * 0.1)), int(s * 0.2), self.skin, -1)
        cv2.circle(picture, (x, y - int(s * 0.1)), int(s * 0.2), (15, 15, 15), 2)
        mouth = int(abs(np.sin(step * 0.7)) * s * 0.06) + 1
        cv2.ellipse(picture, (x, y), (int(s * 0.07), mouth), 0, 0, 360, (90, 20, 20), -1)
        eye = 1 if step % 23 == 0 else int(s * 0.03) + 1
        for side in (-1, 1):
            cv2.circle(
                picture, (x + side * int(s * 0.08), y - int(s * 0.14)), eye, (10, 10, 10), -1
            )


def animation_shot(
    chance: Chance,
    size: tuple[int, int],
    length: int,
    scene: Picture,
    figures: Sequence[Figure],
    zoom: float,
) -> Shot:
    """Figures over a scene; the camera may pan; the drawing changes every second or third frame."""
    width = size[0]
    hold = int(chance.choice([1, 2, 2, 3]))
    offset, speed = float(chance.uniform(0, width)), float(chance.choice([0, 0, 1.5, -1.5, 5]))
    centre = (float(chance.uniform(0.35, 0.65)), float(chance.uniform(0.4, 0.6)))
    shot: Shot = []
    for number in range(length):
        if number % hold and shot:
            shot.append(shot[-1])
            continue
        x = int(min(max(offset + speed * number, 0), width))
        picture = scene[:, x : x + width].copy()
        for figure in figures:
            figure.draw(picture, number // hold)
        shot.append(window(picture, centre, zoom) if zoom > 1 else picture)
    return shot


def animation(chance: Chance, size: tuple[int, int], rate: float, seconds: float) -> Reel:
    """Wide shots and close-ups of the same scene, changes of scene, some dissolves and fades."""
    reel = Reel(rate)
    scene, figures = backdrop(chance, size), [Figure(chance, size) for _ in range(2)]
    while len(reel.pictures) < seconds * rate:
        if chance.random() < 0.45 or not reel.pictures:
            scene = backdrop(chance, size)
            figures = [Figure(chance, size) for _ in range(int(chance.integers(1, 4)))]
        length = int(chance.uniform(0.5, 3.2) * rate)
        shot = animation_shot(
            chance, size, length, scene, figures, float(chance.choice([1.0, 1.0, 1.6, 2.4]))
        )
        steps = int(chance.integers(6, 20))
        way = chance.random()
        if not reel.pictures or way < 0.72 or length < steps + 20 or reel.room() < steps + 18:
            reel.cut_if_seen(shot, 5)
        elif way < 0.86:
            reel.blend(shot, steps, dissolve, "dissolve")
        else:
            reel.blend(shot, steps + 8, through(0), "dip_to_black")
    return reel


def _level(chance: Chance, size: tuple[int, int]) -> Picture:
    """A wide pixel-art level, four pixels to a cell."""
    width, height = size[0] // 4, size[1] // 4
    picture = _ramp((width * 5, height), _colour(chance, 0, 130), _colour(chance, 30, 220))
    ground, edge = _colour(chance), _colour(chance)
    for x in range(0, width * 5, 8):
        top = int(height * 0.78 + 5 * np.sin(x / 30) + chance.integers(-3, 4))
        cv2.rectangle(picture, (x, top), (x + 7, height), ground, -1)
        cv2.rectangle(picture, (x, top), (x + 7, top + 2), edge, -1)
        if chance.random() < 0.22:
            y = int(chance.uniform(0.3, 0.65) * height)
            cv2.rectangle(picture, (x, y), (x + 15, y + 4), edge, -1)
    return picture


def game(chance: Chance, size: tuple[int, int], rate: float, seconds: float) -> Reel:
    """A scrolling game with explosions, shake, menus, and cuts between levels."""
    reel = Reel(rate)
    while len(reel.pictures) < seconds * rate:
        level, hero, score = (
            _level(chance, size),
            _colour(chance, 120, 255),
            int(chance.integers(0, 9000)),
        )
        length = int(chance.uniform(1.0, 5.0) * rate)
        blasts = {
            int(v) for v in chance.integers(6, max(7, length - 6), int(chance.integers(0, 4)))
        }
        speed = float(chance.uniform(0.4, 3.0))
        shot: Shot = []
        lasting = 0
        for number in range(length):
            x = int(speed * number) % (level.shape[1] - size[0] // 4)
            small = level[:, x : x + size[0] // 4].copy()
            high, wide = small.shape[:2]
            jump = int(abs(np.sin(number / 7)) * high * 0.25)
            cv2.rectangle(
                small,
                (wide // 3, int(high * 0.66) - jump),
                (wide // 3 + 6, int(high * 0.66) + 9 - jump),
                hero,
                -1,
            )
            for enemy in range(3):
                ex = int((enemy * 67 + 400 - number * speed * 1.7) % (wide + 20)) - 10
                cv2.circle(small, (ex, int(high * (0.35 + 0.12 * enemy))), 4, (230, 40, 40), -1)
            if number in blasts:
                lasting = 5
            if lasting:
                cv2.circle(small, (wide // 2, high // 2), (6 - lasting) * 14, (255, 220, 90), -1)
                small = lit(small, 1 + lasting * 0.25)
                small = np.roll(small, int(chance.integers(-3, 4)), axis=1)
                lasting -= 1
            picture = cv2.resize(small, size, interpolation=cv2.INTER_NEAREST)
            cv2.rectangle(picture, (0, 0), (size[0], 22), (0, 0, 0), -1)
            cv2.putText(
                picture,
                f"SCORE {score + number * 10}",
                (8, 16),
                cv2.FONT_HERSHEY_PLAIN,
                1,
                (255, 255, 255),
                1,
            )
            shot.append(picture)
        start = reel.cut(shot)
        for blast in sorted(blasts):
            reel.not_a_cut(
                start + blast, start + blast + 5, "explosion lights the picture and shakes it"
            )
        if chance.random() < 0.4:
            held = [_menu(shot[-1])] * int(rate * chance.uniform(0.4, 1.0))
            first = reel.extend(held)
            reel.unclear(first - 1, first + 1, "a menu opens over the game")
    return reel


def _menu(picture: Picture) -> Picture:
    picture = lit(picture, 0.35)
    height, width = picture.shape[:2]
    cv2.rectangle(
        picture, (width // 4, height // 5), (width * 3 // 4, height * 4 // 5), (40, 40, 90), -1
    )
    for line, text in enumerate(("RESUME", "OPTIONS", "QUIT")):
        cv2.putText(
            picture,
            text,
            (width // 3, height // 3 + line * height // 6),
            cv2.FONT_HERSHEY_DUPLEX,
            height / 400,
            (255, 255, 255),
            1,
        )
    return picture


WORDS = [
    "data",
    "video",
    "shot",
    "model",
    "train",
    "frame",
    "scale",
    "cost",
    "stage",
    "query",
    "cluster",
    "text",
    "image",
    "score",
    "batch",
    "rate",
    "table",
    "cut",
]


def _slide(chance: Chance, size: tuple[int, int], theme: tuple[Colour, Colour]) -> list[Picture]:
    """A slide as its steps: title only, then one more line or a chart at each step."""
    width, height = size
    back, ink = theme
    picture = np.full((height, width, 3), back, np.uint8)
    cv2.rectangle(picture, (0, 0), (width, height // 40), ink, -1)
    scale = height / 360
    title = " ".join(chance.choice(WORDS, 3)).title()
    cv2.putText(
        picture,
        title,
        (width // 14, height // 6),
        cv2.FONT_HERSHEY_DUPLEX,
        scale * 1.1,
        ink,
        max(1, round(2 * scale)),
        cv2.LINE_AA,
    )
    steps = [picture]
    if chance.random() < 0.35:
        picture = picture.copy()
        for bar in range(6):
            high = int(chance.uniform(0.1, 0.55) * height)
            x = width // 8 + bar * width // 8
            cv2.rectangle(
                picture,
                (x, int(height * 0.88) - high),
                (x + width // 12, int(height * 0.88)),
                _colour(chance),
                -1,
            )
        return [*steps, picture]
    for line in range(int(chance.integers(2, 5))):
        picture = picture.copy()
        text = "- " + " ".join(chance.choice(WORDS, int(chance.integers(3, 6))))
        cv2.putText(
            picture,
            text,
            (width // 11, int(height * (0.32 + 0.14 * line))),
            cv2.FONT_HERSHEY_SIMPLEX,
            scale * 0.75,
            ink,
            max(1, round(scale)),
            cv2.LINE_AA,
        )
        steps.append(picture)
    return steps


def slides(
    chance: Chance, size: tuple[int, int], rate: float, seconds: float, speaker: Shot
) -> Reel:
    """Slides that change by a cut, a push or a dissolve; lines that appear are no cuts."""
    reel = Reel(rate)
    theme: tuple[Colour, Colour] = ((250, 250, 250), (20, 40, 120))
    if chance.random() < 0.5:
        theme = ((18, 22, 38), (240, 220, 120))
    moment = 0

    def inset(picture: Picture) -> Picture:
        nonlocal moment
        if not speaker:
            return picture
        picture = picture.copy()
        high, wide = size[1] // 4, size[0] // 4
        picture[-high:, -wide:] = cv2.resize(
            speaker[moment % len(speaker)], (wide, high), interpolation=cv2.INTER_AREA
        )
        moment += 1
        return picture

    def shown(picture: Picture, low: float, high: float) -> Shot:
        return [inset(picture) for _ in range(int(chance.uniform(low, high) * rate))]

    while len(reel.pictures) < seconds * rate:
        way = chance.random()
        steps = _slide(chance, size, theme[::-1] if way < 0.3 else theme)
        if way > 0.8 and speaker:
            steps = [speaker[int(chance.integers(0, len(speaker)))]]
        first = shown(steps[0], 0.6, 2.0)
        way = chance.random()
        if not reel.pictures:
            reel.cut(first)
        elif way < 0.75 or reel.room() < 20 or len(first) < 14:
            reel.cut_if_seen(first, 4, "slide -> slide")
        else:
            kind, mix = ("wipe", push) if way < 0.87 else ("dissolve", dissolve)
            reel.blend(first, 10, mix, kind)
        for step in steps[1:]:
            start = reel.extend([inset(step) for _ in range(int(chance.uniform(0.4, 1.6) * rate))])
            reel.not_a_cut(start - 1, start + 1, "a line or a chart appears on a slide")
    return reel
