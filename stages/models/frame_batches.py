"""Passes clips' frames through a model: threads decode and prepare them, in batches."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import numpy as np

from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.media.read.images import decode_jpeg


class FrameBatches:
    """`compute` takes what `prepare` made of some pictures (RGB), and gives a result for each.

    With `together`, one batch is in the model at a time: for models whose own threads use all
    CPUs, pictures are prepared before; on a GPU, the threads prepare further batches meanwhile.
    Otherwise each thread passes its batches through the model by itself.
    """

    def __init__(
        self,
        prepare: Callable[[np.ndarray], Any],
        compute: Callable[[list[Any]], Sequence[Any]],
        *,
        batch: int,
        threads: int,
        together: bool = False,
        ahead: bool = False,
    ) -> None:
        self._prepare, self._compute, self._batch = prepare, compute, batch
        self._together, self._ahead = together, ahead
        self._in_model = threading.Lock()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="frames")

    def __enter__(self) -> FrameBatches:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def results(self, jpegs: Sequence[bytes]) -> list[Any]:
        """One result per picture, in their order; RowFailed `bad_media` if one is no image."""
        batches = [jpegs[at : at + self._batch] for at in range(0, len(jpegs), self._batch)]
        found: list[Any] = []
        if self._together and not self._ahead:
            for batch in batches:
                found += self._computed(list(self._pool.map(self._prepared, batch)))
        else:
            for results in self._pool.map(self._whole, batches):
                found += results
        return found

    def of_clips(self, clips: Sequence[Sequence[dict[str, Any]] | None]) -> list[list[Any]]:
        """The results of each clip's kept frames."""
        found = iter(self.results([frame["jpeg"] for clip in clips for frame in clip or ()]))
        return [[next(found) for _ in clip or ()] for clip in clips]

    def _prepared(self, jpeg: bytes) -> Any:
        return self._prepare(decode_jpeg(jpeg))

    def _whole(self, jpegs: Sequence[bytes]) -> Sequence[Any]:
        prepared = [self._prepared(jpeg) for jpeg in jpegs]
        if not self._together:
            return self._computed(prepared)
        with self._in_model:
            return self._computed(prepared)

    def _computed(self, prepared: list[Any]) -> Sequence[Any]:
        beat()
        return self._compute(prepared)
