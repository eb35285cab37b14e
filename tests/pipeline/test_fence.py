"""Two concurrent writers, because one was presumed dead: the first complete shard wins."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipmill.jobs.run import run
from clipmill.pipeline.dataset import commit_fence as fence
from clipmill.pipeline.dataset.commit_fence import RunIsOver
from clipmill.pipeline.dataset.locks import dataset_lock
from clipmill.pipeline.dataset.run_records import latest_run, run_records
from clipmill.pipeline.dataset.shards import ShardMetadata
from clipmill.pipeline.engine.retry import list_shards
from clipmill.pipeline.engine.runner import Worker
from clipmill.pipeline.ingest.sources import list_source_shards
from clipmill.pipeline.recipes.plan import Plan, build_plan
from clipmill.pipeline.run import load
from clipmill.schemas.errors import ClipmillError

TWO = Path(__file__).with_name("two_tables.py")


class Signing:
    """A dataset whose next step has two tables, and workers for it."""

    def __init__(self, words, tmp_path: Path) -> None:
        self.gate = tmp_path / "gate"
        data = words("a", "b")
        data.run(until="fetch_words")
        self.dataset = data.dataset
        self._recipe = str(data.folder / "words.yaml")
        self.step = self.plan().by_label["signed"]

    def plan(self, gate: Path | None = None) -> Plan:
        loaded = load(
            self._recipe,
            None,
            engine="local",
            overrides=[f"signed.stage={TWO}:SignWords", *([f"signed.gate={gate}"] if gate else [])],
        )
        for label in ("cut_words", "name_words", "count_letters", "guess_words"):
            loaded.stages.pop(label)
        return build_plan(loaded)

    def worker(self, run_id: str, *, gated: bool = False) -> Worker:
        shards = list_shards(self.dataset, list_source_shards(self.dataset))
        plan = self.plan(self.gate if gated else None)
        return Worker(plan, (plan.by_label["signed"],), self.dataset, run_id, shards)

    def start(self, worker: Worker) -> tuple[threading.Thread, list[BaseException]]:
        """The worker in a thread, once it has started writing the shard."""
        problems: list[BaseException] = []
        before = len(self.temporary())

        def work() -> None:
            try:
                worker.run("000000")
            except ClipmillError as error:
                problems.append(error)

        thread = threading.Thread(target=work)
        thread.start()
        end = time.monotonic() + 60
        while len(self.temporary()) < before + 2 and time.monotonic() < end:
            time.sleep(0.01)
        return thread, problems

    def temporary(self) -> list[Path]:
        return sorted(self.dataset.rglob("*.tmp"))

    def signatures(self) -> set[str]:
        tables = [
            pq.read_table(self.step.folder(self.dataset, name) / "000000.parquet")
            for name in ("signed", "seals")
        ]
        return {value for table in tables for value in table["signature"].to_pylist()}


@pytest.fixture
def signing(words, tmp_path: Path) -> Signing:
    return Signing(words, tmp_path)


def test_worker_of_a_finished_run_starts_nothing(signing):
    with dataset_lock(signing.dataset) as hold:
        hold.begin("first")
        worker = signing.worker("first")
        hold.begin("second")
        with pytest.raises(RunIsOver, match="is now held for run second"):
            worker.run("000000")
    with pytest.raises(RunIsOver, match="is now held for no run"):
        worker.run("000000")
    assert not list(signing.dataset.glob("signed/*/*"))


def test_worker_that_outlives_its_run_commits_nothing(signing):
    """Its run is killed in the middle of a shard, and the next run begins."""
    with dataset_lock(signing.dataset) as hold:
        hold.begin("first")
        thread, problems = signing.start(signing.worker("first", gated=True))
        hold.begin("second")
        signing.gate.touch()
        thread.join(60)
        assert [type(problem) for problem in problems] == [RunIsOver]
        assert not list(signing.dataset.glob("se*/*/*.parquet"))
        assert not list(signing.dataset.glob("signed/*/*.parquet"))
        signing.worker("second").run("000000")
    (path,) = signing.dataset.glob("signed/*/000000.parquet")
    assert ShardMetadata.read(path).run_id == "second"
    assert signing.temporary() == []


def test_first_of_two_workers_commits_all_its_tables(signing):
    """The other was presumed dead and tries to commit later."""
    with dataset_lock(signing.dataset) as hold:
        hold.begin("one")
        late, problems = signing.start(signing.worker("one", gated=True))
        signing.worker("one").run("000000")
        before = signing.signatures()
        signing.gate.touch()
        late.join(60)
    assert problems == []
    assert len(before) == 1
    assert signing.signatures() == before
    assert signing.temporary() == []


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_interrupted_commit_has_no_marker_without_its_tables(signing, monkeypatch, renames):
    """A kill may come between any two renames."""
    left = [renames]

    def replace(source, target) -> None:
        if Path(target).suffix == ".parquet":
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
        Path(source).rename(target)

    with dataset_lock(signing.dataset) as hold:
        hold.begin("one")
        worker = signing.worker("one")
        monkeypatch.setattr("clipmill.pipeline.dataset.shards.os.replace", replace)
        with contextlib.suppress(KeyboardInterrupt):
            worker.run("000000")
        monkeypatch.undo()
        assert len(list(signing.dataset.glob("seals/*/*.parquet"))) == min(renames, 1)
        assert len(list(signing.dataset.glob("signed/*/*.parquet"))) == renames // 2
        signing.worker("one").run("000000")
    assert len(signing.signatures()) == 1


def test_table_without_its_marker_is_replaced(signing):
    """Tables of a writer that was killed between them don't match another writer's marker."""
    with dataset_lock(signing.dataset) as hold:
        hold.begin("one")
        signing.worker("one").run("000000")
        (marker,) = signing.dataset.glob("signed/*/000000.parquet")
        marker.unlink()
        signing.worker("one").run("000000")
    assert len(signing.signatures()) == 1


def test_stalled_commit_is_reported(signing, monkeypatch):
    monkeypatch.setattr(fence, "_PATIENCE_SECONDS", 0.2)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with fence._one_at_a_time(signing.dataset):
                os.write(writing, b"x")
                time.sleep(60)
        finally:
            os._exit(0)  # on any error: otherwise the tests would continue in the child
    try:
        os.read(reading, 1)
        with (
            pytest.raises(ClipmillError, match="hangs in the middle of a commit"),
            dataset_lock(signing.dataset),
        ):
            pass
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(reading)
        os.close(writing)


def test_next_run_cleans_up_after_a_killed_one(words):
    """Partial files, work folders and its record, also for tables that are complete."""
    data = words("a", "b")
    data.run(until="cut_words")
    dataset = data.dataset
    record = {**latest_run(dataset), "state": "running"}
    (dataset / "runs" / f"{record['run_id']}.json").write_text(json.dumps(record))
    (dataset / ".lock").write_text(json.dumps({"command": "run", "run_id": record["run_id"]}))
    assert latest_run(dataset)["state"] == "killed"
    left = [
        dataset / ".scratch" / "cut_words-12345678" / "half.bin",
        next(dataset.glob("fetch_words/*")) / ".000000~12345678.tmp",
        next(dataset.glob("cut_words/*")) / ".000007~12345678.tmp",
        dataset / "sources" / ".000001~12345678.tmp",
        dataset / "runs" / ".x~12345678.tmp",
        dataset / "journal" / ".x~12345678.tmp",
        dataset / "media" / ".work" / "0123456789abcdef0123" / "download.mp4",
        dataset / "media" / ".found" / "0123456789abcdef0123.12345678.tmp",
        dataset / "media" / ".claims" / "rules" / ".0123456789abcdef0123.12345678",
    ]
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    data.run()
    assert [path for path in left if path.exists()] == []
    assert [record["state"] for record in run_records(dataset)] == ["killed", "done"]
    assert not run(data.loaded(), dataset)
