"""Finds the current tables of a dataset: those that the newest run record names."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.catalog import published, views
from clipmill.pipeline.catalog.published_index import PublishedSource
from clipmill.pipeline.dataset.published_scores import PublishedScore, read_published
from clipmill.pipeline.dataset.run_records import RunRecord, StageRecord, latest_run
from clipmill.pipeline.dataset.shards import is_shard, list_shards_in, retry_number
from clipmill.pipeline.dataset.steps import Step, recorded_steps
from clipmill.pipeline.dataset.tombstones import Tombstone, tombstones
from clipmill.schemas import tables
from clipmill.schemas.damage import DamagedFile, reading
from clipmill.schemas.folders import FRAMES, INDEX, INGEST, SHOTS, SOURCES
from clipmill.schemas.step_tables import StepTable
from clipmill.stages import scan_videos, split_clips
from clipmill.stages.built_in import built_in_table


@dataclass(frozen=True)
class Layout:
    """The tables of the newest run, with their shards on disk."""

    dataset: Path
    record: RunRecord | None
    ingest: StepTable
    steps: tuple[StepTable, ...]
    shots: StepTable | None
    frames: StepTable | None
    removals: tuple[Tombstone, ...] = ()
    published: tuple[PublishedScore, ...] | None = None
    """Scores that came with given spans; None if no source has any spans."""

    @property
    def published_source(self) -> PublishedSource | None:
        """Where published clips come from; None if there can't be any."""
        if self.published is None:
            return None
        return PublishedSource(
            self.dataset, self.ingest, self.steps, self.published, bool(self.removals)
        )

    @property
    def stages(self) -> list[StageRecord]:
        """The newest run's stages; a published score that none of them takes counts as one."""
        return [*(self.record["stages"] if self.record else ()), *self._given]

    @property
    def clip_columns(self) -> dict[str, tuple[StepTable, str]]:
        """The columns of `clips` that stages made or that were published, with their tables.

        Of those of split_clips, only its signals.
        """
        made = views.clip_columns(self.steps)
        given = {
            stage["stage"]: (
                published.score_table(stage["stage"], self.ingest),
                published.GIVEN_SCORE,
            )
            for stage in self._given
        }
        return made | given | views.signal_columns(self.steps)

    @property
    def _given(self) -> list[StageRecord]:
        made = views.clip_columns(self.steps)
        return [
            published.score_record(score)
            for score in self.published or ()
            if score.name not in made
        ]

    @property
    def folders(self) -> list[str]:
        """Every folder that a view reads."""
        found = [self.ingest, *self.steps, self.shots, self.frames]
        return [
            str(self.dataset / INDEX),
            *(table.folder for table in found if table is not None and table.folder),
        ]


def read_layout(dataset: Path) -> Layout:
    """Finds the current tables; a dataset without a run has at most sources."""
    dataset = dataset.absolute()
    record = latest_run(dataset)
    removals = tuple(tombstones(dataset))
    ingest = _table(dataset / SOURCES, INGEST, INGEST, INGEST, tables.SOURCES, bool(removals))
    steps: list[StepTable] = []
    extra: dict[str, StepTable] = {}
    for step in recorded_steps(dataset, record):
        stage, folder = step.stage_label, step.folder(dataset)
        schema = step.built_in_schema or _found_schema(folder, step)
        table = _table(folder, step.label, stage, step.name, schema, bool(removals), step.score)
        steps.append(in_its_role(table, step))
        # Only these: the schemas of all further tables would import every stage.
        for name, schema in ((FRAMES, scan_videos.FRAMES), (SHOTS, split_clips.SHOTS)):
            if name in step.tables:
                folder = step.folder(dataset, name)
                extra[name] = _table(folder, name, stage, name, schema, bool(removals))
    found = read_published(dataset)
    scores = published.shown_scores(found, record, steps) if found.spans else None
    return Layout(
        dataset, record, ingest, tuple(steps), extra.get(SHOTS), extra.get(FRAMES), removals, scores
    )


def _table(
    folder: Path,
    step: str,
    stage: str,
    name: str,
    schema: pa.Schema,
    removed: bool,
    score: str | None = None,
) -> StepTable:
    shards, odd = list_shards_in(folder)
    retries = tuple(sorted(shard for shard in shards if retry_number(shard)))
    return StepTable(
        step,
        stage,
        name,
        schema.names[0],
        schema,
        str(folder) if shards else None,
        retries,
        score,
        removed=removed,
        odd=odd,
    )


def in_its_role(table: StepTable, step: Step) -> StepTable:
    """A step's table, with what it stands for in the views.

    A custom stage with the name of a built-in one stands for that if it has columns of it; those
    that it lacks are null.
    """
    if step.built_in_schema is not None:
        return replace(table, is_built_in=True, role=step.name)
    named = built_in_table(step.name, step.settings)
    if named is None:
        return table
    own = {field.name for field in table.own_columns} - _KEYS
    if not own & set(named.names):
        return table
    lacking = [field for field in named if field.name not in table.schema.names]
    return replace(
        table,
        schema=pa.schema([*table.schema, *lacking]),
        role=step.name,
        lacks=frozenset(field.name for field in lacking),
    )


_KEYS = {"source_key", "video_id", "clip_id"}


def _found_schema(folder: Path, step: Step) -> pa.Schema:
    """The schema of a custom stage, read from its files; text columns if there are none."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            # The newest file has the most columns, because schemas only grow.
            newest = sorted(
                (
                    (entry.stat().st_mtime_ns, entry.path)
                    for entry in entries
                    if entry.name.endswith(".parquet")
                    and entry.is_file()
                    and is_shard(entry.name.removesuffix(".parquet"))
                ),
                reverse=True,
            )
        for _, path in newest:
            # A damaged file is reported when it is queried.
            with contextlib.suppress(DamagedFile), reading(Path(path)):
                return pq.read_schema(path).remove_metadata()
    names = [name for name in step.columns if name not in {"rejection", "error"}]
    return pa.schema([*((name, pa.string()) for name in names), *tables.OUTCOME])
