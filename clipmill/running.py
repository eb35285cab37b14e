"""Runs of recipes from Python."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.dataset import Dataset
from clipmill.pipeline import run as runs
from clipmill.pipeline.costs.bill import Bill
from clipmill.pipeline.engine.standstill import Seen
from clipmill.pipeline.recipes.overrides import Settings, as_overrides
from clipmill.pipeline.recipes.recipe import LoadedRecipe
from clipmill.pipeline.status import StageStatus, Status
from clipmill.pipeline.subsets.wishes import Wish
from clipmill.schemas.errors import ERROR_KINDS, UsageError

_log = logging.getLogger("clipmill.run")
_PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class StageProgress:
    """A stage's progress in this run. Rows are counted from the start of the run."""

    stage: str
    kept: int
    rejected: int
    failed: int
    shards_done: int
    shards_to_do: int
    video_seconds: float
    skipped: int = 0


@dataclass(frozen=True)
class RunResult:
    """The result of a run; `status` is that of the dataset after it, over all runs."""

    dataset: Dataset
    did_anything: bool
    messages: tuple[str, ...] = field(repr=False)
    status: Status = field(repr=False)

    @property
    def stages(self) -> list[StageStatus]:
        return self.status["stages"]

    def __getitem__(self, stage: str) -> StageStatus:
        """The counts of one stage: inputs, kept, rejected, failed, skipped, pending."""
        for found in self.stages:
            if found["stage"] == stage:
                return found
        raise KeyError(stage)


def run(
    recipe: _PathLike | None = None,
    *,
    sources: _PathLike | Sequence[_PathLike] | None = None,
    dataset: _PathLike | None = None,
    settings: Settings = (),
    engine: str | None = None,
    until: str | None = None,
    limit: int | None = None,
    where: str | None = None,
    subset: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    have: _PathLike | Sequence[_PathLike] = (),
    budget: str | Sequence[str] = (),
    wait: bool = False,
    progress: Callable[[StageProgress], None] | runs.Watcher | None = None,
) -> RunResult:
    """Does what remains to be done for a recipe, like `clipmill run`.

    recipe: a ready-made name or a YAML file; without one, that of the dataset's newest run.
    sources: lists, folders, patterns, files or URLs instead of the recipe's.
    settings: by `label.setting`, e.g. `{"split_clips.min_clip_seconds": 2}`.
    engine: `auto`, `ray` or `local` instead of the recipe's.
    where, subset, sample: work only on the clips for which an SQL condition over `clips` is true,
    on those of a frozen subset, or on that many random sources (drawn with `seed`), and on their
    videos. What else there is counts as not asked for; a later run does only what is new to it.
    have: folders with videos that are on disk already, found by the ids in their names.
    budget: ends the run in order when it has spent this, e.g. `"20 cpu_hours"` or `"50 USD"`, with
    a BudgetSpent, which is a ClipmillError.
    progress: called in this process, from any thread, each time a stage has processed some rows. A
    `clipmill.pipeline.run.Watcher`, which may change between releases, sees everything.

    Messages go to the logger `clipmill.run`. Raises ClipmillError if the run can't continue;
    committed results stay, and the same call continues from there.
    """
    wish = Wish(where, subset, sample, seed)
    folder, loaded, take_sources = _loaded(
        recipe, sources, dataset, settings, engine, have, wait=wait
    )
    watcher = progress if isinstance(progress, runs.Watcher) else _Watcher(progress)
    place = runs.dataset_folder(loaded, folder)
    did = runs.run(
        loaded,
        place,
        until=until,
        limit=limit,
        wish=wish,
        budget=[budget] if isinstance(budget, str) else list(budget),
        wait=wait,
        watcher=watcher,
        take_sources=take_sources,
    )
    return _result(Dataset(place), did, watcher)


def plan(
    recipe: _PathLike | None = None,
    *,
    sources: _PathLike | Sequence[_PathLike] | None = None,
    dataset: _PathLike | None = None,
    settings: Settings = (),
    engine: str | None = None,
    until: str | None = None,
    limit: int | None = None,
    where: str | None = None,
    subset: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    have: _PathLike | Sequence[_PathLike] = (),
    rates: _PathLike | None = None,
    progress: runs.Watcher | None = None,
) -> Bill:
    """What `run` with these arguments would do and cost, like `clipmill run --dry-run`.

    Nothing is done, and the dataset need not exist. Rates come from its earlier runs, and for
    stages that were never run in it from the dataset `rates`.
    """
    wish = Wish(where, subset, sample, seed)
    folder, loaded, take_sources = _loaded(recipe, sources, dataset, settings, engine, have)
    return runs.plan_run(
        loaded,
        runs.dataset_folder(loaded, folder),
        until=until,
        limit=limit,
        take_sources=take_sources,
        wish=wish,
        rates=None if rates is None else Path(rates).expanduser(),
        watcher=progress or _Watcher(None),
    )


def _loaded(
    recipe: _PathLike | None,
    sources: _PathLike | Sequence[_PathLike] | None,
    dataset: _PathLike | None,
    settings: Settings,
    engine: str | None,
    have: _PathLike | Sequence[_PathLike],
    *,
    wait: bool = False,
) -> tuple[Path | None, LoadedRecipe, bool]:
    """The folder that was given, the recipe, and whether its sources are to be read."""
    given = [sources] if isinstance(sources, str | os.PathLike) else list(sources or ())
    had = [have] if isinstance(have, str | os.PathLike) else list(have)
    folder = None if dataset is None else Path(dataset).expanduser()
    loaded = runs.load(
        None if recipe is None else os.fspath(recipe),
        folder,
        sources=[os.fspath(source) for source in given],
        overrides=as_overrides(settings),
        engine=engine,
        have=[Path(one) for one in had],
        wait=wait,
    )
    return folder, loaded, recipe is not None or bool(given)


def retry(
    dataset: _PathLike | Dataset,
    kinds: Sequence[str] = (),
    *,
    wait: bool = False,
    progress: Callable[[StageProgress], None] | runs.Watcher | None = None,
) -> RunResult:
    """Retries failed rows, of the given `kinds` or of all, and only those."""
    for kind in kinds:
        if kind not in ERROR_KINDS:
            raise UsageError(f"kinds: {kind!r}; allowed: {', '.join(ERROR_KINDS)}")
    found = dataset if isinstance(dataset, Dataset) else Dataset(dataset)
    watcher = progress if isinstance(progress, runs.Watcher) else _Watcher(progress)
    did = runs.run(
        runs.load(None, found.path, wait=wait),
        found.path,
        retry_kinds=list(kinds),
        wait=wait,
        watcher=watcher,
    )
    return _result(found, did, watcher)


def _result(dataset: Dataset, did: bool, watcher: runs.Watcher) -> RunResult:
    messages = watcher.messages if isinstance(watcher, _Watcher) else ()
    return RunResult(dataset, did, tuple(messages), dataset.status())


class _Watcher(runs.Watcher):
    def __init__(self, progress: Callable[[StageProgress], None] | None) -> None:
        self.messages: list[str] = []
        self._progress = progress

    def say(self, text: str) -> None:
        self.messages.append(text)
        _log.info("%s", text)

    @contextmanager
    def progress(
        self, todo: Mapping[str, Sequence[int]], line_seconds: float
    ) -> Iterator[runs.Progress]:
        yield _Counts({label: steps[-1] for label, steps in todo.items()}, self._progress)


class _Counts:
    def __init__(
        self, to_do: Mapping[str, int], progress: Callable[[StageProgress], None] | None
    ) -> None:
        self._to_do = to_do
        self._counts: dict[str, Counter[Any]] = {}
        self._progress = progress

    def report(self, label: str, counts: Counter[Any]) -> None:
        known = self._counts.setdefault(label, Counter())
        known.update(counts)
        if self._progress is not None:
            self._progress(
                StageProgress(
                    label,
                    known["kept"],
                    known["rejected"],
                    known["failed"],
                    known["shards"],
                    self._to_do.get(label, 0),
                    float(known["seconds"]),
                    known["skipped"],
                )
            )

    def show(self, workers: Sequence[Seen]) -> None:
        """Ignored: the Python API does not show what each worker is doing."""

    def say(self, message: str) -> None:
        _log.warning("%s", message)
