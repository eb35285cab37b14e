"""`clipmill verify` on datasets made by real runs, and repairs that the next run completes."""

from __future__ import annotations

import json
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from threading import Semaphore

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clipmill.jobs.cli import app
from clipmill.jobs.run import run
from clipmill.jobs.subset import create
from clipmill.jobs.verify import verify_dataset
from clipmill.pipeline.dataset.locks import dataset_lock
from clipmill.pipeline.dataset.shards import ShardMetadata
from clipmill.pipeline.dataset.tombstones import new_tombstone
from clipmill.pipeline.engine.runner import Worker
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.removal.purge import finish_removals
from clipmill.pipeline.run import load
from clipmill.pipeline.verify import repair, verify
from clipmill.schemas.errors import ClipmillError
from tests.conftest import Made
from tests.pipeline.conftest import words  # noqa: F401 (a fixture)

NOT_COMPARED = {"runs", "index", "journal", ".lock", "quarantine", "frames"}


@pytest.fixture(scope="module")
def filmed(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films copied into a dataset and split into clips, one shard each; and a subset."""
    dataset = tmp_path_factory.mktemp("filmed") / "dataset"
    films = made.loaded.recipe.sources[0].path
    loaded = load_recipe(
        recipe_path("timestamps-only"),
        sources=[str(films)],
        engine="local",
        overrides=[
            "download_videos.copy_local_files=true",
            "shard_videos=1",
            "split_clips.keep_frames=true",
        ],
    )
    run(loaded, dataset)
    recipe = dataset.parent / "longer.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "description": "d",
                "source": "nowhere",
                "verified": False,
                "rules": [{"where": "duration_seconds > 0.1"}],
            }
        )
    )
    create(dataset, str(recipe))
    return dataset


@pytest.fixture
def dataset(filmed: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(filmed, tmp_path / "dataset"))


def faults(dataset: Path) -> list[tuple[str, str]]:
    report = verify(dataset)
    return [(fault.check, fault.where) for fault in report.faults]


def clipmill(*arguments: object) -> int:
    """Runs a command in this process; returns its exit status."""
    with pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments])
    return ended.value.code


def tables_of(dataset: Path) -> dict[str, list[str]]:
    """All rows of all tables, in any shard, without run-specific values."""
    found: dict[str, list[str]] = {}
    for path in sorted(dataset.rglob("[!.]*.parquet")):
        parts = path.relative_to(dataset).parts
        if parts[0] not in NOT_COMPARED:
            rows = pq.read_table(path).to_pylist()
            found.setdefault("/".join(parts[:-1]), []).extend(
                repr(
                    {
                        name: value
                        for name, value in row.items()
                        if name not in ("downloaded_at", "position", "error")
                    }
                )
                for row in rows
            )
    return {name: sorted(rows) for name, rows in found.items()}


def file(dataset: Path, step: str, shard: str = "000000") -> Path:
    return next((dataset / step).glob(f"*/{shard}.parquet"))


def place(dataset: Path, path: Path) -> str:
    return path.relative_to(dataset).as_posix()


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    """Reverses bytes of a column's data, if the file is large enough to open as before."""
    column = pq.read_metadata(path).row_group(0).column(0)
    start = column.data_page_offset
    data = bytearray(path.read_bytes())
    data[start + column.total_compressed_size - 6] ^= 0xFF
    path.write_bytes(data)


def change_rows(path: Path, change) -> None:
    """Changes rows of a shard; its footer has the counts that the runner would write."""
    table = pq.read_table(path)
    rows = table.to_pylist()
    change(rows)
    metadata = ShardMetadata.read(path)
    kept = sum(row["rejection"] is None and row["error"] is None for row in rows)
    changed = pa.Table.from_pylist(rows, table.schema).replace_schema_metadata(
        replace(metadata, outputs=kept).encode()
    )
    pq.write_table(changed, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def media(dataset: Path) -> Path:
    return sorted((dataset / "media").glob("*.mp4"))[0]


def shard_of(dataset: Path, video: Path) -> str:
    return next(
        path.stem
        for path in sorted((dataset / "download_videos").glob("*/*.parquet"))
        if video.stem in pq.read_table(path)["video_id"].to_pylist()
    )


def test_datasets_made_by_runs_have_no_faults(made: Made, filmed: Path, capsys):
    """Exit status 0, no line on standard output, and counts of what was read on standard error."""
    for dataset in (made.dataset, filmed):
        capsys.readouterr()
        assert clipmill("verify", dataset) == 0
        said = capsys.readouterr()
        assert said.out == ""
        assert "2 media files" in said.err
        assert "no faults" in said.err


def without_its_end(dataset: Path) -> list[tuple[str, str]]:
    path = media(dataset)
    half(path)
    return [("media_size", place(dataset, path))]


def with_other_bytes(dataset: Path) -> list[tuple[str, str]]:
    path = media(dataset)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return [("media_sha256", place(dataset, path))]


def gone(dataset: Path) -> list[tuple[str, str]]:
    path = media(dataset)
    path.unlink()
    return [("media_missing", place(dataset, path))]


def with_another_length(dataset: Path) -> list[tuple[str, str]]:
    path = file(dataset, "download_videos", shard_of(dataset, media(dataset)))
    change_rows(path, lambda rows: rows[0].update(duration_seconds=rows[0]["duration_seconds"] + 5))
    return [("media_duration", place(dataset, path))]


def with_a_clip_past_its_end(dataset: Path) -> list[tuple[str, str]]:
    path = file(dataset, "split_clips", shard_of(dataset, media(dataset)))
    change_rows(path, lambda rows: rows[-1].update(end_seconds=rows[-1]["end_seconds"] + 5))
    return [("span", place(dataset, path))]


def with_flipped_bytes(dataset: Path) -> list[tuple[str, str]]:
    path = file(dataset, "scan_videos")
    flip(path)
    return [("unreadable", place(dataset, path))]


def without_a_shard(dataset: Path) -> list[tuple[str, str]]:
    path = file(dataset, "split_clips", "000001")
    path.unlink()
    return [("missing", place(dataset, path))]


def without_shots(dataset: Path) -> list[tuple[str, str]]:
    path = file(dataset, "shots", "000001")
    half(path)
    return [("unreadable", place(dataset, path))]


def without_all_tables(dataset: Path) -> list[tuple[str, str]]:
    found = []
    for step in ("split_clips", "download_videos", "scan_videos"):
        path = file(dataset, step, "000001")
        half(path)
        found.append(("unreadable", place(dataset, path)))
    return found


@pytest.mark.parametrize(
    "harm",
    [
        with_other_bytes,
        gone,
        without_all_tables,
        *(
            pytest.param(harm, marks=pytest.mark.slow)
            for harm in (
                without_its_end,
                with_another_length,
                with_a_clip_past_its_end,
                with_flipped_bytes,
                without_a_shard,
                without_shots,
            )
        ),
    ],
    ids=lambda harm: harm.__name__,
)
def test_damaged_files_are_set_aside_and_made_again(dataset: Path, harm, capsys):
    """Found by name, moved and not deleted; then the run's tables equal the former ones."""
    before, bytes_before = tables_of(dataset), media(dataset).read_bytes()
    expected = harm(dataset)
    assert sorted(faults(dataset)) == sorted(expected)
    assert clipmill("verify", dataset) == 1
    files = {
        path.name: path.read_bytes() for _, where in expected if (path := dataset / where).is_file()
    }
    assert clipmill("verify", dataset, "--repair") == 0
    (folder,) = (dataset / "quarantine").iterdir()
    why = json.loads((folder / "why.json").read_text())
    assert sorted((fault["check"], fault["where"]) for fault in why["faults"]) == sorted(expected)
    for where in why["moved"]:
        assert (folder / where).is_file()
        assert not (dataset / where).exists()
    assert all(
        any(path.read_bytes() == data for path in folder.rglob(name))
        for name, data in files.items()
    )
    assert faults(dataset) == []  # pending rows are not missing
    capsys.readouterr()
    assert run(load(None, dataset), dataset, take_sources=False)
    assert clipmill("verify", dataset) == 0
    assert capsys.readouterr().out == ""
    assert tables_of(dataset) == before
    assert media(dataset).read_bytes() == bytes_before


@pytest.mark.parametrize("after", [0, 1, 3])
def test_killed_repair_loses_nothing_and_is_completed(
    dataset: Path, monkeypatch: pytest.MonkeyPatch, after: int
):
    before = tables_of(dataset)
    half(file(dataset, "download_videos", "000001"))
    moved = []

    def killed(source: Path, target: Path) -> None:
        if len(moved) == after:
            raise KeyboardInterrupt
        moved.append(source)
        move(source, target)

    move = repair._move
    monkeypatch.setattr(repair, "_move", killed)
    with pytest.raises(KeyboardInterrupt):
        verify_dataset(dataset, repairs=True)
    monkeypatch.undo()
    assert len(moved) == after
    assert verify_dataset(dataset, repairs=True) == 0
    assert faults(dataset) == []
    assert run(load(None, dataset), dataset, take_sources=False)
    assert faults(dataset) == []
    assert tables_of(dataset) == before


def test_damaged_sources_are_ingested_again_from_the_recipe(dataset: Path, capsys):
    before = tables_of(dataset)
    half(dataset / "sources" / "000000.parquet")
    assert faults(dataset) == [("unreadable", "sources/000000.parquet")]
    assert clipmill("verify", dataset, "--repair") == 0
    assert f"`clipmill run --dataset {dataset}` takes them again" in capsys.readouterr().err
    assert not list(dataset.glob("[!q]*/*/000000.parquet"))
    run(load(None, dataset), dataset)
    assert faults(dataset) == []
    assert tables_of(dataset) == before


def test_scores_are_recomputed_from_the_models_tables(made: Made, tmp_path: Path):
    dataset = Path(shutil.copytree(made.dataset, tmp_path / "dataset"))
    before = tables_of(dataset)
    path = file(dataset, "score_similarity")
    half(path)
    half(file(dataset, "frames"))
    kept = file(dataset, "caption_frames").stat().st_mtime_ns
    assert clipmill("verify", dataset, "--repair") == 0
    assert run(load(None, dataset), dataset, take_sources=False)
    report = verify(dataset)
    assert report.faults == []
    assert [note.check for note in report.notes] == ["frames"]  # a cache, which is left out
    assert tables_of(dataset) == before
    assert file(dataset, "caption_frames").stat().st_mtime_ns == kept


def test_missing_referenced_file_is_reported_and_nothing_is_set_aside(
    made: Made, tmp_path: Path, capsys
):
    """It may be on an unmounted disk, and can't be made again."""
    dataset = Path(shutil.copytree(made.dataset, tmp_path / "dataset"))
    path = file(dataset, "download_videos")
    change_rows(path, lambda rows: rows[0].update(path=str(tmp_path / "gone.mp4")))
    assert faults(dataset) == [("media_missing", str(tmp_path / "gone.mp4"))]
    assert clipmill("verify", dataset, "--repair") == 1
    assert "put it back there" in capsys.readouterr().out
    assert not (dataset / "quarantine").exists()
    assert clipmill("verify", dataset, "--no-media") == 0


def test_inconsistent_subset_is_reported(dataset: Path):
    folder = dataset / "subsets" / "longer"
    info = json.loads((folder / "subset.json").read_text())

    def said(**changes: object) -> list[str]:
        (folder / "subset.json").write_text(json.dumps({**info, **changes}))
        found = verify(dataset, media=False)
        assert {fault.check for fault in found.faults} <= {"subset"}
        return [fault.what for fault in found.faults]

    assert said() == []
    assert "hash over its ids" in said(hash="sha256:0")[0]
    assert "subset.json says 1" in said(n_clips=1)[0]
    assert "snapshot 0123" in said(snapshot="0123")[0]
    assert "can't be read" in said(files=[{"name": "no.parquet", "clips": 1}])[0]
    assert said() == []
    path = folder / "clips-000000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.slice(1), path)
    assert "hash over its ids" in said()[0]


def test_missing_clips_of_a_subset_are_reported_and_explained(dataset: Path):
    """Removed, or changed settings: a note. No reason: a fault."""
    path = file(dataset, "split_clips")
    video = pq.read_table(path)["video_id"][0].as_py()
    clip = pq.read_table(path)["clip_id"][0].as_py()
    change_rows(path, lambda rows: rows.pop(0))
    report = verify(dataset)
    (fault,) = [fault for fault in report.faults if fault.check == "subset"]
    assert fault.where == "subsets/longer"
    assert f"no step changed: e.g. {clip}" in fault.what
    new_tombstone(dataset, {video: ["k"]}, None)
    finish_removals(dataset)
    report = verify(dataset)
    assert not [fault for fault in report.faults if fault.check == "subset"]
    assert any("removed from the dataset since" in note.what for note in report.notes)


def test_changed_settings_explain_missing_clips_of_a_subset(dataset: Path):
    run(load(None, dataset, overrides=["split_clips.threshold=1"]), dataset, take_sources=False)
    report = verify(dataset)
    assert report.faults == []
    assert any("changed since" in note.what for note in report.notes)


def test_full_report_is_available_as_json(dataset: Path, capsys):
    path = file(dataset, "split_clips")
    half(path)
    (dataset / "notes.txt").write_text("mine")
    capsys.readouterr()
    assert clipmill("verify", dataset, "--format", "json") == 1
    found = json.loads(capsys.readouterr().out)
    (fault,) = found["faults"]
    assert fault["check"] == "unreadable"
    assert fault["where"] == place(dataset, path)
    assert "--repair" in fault["next_step"]
    assert found["checked"]["media"] == 2
    assert found["others"] == ["notes.txt"]
    assert clipmill("verify", dataset, "--format", "csv") == 1
    assert capsys.readouterr().out.splitlines()[0] == "severity,check,where,what,next_step"
    assert clipmill("verify", dataset) == 1
    line, note = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{place(dataset, path)}: unreadable: ")
    assert note.startswith("note: subsets/longer: ")


def test_names_that_are_not_text_are_reported_and_set_aside(dataset: Path, capsys):
    """File names are bytes; those with control characters must not control the terminal."""
    places = ("media", "notes", f"split_clips/{file(dataset, 'split_clips').parent.name}")
    for where in places:
        (dataset / where).mkdir(exist_ok=True)
        for name in (b"\xff\xfe.mp4", b"\x1b[31m\n.mp4"):
            with open(os.fsencode(dataset / where) + b"/" + name, "w"):
                pass
    capsys.readouterr()
    assert clipmill("verify", dataset, "--format", "json") == 1
    assert len(json.loads(capsys.readouterr().out)["faults"]) == 4
    assert clipmill("verify", dataset, "--format", "csv") == 1
    capsys.readouterr()
    assert clipmill("verify", dataset) == 1
    said = capsys.readouterr().out
    assert len(said.splitlines()) == 4
    assert "\x1b" not in said
    assert clipmill("verify", dataset, "--repair") == 0
    assert faults(dataset) == []


def test_active_run_is_not_mistaken_for_damage(words, monkeypatch):  # noqa: F811
    """Verified repeatedly while a few shards arrive each time."""
    made = words(*(f"v{number}" for number in range(20)), shard_videos=1)
    allowed, run_shard = Semaphore(0), Worker.run

    def when_allowed(worker: Worker, shard: str) -> None:
        allowed.acquire(timeout=60)  # the last verification may have failed
        run_shard(worker, shard)

    monkeypatch.setattr(Worker, "run", when_allowed)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(made.run)
        seen = []
        while not running.done():
            if (made.dataset / "runs").is_dir():
                report = verify(made.dataset)
                assert report.faults == []
                seen.append(report.checked["shards"])
                allowed.release(4)
        assert running.result()
    assert len(set(seen)) > 1
    assert faults(made.dataset) == []


def test_repair_does_not_wait_for_a_run(dataset: Path):
    with dataset_lock(dataset), pytest.raises(ClipmillError, match="another command is using"):
        app(["verify", str(dataset), "--repair"], standalone_mode=False)


def test_retries_have_no_faults_and_are_made_again_if_damaged(words, tmp_path: Path, capsys):  # noqa: F811
    """A damaged retry is made again from its request, with only what was made from it."""
    mended = tmp_path / "mended"
    made = words("a?fail=name", "b", "c?reject=fetch", "d?fail=cut", shard_videos=2)
    setting = f"name_words.mend_file={mended}"
    made.run(setting)
    assert faults(made.dataset) == []
    mended.touch()
    made.run(setting, retry_kinds=[])
    assert faults(made.dataset) == []
    before = tables_of(made.dataset)
    path = file(made.dataset, "name_words", "000000.retry1")
    half(path)
    assert faults(made.dataset) == [("unreadable", place(made.dataset, path))]
    assert clipmill("verify", made.dataset, "--repair") == 0
    (why,) = (made.dataset / "quarantine").glob("*/why.json")
    moved = json.loads(why.read_text())["moved"]
    assert {name.partition("/")[0] for name in moved} == {
        "name_words",
        "count_letters",
        "guess_words",
    }
    assert all(".retry1" in name for name in moved)
    made.run(setting)
    assert faults(made.dataset) == []
    assert tables_of(made.dataset) == before
