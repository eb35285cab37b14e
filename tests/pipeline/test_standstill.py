"""A stalled worker is reported, then killed; its row counts as a crash."""

from __future__ import annotations

import json
import time
from pathlib import Path
from threading import Event, Thread

import pytest

from clipmill.pipeline.engine.activity import (
    Activity,
    Beat,
    Place,
    Process,
    ProcessFinding,
    look_at,
)
from clipmill.pipeline.engine.standstill import Lookout, Standstills

HERE = Place("split_clips", "000003", "at", ("v-1", "v-2"))
OPENING = Place("caption_frames", "000003", "opens its models")


class Workers:
    """Workers that report what the test says, and what became of them."""

    def __init__(self, stall_seconds: float = 600.0) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self.ended: list[int] = []
        self.blamed: list[Place] = []
        self.shown: list = []
        self.findings: dict[int, ProcessFinding] = {}
        lookout = Lookout(
            stall_seconds,
            lambda seen: setattr(self, "shown", seen),
            lambda message, about: self.said.append(message),
        )
        self.standstills = Standstills(
            lookout,
            lambda beat: self.findings.get(beat.process.pid, ProcessFinding(False, beat.state)),
            lambda beat: self.ended.append(beat.process.pid),
            self.blamed.append,
        )

    def go_on(self, seconds: int, *beats: Beat) -> None:
        for _ in range(seconds):
            self.now += 1
            self.standstills.heard({str(beat.process.pid): beat for beat in beats}, self.now)
            self.standstills.check()


def beat(pid: int, moves: int = 1, place: Place | None = HERE, state: str = "S") -> Beat:
    return Beat(0, "node", 0, "host7", Process(pid, 1), moves, place, state)


def test_stalled_worker_is_reported_once_then_killed():
    workers = Workers()
    workers.go_on(599, beat(1))
    assert workers.said == []
    workers.go_on(3, beat(1))
    assert workers.said == [
        "split_clips makes no progress: worker 1 on host7: sleeping (S), no progress for 10 min, "
        "at v-1 and 1 more (shard 000003); it will be killed after another 10 min without progress "
        "(stall_seconds)"
    ]
    assert workers.shown[0].is_standing
    workers.go_on(590, beat(1))
    assert len(workers.said) == 1
    workers.go_on(20, beat(1))
    assert workers.ended == [1]
    assert workers.blamed == [HERE]
    assert workers.said[1].startswith("split_clips: killed worker 1 on host7: sleeping (S)")


def test_worker_that_reports_progress_is_left_alone():
    workers = Workers()
    for minute in range(100):
        workers.go_on(60, beat(1, moves=minute))
    assert workers.said == []


def test_dead_worker_is_forgotten():
    """Its last report was that it is processing a row; Ray has started another one."""
    workers = Workers()
    workers.go_on(10, beat(1))
    workers.findings[1] = ProcessFinding(is_gone=True)
    workers.go_on(2000)
    assert workers.said == workers.shown == []


def test_stopped_worker_is_identified_by_its_shared_memory():
    """It was stopped before it could report its row, and reports nothing more."""
    workers = Workers()
    workers.go_on(5, beat(1, place=OPENING))
    workers.findings[1] = ProcessFinding(False, "T", HERE)
    workers.go_on(1250)
    assert "stopped (T), no progress for 10 min, at v-1 and 1 more" in workers.said[0]
    assert workers.blamed == [HERE]
    assert workers.ended == [1]


def test_slowly_loading_model_is_reported_and_left_alone():
    workers = Workers()
    workers.go_on(3000, beat(1, place=OPENING))
    assert len(workers.said) == 1
    assert workers.said[0].endswith("; it is not processing a row, so it is left alone")
    assert workers.ended == []
    workers.go_on(50, beat(1, place=OPENING, state="T"))
    assert workers.ended == [1]


def test_idle_worker_is_not_stalled():
    workers = Workers()
    workers.go_on(3000, beat(1, place=None))
    assert workers.said == workers.shown == []


def test_time_without_a_listening_driver_does_not_count():
    """The command itself was stopped for an hour, while its workers continued."""
    workers = Workers()
    workers.go_on(100, beat(1))
    workers.now += 3600
    workers.go_on(400, beat(1))
    assert workers.said == []


def test_zero_waits_for_ever():
    workers = Workers(stall_seconds=0)
    workers.go_on(5000, beat(1))
    assert workers.said == []


def test_activity_can_be_read_by_another_process():
    activity = Activity()
    try:
        process = Process.own(activity)
        activity.at("split_clips", "000003", "at", ("v-1" * 500, "v-2"))
        activity.at(HERE.step, HERE.shard, HERE.doing, HERE.keys)
        assert look_at(process).place == HERE
        moves = activity.moves
        activity.beat()
        assert activity.moves > moves
        assert look_at(Process(process.pid, process.began + 1)).is_gone
    finally:
        activity.close()


def test_reported_place_and_state_are_those_of_the_thread_that_moved_longest_ago():
    """Ray's workers run in a pool's threads, while their main thread sleeps."""
    activity, there, done = Activity(), Event(), Event()

    def work() -> None:
        activity.at("split_clips", "000003", "at", ("v-1",))
        there.set()
        done.wait()
        activity.rest()

    worker = Thread(target=work)
    worker.start()
    try:
        there.wait()
        deadline = time.monotonic() + 60
        while Beat.of(activity, 0, "node", 0).state != "S":
            assert time.monotonic() < deadline
        activity.at("split_clips", "000004", "at", ("v-2",))
        moves = activity.moves
        for _ in range(3):
            activity.beat()  # of this thread, which works
        assert activity.place.keys == ("v-1",)
        assert look_at(Process.own(activity)).place.keys == ("v-1",)
        assert activity.moves == moves
        Thread(target=activity.beat).start()  # of a library, which may work for all
        while activity.moves == moves:
            assert time.monotonic() < deadline
        done.set()
        worker.join()
        assert activity.place.keys == ("v-2",)
        assert Beat.of(activity, 0, "node", 0).state == "R"
    finally:
        done.set()
        worker.join()
        activity.close()


def log_lines(dataset: Path) -> list[dict]:
    (log,) = dataset.glob("logs/*/driver.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    return [line for line in lines if line["event"] == "standstill"]


def crashes(data, label: str) -> set[str]:
    rows = data.table(label)
    key = "video_id" if label == "cut_words" else "clip_id"
    return {f"{row[key]}: {row['error']['kind']}" for row in rows if row["error"]}


@pytest.mark.slow
def test_stopped_worker_on_ray_fails_only_its_row(words):
    """It is stopped at a row of a batch and reports nothing more; all else completes."""
    data = words("a", "s?stand=name", "b")
    data.run("stall_seconds=3", engine="ray")
    assert crashes(data, "name_words") == {"v-s-1: crash"}
    assert {row["clip_id"] for row in data.table("name_words")} == {
        f"v-{video}-{number}" for video in "asb" for number in (0, 1)
    }
    lines = log_lines(data.dataset)
    assert ("name_words", "000000", "v-s-1", "T") in {
        (line["step"], line["shard"], line.get("key"), line["state"]) for line in lines
    }
    assert all(line["worker_pid"] and line["node"] and line["level"] == "warning" for line in lines)
    assert any("killed worker" in line["message"] for line in lines)


@pytest.mark.slow
def test_worker_on_ray_that_sleeps_at_a_fragile_row_fails_that_row(words):
    data = words("a", "t?stand=cut", "b")
    data.run("stall_seconds=3", engine="ray")
    assert crashes(data, "cut_words") == {"v-t: crash"}
    assert len(data.table("count_letters")) == 4
    assert ("cut_words", "v-t", "S") in {
        (line["step"], line.get("key"), line["state"]) for line in log_lines(data.dataset)
    }


def test_local_engine_reports_the_row_at_which_it_stalls(words, capfd):
    data = words("a", "s?stand=until_named&clips=1")
    data.run("stall_seconds=0.5")
    lines = log_lines(data.dataset)
    assert ("name_words", "000000") in {(line["step"], line["shard"]) for line in lines}
    assert "name_words makes no progress" in capfd.readouterr().err
    assert not [row for row in data.table("name_words") if row["error"]]


@pytest.fixture(autouse=True)
def _no_listener():
    yield
    from clipmill.stages.media.isolation import progress

    progress.listen(None)
