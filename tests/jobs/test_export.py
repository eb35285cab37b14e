"""`clipmill export` from scripts, with the demo's films and real processes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipmill.jobs.cli import main
from tests.jobs.test_cli import ROOT
from tests.pipeline.exports.small_dataset import contents, write_small


def test_demo_clips_round_trip_through_webdataset(made, tmp_path, clipmill):
    """Standard output says what became of the clips, and nothing else."""
    import webdataset

    out = tmp_path / "out"
    done = clipmill(
        "export",
        str(made.dataset),
        "--format",
        "webdataset",
        "--output",
        str(out),
        "--media",
        "exact",
        "--short-side",
        "90",
        "--engine",
        "local",
    )
    assert done.returncode == 0, done.stderr
    count = len(list(webdataset.WebDataset(str(out / "clips-000000.tar"), shardshuffle=False)))
    assert done.stdout.startswith(f"{count} clips: {count} exported, 0 left out, 0 failed\n1 file,")
    assert len(done.stdout.splitlines()) == 2
    assert done.stderr == ""


# The command; after cutting it hangs, so that it can be killed at any time.
NEVER_DONE = """
import time
from clipmill.jobs.cli import main
from clipmill.pipeline.exports import run_export
run_export._write = lambda *asked: time.sleep(600)
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("other_engine", ["local", "ray"])
def test_killed_export_resumes_and_equals_an_undisturbed_one(tmp_path, other_engine, clipmill):
    """Killed while processes cut; the other one runs undisturbed, also on Ray."""
    write_small(tmp_path / "dataset", 20)
    words = [
        "export",
        str(tmp_path / "dataset"),
        "--format",
        "webdataset",
        "--media",
        "exact",
        "--shard-size",
        "300kB",
    ]
    killed = subprocess.Popen(
        [
            sys.executable,
            "-c",
            NEVER_DONE,
            *words,
            "--output",
            str(tmp_path / "a"),
            "--engine",
            "local",
        ],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    units = tmp_path / "a" / ".work" / "units" / "000000"
    while killed.poll() is None and not list(units.glob("*.parquet")):
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert not json.loads((tmp_path / "a" / "export.json").read_text()).get("counts")
    again = clipmill(*words, "--output", str(tmp_path / "a"), "--engine", "local")
    other = clipmill(*words, "--output", str(tmp_path / "b"), "--engine", other_engine)
    assert (again.returncode, other.returncode) == (0, 0), again.stderr + other.stderr
    assert again.stdout.splitlines()[0] == (
        "60 clips: 59 exported, 1 left out (1 no caption), 0 failed"
    )
    first, second = contents(tmp_path / "a"), contents(tmp_path / "b")
    assert list(first) == list(second)
    for name in first:
        # The code's version may change between two calls, if someone edits it.
        if name != "export.json":
            assert first[name] == second[name], name
    third = clipmill(*words, "--output", str(tmp_path / "a"))
    assert third.returncode == 0
    assert "already contains this export, complete: nothing to do" in third.stdout


def test_failed_rows_are_reported_and_not_fatal(tmp_path, clipmill):
    small = write_small(tmp_path / "dataset", 2)
    shutil.rmtree(small.path / "media")
    done = clipmill(
        "export",
        str(small.path),
        "--format",
        "parquet",
        "--media",
        "copy",
        "--engine",
        "local",
        "--output",
        str(tmp_path / "out"),
    )
    assert done.returncode == 0
    assert "6 clips: 0 exported, 0 left out, 6 failed (6 permanent)" in done.stdout
    assert "failures.jsonl" in done.stderr


def test_internvids_scores_are_explained_on_standard_error(tmp_path, clipmill):
    small = write_small(tmp_path / "dataset", 2, settings={"umt_sim": {"scorer": "CLIP"}})
    done = clipmill(
        "export", str(small.path), "--format", "internvid", "--output", str(tmp_path / "out")
    )
    assert done.returncode == 0
    assert "UMT_Score is null: the catalog has no score by UMT-SIM" in done.stderr
    assert "Aesthetic_Score is the column aesthetic" in done.stderr
    assert "3 not from YouTube" in done.stdout or "2 not from YouTube" in done.stdout


def test_left_out_clips_are_reported(tmp_path, clipmill):
    small = write_small(tmp_path / "dataset", 2)
    done = clipmill(
        "export",
        str(small.path),
        "--format",
        "huggingface",
        "--output",
        str(tmp_path / "out"),
        "--where",
        "duration_seconds < 2.2",
    )
    assert done.stdout.splitlines()[0] == (
        "6 clips: 3 exported, 3 left out (1 no caption, 2 where), 0 failed"
    )
    assert "--keep-uncaptioned" in done.stderr
    kept = clipmill(
        "export",
        str(small.path),
        "--format",
        "huggingface",
        "--output",
        str(tmp_path / "kept"),
        "--keep-uncaptioned",
    )
    assert "6 exported" in kept.stdout
    assert pq.read_table(tmp_path / "kept" / "data", columns=["caption"]).num_rows == 6


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--format", "parquet", "--shard-size", "big"], ["--shard-size 'big'", "1GB"]),
        (["--format", "parquet", "--shard-size", "1kB"], ["10kB"]),
        (["--format", "internvid", "--media", "copy"], ["metadata only"]),
        (
            ["--format", "csv", "--documents", "b", "--seed", "3"],
            ["--documents, --seed", "interleaved"],
        ),
        (["--format", "interleaved", "--drop", "1"], ["--drop 1", "below 1"]),
        (["--format", "csv", "--crf", "20"], ["--crf", "--media exact"]),
        (["--format", "csv", "--media", "copy", "--short-side", "64"], ["--short-side"]),
        (
            ["--format", "csv", "--media", "exact", "--start", "nearest"],
            ["--start", "--media copy"],
        ),
        (["--format", "csv", "--no-audio"], ["--no-audio"]),
        (["--format", "csv", "--subset", "best"], ["no subset 'best'", "subset create"]),
        (["--format", "csv", "--where", "similarty > 1"], ["similarty", "similarity"]),
        (["--format", "csv", "--caption", "captoin"], ["captoin", "did you mean caption"]),
    ],
)
def test_usage_error_is_one_clear_message_and_status_2(
    made, tmp_path, words, parts, monkeypatch, capsys
):
    monkeypatch.setattr(
        sys,
        "argv",
        ["clipmill", "export", str(made.dataset), *words, "--output", str(tmp_path / "out")],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (2, "")
    assert said.err.startswith("Error: ")
    for part in parts:
        assert part in said.err
    assert not (tmp_path / "out").exists()


def test_folder_that_is_not_a_dataset_is_named(tmp_path: Path, clipmill):
    done = clipmill(
        "export", str(tmp_path / "none"), "--format", "csv", "--output", str(tmp_path / "out")
    )
    assert done.returncode == 2
    assert "no dataset at" in done.stderr
