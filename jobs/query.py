"""Commands that query a dataset: `sql`, `status`, `failures` and `runs`."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.jobs.formats import write_rows
from clipmill.jobs.lines_below import WHEN_TO_RETRY, lines_below
from clipmill.pipeline.catalog import views
from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.user_sql import readable_errors
from clipmill.pipeline.dataset.run_records import run_records
from clipmill.pipeline.engine.interrupts import ended_by_interrupts
from clipmill.pipeline.exports.output_places import check_output
from clipmill.pipeline.ingest.list_counts import ListCounts
from clipmill.pipeline.status import status_report
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ERROR_KINDS, UsageError
from clipmill.schemas.sql_text import literal, quoted
from clipmill.schemas.words import counted, plain_hours, plain_time

if TYPE_CHECKING:
    from rich.console import Console

HELP = """Type a query and end it with a semicolon, for example
  SELECT clip_id, caption, similarity FROM clips ORDER BY similarity DESC LIMIT 5;
.tables  the views and their columns    .help  this help    .quit (or Ctrl-D)  ends"""


def run_sql(
    dataset: Path,
    query: str | None,
    *,
    file: Path | None = None,
    format: str = "table",
    output: Path | None = None,
    allow_external: bool = False,
    memory_limit: str | None = None,
) -> None:
    """Answers one query; if none is given, reads it from a pipe or prompts on a terminal."""
    if query is not None and file is not None:
        raise UsageError("give a query or --file, not both")
    if file is not None:
        if not file.is_file():
            raise UsageError(f"--file {file}: no such file")
        query = file.read_text(encoding="utf-8")
    if query is None and not sys.stdin.isatty():
        query = sys.stdin.read()
    if query is None:
        if output is not None:
            raise UsageError("--output needs a query; give one, or --file FILE")
        prompt(dataset, format=format, allow_external=allow_external, memory_limit=memory_limit)
        return
    with open_catalog(dataset, allow_external=allow_external, memory_limit=memory_limit) as catalog:
        answer(catalog, query, format, output)


def answer(catalog: Catalog, query: str, format: str, output: Path | None = None) -> None:
    """Runs one typed query and prints its rows."""
    check_output(catalog.layout.dataset, output)
    with readable_errors(), catalog.bounded(), ended_by_interrupts():
        write_rows(catalog.ask(query), format, output)


def prompt(
    dataset: Path,
    *,
    format: str = "table",
    allow_external: bool = False,
    memory_limit: str | None = None,
) -> None:
    """Prompts for queries until the end of input; an error does not end it.

    Each query sees the current dataset, so a run may be active.
    """
    from prompt_toolkit import PromptSession
    from prompt_toolkit.history import InMemoryHistory

    from clipmill.schemas.errors import ClipmillError

    # Reports wrong folders and limits immediately.
    open_catalog(dataset, allow_external=allow_external, memory_limit=memory_limit).close()
    session: PromptSession[str] = PromptSession(history=InMemoryHistory())
    print(f"{dataset}: .help for help, .tables for the views, Ctrl-D to end.", file=sys.stderr)
    lines: list[str] = []
    while True:
        try:
            line = session.prompt("clipmill> " if not lines else "     ...> ")
        except KeyboardInterrupt:
            lines = []
            continue
        except EOFError:
            return
        if not lines and not line.strip():
            continue
        if not lines and line.strip().startswith("."):
            if line.strip() in (".quit", ".exit"):
                return
            _dot_command(dataset, line.strip(), allow_external)
            continue
        lines.append(line)
        if not line.rstrip().endswith(";"):
            continue
        query, lines = "\n".join(lines), []
        try:
            with open_catalog(
                dataset, allow_external=allow_external, memory_limit=memory_limit
            ) as catalog:
                answer(catalog, query, format)
        except ClipmillError as error:
            print(f"Error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)


def _dot_command(dataset: Path, command: str, allow_external: bool) -> None:
    if command != ".tables":
        unknown = "" if command == ".help" else f"{command} is unknown.\n"
        print(unknown + HELP, file=sys.stderr)
        return
    with open_catalog(dataset, allow_external=allow_external) as catalog:
        names = [*views.VIEWS, *(f"steps.{table.step}" for table in catalog.layout.steps)]
        for name in names:
            shown = ".".join(map(quoted, name.split(".", 1)))
            columns = catalog.execute(f"SELECT * FROM {shown} LIMIT 0").description
            print(f"{name}: {', '.join(column[0] for column in columns)}")


def print_failures(
    dataset: Path,
    *,
    kinds: Sequence[str] = (),
    format: str = "table",
    output: Path | None = None,
    history: bool = False,
) -> None:
    """The current failures, newest first within a stage; with `history` all failures ever.

    A table shows the readable columns; other formats have all of them, and the command that
    retries a row, null if there is none. Remedies go to standard error: a retry for rows that a
    stage failed; for rows that never became a source, fixing their list and reading it again.
    """
    for kind in kinds:
        if kind not in ERROR_KINDS:
            raise UsageError(f"--kind {kind}: allowed: {', '.join(ERROR_KINDS)}")
    wanted = ", ".join(map(literal, kinds))
    condition = f"kind IN ({wanted})" if kinds else "true"
    command = f"clipmill retry {shell_word(dataset)} --kind "
    retry = f"if(stage = 'ingest', listed.again, {literal(command)} || kind)"
    columns = f"f.*, {retry} AS retry"
    if history:
        columns = f"f.*, if(resolved, NULL, {retry}) AS retry"
    if format == "table":
        # The most useful columns that fit; a source's address says more than its hash.
        columns = (
            "stage, kind, attempts, coalesce(if(video_id IS NULL, url, key), "
            "listed.listed_in) AS what, "
        )
        columns += (
            "message, resolved"
            if history
            else "message || if(first_message <> message, ' (at first: ' || first_message || "
            "')', '') AS message"
        )
    with open_catalog(dataset) as catalog:
        lists = _lists_read_again(dataset)
        again = " ".join(f"WHEN {literal(place)} THEN {literal(by)}" for place, by in lists.items())
        listed = (
            "SELECT source_key, any_value(listed_in) AS listed_in, CASE any_value(listed_in) "
            f"{again or 'WHEN NULL THEN NULL'} END AS again FROM sources "
            "WHERE listed_in IS NOT NULL GROUP BY source_key"
        )
        answer(
            catalog,
            f"SELECT {columns} FROM {'failures_all' if history else 'failures'} AS f "
            f"LEFT JOIN ({listed}) AS listed ON f.stage = 'ingest' AND listed.source_key = f.key "
            f'WHERE {condition} ORDER BY stage, "at" DESC, key',
            format,
            output,
        )
        standing = catalog.execute(
            f"SELECT kind, count(*) FROM failures WHERE {condition} AND stage <> 'ingest' "
            "GROUP BY kind ORDER BY kind"
        ).fetchall()
        unread = catalog.execute(
            f"SELECT again, count(*) FROM failures AS f LEFT JOIN ({listed}) AS l "
            f"ON l.source_key = f.key WHERE {condition} AND f.stage = 'ingest' "
            "GROUP BY again ORDER BY again"
        ).fetchall()
    sys.stdout.flush()  # the rows before the commands, if both go to the same place
    for kind, count in standing:
        print(
            f"{command}{kind}  # tries {'it' if count == 1 else f'these {count:,}'} again; "
            f"{WHEN_TO_RETRY[kind]}",
            file=sys.stderr,
        )
    for by, count in unread:
        print(_about_ingest(by, count), file=sys.stderr)


def _about_ingest(command: str | None, count: int) -> str:
    """Remedies for rows that never became sources, which can't be retried."""
    some = counted(count, "row")
    if command is not None:
        return f"{command}  # after fixing the list: {some} of it gave no source"
    return (
        f"# {some} failed at ingest, which no retry changes: fix the list, or wait "
        "for its site, then run its recipe or its import again as before"
    )


def _lists_read_again(dataset: Path) -> dict[str, str]:
    """The command that reads a list again, if a run was given the list without settings.

    Its recipe is the newest run's, which `clipmill run` uses by default.
    """
    from clipmill.pipeline.ingest.source_rows import list_of
    from clipmill.pipeline.ingest.source_spec import SourceSpec

    found = {}
    for record in run_records(dataset):
        recipe = record["recipe"]
        for item in recipe.get("sources", ()):
            if not item.get("path"):
                continue
            alone = SourceSpec(path=item["path"])
            plain = alone.model_dump(mode="json")
            place = list_of(alone, Path(recipe["folder"]))
            if place is not None and all(plain.get(name) == item[name] for name in item):
                found[place] = (
                    f"clipmill run --dataset {shell_word(dataset)} --sources {shell_word(place)}"
                )
    return found


def print_runs(dataset: Path, *, format: str = "table", output: Path | None = None) -> None:
    """The runs, oldest first; as a table without the settings."""
    columns = "*"
    if format == "table":
        columns = (
            "run_id, strftime(started_at, '%Y-%m-%d %H:%M') AS started_at, "
            "round(epoch(finished_at - started_at), 1) AS seconds, state, recipe, engine, "
            "code_version, array_to_string(list_sort(list_distinct([regexp_replace(m.reference, "
            "'^.*/([^/]+/[^/]+)$', '\\1') || coalesce('@' || m.revision, '') "
            "FOR m IN flatten([s.models FOR s IN stages]) IF m.reference IS NOT NULL])), ', ') "
            "AS models"
        )
    with open_catalog(dataset) as catalog:
        answer(catalog, f"SELECT {columns} FROM runs ORDER BY started_at", format, output)


def print_status(dataset: Path, format: str = "table") -> None:
    """The accounting of every stage, on standard output."""
    report = status_report(dataset)
    if format == "json":
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    if format != "table":
        raise UsageError(f"--format {format}: allowed: table, json")
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    _print_status(report, console)


def _print_status(report: dict[str, Any], console: Console) -> None:
    from rich.table import Table

    run = report["run"]
    said = "no run yet" if run is None else f"run {run['run_id']}, {run['state']}"
    console.print(f"{report['dataset']}: {said}", markup=False, soft_wrap=True)
    if report["moved_at"] is not None:
        moved = datetime.fromisoformat(report["moved_at"])
        still = max(0.0, (datetime.now(UTC) - moved).total_seconds())
        console.print(
            f"a command is running; last progress {plain_time(still)} ago, at "
            f"{moved:%Y-%m-%d %H:%M:%S} UTC",
            soft_wrap=True,
        )
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 0, 0, 1))
    table.add_column("stage", no_wrap=True)
    for name in ("inputs", "kept", "rejected", "failed", "pending", "shards", "seconds", "rows/s"):
        table.add_column(name, justify="right", no_wrap=True)
    ingest = report["ingest"]
    columns = ("inputs", "kept", "rejected", "failed")
    table.add_row(
        "ingest",
        *(str(ingest[name]) for name in columns),
        "",
        str(ingest["shards"]),
        "",
        "",
        style="dim",
    )
    for stage in report["stages"]:
        rate = stage["rows_per_second"]
        table.add_row(
            stage["stage"],
            *(str(stage[name]) for name in (*columns, "pending")),
            f"{stage['shards_done']}/{stage['shards_total']}",
            f"{stage['seconds']:.1f}",
            "" if rate is None else f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}",
            style=None if stage["accounted"] else "bold red",
        )
    for counts in report["lists"]:
        console.print(ListCounts(**counts).describe(), markup=False, soft_wrap=True)
    # A truncated number is worse than a wrapped line.
    console.width = max(console.width, console.measure(table).maximum)
    console.print(table)
    totals = report["totals"]
    console.print(
        f"{counted(totals['videos'], 'video')}, {counted(totals['clips'], 'clip')}, "
        f"{plain_hours(totals['hours'])}"
    )
    if totals["source_frames"]:
        ratio = totals["decoded_frames"] / totals["source_frames"]
        console.print(
            f"{counted(totals['decoded_frames'], 'frame')} decoded for "
            f"{counted(totals['source_frames'], 'frame')} of source video: {ratio:.3f}"
        )
    wrong = [stage for stage in report["stages"] if not stage["accounted"]]
    if wrong:
        for stage in wrong:
            console.print(
                f"ACCOUNTING IS BROKEN at {stage['stage']}: {stage['inputs']} inputs, but "
                f"{stage['kept']} kept + {stage['rejected']} rejected + {stage['failed']} failed; "
                f"{counted(stage['lost'], 'key')} without an outcome.",
                style="bold red",
            )
    elif report["stages"] and not any(stage["pending"] for stage in report["stages"]):
        console.print("Every input is kept, rejected or failed, at every stage.")
    for line in lines_below(report):
        # A command stays on one line, so that it can be copied.
        console.print(
            line, markup=False, soft_wrap=line.startswith("  ") or not console.is_terminal
        )
