"""Signals of pictures equal FFmpeg's own filters; others are right on pictures of known truth."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from clipmill.stages.media.read.signals import bars, detail, light, movement
from clipmill.stages.media.read.signals.movement import Freezes, Planes
from tests import ffmpeg_filters

RATE = 25


def drawn(number: int) -> np.ndarray:
    """A coloured picture that changes with its number, with edges, noise and a still period."""
    random = np.random.default_rng(7)
    height, width = 144, 256
    still = number if number < 8 else max(8, number - 6)
    across, down = np.meshgrid(np.arange(width), np.arange(height))
    image = np.stack(
        [
            128 + 90 * np.sin((across + 3 * still) / 17),
            128 + 80 * np.cos((down - 2 * still) / 11),
            40 + across / 2,
        ],
        axis=2,
    )
    image[20:60, 30 + 2 * still : 70 + 2 * still] = (230, 40, 60)
    image[100:130, 90 + still : 93 + still] = image[100:103, 90 + still : 130 + still] = 250
    image += random.normal(0, 3, image.shape)
    if number % 5 == 4:
        image *= 0.4
    return np.clip(image, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def pictures() -> list[Planes]:
    found = []
    for number in range(20):
        luma, red, blue = cv2.split(cv2.cvtColor(drawn(number), cv2.COLOR_RGB2YCrCb))
        halves = (
            cv2.resize(p, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for p in (blue, red)
        )
        found.append(Planes(luma, *halves))
    return found


def test_motion_equals_vmafmotion(pictures):
    told = ffmpeg_filters.of_pictures(pictures, "format=yuv420p,vmafmotion", pixels="yuv420p")
    blurred = [movement.blurred(planes.luma) for planes in pictures]
    pairs = zip(blurred[1:], blurred, strict=False)
    found = [movement.vmaf_motion(one, other) / movement.LUMA_SHARE for one, other in pairs]
    expected = [frame["vmafmotion.score"] for frame in told[1:]]
    assert found == pytest.approx(expected, abs=0.02)


def test_information_equals_siti(pictures):
    told = ffmpeg_filters.of_pictures(pictures, "siti")
    lumas = [planes.luma for planes in pictures]
    means = [float(luma.mean()) for luma in lumas]
    spatial = [detail.spatial_information(luma) for luma in lumas]
    assert spatial == pytest.approx([frame["siti.si"] for frame in told], abs=0.01)
    temporal = [
        movement.temporal_information(lumas[i], lumas[i - 1], means[i], means[i - 1])
        for i in range(1, len(lumas))
    ]
    assert temporal == pytest.approx([frame["siti.ti"] for frame in told[1:]], abs=0.01)


@pytest.mark.parametrize("tolerance", [0.001, 0.02])
def test_freezes_begin_and_end_as_with_freezedetect(pictures, tolerance):
    limited = [
        [
            np.rint(planes.luma * movement.LUMA_SHARE + 16).astype(np.uint8),
            *(
                np.rint((p - 128.0) * movement.CHROMA_SHARE + 128).astype(np.uint8)
                for p in planes[1:]
            ),
        ]
        for planes in pictures
    ]
    told = ffmpeg_filters.of_pictures(
        limited, f"freezedetect=n={tolerance}:d=0.01", pixels="yuv420p"
    )
    freezes = Freezes(tolerance)
    found = [freezes.add(planes) for planes in pictures]
    references = [i / RATE for i, value in enumerate(found) if value is None or value > tolerance]
    ends = [f["freezedetect.freeze_end"] for f in told if "freezedetect.freeze_end" in f]
    assert references[1:] == pytest.approx(ends)
    assert 3 < len(ends) < len(pictures) - 1


def test_bars_equal_cropdetect(pictures):
    height, width = pictures[0].luma.shape
    boxes = [(0, 0, width, height), (0, 20, width, height - 18), (33, 7, width - 40, height - 5)]
    for left, top, right, bottom in boxes:
        barred = []
        for planes in pictures[:4]:
            luma = np.full_like(planes.luma, 16)
            luma[top:bottom, left:right] = np.maximum(planes.luma, 60)[top:bottom, left:right]
            barred.append(planes._replace(luma=luma))
        # The filter ignores the first two pictures.
        last = ffmpeg_filters.of_pictures(barred, "cropdetect=round=2", pixels="yuv420p")[-1]
        found = bars.edges(barred[-1].luma)
        assert found is not None
        assert round(found.left * width) == last["cropdetect.x1"] == left
        assert round(found.top * height) == last["cropdetect.y1"] == top
        assert round(found.right * width) - 1 == last["cropdetect.x2"] == right - 1
        assert round(found.bottom * height) - 1 == last["cropdetect.y2"] == bottom - 1
    assert bars.edges(np.full((90, 160), 16, np.uint8)) is None


def test_blockiness_and_blur_equal_blockdetect_and_blurdetect(pictures):
    # Of wider pictures only some lines are looked at.
    for planes in (Planes(p.luma[:, :160], p.blue[:, :80], p.red[:, :80]) for p in pictures[:5]):
        for sigma in (0, 2):
            luma = cv2.GaussianBlur(planes.luma, (0, 0), sigma) if sigma else planes.luma
            given = [planes._replace(luma=luma)]
            (told,) = ffmpeg_filters.of_pictures(given, "blockdetect,blurdetect", pixels="yuv420p")
            assert detail.blockiness(luma) == pytest.approx(told["block"], rel=1e-4)
            assert detail.blur(luma) == pytest.approx(told["blur"], rel=1e-4)


def test_light_and_colours_equal_signalstats(pictures):
    told = ffmpeg_filters.of_pictures(pictures, "signalstats", pixels="yuv420p")
    for planes, frame in zip(pictures, told, strict=True):
        levels, colors = light.levels(planes.luma), light.colors(planes.blue, planes.red)
        assert levels.low == pytest.approx(frame["signalstats.YLOW"], abs=1)
        assert levels.high == pytest.approx(frame["signalstats.YHIGH"], abs=1)
        # The filter cuts off decimals of each pixel's distance.
        assert 0 < colors.saturation - frame["signalstats.SATAVG"] < 1
        assert colors.hue == pytest.approx(frame["signalstats.HUEMED"], abs=4)


def test_black_shares_equal_blackframe():
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[None], 64, axis=0)
    dark = (ramp / 255 * 22).astype(np.uint8)
    grey = np.full((32, 128), 128, np.uint8)
    limited = np.rint(dark * movement.LUMA_SHARE + 16).astype(np.uint8)
    (told,) = ffmpeg_filters.of_pictures(
        [Planes(limited, grey, grey)], "blackframe=amount=0:threshold=32", pixels="yuv420p"
    )
    share = light.black_share(dark, float(dark.mean()))
    assert int(share * 100) == told["blackframe.pblack"]
    assert light.white_share(255 - dark, float((255 - dark).mean())) == share
    assert light.black_share(ramp, 128) == light.white_share(ramp, 128) == 0


def test_flashes_equal_photosensitivity():
    random = np.random.default_rng(3)
    shown = [random.integers(0, 256, (24, 48, 3), np.uint8) // (1 + i % 4) for i in range(12)]
    told = ffmpeg_filters.of_pictures(
        [[image] for image in shown], "photosensitivity=bypass=1", pixels="rgb24"
    )
    grids = [light.flash_grid(image) for image in shown]
    found = [light.flash(grids[i], grids[i - 1])[1] for i in range(1, len(grids))]
    expected = [frame["photosensitivity.frame-badness"] for frame in told[1:]]
    # The filter cuts off the decimals of each cell's mean.
    assert found == pytest.approx(expected, abs=0.005)
