"""Shows a recipe's funnel, and the clips at its thresholds, in a terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipmill.schemas.words import counted, plain_hours

_PIPE_WIDTH = 200


def terminal() -> Console:
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=_PIPE_WIDTH)


def print_funnel(
    recipe: Mapping[str, Any], catalog: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]
) -> None:
    """Prints what a recipe is, and rule by rule how many clips remain.

    A rule's text is on a separate line, so that the numbers below stay in columns.
    """
    console = terminal()
    _print_head(console, recipe)
    alone = any("alone" in rule for rule in rules)
    names = ["clips", "of all", "videos", "hours", "removed", "missing value"]
    names += ["removes alone"] if alone else []
    lines = [[*_size(catalog, catalog), "", ""] + ([""] if alone else [])]
    for rule in rules:
        lines.append(
            [
                *_size(rule["remaining"], catalog),
                f"{rule['took']['clips']:,}",
                f"{rule['took']['because_null']:,}",
                *([f"{rule['alone']['takes']['clips']:,}"] if alone else []),
            ]
        )
    widths = [max(len(line[i]) for line in (names, *lines)) for i in range(len(names))]

    def row(cells: Sequence[str], style: str = "") -> None:
        text = "  ".join(cell.rjust(width) for cell, width in zip(cells, widths, strict=True))
        console.print(Text("  " + text.rstrip(), style=style), soft_wrap=True)

    row(names, "bold")
    console.print(Text("the catalog", style="cyan"))
    row(lines[0])
    for rule, line in zip(rules, lines[1:], strict=True):
        title = Text(f"{rule['number']} {rule['verb']}  ", style="bold cyan")
        if rule["name"]:
            title.append(f"{one_line(rule['name'])}: ", style="cyan")
        title.append(one_line(rule["says"]), style="default not bold")
        console.print(title)
        found = [
            f"{one_line(one['column'])} {one['operator']} {one['value']:.6g}"
            for one in rule["thresholds"]
        ]
        if rule["verb"] == "percentile" and found:
            console.print(Text("  that is " + " and ".join(found), style="dim"))
        row(line)
        if regained := rule.get("regained"):
            console.print(
                Text(
                    f"  of these, {counted(regained['clips'], 'clip')} "
                    f"({plain_hours(regained['hours'])}) only thanks to a crop",
                    style="dim",
                )
            )
        for note in rule["notes"]:
            console.print(Text(f"  Note: {one_line(note)}", style="yellow"))
        if not rule["remaining"]["clips"] and rule["took"]["clips"]:
            console.print(
                Text(
                    "  This rule removes the last clips: the subset would be empty.",
                    style="bold red",
                )
            )
    if regained := recipe.get("regained"):
        console.print(
            Text.assemble(
                ("Regained by cropping: ", "bold"),
                f"{counted(regained['clips'], 'clip')}, {plain_hours(regained['hours'])}, of those "
                "left; export with --media exact --crop safe",
            )
        )
    console.print()


def _print_head(console: Console, recipe: Mapping[str, Any]) -> None:
    title = Text(recipe["recipe"], style="bold")
    if recipe["description"]:
        title.append(f": {one_line(recipe['description'])}", style="not bold")
    console.print(title)
    if recipe["source"]:
        console.print(Text(f"source: {one_line(recipe['source'])}", style="dim"))
    if not recipe["verified"]:
        console.print(
            Text("unverified: the publication itself doesn't state all of it", style="yellow")
        )
    values = [f"{name}={value}" for name, value in recipe["parameters"].items()]
    console.print(Text(", ".join([f"seed {recipe['seed']}", *values]), style="dim"))
    for role, scorer in recipe["scorers"].items():
        made = f" of {scorer['label']}" if scorer["label"] else ""
        checked = (
            "accepted without a check"
            if scorer["waived"]
            else f"checked to be {one_line(scorer['name'])}"
        )
        console.print(
            Text(
                f"{role}: column {scorer['column']}{made}, {checked}",
                style="yellow" if scorer["waived"] else "dim",
            )
        )
    console.print()


def _size(row: Mapping[str, Any], catalog: Mapping[str, Any]) -> list[str]:
    share = 100 * row["clips"] / catalog["clips"] if catalog["clips"] else 0
    return [f"{row['clips']:,}", f"{share:.3g}%", f"{row['videos']:,}", f"{row['hours']:,.2f}"]


def print_near(rules: Sequence[Mapping[str, Any]]) -> None:
    """The clips on both sides of each threshold, the highest value first."""
    console = terminal()
    for rule in rules:
        for near in rule.get("near", ()):
            limit = f"{near['operator']} {near['value']:.6g}"
            title = Text(f"rule {rule['number']}: ", style="bold cyan")
            title.append(f"{one_line(near['column'])} {limit}", style="not bold default")
            console.print(title)
            table = _near_table(near)
            table.expand = console.is_terminal
            with console.capture() as captured:
                console.print(table)
            console.file.write("\n".join(map(str.rstrip, captured.get().splitlines())) + "\n\n")


def _near_table(near: Mapping[str, Any]) -> Table:
    above, below = near["inside"], near["outside"]
    if near["operator"].startswith("<"):
        above, below = below, above
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 1, 0, 1))
    table.add_column(justify="right", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", ratio=2)
    table.add_column(no_wrap=True, overflow="ellipsis", ratio=3)
    _add_clips(table, list(reversed(above)), "no clip above")
    table.add_row(Text("──────", style="cyan"), "", "", "")
    _add_clips(table, below, "no clip below")
    return table


def _add_clips(table: Table, clips: Sequence[Mapping[str, Any]], without: str) -> None:
    for clip in clips:
        word = Text("stays", style="green") if clip["stays"] else Text("goes", style="red")
        caption = "∅" if clip["caption"] is None else one_line(clip["caption"])
        table.add_row(
            Text(f"{clip['value']:.6g}"), word, Text(clip["clip_id"]), Text(caption, style="dim")
        )
    if not clips:
        table.add_row("", "", Text(without, style="dim"), "")


def one_line(value: Any) -> str:
    """One line, without characters that could control the terminal."""
    line = "".join(c if c.isprintable() else " " for c in str(value))
    return " ".join(line.split())
