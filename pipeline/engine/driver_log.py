"""What the driver of a run writes to the run's log."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clipmill.pipeline.dataset.run_logs import DRIVER, LogLimits, RunLog
from clipmill.pipeline.dataset.run_records import RunRecord
from clipmill.pipeline.recipes.recipe import LoadedRecipe

_LOGGED_COUNTS = ("kept", "rejected", "failed", "skipped", "outputs", "shards")


class DriverLog:
    """The driver's entries in the run's log, and its final counts."""

    def __init__(
        self,
        loaded: LoadedRecipe,
        dataset: Path,
        record: RunRecord,
        todo: dict[str, list[str]],
        before: str | None,
    ) -> None:
        recipe = loaded.recipe
        self.limits = LogLimits.of(recipe.log_file_megabytes, recipe.log_megabytes)
        self.log = RunLog(dataset, record["run_id"], DRIVER, self.limits)
        self._started = time.monotonic()
        self._counts: dict[str, Counter[Any]] = {}
        versions = {"clipmill": record["code_version"], **record["versions"]}
        self.log.write(
            "run_start", f"recipe {loaded.name}, engine {record['engine']}", versions=versions
        )
        for line in (before or "").splitlines():
            self.log.write("before", line)
        self.log.write(
            "pending",
            "shards to do, by step",
            counts={step: len(missing) for step, missing in todo.items() if missing},
        )

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def plan(self, lines: Sequence[str]) -> None:
        """Logs which steps will run where."""
        for line in lines:
            self.log.write("plan", line.strip())

    def report(self, label: str, counts: Counter[Any]) -> None:
        self._counts.setdefault(label, Counter()).update(
            {name: number for name, number in counts.items() if name in _LOGGED_COUNTS}
        )

    def stands(self, message: str, about: Mapping[str, Any]) -> None:
        self.log.write("standstill", message, level="warning", **about)

    def end(self, state: str, error: BaseException | None = None) -> None:
        if error is not None:
            self.log.raised("run_error", error)
        for label, counts in self._counts.items():
            self.log.write("stage_counts", step=label, counts=dict(counts))
        self.log.write(
            "run_end",
            state,
            level="info" if state == "done" else "error",
            seconds=round(self.seconds, 3),
        )
