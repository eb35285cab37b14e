"""Signals of clips are right on footage of known truth, and say why they are missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.clip_parts import Part
from clipmill.stages.clip_signals import KEPT, VideoSignals
from clipmill.stages.media.read.picture import Picture
from clipmill.stages.media.read.planes import ImageParts
from clipmill.stages.media.read.signals.picture_signals import PictureSignals
from clipmill.stages.media.read.signals.places import bytes_of_pictures, fill_signals
from clipmill.stages.scan_videos import SCANS
from tests.media import THREE_SHOTS, cached
from tests.scanning import run

RATE = 20
SIZE = (320, 180)


def noise(seed: int, size: tuple[int, int] = SIZE, low: int = 60, high: int = 200) -> np.ndarray:
    """A soft random texture, BGR."""
    width, height = size
    random = np.random.default_rng(seed)
    small = random.integers(low, high, (height // 8, width // 8, 3), np.uint8)
    return cv2.resize(small, size, interpolation=cv2.INTER_LINEAR)


TEXTURE = noise(1, (SIZE[0] * 2, SIZE[1]))


def panning(number: int, speed: int = 2) -> np.ndarray:
    left = number * speed % SIZE[0]
    return TEXTURE[:, left : left + SIZE[0]].copy()


def signals_of(
    pictures: Sequence[np.ndarray],
    *,
    seconds: Sequence[float] | None = None,
    left_out: Callable[[int], bool] = lambda _: False,
    clip: tuple[int, int] | None = None,
) -> dict[str, Any]:
    """The signals of a video of these pictures, or of a clip of some of them."""
    times = list(seconds or (number / RATE for number in range(len(pictures))))
    end = 2 * times[-1] - times[-2]
    observer = PictureSignals()
    observer.interrupt()
    decoded = [number for number in range(len(pictures)) if not left_out(number)]
    for number in decoded:
        parts = ImageParts(pictures[number])
        observer.add(Picture(number, times[number], 0, 0.0, None, lambda _: pictures[0], 0, parts))
    scan = observer.finish()
    scan |= {"frame_numbers": list(range(len(pictures))), "seconds": times}
    fill_signals(scan, decoded)
    scan |= {"video_id": "v", "width": SIZE[0], "height": SIZE[1], "end_seconds": end}
    table = pa.Table.from_pylist([scan], schema=SCANS)
    kept = {name: table[name][0] for name in KEPT}
    row = table.drop_columns(list(KEPT)).to_pylist()[0]
    first, last = clip or (0, len(pictures))
    part = Part(times[first], times[last] if last < len(times) else end, first, last)
    found = VideoSignals(row, kept, [20], is_whole=True).of(part)
    found["signal_reasons"] = dict(found["signal_reasons"] or {})
    return found


def with_bars(number: int, left: int, top: int, right: int, bottom: int) -> np.ndarray:
    image = np.zeros((SIZE[1], SIZE[0], 3), np.uint8)
    inside = panning(number)
    image[top : SIZE[1] - bottom, left : SIZE[0] - right] = inside[
        top : SIZE[1] - bottom, left : SIZE[0] - right
    ]
    return image


@pytest.mark.parametrize(
    ("kind", "bars"),
    [
        ("none", (0, 0, 0, 0)),
        ("letterbox", (0, 22, 0, 23)),
        ("pillarbox", (40, 0, 40, 0)),
        ("window box", (40, 22, 40, 22)),
        # A dark edge on one side is part of the picture.
        ("none", (0, 0, 60, 0)),
    ],
)
def test_bars_and_the_safe_rectangle(kind, bars):
    found = signals_of([with_bars(number, *bars) for number in range(0, 60, 10)])
    assert found["bars"] == kind
    left, top, right, bottom = bars if kind != "none" else (0, 0, 0, 0)
    expected = (left / 320, top / 180, 1 - right / 320, 1 - bottom / 180)
    sides = ("left", "top", "right", "bottom")
    assert tuple(found[f"safe_{side}"] for side in sides) == pytest.approx(expected)


def test_black_pictures_have_no_bars_and_no_colour():
    found = signals_of([np.zeros((180, 320, 3), np.uint8)] * 10)
    assert (found["bars"], found["safe_left"], found["hue"]) == (None, None, None)
    assert found["signal_reasons"]["bars"] == "its pictures are black"
    assert found["signal_reasons"]["hue"] == "it is grey"
    assert found["black_share"] == 1.0


def test_overlay_is_what_stays_while_the_rest_moves():
    logo = np.random.default_rng(5).integers(0, 2, (40, 80, 1), np.uint8) * 255

    def shown(number: int, *, moves: bool = True) -> np.ndarray:
        image = noise(number // 5) if moves else TEXTURE[:, :320].copy()
        image[120:160, 200:280] = logo
        return image

    share = signals_of([shown(number) for number in range(60)])["overlay_share"]
    assert share == pytest.approx(40 * 80 / (320 * 180), rel=0.15)
    assert signals_of([noise(number // 5) for number in range(60)])["overlay_share"] < 0.002
    still = signals_of([shown(number, moves=False) for number in range(60)])
    assert still["overlay_share"] is None
    assert "too little of it moves" in still["signal_reasons"]["overlay_share"]
    short = signals_of([shown(number) for number in range(60)], clip=(0, 9))
    assert "too short" in short["signal_reasons"]["overlay_share"]


def test_still_time_and_still_minutes():
    moving = [panning(number) for number in range(40)]
    found = signals_of([*moving, *[panning(40)] * 60])
    assert found["still_share"] == pytest.approx(0.6, abs=0.02)
    # Of three minutes one shows nothing new; these are all pictures there are.
    seconds = [float(at) for at in range(180)]
    pictures = [
        np.full((18, 32, 3), 100 if 60 <= at < 120 else (60, 160)[at % 2], np.uint8)
        for at in range(180)
    ]
    found = signals_of(pictures, seconds=seconds)
    assert found["static_share"] == pytest.approx(1 / 3)


def test_light_over_time():
    black, white, grey = (np.full((180, 320, 3), level, np.uint8) for level in (0, 255, 128))
    found = signals_of([*[black] * 10, *[white] * 10, *[grey] * 20])
    assert found["black_share"] == found["white_share"] == pytest.approx(0.25)
    assert found["luminance"] == pytest.approx(128, abs=16)
    assert found["shadows_clipped"] == pytest.approx(0.25, abs=0.06)
    assert found["highlights_clipped"] == pytest.approx(0.25, abs=0.06)
    levels = [np.full((180, 320, 3), 118 + 20 * (number % 2), np.uint8) for number in range(40)]
    assert signals_of(levels)["flicker"] == pytest.approx(20, abs=0.5)
    fade = [np.full((180, 320, 3), 3 * number, np.uint8) for number in range(60)]
    assert signals_of(fade)["flicker"] < 0.6
    strobe = signals_of([(black, white)[number % 2] for number in range(40)])
    assert strobe["photosensitivity"] > 1 > signals_of(fade)["photosensitivity"]


def test_colour():
    red = np.full((180, 320, 3), (20, 20, 220), np.uint8)
    found = signals_of([red] * 6)
    grey = signals_of([cv2.cvtColor(cv2.cvtColor(red, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)] * 6)
    assert found["saturation"] > 80 > 1 > grey["saturation"]
    assert found["colorfulness"] > 50 > 1 > grey["colorfulness"]
    # FFmpeg's angle: chroma's red axis points to 180, blue to 270.
    assert found["hue"] == pytest.approx(160, abs=15)
    assert grey["hue"] is None


def test_detail():
    random = np.random.default_rng(2)
    ramp = np.repeat(np.linspace(40, 210, 320)[None], 192, axis=0)
    grainy = np.clip(ramp + random.normal(0, 6, ramp.shape), 0, 255).astype(np.uint8)
    clean = noise(4, (320, 192))
    blocks = cv2.resize(clean[::8, ::8], (320, 192), interpolation=cv2.INTER_NEAREST)
    soft = cv2.GaussianBlur(blocks, (0, 0), 4)
    found = {
        name: signals_of([image if image.ndim == 3 else cv2.merge([image] * 3)] * 4)
        for name, image in {
            "grainy": grainy,
            "clean": clean,
            "blocks": blocks,
            "soft": soft,
        }.items()
    }
    assert found["grainy"]["noise"] == pytest.approx(6, rel=0.15)
    assert found["clean"]["noise"] < 1
    assert found["blocks"]["blockiness"] > 5 * found["clean"]["blockiness"]
    assert found["soft"]["blur"] > 2 * found["blocks"]["blur"]
    assert found["blocks"]["laplacian_variance"] > 10 * found["soft"]["laplacian_variance"]
    assert found["blocks"]["contrast"] > found["soft"]["contrast"] > 20


def test_motion_and_what_stands_out():
    calm = signals_of([panning(number, 1) for number in range(40)])
    fast = signals_of([panning(number, 3) for number in range(40)])
    assert 1.5 * calm["vmaf_motion"] < fast["vmaf_motion"] < 4 * calm["vmaf_motion"]
    assert fast["temporal_information"] > 1.5 * calm["temporal_information"]
    assert fast["motion_jump"] < 1
    missed = [panning(number) if number < 20 else 255 - panning(number) for number in range(40)]
    cut = signals_of(missed)
    assert cut["motion_jump"] > 15
    assert cut["shots_per_second"] == pytest.approx(2 / 2.0)
    # A clip that begins with it does not hold it.
    assert signals_of(missed, clip=(20, 40))["motion_jump"] < 1
    one = signals_of(missed, clip=(3, 4))
    assert one["vmaf_motion"] is None
    assert one["signal_reasons"]["vmaf_motion"] == "it has too few pictures to compare"


def test_pictures_that_are_left_out_change_little():
    pictures = [panning(number) for number in range(60)]
    all_, some = signals_of(pictures), signals_of(pictures, left_out=lambda n: n % 3 == 1)
    for name in ("luminance", "contrast", "saturation", "still_share", "bars", "colorfulness"):
        assert some[name] == (
            all_[name] if isinstance(all_[name], str) else pytest.approx(all_[name], rel=0.1)
        )
    for name in ("vmaf_motion", "temporal_information"):
        assert some[name] == pytest.approx(all_[name], rel=0.25)


def test_bytes_go_to_the_pictures_that_show_them():
    packets = [(0.0, 500), (0.2, 10), (0.1, 70), (0.3, 20), (-0.1, 5)]
    assert bytes_of_pictures(packets, [0.0, 0.1, 0.3]) == [505, 80, 20]
    assert bytes_of_pictures([], [0.0]) is None


def test_a_file_has_signals_however_it_is_read(tmp_path: Path):
    path, _ = cached(THREE_SHOTS)
    rows = {}
    ways = {"content": {}, "exact": {"exact": True}, "cascade": {"detector": "cascade"}}
    for name, settings in ways.items():
        tables = run(path, tmp_path, signals=True, keep_frames=False, **settings)
        rows[name] = tables["split_clips"]
        assert len(rows[name]) == 3
        for clip in rows[name]:
            assert clip["bars"] == "none"
            assert clip["vmaf_motion"] > 0
            assert clip["blockiness"] is not None
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        total = sum(packet.size for packet in container.demux(stream))
        pixels = stream.width * stream.height * stream.frames
    bits = [
        clip["bits_per_pixel"] * (clip["end_frame"] - clip["start_frame"])
        for clip in rows["content"]
    ]
    assert sum(bits) == pytest.approx(8 * total * stream.frames / pixels, rel=0.01)
    assert rows["exact"][0]["bits_per_pixel"] is None
    assert "packets" in dict(rows["exact"][0]["signal_reasons"])["bits_per_pixel"]
    given = run(path, tmp_path, spans=[(0.0, 1.5)], signals=True, keep_frames=False)
    (clip,) = given["split_clips"]
    assert clip["vmaf_motion"] == pytest.approx(rows["content"][0]["vmaf_motion"], rel=0.3)
    assert "spans" in dict(clip["signal_reasons"])["static_share"]
    plain = run(path, tmp_path, keep_frames=False)
    assert "vmaf_motion" not in plain["split_clips"][0]
    assert plain["scan_videos"][0]["signals"] is None
