"""Allowed output folders of exports, and foreign files in them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from clipmill.jobs.logs import show_logs
from clipmill.jobs.report.page import write_report
from clipmill.jobs.sql import run_sql
from clipmill.jobs.subset import list_subsets
from clipmill.pipeline.exports import folder
from clipmill.pipeline.status import status_report
from clipmill.schemas.errors import ClipmillError, UsageError
from tests.pipeline.exports.small_dataset import Small, contents, export, write_small


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return write_small(tmp_path / "dataset", 2)


@pytest.mark.parametrize("names", [("thesis.tex",), ("lock", "thesis.tex"), ("rows/a",)])
def test_foreign_work_folder_is_refused_and_kept(small, tmp_path, names):
    """Even with a file `lock` in it, or a folder with the name of an export's."""
    out = tmp_path / "out"
    for name in names:
        (out / ".work" / name).parent.mkdir(parents=True, exist_ok=True)
        (out / ".work" / name).write_text("mine")
    before = contents(out)
    with pytest.raises(UsageError, match=r"not empty \(\.work\)"):
        export(small, out, "parquet")
    assert contents(out) == before


def test_foreign_files_next_to_an_exports_work_are_kept(small, tmp_path):
    out = tmp_path / "out"
    export(small, out, "parquet")
    (out / ".work").mkdir()
    (out / ".work" / "thesis.tex").write_text("mine")
    assert export(small, out, "parquet").was_finished
    assert [path.name for path in (out / ".work").iterdir()] == ["thesis.tex"]


def test_empty_export_removes_only_folders_that_it_created(small, tmp_path):
    """Including their parents."""
    (tmp_path / "mine").mkdir()
    for out in (tmp_path / "mine", tmp_path / "mine" / "new" / "deep"):
        with pytest.raises(UsageError, match="nothing to export"):
            export(small, out, "parquet", where="similarity > 5")
        assert list((tmp_path / "mine").iterdir()) == []


def test_work_folder_on_another_disk_is_used(small, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (tmp_path / "fast").mkdir()
    (out / ".work").symlink_to(tmp_path / "fast")
    export(small, out, "parquet")
    assert list((tmp_path / "fast").iterdir()) == []


def test_concurrent_export_to_the_same_folder_is_detected(small, tmp_path, monkeypatch):
    """The folder is checked again under the lock, so that two exports never mix."""
    out = tmp_path / "out"
    done = []

    def slow(path, *rest, **more):
        if str(path).endswith(".work/lock") and not done:
            done.append(True)
            export(small, out, "csv")
        return real(path, *rest, **more)

    real = os.open
    monkeypatch.setattr(folder.os, "open", slow)
    with pytest.raises(UsageError, match="--format was 'csv' and is now 'parquet'"):
        export(small, out, "parquet")
    assert set(contents(out)) == {"clips-000000.csv", "export.json"}


def test_file_created_meanwhile_is_detected_and_kept(small, tmp_path, monkeypatch):
    out = tmp_path / "out"

    def slow(path, *rest, **more):
        if str(path).endswith(".work/lock"):
            (out / "thesis.tex").write_text("mine")
        return real(path, *rest, **more)

    real = os.open
    monkeypatch.setattr(folder.os, "open", slow)
    with pytest.raises(UsageError, match=r"not empty \(thesis\.tex\)"):
        export(small, out, "parquet")
    assert contents(out) == {"thesis.tex": b"mine"}


def test_lock_file_deleted_by_its_holder_is_not_a_lock(small, tmp_path, monkeypatch):
    """A process that waits for an export to end may lock a file that is already deleted."""
    out = tmp_path / "out"
    opened = []

    def slow(path, *rest, **more):
        found = real(path, *rest, **more)
        if str(path).endswith(".work/lock"):
            opened.append(found)
            if len(opened) == 1:
                Path(path).unlink()
        return found

    real = os.open
    monkeypatch.setattr(folder.os, "open", slow)
    with folder.open_folder(out):
        assert len(opened) == 2
        code = (
            "import sys; from pathlib import Path\n"
            "from clipmill.pipeline.exports import folder\n"
            "with folder.open_folder(Path(sys.argv[1])): pass"
        )
        other = subprocess.run(
            [sys.executable, "-c", code, str(out)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    assert "another process is exporting" in other.stderr


@pytest.mark.parametrize(
    "name",
    [
        "removed",
        "retries",
        "retries/deep",
        "media/out",
        "runs",
        "split_clips",
        "split_clips/c1/out",
        "embed_clips",
        "journal",
        "",
        ".",
        "../dataset/index",
        "quarantine",
        ".scratch/out",
        "umt_sim/x",
    ],
)
def test_export_inside_the_datasets_own_files_is_refused(small, name):
    before = contents(small.path)
    with pytest.raises(UsageError, match=r"keeps its own files in .*; give a place outside"):
        export(small, small.path / name, "parquet")
    assert contents(small.path) == before
    status_report(small.path)


def test_export_through_a_link_into_the_dataset_is_refused(small, tmp_path):
    (tmp_path / "link").symlink_to(small.path)
    (tmp_path / "disk").mkdir()
    (small.path / "media").rename(tmp_path / "disk" / "m")
    (small.path / "media").symlink_to(tmp_path / "disk" / "m")
    with pytest.raises(UsageError, match="keeps its own files in removed"):
        export(small, tmp_path / "link" / "removed", "parquet")
    with pytest.raises(UsageError, match="keeps its media there"):
        export(small, tmp_path / "disk" / "m" / "out", "parquet")


def test_export_to_another_folder_of_the_dataset_is_allowed(small):
    export(small, small.path / "exports" / "one", "parquet")
    assert status_report(small.path)["totals"]["clips"] == 6
    assert export(small, small.path / "exports" / "one", "parquet").was_finished


def test_no_other_output_replaces_a_file_of_the_dataset(small, tmp_path):
    (small.path / "subsets").mkdir()
    before = contents(small.path)
    record = small.path / "runs" / "r1.json"
    for write in (
        lambda: run_sql(small.path, "SELECT 1", format="csv", output=record),
        lambda: write_report(small.path, record),
        lambda: list_subsets(small.path, format="csv", output=record),
        lambda: show_logs(small.path, "r1", format="csv", output=record),
    ):
        with pytest.raises(ClipmillError, match="keeps its own files in runs there") as error:
            write()
        assert error.value.exit_status == 2
    assert contents(small.path) == before
    run_sql(small.path, "SELECT 1 AS a", format="csv", output=small.path / "answer.csv")
    assert (small.path / "answer.csv").read_text() == "a\n1\n"
