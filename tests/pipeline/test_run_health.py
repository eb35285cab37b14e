"""The watchdog: a run that can't continue is distinguished from a slow one."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from clipmill.pipeline.engine.cluster_probe import ClusterLost, ClusterProbe
from clipmill.pipeline.engine.pools import Pool
from clipmill.pipeline.engine.run_health import (
    SILENT_SECONDS,
    STARTS_ALLOWED,
    STARVED_SECONDS,
    UNANSWERED_SECONDS,
    Beat,
    Node,
    Tasks,
    Watchdog,
)
from tests.pipeline.test_pools import step

HEAD, SECOND = Node("head", 2, 0), Node("second", 2, 0)


def watchdog(*pools: Pool, rows: int = 1) -> Watchdog:
    return Watchdog(pools, rows, 0.0)


def pool(name: str, workers: int = 1, **settings) -> Pool:
    return Pool((step(name, **settings),), workers)


def test_slow_stage_is_not_a_hang():
    """Workers that report progress, and workers that are just starting, are waited for as long as
    it takes: loading a model takes minutes."""
    dog = watchdog(pool("caption_frames"), pool("embed_clips"))
    for now in range(3600):
        dog.saw_nodes([HEAD], now)
        dog.heard({"a": Beat(0, "head", 0)}, now)
        assert dog.problem(now) is None


def test_cluster_that_does_not_answer_is_lost():
    dog = watchdog(pool("caption_frames"))
    dog.saw_nodes([HEAD], 100)
    assert dog.problem(100 + UNANSWERED_SECONDS) is None
    assert "has not answered for 31 s" in dog.problem(101 + UNANSWERED_SECONDS)


def test_pool_without_free_resources_is_reported():
    """Its node is gone, and another pool's workers hold the remaining resources."""
    dog = watchdog(pool("caption_frames", 2), pool("embed_clips"))
    beats = {"a": Beat(0, "head", 3), "b": Beat(0, "head", 3), "c": Beat(1, "second", 2)}
    dog.saw_nodes([HEAD, SECOND], 0)
    dog.heard(beats, 0)
    assert dog.problem(1) is None
    for now in range(2, int(2 + SILENT_SECONDS + STARVED_SECONDS)):
        dog.saw_nodes([HEAD], now)
        dog.heard({name: beats[name] for name in "ab"}, now)
        assert dog.problem(now) is None or now > STARVED_SECONDS
    now += STARVED_SECONDS
    dog.saw_nodes([HEAD], now)
    dog.heard({name: beats[name] for name in "ab"}, now)
    said = dog.problem(now)
    assert said.startswith(
        "no node has room for a worker of embed_clips (1 CPUs): 1 node of the cluster went away"
    )


def test_pool_with_room_elsewhere_is_waited_for():
    dog = watchdog(pool("caption_frames"), pool("embed_clips"))
    dog.heard({"a": Beat(0, "head", 3), "c": Beat(1, "second", 2)}, 0)
    for now in range(600):
        dog.saw_nodes([HEAD], now)
        dog.heard({"a": Beat(0, "head", 3)}, now)
        assert dog.problem(now) is None


def test_worker_that_fits_no_node_is_reported():
    """The plan only considers the sum over all nodes."""
    dog = watchdog(pool("caption_frames", cpus=3.0))
    dog.saw_nodes([HEAD, SECOND], 0)
    assert dog.problem(0) is None
    dog.saw_nodes([HEAD, SECOND], STARVED_SECONDS + 1)
    assert "no node has room for a worker of caption_frames (3 CPUs)" in dog.problem(
        STARVED_SECONDS + 1
    )


def test_tasks_without_a_suitable_node_are_reported():
    """They have no workers that report progress: what counts is room for one."""
    dog = Watchdog((Tasks(2.0),), 1, 0.0)
    dog.saw_nodes([Node("head", 0, 0), SECOND], 0)
    dog.saw_nodes([Node("head", 0, 0), SECOND], 500)
    assert dog.problem(500) is None
    for now in (501, 502 + STARVED_SECONDS):
        dog.saw_nodes([Node("head", 0, 0)], now)
        said = dog.problem(now)
    assert said == (
        "no node has room for a worker of this command (2 CPUs): 1 node of the cluster "
        "went away; run again to plan for what the cluster has then"
    )


def test_workers_that_die_at_every_start_are_reported():
    dog = watchdog(pool("caption_frames", 2), pool("embed_clips"))
    for number in range(STARTS_ALLOWED + 2):
        dog.saw_nodes([HEAD], number)
        dog.heard({str(number): Beat(0, "head", 0)}, number)
        assert dog.problem(number) is None
    dog.heard({"one more": Beat(0, "head", 0)}, number)
    assert "workers of caption_frames die again and again: 11 have started" in dog.problem(number)


def test_workers_that_die_occasionally_are_not_reported():
    dog = watchdog(pool("caption_frames"))
    for number in range(200):
        dog.saw_nodes([HEAD], number)
        dog.heard({str(number): Beat(0, "head", number % 2)}, number)
        assert dog.problem(number) is None


def test_machine_whose_socket_refuses_is_lost(tmp_path: Path, monkeypatch):
    """The raylet is gone; Ray would end the process some seconds later, without a message."""
    monkeypatch.chdir(tmp_path)
    place = "raylet"  # the folder's path may be longer than a socket's may be
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listening.bind(place)
    listening.listen()
    asked: list[str] = []
    reported: list[Counter] = []

    def nodes() -> tuple[list[Node], str]:
        asked.append(place)
        return [HEAD], place

    probe = ClusterProbe(
        watchdog(pool("caption_frames")),
        nodes,
        lambda: ({"caption_frames": Counter(kept=1)}, {}),
        lambda label, counts: reported.append(counts),
    )
    end = time.monotonic() + 60
    # Asked a second time, it has recorded the first answer.
    while (len(asked) < 2 or not reported) and time.monotonic() < end:
        time.sleep(0.05)
    probe.check()
    assert reported[0] == Counter(kept=1)
    listening.close()
    with pytest.raises(ClusterLost, match="raylet"):
        probe.check_cluster()
    with pytest.raises(ClusterLost, match="raylet"):
        keep_checking(probe, 60)
    probe.stop()


def keep_checking(probe: ClusterProbe, seconds: float) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        probe.check()
        time.sleep(0.05)


def test_cluster_that_never_answers_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("clipmill.pipeline.engine.cluster_probe.ANSWER_SECONDS", 0.2)
    stuck = threading.Event()
    probe = ClusterProbe(
        watchdog(pool("caption_frames")),
        lambda: stuck.wait(60) and None,
        lambda: stuck.wait(60) and None,
        lambda label, counts: None,
    )
    with pytest.raises(ClusterLost, match="no longer answers"):
        probe.check_cluster()
    began = time.monotonic()
    probe.stop()
    assert time.monotonic() - began < 20
    stuck.set()
