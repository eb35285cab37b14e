"""The catalog: DuckDB views over the committed shards of a dataset, and queries on them.

Views are over the fingerprints that the newest run record names; nothing is written to the
dataset, and no shard is opened before a query needs it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from clipmill.pipeline.catalog import audit_views, problem_views, published, views
from clipmill.pipeline.catalog.damaged_files import damage_behind
from clipmill.pipeline.catalog.index import Coverage, find_coverage
from clipmill.pipeline.catalog.layout import Layout, read_layout
from clipmill.pipeline.catalog.user_sql import readable_errors, reading_statement
from clipmill.pipeline.catalog.work_database import WorkDatabase, new_places
from clipmill.pipeline.dataset.run_records import StageRecord, require_dataset, run_records
from clipmill.pipeline.dataset.tombstones import Tombstone
from clipmill.schemas.bounded_memory import bounded_memory
from clipmill.schemas.damage import DamagedFile, read_json, reading
from clipmill.schemas.errors import UsageError
from clipmill.schemas.folders import SUBSET_CLIPS, subset_records
from clipmill.schemas.sql_text import escaped_for_glob, literal, quoted
from clipmill.schemas.step_tables import Columns, StepTable, empty, raw_view

_UNITS = {
    "bytes": 1,
    **{f"{letter}iB": 2 ** (10 * power) for power, letter in enumerate("KMGTP", 1)},
}
# Memory that Python and Arrow need for rows being returned.
_BESIDE_DUCKDB = 2**30
DEFAULT_MEMORY_LIMIT = "50%"


class Catalog:
    """An open catalog; a context manager.

    `execute` is for the program's own SQL. `ask` is for user SQL: one read-only statement, with
    errors that point at the mistake.
    """

    def __init__(
        self,
        layout: Layout,
        connection: duckdb.DuckDBPyConnection,
        work: WorkDatabase,
        use_index: bool,
    ) -> None:
        self.layout = layout
        self._work = work
        self.connection = connection
        self._missing = _view_queries(layout)
        self._kept_back: dict[str, DamagedFile] = {}
        self._has_doubled: bool | None = None
        self._known = {*self._missing, "removed"}
        self._uses_index = use_index

    def __enter__(self) -> Catalog:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        """Closes it; an error caused by a damaged file is raised as DamagedFile."""
        self.close()
        self._raise_damage_behind(error)

    @contextmanager
    def damage_named(self) -> Iterator[None]:
        """Raises an error caused by a damaged file as DamagedFile."""
        try:
            yield
        except Exception as error:
            self._raise_damage_behind(error)
            raise

    def _raise_damage_behind(self, error: BaseException | None) -> None:
        if isinstance(error, Exception):
            found = self._view_kept_back(error) or damage_behind(error, self.layout.dataset)
            if found is not None:
                raise found from error

    def close(self) -> None:
        self.connection.close()
        self._work.remove()
        if "_parser" in vars(self):
            self._parser.close()

    def execute(self, query: str, parameters: object = None) -> duckdb.DuckDBPyConnection:
        self._create_views_for(query)
        return self.connection.execute(query, parameters)

    def make_work(self) -> None:
        """Attaches `work`, a database for the program's own tables, if it isn't yet."""
        self._work.attach(self.connection)

    def make_views(self, *names: str) -> None:
        """Makes views that SQL for `connection` names."""
        for name in names:
            self._create(name)

    def ask(self, query: str) -> pa.RecordBatchReader:
        """The rows of one read-only statement, streamed.

        Raises UsageError for a statement that is not read-only or that DuckDB refuses, and
        ClipmillError if the machine or a file is to blame. Errors may also occur while reading:
        read inside `with readable_errors()`.
        """
        relation = self.relation(query)
        with readable_errors(query):
            return relation.to_arrow_reader()

    def relation(self, query: str) -> duckdb.DuckDBPyRelation:
        """The rows of one read-only statement as a relation, which is executed when it is read.

        Raises the same errors as `ask`. It can be read after the catalog was dropped, but not
        after it was closed.
        """
        with readable_errors(query):
            query = reading_statement(self.connection, query)
            self._create_views_for(query)
            # A separate cursor: a result that is still being read blocks its connection.
            cursor = self.connection.cursor()
            try:
                return cursor.sql(query)
            except (duckdb.BinderException, duckdb.CatalogException):
                cursor.execute(query)  # fails in the same way, but says where in the text
                raise

    @contextmanager
    def bounded(self) -> Iterator[None]:
        """Limits this process's memory while SQL from an untrusted source runs.

        DuckDB's own limit covers tables and sorts, but not every text that a function makes. On a
        system without this limit (macOS) the SQL runs without it.
        """
        rows = self.connection.execute("SELECT current_setting('memory_limit')").fetchall()
        number, _, unit = str(rows[0][0]).partition(" ")
        limit = int(float(number) * _UNITS[unit])
        with bounded_memory(limit + limit // 2 + _BESIDE_DUCKDB):
            yield

    def _create_what_can_be(self) -> None:
        """Creates all views except those that damage prevents, which may not be needed."""
        for name in list(self._missing):
            try:
                self._create(name)
            except DamagedFile as error:
                self._kept_back[name.rpartition(".")[2]] = error

    def _view_kept_back(self, error: BaseException | None) -> DamagedFile | None:
        """The damage that prevented a view which DuckDB reports as missing."""
        while error is not None:
            if isinstance(error, duckdb.CatalogException) and (
                missing := re.search(r"with name (\w+) does not exist", str(error))
            ):
                return self._kept_back.get(missing[1])
            error = error.__cause__
        return None

    def _create_views_for(self, query: str) -> None:
        """Creates the views that a query names.

        DuckDB binds a view when it is created, which lists the folders under it: for thousands
        of shards and all views together that would take longer than most queries.
        """
        try:
            found = self._parser.get_table_names(query, qualified=True)
        except duckdb.Error:
            found = set()
        named = {_view_named(name) for name in found}
        # A statement that lists tables, or names an unknown one, may need any of them.
        if not named or not named <= self._known:
            self._create_what_can_be()
        for name in named:
            self._create(name)

    @cached_property
    def _parser(self) -> duckdb.DuckDBPyConnection:
        """An empty connection: where a view exists, DuckDB inspects what it reads."""
        return duckdb.connect(":memory:", config={"threads": 1})

    def _create(self, name: str) -> None:
        make_query = self._missing.get(name)
        if make_query is None:
            return
        self._make_view(name, make_query)
        self._missing.pop(name, None)

    def _make_view(self, name: str, make_query: Callable[[], str]) -> None:
        if name in _TABLES:
            columns, rows = _TABLES[name]
            _create_table(self.connection, name, columns, rows(self.layout.dataset))
            return
        for used in _USES.get(name, ()):
            self._create(used)
        if name == "internal.problems":
            problem_views.create(self.connection, make_query())
            for made in problem_views.OF_PROBLEMS:
                self._missing.pop(made, None)
            return
        if name not in self._missing:
            return  # made with one that it uses
        place = ".".join(map(quoted, name.split(".", 1)))
        if name in _INDEXED and self._uses_index:
            try:
                query = self._query_with_index(name) or make_query()
                self.connection.execute(f"CREATE VIEW {place} AS {query}")
                return
            except duckdb.InterruptException:
                raise
            except duckdb.Error:
                pass  # the index is damaged: the tables have everything
        self.connection.execute(f"CREATE VIEW {place} AS {make_query()}")

    def _query_with_index(self, name: str) -> str | None:
        if name == "internal.published":
            source = self.layout.published_source
            return None if source is None else source.query(use_index=True)
        if self._coverage is None:
            return None
        query = self._put_together(self._coverage, name)
        return query if name == "videos" else _with_published(self.layout, query)

    @cached_property
    def _coverage(self) -> Coverage | None:
        """The usable part of the index; checked when the first view needs it."""
        if not self._uses_index:
            return None
        layout = self.layout
        return find_coverage(
            layout.dataset, layout.steps, [stone.name for stone in layout.removals]
        )

    def _put_together(self, coverage: Coverage, name: str) -> str:
        """A wide view: rows of the index, and joins for the shards that it lacks."""
        files = coverage.files(name)
        held = self.connection.execute(
            f"DESCRIBE SELECT * EXCLUDE (_base) FROM "
            f"read_parquet({literal(escaped_for_glob(files[0]))}, hive_partitioning=false)"
        )
        columns = [column for column, *_ in held.fetchall()]
        parts = [views.stored_rows(columns, files, hide_removed=coverage.hide_removed)]
        if coverage.live is not None:
            parts.append(views.once(_WIDE[name](coverage.live), keep_groups=True))
        doubled = "internal.doubled" if coverage.may_double and self._find_doubled() else None
        return views.put_together(columns, parts, doubled)

    def _find_doubled(self) -> bool:
        """Makes the table of videos that occur again in later groups of shards."""
        if self._has_doubled is None:
            coverage = self._coverage
            assert coverage is not None  # only called if part of a view comes from the index
            parts = [
                views.stored_rows(
                    ["video_id"], coverage.files("videos"), hide_removed=coverage.hide_removed
                )
            ]
            if coverage.live is not None:
                parts.append(views.video_groups(coverage.live))
            self.connection.execute(
                f"CREATE OR REPLACE TABLE internal.doubled AS {views.doubled_groups(parts)}"
            )
            found = self.connection.execute("SELECT count(*) FROM internal.doubled").fetchall()
            self._has_doubled = found[0][0] > 0
        return self._has_doubled


def open_catalog(
    dataset: Path,
    *,
    allow_external: bool = False,
    memory_limit: str | None = None,
    threads: int | None = None,
    use_index: bool = True,
) -> Catalog:
    """Opens the views of a dataset in any state.

    Unless `allow_external`, queries can only reach the dataset's current tables: no other files,
    no network, no extensions. `memory_limit` is DuckDB's, e.g. `2GB`; by default half of the
    machine's memory. Without `use_index` all rows come from the tables themselves.
    """
    layout = read_layout(require_dataset(dataset))
    spill, work = new_places()
    config: dict[str, Any] = {
        "temp_directory": str(spill),
        "python_enable_replacements": False,
        "autoload_known_extensions": allow_external,
        "autoinstall_known_extensions": allow_external,
        "allow_persistent_secrets": allow_external,
    }
    if threads is not None:
        config["threads"] = threads
    connection = duckdb.connect(":memory:", config=config)
    _limit_memory(connection, memory_limit)
    connection.execute("SET GLOBAL TimeZone = 'UTC'")
    connection.execute("CREATE SCHEMA internal")
    _create_table(connection, "removed", views.REMOVED_VIEW, _removed_rows(layout.removals))
    keys = {key for stone in layout.removals for key in stone.source_keys}
    _create_table(
        connection,
        "internal.removed_sources",
        [("source_key", pa.string())],
        [{"source_key": key} for key in sorted(keys)],
    )
    connection.execute("CREATE SCHEMA steps")
    if not allow_external:
        # DuckDB checks both the patterns as written and the files that they resolve to.
        subsets = [folder for _, folder in _subset_folders(layout.dataset)]
        allowed = {
            name
            for folder in (*layout.folders, *subsets, str(work.folder))
            for name in (folder, escaped_for_glob(folder))
        }
        folders = ", ".join(map(literal, sorted(allowed)))
        connection.execute(f"SET allowed_directories = [{folders}]")
        connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return Catalog(layout, connection, work, use_index)


def _limit_memory(connection: duckdb.DuckDBPyConnection, limit: str | None) -> None:
    try:
        connection.execute(f"SET memory_limit = {literal(limit or DEFAULT_MEMORY_LIMIT)}")
    except duckdb.Error as error:
        raise UsageError(
            f"--memory-limit {limit}: expected a size such as 4GB or 500MB, or a "
            "share of the machine's memory such as 50%"
        ) from error


_INDEXED = ("clips", "videos", "internal.published")
_WIDE: dict[str, Callable[[Sequence[StepTable]], str]] = {
    "clips": views.clip_rows,
    "videos": views.video_rows,
}


def _view_queries(layout: Layout) -> dict[str, Callable[[], str]]:
    """The SQL of every view, by name; a view that uses another one follows it."""
    steps = layout.steps
    return {
        "sources": lambda: views.plain_view(layout.ingest, views.SOURCES_VIEW),
        "videos": lambda: views.once(views.video_rows(steps)),
        "internal.published": lambda: _published_query(layout),
        "clips": lambda: _with_published(layout, views.once(views.clip_rows(steps))),
        "internal.known_videos": lambda: published.KNOWN_VIDEOS_SQL,
        "internal.problems": lambda: problem_views.problems_view((layout.ingest, *steps)),
        **dict.fromkeys(problem_views.OF_PROBLEMS, str),  # made with internal.problems
        "shots": lambda: views.plain_view(layout.shots, views.SHOTS_VIEW),
        "frames_index": lambda: views.plain_view(layout.frames, views.FRAMES_INDEX_VIEW),
        "embeddings": lambda: views.embeddings_view(steps),
        "subset_clips": lambda: views.subset_clips_view(_subset_folders(layout.dataset)),
        **{f"steps.{step.step}": partial(raw_view, step) for step in steps},
        # These come from records: an unreadable record must not block queries of other tables.
        **dict.fromkeys(_TABLES, str),
    }


def _published_query(layout: Layout) -> str:
    source = layout.published_source
    return published.no_rows(()) if source is None else source.query(use_index=False)


def _with_published(layout: Layout, own: str) -> str:
    """`clips`, given the rows of the dataset's own clips."""
    steps, scores = layout.steps, layout.published or ()
    settings = next(
        (
            stage["settings"]
            for stage in (layout.record["stages"] if layout.record else ())
            if stage["name"] == "split_clips"
        ),
        None,
    )
    return published.all_clips(
        own,
        "SELECT * FROM internal.published" if layout.published is not None else None,
        published.own_scores(scores, steps, settings),
        published.clip_names(steps, scores),
    )


_USES = {
    "clips": ("internal.published",),
    "internal.known_videos": ("videos", "sources", "internal.published"),
    "internal.problems": ("sources",),
    **dict.fromkeys(problem_views.OF_PROBLEMS, ("internal.problems",)),
}


def _view_named(found: str) -> str:
    """The view that DuckDB says a query names: `memory.main.clips AS c` is `clips`."""
    return found.partition(" ")[0].removeprefix("memory.").removeprefix("main.")


def _create_table(
    connection: duckdb.DuckDBPyConnection, name: str, columns: Columns, rows: list[dict[str, Any]]
) -> None:
    if not rows:
        # DuckDB imports pandas to look at a table that it is given.
        connection.execute(f"CREATE TABLE {name} AS {empty(columns)}")
        return
    data = pa.Table.from_pylist(rows, schema=pa.schema(list(columns)))
    connection.register("given_rows", data)
    connection.execute(f"CREATE TABLE {name} AS SELECT * FROM given_rows")
    connection.unregister("given_rows")


def _run_rows(dataset: Path) -> list[dict[str, Any]]:
    return [
        {
            "run_id": record["run_id"],
            "started_at": _time(record["started_at"]),
            "finished_at": _time(record["finished_at"]),
            "recipe": record["recipe_name"],
            "code_version": record["code_version"],
            "engine": record["engine"],
            "stages": [_run_stage(stage) for stage in record["stages"]],
            "state": record["state"],
            "recipe_resolved": json.dumps(record["recipe"], ensure_ascii=False),
            "versions": list((record.get("versions") or {}).items()),
        }
        for record in run_records(dataset)
    ]


def _run_stage(stage: StageRecord) -> dict[str, Any]:
    steps = [{"step": step["step"], "fingerprint": step["fingerprint"]} for step in stage["steps"]]
    places, served = stage.get("places") or {}, stage.get("served") or {}
    return {
        "stage": stage["stage"],
        "name": stage["name"],
        "fingerprint": steps[-1]["fingerprint"] if steps else None,
        "steps": steps,
        "score": stage["score"],
        "models": [
            {"setting": name, **model, "places": places.get(name), "served": served.get(name)}
            for name, model in stage["models"].items()
        ],
        "prompts": list(stage["prompts"].items()),
        "settings": json.dumps(stage["settings"], ensure_ascii=False),
        "gate": stage.get("gate"),
    }


def _subset_folders(dataset: Path) -> list[tuple[str, str]]:
    """Name and folder of every frozen subset; unfinished ones have a dot in their names."""
    return [
        (path.parent.name, str(path.parent))
        for path in subset_records(dataset)
        if any(path.parent.glob(SUBSET_CLIPS))
    ]


def _subset_rows(dataset: Path) -> list[dict[str, Any]]:
    rows = []
    for path in subset_records(dataset):
        values = read_json(path)
        row = {name: values.get(name) for name, _ in views.SUBSETS_VIEW}
        with reading(path):
            rows.append(
                {
                    **row,
                    "name": row["name"] or path.parent.name,
                    "created_at": _time(row["created_at"]),
                }
            )
            pa.Table.from_pylist(rows[-1:], pa.schema(list(views.SUBSETS_VIEW)))
    return rows


_TABLES: dict[str, tuple[Columns, Callable[[Path], list[dict[str, Any]]]]] = {
    "runs": (views.RUNS_VIEW, _run_rows),
    "subsets": (views.SUBSETS_VIEW, _subset_rows),
    "audits": (audit_views.AUDITS_VIEW, audit_views.audit_rows),
    "audit_labels": (audit_views.AUDIT_LABELS_VIEW, audit_views.audit_label_rows),
}


def _removed_rows(removals: Sequence[Tombstone]) -> list[dict[str, Any]]:
    """One row per video; if it was removed again, the last removal."""
    rows = {
        video: {"video_id": video, "reason": stone.reason, "at": stone.at}
        for stone in removals
        for video in stone.videos
    }
    return list(rows.values())


def _time(text: str | None) -> Any:
    from datetime import datetime

    return None if text is None else datetime.fromisoformat(text)
