"""verify: every kind of planted damage is found, and nothing else."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.catalog.index_writer import update_index
from clipmill.pipeline.dataset.locks import dataset_lock
from clipmill.pipeline.dataset.shards import SHARD_METADATA_KEY
from clipmill.pipeline.dataset.tombstones import (
    Tombstone,
    new_tombstone,
    tombstones,
    write_tombstone,
)
from clipmill.pipeline.ingest.source_shards import write_sources
from clipmill.pipeline.removal.purge import finish_removals
from clipmill.pipeline.verify import Verification, verify
from clipmill.pipeline.verify.repair import repair
from clipmill.schemas import tables
from clipmill.schemas.ids import source_key
from clipmill.stages.scan_videos import FRAMES
from clipmill.stages.split_clips import SHOTS
from clipmill.stages.tag_clips import TAGS
from tests.synthetic import STEPS, UPSTREAM, build_dataset, write_shard

Plant = Callable[[Path], None]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic dataset like one from a run: with footers and retry requests."""
    dataset = build_dataset(tmp_path_factory.mktemp("verify") / "dataset").path
    for place in ("scan_videos/s0", "split_clips/c0"):  # half a run, for tests of the views
        shutil.rmtree(dataset / place)
    (dataset / "runs" / "r1.json").unlink()
    (dataset / "split_clips" / "c1" / ".000000.k3j2.tmp").unlink()
    for path in sorted((dataset / "sources").glob("*.parquet")):
        write_sources(path.parent, path.stem, pq.read_table(path))
    (dataset / "retries").mkdir()
    for step, number in (("download_videos", 1), ("caption_frames", 2)):
        fingerprint = STEPS[step][1]
        for path in (dataset / step / fingerprint).glob(f"*.retry{number}.parquet"):
            keys = pq.read_table(path)[STEPS[step][2].names[0]].to_pylist()
            (dataset / "retries" / f"{path.stem}.json").write_text(
                json.dumps({"step": step, "fingerprint": fingerprint, "keys": keys})
            )
            go_through(dataset, step, path.stem)
    record = dataset / "runs" / "r2.json"
    record.write_text(record.read_text())  # the run ended after the retries were requested
    return dataset


def go_through(dataset: Path, begin: str, shard: str) -> None:
    """Like a retry, which leaves a shard in every table from its step on, with or without rows."""
    reached = {begin}
    for step, (stage, fingerprint, schema) in STEPS.items():
        if step != begin and not reached & set(UPSTREAM.get(step, ())):
            continue
        reached.add(step)
        more = {"scan_videos": {"frames": FRAMES}, "split_clips": {"shots": SHOTS}}
        for table, kind in {step: schema, **more.get(step, {})}.items():
            if not (dataset / table / fingerprint / f"{shard}.parquet").exists():
                write_shard(dataset, step, fingerprint, shard, [], kind, stage=stage, table=table)


@pytest.fixture
def dataset(built: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(built, tmp_path / "dataset"))


def check(dataset: Path, *, media: bool = False) -> Verification:
    return verify(dataset, media=media)


def faults(report: Verification) -> list[tuple[str, str]]:
    return [(fault.check, fault.where) for fault in report.faults]


def file(dataset: Path, step: str, shard: str = "000001") -> Path:
    return dataset / step / STEPS[step][1] / f"{shard}.parquet"


def rewrite(
    dataset: Path, step: str, change: Callable[[list[dict]], object], shard: str = "000001"
) -> None:
    """Changes rows of a shard, with a footer as valid as the runner's."""
    rows = pq.read_table(file(dataset, step, shard)).to_pylist()
    changed = change(rows)
    rows = changed if isinstance(changed, list) else rows
    stage, fingerprint, schema = STEPS[step]
    write_shard(dataset, step, fingerprint, shard, rows, schema, stage=stage)


def with_footer(path: Path, **values: object) -> None:
    table = pq.read_table(path)
    metadata = json.loads(table.schema.metadata[SHARD_METADATA_KEY])
    pq.write_table(
        table.replace_schema_metadata(
            {SHARD_METADATA_KEY: json.dumps({**metadata, **values}).encode()}
        ),
        path,
    )


def cast(path: Path, column: str, kind: pa.DataType) -> None:
    table = pq.read_table(path)
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, table[column].cast(kind)), path)


def touch(path: Path, text: str = "x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_intact_dataset_has_no_faults_and_reports_what_was_read(dataset: Path):
    report = check(dataset)
    assert report.faults == report.notes == []
    assert report.pending == 0
    files = list(dataset.rglob("*.parquet"))
    rows = sum(pq.read_metadata(path).num_rows for path in files)
    assert report.checked == {"runs": 1, "shards": len(files), "rows": rows}


def test_index_and_foreign_files_are_not_faults(dataset: Path):
    update_index(dataset)
    touch(dataset / "notes.txt")
    touch(dataset / "world" / "film.mp4")
    touch(dataset / "logs" / "r2" / "driver.jsonl")
    report = check(dataset)
    assert report.faults == report.notes == []
    assert report.others == ["notes.txt", "world/"]
    assert report.checked["index_files"] == 2


def half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def swap(dataset: Path) -> None:
    """Replaces one shard with another, like a wrong copy."""
    shutil.copy(file(dataset, "count_words", "000000"), file(dataset, "count_words"))


def add_frames(dataset: Path, table: str) -> None:
    step = "scan_videos" if table == "frames" else "split_clips"
    path = dataset / table / STEPS[step][1] / "000001.parquet"
    found = pq.read_table(path)
    rows = [*found.to_pylist(), {"video_id": "generic-v99"}]
    pq.write_table(pa.Table.from_pylist(rows, found.schema), path)


def same_clip_twice(dataset: Path) -> None:
    """A clip of the first shard under a video of the second one, in all tables."""
    clip = "generic-v0-0-1000"
    video = pq.read_table(file(dataset, "split_clips"))["video_id"][0].as_py()
    row = {"video_id": video, "clip_id": clip, "start_seconds": 0.0, "end_seconds": 1.0}
    rewrite(dataset, "split_clips", lambda rows: rows.append(row))
    for step in list(STEPS)[3:]:
        rewrite(dataset, step, lambda rows: rows.append({"clip_id": clip}))


def same_source_twice(dataset: Path) -> None:
    again = pq.read_table(dataset / "sources" / "000000.parquet").to_pylist()[0]
    path = dataset / "sources" / "000001.parquet"
    rows = [*pq.read_table(path).to_pylist(), again]
    write_sources(path.parent, path.stem, pa.Table.from_pylist(rows, tables.SOURCES))
    rule = {"rule": "r", "detail": "d"}
    rewrite(
        dataset,
        "download_videos",
        lambda rows: rows.append({"source_key": again["source_key"], "rejection": rule}),
    )


def without_source(dataset: Path) -> None:
    row = {"source_key": "b" * 20, "error": {"kind": "permanent", "message": "gone"}}
    rewrite(dataset, "download_videos", lambda rows: rows.append(row))


PLANTS: dict[str, tuple[Plant, list[tuple[str, str]]]] = {
    "truncated": (
        lambda d: half(file(d, "split_clips")),
        [("unreadable", "split_clips/c1/000001.parquet")],
    ),
    "empty": (
        lambda d: file(d, "tag_clips").write_bytes(b""),
        [("unreadable", "tag_clips/t1/000001.parquet")],
    ),
    "no Parquet": (
        lambda d: file(d, "embed_clips").write_text("<html>"),
        [("unreadable", "embed_clips/e1/000001.parquet")],
    ),
    "truncated sources": (
        lambda d: half(d / "sources" / "000001.parquet"),
        [("unreadable", "sources/000001.parquet")],
    ),
    "truncated frames": (
        lambda d: half(d / "frames" / "s1" / "000001.parquet"),
        [("unreadable", "frames/s1/000001.parquet")],
    ),
    "missing, with others made from it": (
        lambda d: file(d, "embed_clips").unlink(),
        [("missing", "embed_clips/e1/000001.parquet")],
    ),
    "missing, the last of its kind": (
        lambda d: file(d, "count_words").unlink(),
        [("missing", "count_words/w1/000001.parquet")],
    ),
    "missing retry": (
        lambda d: file(d, "summarize_captions", "000000.retry2").unlink(),
        [("missing", "summarize_captions/m1/000000.retry2.parquet")],
    ),
    "missing sources": (
        lambda d: (d / "sources" / "000002.parquet").unlink(),
        [("missing", "sources/000002.parquet")],
    ),
    "missing shots": (
        lambda d: (d / "shots" / "c1" / "000001.parquet").unlink(),
        [("missing", "shots/c1/000001.parquet")],
    ),
    "a column is missing": (
        lambda d: pq.write_table(
            pq.read_table(file(d, "tag_clips")).drop_columns(["tags"]), file(d, "tag_clips")
        ),
        [("schema", "tag_clips/t1/000001.parquet")],
    ),
    "a column is of another type": (
        lambda d: cast(file(d, "score_aesthetic"), "aesthetic", pa.float64()),
        [("schema", "score_aesthetic/a1/000001.parquet")],
    ),
    "of another type in a custom stage": (
        lambda d: cast(file(d, "count_words"), "n_words", pa.int64()),
        [("schema", "count_words/w1/000001.parquet")],
    ),
    "a column too many": (
        lambda d: pq.write_table(
            pq.read_table(file(d, "tag_clips")).append_column(
                "more", pa.nulls(pq.read_metadata(file(d, "tag_clips")).num_rows, pa.string())
            ),
            file(d, "tag_clips"),
        ),
        [("schema", "tag_clips/t1/000001.parquet")],
    ),
    "no footer": (
        lambda d: pq.write_table(
            pq.read_table(file(d, "tag_clips")).replace_schema_metadata(), file(d, "tag_clips")
        ),
        [("footer", "tag_clips/t1/000001.parquet")],
    ),
    "counts that are not the rows'": (
        lambda d: with_footer(file(d, "tag_clips"), kept=1),
        [("footer", "tag_clips/t1/000001.parquet")],
    ),
    "of another shard": (swap, [("footer", "count_words/w1/000001.parquet")]),
    "of another fingerprint": (
        lambda d: with_footer(file(d, "tag_clips"), fingerprint="t0"),
        [("footer", "tag_clips/t1/000001.parquet")],
    ),
    "a temporary file": (
        lambda d: touch(d / "tag_clips" / "t1" / ".000001~0a1b2c3d.tmp"),
        [("temporary", "tag_clips/t1/.000001~0a1b2c3d.tmp")],
    ),
    "a stray name": (
        lambda d: touch(d / "tag_clips" / "t1" / "000001 (copy).parquet"),
        [("orphan", "tag_clips/t1/000001 (copy).parquet")],
    ),
    "a table of no run": (
        lambda d: shutil.copytree(d / "tag_clips" / "t1", d / "tag_clips" / "t9"),
        [("orphan", "tag_clips/t9")],
    ),
    "a step of no run": (
        lambda d: shutil.copytree(d / "tag_clips", d / "guess_clips"),
        [("orphan", "guess_clips/t1")],
    ),
    "a base that the sources lack": (
        lambda d: shutil.copy(file(d, "tag_clips"), file(d, "tag_clips", "000077")),
        [("orphan", "tag_clips/t1/000077.parquet")],
    ),
    "a retry that nobody asked for": (
        lambda d: (
            (d / "retries" / "000001.retry9.json").unlink(missing_ok=True)
            or write_shard(d, "tag_clips", "t1", "000001.retry9", [], TAGS)
        ),
        [("orphan", "tag_clips/t1/000001.retry9.parquet")],
    ),
    "a dead worker's folder": (
        lambda d: touch(d / ".scratch" / "scan_videos-0a" / "f"),
        [("temporary", ".scratch/scan_videos-0a")],
    ),
    "a dead download's folder": (
        lambda d: touch(d / "media" / ".work" / "k" / "download"),
        [("temporary", "media/.work/k")],
    ),
    "a note of no source": (
        lambda d: touch(d / "media" / ".found" / f"{'c' * 20}.json", "{}"),
        [("orphan", f"media/.found/{'c' * 20}.json")],
    ),
    "a claim of no source": (
        lambda d: touch(d / "media" / ".claims" / "0a" / "v", "c" * 20),
        [("orphan", "media/.claims/0a/v")],
    ),
    "media that no table names": (
        lambda d: touch(d / "media" / "stray.mp4"),
        [("orphan", "media/stray.mp4")],
    ),
    "frames of an unknown video": (
        lambda d: add_frames(d, "frames"),
        [("orphan", "frames/s1/000001.parquet")],
    ),
    "shots of an unknown video": (
        lambda d: add_frames(d, "shots"),
        [("orphan", "shots/c1/000001.parquet")],
    ),
    "a clip that was never split": (
        lambda d: rewrite(d, "tag_clips", lambda rows: rows.append({"clip_id": "v-0-1"})),
        [("orphan", "tag_clips/t1/000001.parquet")],
    ),
    "a video without its source": (
        without_source,
        [("orphan", "download_videos/d1/000001.parquet")],
    ),
    "a key twice": (
        lambda d: rewrite(d, "tag_clips", lambda rows: rows.append(rows[0])),
        [("double", "tag_clips/t1/000001.parquet")],
    ),
    "a clip twice": (
        lambda d: rewrite(d, "split_clips", lambda rows: rows.append(rows[0])),
        [("double", "split_clips/c1/000001.parquet")],
    ),
    "a clip in two base shards": (same_clip_twice, [("double", "split_clips/c1/000001.parquet")]),
    "a source in two base shards": (same_source_twice, [("double", "sources/000001.parquet")]),
    "a lost key": (
        lambda d: rewrite(d, "tag_clips", lambda rows: rows[1:]),
        [("accounting", "tag_clips/t1/000001.parquet")],
    ),
    "a lost video": (
        lambda d: rewrite(
            d, "split_clips", lambda rows: [row for row in rows if row["video_id"] != "generic-v9"]
        ),
        [("accounting", "split_clips/c1/000001.parquet"), ("orphan", "shots/c1/000001.parquet")],
    ),
    "a run's record that is cut short": (
        lambda d: (
            shutil.copy(d / "runs" / "r2.json", d / "runs" / "r1.json")
            and half(d / "runs" / "r1.json")
        ),
        [("unreadable", "runs/r1.json")],
    ),
    "a retry's request that is cut short": (
        lambda d: touch(d / "retries" / "000000.retry7.json", '{"step"'),
        [("unreadable", "retries/000000.retry7.json")],
    ),
}


@pytest.mark.parametrize("plant", PLANTS, ids=lambda name: name.replace(" ", "-"))
def test_only_the_planted_fault_is_found(dataset: Path, plant: str):
    do_harm, expected = PLANTS[plant]
    do_harm(dataset)
    report = check(dataset)
    assert sorted(faults(report)) == sorted(expected)
    assert all(fault.what and fault.next_step for fault in report.faults)


def test_unfinished_work_of_an_active_run_is_not_a_fault(dataset: Path):
    """Neither temporary files nor missing shards; damage still is."""
    touch(dataset / "tag_clips" / "t1" / ".000001~0a1b2c3d.tmp")
    file(dataset, "count_words", "000000").unlink()
    half(file(dataset, "embed_clips"))
    with dataset_lock(dataset):
        report = check(dataset)
    assert report.is_running
    assert faults(report) == [("unreadable", "embed_clips/e1/000001.parquet")]
    assert len(faults(check(dataset))) == 3


@pytest.mark.parametrize("state", ["running", "failed", "stopped"])
def test_unfinished_work_of_a_stopped_run_is_pending(dataset: Path, state: str):
    path = dataset / "runs" / "r2.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": state}))
    file(dataset, "count_words", "000000").unlink()
    file(dataset, "score_similarity", "000002").unlink()
    report = check(dataset)
    assert report.faults == []
    assert report.pending == 2


def test_killed_download_is_kept_while_a_run_can_resume_it(dataset: Path):
    key = source_key("https://media.example/1.mp4")
    touch(dataset / "media" / ".work" / key / "download.mp4")
    touch(dataset / "media" / ".work" / ("c" * 20) / "download.mp4")
    both = [("temporary", f"media/.work/{name}") for name in sorted((key, "c" * 20))]
    assert faults(check(dataset)) == both
    for path in dataset.glob("*/*/000000*.parquet"):
        path.unlink()
    path = dataset / "runs" / "r2.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "state": "stopped"}))
    assert faults(check(dataset)) == [("temporary", f"media/.work/{'c' * 20}")]


def test_work_excluded_from_a_finished_run_is_pending(dataset: Path):
    """Stages after --until, and sources that were added later."""
    path = dataset / "runs" / "r2.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "until": "summarize_captions", "last_shard": "000001"}))
    file(dataset, "count_words", "000000").unlink()
    file(dataset, "summarize_captions", "000002").unlink()
    file(dataset, "score_similarity", "000002").unlink()
    file(dataset, "count_words", "000002").unlink()
    assert check(dataset).faults == []
    file(dataset, "summarize_captions", "000001").unlink()
    assert ("missing", "summarize_captions/m1/000001.parquet") in faults(check(dataset))


def test_rows_of_removed_videos_are_reported_until_they_are_gone(dataset: Path):
    key = source_key("https://media.example/1.mp4")
    stone = new_tombstone(dataset, {"generic-v1": [key]}, None)
    report = check(dataset)
    assert {name for name, _ in faults(report)} == {"removal"}
    assert all("clipmill remove" in fault.next_step for fault in report.faults)
    assert ("removal", "tag_clips/t1/000000.parquet") in faults(report)
    write_tombstone(dataset, Tombstone(stone.name, stone.at, None, stone.videos, datetime.now(UTC)))
    report = check(dataset)
    assert all("reopens the removal" in fault.next_step for fault in report.faults)
    finish(dataset, report)
    assert check(dataset).faults == []


def finish(dataset: Path, report: Verification) -> None:
    repair(dataset, report)
    assert [stone.purged_at for stone in tombstones(dataset)] == [None]
    finish_removals(dataset)


def test_removal_in_progress_is_not_a_fault(dataset: Path):
    def remove(said: str) -> None:
        if said == "shard 2 of 3":
            keys = {
                f"generic-v{number}": [source_key(f"https://media.example/{number}.mp4")]
                for number in range(8, 12)
            }
            new_tombstone(dataset, keys, None)
            finish_removals(dataset)
            file(dataset, "count_words").unlink()  # as if it had got that far

    report = verify(dataset, media=False, say=remove)
    assert report.faults == []
    assert faults(check(dataset)) == [("missing", "count_words/w1/000001.parquet")]


def test_unreadable_tombstone_is_reported_and_never_set_aside(dataset: Path):
    touch(dataset / "removed" / "x.json", "{}")
    report = check(dataset)
    assert faults(report) == [("removal", "removed")]
    assert repair(dataset, report).moved == ()


def test_tables_of_an_unreadable_run_record_are_not_strays(dataset: Path):
    """Otherwise repairing a damaged record would set aside all that its run has made."""
    half(dataset / "runs" / "r2.json")
    report = check(dataset)
    assert faults(report) == [("unreadable", "runs/r2.json")]
    repair(dataset, report)
    assert not (dataset / "runs" / "r2.json").exists()
    assert check(dataset).faults == []
    assert file(dataset, "split_clips").exists()


def test_stale_index_is_a_note_and_one_that_breaks_queries_a_fault(dataset: Path):
    update_index(dataset)
    shutil.copytree(next((dataset / "index").iterdir()), dataset / "index" / "0123")
    copy = shutil.copyfile(file(dataset, "tag_clips"), dataset / "copy")
    os.replace(copy, file(dataset, "tag_clips"))
    report = check(dataset)
    assert report.faults == []
    assert [note.check for note in report.notes] == ["index", "index"]
    update_index(dataset)
    assert check(dataset).notes == []
    os.utime(file(dataset, "tag_clips"))
    ((name, where),) = faults(check(dataset))
    assert (name, Path(where).name) == ("index", "manifest.json")
    repair(dataset, check(dataset))
    update_index(dataset)
    (path,) = (dataset / "index").glob("*/clips-*.parquet")
    with open(path, "r+b") as data:
        data.seek(4)
        data.write(b"\xff" * 40)
    assert [name for name, _ in faults(check(dataset))] == ["index"]
