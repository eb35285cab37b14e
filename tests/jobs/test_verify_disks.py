"""`verify` and `--repair` with media on another disk, which may be missing or read-only."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from clipmill.jobs.cli import app
from clipmill.jobs.run import run
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.run import load
from clipmill.pipeline.verify import verify
from clipmill.schemas.errors import ClipmillError, RowFailed
from tests.conftest import Made


@pytest.fixture(scope="module")
def filmed(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two films copied into a dataset and split into clips."""
    dataset = tmp_path_factory.mktemp("filmed") / "dataset"
    loaded = load_recipe(
        recipe_path("timestamps-only"),
        sources=[str(made.loaded.recipe.sources[0].path)],
        engine="local",
        overrides=["download_videos.copy_local_files=true"],
    )
    run(loaded, dataset)
    return dataset


@pytest.fixture
def dataset(filmed: Path, tmp_path: Path) -> Path:
    """A dataset whose media are elsewhere, behind a link."""
    dataset = Path(shutil.copytree(filmed, tmp_path / "dataset"))
    shutil.move(dataset / "media", tmp_path / "disk")
    (dataset / "media").symlink_to(tmp_path / "disk")
    return dataset


def clipmill(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        app([str(argument) for argument in arguments])
    return ended.value.code


def files_of(dataset: Path) -> set[str]:
    return {str(path.relative_to(dataset)) for path in dataset.rglob("*")}


def test_files_on_another_disk_can_be_set_aside(dataset: Path, monkeypatch):
    """A rename between file systems is impossible, so they are copied, then deleted."""
    media = next((dataset / "media").glob("*.mp4"))
    media.write_bytes(media.read_bytes()[:-10])
    rename = os.replace

    def within_one_disk(source, target, **more):
        if Path(source).resolve().is_relative_to(dataset.parent / "disk"):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV), str(source), None, str(target))
        return rename(source, target, **more)

    monkeypatch.setattr(os, "replace", within_one_disk)
    monkeypatch.setattr(os, "rename", within_one_disk)
    assert clipmill("verify", dataset, "--repair") == 0
    assert not media.exists()
    assert [path.name for path in dataset.glob("quarantine/*/media/*.mp4")] == [media.name]
    monkeypatch.undo()
    assert run(load(None, dataset), dataset, take_sources=False)
    assert verify(dataset).faults == []


def test_files_that_cannot_be_moved_are_one_message(dataset: Path, monkeypatch, capsys):
    next((dataset / "media").glob("*.mp4")).write_bytes(b"x")

    def refuse(source, target, **more):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM), str(source), None, str(target))

    monkeypatch.setattr("clipmill.pipeline.verify.repair.os.replace", refuse)
    with pytest.raises(ClipmillError, match=r"cannot write to .*: Operation not permitted"):
        app(["verify", str(dataset), "--repair"], standalone_mode=False)


@pytest.mark.parametrize(
    "command",
    [["verify"], ["verify", "--repair"], ["run"], ["retry"], ["remove", "--video", "x"]],
    ids=" ".join,
)
def test_media_on_an_unmounted_disk_are_not_lost(dataset: Path, command, capfd):
    (dataset.parent / "disk").rename(dataset.parent / "away")
    before = files_of(dataset)
    place = ["--dataset", dataset] if command == ["run"] else [dataset]
    with pytest.raises(ClipmillError, match=r"media is a link to .*doesn't exist; mount its disk"):
        app([str(word) for word in (*command, *place)], standalone_mode=False)
    assert files_of(dataset) - before <= {".lock"}
    assert clipmill("sql", dataset, "SELECT count(*) FROM clips") == 0  # tables need no media
    assert clipmill("verify", dataset, "--no-media") == 0
    (dataset.parent / "away").rename(dataset.parent / "disk")
    assert clipmill("verify", dataset) == 0


def test_unmounted_table_folder_is_not_mistaken_for_empty(dataset: Path):
    shutil.move(dataset / "split_clips", dataset.parent / "away")
    (dataset / "split_clips").symlink_to(dataset.parent / "tables")
    for command in ("sql", "status"):
        with pytest.raises(ClipmillError, match=r"split_clips is a link to .*mount its disk"):
            app(
                [command, str(dataset), *(["FROM clips"] if command == "sql" else [])],
                standalone_mode=False,
            )


def test_empty_media_folder_is_one_fault_and_nothing_is_set_aside(dataset: Path):
    """A mount point without its disk is an empty folder."""
    (dataset / "media").unlink()
    (dataset / "media").mkdir()
    found = verify(dataset).faults
    assert [(fault.check, fault.where, fault.remedies) for fault in found] == [
        ("media_missing", "media", ())
    ]
    assert clipmill("verify", dataset, "--repair") == 1
    assert not (dataset / "quarantine").exists()
    (dataset / "media").rmdir()
    assert clipmill("verify", dataset, "--repair") == 0
    assert run(load(None, dataset), dataset, take_sources=False)
    assert verify(dataset).faults == []


def test_killed_helper_is_not_a_fault_of_the_file(dataset: Path, monkeypatch):
    def killed(*arguments, **more):
        raise RowFailed("crash", "crashes its decoder's process: SIGKILL")

    monkeypatch.setattr("clipmill.pipeline.verify.media_checks.run_isolated", killed)
    report = verify(dataset)
    assert report.faults == []
    assert {note.check for note in report.notes} == {"media_duration"}
