"""Measures how right split_clips' signals of the camera are, on footage whose moves are known.

    python -m benchmarks.camera [FILE SECONDS ...]

A window moves over a picture of each file (by default frames of the real footage next to the
checkout), at known rates; what it sees is encoded as H.264 of 640 × 360 and split with `signals`.
Prints, for each move, the truth and what was measured on each picture. Then the same pictures with
noise, fades, bars and things that move apart, each with pans of 10% of the width per second.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from benchmarks.split import FOOTAGE
from tests.camera_moves import Move, filmed, write
from tests.scanning import run

SIZE = (640, 360)
RATE = 10
PICTURES = (
    ("tears_of_steel_room_17s_vp9.webm", 5.0),
    ("bbb_opening_720p_45s.ts", 9.0),
    ("sam2_dog_catch.mp4", 1.0),
    ("sam2_coffee_pour.mp4", 4.0),
)
MOVES = (
    Move(),
    *(Move(pan=rate) for rate in (-40, -10, 1, 3, 20)),
    *(Move(tilt=rate) for rate in (-10, 3, 20)),
    *(Move(zoom=rate) for rate in (-20, -5, 1, 2, 10)),
    *(Move(roll=rate) for rate in (-10, 2, 30)),
    Move(pan=8, tilt=-5, zoom=3, roll=2),
    *(Move(shake=share) for share in (0.1, 0.3, 1.0)),
)
RATES = ("pan", "tilt", "zoom", "roll")


def picture_of(path: Path, seconds: float) -> np.ndarray:
    """The first frame from a time on, grey."""
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time is not None and frame.time >= seconds:
                return frame.to_ndarray(format="gray")
    raise SystemExit(f"{path} ends before {seconds:g} s")


def measured(frames: Iterable[np.ndarray], folder: Path) -> dict[str, Any]:
    path = folder / "footage.mp4"
    write(path, frames, rate=RATE)
    (clip,) = run(path, folder, signals=True, boundaries="whole")["split_clips"]
    return clip


def faded(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    count = 4 * RATE
    for number, frame in enumerate(frames):
        yield (frame * (1 - 0.9 * number / count)).astype(np.uint8)


def barred(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    for frame in frames:
        frame[:45] = frame[-45:] = 0
        yield frame


def grained(frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    noise = np.random.default_rng(1)
    for frame in frames:
        yield np.clip(frame + noise.normal(0, 12, frame.shape), 0, 255).astype(np.uint8)


def unchanged(frames: Iterable[np.ndarray]) -> Iterable[np.ndarray]:
    return frames


def told(clip: dict[str, Any]) -> str:
    if clip["camera_motion"] is None:
        return "null"
    rates = " ".join(f"{clip[f'camera_{name}']:+.2f}" for name in RATES)
    shake = clip["camera_shake"]
    return (
        f"{rates} {float('nan') if shake is None else shake:.2f} "
        f"{clip['subject_motion']:.2f} {clip['camera_motion']}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", metavar="FILE SECONDS")
    words = parser.parse_args().files
    given = [(Path(a), float(b)) for a, b in zip(words[::2], words[1::2], strict=True)]
    places = given or [(FOOTAGE / name, seconds) for name, seconds in PICTURES]
    pictures = [picture_of(path, seconds) for path, seconds in places]
    print("pan tilt zoom roll, shake, subject_motion, camera_motion")
    errors: dict[str, list[float]] = {name: [] for name in RATES}
    shares: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for move in MOVES:
            print(" ".join(f"{getattr(move, name):+g}" for name in RATES), f"{move.shake:g}")
            for seed, (picture, (path, _)) in enumerate(zip(pictures, places, strict=True)):
                clip = measured(
                    filmed(picture, _longer(move), rate=RATE, size=SIZE, seed=seed), Path(folder)
                )
                print(f"    {told(clip)}  {path.name}")
                if clip["camera_motion"] is None:
                    continue
                if move.shake:
                    shares.append(clip["camera_shake"] / (1.177 * move.shake))
                    continue
                for name in RATES:
                    errors[name].append(abs(clip[f"camera_{name}"] - getattr(move, name)))
        print("errors: median, 95th percentile, largest")
        for name, found in errors.items():
            print(f"    {name}: {np.median(found):.3f} {np.quantile(found, 0.95):.3f}", end=" ")
            print(f"{max(found):.3f}")
        print(f"    shake, measured / true: {min(shares):.2f} to {max(shares):.2f}")
        hard: dict[str, tuple[Move, Callable[..., Iterable[np.ndarray]]]] = {
            "fade to black": (Move(pan=10), faded),
            "bars": (Move(pan=10), barred),
            "grain": (Move(pan=10), grained),
            "things that move": (Move(pan=10, sprites=10), unchanged),
            "things that move, camera doesn't": (Move(sprites=10), unchanged),
        }
        for words, (move, change) in hard.items():
            print(words)
            for picture, (path, _) in zip(pictures, places, strict=True):
                frames = change(filmed(picture, _longer(move), rate=RATE, size=SIZE))
                print(f"    {told(measured(frames, Path(folder)))}  {path.name}")


def _longer(move: Move) -> Move:
    """As long as the window stays over the picture."""
    fastest = max(abs(move.pan), abs(move.tilt), abs(move.zoom), 25 / 4)
    return Move(**(vars(move) | {"seconds": min(4.0, 40 / fastest)}))


if __name__ == "__main__":
    main()
