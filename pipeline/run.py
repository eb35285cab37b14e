"""Runs recipes: adds sources, runs the stages that are not done, retries failed rows."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av  # noqa: F401 - a run without the extra that it needs fails here, not at each video

from clipmill.pipeline.catalog.index_writer import index_problem
from clipmill.pipeline.costs.bill import GROUPS_AT_START, Bill, Pending, estimate
from clipmill.pipeline.costs.budget import Budget, BudgetSpent, ended_by, read_budget
from clipmill.pipeline.costs.shadow import shadow_of
from clipmill.pipeline.costs.wall_time import machine_of
from clipmill.pipeline.costs.words import describe_briefly, describe_rest
from clipmill.pipeline.dataset import run_records as records
from clipmill.pipeline.dataset.choices import Choice, open_choice
from clipmill.pipeline.dataset.leftovers import (
    remove_leftovers_of_runs,
    remove_unfinished_downloads,
)
from clipmill.pipeline.dataset.locks import Hold, dataset_lock, remove_if_empty
from clipmill.pipeline.engine.alike import AllRows
from clipmill.pipeline.engine.asked import shards_of
from clipmill.pipeline.engine.driver_log import DriverLog
from clipmill.pipeline.engine.engines import MOST_VIDEOS, Engine, engine_for
from clipmill.pipeline.engine.fitting import fit_record
from clipmill.pipeline.engine.gated_run import GatedRun, RunPhase, is_another
from clipmill.pipeline.engine.gpus import with_gpus_of
from clipmill.pipeline.engine.halting import end_halt, halt
from clipmill.pipeline.engine.having import describe_folders
from clipmill.pipeline.engine.interrupts import interruption_behind
from clipmill.pipeline.engine.new_record import new_record
from clipmill.pipeline.engine.newly_asked import newly_asked, request
from clipmill.pipeline.engine.preflight import check_models
from clipmill.pipeline.engine.retry import (
    Unfinished,
    list_shards,
    request_retries,
    unfinished_retries,
)
from clipmill.pipeline.engine.standstill import Lookout, Seen
from clipmill.pipeline.engine.started import ToRun, started
from clipmill.pipeline.engine.starting import dataset_folder as dataset_folder
from clipmill.pipeline.engine.starting import load as load
from clipmill.pipeline.engine.step_inputs import pending_sources
from clipmill.pipeline.engine.thresholds import Phase, describe_phases
from clipmill.pipeline.engine.watching import Progress as Progress
from clipmill.pipeline.engine.watching import Watcher as Watcher
from clipmill.pipeline.ingest.shard_sizes import SHARD_VIDEOS, FittedShards
from clipmill.pipeline.ingest.sources import fixed_shards_note, ingest, list_source_shards
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList, build_plan, pending
from clipmill.pipeline.recipes.recipe import LoadedRecipe
from clipmill.pipeline.removal.purge import finish_removals, left_notes
from clipmill.pipeline.subsets.wishes import Wish, check_limit
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.storage import writing_to
from clipmill.schemas.words import counted
from clipmill.stages.download_videos import DownloadVideos
from clipmill.stages.media.fetch.guards import ask_hosts_again
from clipmill.stages.media.isolation.isolated import start_decoding_ahead
from clipmill.stages.models.places import ModelPlace

# Workers report their activity every two seconds.
_MOVED_SECONDS = 3.0
# A cluster isn't asked before sources come in.
_CLUSTERS_CPUS = 16


def run(
    loaded: LoadedRecipe,
    dataset: Path,
    *,
    until: str | None = None,
    limit: int | None = None,
    retry_kinds: Sequence[str] | None = None,
    take_sources: bool = True,
    wish: Wish | None = None,
    budget: Sequence[str] = (),
    wait: bool = False,
    watcher: Watcher | None = None,
) -> bool:
    """Brings a dataset to the state that the recipe describes; True if there was anything to do.

    A `wish` limits that to some clips or sources; what earlier runs did is kept. A `budget`, such
    as `20 cpu_hours`, ends the run with BudgetSpent when it is spent.
    `retry_kinds` (an empty list means all) retries failed rows first. Without `take_sources` the
    recipe's sources are not read: the dataset's existing ones are used. Raises ClipmillError if
    the run can't continue, and, unless `wait` is set, if another command is using the dataset;
    committed results stay.
    """
    if limit is not None and not take_sources:
        raise UsageError(
            "--limit is about sources, and none are being added; name some with --sources"
        )
    check_limit(wish, limit)
    this = _Run(loaded, dataset, until, watcher or Watcher())
    this.budget = read_budget(budget, loaded.recipe.prices)
    having = describe_folders(this.steps)
    records.check_place(dataset)
    is_new = not dataset.exists()
    is_retry = retry_kinds is not None
    if not list_source_shards(dataset) and not is_retry and take_sources:
        this.require_sources()
        this.check_models(this.steps)  # nothing is written if something is missing
    if is_new and not is_retry and this.stays_here():
        start_decoding_ahead()
    with contextlib.ExitStack() as stack:
        # If nothing can be written, the error says so, whatever caused it.
        stack.enter_context(writing_to(dataset))
        dataset.mkdir(parents=True, exist_ok=True)
        records.check_links(dataset)
        hold = stack.enter_context(dataset_lock(dataset, "retry" if is_retry else "run", wait=wait))
        this.clear_up(hold)
        if having is not None:
            this.watcher.say(having)
        ask_hosts_again(dataset)
        this.finish_removals()
        if retry_kinds is not None:
            this.choose_as_before()
            if not this.retry(hold, retry_kinds):
                return False
            did = True
        else:
            if (note := fixed_shards_note(dataset, loaded.recipe.shard_videos)) is not None:
                this.watcher.say(note)
            this.check_models_of(this.pending())
            said = None
            if take_sources:
                try:
                    said = this.ingest(limit)
                except UsageError:
                    if is_new:
                        remove_if_empty(dataset)
                    raise
            said = "\n".join(filter(None, (said, this.choose(wish), this.let_in()))) or None
            did = this.bring_up_to_date(hold, said)
        this.finish_removals()  # of videos that came back from other sources
        if (problem := index_problem(dataset)) is not None:
            this.watcher.say(problem)
    if did and wish and wish.sample is not None:
        rest = plan_run(loaded, dataset, until=until, take_sources=False)
        this.watcher.say(describe_rest(rest))
    return did


def plan_run(
    loaded: LoadedRecipe,
    dataset: Path,
    *,
    until: str | None = None,
    limit: int | None = None,
    take_sources: bool = True,
    wish: Wish | None = None,
    rates: Path | None = None,
    watcher: Watcher | None = None,
) -> Bill:
    """What `run` would do, and what that would cost; nothing is done, and nothing written.

    `rates` is a dataset whose earlier runs tell what stages cost that were never run in this one.
    """
    records.check_place(dataset)
    if rates is not None:
        records.require_dataset(rates)
    with shadow_of(dataset) as shadow:
        this = _Run(loaded, shadow, until, watcher or Watcher())
        if not list_source_shards(shadow):
            this.require_sources()
        if take_sources:
            this.ingest(limit)
        this.choose(wish)
        this.let_in()
        gated = this.gated()
        gated.let_in_before(this.new_record(gated))
        return this.estimate(dataset, rates=rates, looks_at_rows=True)


class _Run:
    """One run of a recipe over a dataset: its steps, and its watcher."""

    def __init__(
        self, loaded: LoadedRecipe, dataset: Path, until: str | None, watcher: Watcher
    ) -> None:
        self.loaded = loaded
        self.dataset = dataset
        self.watcher = watcher
        self.plan = build_plan(loaded, dataset)
        self.steps = self.plan.until(until)
        self._checked: set[str] = set()
        self.budget: Budget | None = None
        self._rows = AllRows(self.plan.stop_after)
        self._choice: Choice | None = None
        self._is_retry = False

    def shards(self) -> ShardList:
        shards = list_shards(self.dataset, list_source_shards(self.dataset))
        if self._choice is None:
            return shards
        return shards_of(self._choice, shards, with_retries=self._is_retry)

    # What is asked for

    def choose(self, wish: Wish | None) -> str | None:
        """Limits the run to what is wished for, and says how much that is."""
        if not wish:
            return None
        from clipmill.pipeline.subsets.choosing import choose, describe  # all of subsets

        with self.watcher.busy("choosing …"):
            self._choice = choose(self.dataset, self.plan, wish)
        return self._say(describe(self._choice))

    def choose_as_before(self) -> None:
        """Keeps to what the newest run was asked for: a retry adds only failed rows."""
        self._is_retry = True
        record = records.latest_run(self.dataset)
        if record is not None and (chosen := record.get("choice")) is not None:
            self._choice = open_choice(self.dataset, chosen["name"])

    def let_in(self) -> str | None:
        """Requests what earlier runs were not asked for and this one is."""
        shards = self.shards()
        wanted = newly_asked(self.plan, self.steps, self.dataset, shards)
        counts = request(self.plan, self.dataset, shards, wanted)
        if not counts:
            return None
        rows = ", ".join(f"{count:,} at {stage}" for stage, count in counts.items())
        return self._say(f"Rows that earlier runs were not asked for, and that are now: {rows}.")

    def _say(self, text: str) -> str:
        self.watcher.say(text)
        return text

    def pending(self, shards: ShardList | None = None) -> dict[str, list[str]]:
        """The shards that each step still has to do."""
        return pending(self.plan, self.steps, shards or self.shards(), self.dataset)

    # Checks before anything is written

    def require_sources(self) -> None:
        if not self.loaded.recipe.sources and not list_source_shards(self.dataset):
            raise UsageError(
                f"recipe {self.loaded.name} names no sources; give some with "
                "--sources PATH_OR_URL or `sources:` in the recipe"
            )

    def check_models(self, steps: Sequence[PlannedStep]) -> None:
        """ClipmillError if what these steps name is unavailable or does not fit; once per step."""
        todo = [step for step in steps if step.label not in self._checked]
        with self.watcher.busy("checking the models …"):
            said, spent = check_models(todo, self.plan.steps)
        for line in said:
            self.watcher.say(line)
        if self.budget is not None:
            self.budget.add(spent)
        self._checked |= {step.label for step in steps}

    def check_models_of(self, todo: Mapping[str, Sequence[str]]) -> None:
        self.check_models([step for step in self.steps if todo[step.label]])

    # Leftovers of other commands

    def clear_up(self, hold: Hold) -> None:
        """Cleans up after a run that did not finish: marks its record, deletes leftovers."""
        latest = records.latest_run(self.dataset)
        if hold.former_was_killed or (latest is not None and latest["state"] != "done"):
            records.note_killed_runs(self.dataset)
            remove_leftovers_of_runs(self.dataset)

    def finish_removals(self) -> None:
        for note in left_notes(finish_removals(self.dataset)):
            self.watcher.say(note)

    def clear_up_after(self) -> None:
        if self.plan.steps == self.steps:
            remove_unfinished_downloads(self.dataset)

    # The run itself

    def ingest(self, limit: int | None) -> str | None:
        """Adds the recipe's sources, and reports on them."""
        self.require_sources()
        recipe = self.loaded.recipe
        if not recipe.sources:
            return None
        report = ingest(
            self.dataset,
            recipe.sources,
            shard_videos=self._shard_videos(),
            exclude_ids=recipe.exclude_ids,
            limit=limit,
            base_folder=self.loaded.folder,
            take_suffixes=recipe.take_suffixes,
            for_lists=recipe.for_lists,
            downloads=next(iter(self._downloads()), None),
        )
        said = "\n".join(filter(None, (report.describe_lists(), report.describe())))
        self.watcher.say(said)
        return said

    def _shard_videos(self) -> int | FittedShards:
        recipe = self.loaded.recipe
        if recipe.shard_videos is not None:
            return recipe.shard_videos
        if not any(step.stage.in_helpers for step in self.plan.steps):
            return SHARD_VIDEOS
        machine = machine_of(recipe)
        cpus = _CLUSTERS_CPUS if machine is None else int(machine.cpus)
        return FittedShards(cpus, max((s.concurrency for s in self._downloads()), default=1))

    def _downloads(self) -> list[DownloadVideos]:
        stages = self.loaded.stages.values()
        return [stage for stage in stages if isinstance(stage, DownloadVideos)]

    def retry(self, hold: Hold, kinds: Sequence[str]) -> bool:
        """Retries failed rows; unfinished work of an earlier retry comes first."""
        shards = self.shards()
        begun = unfinished_retries(self.plan, self.dataset, shards)
        if begun:
            said = f"Finishing {counted(begun.shards, 'shard')} of an earlier, interrupted retry."
            self.watcher.say(said)
            self.bring_up_to_date(hold, said)
        asked = request_retries(self.plan, self.dataset, shards, kinds, begun or Unfinished())
        if not asked:
            wanted = f" of kind {', '.join(kinds)}" if kinds else ""
            self.watcher.say(
                f"Nothing more to retry: no failures{wanted} from before that retry."
                if begun
                else f"Nothing to retry: no failures{wanted} at any stage. For rows that failed "
                f"at ingest, `clipmill failures {shell_word(self.dataset)}` says what helps."
            )
            return bool(begun)
        said = "\n".join(
            f"Retrying {counted(keys, 'failed row')} of {stage}." for stage, keys in asked.items()
        )
        self.watcher.say(said)
        return self.bring_up_to_date(hold, said)

    def bring_up_to_date(self, hold: Hold, before: str | None) -> bool:
        """Runs what is pending; `before` tells the log what was done just before."""
        latest = records.latest_run(self.dataset)
        gated = self.gated()
        record = self.new_record(gated)
        gated.let_in_before(record)
        shards = self.shards()
        todo = self.pending(shards)
        if not any(todo.values()):
            self.clear_up_after()
            if latest is None or is_another(latest, record):
                # The recipe returned to tables made earlier, which the views must show again, or
                # it has other gates, which let nothing more in.
                records.write_run(
                    self.dataset, {**record, "state": "done", "finished_at": record["started_at"]}
                )
            self.watcher.say(
                "Nothing to do: every shard of every stage is committed. --sources "
                "adds sources, --set changes a setting."
                if self._choice is None
                else "Nothing to do: all that this run is asked for is done."
            )
            return False
        self.check_models_of(todo)
        with contextlib.suppress(ClipmillError, OSError):  # the run itself meets the problem
            if said := describe_briefly(self.estimate(self.dataset, todo, groups=GROUPS_AT_START)):
                self.watcher.say(said)
        # A new record: now that the models are here, their revisions are known.
        engine = self.engine(shards, todo)
        record = self.new_record(gated, engine)
        hold.begin(record["run_id"])
        kept_record = records.RecordOfThisRun(self.dataset, record)
        log = DriverLog(self.loaded, self.dataset, record, todo, before)
        try:
            self._run_engine(engine, gated, shards, kept_record, todo, log, hold)
            left = sum(map(len, self.pending(shards).values()))
            if left:
                raise ClipmillError(
                    f"{counted(left, 'shard')} of steps not committed; run again to continue"
                )
        except BaseException as error:
            # Even if the error came from the closed terminal.
            end_halt(self.dataset, record["run_id"])
            in_order = isinstance(error, BudgetSpent) or interruption_behind(error)
            state = "stopped" if in_order else "failed"
            with contextlib.suppress(OSError):  # a full disk may be what stopped the run
                kept_record.finish(state)
            log.end(state, error)
            raise
        # Of workers that died during this run, and of an earlier run's that have died since.
        remove_leftovers_of_runs(self.dataset)
        self.clear_up_after()
        kept_record.finish("done")
        log.end("done")
        gated.tell_at_the_end()
        for line in self._rows.lines():
            self.watcher.say(line)
        self.watcher.say(f"Done in {log.seconds:.0f} s.")
        return True

    def gated(self) -> GatedRun:
        latest = records.latest_run(self.dataset)
        return GatedRun(self.plan, self.steps, self.dataset, latest, self.shards, self.watcher.say)

    def estimate(
        self, dataset: Path, todo: dict[str, list[str]] | None = None, **details: Any
    ) -> Bill:
        """What is pending, as an estimate; `dataset` is the one that this one stands for."""
        choice = self._choice.record if self._choice is not None else None
        plan, machine = self.plan, machine_of(self.loaded.recipe)
        if machine is not None:
            plan, _ = with_gpus_of(plan, machine.gpus, self.loaded.recipe)
        steps = tuple(plan.by_label[step.label] for step in self.steps)
        shards = self.shards()
        engine = self.engine(shards, self.pending(shards) if todo is None else todo)
        recipe = self.loaded.recipe.model_copy(update={"engine": engine.name})
        found = estimate(
            Pending(plan, steps, shards, self.dataset, choice), recipe, dataset, **details
        )
        return replace(found, engine=engine.name, engine_reason=engine.why)

    def stays_here(self) -> bool:
        """Whether videos would be read by this process, if they are few."""
        reads = any(step.stage.in_helpers for step in self.steps)
        return reads and engine_for(self.loaded.recipe, self.steps, 0).name == "local"

    def engine(self, shards: ShardList, todo: Mapping[str, Sequence[str]]) -> Engine:
        """The engine for what is pending."""
        steps = [step for step in self.steps if todo[step.label]]
        videos = pending_sources(self.dataset, shards, todo, MOST_VIDEOS)
        return engine_for(self.loaded.recipe, steps, videos)

    def new_record(self, gated: GatedRun, engine: Engine | None = None) -> records.RunRecord:
        name = engine.name if engine is not None else None
        fits = {
            step.stage_label: fit_record(self.dataset, step)
            for step in self.plan.steps
            if step.stage.fits
        }
        return new_record(
            self.loaded,
            self.plan,
            self.steps,
            self.shards(),
            gated.may_skip,
            self._choice,
            name,
            fits,
        )

    def _run_engine(
        self,
        engine: Engine,
        gated: GatedRun,
        shards: ShardList,
        record: records.RecordOfThisRun,
        todo: dict[str, list[str]],
        log: DriverLog,
        hold: Hold,
    ) -> None:
        recipe = self.loaded.recipe
        shown: dict[str, list[int]] = {}
        for step in self.steps:
            shown.setdefault(step.stage_label, []).append(len(todo[step.label]))

        def report(label: str, counts: Counter[Any]) -> None:
            hold.moved()
            progress.report(label, counts)
            log.report(label, counts)
            is_over = self._rows.add(label, counts)
            if is_over or (self.budget is not None and self.budget.add(counts)):
                halt(self.dataset, record.run_id)
            record.add_places(label, [name for name in counts if isinstance(name, ModelPlace)])

        def show(workers: Sequence[Seen]) -> None:
            if any(worker.still_seconds < _MOVED_SECONDS for worker in workers):
                hold.moved()
            progress.show(workers)

        def say(message: str, about: Mapping[str, Any]) -> None:
            progress.say(message)
            log.stands(message, about)

        def note(text: str) -> None:
            progress.say(text)
            log.plan([text])

        def tell(lines: Sequence[str]) -> None:
            self.watcher.say("\n".join(lines))
            log.plan(lines)

        run = ToRun(
            self.plan,
            self.steps,
            shards,
            todo,
            recipe,
            self.dataset,
            record.run_id,
            report,
            Lookout(recipe.stall_seconds, show, say),
            log.log,
            log.limits,
        )
        watched = self.watcher.progress(shown, recipe.progress_seconds)
        with started(engine, run, self.watcher.busy) as found:
            tell([*found.lines, *describe_phases(self.steps, self.dataset), *gated.notes(todo)])
            with watched as progress:
                gated.run(self._ended(found.run_phase), record, note, report)

    def _ended(self, run_phase: RunPhase) -> RunPhase:
        """A phase after which the run ends if its budget is spent or a stage only fails."""

        def run(plan: Plan, steps: Phase, shards: ShardList) -> None:
            run_phase(plan, steps, shards)
            if (problem := self._rows.problem()) is not None:
                raise problem

        if self.budget is None:
            return run
        self.budget.start()
        return ended_by(self.budget, run, lambda: sum(map(len, self.pending().values())))
