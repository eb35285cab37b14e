"""Shows what `subset explain` adds to a funnel: rules, published shares, scores, recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.text import Text

from clipmill.jobs.funnel import one_line, terminal
from clipmill.schemas.words import counted, plain_hours

_SHOWN_PAIRS = 15
_MATRIX_NAME = 14


def print_worth(explained: Mapping[str, Any]) -> None:
    """What each rule is worth, whatever the order of the rules."""
    worth, rules = explained["worth"], explained["funnel"]
    if worth is None or not worth["loss"]["clips"]:
        return
    if sum(max(1, len(rule["worth"]["conditions"])) for rule in rules) < 2:
        return
    out = terminal()
    loss = worth["loss"]
    out.print(
        Text.assemble(
            ("What each rule is worth, in any order ", "bold"),
            f"(of {counted(loss['clips'], 'clip')}, {plain_hours(loss['hours'])} removed)",
        )
    )
    about = "sampled " if worth["method"] == "sampled" else ""
    table = [["removes alone", "removes only this", f"{about}share of the loss", ""]]
    for rule in rules:
        number, mine = f"{rule['number']} {rule['verb']}", rule["worth"]
        name, takes = one_line(rule["name"] or rule["says"]), rule["alone"]["takes"]["clips"]
        table.append(_worth_row(takes, mine, f"{number}  {name}"))
        table += [
            _worth_row(one["takes"], one, f"{' ' * len(number)}  and  {one_line(one['says'])}")
            for one in mine["conditions"]
        ]
    _print_columns(table)
    for note in worth["notes"]:
        out.print(Text(f"  Note: {one_line(note)}", style="dim"))
    out.print()


def _worth_row(takes: int, worth: Mapping[str, Any], name: str) -> list[str]:
    share = _share(100 * worth["share_of_loss"])
    return [f"{takes:,}", f"{worth['only']['clips']:,}", share, name]


def print_published(published: Mapping[str, Any] | None) -> None:
    """A publication's funnel next to one's own."""
    if published is None:
        return
    out = terminal()
    source = one_line(published["source"])
    mark = "" if published["verified"] else ", unverified"
    out.print(
        Text.assemble(
            ("Published funnel ", "bold"), f"of {one_line(published['of'])} ({source}{mark})"
        )
    )
    table = [["published", "here", ""]]
    for step in published["steps"]:
        number = f" (rule {step['rule']})" if step["rule"] else ""
        table.append(
            [
                _share(step["published_share"]),
                "–" if step["share"] is None else _share(step["share"]),
                f"{one_line(step['step'])}{number}",
            ]
        )
    _print_columns(table)
    out.print()


def print_correlations(found: Mapping[str, Any]) -> None:
    """The strongest correlations between scores."""
    out = terminal()
    clips, whole = found["clips"], found["of_clips"]
    drawn = f"{clips:,} of {counted(whole, 'clip')}" if clips < whole else counted(whole, "clip")
    out.print(Text.assemble(("Correlations between scores ", "bold"), f"(Spearman, {drawn})"))
    pairs = found["pairs"]
    if not pairs:
        out.print(Text("  The catalog has fewer than two scores.", style="dim"))
    else:
        table = [["", "clips with both", ""]]
        for pair in pairs[:_SHOWN_PAIRS]:
            value = pair["spearman"]
            table.append(
                [
                    "–" if value is None else f"{value:+.2f}",
                    f"{pair['clips']:,}",
                    f"{one_line(pair['columns'][0])} · {one_line(pair['columns'][1])}",
                ]
            )
        _print_columns(table)
        if len(pairs) > _SHOWN_PAIRS:
            more = len(pairs) - _SHOWN_PAIRS
            out.print(Text(f"  {more} weaker ones: --format json", style="dim"))
    out.print()


def print_agreement(found: Mapping[str, Any], clips: int) -> None:
    """What the ready-made recipes keep, how much of it is the same, and which lack columns."""
    out = terminal()
    out.print(Text.assemble(("Recipes on this catalog ", "bold"), f"({counted(clips, 'clip')})"))
    applied, pairs = found["applied"], found["pairs"]
    first = applied[0]["recipe"] if applied else ""
    shared = {pair["recipes"][1]: pair for pair in pairs if pair["recipes"][0] == first}
    table = [["kept", "of all", "published", "in both", "Jaccard", ""]]
    for number, one in enumerate(applied, 1):
        pair = shared.get(one["recipe"])
        published = ""
        if one["published_share"] is not None:
            mark = "" if one["published_verified"] else "unverified "
            published = f"{mark}{_share(one['published_share'])}"
        table.append(
            [
                f"{one['kept']['clips']:,}",
                _share(one["share"]),
                published,
                f"{pair['both']:,}" if pair else "",
                _jaccard(pair["jaccard"]) if pair else "",
                f"{number} {one_line(one['recipe'])}"
                + ("" if one["verified"] else " (unverified)"),
            ]
        )
    _print_columns(table)
    if len(applied) > 2:
        _print_matrix(applied, pairs)
    if found["unable"]:
        out.print(Text("These lack columns:", style="bold"))
        for one in found["unable"]:
            _print_unable(one)
        out.print(
            Text(
                "`clipmill subset explain`, given one of these, prints the command that adds them.",
                style="dim",
            )
        )
    out.print()


def _print_matrix(applied: Sequence[Mapping[str, Any]], pairs: Sequence[Mapping[str, Any]]) -> None:
    """The Jaccard index of every two recipes, as a triangle."""
    out = terminal()
    names = [one["recipe"] for one in applied]
    between = {tuple(pair["recipes"]): pair["jaccard"] for pair in pairs}
    fits = (out.width - _MATRIX_NAME - 6) // 5
    if len(names) - 1 > fits:
        out.print(Text("  Jaccard index of every two: --format json", style="dim"))
        return
    out.print(Text("Jaccard index of every two", style="bold"))
    heading = "".join(f"{number:5}" for number in range(1, len(names)))
    out.print(Text(f"  {'':{_MATRIX_NAME + 3}}{heading}", style="bold"), soft_wrap=True)
    for row, name in enumerate(names):
        cells = "".join(f"{_jaccard(between[other, name]):>5}" for other in names[:row])
        shown = name if len(name) <= _MATRIX_NAME else name[: _MATRIX_NAME - 1] + "…"
        out.print(Text(f"  {row + 1:2} {shown:{_MATRIX_NAME}}{cells}".rstrip()), soft_wrap=True)


def _print_unable(one: Mapping[str, Any]) -> None:
    own = [missing["column"] for missing in one["missing"] if missing["stage"] is None]
    said = [
        f"{missing['column']} ({missing['stage']})"
        for missing in one["missing"]
        if missing["stage"] is not None
    ]
    if own:
        said.append(f"{', '.join(own)} ({'a stage' if len(own) == 1 else 'stages'} of your own)")
    text = Text(f"  {one['recipe']}: ", style="cyan")
    text.append(one_line("; ".join(said) or one["message"]), style="default")
    terminal().print(text)


def _share(per_cent: float) -> str:
    return f"{per_cent:.3g}%"


def _jaccard(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


def _print_columns(table: Sequence[Sequence[str]]) -> None:
    """Right-aligned numbers, and a last column of text that may be cut off at the margin."""
    out = terminal()
    widths = [max(len(row[i]) for row in table) for i in range(len(table[0]) - 1)]
    for place, row in enumerate(table):
        numbers = "  ".join(cell.rjust(width) for cell, width in zip(row[:-1], widths, strict=True))
        line = Text(f"  {numbers}  {row[-1]}".rstrip(), style="" if place else "bold")
        line.truncate(max(out.width, sum(widths) + 20), overflow="ellipsis")
        out.print(line, soft_wrap=True)
