"""Processes the rows of one step's shard: in batches, in several calls at a time, or one by one.

A batch that raises is processed again row by row, so one bad row affects only itself. Rows of a
fragile stage, and those of a stage with several calls at a time, are noted in a journal before they
start. If their worker dies, they are processed one by one, and one that is in it at a second death
is recorded as a crash. A row that breaks its worker's GPU counts as crashing it.
"""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from contextvars import copy_context
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from clipmill.pipeline.dataset.crash_journal import read_journal
from clipmill.pipeline.dataset.run_logs import ShardLog
from clipmill.pipeline.dataset.shards import write_json
from clipmill.pipeline.engine.activity import Activity
from clipmill.pipeline.engine.alike import refused
from clipmill.pipeline.engine.flow import Flow, Turn
from clipmill.pipeline.engine.metering import Meter, WorkTime
from clipmill.pipeline.engine.step_inputs import KeptFrameReader
from clipmill.pipeline.engine.step_outputs import failed_rows
from clipmill.pipeline.recipes.plan import Plan, PlannedStep
from clipmill.schemas.damage import DamagedFile
from clipmill.schemas.errors import ClipmillError, RowFailed, RowRejected, ServerRefused
from clipmill.schemas.folders import JOURNAL
from clipmill.schemas.storage import full_storage
from clipmill.schemas.words import counted
from clipmill.stages import usage
from clipmill.stages.models.device_errors import DeviceBroken, raise_if_broken
from clipmill.stages.protocol import Transform

CRASHES_ALLOWED = 2
_LEAST_ROWS_WRITTEN = 64

Output = tuple[pa.Table, dict[str, pa.Table]]
"""A batch, and the tables that its stage returned for it, failures included."""


@dataclass
class ShardRows:
    """One step's rows in one shard, and what is needed to process them."""

    step: PlannedStep
    shard: str
    rows: pa.Table
    transform: Transform
    frames: KeptFrameReader | None
    log: ShardLog
    dataset: Path
    run_id: str
    journal_over_runs: bool
    activity: Activity
    flow: Flow
    time: WorkTime
    meter: Meter

    def __post_init__(self) -> None:
        self._lane = self.flow.lanes[self.step.label]
        self._journal = journal_path(self.step, self.dataset, self.shard)
        self._keys: list[str] = self.rows[self.step.stage.key].to_pylist()

    def outputs(self, turn: Turn) -> Generator[Output, None, None]:
        """Every batch with its output tables, in the order of the rows."""
        seen = _started_before(self._journal, None if self.journal_over_runs else self.run_id)
        stage = self.step.stage
        if self._lane.calls > 1 and (stage.in_helpers or not stage.fragile):
            outputs = self._at_once(seen, turn)
            # Rows of a further table, such as a video's frames, are many already.
            yield from outputs if stage.more_tables else _together(outputs, self.step)
        elif self.step.stage.fragile or seen:
            yield from self._one_by_one(seen)
        else:
            yield from self._in_turn()

    def _in_turn(self) -> Iterator[Output]:
        size = self.step.stage.rows_at_once
        for start in range(0, self.rows.num_rows, size):
            batch = self.rows.slice(start, size)
            try:
                with self.flow.call():
                    done = self._batch(batch)
            except DeviceBroken:
                # The row at fault is found when each is processed alone, in a new process.
                self._write(dict.fromkeys(self._keys[start : start + size], 1))
                raise
            yield from done

    def _one_by_one(self, seen: dict[str, int]) -> Iterator[Output]:
        for row in range(self.rows.num_rows):
            yield from self._noted(self.rows.slice(row, 1), seen, lambda: seen)

    def _noted(
        self, batch: pa.Table, seen: dict[str, int], started: Callable[[], Mapping[str, int]]
    ) -> list[Output]:
        """One row, which is in the journal while it is processed; `started` is all of it."""
        name = batch[self.step.stage.key][0].as_py()
        died = seen.get(name, 0)
        if died >= CRASHES_ALLOWED:
            error = RowFailed(
                "crash",
                f"its worker died {counted(died, 'time')} while processing this row; "
                "retry the failures of kind crash to try it again",
            )
            return [(batch, {self.step.label: failed_rows(self.step, [name], error)})]
        with self.flow.alone() if died else self.flow.call():
            seen[name] = died + 1
            self._write(started())
            try:
                done = self._batch(batch)
            except DeviceBroken:
                raise
            except BaseException:
                # The run was stopped, or can't continue: the process is alive, so the row did not
                # crash it. The exception reports the cause, for example a full disk.
                seen[name] = died
                with contextlib.suppress(OSError):
                    self._write(started())
                raise
            del seen[name]
            self._write(started())
        return done

    def _at_once(self, seen: dict[str, int], turn: Turn) -> Generator[Output, None, None]:
        """Calls in the step's threads; those that may have killed a worker are made alone."""
        ahead = _NamedAhead(self._write, self._keys, seen, self._lane.rows_ahead)
        pending: deque[tuple[Future[list[Output]], int]] = deque()
        self._rest()
        try:
            for start, size in _spans(self._keys, seen, self.step.stage.rows_at_once):
                batch = self.rows.slice(start, size)
                turn.begins(size)
                if self._keys[start] in seen:
                    with self.time.waiting():
                        future = _future_of(self._noted(batch, seen, ahead.started))
                else:
                    if not self._lane.took_place():
                        self._rest()
                        with self.time.waiting():
                            self._lane.take_place()
                    ahead.begin(start + size)
                    future = self._submit(batch)
                pending.append((future, size))
                while pending and pending[0][0].done():
                    yield from _first(pending, ahead)
            self._rest()
            while pending:
                # An interrupt may come here, and ends this. `wait` would never return for a call
                # that a closed pool has cancelled.
                with self.time.waiting(), contextlib.suppress(CancelledError):
                    pending[0][0].exception()
                yield from _first(pending, ahead)
        except DeviceBroken:
            raise  # the rows at fault are among those in the journal
        except BaseException:
            if isinstance(self.flow.error, DeviceBroken):
                raise  # in another shard's call, but perhaps because of a row of this one
            with contextlib.suppress(OSError):
                if seen:
                    self._write(seen)
                else:
                    self._journal.unlink(missing_ok=True)
            raise

    def _submit(self, batch: pa.Table) -> Future[list[Output]]:
        """Starts a call; its frames are read here, so that no call waits for them."""
        try:
            if self.frames is not None:
                self._doing(batch)
            unread, batch, shown = self._with_frames(batch)

            def call() -> list[Output]:
                with (
                    self.flow.call(),
                    self.time.on(self.meter, "rows"),
                    usage.charged_to(self.meter.account),
                ):
                    try:
                        self._doing(batch)
                        return unread + self._processed(batch, shown, self.transform)
                    finally:
                        self._rest()

            return self._lane.submit(call, shown.nbytes)
        except BaseException:
            self._lane.leave_place()
            raise

    def _batch(self, batch: pa.Table) -> list[Output]:
        """Processes a batch here and now."""
        with self.time.on(self.meter, "rows"), usage.charged_to(self.meter.account):
            self._doing(batch)
            unread, batch, shown = self._with_frames(batch)
            transform = self._in_own_thread if self.flow.overlaps else self.transform
            return unread + self._processed(batch, shown, transform)

    def _in_own_thread(self, table: pa.Table) -> pa.Table | dict[str, pa.Table]:
        """The transform's output, computed in the one thread of a step without calls at once."""
        if self._lane.calls > 1:
            return self.transform(table)
        waits, context = threading.get_ident(), copy_context()

        def call() -> pa.Table | dict[str, pa.Table]:
            with self.activity.working_for(waits):
                return context.run(self.transform, table)

        self._lane.take_place()
        return self._lane.submit(call).result()

    def _with_frames(self, batch: pa.Table) -> tuple[list[Output], pa.Table, pa.Table]:
        """Failures of rows whose frames can't be read, the other rows, and these with frames."""
        if self.frames is None:
            return [], batch, batch
        shown, failed = self.frames.attach(batch, self.step.stage.frames_picked())
        if not failed:
            return [], batch, shown
        unread = []
        for row, error in failed.items():
            one = batch.slice(row, 1)
            unread.append((one, {self.step.label: failed_rows(self.step, self._names(one), error)}))
        good = [row for row in range(batch.num_rows) if row not in failed]
        return unread, batch.take(good), shown.take(good)

    def _processed(self, batch: pa.Table, shown: pa.Table, transform: Transform) -> list[Output]:
        """A batch's output; if the stage raises, that of each of its rows alone."""
        if not batch.num_rows:
            return []
        output = self._attempt(batch, shown, transform)
        if output is not None:
            return [(batch, output)]
        done = []
        for row in range(batch.num_rows):
            one = batch.slice(row, 1)
            self._doing(one)
            output = self._attempt(one, shown.slice(row, 1), transform)
            assert output is not None  # a single row has an outcome
            done.append((one, output))
        return done

    def _attempt(
        self, batch: pa.Table, shown: pa.Table, transform: Transform
    ) -> dict[str, pa.Table] | None:
        """The output; if the stage raises, a single row's failure, or None for more rows."""
        try:
            return _named(self.step, transform(shown))
        except ClipmillError:
            raise  # no other row would fare better
        except ServerRefused as error:
            raise refused(error) from error
        except Exception as error:  # noqa: BLE001 (any exception of a stage is a row's failure)
            _raise_if_full(error, self.dataset)
            raise_if_broken(error)
            names = self._names(batch) if batch.num_rows == 1 else []
            if not isinstance(error, RowFailed | RowRejected):
                # A batch's exception is not a failure yet: its rows are tried alone.
                self.log.raised("exception", error, *names)
            if not names:
                return None
            return {self.step.label: failed_rows(self.step, names, _as_outcome(self.step, error))}

    def _names(self, batch: pa.Table) -> list[str]:
        names: list[str] = batch[self.step.stage.key].to_pylist()
        return names

    def _doing(self, batch: pa.Table) -> None:
        self.activity.at(self.step.label, self.shard, "at", tuple(self._names(batch)))

    def _rest(self) -> None:
        self.activity.rest()

    def _write(self, started: Mapping[str, int]) -> None:
        write_json(self._journal, {"run_id": self.run_id, "started": started})


class _NamedAhead:
    """Names rows in the journal before they begin, many at a time."""

    def __init__(
        self,
        write: Callable[[Mapping[str, int]], None],
        keys: Sequence[str],
        seen: Mapping[str, int],
        rows_ahead: int,
    ) -> None:
        self._write = write
        self._keys = keys
        self._seen = seen
        self._apart = frozenset(seen)
        self._rows_ahead = rows_ahead
        self._done = 0
        self._named = 0

    def begin(self, end: int) -> None:
        """Rows before `end` begin now."""
        if end > self._named:
            self._named = min(len(self._keys), end + self._rows_ahead)
            self._write(self.started())

    def finish(self, rows: int) -> None:
        """So many rows, the first of those not yet finished, are."""
        self._done += rows

    def started(self) -> dict[str, int]:
        """What the journal holds."""
        named = (key for key in self._keys[self._done : self._named] if key not in self._apart)
        return {**dict.fromkeys(named, 1), **self._seen}


def _first(pending: deque[tuple[Future[list[Output]], int]], ahead: _NamedAhead) -> list[Output]:
    future, rows = pending.popleft()
    done = future.result()
    ahead.finish(rows)
    return done


def _future_of(value: list[Output]) -> Future[list[Output]]:
    future: Future[list[Output]] = Future()
    future.set_result(value)
    return future


def _spans(keys: Sequence[str], seen: Mapping[str, int], size: int) -> Iterator[tuple[int, int]]:
    """Batches as start and size; a row that was seen before is alone in its batch."""
    apart = frozenset(seen)
    start = 0
    while start < len(keys):
        end = start + 1
        if keys[start] not in apart:
            while end < len(keys) and end - start < size and keys[end] not in apart:
                end += 1
        yield start, end - start
        start = end


def _together(outputs: Generator[Output, None, None], step: PlannedStep) -> Iterator[Output]:
    """Neighbouring small batches as one: what is done for each takes longer than for its rows."""
    key = step.stage.key
    group: list[Output] = []
    rows = 0
    with contextlib.closing(outputs):
        for batch, output in outputs:
            table = output.get(step.label)
            fits = (
                table is not None
                and key in table.column_names
                and set(table[key].to_pylist()) <= set(batch[key].to_pylist())
            )
            if group and not (fits and _alike(group[-1][1], output)):
                yield _joined(group)
                group, rows = [], 0
            group.append((batch, output))
            rows += batch.num_rows
            if rows >= _LEAST_ROWS_WRITTEN or not fits:
                yield _joined(group)
                group, rows = [], 0
        if group:
            yield _joined(group)


def _alike(one: Mapping[str, pa.Table], other: Mapping[str, pa.Table]) -> bool:
    return one.keys() == other.keys() and all(
        table.schema == other[name].schema for name, table in one.items()
    )


def _joined(group: Sequence[Output]) -> Output:
    if len(group) == 1:
        return group[0]
    names = group[0][1]
    return (
        pa.concat_tables([batch for batch, _ in group]),
        {name: pa.concat_tables([output[name] for _, output in group]) for name in names},
    )


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


def journal_path(step: PlannedStep, dataset: Path, shard: str) -> Path:
    """The journal of one step's shard; it exists while rows are noted in it."""
    return dataset / JOURNAL / f"{step.label}-{step.fingerprint}-{shard}.json"


def forget_journal(step: PlannedStep, dataset: Path, shard: str) -> None:
    """Removes it when all rows of the shard are done."""
    journal = journal_path(step, dataset, shard)
    if not journal.is_dir():  # `verify` reports that
        journal.unlink(missing_ok=True)


def blame(
    plan: Plan, dataset: Path, run_id: str, label: str, shard: str, keys: Sequence[str]
) -> None:
    """Notes that a worker is killed while processing these rows, as if they had crashed it.

    Rows in a journal were noted there before they started. Others are then processed one by one.
    """
    journal = journal_path(plan.by_label[label], dataset, shard)
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
