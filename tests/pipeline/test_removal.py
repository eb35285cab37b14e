"""A removed video is hidden everywhere immediately, and is then deleted from every file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.jobs.remove import remove
from clipmill.jobs.run import run
from clipmill.pipeline.catalog import views
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.catalog.index_writer import update_index
from clipmill.pipeline.dataset.locks import dataset_lock
from clipmill.pipeline.dataset.shards import ShardMetadata, table_folders
from clipmill.pipeline.dataset.tombstones import tombstones
from clipmill.pipeline.ingest.span_import import import_spans
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.removal import purge as removal
from clipmill.pipeline.status import status_report
from clipmill.schemas import tables
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.ids import source_key
from clipmill.stages.download_videos import VIDEOS
from tests.conftest import Made
from tests.synthetic import Truth, build_dataset, write_shard

VIDEO, RETRIED = "generic-v1", "generic-v19"  # v19 was downloaded by a retry
KEY = source_key("https://media.example/1.mp4")


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    """With an index, a frozen subset, media with notes, and a second address of one video."""
    truth = build_dataset(tmp_path_factory.mktemp("removal") / "dataset")
    dataset = truth.path
    path = dataset / "download_videos" / "d1" / "000001.parquet"
    rows = pq.read_table(path).to_pylist()
    rows.append(
        {
            "source_key": "b" * 20,
            "rejection": {
                "rule": "download_videos.duplicate",
                "detail": f"{VIDEO} is there already, from https://media.example/1.mp4 "
                f"(source {KEY})",
            },
        }
    )
    write_shard(dataset, "download_videos", "d1", "000001", rows, VIDEOS)
    sources = dataset / "sources" / "000001.parquet"
    table = pq.read_table(sources)
    rows = [*table.to_pylist(), {"source_key": "b" * 20, "url": "https://mirror.example/one.mp4"}]
    pq.write_table(pa.Table.from_pylist(rows, tables.SOURCES), sources)
    media = dataset / "media"
    for name in (
        f"{VIDEO}.mp4",
        f"{VIDEO}.0123456789ab.mp4",
        "generic-v10.mp4",
        f".found/{KEY}.json",
        f".ready/{KEY}.mp4",
        f".work/{KEY}/part.mp4",
        f".claims/0a/{VIDEO}",
        ".claims/0a/generic-v10",
    ):
        (media / name).parent.mkdir(parents=True, exist_ok=True)
        (media / name).write_bytes(b"x" * 1000)
    subset = dataset / "subsets" / "mine"
    subset.mkdir(parents=True)
    clips = [f"{VIDEO}-0-1000", "generic-v0-0-1000"]
    pq.write_table(
        pa.table({"clip_id": clips, "video_id": [VIDEO, "generic-v0"], "position": [1, 2]}),
        subset / "clips-000000.parquet",
    )
    (subset / "subset.json").write_text(
        json.dumps({"name": "mine", "created_at": "2026-01-01T00:00:00+00:00", "n_clips": 2})
    )
    (dataset / "retries").mkdir()
    (dataset / "retries" / "000000.retry7.json").write_text(
        json.dumps({"step": "caption_frames", "fingerprint": "old", "keys": clips})
    )
    update_index(dataset)
    return truth


@pytest.fixture
def dataset(built: Truth, tmp_path: Path) -> Path:
    return shutil.copytree(built.path, tmp_path / "dataset")


AUDITS = ("audits", "audit_labels")


def everything(dataset: Path) -> dict[str, list[str]]:
    """All rows of all views and step tables, as text, in a fixed order."""
    found = {}
    with open_catalog(dataset, threads=1) as catalog:
        names = [name for name in views.VIEWS if name not in ("removed", "subset_clips")]
        for name in [*names, *(f"steps.{step.step}" for step in catalog.layout.steps)]:
            rows = catalog.ask(f"SELECT * FROM {name}").read_all().to_pylist()
            found[name] = sorted(map(repr, rows))
    return found


def texts_on_disk(dataset: Path) -> str:
    """All text in tables, index and notes of every fingerprint."""
    files = [path for path in dataset.rglob("*.parquet") if "subsets" not in path.parts]
    notes = [
        path for path in dataset.rglob("*.json") if not {"subsets", "removed"} & set(path.parts)
    ]
    return "".join(repr(pq.read_table(path).to_pylist()) for path in files) + "".join(
        path.read_text() for path in notes
    )


def shows(text: str) -> bool:
    """Whether anything of the video is present; other ids begin with the same characters."""
    return any(
        name in text
        for name in (f"{VIDEO}'", f"{VIDEO}-", "/1.mp4'", "Film 1'", "mirror.example", f"{VIDEO} ")
    )


def assert_accounted(dataset: Path) -> None:
    report = status_report(dataset)
    for stage in report["stages"]:
        assert stage["accounted"], stage
        assert stage["inputs"] == stage["kept"] + stage["rejected"] + stage["failed"]
    for folder in table_folders(dataset):
        for path in folder.glob("[0-9]*.parquet"):
            if folder.parent.name in ("shots", "frames"):
                continue  # counted with the step that they belong to
            found = ShardMetadata.read(path)
            assert found.inputs == found.kept + found.rejected + found.failed, path
            assert found.step == folder.parent.name


def test_removed_video_is_hidden_everywhere_and_all_else_is_unchanged(dataset: Path, capsys):
    """Its rows are gone from views and files of every fingerprint; only a stub of its source is
    left."""
    before = everything(dataset)
    assert shows(texts_on_disk(dataset))
    remove(dataset, videos=[VIDEO], reason="the author asked")
    after = everything(dataset)
    assert not shows(texts_on_disk(dataset))
    for name, rows in before.items():
        gone = set(rows) - set(after[name])
        assert all(shows(row) or KEY in row or "b" * 20 in row for row in gone), name
        new = set(after[name]) - set(rows)
        assert all(KEY in row or "b" * 20 in row for row in new), name
        assert all("'rule': 'removed'" in row for row in new), name
        unchanged = ("runs", "subsets", "failures", "failures_all", "skipped", *AUDITS)
        assert gone or name in unchanged, name
    assert_accounted(dataset)
    with open_catalog(dataset) as catalog:
        assert catalog.ask("SELECT video_id, reason FROM removed").read_all().to_pylist() == [
            {"video_id": VIDEO, "reason": "the author asked"}
        ]
        rules = catalog.ask("SELECT stage, key FROM rejections WHERE rule = 'removed' ORDER BY ALL")
        keys = [(row["stage"], row["key"]) for row in rules.read_all().to_pylist()]
        assert keys == sorted(
            (stage, key) for stage in ("ingest", "download_videos") for key in (KEY, "b" * 20)
        )
        assert catalog._coverage.hide_removed is False
    said = capsys.readouterr().out
    assert "1 video from 2 sources, with 4 clips" in said
    assert "Frozen subset mine contains 1 clip" in said


def test_media_and_notes_of_only_the_removed_video_are_deleted(dataset: Path):
    remove(dataset, videos=[VIDEO])
    left = {
        path.relative_to(dataset / "media").as_posix()
        for path in (dataset / "media").rglob("*")
        if path.is_file()
    }
    assert left == {"generic-v10.mp4", ".claims/0a/generic-v10"}
    request = json.loads((dataset / "retries" / "000000.retry7.json").read_text())
    assert request["keys"] == ["generic-v0-0-1000"]


def test_dry_run_changes_nothing(dataset: Path, capsys):
    def tree() -> dict[str, tuple[int, int]]:
        return {
            str(path): (path.stat().st_size, path.stat().st_mtime_ns)
            for path in dataset.rglob("*")
            if path.is_file() and path.name not in (".lock", ".commits")
        }

    before = tree()
    remove(dataset, videos=[VIDEO], dry_run=True)
    assert tree() == before
    planned = capsys.readouterr().out.partition("would be removed:\n")[2]
    remove(dataset, videos=[VIDEO])
    assert capsys.readouterr().out == planned


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 3, 9])
def test_killed_removal_is_in_effect_and_completed_later(dataset: Path, monkeypatch, after: int):
    """At whatever shard it was killed: nothing is shown, the accounting is right, the rest
    follows."""
    done = []

    def killed(path: Path, selection: removal.Selection) -> None:
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(path)
        rewrite(path, selection)

    rewrite = removal.rewrite_shard
    monkeypatch.setattr(removal, "rewrite_shard", killed)
    with pytest.raises(KeyboardInterrupt):
        remove(dataset, videos=[VIDEO, RETRIED])
    monkeypatch.undo()
    assert len(done) == after
    assert not any(shows(row) for rows in everything(dataset).values() for row in rows)
    assert status_report(dataset)["totals"]["clips"] > 0
    assert_accounted(dataset)
    assert shows(texts_on_disk(dataset))
    remove(dataset, videos=[VIDEO])
    assert all(stone.purged_at for stone in tombstones(dataset))
    assert not shows(texts_on_disk(dataset))
    assert_accounted(dataset)


def test_all_videos_of_an_uploader_are_removed(dataset: Path):
    path = dataset / "download_videos" / "d1" / "000000.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        row["uploader"] = "Ann" if row["video_id"] in (VIDEO, "generic-v0") else "Bob"
    write_shard(dataset, "download_videos", "d1", "000000", rows, VIDEOS)
    remove(dataset, uploaders=["Ann"])
    with open_catalog(dataset) as catalog:
        rest = catalog.execute("SELECT DISTINCT uploader FROM videos ORDER BY 1").fetchall()
        gone = catalog.execute("SELECT video_id FROM removed ORDER BY 1").fetchall()
    assert rest == [("Bob",), (None,)]
    assert gone == [("generic-v0",), (VIDEO,)]


def test_unknown_names_change_nothing_and_suggest_similar_ones(dataset: Path):
    """One unknown name among known ones stops the whole removal."""
    with pytest.raises(UsageError, match=r"no such video; similar: .*generic-v2"):
        remove(dataset, videos=[VIDEO, "generic-v22x"])
    with pytest.raises(UsageError, match="no video of the dataset is by this uploader"):
        remove(dataset, uploaders=["Nobody"])
    with pytest.raises(UsageError, match="--video ID or --uploader NAME"):
        remove(dataset)
    assert tombstones(dataset) == []


def test_second_removal_is_reported(dataset: Path, capsys):
    remove(dataset, videos=[VIDEO])
    capsys.readouterr()
    remove(dataset, videos=[VIDEO])
    assert capsys.readouterr().out == f"{VIDEO} was already removed.\n"


def test_locked_dataset_is_left_alone(dataset: Path):
    with dataset_lock(dataset), pytest.raises(ClipmillError, match="another command is using"):
        remove(dataset, videos=[VIDEO])


def test_unreadable_tombstone_is_reported(dataset: Path):
    """Ignoring it would show what was removed."""
    (dataset / "removed").mkdir()
    (dataset / "removed" / "x.json").write_text("{}")
    with pytest.raises(ClipmillError, match=r"x\.json records what was removed"):
        open_catalog(dataset)


def test_removed_video_is_not_ingested_again(made: Made, tmp_path: Path):
    """Neither from the same source, nor from another with the same bytes; existing files stay."""
    dataset = shutil.copytree(made.dataset, tmp_path / "dataset")
    films = Path(made.loaded.recipe.sources[0].path)
    with open_catalog(dataset) as catalog:
        video, path, title = catalog.execute(
            "SELECT video_id, path, parse_filename(path) FROM videos ORDER BY path LIMIT 1"
        ).fetchone()
    assert Path(path).is_file()
    remove(dataset, videos=[video])
    assert Path(path).is_file()  # it was only referenced
    run(made.loaded, dataset)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(path, other / f"again-{title}")
    again = load_recipe(
        made.loaded.folder / f"{made.loaded.name}.yaml",
        sources=[str(films), str(other)],
        engine="local",
    )
    run(again, dataset)
    assert_accounted(dataset)
    assert "again-" not in texts_on_disk(dataset).replace(str(other), "")
    with open_catalog(dataset) as catalog:
        rows = catalog.execute(
            "SELECT count(*), count(*) FILTER (video_id = ?) FROM clips", [video]
        ).fetchone()
        rejected = catalog.execute(
            "SELECT stage, count(*) FROM rejections WHERE rule = 'removed' GROUP BY 1 ORDER BY 1"
        ).fetchall()
    assert rows[0] > 0 == rows[1]
    assert rejected == [("download_videos", 2), ("ingest", 2)]
    assert all(stone.purged_at for stone in tombstones(dataset))


def test_published_rows_of_a_removed_video_are_not_imported(tmp_path: Path):
    """Not even when imported again after its source was emptied."""
    rows = [
        {
            "YoutubeID": name,
            "Start_timestamp": "00:00:01.000",
            "Caption": "a dog",
            "End_timestamp": "00:00:03.500",
            "Aesthetic_Score": 4.5,
            "UMT_Score": 0.4,
        }
        for name in ("abcdefghijk", "lmnopqrstuv")
    ]
    listed = tmp_path / "rows.jsonl"
    listed.write_text("".join(json.dumps(row) + "\n" for row in rows))
    dataset = tmp_path / "dataset"
    (dataset / "runs").mkdir(parents=True)
    assert import_spans(dataset, [listed], shard_videos=4).kept == 2
    remove(dataset, videos=["youtube-abcdefghijk"])
    report = import_spans(dataset, [listed], shard_videos=4)
    assert (report.rows, report.known, report.removed, report.kept) == (2, 1, 1, 0)
    assert "abcdefghijk" not in texts_on_disk(dataset)
