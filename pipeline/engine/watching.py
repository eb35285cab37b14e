"""What follows a run: its messages, and the progress of its stages."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

from clipmill.pipeline.engine.standstill import Seen


class Progress(Protocol):
    """Receives the reports of a run's workers. All methods may be called from any thread."""

    def report(self, label: str, counts: Counter[Any]) -> None:
        """Called with additions to a stage's counts: inputs, kept, rejected, failed, skipped,
        shards, seconds."""

    def show(self, workers: Sequence[Seen]) -> None:
        """Called with what each worker is doing now."""

    def say(self, message: str) -> None:
        """Called with a warning, for example about a worker that makes no progress."""


class Watcher:
    """Follows a run. This class is silent; subclasses override what they want to show."""

    def say(self, text: str) -> None:
        """Called with one or more sentences about what was done, or will be."""

    def busy(self, text: str) -> AbstractContextManager[object]:
        """Announces something that takes a moment."""
        return contextlib.nullcontext()

    @contextmanager
    def progress(
        self, todo: Mapping[str, Sequence[int]], line_seconds: float
    ) -> Iterator[Progress]:
        """Opens the progress of all stages.

        `todo` gives by stage, in order, the shards that each of its steps still has to do.
        """
        yield _Silent()


class _Silent:
    def report(self, label: str, counts: Counter[Any]) -> None: ...

    def show(self, workers: Sequence[Seen]) -> None: ...

    def say(self, message: str) -> None: ...
