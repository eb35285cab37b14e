"""Runs steps over shards: the same code in every engine.

A step's shard is committed only when every input key has been kept, rejected, failed or skipped.
How its rows are processed is in `shard_rows.py`, and which shards are in flight in `flow.py`.
"""

from __future__ import annotations

import contextlib
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.pipeline.dataset.commit_fence import Fence
from clipmill.pipeline.dataset.fits import fitted
from clipmill.pipeline.dataset.run_logs import (
    NO_LOGS,
    LogLimits,
    RunLog,
    ShardLog,
    python_messages,
    worker_name,
)
from clipmill.pipeline.dataset.shards import ShardMetadata, note_outcomes, shard_path
from clipmill.pipeline.dataset.tombstones import new_tombstone, removed_videos
from clipmill.pipeline.engine.activity import Activity
from clipmill.pipeline.engine.alike import FirstRows
from clipmill.pipeline.engine.asked import Asked
from clipmill.pipeline.engine.flow import Flow, Stopped, Turn, shards_at_once
from clipmill.pipeline.engine.halting import is_halted
from clipmill.pipeline.engine.left_out import LeftOut
from clipmill.pipeline.engine.metering import Meter, WorkTime, reported, seconds_of_video, total
from clipmill.pipeline.engine.shard_rows import ShardRows, forget_journal
from clipmill.pipeline.engine.step_files import StepFiles
from clipmill.pipeline.engine.step_inputs import KeptFrameReader, input_table, read_group, without
from clipmill.pipeline.engine.step_outputs import complete, made_before, skipped_rows
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList, have_passed, named_keys
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.folders import FRAMES, scratch_folder
from clipmill.schemas.processors import usable_cpus
from clipmill.schemas.step_tables import NOT_ASKED, REMOVED_RULE
from clipmill.schemas.storage import writing_to
from clipmill.stages.media.isolation.isolated import abandon_calls
from clipmill.stages.models.device_errors import DeviceBroken
from clipmill.stages.models.places import noted_places
from clipmill.stages.protocol import Transform, Workspace

Report = Callable[[str, Counter[Any]], None]
"""Called with a stage's label and how many keys were kept, rejected, failed, skipped, and
`shards` done.

A ModelPlace counts how often workers loaded a model there, an Alike the failures that may be the
stage's.
"""

_LOOK_SECONDS = 0.2


@dataclass
class Worker:
    """Runs some consecutive steps in one process; models are loaded once and kept."""

    plan: Plan
    steps: tuple[PlannedStep, ...]
    dataset: Path
    run_id: str
    shards: ShardList
    report: Report = lambda label, counts: None
    journal_over_runs: bool = True
    log_limits: LogLimits = NO_LOGS
    activity: Activity = field(default_factory=Activity)
    calls: Mapping[str, int] = field(default_factory=dict)
    """Calls at a time of some steps, by label; with any, several shards are in flight."""
    _open: dict[str, _OpenStage] = field(default_factory=dict)
    _commit_seconds: float = 0.0
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        labels = [step.label for step in self.steps]
        self._flow = Flow(self.steps, self.calls)
        self._time = WorkTime()
        self._opening, self._asking, self._telling = (threading.Lock() for _ in range(3))
        self._fence = Fence(self.dataset, self.run_id)
        self._asked = Asked(self.plan, self.dataset, self.shards)
        self._left_out = LeftOut(self.plan, self.dataset)
        self._threads: list[threading.Thread] = []
        self._first = FirstRows(self.plan.stop_after, self.plan.keeps_back)
        self.kept_back: list[str] = []
        self._stack.callback(self._left_out.close)
        self._log = RunLog(self.dataset, self.run_id, worker_name(labels), self.log_limits)
        self._log.write("worker_start", "steps: " + ", ".join(labels))
        self._stack.enter_context(python_messages(self._log))

    def run_all(self, shards: Sequence[str], rows_a_shard: int) -> None:
        """Runs all shards, of about so many rows, as many at a time as the steps can use."""
        at_once = min(len(shards), shards_at_once(self.steps, rows_a_shard, self.calls))
        if at_once <= 1:
            for shard in shards:
                self.run(shard)
            return
        names, taking, ended = iter(shards), threading.Lock(), threading.Semaphore(0)

        def work() -> None:
            try:
                while self._flow.error is None:
                    with taking:
                        shard = next(names, None)
                    if shard is None:
                        return
                    with contextlib.suppress(BaseException):  # the flow has kept it
                        self.run(shard)
            finally:
                ended.release()

        self._threads = [threading.Thread(target=work, daemon=True) for _ in range(at_once)]
        for thread in self._threads:
            thread.start()
        try:
            # Not by joining the threads: Python 3.11 takes a thread for ended when an interrupt
            # comes while it is joined. After an error, their calls end when the stages are closed.
            for _ in self._threads:
                while self._flow.error is None and not ended.acquire(timeout=_LOOK_SECONDS):
                    pass
        except BaseException as error:
            self._flow.stop(error)
            raise
        if self._flow.error is not None:
            raise self._flow.error

    def run(self, shard: str) -> None:
        """Runs all steps of this worker over one shard, except those already committed.

        Steps whose input is kept back are left out; `kept_back` names the shards of all such steps.
        Where steps take several calls at a time, this may be called from several threads. An error
        in one of them ends all.
        """
        try:
            for step in self.steps:
                is_done = shard_path(step.folder(self.dataset), shard).exists()
                if is_done or not self.shards.passes(self.plan.steps, step, shard):
                    continue
                if self._first.keeps_back and not self._has_input(step, shard):
                    continue
                with self._flow.lanes[step.label].turn() as turn:
                    if is_halted(self.dataset, self.run_id):
                        break
                    self._run_step(step, shard, turn)
            if self.plan.drop_frames:
                self._drop_frames(shard)
        except Stopped:
            raise self._flow.error or ClipmillError("the run was stopped") from None
        except BaseException as error:
            if self._flow.overlaps:
                self._flow.stop(error)
            raise
        finally:
            self.activity.rest()

    def keep_nothing_back(self) -> None:
        """From now on every shard is committed, however its rows fare."""
        self.kept_back.clear()
        self._first = FirstRows(0, keeps_back=False)

    def _has_input(self, step: PlannedStep, shard: str) -> bool:
        """Whether the steps that a step reads from have committed the shard, if it passes them."""
        before = [self.plan.by_label[label] for label in step.upstream]
        return all(
            shard_path(one.folder(self.dataset), shard).exists()
            for one in before
            if self.shards.passes(self.plan.steps, one, shard)
        )

    def close(self) -> None:
        error = self._flow.error
        failed = error is not None
        self._flow.stop()
        if error is None:
            self._flow.join()
        elif self.calls:
            abandon_calls()
        self._open.clear()
        if error is not None and self.calls:
            # Then stages don't wait for what they have begun in other threads.
            self._stack.__exit__(type(error), error, error.__traceback__)
        else:
            self._stack.close()
        if failed and not isinstance(error, DeviceBroken):
            # Closing the stages has cut what they were waiting for; a call may have begun since.
            self._flow.join(self._threads, abandon_calls if self.calls else None)
        self._log.write("worker_end")
        self.activity.close()

    def _opened(self, step: PlannedStep, shard: str, meter: Meter) -> _OpenStage:
        with self._time.waiting():
            self._opening.acquire()
        try:
            if step.label not in self._open:
                self.activity.at(step.label, shard, "opens its models")
                workspace = Workspace(
                    self.dataset,
                    scratch_folder(self.dataset, step.label),
                    decoder_threads=usable_cpus() // self.calls.get(step.label, usable_cpus() + 1),
                    fitted=fitted(self.dataset, step) if step.stage.fits else None,
                )
                started = time.monotonic()
                with self._time.on(meter, "opening"), noted_places() as places:
                    transform = self._stack.enter_context(step.stage.open(workspace))
                self._log.write(
                    "stage_open", step=step.label, seconds=round(time.monotonic() - started, 3)
                )
                if places:
                    self._report(step.stage_label, Counter(places))
                self._open[step.label] = _OpenStage(transform, workspace)
            return self._open[step.label]
        finally:
            self._opening.release()

    def _report(self, label: str, counts: Counter[Any]) -> None:
        with self._telling:
            self.report(label, counts)

    def _run_step(self, step: PlannedStep, shard: str, turn: Turn) -> None:
        log = ShardLog(self._log, step.label, shard)
        meter = Meter()
        try:
            with writing_to(self.dataset), self._time.on(meter, "fixed"):
                log.end(self._commit_step(step, shard, log, meter, turn))
        except Stopped:
            raise
        except BaseException as error:
            log.stopped(error)
            raise

    def _commit_step(
        self, step: PlannedStep, shard: str, log: ShardLog, meter: Meter, turn: Turn
    ) -> Counter[str]:
        """Runs one step over one shard; returns its counts."""
        self.activity.at(step.label, shard, "reads its input")
        request = self.shards.retries.get(shard)
        only = None if request is None else named_keys(request, step)
        group = self.shards.group(shard)
        rows = input_table(self.plan, step, self.dataset, shard, group, only_keys=only)
        counts: Counter[str] = Counter(inputs=rows.num_rows)
        log.start(rows.num_rows)
        told: Any = Counter()  # so far, about this shard

        def tell(said: Any) -> None:
            told.update({name: n for name, n in said.items() if isinstance(name, str)})
            self._report(step.stage_label, said)

        tell(_begun(self.plan, step, rows.num_rows))
        share = 1 / (rows.num_rows or 1)
        with self._asking:
            rows, skipped = self._asked.split(step, shard, rows, only)
            checked = rows[step.stage.key].to_pylist()
            if only is not None and have_passed(request):
                checked = [key for key in checked if key not in only]
            skipped |= self._left_out.of(step, group, checked)
        with contextlib.ExitStack() as stack:
            writers = StepFiles(stack, step, self.dataset, shard, self._fence)
            decoded = 0
            if skipped:
                left_out = {step.label: skipped_rows(step, skipped)}
                counts["skipped"] = len(skipped)
                writers.write(left_out)
                done_so_far: Any = Counter(skipped=len(skipped))
                done_so_far["share"] = len(skipped) * share
                tell(done_so_far)
                rows = without(rows, step.stage.key, skipped)
            turn.knows(rows.num_rows)
            if rows.num_rows:
                opened = self._opened(step, shard, meter)
                frames = None
                if step.stage.frames_picked():
                    frames = KeptFrameReader(self.plan, self.dataset, group)
                attempts = _earlier_attempts(step, self.dataset, group)
                made = made_before(step, self.dataset, group, rows[step.stage.key].to_pylist())
                fare = self._first.of_shard(step, tried_before=have_passed(request))
                work = ShardRows(
                    step,
                    shard,
                    rows,
                    opened.transform,
                    frames,
                    log,
                    self.dataset,
                    self.run_id,
                    self.journal_over_runs,
                    self.activity,
                    self._flow,
                    self._time,
                    meter,
                )
                with (
                    opened.in_use(),
                    self._time.on(meter, "rows"),
                    contextlib.closing(work.outputs(turn)) as outputs,
                ):
                    for batch, output in outputs:
                        tables = complete(step, batch, output, attempts, made)
                        tables[step.label] = self._without_removed(step, tables[step.label])
                        alike = fare.saw(tables[step.label])
                        tally = _tally(step, tables[step.label])
                        counts.update(tally)
                        counts["source_frames"] += total(tables[step.label], "source_frames")
                        writers.write(tables)
                        if tally["failed"]:
                            failed = tables[step.label].select([step.stage.key, "error"])
                            log.failures(step.stage.key, failed.to_pylist())
                        meter.add(tables[step.label])
                        progress = _reported(step, tally, tables[step.label])
                        progress["share"] = batch.num_rows * share
                        tell(progress + alike)
                if fare.is_kept_back:
                    self.kept_back.append(shard)
                    self._report(step.stage_label, Counter({name: -n for name, n in told.items()}))
                    counts["kept_back"] = 1
                    forget_journal(step, self.dataset, shard)
                    return counts
                decoded = opened.newly_decoded()
                if frames is not None:
                    decoded += frames.decoded_frames
            if step.stage.key == "clip_id":
                turn.end()  # the next shard's rows don't wait for this one's commit
            done = sum(counts[name] for name in ("kept", "rejected", "failed", "skipped"))
            if done != counts["inputs"]:
                raise AssertionError(
                    f"{step.label}/{shard}: {counts['inputs']} inputs, but "
                    f"{done} kept, rejected, failed or skipped"
                )
            self.activity.at(step.label, shard, "commits")
            metadata = ShardMetadata(
                step.stage_label,
                step.label,
                shard,
                step.fingerprint,
                self.run_id,
                counts["inputs"],
                counts["kept"],
                counts["rejected"],
                counts["failed"],
                counts["outputs"],
                decoded_frames=decoded,
                source_frames=counts["source_frames"],
                skipped=counts["skipped"],
                not_asked=sum(why.startswith(NOT_ASKED) for why in skipped.values()),
                commit_seconds=round(self._commit_seconds, 3),
                gate=None if step.gate is None else step.gate.as_written().says(),
                written_bytes=writers.size_bytes,
                **self._time.reading(meter, step.stage.gpus),
            )
            began = time.monotonic()
            writers.finish(metadata)
            self._commit_seconds = time.monotonic() - began
        self._report(step.stage_label, reported(metadata))
        forget_journal(step, self.dataset, shard)
        if step.label == step.stage_label:
            self._report(step.stage_label, Counter(shards=1))
        return counts

    def _without_removed(self, step: PlannedStep, table: pa.Table) -> pa.Table:
        """Rejects videos that were removed from the dataset but come back from other sources."""
        names = table.column_names
        if step.stage.key != "source_key" or "video_id" not in names:
            return table
        removed = removed_videos(self.dataset)
        if not removed:
            return table
        rows = table.to_pylist()
        again: dict[str, list[str]] = {}
        for at, row in enumerate(rows):
            if (video := row["video_id"]) in removed:
                again.setdefault(video, []).append(row["source_key"])
                rows[at] = {
                    "source_key": row["source_key"],
                    "rejection": {"rule": REMOVED_RULE, "detail": removed[video]},
                }
        if not again:
            return table
        # Its file and metadata are deleted with the removals at the end of the run.
        new_tombstone(self.dataset, again, "came back from another source")
        return pa.Table.from_pylist(rows, schema=table.schema)

    def _drop_frames(self, shard: str) -> None:
        maker = self.plan.frames_step()
        if maker is None:
            return
        users = [step for step in self.plan.steps if step.stage.frames_picked()]
        if all(shard_path(step.folder(self.dataset), shard).exists() for step in users):
            shard_path(maker.folder(self.dataset, FRAMES), shard).unlink(missing_ok=True)


@dataclass
class _OpenStage:
    """A stage that is open in this worker, and what it shares among shards."""

    transform: Transform
    workspace: Workspace
    _users: int = 0
    _decoded: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Provides the scratch folder; the last shard that leaves empties it."""
        with self._lock:
            self._users += 1
            self.workspace.scratch.mkdir(parents=True, exist_ok=True)
        try:
            yield
        finally:
            with self._lock:
                self._users -= 1
                if not self._users:
                    shutil.rmtree(self.workspace.scratch, ignore_errors=True)

    def newly_decoded(self) -> int:
        """Frames that the stage has counted since this was last asked."""
        with self._lock:
            counted, self._decoded = self._decoded, self.workspace.decoded_frames
            return self._decoded - counted


def _tally(step: PlannedStep, table: pa.Table) -> Counter[str]:
    outcome: dict[str, str] = {}
    outputs = note_outcomes(step.stage.key, table, outcome)
    tally = Counter(outcome.values())
    tally["outputs"] = outputs
    return tally


def _begun(plan: Plan, step: PlannedStep, inputs: int) -> Counter[str]:
    """Progress when a shard starts: a stage's first step knows the number of rows.

    A `share` of 1 is all of one step's shard.
    """
    first = next(one for one in plan.steps if one.stage_label == step.stage_label)
    begun = Counter(begun=1, inputs=inputs) if step.label == first.label else Counter()
    if not inputs:
        begun["share"] = 1
    return begun


def _reported(step: PlannedStep, tally: Counter[str], table: pa.Table) -> Any:
    """Progress to show; of a stage's inner steps, only rows that don't reach the last one."""
    if step.label != step.stage_label:
        return Counter({name: tally[name] for name in ("rejected", "failed", "skipped")})
    shown: Any = Counter(tally)  # seconds are fractional, which Counter's types don't allow
    shown["seconds"] = seconds_of_video(table)
    return shown


def _earlier_attempts(step: PlannedStep, dataset: Path, group: list[str]) -> dict[str, int]:
    """How often each failed key of the shard's group was tried before."""
    found: dict[str, int] = {}
    for _, rows in read_group(step, dataset, group, ["error"]):
        for row in rows.to_pylist():
            if row["error"] is not None:
                key = row[step.key]
                found[key] = max(found.get(key, 0), row["error"]["attempts"] or 1)
    return found
