"""Prints estimates and costs: `run --dry-run` and `status --cost`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipmill import Bill, Cost, Range
from clipmill.jobs.whole_tables import print_whole
from clipmill.pipeline.costs.words import UNKNOWN, plain_count, plain_money, shown, totals_in_words
from clipmill.schemas.words import counted, plain_hours, plain_size, plain_time

_PIPE_WIDTH = 200
_AMOUNTS: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("cpu_seconds", "CPU", plain_time),
    ("gpu_seconds", "GPU", plain_time),
    ("requests", "requests", plain_count),
    ("tokens_in", "tokens in", plain_count),
    ("tokens_out", "tokens out", plain_count),
    ("downloaded_bytes", "downloaded", plain_size),
    ("written_bytes", "written", plain_size),
)
"""Amounts with their headings; a column is shown if any stage has something in it."""


def _console() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def show_plan(found: Bill) -> None:
    """The plan, stage by stage, and what it comes to."""
    console = _console()
    console.print(f"{found.dataset}: nothing is done by a dry run", markup=False, soft_wrap=True)
    if not found.has_work:
        console.print("Nothing to do: every shard of every stage is committed.")
        return
    videos = shown(found.videos, plain_count)
    length = shown(found.hours, plain_hours)
    console.print(
        f"To do: {counted(found.sources, 'source')}, which give {videos} videos of {length}"
        if found.sources
        else "To do: no new sources",
        markup=False,
        soft_wrap=True,
    )
    if found.engine is not None:
        why = "" if found.engine_reason is None else f" (auto: {found.engine_reason})"
        console.print(f"Engine: {found.engine}{why}", markup=False, soft_wrap=True)
    columns = [
        (name, heading, words)
        for name, heading, words in _AMOUNTS
        if any(
            (amount := stage.amounts.get(name)) is not None and amount.value
            for stage in found.stages
        )
    ]
    table = _table("stage", "shards", "rows", "gate lets in", "kept", "outputs", "worker time")
    for _, heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    if found.currency:
        table.add_column("money", justify="right", no_wrap=True)
    for stage in found.stages:
        outputs = stage.outputs
        if outputs is not None and stage.kept is not None and outputs.value == stage.kept.value:
            outputs = None
        cells = [
            stage.stage,
            f"{stage.shards:,}",
            shown(stage.rows, plain_count),
            shown(stage.passed, plain_count) if stage.has_gate else "",
            shown(stage.kept, plain_count),
            shown(outputs, plain_count) if outputs is not None else "",
            shown(stage.seconds, plain_time),
            *(_nothing_if_zero(stage.amounts.get(name), words) for name, _, words in columns),
        ]
        if found.currency:
            cells.append(_money(stage.money, found.currency))
        table.add_row(*cells)
    print_whole(console, table)
    if parts := totals_in_words(found):
        label = "In all" if not found.unknown else "What is known of it"
        console.print(f"{label}: {', '.join(parts)}.", markup=False, soft_wrap=True)
    if found.wall_seconds is None and not found.unknown:
        console.print("How long it takes depends on the cluster, which a dry run doesn't ask.")
    for line in _where_rates_come_from(found):
        console.print(line, markup=False, soft_wrap=True)


def _where_rates_come_from(found: Bill) -> list[str]:
    lines = []
    if measured := [stage for stage in found.stages if stage.measured_on]:
        others = {s.measured_on for s in measured if s.measured_on != "this dataset"}
        lines.append(
            f"{found.method[0].upper()}{found.method[1:]}."
            + (f" Rates come from {', '.join(sorted(filter(None, others)))}." if others else "")
        )
        if few := [s.stage for s in measured if s.kept is not None and s.kept.low is None]:
            lines.append(f"Measured on too few shards for a range: {', '.join(few)}.")
    if found.unknown:
        lines.append(
            f"Unknown ({UNKNOWN}), because never run here: {', '.join(found.unknown)}. "
            "`run --sample 200` runs everything on 200 random videos first, and --rates DATASET "
            "takes the rates of another dataset."
        )
    return lines


def show_cost(cost: Cost) -> None:
    """What was spent, per stage and per 1,000 kept clips, and what the next 1,000 would cost."""
    console = _console()
    stages = [*cost["stages"], cost["totals"]]
    columns = [
        (name, heading, words)
        for name, heading, words in _AMOUNTS
        if any(_has(s, name) for s in stages)
    ]
    table = _table("cost", "", "worker time")
    for _, heading, _ in columns:
        table.add_column(heading, justify="right", no_wrap=True)
    currency = cost["currency"]
    if currency:
        table.add_column("money", justify="right", no_wrap=True)

    def row(label: str, what: str, amounts: Mapping[str, Any], style: str = "") -> None:
        cells = [
            _amount(amounts.get(name), words)
            for name, _, words in (("seconds", "", plain_time), *columns)
        ]
        if currency:
            cells.append(_amount(amounts.get("money"), lambda value: plain_money(value, currency)))
        table.add_row(label, what, *cells, style=style)

    for stage in cost["stages"]:
        row(stage["stage"], "spent", stage["spent"])
    totals = cost["totals"]
    row("all stages", "spent", totals["spent"], "bold")
    if cost["kept_clips"]:
        row("", "per 1,000 kept clips", totals["per_1000"])
        row("", "the next 1,000", totals["next_1000"])
    console.print()
    print_whole(console, table)
    console.print(f"{counted(cost['kept_clips'], 'clip')} kept by every stage.")
    if cost["unmeasured_shards"]:
        console.print(
            f"{counted(cost['unmeasured_shards'], 'shard')} of earlier versions measured only "
            "time: what they used beside it is not included."
        )


def _has(stage: Mapping[str, Any], name: str) -> bool:
    return bool(stage["spent"].get(name))


def _amount(amount: Any, words: Callable[[float], str]) -> str:
    if amount is None:
        return UNKNOWN
    if isinstance(amount, Mapping):
        return shown(Range(**amount), words)
    return words(amount)


def _nothing_if_zero(found: Range | None, words: Callable[[float], str]) -> str:
    return "" if found is not None and not found.value else shown(found, words)


def _money(found: Range | None, currency: str) -> str:
    return shown(found, lambda value: plain_money(value, currency))


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 0, 0, 1))
    table.add_column(first, no_wrap=True)
    for name in others:
        table.add_column(Text(name), justify="right", no_wrap=True)
    return table
