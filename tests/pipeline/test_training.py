"""The PyTorch dataset returns the frames of its clips, by time, in any kind of worker."""

from __future__ import annotations

import json
import logging
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch.utils.data import DataLoader

from clipmill.pipeline import training
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.training import ClipDataset
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.ids import clip_id
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.split_clips import CLIPS
from clipmill.stages.summarize_captions import SUMMARIES
from tests.numbered import number_in, render_numbered
from tests.synthetic import START, STEPS, run_record, write_run, write_shard

ROOT = Path(__file__).resolve().parents[2]
COUNT = 120
LATE_SECONDS = 300.0


@pytest.fixture(scope="module")
def numbered(tmp_path_factory) -> tuple[Path, dict[str, list[float]]]:
    """A dataset of videos with numbered frames, and the frame times of each."""
    dataset = tmp_path_factory.mktemp("training") / "dataset"
    (dataset / "media").mkdir(parents=True)
    settings = {
        "even": {},
        "uneven": {"uneven": True},
        "turned": {"rotation": 90},
        "section": {},
        "broken": {},
    }
    times, videos, clips, captions = {}, [], [], []
    for name, options in settings.items():
        video = f"file-{name}"
        path = dataset / "media" / f"{video}.mp4"
        own = render_numbered(path, COUNT, **options)
        # A section's file begins at 0, but its video's time does not.
        late = LATE_SECONDS if name == "section" else None
        times[video] = [seconds + (late or 0) for seconds in own]
        # One file is referenced by its absolute path.
        place = str(path) if name == "turned" else f"media/{path.name}"
        videos.append(
            {"source_key": name, "video_id": video, "path": place, "starts_at_seconds": late}
        )
        for first, last in ((0, 30), (33, 37), (50, 110)):
            start, end = times[video][first], times[video][last]
            clip = clip_id(video, start, end)
            clips.append(
                {
                    "video_id": video,
                    "clip_id": clip,
                    "start_seconds": start,
                    "end_seconds": end,
                    "duration_seconds": end - start,
                    "start_frame": first,
                    "end_frame": last,
                }
            )
            captions.append(
                {"clip_id": clip, "caption": None if first == 33 else f"{name} from {first}"}
            )
    (dataset / "media" / "file-broken.mp4").write_bytes(b"<html>not found</html>" * 50)
    for step, rows, schema in (
        ("download_videos", videos, VIDEOS),
        ("split_clips", clips, CLIPS),
        ("summarize_captions", captions, SUMMARIES),
    ):
        write_shard(dataset, step, STEPS[step][1], "000000", rows, schema)
    steps = {name: STEPS[name] for name in ("download_videos", "split_clips", "summarize_captions")}
    write_run(dataset, run_record("r1", START, steps))
    return dataset, times


def numbers_in(sample: dict) -> list[int]:
    return [number_in(image.permute(1, 2, 0).numpy()) for image in sample["video"]]


GOOD = "video_id <> 'file-broken'"


def test_uniform_frames_are_at_the_middles_of_equal_parts(numbered):
    dataset, times = numbered
    clips = ClipDataset(dataset, where=GOOD, frames=6, size=(120, 200), caption=None)
    assert len(clips) == 12
    for sample in clips:
        video = sample["clip_id"].rsplit("-", 2)[0]
        start, end = sample["start_seconds"], sample["end_seconds"]
        wanted = [start + (i + 0.5) * (end - start) / 6 for i in range(6)]
        shown = [
            max(n for n, seconds in enumerate(times[video]) if seconds <= at + 1e-9)
            for at in wanted
        ]
        assert numbers_in(sample) == shown, sample["clip_id"]
        assert sample["frame_seconds"].tolist() == pytest.approx(
            [times[video][n] for n in shown], abs=1e-6
        )
        assert sample["video"].dtype == torch.uint8
        assert sample["video"].shape == (6, 3, 120, 200)
        # The background colours: red, green, blue, in this order.
        ground = sample["video"][0, :, 48, 60].tolist()
        assert np.abs(np.array(ground) - (90, 120, 60)).max() < 8


def test_clip_with_too_few_frames_repeats_some(numbered):
    dataset, _ = numbered
    clips = ClipDataset(
        dataset, where=f"{GOOD} AND end_frame = 37", frames=8, size=None, caption=None
    )
    for sample in clips:
        numbers = numbers_in(sample)
        assert len(numbers) == 8
        assert set(numbers) == {33, 34, 35, 36}
        assert numbers == sorted(numbers)


def test_random_frames_depend_only_on_seed_epoch_and_index(numbered):
    dataset, _ = numbered

    def drawn(seed: int, epoch: int, order) -> dict[int, list[int]]:
        clips = ClipDataset(
            dataset,
            where=f"{GOOD} AND start_frame = 50",
            frames=4,
            size=None,
            sampling="random",
            seed=seed,
        )
        clips.set_epoch(epoch)
        return {i: numbers_in(clips[i]) for i in order}

    first = drawn(1, 0, [0, 1, 2, 3])
    assert first == drawn(1, 0, [3, 2, 1, 0])
    assert first != drawn(2, 0, [0, 1, 2, 3])
    assert first != drawn(1, 1, [0, 1, 2, 3])
    for numbers in first.values():
        assert all(50 <= number < 110 for number in numbers)
        assert numbers == sorted(numbers)
        assert max(np.diff(numbers)) <= 45, "one of each quarter of the clip"


def test_size_scales_and_crops_the_centre_without_distortion(numbered):
    dataset, _ = numbered
    for size, shape in ((64, (64, 64)), ((60, 100), (60, 100)), ((150, 100), (150, 100))):
        clips = ClipDataset(dataset, where="video_id = 'file-even'", frames=1, size=size)
        image = clips[0]["video"][0]
        assert image.shape == (3, *shape)
        # The lower right quarter of the picture begins at its middle.
        row = image[0, int(shape[0] * 0.65)].float()
        edge = int(torch.argmax((row[1:] - row[:-1]).abs())) + 1
        assert abs(edge - shape[1] / 2) <= 2


@pytest.mark.parametrize(
    ("start", "workers"), [("fork", 2), pytest.param("spawn", 1, marks=pytest.mark.slow)]
)
def test_all_kinds_of_workers_give_the_same_frames(start, workers, numbered):
    """Even if this process has videos open, and in a later epoch of the same workers."""
    dataset, _ = numbered
    clips = ClipDataset(
        dataset, where=GOOD, frames=3, size=48, sampling="random", seed=5, readers=1
    )
    loader = DataLoader(
        clips,
        batch_size=2,
        num_workers=workers,
        multiprocessing_context=start,
        persistent_workers=True,
    )
    for epoch in range(2):
        clips.set_epoch(epoch)
        expected = [clips[i] for i in range(len(clips))]
        batches = list(loader)
        assert [name for batch in batches for name in batch["clip_id"]] == [
            sample["clip_id"] for sample in expected
        ]
        assert [text for batch in batches for text in batch["caption"]] == [
            sample["caption"] for sample in expected
        ]
        found = torch.cat([batch["video"] for batch in batches])
        assert torch.equal(found, torch.stack([sample["video"] for sample in expected]))
        assert torch.equal(
            torch.cat([batch["frame_seconds"] for batch in batches]),
            torch.stack([sample["frame_seconds"] for sample in expected]),
        )
    del loader
    assert Path(clips._rows_path).is_file(), "a worker that ended took the rows along"


def test_captions_come_from_the_requested_column(numbered):
    dataset, _ = numbered
    clips = ClipDataset(dataset, where=GOOD, frames=1, size=16)
    assert clips.left_out == {"without a video file": 0, "without a caption": 4}
    assert {clips.row(i)["caption"] for i in range(len(clips))} == {
        f"{name} from {first}"
        for name in ("even", "uneven", "turned", "section")
        for first in (0, 50)
    }
    assert clips[0]["caption"] == clips.row(0)["caption"]
    assert "caption" not in ClipDataset(dataset, where=GOOD, frames=1, caption=None)[0]
    by_video = ClipDataset(dataset, where=GOOD, frames=1, caption="video_id")
    assert len(by_video) == 12
    assert by_video[0]["caption"] == "file-even"


def test_frozen_subset_gives_its_clips_and_reports_missing_ones(numbered, tmp_path):
    dataset = Path(shutil.copytree(numbered[0], tmp_path / "dataset"))
    with open_catalog(dataset) as catalog:
        rows = catalog.execute(
            "SELECT clip_id, video_id FROM clips WHERE start_frame = 50 "
            "AND video_id IN ('file-even', 'file-uneven') ORDER BY clip_id"
        ).fetchall()
    gone = ("file-gone-0-1000", "file-gone")
    folder = dataset / "subsets" / "late"
    folder.mkdir(parents=True)
    listed = sorted([*rows, gone])
    pq.write_table(
        pa.table(
            {
                "clip_id": [c for c, _ in listed],
                "video_id": [v for _, v in listed],
                "position": pa.array(range(3), pa.int64()),
            }
        ),
        folder / "clips-000000.parquet",
    )
    (folder / "subset.json").write_text(
        json.dumps(
            {
                "name": "late",
                "recipe": "late",
                "created_at": "2026-01-01T00:00:00+00:00",
                "n_clips": 3,
                "n_videos": 3,
                "hours": 0.0,
                "snapshot": "x",
                "hash": "x",
                "seed": 0,
                "rules": [],
                "scorers": {},
                "catalog": {},
                "files": [{"name": "clips-000000.parquet"}],
            }
        )
    )
    clips = ClipDataset(dataset, "late", frames=1, size=16)
    assert [clips.row(i)["clip_id"] for i in range(len(clips))] == [c for c, _ in rows]
    assert clips.left_out["removed since the subset was frozen"] == 1
    further = ClipDataset(dataset, "late", where="video_id = 'file-even' -- only", frames=1)
    assert len(further) == 1
    with pytest.raises(UsageError, match="did you mean late"):
        ClipDataset(dataset, "lote")


def test_broken_video_is_named_or_replaced_by_another_clip(numbered, caplog):
    dataset, _ = numbered
    where = "video_id IN ('file-broken', 'file-even')"
    strict = ClipDataset(dataset, where=where, frames=2, size=16)
    with pytest.raises(ClipmillError, match=r"clip file-broken-0-1200: .*file-broken\.mp4"):
        strict[0]
    with pytest.raises(ClipmillError, match="file-broken"):
        list(DataLoader(strict, batch_size=2, num_workers=1))
    lenient = ClipDataset(dataset, where=where, frames=2, size=16, on_error="substitute")
    loader = DataLoader(lenient, batch_size=4, num_workers=2)
    names = [name for batch in loader for name in batch["clip_id"]]
    assert len(names) == 4
    assert all(name.startswith("file-even-") for name in names)
    n = lenient.n_substituted
    assert n >= 2, "each broken clip counts, in whatever worker it was"
    with caplog.at_level(logging.WARNING, "clipmill.training"):
        assert [lenient[i]["clip_id"] for i in range(4)] == names
    assert lenient.n_substituted == 2 * n
    assert "file-broken-0-1200 is replaced" in caplog.text
    hopeless = ClipDataset(dataset, where="video_id = 'file-broken'", on_error="substitute")
    with pytest.raises(ClipmillError, match="11 clips in a row"):
        hopeless[0]


def test_open_videos_are_limited_and_none_crosses_a_fork(numbered):
    dataset, _ = numbered
    clips = ClipDataset(dataset, where=GOOD, frames=1, size=16, readers=2, caption=None)
    for i in range(len(clips)):
        clips[i]
        assert len(clips._videos) <= 2
    kept = list(clips._videos.values())
    clips._process = -1  # as a forked worker finds it
    clips[0]
    assert all(video not in kept for video in clips._videos.values())
    assert any(list(held.values()) == kept for held in training._inherited)


def test_pickle_has_no_rows_and_rows_are_deleted_with_their_owner(numbered, tmp_path):
    dataset, _ = numbered
    clips = ClipDataset(dataset, where=GOOD, frames=2, size=16, scratch=tmp_path)
    expected = clips[3]
    dumped = pickle.dumps(clips)
    assert len(dumped) < 8000
    again = pickle.loads(dumped)
    assert torch.equal(again[3]["video"], expected["video"])
    assert len(os.listdir(tmp_path)) == 1
    del again
    assert len(os.listdir(tmp_path)) == 1, "the copy took the rows along"
    del clips
    assert os.listdir(tmp_path) == []
    with pytest.raises(ClipmillError, match="rows are gone"):
        len(pickle.loads(dumped))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sampling": "dense"}, "'uniform' or 'random'"),
        ({"on_error": "ignore"}, "'raise' or 'substitute'"),
        ({"frames": 0}, "at least 1"),
        ({"size": (224,)}, "at least 1"),
        ({"seed": -1}, "at least 0"),
        ({"caption": "captoin"}, "caption"),
        ({"caption": "duration_seconds"}, "DOUBLE, not text"),
        ({"where": "similarty > 0.2"}, "similarity"),
        ({"where": "similarity >"}, "syntax error"),
        ({"where": "duration_seconds > 1000"}, "none matches where="),
        ({"where": "start_frame = 33"}, "5 without a caption"),
    ],
)
def test_invalid_arguments_are_reported_before_anything_is_read(arguments, words, numbered):
    with pytest.raises(UsageError, match=words):
        ClipDataset(numbered[0], **arguments)


def test_documented_example_runs(made, tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "training.md").read_text(), re.S)
    assert len([line for line in code.splitlines() if line.strip()]) <= 10
    (tmp_path / "demo-dataset").symlink_to(made.dataset)
    monkeypatch.chdir(tmp_path)
    found: dict = {}
    exec(compile(code.replace("similarity > 0.2", "similarity IS NOT NULL"), "page", "exec"), found)
    assert found["video"].shape[1:] == (8, 3, 224, 224)
    assert found["video"].dtype == torch.uint8
    assert all(found["captions"])
