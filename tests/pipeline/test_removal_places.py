"""A removal deletes the dataset's own files, on whatever disk, and no others."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipmill.jobs.remove import remove
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.catalog.index_writer import update_index
from clipmill.pipeline.dataset import shards
from clipmill.pipeline.dataset.tombstones import tombstones
from clipmill.pipeline.removal import purge as removal
from clipmill.pipeline.subsets.freeze import create_subset, subset_names
from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe
from clipmill.pipeline.verify import verify
from clipmill.schemas.errors import ClipmillError
from tests.pipeline.exports.small_dataset import freeze, write_small, youtube_id

VIDEO, OTHER = f"youtube-{youtube_id(0)}", f"youtube-{youtube_id(2)}"
KEY = "k000"


def _own_file(step: str, row: dict[str, Any]) -> None:
    if step == "download_videos":
        row["path"] = f"media/{row['video_id']}.mp4"


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Each video has its own file and notes, and there is an index."""
    path = write_small(tmp_path / "dataset", change=_own_file).path
    (path / "media" / "film.mp4").unlink()
    for name in (
        f"{VIDEO}.mp4",
        f"{OTHER}.mp4",
        f".found/{KEY}.json",
        f".claims/0a/{VIDEO}",
        f".work/{KEY}/part.mp4",
        ".found/k002.json",
    ):
        (path / "media" / name).parent.mkdir(parents=True, exist_ok=True)
        (path / "media" / name).write_bytes(b"x" * 1000)
    update_index(path)
    return path


def files(folder: Path) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if os.path.lexists(path) and not path.is_dir()
    }


def index_shows(dataset: Path, video: str) -> bool:
    return any(
        video in pq.read_table(path)["video_id"].to_pylist()
        for path in (dataset / "index").rglob("*.parquet")
    )


OTHERS = {f"{OTHER}.mp4", ".found/k002.json"}


def test_media_on_another_disk_are_deleted(dataset: Path, tmp_path: Path, capsys):
    """`media/` is a link; everything in it is the dataset's."""
    elsewhere = tmp_path / "disk" / "m"
    elsewhere.parent.mkdir()
    (dataset / "media").rename(elsewhere)
    (dataset / "media").symlink_to(elsewhere)
    remove(dataset, videos=[VIDEO], dry_run=True)
    assert "4 files of media and notes, 4.0 kB." in capsys.readouterr().out
    remove(dataset, videos=[VIDEO])
    assert "4 files of media and notes, 4.0 kB." in capsys.readouterr().out
    assert files(elsewhere) == OTHERS
    assert (dataset / "media").is_symlink()


def test_linked_folders_within_media_belong_to_the_dataset(dataset: Path, tmp_path: Path):
    """So do `.work/` and a linked folder of a single download."""
    (dataset / "media" / ".found").rename(tmp_path / "notes")
    (dataset / "media" / ".found").symlink_to(tmp_path / "notes")
    remove(dataset, videos=[VIDEO])
    assert files(tmp_path / "notes") == {"k002.json"}
    assert files(dataset / "media") == {f"{OTHER}.mp4"}


def test_dataset_given_by_an_indirect_path_loses_its_media(dataset, monkeypatch):
    monkeypatch.chdir(dataset / "media")
    remove(Path("../../dataset"), videos=[VIDEO])
    assert files(dataset / "media") == OTHERS


def test_target_of_a_link_within_media_is_deleted(dataset: Path):
    (dataset / "media" / "store").mkdir()
    (dataset / "media" / f"{VIDEO}.mp4").rename(dataset / "media" / "store" / "a.mp4")
    (dataset / "media" / f"{VIDEO}.mp4").symlink_to("store/a.mp4")
    remove(dataset, videos=[VIDEO])
    assert files(dataset / "media") == OTHERS


@pytest.mark.parametrize("whose", ["outside", "another video's", "shared"])
def test_target_of_a_link_out_of_the_dataset_is_kept(
    dataset: Path, tmp_path: Path, capsys, whose: str
):
    """The link is deleted, the file stays, and the command names it and exits with an error."""
    link = dataset / "media" / f"{VIDEO}.mp4"
    link.unlink()
    target = {
        "outside": tmp_path / "film.mp4",
        "another video's": dataset / "media" / f"{OTHER}.mp4",
        "shared": dataset / "media" / "store" / "a.mp4",
    }[whose]
    target.parent.mkdir(exist_ok=True)
    target.write_bytes(b"mine")
    link.symlink_to(target)
    if whose == "shared":
        (dataset / "media" / f"{OTHER}.mp4").unlink()
        (dataset / "media" / f"{OTHER}.mp4").symlink_to(target)
    with pytest.raises(ClipmillError, match=r"1 file of theirs .* could not be deleted"):
        remove(dataset, videos=[VIDEO])
    assert target.read_bytes() == b"mine"
    assert not os.path.lexists(link)
    said = capsys.readouterr()
    assert f"Not deleted: {target}, the target of the link media/{VIDEO}.mp4" in said.err
    assert "1 video from 1 source, with 3 clips" in said.out
    assert all(stone.purged_at for stone in tombstones(dataset))
    remove(dataset, videos=[VIDEO])  # nothing more to do
    assert capsys.readouterr().out == f"{VIDEO} was already removed.\n"


def test_index_without_tables_is_not_an_error(dataset: Path):
    """For example when all shards were set aside to be made again."""
    for path in dataset.glob("*/*1/*.parquet"):
        path.unlink()
    report = update_index(dataset)
    assert report is None or report.n_clips == 0


def test_dangling_link_is_deleted(dataset: Path):
    link = dataset / "media" / f"{VIDEO}.mp4"
    link.unlink()
    link.symlink_to("nowhere")
    remove(dataset, videos=[VIDEO])
    assert not os.path.lexists(link)


class Killed(BaseException):
    """Simulates SIGKILL."""


def test_index_holds_nothing_of_the_video_even_if_the_removal_is_killed(dataset, monkeypatch):
    """Killed before the index is rebuilt, nothing of the video is left in it."""

    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    assert index_shows(dataset, VIDEO)
    monkeypatch.setattr(removal, "update_index", killed)
    with pytest.raises(Killed):
        remove(dataset, videos=[VIDEO])
    monkeypatch.undo()
    assert [bool(stone.purged_at) for stone in tombstones(dataset)] == [True]
    assert not index_shows(dataset, VIDEO)
    update_index(dataset)
    assert index_shows(dataset, OTHER)


def test_verify_finds_a_removed_video_in_the_index(dataset: Path, tmp_path: Path):
    """Its repair reopens the removal, which then finishes."""
    from clipmill.pipeline.verify.repair import repair

    (kept,) = (dataset / "index").glob("*/clips-*.parquet")
    copied = kept.read_bytes()
    remove(dataset, videos=[VIDEO])
    kept.write_bytes(copied)
    report = verify(dataset, media=False)
    found = [fault for fault in report.faults if fault.check == "removal"]
    assert [fault.where for fault in found] == [kept.relative_to(dataset).as_posix()]
    assert "still has rows of removed videos: " + VIDEO in found[0].what
    report.faults = found  # the tables have no sources, which doesn't matter here
    repair(dataset, report)
    assert [stone.purged_at for stone in tombstones(dataset)] == [None]
    removal.finish_removals(dataset)
    assert not index_shows(dataset, VIDEO)
    report = verify(dataset, media=False)
    assert [fault for fault in report.faults if fault.check in ("removal", "index")] == []


@pytest.mark.parametrize("number", [1, 13, 28, 30])
def test_unwritable_shard_is_one_error_and_the_removal_finishes_later(
    dataset: Path, monkeypatch, capsys, number: int
):
    """EPERM, EACCES, ENOSPC or EROFS: the message says that the removal is in effect."""

    def refused(source: Path, target: Path) -> None:
        if "split_clips" in str(target):
            raise OSError(number, os.strerror(number), str(source), None, str(target))
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(shards.os, "replace", refused)
    with pytest.raises(ClipmillError) as error:
        remove(dataset, videos=[VIDEO])
    assert error.value.exit_status == 1
    said = str(error.value)
    assert said.startswith(
        f"cannot write to {dataset / 'split_clips' / 'c1'}: {os.strerror(number)};"
    )
    assert "The removal is in force anyway" in said
    monkeypatch.undo()
    assert [stone.purged_at for stone in tombstones(dataset)] == [None]
    remove(dataset, videos=[VIDEO])
    assert "Finishing 1 removal interrupted earlier" in capsys.readouterr().out
    assert all(stone.purged_at for stone in tombstones(dataset))
    assert not any(
        VIDEO in pq.read_table(path)["video_id"].to_pylist()
        for path in (dataset / "split_clips").rglob("*.parquet")
    )


def test_subset_frozen_during_a_removal_is_named(dataset, monkeypatch, capsys):
    def rewrite_and_freeze(path: Path, selection: removal.Selection) -> None:
        rewrite(path, selection)
        if "mine" not in subset_names(dataset):
            freeze(dataset, "mine", [f"{VIDEO}-0-2000", f"{OTHER}-0-2000"])

    rewrite = removal.rewrite_shard
    monkeypatch.setattr(removal, "rewrite_shard", rewrite_and_freeze)
    remove(dataset, videos=[VIDEO])
    assert "Frozen subset mine contains 1 clip of them" in capsys.readouterr().out


def test_subset_is_not_frozen_with_clips_removed_meanwhile(dataset: Path, tmp_path: Path):
    """The removal has already looked for subsets by then; frozen again, it has none of them."""

    def say(step: str) -> None:
        if step == "writing the clips":
            remove(dataset, videos=[VIDEO])

    recipe = tmp_path / "mine.yaml"
    recipe.write_text("rules: [{where: duration_seconds > 0}]\n")
    with (
        open_catalog(dataset) as catalog,
        pytest.raises(ClipmillError, match=r"3 clips of the subset 'mine' .*command again"),
    ):
        create_subset(
            catalog, load_subset_recipe(recipe), name="mine", code_version="1", on_step=say
        )
    assert subset_names(dataset) == []
    with open_catalog(dataset) as catalog:
        subset, _ = create_subset(
            catalog, load_subset_recipe(recipe), name="mine", code_version="1"
        )
    assert subset.info["n_clips"] == 9
