"""Second 0 of a video is the container's start, wherever the file's own timestamps begin."""

from __future__ import annotations

import itertools
import json
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

import cv2
import imageio_ffmpeg
import numpy as np
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.jobs.run import run
from clipmill.jobs.verify import verify_dataset
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.exports.request import ExportRequest
from clipmill.pipeline.exports.run_export import run_export
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.training import ClipDataset
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.media.cutting.requests import CutOptions
from clipmill.stages.split_clips import CLIPS
from tests.numbered import number_in, numbers_of, render_numbered
from tests.synthetic import START, STEPS, run_record, write_run, write_shard

FFMPEG = imageio_ffmpeg.get_ffmpeg_exe()
COUNT, RATE = 90, 25
# Between the frames' times, even if those are a little late because sound starts the clock.
SPANS = ((0.51, 1.31), (1.99, 2.71))
RECIPE = """
stages:
  download_videos: {min_duration_seconds: null, min_height: null}
  split_clips: {min_clip_seconds: 0, frames_per_second: 8}
"""
# The same packets in other containers; `%` is the rendered MP4.
FILES = {
    "plain.mp4": (),
    "stream.ts": (),
    "recorder.ts": ("-output_ts_offset", "26000"),
    "late.mkv": ("-output_ts_offset", "4.5"),
    "late.mp4": ("-output_ts_offset", "7.25"),
    "live.flv": ("-output_ts_offset", "60"),
    "no_list.mp4": ("-an", "-use_editlist", "0"),
    "pictures_late.mp4": ("-itsoffset", "0.4", "-i", "%", "-map", "0:a", "-map", "1:v"),
}


def ffmpeg(*words: str | Path) -> bytes:
    return subprocess.run(
        [FFMPEG, "-v", "error", "-y", *map(str, words)],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    ).stdout


class World(NamedTuple):
    dataset: Path
    folder: Path
    files: dict[str, str]
    """File names by video id."""

    def rows(self, query: str) -> list[dict]:
        with open_catalog(self.dataset) as catalog:
            return catalog.ask(query).read_all().to_pylist()


def made(folder: Path, files: dict[str, tuple], spans=SPANS) -> World:
    """A dataset of these files, with or without given spans; also the MP4 made from each."""
    folder.mkdir()
    source = folder / "source.mp4"
    render_numbered(source, COUNT, audio="aac", keyframes=20)
    listed = []
    for name, options in files.items():
        words = [str(source) if word == "%" else word for word in options]
        ffmpeg("-i", source, *words, "-c", "copy", folder / name)
        ffmpeg("-i", folder / name, "-c", "copy", folder / f"{name}.again.mp4")
        row = {"path": str(folder / name), "video_id": name.replace(".", "-")}
        listed += [{**row, "start_seconds": start, "end_seconds": end} for start, end in spans] or [
            row
        ]
    (folder / "list.jsonl").write_text("\n".join(map(json.dumps, listed)))
    (folder / "recipe.yaml").write_text(RECIPE)
    loaded = load_recipe(
        folder / "recipe.yaml", sources=[str(folder / "list.jsonl")], engine="local"
    )
    run(loaded, folder / "dataset")
    return World(folder / "dataset", folder, {name.replace(".", "-"): name for name in files})


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> World:
    return made(tmp_path_factory.mktemp("clocks") / "world", FILES)


def number_of(jpeg: bytes) -> int:
    return number_in(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE))


def shown(path: Path, second: float) -> int:
    """The first frame that ffmpeg shows from a second on."""
    raw = ffmpeg(
        "-i",
        path,
        "-ss",
        second,
        "-frames:v",
        1,
        "-vf",
        "scale=200:120,format=gray",
        "-f",
        "rawvideo",
        "-",
    )
    return number_in(np.frombuffer(raw, np.uint8).reshape(120, 200))


def test_span_shows_the_same_as_ffmpeg_and_as_the_converted_mp4(world):
    clips = world.rows("SELECT * FROM clips ORDER BY video_id, start_seconds")
    by_video = {
        video: list(rows)
        for video, rows in itertools.groupby(clips, key=lambda clip: clip["video_id"])
    }
    assert set(by_video) == set(world.files)
    for video, rows in by_video.items():
        for clip, (start, end) in zip(rows, SPANS, strict=True):
            assert (clip["start_seconds"], clip["end_seconds"]) == (start, end), video
            assert clip["clip_id"] == f"{video}-{start * 1000:.0f}-{end * 1000:.0f}"
            file = world.folder / world.files[video]
            assert (shown(file, start), shown(file, end)) == (
                clip["start_frame"],
                clip["end_frame"],
            ), video
        again = file.with_name(f"{file.name}.again.mp4")
        assert shown(again, SPANS[0][0]) == rows[0]["start_frame"], video


def test_clock_of_each_file_is_recorded(world):
    said = {
        row["video_id"]: row["clock_starts_at_seconds"]
        for row in world.rows("SELECT video_id, clock_starts_at_seconds FROM videos")
    }
    assert (said["plain-mp4"], said["late-mkv"]) == (0.0, 4.5)
    assert said["pictures_late-mp4"] == 0.0
    assert 1.3 < said["stream-ts"] < 1.5
    assert 26001.3 < said["recorder-ts"] < 26001.5
    assert said["no_list-mp4"] == pytest.approx(2 / RATE)


def test_kept_frames_have_the_players_times(world):
    shards = (world.dataset / "frames").glob("*/*.parquet")
    frames = [frame for shard in shards for frame in pq.read_table(shard).to_pylist()]
    assert {frame["video_id"] for frame in frames} == set(world.files)
    for frame in frames:
        assert frame["frame_number"] == number_of(frame["jpeg"])
        late = 0.4 if frame["video_id"] == "pictures_late-mp4" else 0.0
        # Sound that begins a little before the pictures starts the clock.
        assert -1e-9 <= frame["seconds"] - late - frame["frame_number"] / RATE < 1.5 / RATE


def test_training_returns_the_clips_pictures(world):
    clips = ClipDataset(world.dataset, caption=None, frames=4, size=None)
    rows = {row["clip_id"]: row for row in world.rows("SELECT * FROM clips")}
    for sample in clips:
        row = rows[sample["clip_id"]]
        numbers = [number_in(image.permute(1, 2, 0).numpy()) for image in sample["video"]]
        count = row["end_frame"] - row["start_frame"]
        assert numbers[0] in range(row["start_frame"], row["start_frame"] + count // 3)
        assert row["end_frame"] - count // 3 <= numbers[-1] < row["end_frame"]
        assert row["start_seconds"] <= sample["frame_seconds"][0] < row["end_seconds"]


def test_show_reads_a_clip_at_the_same_times(world, tmp_path):
    """Its frames are decoded from the file, because the kept ones are gone."""
    dataset = Path(shutil.copytree(world.dataset, tmp_path / "dataset"))
    shutil.rmtree(dataset / "frames")
    [clip] = world.rows(
        f"SELECT * FROM clips WHERE video_id = 'recorder-ts' AND start_seconds = {SPANS[0][0]}"
    )
    said = CliRunner().invoke(
        app,
        ["show", str(dataset), clip["clip_id"], "--output", str(tmp_path / "strip.png")],
        catch_exceptions=False,
    )
    assert said.exit_code == 0, said.output
    strip = cv2.imread(str(tmp_path / "strip.png"), cv2.IMREAD_GRAYSCALE)
    height = min(strip.shape)
    first = strip[:height, : round(height * 200 / 120)]
    assert clip["start_frame"] <= number_in(first) < clip["end_frame"]


@pytest.mark.parametrize("media", ["exact", "copy"])
def test_exported_clips_show_their_rows_spans(media, world, tmp_path):
    options = CutOptions(media, preset="ultrafast" if media == "exact" else None)
    run_export(
        ExportRequest(world.dataset, tmp_path / "out", "parquet", engine="local", cut=options),
        code_version="test",
    )
    rows = pq.read_table(next((tmp_path / "out").rglob("*.parquet"))).to_pylist()
    assert len(rows) == len(SPANS) * len(world.files)
    clips = {row["clip_id"]: row for row in world.rows("SELECT * FROM clips")}
    for row in rows:
        (file,) = (tmp_path / "out").rglob(f"{row['clip_id']}.*")
        numbers, clip = numbers_of(file), clips[row["clip_id"]]
        if media == "exact":
            assert numbers == list(range(clip["start_frame"], clip["end_frame"]))
        else:
            assert numbers[0] <= clip["start_frame"] < clip["end_frame"] <= numbers[-1] + 1


def test_verify_uses_the_same_clock(world):
    assert verify_dataset(world.dataset) == 0


def test_clips_between_detected_cuts_use_that_clock(tmp_path):
    found = made(
        tmp_path / "world", {"stream.ts": (), "late.mkv": ("-output_ts_offset", "4.5")}, spans=()
    )
    for clip in found.rows("SELECT DISTINCT ON (video_id) * FROM clips ORDER BY start_seconds"):
        assert 0 <= clip["start_seconds"] < 1.5 / RATE
        assert clip["clip_id"].split("-")[-2] == str(round(clip["start_seconds"] * 1000))


def test_rows_of_older_versions_keep_the_files_own_time(tmp_path):
    """Their clips are named by it, and their clock column is null."""
    dataset = tmp_path / "dataset"
    (dataset / "media").mkdir(parents=True)
    render_numbered(dataset / "media" / "file-a.mkv", COUNT, start_seconds=4.5)
    write_shard(
        dataset,
        "download_videos",
        STEPS["download_videos"][1],
        "000000",
        [{"source_key": "a", "video_id": "file-a", "path": "media/file-a.mkv"}],
        VIDEOS,
    )
    write_shard(
        dataset,
        "split_clips",
        STEPS["split_clips"][1],
        "000000",
        [
            {
                "video_id": "file-a",
                "clip_id": "file-a-5500-6500",
                "start_seconds": 5.5,
                "end_seconds": 6.5,
                "duration_seconds": 1.0,
            }
        ],
        CLIPS,
    )
    write_run(
        dataset,
        run_record("r1", START, {name: STEPS[name] for name in ("download_videos", "split_clips")}),
    )
    sample = ClipDataset(dataset, caption=None, frames=5, size=None)[0]
    assert [number_in(image.permute(1, 2, 0).numpy()) for image in sample["video"]] == [
        27,
        32,
        37,
        42,
        47,
    ]
