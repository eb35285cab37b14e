"""Finds keys that the catalog's views would show twice, over all base shards."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import duckdb
import pyarrow as pa

from clipmill.pipeline.catalog import views
from clipmill.pipeline.catalog.layout import Layout, read_layout
from clipmill.pipeline.catalog.published import published_rows
from clipmill.pipeline.dataset.shards import shard_name
from clipmill.pipeline.verify.findings import Book
from clipmill.pipeline.verify.layout import SOURCES_STEP, Survey, narrowed
from clipmill.pipeline.verify.shard_checks import ShardChecks
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.step_tables import StepTable, kept
from clipmill.schemas.words import counted

_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, pa.ArrowException)


def find_layout(dataset: Path) -> Layout | None:
    """The catalog's tables; None if records are damaged, which is reported elsewhere."""
    try:
        return read_layout(dataset)
    except (ClipmillError, *_UNREADABLE):
        return None


class Shown:
    """The views over those shards that could be read."""

    def __init__(
        self,
        survey: Survey,
        shards: ShardChecks,
        book: Book,
        connection: duckdb.DuckDBPyConnection,
        layout: Layout | None,
    ) -> None:
        self._survey = survey
        self._book = book
        self._connection = connection
        self._sources: StepTable | None = None
        self._split: StepTable | None = None
        self._rows: str | None = None
        self._has_published = layout is not None and layout.published is not None
        if layout is None:
            return
        connection.execute("CREATE SCHEMA internal")
        for table, names in (
            ("removed", "removed_videos"),
            ("internal.removed_sources", "removed_keys"),
        ):
            column = "video_id" if table == "removed" else "source_key"
            connection.register(
                "given_names",
                pa.table({column: pa.array(sorted(getattr(survey, names)), pa.string())}),
            )
            connection.execute(f"CREATE TABLE {table} AS SELECT * FROM given_names")
            connection.unregister("given_names")
        whole = {
            step.place(): [name for name in survey.shards(step) if shards.is_whole(step, name)]
            for step in (SOURCES_STEP, *survey.ordered)
        }

        def only_whole(table: StepTable) -> StepTable:
            if table.folder is None:
                return table
            place = Path(table.folder).relative_to(layout.dataset).as_posix()
            return narrowed(table, whole.get(place, ()))

        primaries = [
            views.primary(layout.steps, name) for name in ("download_videos", "split_clips")
        ]
        makers = [only_whole(table) for table in primaries if table is not None]
        self._sources = only_whole(layout.ingest)
        self._split = views.primary(makers, "split_clips")
        if self._split is not None:
            self._rows = views.once(views.clip_rows(makers), keep_groups=True)

    @property
    def clips(self) -> str | None:
        """A query for the ids of the clips that the catalog shows; None if it has no clips."""
        found = [] if self._rows is None else [self._rows]
        if self._has_published and self._sources is not None:
            found.append(published_rows(self._sources, ()))
        return " UNION ".join(f"SELECT clip_id FROM ({rows})" for rows in found) or None

    def check_doubles(self) -> None:
        if self._sources is not None:
            rows = kept(replace(self._sources, removed=False), ["source_key"])
            self._tell("source_key", rows, SOURCES_STEP.id)
        if self._split is not None:
            name = next(
                (name for name in self._survey.current if name[0] == self._split.step), None
            )
            if name is not None:
                self._tell("clip_id", str(self._rows), name)

    def _tell(self, key: str, rows: str, name: tuple[str, str]) -> None:
        """Adds a fault for every base shard with keys that an earlier one also has."""
        step = SOURCES_STEP if name == SOURCES_STEP.id else self._survey.steps[name]
        found = self._connection.execute(
            f"SELECT _base, count(*), min({key}), min(_first) FROM (SELECT {key}, _base, "
            f"min(_base) OVER (PARTITION BY {key}) AS _first FROM (SELECT DISTINCT {key}, _base "
            f"FROM ({rows}))) WHERE _base > _first GROUP BY _base ORDER BY _base"
        ).fetchall()
        for base, number, example, first in found:
            shard = shard_name(base)
            self._book.remake(
                "double",
                step.file(shard),
                f"{counted(number, key)} in it that {shard_name(first)} has, too: e.g. {example!r}",
                step.label,
                step.fingerprint,
                shard,
            )
