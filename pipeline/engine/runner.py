"""Runs steps over shards: the same code in every engine.

A step's shard is committed only when every input key has been kept, rejected, failed or skipped. A
batch that raises is processed again row by row, so one bad row affects only itself. Rows of a
fragile stage are noted in a journal before they start: one that crashed its worker twice is
recorded as a crash, and the shard continues. A row that breaks its worker's GPU counts as crashing
it.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.pipeline.dataset.commit_fence import Fence
from clipmill.pipeline.dataset.crash_journal import read_journal
from clipmill.pipeline.dataset.run_logs import (
    NO_LOGS,
    LogLimits,
    RunLog,
    ShardLog,
    python_messages,
    worker_name,
)
from clipmill.pipeline.dataset.shards import ShardMetadata, note_outcomes, shard_path, write_json
from clipmill.pipeline.dataset.tombstones import new_tombstone, removed_videos
from clipmill.pipeline.engine.activity import Activity
from clipmill.pipeline.engine.alike import FirstRows, refused
from clipmill.pipeline.engine.asked import Asked
from clipmill.pipeline.engine.halting import is_halted
from clipmill.pipeline.engine.left_out import LeftOut
from clipmill.pipeline.engine.metering import Meter, reported, seconds_of_video, total
from clipmill.pipeline.engine.step_files import StepFiles
from clipmill.pipeline.engine.step_inputs import KeptFrameReader, input_table, read_group, without
from clipmill.pipeline.engine.step_outputs import complete, failed_rows, made_before, skipped_rows
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList, have_passed, named_keys
from clipmill.schemas.damage import DamagedFile
from clipmill.schemas.errors import ClipmillError, RowFailed, RowRejected, ServerRefused
from clipmill.schemas.folders import FRAMES, JOURNAL, scratch_folder
from clipmill.schemas.step_tables import NOT_ASKED, REMOVED_RULE
from clipmill.schemas.storage import full_storage, writing_to
from clipmill.schemas.words import counted
from clipmill.stages.models.device_errors import DeviceBroken, raise_if_broken
from clipmill.stages.models.places import noted_places
from clipmill.stages.protocol import Transform, Workspace

Report = Callable[[str, Counter[Any]], None]
"""Called with a stage's label and how many keys were kept, rejected, failed, skipped, and
`shards` done.

A ModelPlace counts how often workers loaded a model there, an Alike the failures that may be the
stage's.
"""

CRASHES_ALLOWED = 2


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
    _open: dict[str, tuple[Transform, Workspace]] = field(default_factory=dict)
    _commit_seconds: float = 0.0
    _stack: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def __post_init__(self) -> None:
        labels = [step.label for step in self.steps]
        self._fence = Fence(self.dataset, self.run_id)
        self._asked = Asked(self.plan, self.dataset, self.shards)
        self._left_out = LeftOut(self.plan, self.dataset)
        self._first = FirstRows(self.plan.stop_after, self.plan.keeps_back)
        self.kept_back: list[str] = []
        self._stack.callback(self._left_out.close)
        self._log = RunLog(self.dataset, self.run_id, worker_name(labels), self.log_limits)
        self._log.write("worker_start", "steps: " + ", ".join(labels))
        self._stack.enter_context(python_messages(self._log))

    def run(self, shard: str) -> None:
        """Runs all steps of this worker over one shard, except those already committed.

        Steps whose input is kept back are left out; `kept_back` names the shards of all such steps.
        """
        for step in self.steps:
            if is_halted(self.dataset, self.run_id):
                break
            is_done = shard_path(step.folder(self.dataset), shard).exists()
            if is_done or not self.shards.passes(self.plan.steps, step, shard):
                continue
            if self._first.keeps_back and not self._has_input(step, shard):
                continue
            self._run_step(step, shard)
        if self.plan.drop_frames:
            self._drop_frames(shard)
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
        self._open.clear()
        self._stack.close()
        self._log.write("worker_end")
        self.activity.close()

    def _transform(self, step: PlannedStep, shard: str) -> tuple[Transform, Workspace]:
        if step.label not in self._open:
            self.activity.at(step.label, shard, "opens its models")
            scratch = scratch_folder(self.dataset, step.label)
            workspace = Workspace(self.dataset, scratch)
            started = time.monotonic()
            with noted_places() as places:
                transform = self._stack.enter_context(step.stage.open(workspace))
            self._log.write(
                "stage_open", step=step.label, seconds=round(time.monotonic() - started, 3)
            )
            if places:
                self.report(step.stage_label, Counter(places))
            self._open[step.label] = (transform, workspace)
        return self._open[step.label]

    def _run_step(self, step: PlannedStep, shard: str) -> None:
        log = ShardLog(self._log, step.label, shard)
        try:
            with writing_to(self.dataset):
                log.end(self._commit_step(step, shard, log))
        except BaseException as error:
            log.stopped(error)
            raise

    def _commit_step(self, step: PlannedStep, shard: str, log: ShardLog) -> Counter[str]:
        """Runs one step over one shard; returns its counts."""
        meter = Meter()
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
            self.report(step.stage_label, said)

        tell(_begun(self.plan, step, rows.num_rows))
        share = 1 / (rows.num_rows or 1)
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
            if rows.num_rows:
                with meter.opening() if step.label not in self._open else contextlib.nullcontext():
                    transform, workspace = self._transform(step, shard)
                workspace.scratch.mkdir(parents=True, exist_ok=True)
                stack.callback(shutil.rmtree, workspace.scratch, ignore_errors=True)
                before = workspace.decoded_frames
                frames = None
                if step.stage.frames_picked():
                    frames = KeptFrameReader(self.plan, self.dataset, group)
                attempts = _earlier_attempts(step, self.dataset, group)
                made = made_before(step, self.dataset, group, rows[step.stage.key].to_pylist())
                fare = self._first.of_shard(step, tried_before=have_passed(request))
                meter.begin_rows()
                for batch, output in self._batches(step, shard, rows, transform, frames, log):
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
                meter.end_rows()
                if fare.is_kept_back:
                    self.kept_back.append(shard)
                    self.report(step.stage_label, Counter({name: -n for name, n in told.items()}))
                    counts["kept_back"] = 1
                    return counts
                decoded = workspace.decoded_frames - before
                if frames is not None:
                    decoded += frames.decoded_frames
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
                **meter.reading(step.stage.gpus),
            )
            began = time.monotonic()
            writers.finish(metadata)
            self._commit_seconds = time.monotonic() - began
        self.report(step.stage_label, reported(metadata))
        journal = _journal(step, self.dataset, shard)
        if not journal.is_dir():  # `verify` reports that
            journal.unlink(missing_ok=True)
        if step.label == step.stage_label:
            self.report(step.stage_label, Counter(shards=1))
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

    def _batches(
        self,
        step: PlannedStep,
        shard: str,
        rows: pa.Table,
        transform: Transform,
        frames: KeptFrameReader | None,
        log: ShardLog,
    ) -> Iterator[tuple[pa.Table, dict[str, pa.Table]]]:
        """Every batch of a shard with its output tables, failures included."""
        stage, key = step.stage, step.stage.key

        def doing(batch: pa.Table) -> None:
            self.activity.at(step.label, shard, "at", tuple(batch[key].to_pylist()))

        journal = _journal(step, self.dataset, shard)
        seen = _started_before(journal, None if self.journal_over_runs else self.run_id)
        if not stage.fragile and not seen:
            for start in range(0, rows.num_rows, stage.batch_rows):
                batch = rows.slice(start, stage.batch_rows)
                try:
                    yield from _batch(step, batch, transform, frames, log, self.dataset, doing)
                except DeviceBroken:
                    # The row at fault is found when each is processed alone, in a new process.
                    write_json(
                        journal,
                        {
                            "run_id": self.run_id,
                            "started": dict.fromkeys(batch[key].to_pylist(), 1),
                        },
                    )
                    raise
            return
        for row in range(rows.num_rows):
            batch = rows.slice(row, 1)
            name = batch[key][0].as_py()
            if seen.get(name, 0) >= CRASHES_ALLOWED:
                deaths = counted(seen[name], "time")
                error = RowFailed(
                    "crash",
                    f"its worker died {deaths} while processing this row; "
                    "retry the failures of kind crash to try it again",
                )
                yield batch, {step.label: failed_rows(step, [name], error)}
                continue
            died = seen.get(name, 0)
            seen[name] = died + 1
            write_json(journal, {"run_id": self.run_id, "started": seen})
            try:
                yield from _batch(step, batch, transform, frames, log, self.dataset, doing)
            except DeviceBroken:
                raise
            except BaseException:
                # The run was stopped, or can't continue: the process is alive, so the row did not
                # crash it. The exception reports the cause, for example a full disk.
                seen[name] = died
                with contextlib.suppress(OSError):
                    write_json(journal, {"run_id": self.run_id, "started": seen})
                raise
            del seen[name]
            write_json(journal, {"run_id": self.run_id, "started": seen})

    def _drop_frames(self, shard: str) -> None:
        maker = self.plan.frames_step()
        if maker is None:
            return
        users = [step for step in self.plan.steps if step.stage.frames_picked()]
        if all(shard_path(step.folder(self.dataset), shard).exists() for step in users):
            shard_path(maker.folder(self.dataset, FRAMES), shard).unlink(missing_ok=True)


def _batch(
    step: PlannedStep,
    batch: pa.Table,
    transform: Transform,
    frames: KeptFrameReader | None,
    log: ShardLog,
    dataset: Path,
    doing: Callable[[pa.Table], None],
) -> Iterator[tuple[pa.Table, dict[str, pa.Table]]]:
    """Processes one batch; if it raises, each of its rows alone. `doing` gets each."""
    doing(batch)
    shown: pa.Table = batch
    failed: dict[int, RowFailed] = {}
    if frames is not None:
        shown, failed = frames.attach(batch, step.stage.frames_picked())
        if failed:
            good = [row for row in range(batch.num_rows) if row not in failed]
            for row, error in failed.items():
                name = batch[step.stage.key][row].as_py()
                yield batch.slice(row, 1), {step.label: failed_rows(step, [name], error)}
            batch, shown = batch.take(good), shown.take(good)
    if not batch.num_rows:
        return
    try:
        yield batch, _named(step, transform(shown))
    except ClipmillError:
        raise  # no other row would fare better
    except ServerRefused as error:
        raise refused(error) from error
    except Exception as error:  # noqa: BLE001 (any exception of a stage is a row's failure)
        _raise_if_full(error, dataset)
        raise_if_broken(error)
        names = [batch[step.stage.key][0].as_py()]
        if not isinstance(error, RowFailed | RowRejected):
            # A batch's exception is not a failure yet: its rows are tried alone.
            log.raised("exception", error, names[0] if batch.num_rows == 1 else None)
        if batch.num_rows == 1:
            yield batch, {step.label: failed_rows(step, names, _as_outcome(step, error))}
            return
        for row in range(batch.num_rows):
            one, shown_one = batch.slice(row, 1), shown.slice(row, 1)
            doing(one)
            try:
                output = _named(step, transform(shown_one))
            except ClipmillError:
                raise
            except ServerRefused as refusal:
                raise refused(refusal) from refusal
            except Exception as problem:  # noqa: BLE001 (see above)
                _raise_if_full(problem, dataset)
                raise_if_broken(problem)
                names = [one[step.stage.key][0].as_py()]
                if not isinstance(problem, RowFailed | RowRejected):
                    log.raised("exception", problem, names[0])
                output = {step.label: failed_rows(step, names, _as_outcome(step, problem))}
            yield one, output


def _raise_if_full(error: Exception, dataset: Path) -> None:
    """No row is to blame for a full disk: the next one would fail the same way."""
    if (full := full_storage(error, dataset)) is not None:
        raise full from error


def _named(step: PlannedStep, output: pa.Table | dict[str, pa.Table]) -> dict[str, pa.Table]:
    """The output by table; a stage calls its own table by its name, on disk it has the label."""
    if isinstance(output, pa.Table):
        return {step.label: output}
    return {
        step.label if name == step.stage.name else name: table for name, table in output.items()
    }


def _as_outcome(step: PlannedStep, error: Exception) -> RowFailed | RowRejected:
    if isinstance(error, RowFailed | RowRejected):
        return error
    kind = "model" if isinstance(error, MemoryError) else step.stage.error_kind
    return RowFailed(kind, f"{type(error).__name__}: {error}")


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


def _journal(step: PlannedStep, dataset: Path, shard: str) -> Path:
    return dataset / JOURNAL / f"{step.label}-{step.fingerprint}-{shard}.json"


def blame(
    plan: Plan, dataset: Path, run_id: str, label: str, shard: str, keys: Sequence[str]
) -> None:
    """Notes that a worker is killed while processing these rows, as if they had crashed it.

    Rows in a journal were noted there before they started. Others are then processed one by one.
    """
    journal = _journal(plan.by_label[label], dataset, shard)
    started = _started_before(journal, run_id)
    if not any(key in started for key in keys):
        write_json(journal, {"run_id": run_id, "started": {**started, **dict.fromkeys(keys, 1)}})


def _started_before(path: Path, run_id: str | None) -> dict[str, int]:
    """Rows that were started but not finished, with how often; of one run only, if it is given.

    An unreadable journal counts as empty: a row that kills its worker is then identified after two
    more deaths. Anything else would give up innocent rows.
    """
    try:
        of_run, started = read_journal(path)
    except (FileNotFoundError, DamagedFile):
        return {}
    return started if run_id in (None, of_run) else {}
