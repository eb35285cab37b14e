"""Run records: one JSON file per run, which says how the run's tables were made."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

from clipmill.pipeline.dataset.commit_fence import goes_on
from clipmill.pipeline.dataset.shards import write_json
from clipmill.schemas.command_line import shell_word, start_a_run
from clipmill.schemas.damage import DamagedFile, read_json, reading
from clipmill.schemas.errors import ClipmillError, UsageError, storable
from clipmill.schemas.folders import INDEX, LOGS, MEDIA, RUNS, is_dataset, json_files
from clipmill.schemas.sql_text import literal
from clipmill.schemas.words import did_you_mean
from clipmill.stages.models.places import ModelPlace

KILLED = "killed"
DOWNLOADS = "download_videos"


class StepRecord(TypedDict):
    """One step of a stage: its inputs, and where its tables are in the dataset."""

    step: str
    key: str
    fingerprint: str
    upstream: list[str]
    tables: dict[str, str]
    schema_columns: list[str]


class ModelRecord(TypedDict):
    """A model or data file of a stage: its origin, revision and checksum."""

    reference: str
    revision: str | None
    identity: str


class PlaceRecord(TypedDict):
    """Where workers loaded a model."""

    device: str
    dtype: str


class ServedRecord(TypedDict):
    """Where a model is served, and what its server says about it, as JSON text."""

    address: str
    said: str


class FitRecord(TypedDict):
    """What a stage found once: its file, the run that found it, in how many rows, and how much."""

    file: str
    run_id: str
    rows: int
    found: int


class StageRecord(TypedDict):
    """One stage of a run; `stage` is its label in the recipe, `name` its class's word.

    `models`, `prompts`, `places` and `served` are by setting. `gate` is what it skips rows by, and
    `threshold` what its best share came to. `fit` is what its rows are made with, null if it was
    not found yet; stages that find nothing have none.
    """

    stage: str
    name: str
    key: str
    steps: list[StepRecord]
    score: str | None
    reads: list[str]
    settings: dict[str, Any]
    models: dict[str, ModelRecord]
    prompts: dict[str, str]
    places: NotRequired[dict[str, list[PlaceRecord]]]
    served: NotRequired[dict[str, list[ServedRecord]]]
    gate: NotRequired[str | None]
    threshold: NotRequired[float | None]
    fit: NotRequired[FitRecord | None]


class ChoiceRecord(TypedDict):
    """What a run was asked for: `name` is that of its file, `said` what the user wrote.

    `clips` counts chosen clips, `sources` the sources that they, or the choice itself, are of.
    """

    name: str
    said: str
    clips: int
    sources: int


class RunRecord(TypedDict):
    """Contents of a run's file in `runs/`; fields that may be missing were added in later
    versions.

    `may_skip` has the labels of steps that skipped rows, in this run or an earlier one.
    """

    run_id: str
    started_at: str
    finished_at: str | None
    state: str
    recipe_name: str
    recipe: dict[str, Any]
    code_version: str
    versions: NotRequired[dict[str, str]]
    engine: str
    until: NotRequired[str | None]
    last_shard: NotRequired[str | None]
    may_skip: NotRequired[list[str]]
    choice: NotRequired[ChoiceRecord | None]
    stages: list[StageRecord]


def write_run(dataset: Path, record: RunRecord) -> None:
    write_json(dataset / RUNS / f"{record['run_id']}.json", record)


class RecordOfThisRun:
    """The record of the current run, on disk from the start; usable from any thread."""

    def __init__(self, dataset: Path, record: RunRecord) -> None:
        self._dataset, self._record = dataset, record
        self.run_id: str = record["run_id"]
        self._lock = threading.Lock()
        self._is_finished = False
        write_run(dataset, record)

    def add_places(self, label: str, places: Iterable[ModelPlace]) -> None:
        """Adds the places where workers loaded a stage's models, and saves the record at once."""
        with self._lock:
            if self._is_finished or not self._has_new(label, places):
                return
            # If it can't be written now, it is written at the end.
            with contextlib.suppress(OSError, DamagedFile):
                write_run(self._dataset, self._record)

    def add_threshold(self, label: str, says: str, value: float | None) -> None:
        """Adds what the best share of a stage's gate came to, and saves the record at once."""
        with self._lock:
            stage = next(stage for stage in self._record["stages"] if stage["stage"] == label)
            stage["gate"], stage["threshold"] = says, value
            with contextlib.suppress(OSError, DamagedFile):
                write_run(self._dataset, self._record)

    def add_fit(self, label: str, fit: FitRecord) -> None:
        """Adds what a stage found once, and saves the record at once."""
        with self._lock:
            stage = next(stage for stage in self._record["stages"] if stage["stage"] == label)
            stage["fit"] = fit
            with contextlib.suppress(OSError, DamagedFile):
                write_run(self._dataset, self._record)

    def _has_new(self, label: str, places: Iterable[ModelPlace]) -> bool:
        """Adds a place to the record; returns whether it is new."""
        stage = next(stage for stage in self._record["stages"] if stage["stage"] == label)
        models, is_new = stage["models"], False
        for place in sorted(places):
            # A model that two settings name is loaded once.
            for name in (name for name in models if models[name] == models.get(place.setting)):
                known: list[Any]
                entry: Any
                if place.served:
                    known = stage.setdefault("served", {}).setdefault(name, [])
                    entry = {"address": place.device, "said": place.served}
                else:
                    known = stage.setdefault("places", {}).setdefault(name, [])
                    entry = {"device": place.device, "dtype": place.dtype}
                if entry not in known:
                    known.append(entry)
                    is_new = True
        return is_new

    def finish(self, state: str) -> None:
        with self._lock:
            self._is_finished = True
            write_run(
                self._dataset,
                {**self._record, "state": state, "finished_at": datetime.now(UTC).isoformat()},
            )


def run_records(dataset: Path) -> list[RunRecord]:
    """All runs, oldest first; run ids sort by the time they started."""
    return [_as_it_is(dataset, read_run(path)) for path in _paths(dataset)]


def latest_run(dataset: Path) -> RunRecord | None:
    """The newest run: its fingerprints are the current ones."""
    paths = _paths(dataset)
    return _as_it_is(dataset, read_run(paths[-1])) if paths else None


def read_run(path: Path) -> RunRecord:
    """The record of a run; DamagedFile if it is not a record, or belongs to another run."""
    record = read_json(path)
    with reading(path):
        _check(record, path.stem)
    return cast("RunRecord", record)


def _check(record: dict[str, Any], run_id: str) -> None:
    """KeyError or a similar error if something that every run record has is missing."""
    if record["run_id"] != run_id:
        raise ValueError("it is the record of another run")
    texts = ("state", "started_at", "recipe_name", "code_version", "engine")
    if not all(isinstance(record[name], str) for name in texts):
        raise TypeError(f"not all of {', '.join(texts)} are texts")
    for at in (record["started_at"], record["finished_at"]):
        if at is not None:
            datetime.fromisoformat(at)
    if not isinstance(record["recipe"], dict):
        raise TypeError("its recipe is not a mapping")
    for stage in record["stages"]:
        if not {"stage", "name", "reads", "settings", "models", "prompts", "score"} <= set(stage):
            raise KeyError("what a stage is made with")
        for step in stage["steps"]:
            if not {"step", "key", "fingerprint", "upstream", "tables", "schema_columns"} <= set(
                step
            ):
                raise KeyError("what a step is made from")


def note_killed_runs(dataset: Path) -> bool:
    """Marks earlier runs that are no longer active as killed; the caller holds the lock.

    True if there are any: such runs leave files behind.
    """
    killed = False
    for path in _paths(dataset):
        # The text is checked first: there may be thousands of records, nearly all of them done.
        # `verify` reports unreadable ones: this run needs at most the newest.
        with contextlib.suppress(DamagedFile):
            with reading(path):
                text = path.read_text("utf-8")
            if '"state": "running"' in text:
                write_run(dataset, {**read_run(path), "state": KILLED})
                killed = True
    return killed


def _paths(dataset: Path) -> list[Path]:
    return json_files(dataset / RUNS)


def _as_it_is(dataset: Path, record: RunRecord) -> RunRecord:
    """The record; if it looks active but its run was killed, it is marked as killed."""
    if record.get("state") == "running" and not goes_on(dataset, record["run_id"]):
        return {**record, "state": KILLED}
    return record


def check_place(dataset: Path) -> None:
    """UsageError if no dataset can be at the path `dataset`, whatever it contains."""
    place = str(dataset.absolute())
    if "\\" in place:
        raise UsageError(
            f"{dataset}: DuckDB, which reads the tables, treats a backslash in a "
            "folder name as a separator; move the dataset elsewhere"
        )
    try:
        place.encode()
    except UnicodeEncodeError as error:
        raise UsageError(
            f"{storable(str(dataset))}: the folder's name is not UTF-8, so no "
            "table there can be read; move the dataset elsewhere"
        ) from error
    for part in (dataset, *dataset.absolute().parents):
        if part.is_symlink() and not part.exists():
            raise UsageError(
                f"{part} is a link to {part.readlink()}, which does not exist; is its disk mounted?"
            )
        if part.exists():
            _check_folder(dataset, part)
            return


def _check_folder(dataset: Path, there: Path) -> None:
    """UsageError if what exists at or above the dataset's path is not a folder."""
    if there.is_dir():
        return
    if there == dataset:
        raise UsageError(
            f"{dataset} is a file, but a dataset is a folder, which `clipmill run` "
            f"makes{_datasets_in(dataset.parent)}"
        )
    raise UsageError(f"no dataset can be at {dataset}: {there} is a file, not a folder")


def check_links(dataset: Path, *, without: Collection[str] = ()) -> None:
    """ClipmillError if a part of the dataset is a link whose disk is not mounted.

    Its contents must not be treated as lost. Logs and the index may be missing: logs are
    optional, and the index can be rebuilt.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        for path in sorted(dataset.iterdir()):
            if path.is_symlink() and path.name not in (*without, LOGS, INDEX) and not path.exists():
                raise ClipmillError(
                    f"{path} is a link to {path.readlink()}, which doesn't exist; "
                    "mount its disk, or delete the link if the data is lost for "
                    "good"
                )


def _dataset_names(folder: Path) -> list[str]:
    try:
        return sorted(place.name for place in folder.iterdir() if is_dataset(place))
    except OSError:
        return []


def _datasets_in(folder: Path) -> str:
    """The datasets in a folder as a hint, if there are any."""
    names = _dataset_names(folder)
    shown = ", ".join(shell_word(folder / name) for name in names[:5])
    return f"; there {'is' if len(names) == 1 else 'are'} {shown}" if names else ""


def require_dataset(dataset: Path) -> Path:
    """`dataset` if it is one, otherwise a usage error that says what to do."""
    check_place(dataset)
    make = f"to make one, {start_a_run(dataset)}"
    if not dataset.is_dir():
        hint = did_you_mean(
            dataset.name,
            _dataset_names(dataset.parent),
            shown=lambda name: shell_word(dataset.parent / name),
        )
        raise UsageError(f"no dataset at {dataset}: the folder does not exist; {hint}{make}")
    if not is_dataset(dataset):
        inner = _datasets_in(dataset)
        raise UsageError(
            f"{dataset} is not a Clipmill dataset (it has no runs/ folder){inner or f'; {make}'}"
        )
    check_links(dataset, without=(MEDIA,))  # tables can be queried without media
    return dataset


def of_no_download(record: RunRecord | None) -> str:
    """A condition in SQL on rows of `failures`: that their stage fetches nothing."""
    labels = {
        stage["stage"]: None
        for stage in (record["stages"] if record else ())
        if stage["name"] == DOWNLOADS
    }
    fetching = ", ".join(map(literal, ["ingest", DOWNLOADS, *labels]))
    return f"split_part(stage, '.', 1) NOT IN ({fetching})"
