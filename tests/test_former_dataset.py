"""A dataset made by release 0.1: everything that users do with theirs still works.

It is in `files/dataset_of_0.1.tar.xz`. Its recipe: four URLs on loopback (two films of 9 and 5 s,
160×120, flat colours with a moving square; one of 0.5 s; one file of garbage), download_videos,
split_clips, tag_clips, embed_clips, score_aesthetic (the demo's models), hash_frames; then `subset
create --where "aesthetic > 0" --name all`. `@CHECKOUT@` and `@FOLDER@` are placeholders for paths.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.in_process import Done, heard

FORMER = Path(__file__).parent / "files" / "dataset_of_0.1.tar.xz"
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def former(tmp_path: Path) -> Path:
    with tarfile.open(FORMER) as tar:
        tar.extractall(tmp_path, filter="data")
    for path in (tmp_path / "dataset").rglob("*.json*"):
        if path.parent.name == "runs" or "logs" in path.parts:
            text = path.read_text("utf-8")
            path.write_text(
                text.replace("@CHECKOUT@", str(ROOT)).replace("@FOLDER@", str(tmp_path)), "utf-8"
            )
    return tmp_path / "dataset"


@pytest.fixture
def clipmill(capfd) -> Callable[..., Done]:
    """Runs a command that must succeed."""

    def run(*words: object) -> Done:
        done = heard(capfd, *words)
        assert done.returncode == 0, done.stderr
        return done

    return run


def test_former_clips_are_unchanged(former: Path, clipmill):
    rows = clipmill(
        "sql",
        former,
        "SELECT clip_id, video_id, start_seconds, aesthetic, tags FROM clips ORDER BY clip_id",
        "--format",
        "json",
    ).stdout
    assert json.loads(rows) == json.loads((former.parent / "clips.json").read_text())


def test_former_dataset_has_no_faults(former: Path, clipmill):
    assert "no faults" in clipmill("verify", former).stderr


def test_former_status_adds_up(former: Path, clipmill):
    stages = json.loads(clipmill("status", former, "--format", "json").stdout)["stages"]
    by_name = {stage["stage"]: stage for stage in stages}
    counts = [
        by_name["download_videos"][name]
        for name in ("inputs", "kept", "rejected", "failed", "pending")
    ]
    assert counts == [4, 2, 1, 1, 0]
    assert by_name["score_aesthetic"]["kept"] == 5


def test_run_is_complete_and_then_recomputes_for_a_changed_setting(former: Path, clipmill):
    assert "Nothing to do" in clipmill("run", "--dataset", former).stderr
    done = clipmill("run", "--dataset", former, "--set", "split_clips.threshold=30")
    assert "Done in" in done.stderr
    totals = json.loads(clipmill("status", former, "--format", "json").stdout)["totals"]
    assert totals["decoded_frames"] == 142  # as before: no video was opened again


def test_former_subset_can_be_exported(former: Path, clipmill):
    clipmill(
        "export",
        former,
        "--subset",
        "all",
        "--format",
        "parquet",
        "--output",
        former.parent / "out",
    )
    assert list((former.parent / "out").glob("*.parquet"))
