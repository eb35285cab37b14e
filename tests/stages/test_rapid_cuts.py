"""The detector cascade where cuts follow each other within a few frames, at both ways to decode."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np

from tests.scanning import run
from tests.stages.test_cascade import RATE, SIZE, landscape

# Lengths of shots, frames: long ones around a montage.
LENGTHS = (40, 3, 5, 4, 6, 3, 8, 5, 40, 12, 40)
CUTS = np.cumsum(LENGTHS)[:-1].tolist()


def pictures(lengths: Sequence[int] = LENGTHS, repeats: int = 1) -> list[np.ndarray]:
    """Of shots in each of which a camera pans at its own speed."""
    places = [landscape(20 + seed) for seed in range(len(lengths))]
    found = []
    for seed, (place, length) in enumerate(zip(places, lengths, strict=True)):
        for number in range(length * repeats):
            left = round(number / repeats * (seed % 4))
            found.append(np.clip(place[:, left : left + SIZE[0]], 0, 255).astype(np.uint8))
    return found


def write(path: Path, shown: list[np.ndarray], rate: int) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=rate, options={"crf": "20", "preset": "fast"})
        stream.height, stream.width = shown[0].shape[:2]
        stream.pix_fmt = "yuv420p"
        for image in shown:
            output.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        output.mux(stream.encode())
    return path


def cuts(path: Path, tmp_path: Path, **settings) -> list[int]:
    shots = run(path, tmp_path, detector="cascade", keep_frames=False, **settings)["shots"]
    return [shot["start_frame"] for shot in shots[1:]]


def test_shots_of_a_few_frames_are_found_however_the_film_is_decoded(tmp_path):
    path = write(tmp_path / "film.mp4", pictures(), RATE)
    assert cuts(path, tmp_path) == CUTS
    assert cuts(path, tmp_path, decode="all") == CUTS


def test_a_film_of_twice_as_many_frames_has_the_same_cuts(tmp_path):
    path = write(tmp_path / "film.mp4", pictures(repeats=2), 2 * RATE)
    assert cuts(path, tmp_path) == [2 * cut for cut in CUTS]


def test_cuts_of_a_tall_film_between_bars_are_found(tmp_path):
    lengths = (25, 20, 30, 16, 25)
    framed = []
    for picture in pictures(lengths):
        screen = np.zeros_like(picture)
        screen[:, 66:126] = picture[:, 66:126]
        framed.append(screen)
    path = write(tmp_path / "film.mp4", framed, RATE)
    assert cuts(path, tmp_path) == np.cumsum(lengths)[:-1].tolist()
