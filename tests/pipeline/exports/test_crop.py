"""`--crop safe` cuts each clip to its safe rectangle, which any stage may have made."""

from __future__ import annotations

import json
import tarfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clipmill
from clipmill.jobs.cli import app
from clipmill.pipeline.exports.request import cut_options
from clipmill.schemas import tables
from clipmill.schemas.errors import UsageError
from tests.pipeline.exports.small_dataset import STEPS, Small, export, write_small
from tests.synthetic import START, run_record, write_run, write_shard

SAFE = ("safe_left", "safe_top", "safe_right", "safe_bottom")
BARS = tables.clip_table(
    ("bar_share", pa.float64()), *((name, pa.float64()) for name in SAFE), ("bars", pa.string())
)
WHOLE = (0.0, 0.0, 1.0, 1.0)
NONE = (None, None, None, None)
LETTERBOX = (0.0, 0.125, 1.0, 0.875)
NAN = float("nan")
# By clip: the rectangle, and what is cut (of 320 × 180) or the failure's message.
CASES: list[tuple[tuple[Any, ...], Any]] = [
    (LETTERBOX, (320, 132)),  # 22.5 and 157.5 move inwards, to 24 and 156
    (WHOLE, (320, 180)),
    (NONE, (320, 180)),
    ((0.25, 0.0, 0.75, 1.0), (160, 180)),
    ((0.0, NAN, 1.0, 1.0), "its safe rectangle makes no sense: safe_top is nan"),
    ((0.0, 0.0, None, 1.0), "its safe rectangle makes no sense: safe_right has no value"),
    (
        (0.8, 0.0, 0.2, 1.0),
        "its safe rectangle makes no sense: safe_left is 0.8 and safe_right 0.2",
    ),
    (
        (-0.1, 0.0, 1.0, 1.0),
        "its safe rectangle makes no sense: safe_left is -0.1, which is not a share from 0 to 1",
    ),
    (
        (0.0, 0.0, 320.0, 180.0),
        "its safe rectangle makes no sense: safe_right is 320, which is not a share from 0 to 1",
    ),
    ((0.5, 0.5, 0.54, 1.0), "the safe rectangle leaves 12 × 90 pixels, fewer than 16 on a side"),
    ((1e-9, 0.0, 1.0, 1.0000001), (320, 180)),
    ((0.5, 0.5, 1.0, 1.0), (160, 90)),
]
GOOD = [case for case in CASES if not isinstance(case[1], str)]


def with_rectangles(path: Path, *, stage: bool = True) -> Small:
    small = write_small(path)
    rows = [
        {
            "clip_id": clip,
            "bar_share": 0.25 if rectangle == LETTERBOX else 0.0,
            **dict(zip(SAFE, rectangle, strict=True)),
        }
        for clip, (rectangle, _) in zip(small.clip_ids, CASES, strict=True)
    ]
    if stage:
        write_shard(path, "find_bars", "b1", "000000", rows, BARS, stage="find_bars")
        steps = {**STEPS, "find_bars": ("find_bars", "b1", BARS)}
        write_run(path, run_record("r2", START + timedelta(minutes=1), steps))
    return small


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return with_rectangles(tmp_path_factory.mktemp("crop") / "dataset")


@pytest.mark.parametrize("format", ["webdataset", "huggingface", "parquet"])
def test_clips_are_cut_to_their_rectangles(format, small, tmp_path):
    done = export(
        small, tmp_path / "out", format, cut=cut_options("exact"), crop="safe", uncaptioned=True
    )
    assert done["counts"]["exported"] == len(GOOD)
    assert done["counts"]["failed"] == {"permanent": len(CASES) - len(GOOD)}
    failed = {
        row["clip_id"]: row["message"]
        for row in map(json.loads, (tmp_path / "out" / "failures.jsonl").read_text().splitlines())
    }
    wanted = dict(zip(small.clip_ids, CASES, strict=True))
    assert failed == {clip: said for clip, (_, said) in wanted.items() if isinstance(said, str)}
    cropped = [
        clip for clip, (_, size) in wanted.items() if size in ((320, 132), (160, 180), (160, 90))
    ]
    seconds = {row["clip_id"]: row["duration_seconds"] for row in small.rows["split_clips"]}
    assert done["cropped"]["clips"] == len(cropped)
    assert done["cropped"]["hours"] == pytest.approx(
        sum(seconds[clip] for clip in cropped) / 3600, abs=1e-5
    )
    for clip, sample in samples(tmp_path / "out", format).items():
        rectangle, size = wanted[clip]
        assert (sample["width"], sample["height"]) == size
        if clip in cropped:
            assert sample["asked"] == rectangle
            left, top, right, bottom = sample["true"]
            assert left >= rectangle[0]
            assert top >= rectangle[1]
            assert right <= rectangle[2]
            assert bottom <= rectangle[3]
            assert (round((right - left) * 320), round((bottom - top) * 180)) == size
        else:
            assert sample["true"] in (None, NONE)


def samples(folder: Path, format: str) -> dict[str, Any]:
    if format == "webdataset":
        with tarfile.open(folder / "clips-000000.tar") as tar:
            texts = [
                json.loads(tar.extractfile(member).read())
                for member in tar
                if member.name.endswith(".json")
            ]
        assert not any(set(SAFE) & {*row["scores"], *row} for row in texts)
        return {
            row["clip_id"]: {
                "width": row["media"]["width"],
                "height": row["media"]["height"],
                "asked": row["crop"] and tuple(row["crop"]["asked"].values()),
                "true": row["crop"] and tuple(row["crop"]["true"].values()),
            }
            for row in texts
        }
    [file] = [*folder.glob("clips-*.parquet"), *folder.glob("data/*.parquet")]
    table = pq.read_table(file).to_pylist()
    if format == "huggingface":
        assert "Pictures are cropped" in (folder / "README.md").read_text()
        assert "--crop safe" in (folder / "README.md").read_text()
    return {
        row["clip_id"]: {
            "width": row["media_width"],
            "height": row["media_height"],
            "asked": tuple(row[name] for name in SAFE),
            "true": tuple(row[f"media_crop_{name.removeprefix('safe_')}"] for name in SAFE),
        }
        for row in table
    }


def test_nothing_is_cropped_without_the_option(small, tmp_path):
    done = export(small, tmp_path / "out", "parquet", cut=cut_options("exact"))
    assert done["counts"]["exported"] == len(CASES)
    assert "cropped" not in done.manifest
    table = pq.read_table(tmp_path / "out" / "clips-000000.parquet")
    assert set(table["media_height"].to_pylist()) == {180}
    assert not [name for name in table.column_names if name.startswith("media_crop")]


def test_command_says_how_much_was_cropped(small, tmp_path, capsys):
    words = ["export", str(small.path), "--format", "parquet", "--output", str(tmp_path / "out")]
    words += ["--media", "exact", "--engine", "local", "--crop", "safe"]
    app([*words, "--where", "bar_share > 0"], standalone_mode=False)
    assert "cropped: 1 clip, " in capsys.readouterr().out
    # A finished export is left alone, and cropping makes it another one.
    app([*words, "--where", "bar_share > 0"], standalone_mode=False)
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(UsageError, match="different options were given"):
        app([*words[:-2], "--where", "bar_share > 0"], standalone_mode=False)


@pytest.mark.parametrize("media", ["copy", "none"])
def test_copied_pictures_cannot_be_cropped(media, small, tmp_path):
    with (
        clipmill.open(small.path) as opened,
        pytest.raises(UsageError, match=f"--crop safe requires --media exact: .* --media {media}"),
    ):
        opened.export(tmp_path / "out", "parquet", media=media, crop="safe")
    assert not (tmp_path / "out").exists()


def test_missing_columns_are_named(tmp_path):
    with_rectangles(tmp_path / "dataset", stage=False)
    with (
        clipmill.open(tmp_path / "dataset") as opened,
        pytest.raises(UsageError, match=r"--crop safe reads the columns .* has no safe_left and"),
    ):
        opened.export(tmp_path / "out", "parquet", media="exact", crop="safe")


def test_export_says_that_a_subset_was_meant_to_be_cropped(small, tmp_path):
    (tmp_path / "mine.yaml").write_text("rules: [{where: bar_share < 0.1, crop: safe}]")
    with clipmill.open(small.path) as opened:
        subset = opened.create_subset(str(tmp_path / "mine.yaml"))
    assert subset.info["regained"]["clips"] == 1
    options: dict[str, Any] = {"engine": "local", "keep_uncaptioned": True}
    done = subset.export(tmp_path / "whole", "parquet", media="exact", **options)
    assert done["notes"] == [
        "bars and overlays are still in 1 clip, which passed only to be cropped: "
        "--media exact --crop safe does so"
    ]
    done = subset.export(tmp_path / "part", "parquet", media="exact", crop="safe", **options)
    assert done["notes"] == []
