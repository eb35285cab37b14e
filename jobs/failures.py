"""`clipmill failures`: what failed and why, and the commands that help."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import clipmill
from clipmill.jobs.lines_below import when_to_retry
from clipmill.jobs.sql import answer
from clipmill.pipeline.dataset.run_records import latest_run, of_no_download, run_records
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.sql_text import literal
from clipmill.schemas.words import counted


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
    with clipmill.open(dataset) as opened:
        lists = _lists_read_again(dataset)
        again = " ".join(f"WHEN {literal(place)} THEN {literal(by)}" for place, by in lists.items())
        listed = (
            "SELECT source_key, any_value(listed_in) AS listed_in, CASE any_value(listed_in) "
            f"{again or 'WHEN NULL THEN NULL'} END AS again FROM sources "
            "WHERE listed_in IS NOT NULL GROUP BY source_key"
        )
        answer(
            opened,
            f"SELECT {columns} FROM {'failures_all' if history else 'failures'} AS f "
            f"LEFT JOIN ({listed}) AS listed ON f.stage = 'ingest' AND listed.source_key = f.key "
            f'WHERE {condition} ORDER BY stage, "at" DESC, key',
            format,
            output,
        )
        of_others = of_no_download(latest_run(dataset))
        standing = opened.sql(
            f"SELECT kind, count(*), count(*) FILTER ({of_others}) FROM failures "
            f"WHERE {condition} AND stage <> 'ingest' GROUP BY kind ORDER BY kind"
        ).fetchall()
        unread = opened.sql(
            f"SELECT again, count(*) FROM failures AS f LEFT JOIN ({listed}) AS l "
            f"ON l.source_key = f.key WHERE {condition} AND f.stage = 'ingest' "
            "GROUP BY again ORDER BY again"
        ).fetchall()
    sys.stdout.flush()  # the rows before the commands, if both go to the same place
    for kind, count, after in standing:
        print(
            f"{command}{kind}  # tries {'it' if count == 1 else f'these {count:,}'} again; "
            f"{when_to_retry(kind, count, after)}",
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
