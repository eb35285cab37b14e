"""`clipmill status`: the accounting of every stage."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, cast

import clipmill
from clipmill.jobs.lines_below import lines_below
from clipmill.jobs.whole_tables import print_whole
from clipmill.pipeline.ingest.list_counts import ListCounts
from clipmill.schemas.words import counted, plain_hours, plain_time

if TYPE_CHECKING:
    from clipmill import IngestStatus, StageStatus, Status


def print_status(dataset: Path, format: str = "table", *, cost: bool = False) -> None:
    """The accounting of every stage, on standard output; with `cost`, what it has cost, too."""
    opened = clipmill.open(dataset)
    report = opened.status()
    costs = opened.cost() if cost else None
    if format == "json":
        added = {} if costs is None else {"cost": costs}
        print(json.dumps({**report, **added}, indent=2, ensure_ascii=False))
        return
    show_status(report)
    if costs is not None:
        from clipmill.jobs.bill import show_cost

        show_cost(costs)


def show_status(report: Status) -> None:
    """The table of stages, and below it the reasons and what to do."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
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
    names = ["inputs", "kept", "rejected", "failed"]
    if skips := any(stage["skipped"] for stage in report["stages"]):
        names.append("skipped")  # without gates and choices, 80 columns are enough
    for name in (*names, "pending", "shards", "seconds", "rows/s"):
        table.add_column(name, justify="right", no_wrap=True)
    ingest = report["ingest"]
    table.add_row("ingest", *_counts(ingest, names), "", str(ingest["shards"]), "", "", style="dim")
    for stage in report["stages"]:
        rate = stage["rows_per_second"]
        table.add_row(
            stage["stage"],
            *_counts(stage, names),
            str(stage["pending"]),
            f"{stage['shards_done']}/{stage['shards_total']}",
            f"{stage['seconds']:.1f}",
            "" if rate is None else f"{rate:.0f}" if rate >= 100 else f"{rate:.3g}",
            style=None if stage["accounted"] else "bold red",
        )
    for counts in report["lists"]:
        console.print(ListCounts(**counts).describe(), markup=False, soft_wrap=True)
    print_whole(console, table)
    totals = report["totals"]
    console.print(
        f"{counted(totals['videos'], 'video')}, {counted(totals['clips'], 'clip')}, "
        f"{plain_hours(totals['hours'])}"
    )
    if totals["published"]:
        console.print(f"{counted(totals['published'], 'published clip')} without media so far")
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
                f"{stage['kept']} kept + {stage['rejected']} rejected + {stage['failed']} failed "
                f"+ {stage['skipped']} skipped + {stage['pending']} pending; "
                f"{counted(stage['lost'], 'key')} without an outcome.",
                style="bold red",
            )
    elif report["stages"] and not any(stage["pending"] for stage in report["stages"]):
        words = "kept, rejected, failed or skipped" if skips else "kept, rejected or failed"
        console.print(f"Every input is {words}, at every stage.")
    for line in lines_below(report):
        # A command stays on one line, so that it can be copied.
        console.print(
            line, markup=False, soft_wrap=line.startswith("  ") or not console.is_terminal
        )


def _counts(row: IngestStatus | StageStatus, names: list[str]) -> list[str]:
    return [str(cast("dict[str, int]", row)[name]) for name in names]
