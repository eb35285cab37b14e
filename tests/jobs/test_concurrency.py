"""Concurrent commands: only one writes to a dataset, and readers see only whole shards."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from clipmill.jobs.importing import import_internvid
from clipmill.jobs.indexing import index_dataset
from clipmill.jobs.remove import remove
from clipmill.jobs.report.page import report_on
from clipmill.jobs.run import run
from clipmill.jobs.status import print_status
from clipmill.jobs.verify import verify_dataset
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.dataset.commit_fence import is_held
from clipmill.pipeline.dataset.locks import dataset_lock, remove_if_empty
from clipmill.pipeline.run import load
from clipmill.pipeline.status import status_report
from clipmill.pipeline.subsets.freeze import create_subset
from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe
from clipmill.schemas.errors import ClipmillError

ROOT = Path(__file__).resolve().parents[2]
STAGES = {
    "download_videos": "Download",
    "split_clips": "Split",
    "caption_frames": "Caption",
    "summarize_captions": "Summarize",
}
CLIPS = 6
VIDEOS = 6


def recipe(folder: Path, videos: int, **settings: dict) -> Path:
    """One video per shard; `settings` are for stages."""
    urls = [f"https://v{n}.test/?clips={CLIPS}" for n in range(videos)]
    (folder / "urls.txt").write_text("\n".join(urls) + "\n")
    path = folder / "slow.yaml"
    stages = {
        label: {
            "stage": f"{Path(__file__).with_name('slow_stages.py')}:{cls}",
            **settings.get(label, {}),
        }
        for label, cls in STAGES.items()
    }
    path.write_text(
        yaml.safe_dump(
            {"sources": ["urls.txt"], "shard_videos": 1, "engine": "local", "stages": stages},
            sort_keys=False,
        )
    )
    return path


@contextmanager
def clipmill(*words: object) -> Iterator[subprocess.Popen[str]]:
    """The command in a separate process, killed at the end if it is still running."""
    with subprocess.Popen(
        [sys.executable, "-m", "clipmill.jobs.cli", *map(str, words)],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def until(true: Callable[[], object], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def test_writers_during_a_run_are_refused_and_told_its_process(tmp_path, capsys):
    """Every writer is refused, and nothing is changed; a killed holder leaves no lock behind."""
    gate, dataset = tmp_path / "gate", tmp_path / "dataset"
    path = recipe(tmp_path, 2, split_clips={"gate": str(gate)})
    began = datetime.now(UTC).replace(microsecond=0)
    with clipmill("run", path, "--dataset", dataset) as holder:
        until(lambda: list(dataset.glob("download_videos/*/*.parquet")))
        before = sorted(str(file) for file in dataset.rglob("*.parquet"))
        with clipmill("run", path, "--dataset", dataset) as second:
            out, err = second.communicate(timeout=60)
        assert second.returncode == 1
        assert out == ""
        assert re.search(
            rf"^Error: another command is using {re.escape(str(dataset))}: "
            rf"`clipmill run`, process {holder.pid} on \S+, since "
            r"20\d\d-\d\d-\d\d \d\d:\d\d:\d\d UTC; wait until it is done \(--wait "
            r"does\), or stop it$",
            err,
            re.M,
        ), err
        for other in (
            lambda: run(load(None, dataset), dataset, retry_kinds=[]),
            lambda: remove(dataset, videos=["generic-v0"]),
            lambda: index_dataset(dataset),
            lambda: verify_dataset(dataset, repairs=True),
            lambda: import_internvid(dataset, [path], shard_videos=1),
        ):
            with pytest.raises(ClipmillError, match=f"process {holder.pid} on"):
                other()
        assert sorted(str(file) for file in dataset.rglob("*.parquet")) == before
        assert is_held(dataset)
        moved = datetime.fromisoformat(status_report(dataset)["moved_at"])
        assert began <= moved <= datetime.now(UTC)
        capsys.readouterr()
        print_status(dataset)
        # It may have progressed since.
        shown = re.search(r"ago, at ([-0-9]{10} [:0-9]{8}) UTC", capsys.readouterr().out)[1]
        assert f"{moved:%Y-%m-%d %H:%M:%S}" <= shown <= f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
        holder.send_signal(signal.SIGKILL)
        holder.wait(60)
        assert not is_held(dataset)
        assert status_report(dataset)["moved_at"] is None
    gate.touch()
    assert run(load(str(path), None), dataset)
    report = status_report(dataset)
    assert report["totals"]["clips"] == 2 * CLIPS


@pytest.mark.slow
def test_wait_starts_the_second_when_the_first_is_done(tmp_path):
    """It then uses the recipe of the run that it waited for."""
    gate, dataset = tmp_path / "gate", tmp_path / "dataset"
    path = recipe(tmp_path, 2, split_clips={"gate": str(gate)})
    with clipmill("run", path, "--dataset", dataset) as first:
        until(lambda: list((dataset / "runs").glob("*.json")) if dataset.exists() else False)
        with clipmill("retry", dataset, "--wait") as second:
            said = second.stderr.readline()
            assert said.startswith(
                f"Another command is using {dataset}: `clipmill run`, process {first.pid} on "
            )
            assert said.endswith("waiting until it is done.\n")
            assert first.poll() is None
            gate.touch()
            out, err = second.communicate(timeout=60)
        assert first.wait(60) == 0
        assert second.returncode == 0, err
        assert "Nothing to retry" in err
        assert "2/2" in out


def test_lock_of_a_deleted_dataset_is_not_a_lock(tmp_path, monkeypatch):
    """The first run failed and deleted the folder just before the lock was taken."""
    flock = fcntl.flock

    def late(file, how: int) -> None:
        monkeypatch.setattr("fcntl.flock", flock)
        remove_if_empty(tmp_path / "dataset")
        (tmp_path / "dataset").mkdir()
        flock(file, how)

    (tmp_path / "dataset").mkdir()
    monkeypatch.setattr("fcntl.flock", late)
    with dataset_lock(tmp_path / "dataset"):
        assert is_held(tmp_path / "dataset")
    assert not is_held(tmp_path / "dataset")


def test_folder_that_cannot_be_locked_is_reported(tmp_path):
    with pytest.raises(ClipmillError, match="cannot write to"), dataset_lock(tmp_path / "none"):
        pass


def test_only_one_subset_of_a_name_is_created_at_a_time(tmp_path):
    dataset = tmp_path / "dataset"
    run(load(str(recipe(tmp_path, 1)), None), dataset)
    (tmp_path / "all.yaml").write_text("rules: [{where: 'duration_seconds > 0'}]\n")
    loaded = load_subset_recipe(tmp_path / "all.yaml")
    (dataset / "subsets").mkdir()
    holding = f"""
import fcntl, sys
with open({str(dataset / "subsets" / ".all.lock")!r}, "a") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    print("held", flush=True)
    sys.stdin.read()
"""
    with subprocess.Popen(
        [sys.executable, "-c", holding], stdin=subprocess.PIPE, text=True, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout.readline() == "held\n"
        with (
            open_catalog(dataset) as catalog,
            pytest.raises(ClipmillError, match="another process is creating the subset 'all'"),
        ):
            create_subset(catalog, loaded, name="all", code_version="1")
        os.kill(other.pid, signal.SIGKILL)
        other.wait()
    with open_catalog(dataset) as catalog:
        subset, is_new = create_subset(catalog, loaded, name="all", code_version="1")
    assert is_new
    assert subset.info["n_clips"] == CLIPS


def look(dataset: Path) -> tuple[int, int, int, int]:
    """Current videos, clips, captions and summaries; a video has all of its clips or none."""
    with open_catalog(dataset) as catalog:
        # Queries of separate views, and the joined one, like a user's.
        rows = catalog.execute(
            "SELECT video_id, count(*), count(DISTINCT clip_id), count(caption_coarse), "
            "count(caption) FROM clips GROUP BY video_id"
        ).fetchall()
        (videos,) = catalog.execute("SELECT count(*) FROM videos").fetchone()
    for _, clips, distinct, coarse, summaries in rows:
        assert clips == distinct == CLIPS
        assert coarse in (0, CLIPS // 2, CLIPS)  # first every second one, after a retry all
        assert summaries in (0, CLIPS)
    return (videos, *(sum(row[n] for row in rows) for n in (1, 3, 4)))


@pytest.mark.slow
def test_readers_see_only_whole_shards_and_growing_counts(tmp_path, capsys):
    """Queries, status and reports run while a run and then a retry write in another process."""
    dataset, mend, looks = tmp_path / "dataset", tmp_path / "mended", tmp_path / "looks"
    looks.touch()
    path = recipe(tmp_path, VIDEOS, caption_frames={"mend_file": str(mend), "looks": str(looks)})
    seen: list[tuple[int, ...]] = [(0, 0, 0, 0)]
    kept: dict[str, int] = {}

    def watch(process: subprocess.Popen[str]) -> None:
        turn = 0
        while process.poll() is None:
            found = look(dataset)
            assert all(new >= old for new, old in zip(found, seen[-1], strict=True)), (seen, found)
            seen.append(found)
            with looks.open("a") as file:
                file.write("x")
            turn += 1
            if turn % 2 == 0:
                for stage in status_report(dataset)["stages"]:
                    assert stage["accounted"], stage
                    assert stage["kept"] >= kept.get(stage["stage"], 0)
                    kept[stage["stage"]] = stage["kept"]
            if turn % 7 == 0:
                report_on(dataset, tmp_path / "report.html")
        assert process.returncode == 0, process.stderr.read()

    with clipmill("run", path, "--dataset", dataset) as process:
        until(lambda: list((dataset / "runs").glob("*.json")) if dataset.exists() else False)
        watch(process)
    assert look(dataset) == (VIDEOS, VIDEOS * CLIPS, VIDEOS * CLIPS // 2, VIDEOS * CLIPS)
    assert len(set(seen)) > VIDEOS  # it was seen growing, not only before and after
    mend.touch()
    grown = len(set(seen))
    with clipmill("retry", dataset) as process:
        watch(process)
    assert look(dataset) == (VIDEOS, VIDEOS * CLIPS, VIDEOS * CLIPS, VIDEOS * CLIPS)
    assert len(set(seen)) >= grown + VIDEOS - 1  # the first shard waits without changes
