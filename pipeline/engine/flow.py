"""Lets several shards be in flight in one worker, and several calls of a step's transform.

Each shard has a thread, which takes its turn at every step: the next shard enters a step when few
rows of those before it are still to begin there. What a step holds is thus counted in rows and
bytes, not in shards. Calls run in threads of their step, so a shard that is committed, or reads its
input, keeps no call waiting.

A row that was being processed when a worker died is processed alone: no other call runs in this
worker meanwhile, so that a second death is its own.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

from clipmill.pipeline.recipes.plan import PlannedStep

R = TypeVar("R")

_MOST_SHARDS = 16  # in flight in one worker
_MOST_BYTES = 256 << 20
_JOIN_SECONDS = 10.0
_LOOK_SECONDS = 0.2


class Stopped(Exception):
    """The worker is ending because of an error elsewhere: nothing more is begun."""


def shards_at_once(
    steps: Sequence[PlannedStep], rows_a_shard: int, calls: Mapping[str, int] | None = None
) -> int:
    """How many shards of this size keep a worker's calls busy while some are read or committed.

    `calls` are the calls at a time of steps that a worker gives its CPUs, by label.
    """
    if calls:
        # They compute in helper processes: one for each CPU, however many these are.
        return 2 + len(steps) + 2 * max(calls.values()) // max(1, rows_a_shard)
    rows = [
        step.stage.calls_at_once * step.stage.rows_at_once
        for step in steps
        if step.stage.calls_at_once > 1
    ]
    if not rows:
        return 1
    return min(_MOST_SHARDS, 2 + len(steps) + 2 * max(rows) // max(1, rows_a_shard))


class Flow:
    """The turns and calls of a worker's steps; usable from any thread."""

    def __init__(
        self, steps: Sequence[PlannedStep], calls: Mapping[str, int] | None = None
    ) -> None:
        self.lock = threading.RLock()
        self._gate = threading.Condition(self.lock)
        self.error: BaseException | None = None
        self._is_stopped = False
        self.held_bytes = 0
        self._running = 0
        self._wish_alone = 0
        self._is_alone = False
        calls = calls or {}
        self.lanes = {
            step.label: Lane(self, step, calls.get(step.label, step.stage.calls_at_once))
            for step in steps
        }
        self.overlaps = bool(calls) or any(lane.calls > 1 for lane in self.lanes.values())
        """Whether several shards are in flight; otherwise they are run one after the other."""

    def wait_until(self, changed: threading.Condition, ready: Callable[[], bool]) -> None:
        """Waits with the lock held; Stopped if the worker ends meanwhile."""
        changed.wait_for(lambda: self._is_stopped or ready())
        self.check()

    def check(self) -> None:
        """Stopped if the worker is ending."""
        if self._is_stopped:
            raise Stopped("this worker begins nothing more")

    @contextlib.contextmanager
    def call(self) -> Iterator[None]:
        """One call among others."""
        with self.lock:
            self.wait_until(self._gate, lambda: not self._is_alone and not self._wish_alone)
            self._running += 1
        try:
            yield
        finally:
            with self.lock:
                self._running -= 1
                if self._wish_alone:
                    self._gate.notify_all()

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """One call while no other runs."""
        with self.lock:
            self._wish_alone += 1
            try:
                self.wait_until(self._gate, lambda: not self._is_alone and not self._running)
                self._is_alone = True
            finally:
                self._wish_alone -= 1
        try:
            yield
        finally:
            with self.lock:
                self._is_alone = False
                self._gate.notify_all()

    def release(self, held_bytes: int) -> None:
        """Fewer bytes are held; called with the lock held."""
        was_full = self.is_full
        self.held_bytes -= held_bytes
        if was_full and not self.is_full:
            for lane in self.lanes.values():
                lane.places.notify_all()

    @property
    def is_full(self) -> bool:
        """Whether prepared batches hold as many bytes as they may."""
        return self.held_bytes >= _MOST_BYTES

    def stop(self, error: BaseException | None = None) -> None:
        """Ends all waiting; what runs is not interrupted. The first error is kept."""
        with self.lock:
            self.error = self.error or error
            self._is_stopped = True
            self._gate.notify_all()
            for lane in self.lanes.values():
                lane.end()

    def join(
        self, also: Sequence[threading.Thread] = (), meanwhile: Callable[[], None] | None = None
    ) -> None:
        """Waits a little for calls, and for other threads, to end; does `meanwhile` now and
        then."""
        until = time.monotonic() + _JOIN_SECONDS
        for thread in [*(one for lane in self.lanes.values() for one in lane.threads), *also]:
            while thread.is_alive() and (left := until - time.monotonic()) > 0:
                thread.join(left if meanwhile is None else min(left, _LOOK_SECONDS))
                if meanwhile is not None:
                    meanwhile()


class Lane:
    """One step's place in a worker: whose turn it is, and the threads that call its transform."""

    def __init__(self, flow: Flow, step: PlannedStep, calls: int) -> None:
        self.flow = flow
        self.calls = calls
        # Some more are prepared, so that no thread waits for its next batch.
        self._places = self.calls + max(1, self.calls // 4)
        self.rows_ahead = self.calls * step.stage.rows_at_once
        self.places = threading.Condition(flow.lock)
        self._room = threading.Condition(flow.lock)
        self._waiting: deque[object] = deque()
        self._is_entering = False
        self._to_begin = 0
        self._queue: SimpleQueue[tuple[Future[Any], Callable[[], Any], int] | None] = SimpleQueue()
        self.threads: list[threading.Thread] = []
        self._taken = 0

    @contextlib.contextmanager
    def turn(self) -> Iterator[Turn]:
        """Enters the step when it is this shard's turn; shards enter in the order in which they
        came."""
        flow, ticket = self.flow, object()
        with flow.lock:
            self._waiting.append(ticket)
            try:
                flow.wait_until(self._room, lambda: self._waiting[0] is ticket and self._has_room())
                self._is_entering = True
            finally:
                self._waiting.remove(ticket)
        turn = Turn(self)
        try:
            yield turn
        finally:
            turn.end()

    def _has_room(self) -> bool:
        if self._is_entering:
            return False
        return self._to_begin < self.rows_ahead if self.calls > 1 else not self._to_begin

    def count(self, rows: int, *, is_entering: bool = False) -> None:
        """More rows, or fewer, are to begin."""
        with self.flow.lock:
            self._to_begin += rows
            self._is_entering = self._is_entering and not is_entering
            if self._has_room():
                self._room.notify_all()

    def _has_place(self) -> bool:
        return not self._taken or (self._taken < self._places and not self.flow.is_full)

    def took_place(self) -> bool:
        """Whether a further batch may be prepared now; then its place is taken."""
        with self.flow.lock:
            self.flow.check()
            has_place = self._has_place()
            self._taken += has_place
            return has_place

    def take_place(self) -> None:
        """Waits until a further batch may be prepared."""
        with self.flow.lock:
            self.flow.wait_until(self.places, self._has_place)
            self._taken += 1

    def leave_place(self, held_bytes: int = 0) -> None:
        with self.flow.lock:
            self._taken -= 1
            self.flow.release(held_bytes)
            self.places.notify()

    def submit(self, call: Callable[[], R], held_bytes: int = 0) -> Future[R]:
        """Runs a call in one of the step's threads; it leaves the place that was taken for it."""
        future: Future[R] = Future()
        flow = self.flow
        with flow.lock:
            flow.check()
            flow.held_bytes += held_bytes
            if len(self.threads) < min(self._taken, self.calls):
                thread = threading.Thread(target=self._work, name="stage-call", daemon=True)
                self.threads.append(thread)
                thread.start()
            self._queue.put((future, call, held_bytes))
        return future

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self._run(*item)
            del item  # what it holds must not stay until the next one comes

    def _run(self, future: Future[Any], call: Callable[[], Any], held_bytes: int) -> None:
        try:
            future.set_result(call())
        except BaseException as error:  # noqa: BLE001 (raised in the thread that waits for it)
            future.set_exception(error)
        finally:
            self.leave_place(held_bytes)

    def end(self) -> None:
        """Lets all waiting end, and the threads after what is queued; with the lock held."""
        self.places.notify_all()
        self._room.notify_all()
        for _ in self.threads:
            self._queue.put(None)


class Turn:
    """A shard's presence in a step; ends when its rows have been begun, or processed."""

    def __init__(self, lane: Lane) -> None:
        self._lane = lane
        self._left = 0
        self._is_known = False

    def knows(self, rows: int) -> None:
        """So many rows are to be processed."""
        # With one call at a time, the next shard enters when all of them have been.
        self._left = rows if self._lane.calls > 1 else max(1, rows)
        self._is_known = True
        self._lane.count(self._left, is_entering=True)

    def begins(self, rows: int) -> None:
        """So many rows are begun now."""
        if self._lane.calls > 1:
            self._left -= rows
            self._lane.count(-rows)

    def end(self) -> None:
        """No row is left here."""
        if not self._is_known or self._left:
            self._lane.count(-self._left, is_entering=not self._is_known)
        self._left, self._is_known = 0, True
