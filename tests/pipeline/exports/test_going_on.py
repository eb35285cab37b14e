"""Who owns an output folder, and how a stopped export is resumed."""

from __future__ import annotations

import json
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest

from clipmill.jobs.remove import remove
from clipmill.pipeline.engine import parallel_map as tasks
from clipmill.pipeline.exports import selection, units
from clipmill.pipeline.exports.request import ExportRequest, Interleaving, cut_options
from clipmill.pipeline.exports.run_export import ExportWatcher, run_export
from clipmill.schemas.errors import ClipmillError, UsageError
from tests.pipeline.exports.small_dataset import (
    Small,
    contents,
    export,
    freeze,
    write_small,
    youtube_id,
)


@pytest.fixture
def small(tmp_path: Path) -> Small:
    return write_small(tmp_path / "dataset")


class Stopped(Exception):
    """Simulates a user's Ctrl-C."""


def stop_after(small: Small, output: Path, format: str, steps: int, **asked: Any) -> bool:
    """Exports until this many steps were reported; False if it completed before that."""
    left = steps

    def step(clips: int, failed: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped

    request = ExportRequest(small.path, output, format, engine="local", **asked)
    try:
        run_export(request, code_version="test", watcher=ExportWatcher(step=step))
    except Stopped:
        return True
    return False


@pytest.mark.parametrize(
    ("format", "asked"),
    [
        ("parquet", {"shard_bytes": 40_000}),
        ("interleaved", {"interleaving": Interleaving("c")}),
        ("webdataset", {"shard_bytes": 40_960}),
        ("huggingface", {"cut": cut_options("copy"), "shard_bytes": 150_000}),
    ],
)
def test_resumed_export_is_bytewise_equal(tmp_path, monkeypatch, format, asked):
    """Stopped again and again, its result equals that of an uninterrupted one."""
    monkeypatch.setattr(selection, "ROWS_UNIT_CLIPS", 12)
    monkeypatch.setattr(selection, "MEDIA_UNIT_VIDEOS", 4)
    many = write_small(tmp_path / "dataset", 20)
    asked = {"shard_bytes": 10_000, **asked}
    whole = tmp_path / "whole" / "out"  # the same name, because the card contains the command
    assert len(export(many, whole, format, **asked).manifest["files"]) > 1
    out = tmp_path / "out"
    stops, before = 0, {}
    for steps in (2, 7, 3):
        if stop_after(many, out, format, steps, **asked):
            stops += 1
            before = {
                path: path.stat().st_mtime_ns
                for path in out.rglob("*-0*")
                if path.is_file() and path.parent.name in ("out", "data")
            }
    export(many, out, format, **asked)
    assert stops >= 2
    assert before
    assert contents(out) == contents(whole)
    assert before == {path: path.stat().st_mtime_ns for path in before}  # not written again


def test_resumed_export_keeps_the_rows_of_its_start(tmp_path, monkeypatch):
    """An export of a frozen subset is resumed although the dataset has grown meanwhile."""
    monkeypatch.setattr(selection, "ROWS_UNIT_CLIPS", 6)
    small = write_small(tmp_path / "dataset", 6)
    freeze(small.path, "mine", small.clip_ids)
    export(small, tmp_path / "whole", "csv", subset="mine", shard_bytes=10_000)
    assert stop_after(small, tmp_path / "out", "csv", 4, subset="mine", shard_bytes=10_000)
    shard = small.path / "summarize_captions" / "m1" / "000000.parquet"
    (shard.parent / "000001.parquet").write_bytes(shard.read_bytes())
    export(small, tmp_path / "out", "csv", subset="mine", shard_bytes=10_000)
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_finished_export_is_left_alone(small, tmp_path):
    export(small, tmp_path / "out", "parquet")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")}
    assert export(small, tmp_path / "out", "parquet").was_finished
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*")} == before


def test_different_export_is_refused_with_the_difference(small, tmp_path):
    export(small, tmp_path / "out", "parquet")
    with pytest.raises(UsageError, match=r"--redact was False and is now True"):
        export(small, tmp_path / "out", "parquet", redact=True)
    with pytest.raises(UsageError, match=r"--format was 'parquet' and is now 'csv'"):
        export(small, tmp_path / "out", "csv")


def test_changed_dataset_makes_a_different_export(small, tmp_path):
    """Without a frozen subset, the clips are those in the current catalog."""
    export(small, tmp_path / "out", "parquet")
    shard = small.path / "split_clips" / "c1" / "000000.parquet"
    (shard.parent / "000001.parquet").write_bytes(shard.read_bytes())
    with pytest.raises(UsageError, match=r"has changed since.*subset create"):
        export(small, tmp_path / "out", "parquet")


def test_folder_with_other_files_is_refused(small, tmp_path):
    """Its contents are left unchanged."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "thesis.tex").write_text("mine")
    with pytest.raises(UsageError, match=r"not empty \(thesis.tex\)"):
        export(small, out, "parquet")
    assert contents(out) == {"thesis.tex": b"mine"}
    (out / "export.json").write_text("[]")
    with pytest.raises(UsageError, match="belongs to an export of another version"):
        export(small, out, "parquet")
    with pytest.raises(UsageError, match="this is a file"):
        export(small, out / "thesis.tex", "parquet")


def test_empty_folder_and_remains_of_a_killed_start_are_used(small, tmp_path):
    out = tmp_path / "out"
    (out / ".work" / "rows").mkdir(parents=True)
    (out / ".work" / "lock").touch()
    (out / ".export~12ab34cd.tmp").write_text("{")
    export(small, out, "parquet")
    assert (out / "clips-000000.parquet").exists()


def test_only_one_process_writes_into_a_folder(small, tmp_path):
    def again(step: str, clips: int | None) -> None:
        with pytest.raises(ClipmillError, match="another process is exporting"):
            export(small, tmp_path / "out", "parquet")

    request = ExportRequest(small.path, tmp_path / "out", "parquet")
    run_export(request, code_version="test", watcher=ExportWatcher(begin=again))


def test_export_without_clips_is_an_error_and_leaves_no_folder(tmp_path):
    files = write_small(tmp_path / "dataset", 2, change=_no_youtube)
    with pytest.raises(UsageError, match=r"of 6 clips all are left out .*6 not from YouTube|5 not"):
        export(files, tmp_path / "out", "internvid")
    with pytest.raises(UsageError, match="nothing to export"):
        export(files, tmp_path / "out", "parquet", where="similarity > 5")
    assert not (tmp_path / "out").exists()


def _no_youtube(step: str, row: dict[str, Any]) -> None:
    if step == "download_videos":
        row["extractor"] = "vimeo"


def test_predicate_narrows_an_exported_subset(small, tmp_path):
    chosen = small.clip_ids[::2]
    freeze(small.path, "mine", chosen)
    done = export(small, tmp_path / "out", "parquet", subset="mine", where="aesthetic > 5")
    assert done.manifest["counts"] == {
        "clips": 6,
        "exported": 2 * 2,
        "failed": {},
        "left_out": {"where": 2},
    }
    assert done.manifest["provenance"]["subset"]["name"] == "mine"
    with pytest.raises(UsageError, match=r"no subset 'min'.*did you mean mine"):
        export(small, tmp_path / "b", "parquet", subset="min")


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("similarty > 3", "similarity"),
        ("similarity", "is a FLOAT; expected a condition that is true or false"),
        ("similarity > ", "--where"),
        ("1=1) UNION ALL SELECT * FROM clips WHERE (1=1", "--where"),
        ("caption IN (SELECT content FROM read_text('/etc/passwd'))", "--where"),
    ],
)
def test_predicate_is_one_expression_over_clips(small, tmp_path, where, said):
    with pytest.raises(UsageError, match=said):
        export(small, tmp_path / "out", "parquet", where=where)
    assert not (tmp_path / "out").exists()


def test_removed_videos_are_not_exported(small, tmp_path, capsys):
    """A frozen subset still contains their clips; the number that is gone is reported."""
    freeze(small.path, "mine", [*small.clip_ids, "file-999-0-1000"])
    removed = f"youtube-{youtube_id(0)}"
    remove(small.path, videos=[removed])
    done = export(small, tmp_path / "out", "webdataset", subset="mine", uncaptioned=True)
    assert done.manifest["counts"] == {
        "clips": 13,
        "exported": 9,
        "failed": {},
        "left_out": {"removed": 3, "not in the catalog": 1},
    }
    assert all(
        youtube_id(0).encode() not in data for name, data in contents(tmp_path / "out").items()
    )


def test_caption_may_come_from_another_column(small, tmp_path):
    done = export(small, tmp_path / "out", "internvid", caption="caption_coarse")
    lines = (tmp_path / "out" / "internvid-000000.jsonl").read_text().splitlines()
    assert json.loads(lines[0])["Caption"] == "red ground"
    assert done.manifest["counts"]["left_out"] == {"not from YouTube": 6}
    with pytest.raises(UsageError, match=r"did you mean caption_coarse"):
        export(small, tmp_path / "b", "internvid", caption="caption_corse")
    with pytest.raises(UsageError, match=r"captions_fine: this is not text"):
        export(small, tmp_path / "b", "internvid", caption="captions_fine")


def test_nan_and_infinity_become_null_in_text(tmp_path):
    """They are not valid JSON."""

    def change(step: str, row: dict[str, Any]) -> None:
        if step == "score_similarity":
            row["similarity"] = float("nan")
        if step == "umt_sim":
            row["given_score"] = float("-inf")

    odd = write_small(tmp_path / "dataset", change=change)
    export(odd, tmp_path / "a", "internvid")
    line = (tmp_path / "a" / "internvid-000000.jsonl").read_text().splitlines()[0]
    assert json.loads(line)["UMT_Score"] is None
    export(odd, tmp_path / "b", "webdataset")
    data = contents(tmp_path / "b")["clips-000000.tar"]
    assert b"NaN" not in data
    assert b"Infinity" not in data


def test_stopped_export_has_no_processes_left_when_it_raises(tmp_path, monkeypatch):
    """Although the caller still holds the error, and with it the frames of the export."""
    monkeypatch.setattr(tasks, "usable_cpus", lambda: 2)
    small = write_small(tmp_path / "dataset", 60)
    others = set(active_children())  # of earlier tests

    def step(clips: int, failed: int) -> None:
        if set(active_children()) - others:  # none yet while clips are selected
            raise Stopped

    request = ExportRequest(
        small.path, tmp_path / "out", "parquet", engine="local", cut=cut_options("copy")
    )
    with pytest.raises(Stopped) as held:
        run_export(request, code_version="test", watcher=ExportWatcher(step=step))
    assert held.value.__traceback__ is not None
    assert set(active_children()) <= others


def test_worker_that_outlives_its_export_commits_nothing(small, tmp_path):
    """Its killed parent was started again, and another worker may process the same unit."""
    out = tmp_path / "out"
    assert stop_after(small, out, "webdataset", 1)
    (out / ".work" / "token").write_text("of the export that goes on")
    request = ExportRequest(small.path, out, "webdataset", engine="local")
    (unit,) = selection.load_selection(out / ".work" / "rows").units
    units.unit_file(out, unit).unlink()
    with pytest.raises(ClipmillError, match="another export has taken over"):
        units.work_on_unit(units.UnitTask(request, unit, "of the one that was killed"))
    assert not units.unit_file(out, unit).exists()
