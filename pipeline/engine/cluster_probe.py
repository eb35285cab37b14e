"""Polls a cluster's health for a watchdog, in threads of its own: a call may never return."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from clipmill.pipeline.engine.activity import Beat
from clipmill.pipeline.engine.run_health import Node, Watchdog
from clipmill.pipeline.engine.runner import Report
from clipmill.pipeline.engine.standstill import Standstills
from clipmill.schemas.errors import ClipmillError

Nodes = Callable[[], tuple[Iterable[Node], str | None]]
"""Gives the living nodes, and the socket of this machine's node."""

PROBE_SECONDS = 1.0
ANSWER_SECONDS = 5.0


class ClusterLost(ClipmillError):
    """The cluster is gone; parts of this process still wait for it."""

    leaves_threads = True
    is_whole = False
    """Whether the cluster can still be asked to end what the run has started."""


class WorkersLost(ClusterLost):
    """The cluster still exists, but no longer has room for the run's workers."""

    is_whole = True


class ClusterProbe:
    """Feeds a watchdog for the duration of a phase.

    `nodes` gives the living nodes, and the socket of this machine's node; `take` what workers have
    reported since the last call, by stage, and each worker's last beat. Both may raise, or never
    return.
    """

    def __init__(
        self,
        watchdog: Watchdog,
        nodes: Nodes,
        take: Callable[[], tuple[dict[str, Counter[Any]], dict[str, Beat]]],
        report: Report,
        standstills: Standstills | None = None,
    ) -> None:
        self._watchdog = watchdog
        self._nodes, self._take, self._report = nodes, take, report
        self._standstills = standstills
        self._lock = threading.Lock()
        self._socket: str | None = None
        self._refusals = 0
        self._stopping = threading.Event()
        self._hearing = threading.Thread(target=self._hear, daemon=True)
        self._asking = threading.Thread(target=self._ask, daemon=True)
        self._asking.start()
        self._hearing.start()
        if standstills is not None:
            threading.Thread(target=standstills.go_on, args=(self._stopping,), daemon=True).start()

    def check(self) -> None:
        """Raises ClusterLost if the run can't continue."""
        if self._refusals > 1:
            raise _machine_lost()
        now = time.monotonic()
        with self._lock:
            problem, is_silent = self._watchdog.problem(now), self._watchdog.is_unanswered(now)
        if problem:
            raise (ClusterLost if is_silent else WorkersLost)(problem)

    def check_cluster(self) -> None:
        """Raises ClusterLost if the cluster is gone, which may explain an earlier error."""
        if self._socket is not None and _refuses(self._socket):
            raise _machine_lost()
        check_answers(self._nodes, ANSWER_SECONDS)

    def stop(self) -> None:
        """Passes on the last reports; does not wait for a cluster that does not answer."""
        self._stopping.set()
        self._hearing.join(ANSWER_SECONDS)
        self._asking.join(ANSWER_SECONDS)

    def _ask(self) -> None:
        while True:
            with contextlib.suppress(Exception):
                alive, self._socket = self._nodes()
                with self._lock:
                    self._watchdog.saw_nodes(alive, time.monotonic())
            if self._stopping.wait(PROBE_SECONDS):
                return

    def _hear(self) -> None:
        while True:
            if self._socket is not None:
                self._refusals = self._refusals + 1 if _refuses(self._socket) else 0
            self._deliver()
            if self._stopping.wait(PROBE_SECONDS):
                self._deliver()
                return

    def _deliver(self) -> None:
        with contextlib.suppress(Exception):  # progress display is optional
            counts, beats = self._take()
            now = time.monotonic()
            with self._lock:
                self._watchdog.heard(beats, now)
            if self._standstills is not None:
                self._standstills.heard(beats, now)
            for label, found in counts.items():
                self._report(label, found)


def check_answers(nodes: Nodes, within_seconds: float) -> None:
    """Raises ClusterLost if the cluster is gone.

    To be called before work is given to it: where this machine's Ray process is gone, Ray's code
    ends this process at once, without a word.
    """
    answered = threading.Event()
    sockets: list[str | None] = []

    def ask() -> None:
        with contextlib.suppress(Exception):
            sockets.append(nodes()[1])
            answered.set()

    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(within_seconds):
        raise ClusterLost(
            "the Ray cluster no longer answers: its head is gone or "
            "unreachable; restart it, then run again"
        )
    if sockets[0] is not None and _refuses(sockets[0]):
        raise _machine_lost()


def _refuses(path: str) -> bool:
    """Whether a socket refuses connections."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(ANSWER_SECONDS)
            probe.connect(path)
    except (ConnectionRefusedError, FileNotFoundError):
        return True
    except OSError:
        return False
    return False


def _machine_lost() -> ClusterLost:
    return ClusterLost(
        "this machine's Ray process (the raylet, with its object store) is gone: "
        "the system may have run out of memory; run again"
    )
