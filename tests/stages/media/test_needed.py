"""Scans that decode only what is needed: every frame's number, time and place in the cuts."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from clipmill.stages.media.read.fast import FastVideo
from clipmill.stages.media.read.needed import NeededVideo
from clipmill.stages.media.read.needed_packets import LONGEST_SECONDS
from clipmill.stages.media.read.packets import read_packets
from clipmill.stages.split_clips import SplitClips
from tests.media import Scene, cuts_of, draw
from tests.numbered import number_in, render_numbered
from tests.odd_keys import FILES, render_odd
from tests.scanning import run
from tests.stages.media.test_strict_decoding import damaged

SIZE = (200, 120)
QUICK = ("x264_uneven.mkv", "x265_open.mkv")
MORE = ("x264_open_edited.mp4", "x264_open_part.ts", "x264_refresh_b.mp4")
# Nothing can be left out: no such pictures, fields, or no reliable times.
ALL_DECODED = ("vp9.webm", "mpeg4.mp4", "x264_open.avi", "x264_interlaced.mp4")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("needed")


def each(names):
    quick = (*QUICK, ALL_DECODED[-1])
    return [pytest.param(name, marks=() if name in quick else pytest.mark.slow) for name in names]


def read(video: FastVideo) -> dict[int, tuple[int, float]]:
    """The number that is shown and the time, by frame number."""
    found = [
        (picture.number, number_in(picture.full(SIZE)), picture.seconds)
        for picture in video.pictures()
    ]
    numbers = [number for number, _, _ in found]
    assert numbers == sorted(set(numbers))
    return {number: (shown, seconds) for number, shown, seconds in found}


@pytest.mark.parametrize("name", each(FILES))
def test_frames_have_the_numbers_and_times_of_a_full_read(name, folder):
    path = render_odd(name, folder)
    video, full = NeededVideo(path), FastVideo(path)
    found, truth = read(video), read(full)
    assert found == {number: truth[number] for number in found}
    left_out = video.left_out(list(found))
    assert dict(left_out) == {
        number: seconds for number, (_, seconds) in truth.items() if number not in found
    }
    assert video.end_seconds == full.end_seconds
    assert video.corrupt_seconds == full.corrupt_seconds == []
    if name in (*QUICK, *MORE):
        assert len(left_out) > 15
    if name in ALL_DECODED:
        assert not left_out
        assert video.decoded_frames == full.decoded_frames


# A b-pyramid, groups without one, open groups, many pictures in between, and HEVC.
KINDS = {
    "pyramid": ("libx264", {"bf": "3", "x264-params": "b-pyramid=normal:b-adapt=0"}),
    "flat": ("libx264", {"bf": "4", "x264-params": "b-pyramid=none:b-adapt=0"}),
    "open": ("libx264", {"bf": "3", "x264-params": "open-gop=1:keyint=12:b-adapt=2"}),
    "long": ("libx264", {"bf": "14", "x264-params": "b-adapt=2"}),
    "no_scenecut": ("libx264", {"bf": "3", "x264-params": "scenecut=0:b-adapt=0"}),
    "hevc": ("libx265", {"x265-params": "log-level=none:bframes=4:scenecut=0"}),
}


@pytest.fixture(scope="module")
def film(folder):
    """Fifteen shots of 0.6 to 1 s, so that cuts are at all distances from references."""
    colours = ("red", "blue", "yellow", "green", "grey", "white")
    scenes = [Scene(colours[i % 6], (15 + 7 * i % 11) / 25, 1 + i % 4) for i in range(15)]
    size = (192, 108)

    def made(kind: str) -> Path:
        path = folder / f"{kind}.mp4"
        codec, options = KINDS[kind]
        with av.open(str(path), "w") as output:
            stream = output.add_stream(codec, rate=25, options={"preset": "veryfast", **options})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for scene in scenes:
                count = round(scene.seconds * 25)
                for number in range(count):
                    image = draw(scene, number, count, size)
                    output.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
            output.mux(stream.encode())
        return path

    return made, cuts_of(scenes, 25)


def kinds(*quick: str):
    return [pytest.param(kind, marks=() if kind in quick else pytest.mark.slow) for kind in KINDS]


@pytest.mark.parametrize("kind", kinds("pyramid", "flat"))
def test_both_frames_of_each_cut_are_decoded(kind, film):
    made, cuts = film
    video = NeededVideo(made(kind))
    pictures = list(video.pictures())
    given = {picture.number: picture for picture in pictures}
    assert video.left_out(list(given)), "nothing is left out"
    missing = [cut for cut in cuts if not {cut - 1, cut} <= given.keys()]
    assert not missing
    for cut in cuts:
        steps = np.abs(given[cut].tiny.astype(int) - given[cut - 1].tiny).mean()
        assert steps > 5
    assert max(np.diff([picture.seconds for picture in pictures])) < LONGEST_SECONDS + 0.001


@pytest.mark.parametrize("kind", kinds("flat"))
def test_both_decoders_together_hardly_decode_more_than_all(kind, film):
    """Also where doubts come late in long groups, of which much must be decoded again."""
    made, _ = film
    full, video = FastVideo(made(kind), lean=True), NeededVideo(made(kind))
    count = sum(1 for _ in full.pictures())
    given = sum(1 for _ in video.pictures())
    assert given <= video.decoded_frames <= count + max(12, 0.02 * count)


def test_damage_ends_the_leaving_out(folder):
    """From the first damage on, all is decoded, as without leaving out, with the same losses."""
    whole = folder / "whole.mp4"
    render_numbered(whole, 100, keyframes=12)
    for seed in range(3):
        path = damaged(folder / "damaged.mp4", whole, range(60, 100), 0.2, seed)
        video, full = NeededVideo(path), FastVideo(path)
        found = {picture.number: picture.seconds for picture in video.pictures()}
        truth = {picture.number: picture.seconds for picture in full.pictures()}
        assert found == {number: truth[number] for number in found}
        left_out = dict(video.left_out(list(found)))
        assert {**found, **left_out} == truth
        assert left_out
        assert max(left_out) < 64  # stored in another order
        assert video.corrupt_seconds == full.corrupt_seconds
        assert video.corrupt_seconds


def test_damage_in_what_is_left_out_is_not_seen(folder):
    whole, path = folder / "calm.mp4", folder / "calm_damaged.mp4"
    render_numbered(whole, 60, keyframes=12)
    video, index = NeededVideo(whole), read_packets(whole)
    left_out = video.left_out([picture.number for picture in video.pictures()])
    places = {index.places[number] for number, _ in left_out}
    with av.open(str(whole)) as container:
        packets = [(p.pos, p.size) for p in container.demux(video=0) if p.size]
    content = bytearray(whole.read_bytes())
    for place in places:
        position, size = packets[place]
        content[position + size - 2] ^= 0x55
    path.write_bytes(content)
    video = NeededVideo(path)
    assert len(list(video.pictures())) + len(left_out) == 60
    assert video.corrupt_seconds == []


@pytest.mark.parametrize("kind", kinds("pyramid"))
def test_shots_and_measures_are_those_of_decoding_all(kind, film, tmp_path):
    """Cuts on the same frames; brightness and sharpness nearly equal, and motion alike.

    The pictures around a candidate reach further where some are left out, so one cut between such
    short shots may be taken for motion.
    """
    made, cuts = film
    both = [run(made(kind), tmp_path, detector="cascade", decode=how) for how in ("needed", "all")]
    needed, full = (found["scan_videos"][0] for found in both)
    assert needed["decoded_frames"] < 0.9 * needed["source_frames"]
    assert full["decoded_frames"] == full["source_frames"] == needed["source_frames"]
    for column in ("frame_numbers", "seconds", "end_seconds", "corrupt_seconds", "holes"):
        assert needed[column] == full[column]
    starts = [{shot["start_frame"] for shot in found["shots"]} for found in both]
    assert starts[0] <= starts[1]
    assert set(cuts) <= starts[1]
    assert len(starts[1] - starts[0]) <= 1
    clips = [{clip["clip_id"]: clip for clip in found["split_clips"]} for found in both]
    alike = clips[0].keys() & clips[1].keys()
    assert len(alike) >= len(clips[1]) - 2
    for one, other in ((clips[0][name], clips[1][name]) for name in alike):
        assert one["brightness"] == pytest.approx(other["brightness"], rel=0.01)
        assert one["sharpness"] == pytest.approx(other["sharpness"], rel=0.1)
        assert one["motion"] == pytest.approx(other["motion"], rel=0.5)


def test_other_detectors_refuse_to_be_told_what_to_decode():
    with pytest.raises(ValueError, match="sees all pictures anyway"):
        SplitClips(decode="all")
