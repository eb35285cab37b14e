"""Draws the sheets on which films are annotated: every place that could be a cut, and an overview.

    python -m benchmarks.shots.footage_sheets FILM --out DIR
    python -m benchmarks.shots.footage_sheets FILM --out DIR --frames 412-432

The candidates are loose on purpose: about as many as a film has seconds. On each strip, the red
line stands before the frame whose number is given. The overview shows about 140 frames of the
whole film, or every frame of the stretch asked for.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import av
import cv2
import numpy as np

Picture = np.ndarray
WIDE, AROUND, ROWS = 104, 3, 22


def read(path: Path) -> tuple[list[Picture], np.ndarray]:
    """Frames in decoding order: small ones to look at, and 48 × 27 ones to measure."""
    views, small = [], []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            high = max(2, round(WIDE * frame.height / frame.width / 2) * 2)
            wide = WIDE if high <= 120 else max(2, round(WIDE * 120 / high / 2) * 2)
            size = (wide, min(high, 120))
            view = frame.reformat(*size, "rgb24", interpolation="AREA").to_ndarray()
            views.append(view)
            small.append(cv2.resize(view, (48, 27), interpolation=cv2.INTER_AREA))
    return views, np.array(small)


def candidates(small: np.ndarray) -> list[int]:
    """Frames that differ from the one before, for their surroundings, in one of three ways."""
    count = len(small)
    pictures = small.astype(np.float32)
    change = np.zeros(count)
    change[1:] = np.abs(pictures[1:] - pictures[:-1]).mean((1, 2, 3))
    grey = pictures.mean(3)
    spread = grey.std((1, 2), keepdims=True) + 3
    normal = (grey - grey.mean((1, 2), keepdims=True)) / spread
    unlike = np.zeros(count)
    unlike[1:] = 1 - (normal[1:] * normal[:-1]).mean((1, 2))
    bins = (small >> 5).astype(np.int64) @ np.array([64, 8, 1])
    colours = np.stack([np.bincount(b.ravel(), minlength=512) for b in bins]).astype(np.float32)
    recoloured = np.zeros(count)
    recoloured[1:] = np.abs(colours[1:] - colours[:-1]).sum(1) / (2 * 48 * 27)
    found = []
    for n in range(1, count):
        if change[n] < change[max(1, n - 1) : n + 2].max() - 1e-6:
            continue
        beside = np.r_[change[max(1, n - 8) : max(1, n - 1)], change[n + 2 : n + 9]]
        times = change[n] / ((np.median(beside) if len(beside) else 0.0) + 0.7)
        if (
            (times > 2.6 and change[n] > 2.5)
            or (unlike[n] > 0.35 and change[n] > 2 and times > 1.5)
            or (recoloured[n] > 0.35 and times > 1.5)
        ):
            found.append(n)
    return found


def strips(views: Sequence[Picture], frames: Sequence[int]) -> list[Picture]:
    """Sheets with the frames on both sides of each candidate."""
    high, wide = views[0].shape[:2]
    per_row = max(1, 1260 // (wide * AROUND * 2))
    sheets = []
    for start in range(0, len(frames), per_row * ROWS):
        part = frames[start : start + per_row * ROWS]
        rows = -(-len(part) // per_row)
        sheet = np.full((rows * (high + 14), per_row * (wide * AROUND * 2 + 14), 3), 30, np.uint8)
        for place, frame in enumerate(part):
            x = place % per_row * (wide * AROUND * 2 + 14)
            y = place // per_row * (high + 14) + 12
            for step in range(-AROUND, AROUND):
                if 0 <= frame + step < len(views):
                    left = x + (step + AROUND) * wide
                    sheet[y : y + high, left : left + wide] = views[frame + step]
            edge = x + AROUND * wide
            cv2.line(sheet, (edge, y - 12), (edge, y + high), (255, 0, 0), 2)
            _label(sheet, str(frame), (x, y - 2))
        sheets.append(sheet)
    return sheets


def overview(views: Sequence[Picture], frames: Sequence[int]) -> Picture:
    high, wide = views[0].shape[:2]
    columns = max(1, 1260 // wide)
    rows = -(-len(frames) // columns)
    sheet = np.full((rows * (high + 12), columns * (wide + 1), 3), 30, np.uint8)
    for place, frame in enumerate(frames):
        x, y = place % columns * (wide + 1), place // columns * (high + 12) + 12
        sheet[y : y + high, x : x + wide] = views[frame]
        _label(sheet, str(frame), (x, y - 2))
    return sheet


def _label(sheet: Picture, text: str, place: tuple[int, int]) -> None:
    cv2.putText(sheet, text, place, cv2.FONT_HERSHEY_PLAIN, 0.8, (255, 255, 0), 1, cv2.LINE_AA)


def _save(sheet: Picture, path: Path) -> None:
    cv2.imwrite(str(path), cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    print(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("film", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="folder for the PNG files")
    parser.add_argument("--frames", help="FIRST-LAST: every frame of this stretch, nothing else")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    views, small = read(options.film)
    name = options.film.name
    if options.frames:
        first, last = (int(v) for v in options.frames.split("-"))
        sheet = overview(views, range(first, min(last + 1, len(views))))
        _save(sheet, options.out / f"{name}_{first}-{last}.png")
        return
    for number, sheet in enumerate(strips(views, candidates(small))):
        _save(sheet, options.out / f"{name}_candidates_{number}.png")
    step = max(2, len(views) // 140)
    _save(overview(views, range(0, len(views), step)), options.out / f"{name}_overview.png")


if __name__ == "__main__":
    main()
