"""Passes images of several callers through one model, in batches that are filled across calls.

On a GPU, threads decode and resize the next batches while the model computes; two batches are
handed over at a time, so that the device has its next one before it ends the last. A CPU model uses
all cores and waits for the slowest, so a preparing thread would slow down all of them: there, all
cores first prepare a batch together, then compute it.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.models.batch_size import BatchSize

if TYPE_CHECKING:
    import torch

_CHUNK_IMAGES = 2
_MORE_BATCHES_AHEAD = 2


class Preparation(Protocol):
    """Prepares one image: uint8 of shape (height, width, 3), written to `out`."""

    @property
    def size(self) -> tuple[int, int]: ...

    def into(self, jpeg: bytes, out: np.ndarray) -> None: ...


@dataclass(eq=False)
class _Call:
    """The images of one caller; `rows` are their results so far."""

    left: int
    rows: list[np.ndarray | None]
    error: BaseException | None = None
    is_done: threading.Event = field(default_factory=threading.Event)

    def fail(self, error: BaseException) -> None:
        if not self.is_done.is_set():
            self.error = error
            self.is_done.set()

    def result(self) -> list[np.ndarray]:
        """Waits for all rows, or the first error."""
        self.is_done.wait()
        error, self.error = self.error, None
        if error is None:
            return [row for row in self.rows if row is not None]
        try:
            raise error
        finally:
            del error  # which refers to this frame: a cycle would keep the model in memory


@dataclass
class _Image:
    jpeg: bytes
    call: _Call
    number: int


@dataclass(eq=False)
class _Batch:
    images: list[_Image]
    pixels: torch.Tensor
    unprepared: int


@dataclass
class _State:
    """What the threads share; they don't keep the model alive."""

    changed: threading.Condition = field(default_factory=threading.Condition)
    waiting: deque[_Image] = field(default_factory=deque)
    batches: deque[_Batch] = field(default_factory=deque)
    in_model: int = 0
    is_closed: bool = False

    def close(self) -> None:
        with self.changed:
            self.is_closed = True
            self.changed.notify_all()


class ImageQueue:
    """`compute` turns a batch of prepared images into rows, in their order.

    `ahead` prepares batches in `threads` while others are in the model, otherwise the threads
    prepare a batch before it is computed. Usable from any number of threads.
    """

    def __init__(
        self,
        prepare: Preparation,
        compute: Callable[[torch.Tensor], np.ndarray],
        size: BatchSize,
        *,
        threads: int,
        ahead: bool,
        pinned: bool = False,
    ) -> None:
        self._prepare, self._compute, self._size = prepare, compute, size
        self._threads, self.is_ahead, self._pinned = threads, ahead, pinned
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare-images")
        self._state = _State()
        self._drivers: list[threading.Thread] = []
        weakref.finalize(self, self._state.close)

    def rows(self, jpegs: Sequence[bytes]) -> list[np.ndarray]:
        """One row per image, in their order; the first error of any of them is raised."""
        if not jpegs:
            return []
        call = _Call(len(jpegs), [None] * len(jpegs))
        images = [_Image(jpeg, call, number) for number, jpeg in enumerate(jpegs)]
        with self._state.changed:
            self._state.waiting.extend(images)
            self._fill()
            if not self._drivers:
                self._start()
            self._state.changed.notify_all()
        return call.result()

    def _start(self) -> None:
        reference = weakref.ref(self)
        for _ in range(2 if self.is_ahead else 1):
            driver = threading.Thread(
                target=_drive, args=(self._state, reference), name="image-model", daemon=True
            )
            self._drivers.append(driver)
            driver.start()

    def _fill(self) -> None:
        """Makes batches of waiting images; a partial one only if the model would have to wait."""
        state, size = self._state, self._size.size
        most = 1
        if self.is_ahead:
            most = _MORE_BATCHES_AHEAD + -(-2 * self._threads // size)
        while state.waiting and len(state.batches) < most:
            is_idle = not state.batches and not state.in_model
            if len(state.waiting) < size and not is_idle:
                return
            images: list[_Image] = []
            while state.waiting and len(images) < size:
                image = state.waiting.popleft()
                if not image.call.is_done.is_set():  # it has failed otherwise
                    images.append(image)
            if images:
                self._begin(images)

    def _begin(self, images: list[_Image]) -> None:
        import torch

        pixels = torch.empty(
            (len(images), *self._prepare.size, 3), dtype=torch.uint8, pin_memory=self._pinned
        )
        batch = _Batch(images, pixels, len(images))
        self._state.batches.append(batch)
        if self.is_ahead:
            self._prepare_all(batch, _CHUNK_IMAGES)

    def _prepare_all(self, batch: _Batch, chunk: int) -> list[Future[None]]:
        out = batch.pixels.numpy()
        return [
            self._pool.submit(self._prepare_some, batch, out, start, start + chunk)
            for start in range(0, len(batch.images), chunk)
        ]

    def _prepare_some(self, batch: _Batch, out: np.ndarray, start: int, end: int) -> None:
        images = batch.images[start:end]
        for image, place in zip(images, out[start:end], strict=True):
            if image.call.is_done.is_set():
                place[:] = 0
                continue
            try:
                self._prepare.into(image.jpeg, place)
            except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
                place[:] = 0
                image.call.fail(error)
        with self._state.changed:
            batch.unprepared -= len(images)
            if not batch.unprepared:
                self._state.changed.notify_all()

    def run(self, batch: _Batch) -> None:
        """Computes a batch and gives each caller its rows."""
        try:
            if not self.is_ahead:
                for part in self._prepare_all(batch, -(-len(batch.images) // self._threads)):
                    part.result()
            pixels: Any = batch.pixels  # a tensor is indexed like a sequence
            rows = np.concatenate(self._size.rows(pixels, self._pieces))
        except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
            for image in batch.images:
                image.call.fail(error)
            return
        with self._state.changed:
            for image, row in zip(batch.images, rows, strict=True):
                call = image.call
                call.rows[image.number] = row
                call.left -= 1
                if not call.left:
                    call.is_done.set()

    def next_batches(self) -> None:
        """Makes further batches after one has left the model; called with the state locked."""
        self._fill()
        self._state.changed.notify_all()

    def _pieces(self, pixels: Any, size: int) -> Iterator[np.ndarray]:
        for start in range(0, len(pixels), size):
            beat()
            yield self._compute(pixels[start : start + size])


def _drive(state: _State, reference: weakref.ref[ImageQueue]) -> None:
    """Computes batches as they become ready, until the queue is gone."""
    while True:
        with state.changed:
            state.changed.wait_for(lambda: state.is_closed or _is_ready(state, reference))
            if state.is_closed:
                return
            batch = state.batches.popleft()
            state.in_model += 1
            queue = reference()
            if queue is not None:
                queue.next_batches()
        if queue is not None:
            queue.run(batch)
        with state.changed:
            state.in_model -= 1
            if queue is not None:
                queue.next_batches()
        del queue, batch


def _is_ready(state: _State, reference: weakref.ref[ImageQueue]) -> bool:
    queue = reference()
    if queue is None or not state.batches:
        return False
    return not queue.is_ahead or not state.batches[0].unprepared
