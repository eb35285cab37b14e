"""Frames requested by time are right, whatever a file claims about its key frames."""

from __future__ import annotations

import random
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.training import ClipDataset
from clipmill.schemas.ids import clip_id
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.media.cutting.cut import cut_clips
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest
from clipmill.stages.media.read import seek
from clipmill.stages.media.read.fast import FastVideo
from clipmill.stages.protocol import PerSecond
from clipmill.stages.split_clips import CLIPS
from tests.numbered import frames_of, number_in
from tests.odd_keys import FILES, READ_BY_DECORD, render_odd
from tests.scanning import run
from tests.synthetic import START, STEPS, run_record, write_run, write_shard

SIZE = (200, 120)
# One file of each kind always runs; the others take longer.
QUICK = (
    "x264.mp4",
    "x264_open.mkv",
    "x264_refresh_b.mp4",
    "x264_no_key_table.mp4",
    "x265_open.mp4",
    "x264_open_part.ts",
    "mpeg4.avi",
)
NOT_COPIED = (
    "x264_refresh_part.ts",
    "flv1.flv",
    "wmv2.asf",
    "x264.avi",
    "x264_open.avi",
    "x265_open.avi",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("odd")


def each(names):
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def numbers_at(path: Path) -> dict[float, int]:
    """The picture's number at each time, read from start to end."""
    video = FastVideo(path)
    found = {
        round(picture.seconds, 4): number_in(picture.full(SIZE)) for picture in video.pictures()
    }
    numbers = list(found.values())
    steps = np.diff(list(found))
    assert steps.max() < 0.13
    assert steps.min() > 0.03
    assert len(numbers) > 40
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
    return found


def number_of(jpeg: bytes) -> int:
    return number_in(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR))


@pytest.mark.parametrize("name", each(FILES))
def test_any_frame_equals_that_of_a_full_read(name, folder, monkeypatch):
    """In groups and alone, forward and backward; decord is used only where it counts correctly."""
    path = render_odd(name, folder)
    truth = numbers_at(path)
    given = []
    decord_way = seek.FrameReader._decord

    def watched(self, numbers):
        for item in decord_way(self, numbers):
            given.append(item)
            yield item

    monkeypatch.setattr(seek.FrameReader, "_decord", watched)
    reader = seek.FrameReader(path, threads=1)
    count = reader.index.n_frames
    assert count == len(truth)
    draw = random.Random(3)
    starts = [draw.randrange(count) for _ in range(12)]
    groups = [
        sorted(draw.sample(range(at, min(count, at + 40)), min(4, count - at))) for at in starts
    ] + [[number] for number in range(0, count, 11)]
    for group in groups:
        found = {
            number: number_in(image[:, :, ::-1]) for number, image in reader.images(group, SIZE)
        }
        assert found == {number: truth[round(reader.index.seconds(number), 4)] for number in group}
    assert bool(given) == (name in READ_BY_DECORD)


@pytest.mark.parametrize("name", each(FILES))
def test_given_spans_and_reread_frames_match_their_times(name, folder, tmp_path):
    path = render_odd(name, folder)
    truth = numbers_at(path)
    times = list(truth)
    firsts = [3, *(int(len(times) * share) for share in (0.25, 0.35, 0.55))]
    spans = [(times[at] - 0.0005, times[at + 20] - 0.0005) for at in firsts]
    made = run(path, tmp_path, spans, boundaries="given")
    (scanned,) = made["scan_videos"]
    inside = [at for at in times if any(start <= at < end for start, end in spans)]
    assert [round(at, 4) for at in scanned["seconds"]] == inside
    assert made["frames"]
    for frame in made["frames"]:
        assert number_of(frame["jpeg"]) == truth[round(frame["seconds"], 4)]
    again = list(
        seek.read_frames(path, [(start, end, [PerSecond(8)]) for start, end in spans], 120, 95)
    )
    assert len(again) > 12
    for frame in again:
        assert number_of(frame["jpeg"]) == truth[round(frame["seconds"], 4)]


def test_training_frames_match_their_times(folder, tmp_path):
    """A `ClipDataset` over clips of all the quick kinds of files."""
    videos, clips, truths = [], [], {}
    for place, name in enumerate(QUICK):
        path = render_odd(name, folder)
        video = f"file-{place}"
        truths[video] = numbers_at(path)
        times = list(truths[video])
        videos.append({"source_key": name, "video_id": video, "path": str(path)})
        for first, last in ((2, 20), (33, 60), (44, 59)):
            start, end = times[first], times[last]
            clips.append(
                {
                    "video_id": video,
                    "clip_id": clip_id(video, start, end),
                    "start_seconds": start,
                    "end_seconds": end,
                    "duration_seconds": end - start,
                }
            )
    steps: dict[str, tuple[str, str, pa.Schema]] = {}
    for step, rows, schema in (("download_videos", videos, VIDEOS), ("split_clips", clips, CLIPS)):
        write_shard(tmp_path, step, STEPS[step][1], "000000", rows, schema)
        steps[step] = STEPS[step]
    write_run(tmp_path, run_record("r1", START, steps))
    dataset = ClipDataset(tmp_path, frames=6, size=(120, 200), caption=None, readers=2)
    assert len(dataset) == len(clips)
    for index in random.Random(5).sample(range(len(dataset)), len(dataset)):
        sample = dataset[index]
        truth = truths[sample["clip_id"].rsplit("-", 2)[0]]
        shown = [number_in(image.permute(1, 2, 0).numpy()) for image in sample["video"]]
        assert shown == [truth[round(at, 4)] for at in sample["frame_seconds"].tolist()]


@pytest.mark.parametrize("media", ["copy", "exact"])
@pytest.mark.parametrize("name", each(FILES))
def test_cut_clips_match_their_recorded_spans(name, media, folder, tmp_path):
    """Every picture in a clip is the source's at its time; a copy begins no later than asked."""
    path = render_odd(name, folder)
    if media == "copy" and name in NOT_COPIED:
        pytest.skip("it has no clean start, no container for the codec, or no time")
    truth = numbers_at(path)
    times = list(truth)
    firsts = [0, *(int(len(times) * share) for share in (0.25, 0.4, 0.6))]
    requests = [
        CutRequest(
            f"c{first}",
            times[first],
            times[min(first + 18, len(times) - 1)],
            tmp_path / f"c{first}.mp4",
        )
        for first in firsts
    ]
    for request, result in zip(requests, cut_clips(path, requests, CutOptions(media)), strict=True):
        assert result.problem is None
        shown = {seconds: number_in(image) for seconds, image in frames_of(result.path)}
        assert result.n_frames == len(shown)
        start, end = result.start_seconds, result.end_seconds
        assert start <= request.start_seconds + 0.001
        assert end >= request.end_seconds - 0.001
        if media == "exact":
            assert start == pytest.approx(request.start_seconds, abs=0.001)
        if start < times[0] - 0.001:
            continue  # the file's edit list hides these pictures
        promised = [number for at, number in truth.items() if start - 0.001 <= at < end - 0.001]
        assert list(shown.values()) == promised
        begin = min(shown)
        for seconds, number in shown.items():
            nearest = min(times, key=lambda at: abs(at - start - (seconds - begin)))
            assert truth[nearest] == number


def test_file_without_a_clean_start_is_not_copied(folder, tmp_path):
    """A recording of a stream that never restarts: bad media, with advice."""
    path = render_odd("x264_refresh_part.ts", folder)
    times = list(numbers_at(path))
    requests = [CutRequest("c", times[5], times[20], tmp_path / "c.mp4")]
    (result,) = cut_clips(path, requests, CutOptions("copy"))
    assert result.problem.kind == "bad_media"
    assert "--media exact" in result.problem.message
    assert not list(tmp_path.iterdir())
    (result,) = cut_clips(path, requests, CutOptions("exact"))
    assert result.n_frames == 15
