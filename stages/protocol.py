"""Defines a stage: a frozen, picklable description of one step over the rows of one shard.

A stage says what it computes, never where. The runner passes it a table with its key and the
columns that it reads, and gets back a table with its key and the columns that it writes.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from clipmill.schemas.errors import ErrorKind, RowFailed, RowRejected
from clipmill.schemas.folders import MEDIA
from clipmill.schemas.tables import OUTCOME
from clipmill.stages.media.read.sampling import FramePick as FramePick
from clipmill.stages.media.read.sampling import Middle as Middle
from clipmill.stages.media.read.sampling import PerSecond as PerSecond
from clipmill.stages.media.read.sampling import Starts as Starts
from clipmill.stages.media.read.sampling import Uniform as Uniform
from clipmill.stages.references import DataFile, ModelReference

Transform = Callable[[pa.Table], "pa.Table | dict[str, pa.Table]"]
"""One batch in, one batch out. Every input key is in the output exactly once, in any order;
a stage that makes clips returns a row for each of them. A stage that writes several tables returns
a dict by table name."""


@dataclass(frozen=True)
class Resources:
    """What one worker of a stage needs from the machine."""

    cpus: float = 1.0
    gpus: float = 0.0
    batch_rows: int = 64


@dataclass
class Workspace:
    """Where a stage may write, and where it counts decoded frames.

    `dataset` is the dataset's folder; downloaded media goes to `media` inside it; `scratch` is
    emptied when the shard is done. Paths stored in tables are relative to `dataset` where they
    lie inside it. `decoder_threads` is a decoder's share of the CPUs where several work at a time,
    0 where it may use all of them. `fitted` is what the stage's `fit_on` has found, None if it has
    found nothing yet.
    """

    dataset: Path
    scratch: Path
    decoded_frames: int = 0
    decoder_threads: int = 0
    fitted: pa.Table | None = None
    _counting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    @property
    def media(self) -> Path:
        return self.dataset / MEDIA

    def count_decoded(self, frames: int) -> None:
        """Adds to `decoded_frames`, from any thread."""
        with self._counting:
            self.decoded_frames += frames

    def resolve(self, path: str) -> Path:
        """The file on this machine for a stored `path`."""
        return Path(path) if Path(path).is_absolute() else self.dataset / path


@dataclass(frozen=True)
class ModelCheck:
    """A check, before a run starts, of a model or file that a stage's setting names.

    `run` returns what it found, and raises ClipmillError if the stage can't work with it. It needs
    the libraries that `needs` names, by import name. `depends_on` is what its result depends on
    beside the files. A check that `asks` costs requests of a server. One that doesn't `lasts` looks
    at more than that, and is made anew for each run.
    """

    setting: str
    run: Callable[[], str]
    depends_on: tuple[Any, ...] = ()
    needs: tuple[str, ...] = ()
    asks: bool = False
    lasts: bool = True


def resource(default: Any, **details: Any) -> Any:
    """A setting that changes speed or place but not results, so it is left out of fingerprints."""
    return Field(default, json_schema_extra={"resource": True}, **details)


def _identity(value: Any) -> Any:
    """A setting's value for the fingerprint: models and files count by their content."""
    if callable(own := getattr(value, "identity", None)):
        return own()
    if isinstance(value, list | tuple):
        return [_identity(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _identity(item) for key, item in value.items()}
    return value


class Stage(BaseModel):
    """Base of all stages; the fields of a subclass are its settings in the recipe.

    Class attributes of a stage:
      name     verb_noun: the file, the name in recipes, the folder on disk
      version  bump it when the same input would give other output
      key      the input column that identifies one unit of work: source_key, video_id or clip_id
      reads    columns, as `<label>.<column>`; one that ends in `?` may be missing or null,
               any other makes this stage see only rows that were kept there; where that depends
               on settings, `columns_read` is overridden
      writes   the Arrow schema of its own columns; the key and the outcome are added where missing;
               where that depends on settings, `columns_written` and `table_of` are overridden
      frames   which of a clip's kept frames it wants, as a column `frames` (FRAME structs in time
               order, the union over all picks); where that depends on settings, `frames_picked`
               is overridden
      score    the column that is this stage's score, if it is a scorer; where it is not finite it
               is stored as null, and `<score>_reason` says so if that is declared, else the row
               is a failure
      more_scores  further columns of a scorer that the view `clips` shows beside its score
      error_kind  the kind recorded for an exception that names none
      fragile  its rows may crash the worker: they run one by one, with a journal
      robust   no row can end its worker or fill its memory, since what might (decoders, yt-dlp)
               runs in helper processes: a small run of such stages needs no processes of Ray's
      fits     its rows depend on what `fit_on` finds, once, in the rows of all shards; it is kept
               with the dataset under the step's fingerprint
      in_helpers  its rows are computed in helper processes, and its transform is thread-safe: a
               worker with several CPUs has as many calls of it at a time
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    name: ClassVar[str]
    version: ClassVar[int] = 1
    key: ClassVar[str] = "clip_id"
    reads: ClassVar[tuple[str, ...]] = ()
    writes: ClassVar[pa.Schema]
    more_tables: ClassVar[Mapping[str, pa.Schema]] = {}
    frames: ClassVar[tuple[FramePick, ...]] = ()
    score: ClassVar[str | None] = None
    more_scores: ClassVar[tuple[str, ...]] = ()
    error_kind: ClassVar[ErrorKind] = "model"
    fragile: ClassVar[bool] = False
    robust: ClassVar[bool] = False
    fits: ClassVar[bool] = False
    in_helpers: ClassVar[bool] = False

    batch_rows: int = resource(64, ge=1, description="rows passed to the stage at a time")
    cpus: float = resource(1.0, gt=0, description="CPUs per worker")
    gpus: float = resource(0.0, ge=0, description="GPUs (or a fraction) per worker")
    workers: int | None = resource(
        None, ge=1, description="workers of this stage; by default as many as fit"
    )

    @property
    def resources(self) -> Resources:
        return Resources(cpus=self.cpus, gpus=self.gpus, batch_rows=self.batch_rows)

    @property
    def most_workers(self) -> int | None:
        """Workers that are of use; None for as many as fit."""
        return self.workers

    @property
    def uses_gpus(self) -> bool:
        """Whether GPUs that it is given are of any use; not if only servers compute for it."""
        return True

    @property
    def most_gpus(self) -> float | None:
        """The most GPUs that one worker can use; None if that isn't known."""
        return None

    @property
    def calls_at_once(self) -> int:
        """How many calls of the transform may run at a time, each in a thread of its own.

        With more than one, the transform must be thread-safe: batches of several shards are in it
        at a time, and what gathers them into larger ones for a device is the stage's own.
        """
        return 1

    @property
    def rows_at_once(self) -> int:
        """Rows of a call."""
        return self.batch_rows

    def open(self, workspace: Workspace) -> AbstractContextManager[Transform]:
        """Loads models, yields the transform, releases them."""
        raise NotImplementedError

    def fit_on(self, rows: Iterable[pa.Table]) -> pa.Table | None:
        """What `open` gets as `workspace.fitted`; None if these rows don't suffice for any.

        Called once per dataset and fingerprint, before the first shard, when the steps that this
        stage reads from have done all of theirs. `rows` are the rows of one shard after the other,
        with the key and the columns that the stage reads; there may be millions. The result must
        depend on nothing else; it is kept, so that later shards get the same. If its first column
        is also one of the stage's own, rows refer to its rows by it: what no row refers to after
        videos were removed is emptied, except for that column.
        """
        raise NotImplementedError

    def columns_read(self) -> tuple[str, ...]:
        """The columns that this stage reads, with its settings; written as `reads` is."""
        return self.reads

    def columns_written(self) -> pa.Schema:
        """The schema of its own columns, with its settings; all of `writes` is among them."""
        return self.writes

    @classmethod
    def table_of(cls, settings: Mapping[str, Any]) -> pa.Schema:
        """The full schema of a table made with these settings, as a run record has them."""
        return cls.model_construct().table_schema

    def left_empty(self) -> Mapping[str, str]:
        """Columns that are null in every row with these settings: the setting that fills them."""
        return {}

    def frames_picked(self) -> tuple[FramePick, ...]:
        """The kept frames of each clip that this stage needs, with its settings."""
        return self.frames

    def steps(self) -> tuple[Stage, ...]:
        """The steps that this stage runs as; the last one is the stage itself."""
        return (self,)

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        """ValueError if this stage doesn't fit those before it in the recipe, by label."""

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterable[ModelCheck]:
        """Checks of what `references` names, by setting, without loading weights.

        `label` is the stage's own in the recipe, for errors; `before` are the stages before it.
        """
        return ()

    def references(self) -> dict[str, ModelReference | DataFile]:
        """Every model and data file that the settings name, by setting."""
        return {
            name: value
            for name in type(self).model_fields
            if isinstance(value := getattr(self, name), ModelReference | DataFile)
        }

    def prompts(self) -> dict[str, str]:
        """Prompt templates by setting, recorded with the run."""
        return {}

    def identity(self) -> dict[str, Any]:
        """All that determines this stage's results: non-default settings that are not resources."""
        found = {}
        for name, info in type(self).model_fields.items():
            extra = info.json_schema_extra
            if isinstance(extra, dict) and extra.get("resource"):
                continue
            value = getattr(self, name)
            # A default model is still a model whose weights count.
            if value != info.get_default(call_default_factory=True) or isinstance(
                value, ModelReference | DataFile
            ):
                found[name] = _identity(value)
        return found

    @property
    def table_schema(self) -> pa.Schema:
        """The full schema of this stage's own table: key, columns, outcome."""
        fields = {f.name: f for f in self.columns_written()}
        names = [self.key, *[n for n in fields if n != self.key]]
        complete = [fields.get(n, pa.field(n, pa.string(), nullable=False)) for n in names]
        complete += [f for f in OUTCOME if f.name not in fields]
        return pa.schema(complete)


class Rows:
    """Collects output rows by outcome and makes one table of exactly the stage's schema."""

    def __init__(self, stage: Stage) -> None:
        self._key = stage.key
        self._schema = stage.table_schema
        self._rows: list[dict[str, Any]] = []

    def keep(self, key: str, /, **columns: Any) -> None:
        self._add({self._key: key, **columns})

    def reject(self, key: str, rule: str, detail: str, **columns: Any) -> None:
        self._add({self._key: key, "rejection": {"rule": rule, "detail": detail}, **columns})

    def fail(self, key: str, kind: ErrorKind, message: str, **columns: Any) -> None:
        error = {"kind": kind, "message": RowFailed(kind, message).message}
        self._add({self._key: key, "error": error, **columns})

    def record(self, key: str, problem: RowFailed | RowRejected, **columns: Any) -> None:
        """Adds the outcome for a raised exception."""
        if isinstance(problem, RowRejected):
            self.reject(key, problem.rule, problem.detail, **columns)
        else:
            self.fail(key, problem.kind, problem.message, **columns)

    def _add(self, row: dict[str, Any]) -> None:
        unknown = set(row) - set(self._schema.names)
        if unknown:
            # from_pylist would drop a misspelt column silently.
            raise ValueError(f"columns that the table does not declare: {sorted(unknown)}")
        self._rows.append(row)

    def table(self) -> pa.Table:
        return strict_table(self._rows, self._schema)


def strict_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """A table of `rows`; misspelt columns and nulls in non-null columns are errors."""
    rows = list(rows)
    allowed = set(schema.names)
    for row in rows:
        if unknown := set(row) - allowed:
            raise ValueError(f"columns that the table does not declare: {sorted(unknown)}")
    table = pa.Table.from_pylist(rows, schema=schema)
    for column in schema:
        if not column.nullable and table[column.name].null_count:
            raise ValueError(f"column {column.name} must not be null")
    return table
