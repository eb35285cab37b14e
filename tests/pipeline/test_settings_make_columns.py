"""A stage whose settings add columns: they are in `clips`, with their types, before any shard."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.catalog.index_writer import update_index
from clipmill.pipeline.recipes.plan import Plan, build_plan
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import UsageError
from clipmill.stages.caption_clip import CaptionClip
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.split_clips import CLIPS
from tests.synthetic import START, run_record, write_run, write_shard

STAGE = CaptionClip(
    model="http://a/v1#tiny",
    fields={"short": "text", "people": "integer", "title": "text"},
    questions={"watermark": "Is there a watermark?"},
)
CLIP = {"video_id": "v", "clip_id": "v-0-1000", "start_seconds": 0.0, "end_seconds": 1.0}
CAPTIONED = {
    "clip_id": "v-0-1000",
    "caption_clip": "A dog runs.",
    "short": "A dog runs.",
    "people": 0,
    "title": "SALE",
    "watermark": True,
    "watermark_answer": "yes",
}


def dataset(folder: Path, rows: list[dict[str, Any]], label: str = "caption_clip") -> Path:
    steps = {
        "download_videos": ("download_videos", "d1", VIDEOS),
        "split_clips": ("split_clips", "c1", CLIPS),
        label: (label, "k1", STAGE.table_schema),
    }
    video = {"source_key": "k", "video_id": "v"}
    write_shard(folder, "download_videos", "d1", "000000", [video], VIDEOS)
    write_shard(folder, "split_clips", "c1", "000000", [CLIP], CLIPS)
    if rows:
        write_shard(folder, label, "k1", "000000", rows, STAGE.table_schema)
    record = run_record("r1", START, steps)
    record["stages"][2] |= {"name": "caption_clip", "settings": STAGE.model_dump(mode="json")}
    write_run(folder, record)
    return folder


def first_row(folder: Path) -> dict[str, Any]:
    with open_catalog(folder) as catalog:
        (row,) = catalog.ask("SELECT * FROM clips").read_all().to_pylist()
        types = catalog.ask("SELECT typeof(people) AS a, typeof(watermark) AS b FROM clips")
        assert types.read_all().to_pylist() == [{"a": "BIGINT", "b": "BOOLEAN"}]
    return row


@pytest.mark.parametrize("rows", [[], [CAPTIONED]], ids=["none made", "made"])
def test_columns_of_settings_are_in_clips(tmp_path, rows):
    row = first_row(dataset(tmp_path, rows))
    expected = rows[0] if rows else dict.fromkeys(CAPTIONED)
    for name in ("caption_clip", "short", "people", "watermark", "watermark_answer"):
        assert row[name] == expected[name]
    # The video's title keeps its name.
    assert row["caption_clip_title"] == expected["title"]
    assert row["title"] is None


def test_index_holds_columns_of_settings(tmp_path):
    folder = dataset(tmp_path, [CAPTIONED])
    before = first_row(folder)
    report = update_index(folder)
    assert report is not None
    assert report.n_clips == 1
    assert first_row(folder) == before


def test_second_captioner_has_its_label_before_its_columns(tmp_path):
    with open_catalog(dataset(tmp_path, [CAPTIONED], "other")) as catalog:
        (row,) = catalog.ask("SELECT * FROM clips").read_all().to_pylist()
    assert (row["other_caption_clip"], row["other_people"]) == ("A dog runs.", 0)


def plan(folder: Path, after: str, settings: str = "fields: [short], ") -> Plan:
    path = folder / "mine.yaml"
    path.write_text(
        "stages:\n  download_videos:\n  split_clips:\n"
        f"  caption_clip: {{{settings}model: 'http://a/v1#tiny'}}\n  {after}\n"
    )
    return build_plan(load_recipe(path))


def test_later_stages_read_columns_of_settings(tmp_path):
    checked = plan(tmp_path, "check_captions: {caption: caption_clip.short}")
    (step,) = (step for step in checked.steps if step.label == "caption_clip")
    assert "short" in step.columns
    assert step.from_spec(step.spec()) == step
    with pytest.raises(UsageError, match=r"caption_clip writes only: clip_id, caption_clip"):
        plan(tmp_path, "check_captions: {caption: caption_clip.dense}")


def test_order_of_the_fields_counts_and_no_address_does(tmp_path):
    def fingerprint(settings: str) -> str:
        steps = plan(tmp_path, "check_captions: {caption: caption_clip.short}", settings).steps
        return next(step.fingerprint for step in steps if step.label == "caption_clip")

    one = fingerprint("fields: {short: text, dense: text}, ")
    assert one == fingerprint("fields: [short, dense], ")
    assert one != fingerprint("fields: [dense, short], caption_field: short, ")
