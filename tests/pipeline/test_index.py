"""The index makes queries faster without changing their results."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.catalog.index import INDEX
from clipmill.pipeline.catalog.index_writer import update_index
from clipmill.schemas.errors import UsageError
from clipmill.stages.summarize_captions import SUMMARIES
from tests.conftest import Made
from tests.synthetic import STEPS, Truth, build_dataset, write_shard

SHARDS = 4
CLIPS_A_PART = 20


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return build_dataset(tmp_path_factory.mktemp("index") / "dataset", shards=SHARDS)


@pytest.fixture(scope="module")
def indexed(built: Truth, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset indexed in several parts."""
    copy = tmp_path_factory.mktemp("indexed") / "dataset"
    shutil.copytree(built.path, copy)
    report = update_index(copy, part_clips=CLIPS_A_PART)
    assert report.n_parts == report.n_new > 2
    assert report.n_clips == built.clips
    return copy


@pytest.fixture
def dataset(indexed: Path, tmp_path: Path) -> Path:
    return shutil.copytree(indexed, tmp_path / "dataset")  # with its files' times


def rows_of(dataset: Path, *, use_index: bool) -> dict[str, Any]:
    """Columns, types and rows of both views, and how many index parts they read."""
    found: dict[str, Any] = {}
    with open_catalog(dataset, threads=1, use_index=use_index) as catalog:
        for view in ("clips", "videos"):
            found[f"{view} columns"] = catalog.ask(f"DESCRIBE {view}").read_all().to_pylist()
            table = catalog.ask(f"SELECT * FROM {view} ORDER BY ALL").read_all()
            found[view] = table.schema, table.to_pylist()
    return found


def parts_read(dataset: Path) -> tuple[int, bool]:
    """How many index parts the view reads, and whether it also reads tables."""
    with open_catalog(dataset, threads=1) as catalog:
        plan = "".join(
            row[1]
            for row in catalog.execute("EXPLAIN SELECT similarity, caption FROM clips").fetchall()
        )
        coverage = catalog._coverage
        if coverage is None:
            assert " Join " in plan
            return 0, True
        return len(coverage.parts), " Join " in plan


def assert_same(dataset: Path) -> None:
    assert rows_of(dataset, use_index=True) == rows_of(dataset, use_index=False)


def manifest_of(dataset: Path) -> Path:
    (found,) = (dataset / INDEX).glob("*/manifest.json")
    return found


def test_views_are_the_same_without_a_join(dataset: Path):
    """Rows, columns and types; with an index they come from the wide files alone."""
    assert_same(dataset)
    parts, joins = parts_read(dataset)
    assert parts > 2
    assert not joins


def test_run_indexes_its_dataset_at_the_end(made: Made):
    """With lists, structs, maps and timestamps in its columns."""
    assert parts_read(made.dataset) == (1, False)
    assert_same(made.dataset)


def test_new_and_changed_shards_come_from_the_tables(dataset: Path):
    """A retry changes one group of shards, a run adds another; the rest is unchanged."""
    whole, _ = parts_read(dataset)
    clip = "generic-v0-0-1000"
    write_shard(
        dataset,
        "summarize_captions",
        "m1",
        "000000.retry9",
        [{"clip_id": clip, "caption": "the better one"}],
        SUMMARIES,
    )
    assert parts_read(dataset) == (whole - 1, True)
    assert_same(dataset)
    for step, (stage, fingerprint, schema) in STEPS.items():
        rows = pq.read_table(dataset / step / fingerprint / "000002.parquet").to_pylist()
        write_shard(dataset, step, fingerprint, "000012", renamed(rows), schema, stage=stage)
    assert parts_read(dataset) == (whole - 1, True)
    assert_same(dataset)
    with open_catalog(dataset) as catalog:
        found = catalog.execute("SELECT caption FROM clips WHERE clip_id = ?", [clip]).fetchall()
        new = catalog.execute("SELECT count(*) FROM clips WHERE video_id LIKE 'new-%'").fetchone()
    assert found == [("the better one",)]
    assert new[0] > 0
    update_index(dataset, part_clips=CLIPS_A_PART)
    assert not parts_read(dataset)[1]
    assert_same(dataset)


def renamed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows for other videos."""
    for row in rows:
        for name in ("source_key", "video_id", "clip_id"):
            if row.get(name) is not None:
                row[name] = f"new-{row[name]}"
    return rows


@pytest.mark.parametrize("when", ["before", "between", "after"])
def test_video_in_two_groups_counts_once(built: Truth, tmp_path: Path, when: str):
    """Whether its groups are in one part or two, or the second isn't indexed yet."""
    dataset = tmp_path / "dataset"
    shutil.copytree(built.path, dataset)
    if when == "after":
        update_index(dataset, part_clips=CLIPS_A_PART)
    for step, (stage, fingerprint, schema) in STEPS.items():
        rows = pq.read_table(dataset / step / fingerprint / "000000.parquet").to_pylist()
        if step == "download_videos":
            rows = [
                {**row, "source_key": f"another{n}", "url": "elsewhere"}
                for n, row in enumerate(rows)
            ]
        write_shard(dataset, step, fingerprint, "000020", rows, schema, stage=stage)
    if when != "after":
        update_index(dataset, part_clips=10_000 if when == "before" else CLIPS_A_PART)
    assert parts_read(dataset)[0] == {"before": 1}.get(when, parts_read(dataset)[0]) > 0
    assert_same(dataset)
    with open_catalog(dataset) as catalog:
        doubled = catalog.execute("SELECT clip_id FROM clips GROUP BY 1 HAVING count(*) > 1")
        assert doubled.fetchall() == []
        urls = catalog.execute("SELECT count(*) FROM clips WHERE url = 'elsewhere'").fetchone()
    assert urls == (0,)


def test_rewritten_shard_of_the_same_name_is_detected(dataset: Path):
    """A user deletes a shard and it is made again: other rows under the old name."""
    whole, _ = parts_read(dataset)
    path = dataset / "summarize_captions" / "m1" / "000003.parquet"
    rows = pq.read_table(path).to_pylist()
    path.unlink()
    write_shard(
        dataset,
        "summarize_captions",
        "m1",
        "000003",
        [{**row, "caption": "made again"} for row in rows],
        SUMMARIES,
    )
    assert parts_read(dataset) == (whole - 1, True)
    assert_same(dataset)


def test_other_columns_have_a_separate_index(dataset: Path):
    """A recipe without a stage has other columns; the next run's index replaces the old one."""
    record = json.loads((dataset / "runs" / "r2.json").read_text())
    record["stages"] = [s for s in record["stages"] if s["stage"] != "aesthetic_v1"]
    (dataset / "runs" / "r3.json").write_text(json.dumps({**record, "run_id": "r3"}))
    assert parts_read(dataset)[0] == 0
    assert_same(dataset)
    update_index(dataset)
    assert parts_read(dataset)[0] == 1
    # a catalog that has the old one open can go on
    assert len(list((dataset / INDEX).iterdir())) == 2
    write_shard(
        dataset,
        "summarize_captions",
        "m1",
        "000000.retry9",
        [{"clip_id": "x-0-1", "caption": "x"}],
        SUMMARIES,
    )
    update_index(dataset)
    assert len(list((dataset / INDEX).iterdir())) == 1


def test_readers_keep_their_files_for_one_generation(dataset: Path):
    """A catalog that was opened before the index changed can still be read."""
    with open_catalog(dataset) as catalog:
        before = catalog.execute("SELECT count(caption) FROM clips").fetchone()
        write_shard(
            dataset,
            "summarize_captions",
            "m1",
            "000001.retry9",
            [{"clip_id": "x-0-1", "caption": "x"}],
            SUMMARIES,
        )
        update_index(dataset, part_clips=CLIPS_A_PART)
        assert catalog.execute("SELECT count(caption) FROM clips").fetchone() == before
    named = {
        file["name"]
        for part in json.loads(manifest_of(dataset).read_text())["parts"]
        for file in (part["clips"], part["videos"])
    }
    on_disk = {path.name for path in manifest_of(dataset).parent.glob("*.parquet")}
    assert named < on_disk
    write_shard(
        dataset,
        "summarize_captions",
        "m1",
        "000001.retry10",
        [{"clip_id": "x-0-1", "caption": "x"}],
        SUMMARIES,
    )
    update_index(dataset, part_clips=CLIPS_A_PART)
    assert len(list(manifest_of(dataset).parent.glob("*.parquet"))) < len(named | on_disk) + 4


def test_small_parts_are_merged(dataset: Path):
    """Many runs that add little don't leave many files."""
    update_index(dataset)  # nothing new, so nothing is built
    before, _ = parts_read(dataset)
    write_shard(
        dataset,
        "summarize_captions",
        "m1",
        "000000.retry9",
        [{"clip_id": "x-0-1", "caption": "x"}],
        SUMMARIES,
    )
    report = update_index(dataset)
    assert (report.n_parts, report.n_new) == (1, 1)
    assert before > 1


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-10])


def garble(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-300] + random.Random(1).randbytes(292) + data[-8:])


DAMAGES = {
    "no manifest": lambda index: (index / "manifest.json").unlink(),
    "empty manifest": lambda index: (index / "manifest.json").write_text(""),
    "no object": lambda index: (index / "manifest.json").write_text("[1]"),
    "another version": lambda index: (index / "manifest.json").write_text('{"version": 99}'),
    "a list for an object": lambda index: (index / "manifest.json").write_text(
        '{"version": 1, "parts": [[]], "folders": {}, "doubled": 0, "removed": []}'
    ),
    "truncated part": lambda index: truncate(next(iter(index.glob("clips-*.parquet")))),
    "garbled footer": lambda index: garble(next(iter(index.glob("videos-*.parquet")))),
    "missing part": lambda index: next(iter(index.glob("clips-*.parquet"))).unlink(),
    "all deleted": lambda index: shutil.rmtree(index.parent),
    "a file in its place": lambda index: (
        shutil.rmtree(index.parent),
        index.parent.write_text("x"),
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_index_is_ignored(dataset: Path, damage: str):
    """Whatever is wrong with it, the tables have everything."""
    whole, _ = parts_read(dataset)
    DAMAGES[damage](manifest_of(dataset).parent)
    left, _ = parts_read(dataset)
    assert left < whole
    if left:
        assert_same(dataset)
    if damage != "a file in its place":
        update_index(dataset, part_clips=CLIPS_A_PART)
        assert parts_read(dataset) == (whole, False)


def test_manifest_cannot_reference_other_files(dataset: Path, tmp_path: Path):
    """A foreign manifest that names a file elsewhere is not followed."""
    path = manifest_of(dataset)
    value = json.loads(path.read_text())
    part = next(iter(path.parent.glob("clips-*.parquet")))
    shutil.copy(part, tmp_path / part.name)
    for entry in value["parts"]:
        if entry["clips"]["name"] == part.name:
            entry["clips"]["name"] = f"../../../{part.name}"
    path.write_text(json.dumps(value))
    assert len(value["parts"]) > parts_read(dataset)[0]
    assert_same(dataset)


def test_copied_dataset_has_correct_results(dataset: Path, tmp_path: Path):
    """A plain copy changes files' times, which invalidates the index; one that keeps times
    doesn't."""
    plain, exact = tmp_path / "plain", tmp_path / "exact"
    shutil.copytree(dataset, exact)
    shutil.copytree(dataset, plain, copy_function=shutil.copyfile)
    for folder in plain.glob("*/*"):
        os.utime(folder)
    assert parts_read(plain)[0] == 0
    assert parts_read(exact) == parts_read(dataset)
    assert_same(exact)


def test_odd_folder_names_are_not_patterns(built: Truth, tmp_path: Path):
    dataset = tmp_path / "a [1]* 'b'?"
    shutil.copytree(built.path, dataset)
    update_index(dataset, part_clips=CLIPS_A_PART)
    assert not parts_read(dataset)[1]
    assert_same(dataset)


def test_dataset_without_clips_has_no_index(tmp_path: Path):
    """Only downloads, or nothing at all."""
    (tmp_path / "sources").mkdir()
    assert update_index(tmp_path) is None
    assert not (tmp_path / INDEX).exists()


def test_query_creates_only_the_views_it_uses(dataset: Path):
    """Also for the second query: the others would list thousands of files."""
    for name in ("clips", "clips AS c", "memory.main.clips c TABLESAMPLE 50%"):
        with open_catalog(dataset) as catalog:
            for _ in range(2):
                catalog.ask(f"SELECT count(*) AS n FROM {name}").read_all()
                assert "failures" in catalog._missing
                assert "clips" not in catalog._missing


def test_index_keeps_the_sandbox_and_sql_errors(dataset: Path):
    """Both are the same as without an index."""
    with open_catalog(dataset) as catalog:
        with pytest.raises(UsageError, match="allow-external"):
            catalog.ask("SELECT * FROM read_csv('/etc/passwd')")
        with pytest.raises(UsageError, match=r"(?s)similarity.*LINE 1"):
            catalog.ask("SELECT similarty FROM clips").read_all()
        assert catalog.ask("SELECT count(*) AS n FROM clips").read_all().num_rows == 1
