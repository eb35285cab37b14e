"""`clipmill run` and `clipmill retry`, shown on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

import clipmill
from clipmill.jobs.bill import show_plan
from clipmill.jobs.progress_bars import TerminalProgress, saying
from clipmill.jobs.status import show_status
from clipmill.pipeline import run as runs
from clipmill.pipeline.recipes.recipe import LoadedRecipe

_err = Console(stderr=True, highlight=False)


class TerminalWatcher(runs.Watcher):
    """Writes a run's messages and progress to standard error."""

    def say(self, text: str) -> None:
        _err.print(text, markup=False, soft_wrap=True)

    def busy(self, text: str) -> AbstractContextManager[object]:
        return saying(text)

    @contextmanager
    def progress(
        self, todo: Mapping[str, Sequence[int]], line_seconds: float
    ) -> Iterator[TerminalProgress]:
        with TerminalProgress(todo, line_seconds=line_seconds) as progress:
            yield progress


def run(loaded: LoadedRecipe, dataset: Path, **asked: Any) -> bool:
    """`clipmill.pipeline.run.run`, followed on standard error."""
    return runs.run(loaded, dataset, watcher=TerminalWatcher(), **asked)


def run_recipe(**asked: Any) -> None:
    """`clipmill.run`, followed on standard error; then the state of the dataset."""
    show_status(clipmill.run(progress=TerminalWatcher(), **asked).status)
    sys.stdout.flush()


def print_plan(format: str = "table", **asked: Any) -> None:
    """`clipmill.plan`, on standard output; messages of reading the sources on standard error."""
    found = clipmill.plan(progress=TerminalWatcher(), **asked)
    if format == "json":
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        show_plan(found)


def retry_failures(dataset: Path, kinds: Sequence[str], *, wait: bool) -> None:
    """`clipmill.retry`, followed likewise."""
    show_status(clipmill.retry(dataset, kinds, progress=TerminalWatcher(), wait=wait).status)
    sys.stdout.flush()
