"""Camera motion against rendered footage whose moves are known."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from clipmill.stages.clip_camera import camera_signals
from clipmill.stages.media.read.signals.camera import CameraMotion
from tests.camera_moves import SIZE, Move, filmed, textured, write
from tests.scanning import run

PICTURE = textured((640, 360))


RATE = 4.0  # each frame is compared
FRAMES = 15


def pairs_of(frames: Iterable[np.ndarray], rate: float = RATE) -> list[dict[str, Any]]:
    camera = CameraMotion()
    for number, frame in enumerate(frames):
        camera.add(SimpleNamespace(luma=frame, seconds=number / rate))
    return camera.finish()["camera"]


def camera_columns(pairs, start_seconds, end_seconds) -> dict[str, Any]:
    found = list(camera_signals(pairs, start_seconds, end_seconds, SIZE))
    assert all(reason for _, value, reason in found if value is None)
    return {name: value for name, value, _ in found}


def columns_of(frames: Iterable[np.ndarray]) -> dict[str, Any]:
    return camera_columns(pairs_of(frames), 0.0, 60.0)


@pytest.mark.parametrize(
    ("move", "words"),
    [
        (Move(), "static"),
        (Move(pan=10), "pan right"),
        (Move(pan=-5), "pan left"),
        (Move(pan=50, seconds=1.5), "pan right"),
        (Move(tilt=6), "tilt up"),
        (Move(tilt=-6), "tilt down"),
        (Move(zoom=2), "zoom in"),
        (Move(zoom=-8), "zoom out"),
        (Move(roll=5), "roll clockwise"),
        (Move(roll=-5), "roll counterclockwise"),
        (Move(pan=12, zoom=3), "pan right, zoom in"),
        (Move(pan=8, sprites=8), "pan right"),
        (Move(sprites=12), "static"),
    ],
)
def test_a_known_move_is_measured_and_named(move, words):
    columns = columns_of(filmed(PICTURE, move, rate=RATE))
    assert columns["camera_motion"] == words
    for name in ("pan", "tilt", "zoom", "roll"):
        truth = getattr(move, name)
        assert columns[f"camera_{name}"] == pytest.approx(truth, abs=0.15 + 0.03 * abs(truth)), name
    assert columns["camera_shake"] < 0.05
    assert (columns["subject_motion"] > 0.5) == (move.sprites > 0)


@pytest.mark.parametrize("shake", [0.1, 0.3, 1.0])
def test_shake_is_its_typical_distance_from_the_path(shake):
    columns = columns_of(filmed(PICTURE, Move(pan=4, shake=shake, seconds=6), rate=RATE))
    # The median of the distance from the origin, if both axes have this standard deviation.
    assert columns["camera_shake"] == pytest.approx(1.177 * shake, rel=0.35)
    assert columns["camera_motion"] == ("pan right" if shake < 0.17 else "pan right, handheld")


def test_cars_on_asphalt_do_not_move_the_camera():
    """All corners are on things that move, from the middle outwards."""
    asphalt = np.full((144, 256), 110, np.uint8)
    asphalt[10:14, 200:240] = asphalt[130:134, 20:60] = asphalt[60:100, 2:6] = 190

    def drive() -> Iterable[np.ndarray]:
        noise = np.random.default_rng(0)
        car = cv2.resize(PICTURE[100:220, 100:220], (30, 30), interpolation=cv2.INTER_AREA)
        for number in range(0, 75, 5):
            image = asphalt + noise.normal(0, 1.5, asphalt.shape)
            for x, y, across, down in ((90, 50, -1, -0.5), (130, 50, 1, -0.5), (110, 80, 0, 0.6)):
                left, top = int(x + across * number), int(y + down * number)
                place = image[max(0, top) : top + 30, max(0, left) : left + 30]
                place[:] = car[: place.shape[0], : place.shape[1]]
            yield np.clip(image, 0, 255).astype(np.uint8)

    columns = columns_of(drive())
    assert columns["camera_motion"] == "static"
    assert abs(columns["camera_zoom"]) < 0.3
    assert columns["subject_motion"] > 0.5


def test_fades_and_bars_do_not_disturb():
    frames = list(filmed(PICTURE, Move(pan=10), rate=RATE))
    faded = [
        (frame * (1 - 0.9 * i / len(frames))).astype(np.uint8) for i, frame in enumerate(frames)
    ]
    barred = [frame.copy() for frame in frames]
    for frame in barred:
        frame[:20] = frame[-20:] = 0
    for found in (columns_of(faded), columns_of(barred)):
        assert found["camera_motion"] == "pan right"
        assert found["camera_pan"] == pytest.approx(10, abs=0.4)


def test_grain_is_no_subject():
    columns = columns_of(filmed(PICTURE, Move(pan=10, noise=10), rate=RATE))
    assert columns["camera_pan"] == pytest.approx(10, abs=0.2)
    assert columns["subject_motion"] < 0.1


def test_what_shows_nothing_has_nulls():
    noise = np.random.default_rng(0)
    black = [
        np.clip(noise.normal(2, 1, (144, 256)), 0, 255).astype(np.uint8) for _ in range(FRAMES)
    ]
    for frames in (black, [PICTURE[:9, :200]] * FRAMES, black[:1], []):
        assert set(columns_of(frames).values()) == {None}
    strange = [noise.integers(0, 255, (144, 256), dtype=np.uint8) for _ in range(FRAMES)]
    assert columns_of(strange)["camera_motion"] is None
    assert set(camera_columns(None, 0, 1).values()) == {None}


def test_still_slides_are_static():
    slide = np.full((144, 256), 250, np.uint8)
    cv2.putText(slide, "Clips", (20, 40), 0, 1, 20, 2)
    assert columns_of([slide] * FRAMES)["camera_motion"] == "static"


def test_a_clip_has_only_its_own_pairs():
    """Neither the cut nor the other shot counts."""
    frames = [
        *filmed(PICTURE, Move(pan=10, seconds=2), rate=RATE),
        *filmed(255 - PICTURE, Move(seconds=2), rate=RATE),
    ]
    pairs = pairs_of(frames)
    assert camera_columns(pairs, 0.0, 2.0)["camera_motion"] == "pan right"
    assert camera_columns(pairs, 2.0, 4.0)["camera_motion"] == "static"
    assert camera_columns(pairs, 0.5, 0.6)["camera_motion"] is None


def test_pictures_may_be_at_uneven_distances():
    frames = list(enumerate(filmed(PICTURE, Move(pan=10, zoom=4, seconds=2))))
    camera = CameraMotion()
    for number, frame in frames:
        if number % 7 in (0, 1, 4):
            camera.add(SimpleNamespace(luma=frame, seconds=number / 25))
    columns = camera_columns(camera.finish()["camera"], 0, 4)
    assert columns["camera_pan"] == pytest.approx(10, abs=0.3)
    assert columns["camera_zoom"] == pytest.approx(4, abs=0.2)


def test_pictures_across_a_gap_are_not_compared():
    camera = CameraMotion()
    for number, frame in enumerate(filmed(PICTURE, Move(pan=10, seconds=2))):
        if number == 25:
            camera.interrupt()
        camera.add(SimpleNamespace(luma=frame, seconds=number / 25))
    pairs = camera.finish()["camera"]
    assert not [pair for pair in pairs if pair["start_seconds"] < 1 <= pair["end_seconds"]]


def test_camera_that_goes_there_and_back_is_mixed():
    there = list(filmed(PICTURE, Move(pan=15), rate=RATE))
    assert columns_of([*there, *there[::-1]])["camera_motion"] == "mixed"


def test_the_same_pictures_have_the_same_motion():
    frames = list(filmed(PICTURE, Move(pan=6, sprites=8), rate=RATE))
    assert pairs_of(frames) == pairs_of(frames)


def test_a_pair_after_one_without_motion_stands_for_both():
    shown = {"pan": 2.0, "tilt": 0.0, "zoom": 0.0, "roll": 0.0, "subject": 0.0, "following": 1.0}
    pairs = [
        {"start_seconds": 0.0, "end_seconds": 0.2, **dict.fromkeys(shown)},
        {"start_seconds": 0.2, "end_seconds": 0.24, **shown},
        {"start_seconds": 0.24, "end_seconds": 0.48, **shown, "pan": 4.0},
    ]
    assert camera_columns(pairs, 0, 1)["camera_pan"] == pytest.approx(3.0)
    # Too little of the clip is measured.
    long = pairs[0] | {"start_seconds": 0.48, "end_seconds": 2.0}
    assert camera_columns([*pairs, long], 0, 3)["camera_pan"] is None


def test_clips_of_a_file_have_their_camera(tmp_path):
    path = tmp_path / "pan.mp4"
    shots = [Move(pan=10, seconds=1.6), Move(zoom=-8, seconds=1.6), Move(seconds=0.8, noise=0)]
    pictures = (PICTURE // 2, 255 - PICTURE // 2, np.zeros_like(PICTURE))
    frames = [
        frame
        for picture, move in zip(pictures, shots, strict=True)
        for frame in filmed(picture, move, rate=10)
    ]
    write(path, frames, rate=10)
    found = run(path, tmp_path, signals=True)["split_clips"]
    assert [clip["camera_motion"] for clip in found] == ["pan right", "zoom out", None]
    assert found[0]["camera_pan"] == pytest.approx(10, abs=0.5)
    assert found[1]["camera_zoom"] == pytest.approx(-8, abs=0.5)
    assert "how the camera moves" in dict(found[2]["signal_reasons"])["camera_motion"]
    (spanned,) = run(path, tmp_path, [(1.7, 3.1)], signals=True)["split_clips"]
    assert spanned["camera_motion"] == "zoom out"
    assert "camera_motion" not in run(path, tmp_path)["split_clips"][0]
