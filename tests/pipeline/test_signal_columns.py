"""Signals are columns of `clips` where split_clips makes them, and recipes find them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.catalog.index_writer import update_index
from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, subset_recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.subsets.correlations import score_columns
from clipmill.pipeline.subsets.freeze import create_subset
from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe
from clipmill.schemas import tables
from clipmill.schemas.errors import UsageError
from clipmill.stages.clip_signals import CLIP_SIGNALS, SIGNAL_UNITS
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.split_clips import CLIPS, SplitClips
from tests.synthetic import START, run_record, write_run, write_shard

WITH_SIGNALS = SplitClips(signals=True).table_schema
BARS = tables.clip_table(("safe_left", pa.float64()))
SAID = {"start_seconds": 0, "end_seconds": 2, "text": "a b c", "language": "en", "automatic": False}


def dataset(folder: Path, schema: pa.Schema, *, own_bars: bool = False) -> Path:
    steps = {
        "download_videos": ("download_videos", "d1", VIDEOS),
        "split_clips": ("split_clips", "c1", schema),
    }
    if own_bars:
        steps["find_bars"] = ("find_bars", "b1", BARS)
    videos = [
        {"source_key": v, "video_id": v, "duration_seconds": 4.0, "subtitles": [SAID]} for v in "ab"
    ]
    write_shard(folder, "download_videos", "d1", "000000", videos, VIDEOS)
    clips: list[dict[str, Any]] = [
        {
            "video_id": v,
            "clip_id": f"{v}-0-4000",
            "start_seconds": 0.0,
            "end_seconds": 4.0,
            "duration_seconds": 4.0,
        }
        for v in "ab"
    ]
    if schema is WITH_SIGNALS:
        for clip, share in zip(clips, (0.0, 1.0), strict=True):
            clip |= {"static_share": share, "bars": "letterbox", "safe_left": 0.25}
    write_shard(folder, "split_clips", "c1", "000000", clips, schema)
    if own_bars:
        rows = [{"clip_id": clip["clip_id"], "safe_left": 0.5} for clip in clips]
        write_shard(folder, "find_bars", "b1", "000000", rows, BARS)
    record = run_record("r1", START, steps)
    record["stages"][1]["settings"] = {"signals": schema is WITH_SIGNALS}
    write_run(folder, record)
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    with open_catalog(folder) as catalog:
        return catalog.ask("SELECT * FROM clips ORDER BY clip_id").read_all().to_pylist()


def frozen(folder: Path, recipe: str) -> list[str]:
    loaded = load_subset_recipe(subset_recipe_path(recipe), ready_made=SUBSET_FOLDER)
    with open_catalog(folder) as catalog:
        subset, _ = create_subset(catalog, loaded, name="mine", code_version="0")
    assert subset.info["scorers"]["static_share"]["stage"] == "split_clips"
    return [key for file in subset.files for key in pq.read_table(file)["clip_id"].to_pylist()]


def test_signals_are_in_clips_only_where_they_are_made(tmp_path):
    plain = rows_of(dataset(tmp_path / "plain", CLIPS))
    assert not set(CLIP_SIGNALS.names) & set(plain[0])
    folder = dataset(tmp_path / "signals", WITH_SIGNALS)
    rows = rows_of(folder)
    names = list(rows[0])
    assert names[: names.index("media")] == [*list(plain[0])[:-1], *CLIP_SIGNALS.names]
    assert [row["static_share"] for row in rows] == [0.0, 1.0]
    assert rows[0]["vmaf_motion"] is None
    with open_catalog(folder) as catalog:
        assert {"static_share", "vmaf_motion"} <= set(score_columns(catalog))
    assert update_index(folder) is not None
    assert rows_of(folder) == rows


def test_own_stage_keeps_the_name_of_its_column(tmp_path):
    row = rows_of(dataset(tmp_path, WITH_SIGNALS, own_bars=True))[0]
    assert (row["safe_left"], row["split_clips_safe_left"]) == (0.5, 0.25)
    assert row["bars"] == "letterbox"


def test_recipes_read_signals_or_say_how_to_make_them(tmp_path):
    assert frozen(dataset(tmp_path / "signals", WITH_SIGNALS), "finevideo") == ["a-0-4000"]
    with pytest.raises(UsageError, match=r"--set split_clips.signals=true"):
        frozen(dataset(tmp_path / "plain", CLIPS), "finevideo")


def test_signals_change_the_work_of_those_recipes_that_ask_for_them(tmp_path):
    def steps(settings: str, where: str = "motion > 1") -> dict[str, str]:
        path = tmp_path / "mine.yaml"
        path.write_text(
            f"stages:\n  download_videos:\n  split_clips: {settings}\n"
            f"  hash_frames: {{where: '{where}'}}\n"
        )
        return {step.label: step.fingerprint for step in build_plan(load_recipe(path)).steps}

    usual, measured = steps("{}"), steps("{signals: true}", "vmaf_motion > 1")
    assert usual == steps("{signals: false}")
    assert usual["download_videos"] == measured["download_videos"]
    assert usual["scan_videos"] != measured["scan_videos"]
    with pytest.raises(UsageError, match="vmaf_motion"):
        steps("{}", "vmaf_motion > 1")


def test_every_number_says_what_it_is():
    numbers = [field.name for field in CLIP_SIGNALS if pa.types.is_floating(field.type)]
    assert list(SIGNAL_UNITS) == [name for name in numbers if not name.startswith("safe_")]
    text = (Path(__file__).parents[2] / "docs/signals.md").read_text()
    for name in CLIP_SIGNALS.names:
        assert f"`{name}`" in text
