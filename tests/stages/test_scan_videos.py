"""The decode pass: true times, one decode, frames and statistics of every kind of file."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pytest

from clipmill.stages.media.read import measures
from clipmill.stages.protocol import Workspace
from tests.media import THREE_SHOTS, Scene, cached, render
from tests.scanning import run, scan


def image_of(frame: dict) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(frame["jpeg"], np.uint8), cv2.IMREAD_COLOR)


KINDS = {
    "plain": {},
    "uneven frame rate": {"uneven": True},
    "late start": {"start_seconds": 1.5},
    "odd size": {"pixels": "yuv444p", "size": (321, 181)},
    "interlaced": {"interlaced": True},
    "10 bit": {"pixels": "yuv420p10le"},
    "HDR": {"pixels": "yuv420p10le", "hdr": True},
    "with sound": {"audio": True},
    "turned": {"rotation": 90},
    "720p": {"size": (1280, 720), "scenes": (Scene("red", 1.0), Scene("blue", 1.0))},
    "VP8": {"codec": "libvpx", "suffix": ".webm"},
    "one colour plane": {"pixels": "gray", "codec": "ffv1", "suffix": ".mkv"},
}


@pytest.mark.parametrize("exact", [False, True], ids=["default", "exact"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_frame_is_seen_once_at_its_true_time(kind, exact, tmp_path):
    """Times are the container's, even with a late start or an uneven frame rate."""
    path, times = cached(**KINDS[kind])
    if KINDS[kind].get("suffix"):
        # Matroska rounds to milliseconds.
        times = [round(t, 3) for t in times]
    workspace = Workspace(tmp_path, tmp_path)

    row = scan(path, workspace, exact=exact)["scan_videos"].to_pylist()[0]

    assert row["error"] is None
    assert row["seconds"] == pytest.approx(times, abs=1e-6)
    assert row["frame_numbers"] == list(range(len(times)))
    assert row["end_seconds"] > times[-1]
    assert row["source_frames"] == len(times)
    assert row["decoded_frames"] - len(times) in ((0, 1) if exact else (0,))
    assert workspace.decoded_frames == row["decoded_frames"]


@pytest.mark.parametrize(
    "kind", ["plain", "720p", "odd size", "uneven frame rate", "10 bit", "interlaced"]
)
def test_default_statistics_equal_exact_ones(kind, tmp_path):
    """The fast way converts fewer pixels, but to the same values."""
    path, _ = cached(**KINDS[kind])
    workspace = Workspace(tmp_path, tmp_path)

    fast, exact = (
        dict(scan(path, workspace, exact=way)["scan_videos"].to_pylist()[0]["statistics"])
        for way in (False, True)
    )

    assert fast == exact


@pytest.mark.parametrize("kind", ["HDR", "turned"])
def test_statistics_of_given_spans_equal_the_whole_files(kind, tmp_path):
    """From the stored pictures, whether or not kept frames are rotated or tone-mapped."""
    path, times = cached(**KINDS[kind])
    workspace = Workspace(tmp_path, tmp_path)

    whole, spanned = (
        dict(scan(path, workspace, spans)["scan_videos"].to_pylist()[0]["statistics"])
        for spans in (None, [(0.0, times[-1] + 1)])
    )

    assert spanned == whole


@pytest.mark.parametrize("exact", [False, True], ids=["default", "exact"])
def test_kept_frames_are_upright_and_small(exact, tmp_path):
    path, _ = cached(rotation=90)

    tables = run(path, tmp_path, exact=exact, frame_short_side=90)

    row, image = tables["scan_videos"][0], image_of(tables["frames"][0])
    assert (row["width"], row["height"]) == (180, 320)
    assert image.shape == (160, 90, 3)
    # Rotated to the left, the bright corner is at the lower left.
    assert image[150, 5].mean() > image[10, 5].mean() + 20


def test_kept_frames_are_never_enlarged_and_show_their_frame(tmp_path):
    path, times = cached()

    tables = run(path, tmp_path)

    assert image_of(tables["frames"][0]).shape == (180, 320, 3)
    for frame in tables["frames"]:
        assert times[frame["frame_number"]] == frame["seconds"]
        blue, _, red = image_of(frame)[170, 300]
        shot = "red" if frame["seconds"] < 2 else "blue" if frame["seconds"] < 3.6 else "yellow"
        assert (red > 150) == (shot != "blue")
        assert (blue > 150) == (shot == "blue")


def test_motion_sharpness_and_brightness_distinguish_pictures(tmp_path):
    scenes = (Scene("grey", 1.0, speed=0), Scene("grey", 1.0, speed=12), Scene("white", 1.0))
    path, _ = cached(scenes)

    row = run(path, tmp_path)["scan_videos"][0]

    assert row["motion"][0] is None
    assert max(row["motion"][2:25]) < 0.2 < 1 < min(row["motion"][27:50])
    assert np.mean(row["brightness"][50:]) > np.mean(row["brightness"][:25]) + 80
    assert np.mean(row["sharpness"][:25]) > 3 * np.mean(row["sharpness"][50:])


def test_only_given_spans_are_decoded(tmp_path):
    path, times = cached(keyframes=10)
    spans = [(1.0, 1.5), (4.0, 4.4), (4.2, 4.6)]

    row = run(path, tmp_path, spans)["scan_videos"][0]

    inside = [i for i, t in enumerate(times) if 1.0 <= t < 1.5 or 4.0 <= t < 4.6]
    assert row["frame_numbers"] == inside
    assert row["seconds"] == pytest.approx([times[i] for i in inside])
    assert row["motion"][0] is None
    assert row["motion"][inside.index(100)] is None
    assert row["source_frames"] == len(times)
    # Both spans are within two or three GOPs of ten frames.
    assert len(inside) < row["decoded_frames"] <= 50


def test_video_without_required_spans_is_rejected_undecoded(tmp_path):
    path, _ = cached()

    row = run(path, tmp_path, boundaries="given")["scan_videos"][0]

    assert row["rejection"]["rule"] == "split_clips.boundaries"


def broken(kind, tmp_path):
    path = tmp_path / "broken.mp4"
    if kind == "html":
        path.write_text("<html><body>not found</body></html>")
    elif kind == "empty":
        path.touch()
    elif kind == "sound only":
        render(path, [Scene("red", 0.4)], audio=True)
        with av.open(str(path)) as source, av.open(str(tmp_path / "sound.mp4"), "w") as target:
            stream = target.add_stream_from_template(source.streams.audio[0])
            for packet in source.demux(source.streams.audio[0]):
                if packet.dts is not None:
                    packet.stream = stream
                    target.mux(packet)
        path = tmp_path / "sound.mp4"
    elif kind == "cut off mp4":
        whole, _ = cached()
        path.write_bytes(whole.read_bytes()[:4000])
    elif kind == "cut off webm":
        path = tmp_path / "broken.webm"
        whole, _ = cached(codec="libvpx", suffix=".webm")
        path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return path


@pytest.mark.parametrize("exact", [False, True], ids=["default", "exact"])
@pytest.mark.parametrize("kind", ["html", "empty", "sound only", "cut off mp4", "cut off webm"])
def test_invalid_or_truncated_video_is_bad_media_with_its_name(kind, exact, tmp_path):
    path = broken(kind, tmp_path)

    error = run(path, tmp_path, exact=exact)["scan_videos"][0]["error"]

    assert error["kind"] == "bad_media"
    assert str(path) in error["message"]


def test_sound_that_outlasts_the_pictures_is_not_truncation(tmp_path):
    """The header's duration is that of the longest stream."""
    whole, _ = cached(audio=True)
    path = tmp_path / "long_sound.mkv"
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        streams = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video" and packet.pts * packet.time_base > 3:
                continue
            packet.stream = streams[packet.stream.index]
            target.mux(packet)

    row = run(path, tmp_path)["scan_videos"][0]

    assert row["error"] is None
    assert len(row["seconds"]) == 76


def test_costly_statistics_are_kept_only_for_their_detector(tmp_path):
    path, _ = cached((Scene("red", 0.6),))
    kept = {
        detector: set(dict(run(path, tmp_path, detector=detector)["scan_videos"][0]["statistics"]))
        for detector in ("content", "histogram", "hash")
    }

    assert kept["histogram"] - kept["content"] == {measures.HISTOGRAM}
    assert kept["hash"] - kept["content"] == {measures.HASH}
    weighted = run(path, tmp_path, weights=(1, 1, 1, 1))["scan_videos"][0]["statistics"]
    assert set(dict(weighted)) - kept["content"] == {measures.EDGES}


def test_fixture_has_three_shots(tmp_path):
    """The other tests rely on it."""
    assert [scene.seconds for scene in THREE_SHOTS] == [2.0, 1.6, 2.4]
    assert len(cached()[1]) == 150
