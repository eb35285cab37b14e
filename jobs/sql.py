"""`clipmill sql`: queries a dataset's views, or prompts for queries."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import clipmill
from clipmill.jobs.formats import write_rows
from clipmill.pipeline.engine.interrupts import ended_by_interrupts
from clipmill.pipeline.exports.output_places import check_output
from clipmill.schemas.errors import UsageError

if TYPE_CHECKING:
    from clipmill import Dataset

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
    with clipmill.open(dataset, allow_external=allow_external, memory_limit=memory_limit) as opened:
        answer(opened, query, format, output)


def answer(opened: Dataset, query: str, format: str, output: Path | None = None) -> None:
    """Runs one query and prints its rows."""
    check_output(opened.path, output)
    with ended_by_interrupts(), opened.stream(query) as rows:
        write_rows(rows, format, output)


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

    reopen = partial(
        clipmill.open, dataset, allow_external=allow_external, memory_limit=memory_limit
    )
    with reopen() as opened:
        opened.sql("SELECT 1")  # wrong folders and limits are reported at once
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
            _dot_command(reopen, line.strip())
            continue
        lines.append(line)
        if not line.rstrip().endswith(";"):
            continue
        query, lines = "\n".join(lines), []
        try:
            with reopen() as opened:
                answer(opened, query, format)
        except ClipmillError as error:
            print(f"Error: {error}", file=sys.stderr)
        except KeyboardInterrupt:
            print("Stopped.", file=sys.stderr)


def _dot_command(reopen: Callable[[], Dataset], command: str) -> None:
    if command != ".tables":
        unknown = "" if command == ".help" else f"{command} is unknown.\n"
        print(unknown + HELP, file=sys.stderr)
        return
    with reopen() as opened:
        for name, columns in opened.views().items():
            print(f"{name}: {', '.join(columns)}")
