"""`clipmill run` and `clipmill retry`: from a recipe to committed shards."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
import uuid
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

from clipmill.jobs.fixed_shards import say_that_shards_are_fixed
from clipmill.jobs.indexing import refresh_index
from clipmill.jobs.progress import Progress, saying
from clipmill.jobs.remove import tell_left
from clipmill.pipeline.dataset import run_records as records
from clipmill.pipeline.dataset.leftovers import (
    remove_leftovers_of_runs,
    remove_unfinished_downloads,
)
from clipmill.pipeline.dataset.locks import Hold, dataset_lock, remove_if_empty, wait_until_free
from clipmill.pipeline.dataset.run_logs import DRIVER, LogLimits, RunLog, python_messages
from clipmill.pipeline.dataset.versions import code_version, package_versions
from clipmill.pipeline.engine.interrupts import interruption_behind
from clipmill.pipeline.engine.local import run_locally
from clipmill.pipeline.engine.retry import (
    Unfinished,
    list_shards,
    request_retries,
    unfinished_retries,
)
from clipmill.pipeline.engine.standstill import Lookout, Seen
from clipmill.pipeline.ingest.sources import ingest, list_source_shards
from clipmill.pipeline.recipes.plan import Plan, ShardList, Step, build_plan, pending
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import LoadedRecipe, load_recipe
from clipmill.pipeline.removal.remove import finish_removals
from clipmill.schemas.command_line import shell_word, start_a_run
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.storage import writing_to
from clipmill.schemas.words import counted
from clipmill.stages.download_videos import DownloadVideos
from clipmill.stages.media.fetch.guards import ask_hosts_again
from clipmill.stages.models.places import ModelPlace
from clipmill.stages.protocol import Stage
from clipmill.stages.references import ModelReference

_err = Console(stderr=True, highlight=False)
_LOGGED_COUNTS = ("kept", "rejected", "failed", "outputs", "shards")
# Workers say every two seconds what they are at.
_MOVED_SECONDS = 3.0


def run(
    loaded: LoadedRecipe,
    dataset: Path,
    *,
    until: str | None = None,
    limit: int | None = None,
    retry_kinds: Sequence[str] | None = None,
    take_sources: bool = True,
    wait: bool = False,
) -> bool:
    """Brings a dataset to where the recipe says; True if there was anything to do.

    `retry_kinds` (an empty list means all) asks for failed rows to be tried again first. Without
    `take_sources` the recipe's sources are not looked at: the dataset's are what there is.
    Raises ClipmillError where the run can't go on, and, unless told to `wait`, where another
    command is at work on the dataset; what is committed stays.
    """
    if limit is not None and not take_sources:
        raise UsageError("--limit is about sources, and none are taken; name some with --sources")
    plan = build_plan(loaded)
    steps = plan.until(until)
    records.check_place(dataset)
    is_new = not dataset.exists()
    checked: Sequence[Step] = ()
    if not list_source_shards(dataset) and retry_kinds is None and take_sources:
        _require_sources(loaded, dataset)
        checked = _check_models(steps)  # nothing is written where something lacks
    command = "run" if retry_kinds is None else "retry"
    with contextlib.ExitStack() as stack:
        # Where nothing can be written, that is what is said, whatever could not be.
        stack.enter_context(writing_to(dataset))
        dataset.mkdir(parents=True, exist_ok=True)
        records.check_links(dataset)
        hold = stack.enter_context(dataset_lock(dataset, command, wait=wait))
        _clear_up(dataset, hold)
        ask_hosts_again(dataset)
        tell_left(finish_removals(dataset))
        taken = None
        if retry_kinds is None:
            say_that_shards_are_fixed(dataset, loaded.recipe.shard_videos)
        if retry_kinds is None and not checked:
            shards = list_shards(dataset, list_source_shards(dataset))
            todo = pending(plan, steps, shards, dataset)
            checked = _check_models([step for step in steps if todo[step.label]])
        if retry_kinds is None and take_sources:
            try:
                taken = _ingest(loaded, dataset, limit)
            except UsageError:
                if is_new:
                    remove_if_empty(dataset)
                raise
        first = list_source_shards(dataset)
        if retry_kinds is None:
            did = _bring_up_to_date(loaded, plan, steps, list_shards(dataset, first), dataset,
                                    hold, taken, checked)
        else:
            did = _retry(loaded, plan, steps, first, dataset, hold, retry_kinds)
            if not did:
                return False
        tell_left(finish_removals(dataset))  # of videos that came again
        refresh_index(dataset)
        return did


def _retry(
    loaded: LoadedRecipe, plan: Plan, steps: tuple[Step, ...], first: Sequence[str],
    dataset: Path, hold: Hold, kinds: Sequence[str],
) -> bool:
    """Tries failed rows again; what an earlier retry has begun and not done comes first."""
    shards = list_shards(dataset, first)
    begun = unfinished_retries(plan, dataset, shards)
    if begun:
        said = (f"Finishing {counted(begun.shards, 'shard')} of an earlier "
                "retry that was stopped.")
        _err.print(said)
        _bring_up_to_date(loaded, plan, steps, shards, dataset, hold, said)
    asked = request_retries(plan, dataset, shards, kinds, begun or Unfinished())
    if not asked:
        wanted = f" of kind {', '.join(kinds)}" if kinds else ""
        _err.print(f"Nothing more to retry: no failures{wanted} from before that retry." if begun
                   else f"Nothing to retry: no failures{wanted} at any stage. For rows that failed "
                        f"at ingest, `clipmill failures {shell_word(dataset)}` says what helps.",
                   soft_wrap=True)
        return bool(begun)
    said = "\n".join(f"Trying {counted(keys, 'failed row')} of {stage} again."
                     for stage, keys in asked.items())
    _err.print(said)
    return _bring_up_to_date(loaded, plan, steps, list_shards(dataset, first), dataset, hold,
                             said)


def _clear_up(dataset: Path, hold: Hold) -> None:
    """After a run that was not ended in order: says so in its record, removes what it left."""
    latest = records.latest_run(dataset)
    if hold.former_was_killed or (latest is not None and latest["state"] != "done"):
        records.note_killed_runs(dataset)
        remove_leftovers_of_runs(dataset)


def _ingest(loaded: LoadedRecipe, dataset: Path, limit: int | None) -> str | None:
    """Takes the recipe's sources in; says what came of them."""
    recipe = loaded.recipe
    _require_sources(loaded, dataset)
    if recipe.sources:
        report = ingest(
            dataset, recipe.sources, shard_videos=recipe.shard_videos,
            exclude_ids=recipe.exclude_ids, limit=limit, base_folder=loaded.folder,
            take_suffixes=recipe.take_suffixes,
            encoding=recipe.encoding, platform=recipe.platform,
            downloads=next((stage for stage in loaded.stages.values()
                            if isinstance(stage, DownloadVideos)), None),
        )
        said = "\n".join(filter(None, (report.describe_lists(), report.describe())))
        _err.print(said, markup=False, soft_wrap=True)
        return said
    return None


def _require_sources(loaded: LoadedRecipe, dataset: Path) -> None:
    if not loaded.recipe.sources and not list_source_shards(dataset):
        raise UsageError(f"recipe {loaded.name} names no sources; give some with "
                         "--sources PATH_OR_URL or `sources:` in the recipe")


def _check_models(steps: Sequence[Step]) -> Sequence[Step]:
    """The steps, once all that they name is here."""
    from clipmill.pipeline.engine.preflight import check_models

    check_models(steps)
    return steps


def _bring_up_to_date(
    loaded: LoadedRecipe, plan: Plan, steps: tuple[Step, ...], shards: ShardList, dataset: Path,
    hold: Hold, before: str | None, checked: Sequence[Step] = (),
) -> bool:
    """Runs what is pending; `before` says for the log what was done just now, before it.

    What steps that are `checked` need is known to be here.
    """
    todo = pending(plan, steps, shards, dataset)
    record = _record(loaded, plan, steps, shards)
    if not any(todo.values()):
        if plan.steps == steps:
            remove_unfinished_downloads(dataset)
        latest = records.latest_run(dataset)
        if latest is None or _fingerprints(latest) != _fingerprints(record):
            # The recipe went back to tables made earlier: the views must show those again.
            records.write_run(dataset, {**record, "state": "done",
                                        "finished_at": record["started_at"]})
        _err.print("Nothing to do: every shard of every stage is committed. --sources adds "
                   "sources, --set changes a setting.")
        return False
    _check_models([step for step in steps if todo[step.label] and step not in checked])
    # Made again: now that the models are here, their revisions are known.
    record = _record(loaded, plan, steps, shards)
    hold.begin(record["run_id"])
    kept_record = records.RecordOfThisRun(dataset, record)
    log = _DriverLog(loaded, dataset, record, todo, before)
    try:
        _engine(loaded, plan, steps, shards, dataset, kept_record, todo, log, hold)
        left = sum(map(len, pending(plan, steps, shards, dataset).values()))
        if left:
            raise ClipmillError(f"{counted(left, 'shard')} of steps not committed; run again to "
                                "go on")
    except BaseException as error:
        # Also where the closed terminal's own error came of it.
        state = "stopped" if interruption_behind(error) else "failed"
        with contextlib.suppress(OSError):  # a disk that is full now may be what stopped the run
            kept_record.finish(state)
        log.end(state, error)
        raise
    # Of workers that died meanwhile, and of those of an earlier run that have died since.
    remove_leftovers_of_runs(dataset)
    if plan.steps == steps:
        remove_unfinished_downloads(dataset)
    kept_record.finish("done")
    log.end("done")
    _err.print(f"Done in {log.seconds:.0f} s.")
    return True


class _DriverLog:
    """What the driver writes to the run's log, and the counts that it ends with."""

    def __init__(self, loaded: LoadedRecipe, dataset: Path, record: dict[str, Any],
                 todo: dict[str, list[str]], before: str | None) -> None:
        recipe = loaded.recipe
        self.limits = LogLimits.of(recipe.log_file_megabytes, recipe.log_megabytes)
        self.log = RunLog(dataset, record["run_id"], DRIVER, self.limits)
        self._started = time.monotonic()
        self._counts: dict[str, Counter] = {}
        versions = {"clipmill": record["code_version"], **record["versions"]}
        self.log.write("run_start", f"recipe {loaded.name}, engine {recipe.engine}",
                       versions=versions)
        for line in (before or "").splitlines():
            self.log.write("before", line)
        self.log.write("pending", "shards to do, by step",
                       counts={step: len(missing) for step, missing in todo.items() if missing})

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def plan(self, lines: Sequence[str]) -> None:
        """Says what will run where, to the user and to the log."""
        for line in lines:
            _err.print(line)
            self.log.write("plan", line.strip())

    def report(self, label: str, counts: Counter) -> None:
        self._counts.setdefault(label, Counter()).update(
            {name: number for name, number in counts.items() if name in _LOGGED_COUNTS})

    def stands(self, message: str, about: Mapping[str, Any]) -> None:
        self.log.write("standstill", message, level="warning", **about)

    def end(self, state: str, error: BaseException | None = None) -> None:
        if error is not None:
            self.log.raised("run_error", error)
        for label, counts in self._counts.items():
            self.log.write("stage_counts", step=label, counts=dict(counts))
        self.log.write("run_end", state, level="info" if state == "done" else "error",
                       seconds=round(self.seconds, 3))


def _engine(
    loaded: LoadedRecipe, plan: Plan, steps: tuple[Step, ...], shards: ShardList, dataset: Path,
    record: records.RecordOfThisRun, todo: dict[str, list[str]], log: _DriverLog, hold: Hold,
) -> None:
    shown: dict[str, list[int]] = {}
    for step in steps:
        shown.setdefault(step.stage_label, []).append(len(todo[step.label]))
    progress = Progress(shown, line_seconds=loaded.recipe.progress_seconds)

    def report(label: str, counts: Counter) -> None:
        hold.moved()
        progress.report(label, counts)
        log.report(label, counts)
        record.add_places(label, [name for name in counts if isinstance(name, ModelPlace)])

    def show(workers: Sequence[Seen]) -> None:
        if any(worker.still_seconds < _MOVED_SECONDS for worker in workers):
            hold.moved()
        progress.show(workers)

    def say(message: str, about: Mapping[str, Any]) -> None:
        progress.say(message)
        log.stands(message, about)

    lookout = Lookout(loaded.recipe.stall_seconds, show, say)
    run_id = record.run_id
    if loaded.recipe.engine == "local":
        log.plan(["Plan: every stage in this process, shard by shard."])
        with progress:
            run_locally(plan, steps, shards, dataset, run_id, report, log.limits, lookout)
        return
    address = loaded.recipe.ray.address or os.environ.get("RAY_ADDRESS")
    with contextlib.ExitStack() as stack:
        with saying(f"joining the Ray cluster at {address} …" if address else "starting Ray …"):
            from clipmill.pipeline.engine.on_ray import cluster, legs_of, run_on_ray

            stack.enter_context(python_messages(log.log))
            machine = stack.enter_context(cluster(loaded.recipe.ray))
        legs = legs_of(plan, steps, shards, dataset, machine)
        gpus = f" and {machine.gpus:g} GPUs" if machine.gpus else ""
        lines = [f"Plan for {machine.cpus:g} CPUs{gpus}:"]
        for number, leg in enumerate(legs, 1):
            lines += [f"  leg {number}: {pool.describe()}" if len(legs) > 1
                      else f"  {pool.describe()}" for pool in leg]
        if machine.gpus and not any(step.stage.gpus for step in steps):
            lines.append(f"  No stage asks for one of the {machine.gpus:g} GPUs; give those with "
                         "models one, e.g. --set caption_frames.gpus=1")
        log.plan(lines)
        with progress:
            run_on_ray(plan, steps, shards, dataset, run_id, report, machine, log.limits, lookout)


def _record(
    loaded: LoadedRecipe, plan: Plan, steps: tuple[Step, ...], shards: ShardList
) -> dict[str, Any]:
    """What a run was made with; how far it was to go tells `verify` what must be there."""
    now = datetime.now(UTC)
    return {
        "run_id": f"{now:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:6]}",
        "started_at": now.isoformat(),
        "finished_at": None,
        "state": "running",
        "recipe_name": loaded.name,
        "recipe": loaded.record(),
        "code_version": code_version(),
        "versions": {"python": platform.python_version(), "system": platform.platform(),
                     **package_versions()},
        "engine": loaded.recipe.engine,
        "until": None if len(steps) == len(plan.steps) else steps[-1].stage_label,
        "last_shard": shards.first[-1] if shards.first else None,
        "stages": [_stage_record(plan, label, loaded) for label in loaded.stages],
    }


def _stage_record(plan: Plan, label: str, loaded: LoadedRecipe) -> dict[str, Any]:
    stage = loaded.stages[label]
    steps = [step for step in plan.steps if step.stage_label == label]
    return {
        "stage": label,
        "name": stage.name,
        "key": stage.key,
        "steps": [
            {
                "step": step.label,
                "key": step.stage.key,
                "fingerprint": step.fingerprint,
                "upstream": list(step.upstream),
                "tables": {
                    table: str(step.folder(Path(), table))
                    for table in (step.label, *step.stage.more_tables)
                },
                "schema_columns": step.stage.table_schema.names,
            }
            for step in steps
        ],
        "score": stage.score,
        "reads": list(stage.reads),
        "settings": stage.model_dump(mode="json"),
        "models": _models(stage),
        "prompts": stage.prompts(),
    }


def _models(stage: Stage) -> dict[str, dict[str, str | None]]:
    """Every model and data file of a stage by setting: where from, which revision, which bytes."""
    from clipmill.stages.models.loading import resolved_revision

    found = {}
    for setting, value in stage.references().items():
        if isinstance(value, ModelReference):
            place, revision = str(value), resolved_revision(value) or value.revision
        else:
            place, revision = str(value), None
        found[setting] = {"reference": place, "revision": revision, "identity": value.identity()}
    return found


def _fingerprints(record: dict[str, Any]) -> dict[str, str]:
    return {step["step"]: step["fingerprint"]
            for stage in record["stages"] for step in stage["steps"]}


def load(
    recipe: str | None, dataset: Path | None, *, overrides: Sequence[str] = (),
    sources: Sequence[str] = (), engine: str | None = None, wait: bool = False,
) -> LoadedRecipe:
    """The recipe that a RECIPE argument means; without one, that of the dataset's newest run.

    Told to `wait`, it is the newest once the command that is at work on the dataset is done.
    """
    if recipe is not None:
        return load_recipe(recipe_path(recipe), overrides=overrides, sources=sources,
                           engine=engine)
    if dataset is None:
        raise UsageError("name a RECIPE (`clipmill recipe list`), or with --dataset a dataset "
                         "whose newest run's recipe is taken")
    records.require_dataset(dataset)
    if wait:
        wait_until_free(dataset)
    record = records.latest_run(dataset)
    if record is None:
        raise UsageError(f"{dataset} has no run yet; {start_a_run(dataset)}")
    return LoadedRecipe.from_record(record["recipe"], overrides, sources=sources, engine=engine)


def dataset_folder(loaded: LoadedRecipe, given: Path | None) -> Path:
    """Where the dataset lies: what the command line says, else the recipe, else a name here."""
    if given is not None:
        return given.expanduser().absolute()
    if loaded.recipe.dataset:
        return Path(loaded.recipe.dataset).expanduser().absolute()
    return (Path.cwd() / f"{loaded.name}-dataset").absolute()


def closing_table(dataset: Path) -> None:
    """The state of the dataset, on standard output."""
    from clipmill.jobs.query import print_status

    print_status(dataset)
    sys.stdout.flush()
