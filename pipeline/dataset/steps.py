"""The steps of a recipe: what each reads, which keys it gets, and where its tables are."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.pipeline.dataset.run_records import RunRecord
from clipmill.schemas.damage import reading
from clipmill.schemas.errors import UsageError
from clipmill.schemas.folders import RUNS, SOURCES
from clipmill.schemas.tables import SOURCES as SOURCES_SCHEMA
from clipmill.stages.built_in import built_in_table

StepId = tuple[str, str]
"""A step's label and fingerprint."""


@dataclass(frozen=True)
class Read:
    """One column that a step reads: the step whose table has it, and the name to show it under."""

    label: str
    column: str
    shown_as: str
    optional: bool

    @classmethod
    def parse(cls, text: str) -> Read:
        place, _, alias = text.partition(" as ")
        optional = place.endswith("?") or alias.endswith("?")
        label, dot, column = place.rstrip("?").partition(".")
        if not dot:
            raise UsageError(f"reads {text!r}: expected `<label>.<column>`")
        return cls(label, column, alias.rstrip("?") or column, optional)


@dataclass(frozen=True)
class Step:
    """One step with one fingerprint, planned or recorded.

    `name` is its stage's word, `upstream` has the steps that it depends on with their
    fingerprints, `tables` the names of its own table and of further ones, `score` the column of
    its stage's score. What an inner step of a recorded stage reads is unknown. `settings` are those
    of a recorded stage.
    """

    label: str
    stage_label: str
    name: str
    key: str
    fingerprint: str
    upstream: Mapping[str, str] = field(hash=False)
    reads: tuple[Read, ...]
    tables: tuple[str, ...]
    columns: tuple[str, ...]
    score: str | None
    settings: Mapping[str, Any] = field(default_factory=dict, compare=False, kw_only=True)

    @property
    def id(self) -> StepId:
        return self.label, self.fingerprint

    def place(self, table: str | None = None) -> str:
        """The folder in the dataset of its own table, or of one of its further tables."""
        if self.label == SOURCES:
            return SOURCES
        return f"{table or self.label}/{self.fingerprint}"

    def folder(self, dataset: Path, table: str | None = None) -> Path:
        return dataset / self.place(table)

    def file(self, shard: str, table: str | None = None) -> str:
        return f"{self.place(table)}/{shard}.parquet"

    @property
    def built_in_schema(self) -> pa.Schema | None:
        """The declared schema of its own table; None for a custom stage, whatever its name."""
        if self.label == SOURCES:
            return SOURCES_SCHEMA
        schema = built_in_table(self.name, self.settings)
        # Schemas only grow: no column of a built-in stage is missing from it.
        return None if schema is None or set(self.columns) - set(schema.names) else schema

    @cached_property
    def inputs(self) -> dict[str, str]:
        """The tables whose rows it gets, with their fingerprints; the sources have none."""
        found = dict(self.upstream) or {SOURCES: ""}
        return found | {read.label: "" for read in self.reads if read.label not in found}

    @cached_property
    def required(self) -> frozenset[str]:
        """Those of its inputs that must have kept a key."""
        optional = {read.label for read in self.reads if read.optional}
        needed = {read.label for read in self.reads if not read.optional}
        return frozenset(self.inputs.keys() - (optional - needed))


def recorded_steps(dataset: Path, record: RunRecord | None) -> list[Step]:
    """The steps of a run in order; DamagedFile, with the record's name, if they make no sense."""
    if record is None:
        return []
    with reading(dataset / RUNS / f"{record['run_id']}.json"):
        return steps_of(record)


def steps_of(record: RunRecord) -> list[Step]:
    """The steps of a run in order; KeyError or a similar error for an invalid record."""
    prints = fingerprints(record)
    found = []
    for stage in record["stages"]:
        for step in stage["steps"]:
            label = step["step"]
            is_last = step is stage["steps"][-1]
            upstream = {name: prints[name] for name in step["upstream"] if name in prints}
            found.append(
                Step(
                    label,
                    stage["stage"],
                    stage["name"] if label == stage["stage"] else label,
                    step["key"],
                    step["fingerprint"],
                    upstream,
                    _recorded_reads(stage["reads"], upstream) if is_last else (),
                    tuple(dict.fromkeys((label, *step["tables"]))),
                    tuple(step["schema_columns"]),
                    stage.get("score"),
                    settings=stage["settings"] if is_last else {},
                )
            )
    return found


def reads_of(texts: Iterable[str], upstream: Collection[str]) -> tuple[Read, ...]:
    """What a stage declares to read, except optional columns of absent stages."""
    reads = map(Read.parse, texts)
    return tuple(read for read in reads if read.label in upstream or read.label == SOURCES)


def _recorded_reads(texts: Iterable[str], upstream: Collection[str]) -> tuple[Read, ...]:
    try:
        return reads_of(texts, upstream)
    except UsageError as error:  # of whoever wrote a recipe, but this is a record
        raise ValueError(str(error)) from error


def fingerprints(record: RunRecord | None) -> dict[str, str]:
    """The fingerprint of each step of a run, by its label."""
    return {
        step["step"]: step["fingerprint"]
        for stage in (record["stages"] if record else ())
        for step in stage["steps"]
    }


def downstream(steps: Sequence[Step], label: str) -> set[str]:
    """The labels of a step and of all that depend on it; `steps` are in order."""
    reached = {label}
    for step in steps:
        if reached & step.upstream.keys():
            reached.add(step.label)
    return reached


@dataclass(frozen=True)
class StepInputs:
    """The tables that a step's rows are joined from, by their labels.

    Tables `of_keys` have the step's key; the first of them determines the keys and their videos.
    Tables `of_videos` are joined by the video. `required` ones must have kept a key.
    """

    of_keys: tuple[str, ...]
    of_videos: tuple[str, ...]
    required: frozenset[str]


def inputs_of(step: Step, columns: Mapping[str, Collection[str]]) -> StepInputs:
    """How a step's inputs are joined; `columns` are those of each input's table."""
    of_keys = tuple(label for label in step.inputs if step.key in columns[label])
    of_videos: tuple[str, ...] = ()
    if of_keys and "video_id" in columns[of_keys[0]]:
        others = [label for label in step.inputs if label not in of_keys]
        of_videos = tuple(label for label in others if "video_id" in columns[label])
    return StepInputs(of_keys, of_videos, step.required)


@dataclass(frozen=True)
class KeptRows:
    """The kept rows of one shard of a table: their keys and videos.

    Rows of `unchanged` keys, or videos, are the same as in an earlier shard.
    """

    keys: Sequence[str | None]
    videos: Sequence[str | None]
    unchanged: frozenset[str] = frozenset()

    @classmethod
    def of(cls, table: pa.Table, key: str, unchanged: frozenset[str] = frozenset()) -> KeptRows:
        keys, videos = (
            table[name].to_pylist() if name in table.column_names else []
            for name in (key, "video_id")
        )
        return cls(keys, videos, unchanged)


def given_keys(
    inputs: StepInputs, kept: Mapping[str, Mapping[str, KeptRows]]
) -> dict[str, set[str]]:
    """The keys that a step gets, each with the shards that have something new for it.

    A step gets a key if all required tables have kept it, or its video. `kept` are the rows of a
    base shard and its retries, by table and shard, oldest shard first.
    """
    given: dict[str, set[str]] = {}
    video_of: dict[str | None, str | None] = {}
    for rows in kept[inputs.of_keys[0]].values():
        given.update((key, set()) for key in rows.keys if key is not None)
        video_of.update(zip(rows.keys, rows.videos, strict=False))
    for label in inputs.of_keys:
        known: set[str | None] = set()
        for shard, rows in kept[label].items():
            known.update(rows.keys)
            for key in rows.keys:
                if key in given and key not in rows.unchanged:
                    given[key].add(shard)
        if label in inputs.required:
            given = {key: shards for key, shards in given.items() if key in known}
    for label in inputs.of_videos:
        new: dict[str | None, set[str]] = {}
        for shard, rows in kept[label].items():
            for video in rows.videos:
                found = new.setdefault(video, set())
                if video not in rows.unchanged:
                    found.add(shard)
        if label in inputs.required:
            given = {key: shards for key, shards in given.items() if video_of.get(key) in new}
        for key, shards in given.items():
            shards.update(new.get(video_of.get(key), ()))
    return given
