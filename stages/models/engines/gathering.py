"""Gathers what many threads ask of one model into batches, and keeps the model busy.

Batches are prepared by threads of their own while the model computes the one before.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Generic, TypeVar

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.models.batch_size import free_memory, is_out_of_memory, out_of_memory
from clipmill.stages.models.device_errors import DeviceBroken, raise_if_broken

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

# Items of several threads arrive one by one: a batch that is not full waits this long for more.
_MORE_SECONDS = 0.002
# The computation that runs when a stage is closed ends by itself, mostly after its next token.
_LEAVING_SECONDS = 30.0


@dataclass(eq=False)
class _Job(Generic[Item, Result]):
    """One item and the future for its result; those handed in together have one `arrival`."""

    item: Item
    group: Hashable
    order: Any
    arrival: int
    future: Future[Result] = field(default_factory=Future)


@dataclass(eq=False)
class _Batch(Generic[Item, Prepared, Result]):
    jobs: list[_Job[Item, Result]]
    prepared: Callable[[], Prepared] | None = None  # None while it is being prepared


class Gathered(Generic[Item, Prepared, Result]):
    """Runs items through a model in batches of at most `size`.

    Only items of one group share a batch, those whose `order` is near. A batch is formed when it
    is full, or when the model would otherwise have nothing to do; the oldest item's comes first. So
    what is handed in together is cut into the same batches every time, if nothing else comes in.

    If memory is short, the size is halved permanently. Any other exception fails only the item that
    causes it: its batch is processed again one by one. DeviceBroken fails all, now and later.
    """

    def __init__(
        self,
        size: int,
        prepare: Callable[[Sequence[Item]], Prepared],
        compute: Callable[[Prepared], Sequence[Result]],
        *,
        threads: int = 1,
        name: str = "model",
    ) -> None:
        self.size = size
        self._prepare, self._compute = prepare, compute
        self._most_ahead = threads + 1
        self._changed = threading.Condition()
        self._waiting: dict[Hashable, list[_Job[Item, Result]]] = {}
        self._ahead: deque[_Batch[Item, Prepared, Result]] = deque()
        self._arrivals = 0
        self._arrived = 0.0
        self._is_closing = False
        self._broken: DeviceBroken | None = None
        self._preparers = [
            threading.Thread(target=self._prepare_all, name=f"prepare-{name}", daemon=True)
            for _ in range(threads)
        ]
        self._computer = threading.Thread(target=self._compute_all, name=name, daemon=True)
        for thread in (*self._preparers, self._computer):
            thread.start()

    @property
    def is_closing(self) -> bool:
        return self._is_closing

    def submit_all(self, items: Sequence[tuple[Item, Hashable, Any]]) -> list[Future[Result]]:
        """Futures for items, each given with its group and its place in the order."""
        with self._changed:
            if self._is_closing:
                raise ClipmillError("the model was closed")
            self._arrivals += 1
            jobs: list[_Job[Item, Result]] = [
                _Job(item, group, order, self._arrivals) for item, group, order in items
            ]
            if self._broken is not None:
                for job in jobs:
                    job.future.set_exception(self._broken)
                return [job.future for job in jobs]
            for job in jobs:
                self._waiting.setdefault(job.group, []).append(job)
            self._arrived = time.monotonic()
            self._changed.notify_all()
        return [job.future for job in jobs]

    def close(self) -> None:
        """Ends the threads; what was not computed is cancelled."""
        with self._changed:
            self._is_closing = True
            left = [job for jobs in self._waiting.values() for job in jobs]
            left += [job for batch in self._ahead for job in batch.jobs]
            self._waiting.clear()
            self._changed.notify_all()
        for job in left:
            job.future.cancel()
        if self._broken is None:  # else freeing what the device holds may kill the process
            for thread in (*self._preparers, self._computer):
                thread.join(_LEAVING_SECONDS)

    # Forming batches

    def _prepare_all(self) -> None:
        while (batch := self._next_to_prepare()) is not None:
            items = [job.item for job in batch.jobs]
            try:
                prepared = partial(_given, self._prepare(items))
            except Exception as error:  # noqa: BLE001 - it is raised where the batch is computed
                prepared = partial(_raise, error)
            with self._changed:
                batch.prepared = prepared
                self._changed.notify_all()

    def _next_to_prepare(self) -> _Batch[Item, Prepared, Result] | None:
        """Waits for a batch; None when closing."""
        with self._changed:
            while not self._is_closing:
                seconds = None
                if self._waiting and len(self._ahead) < self._most_ahead:
                    seconds = self._seconds_until_formed()
                    if seconds <= 0:
                        jobs = [job for job in self._take() if not job.future.cancelled()]
                        if jobs:
                            batch = _Batch[Item, Prepared, Result](jobs)
                            self._ahead.append(batch)
                            return batch
                        continue
                self._changed.wait(seconds)
        return None

    def _seconds_until_formed(self) -> float:
        """How long to wait for more items before forming a batch; far off if the model is busy."""
        if len(self._waiting[self._oldest_group()]) >= self.size:
            return 0.0
        if self._ahead:
            return 1.0  # woken when the model takes it
        return self._arrived + _MORE_SECONDS - time.monotonic()

    def _oldest_group(self) -> Hashable:
        return min(self._waiting, key=lambda name: min(job.arrival for job in self._waiting[name]))

    def _take(self) -> list[_Job[Item, Result]]:
        """The batch with the oldest item of those that wait."""
        group = self._oldest_group()
        jobs = self._waiting[group]
        jobs.sort(key=lambda job: job.order)
        oldest = min(range(len(jobs)), key=lambda i: jobs[i].arrival)
        start = max(0, min(oldest // self.size * self.size, len(jobs) - self.size))
        taken = jobs[start : start + self.size]
        del jobs[start : start + self.size]
        if not jobs:
            del self._waiting[group]
        return taken

    # Computing them

    def _compute_all(self) -> None:
        while (batch := self._next_to_compute()) is not None:
            jobs = [job for job in batch.jobs if job.future.set_running_or_notify_cancel()]
            if not jobs:
                continue
            prepared = batch.prepared
            assert prepared is not None, "it was waited for"
            if len(jobs) < len(batch.jobs):
                prepared = self._later(jobs)
            try:
                results = (
                    self._attempt(jobs, prepared) if len(jobs) <= self.size else self._pieces(jobs)
                )
            except DeviceBroken as error:
                self._break(error, jobs)
                return
            except BaseException as error:  # noqa: BLE001 - whoever waits must be told
                for job in jobs:
                    job.future.set_exception(error)
                continue
            for job, result in zip(jobs, results, strict=True):
                if isinstance(result, RowFailed):
                    job.future.set_exception(result)
                else:
                    job.future.set_result(result)

    def _next_to_compute(self) -> _Batch[Item, Prepared, Result] | None:
        with self._changed:
            self._changed.wait_for(
                lambda: self._is_closing or (self._ahead and self._ahead[0].prepared is not None)
            )
            if self._is_closing:
                return None
            batch = self._ahead.popleft()
            self._changed.notify_all()
            return batch

    def _break(self, error: DeviceBroken, jobs: Sequence[_Job[Item, Result]]) -> None:
        with self._changed:
            self._broken = error
            others = [job for batch in self._ahead for job in batch.jobs]
            others += [job for waiting in self._waiting.values() for job in waiting]
            self._ahead.clear()
            self._waiting.clear()
        for job in others:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(error)
        for job in jobs:
            job.future.set_exception(error)

    def _later(self, jobs: Sequence[_Job[Item, Result]]) -> Callable[[], Prepared]:
        return partial(self._prepare, [job.item for job in jobs])

    def _pieces(self, jobs: Sequence[_Job[Item, Result]]) -> list[Result | RowFailed]:
        results: list[Result | RowFailed] = []
        while len(results) < len(jobs):
            piece = jobs[len(results) : len(results) + self.size]
            results += self._attempt(piece, self._later(piece))
        return results

    def _attempt(
        self, jobs: Sequence[_Job[Item, Result]], prepared: Callable[[], Prepared]
    ) -> list[Result | RowFailed]:
        beat()
        try:
            found: list[Result | RowFailed] = [*self._compute(prepared())]
            if len(found) != len(jobs):
                raise RuntimeError(f"{len(jobs)} inputs gave {len(found)} outputs")
            return found
        except ClipmillError:
            raise  # no other item would fare better
        except Exception as error:  # noqa: BLE001 - whatever a model raises fails only its item
            raise_if_broken(error)
            memory = is_out_of_memory(error)
            failure = (
                error
                if isinstance(error, RowFailed)
                else out_of_memory(error)
                if memory
                else RowFailed("model", f"{type(error).__name__}: {error}")
            )
        # Outside the handler, so that the traceback no longer references the batch's tensors.
        if memory:
            free_memory()
        if len(jobs) == 1:
            return [failure]
        if memory:
            self.size = max(1, len(jobs) // 2)
            return self._pieces(jobs)
        return [result for job in jobs for result in self._attempt([job], self._later([job]))]


def _given(prepared: Prepared) -> Prepared:
    return prepared


def _raise(error: Exception) -> Any:
    raise error
