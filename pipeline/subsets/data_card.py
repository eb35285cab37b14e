"""The data card of a frozen subset, as Markdown."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from clipmill.pipeline.dataset.audit_records import AuditRecord
from clipmill.pipeline.subsets.audited_rules import rule_of, said
from clipmill.pipeline.subsets.freeze import FrozenSubset
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.words import counted, plain_hours

_MOST = 15


def data_card(
    subset: FrozenSubset,
    since: Mapping[str, Any],
    ready_made: Path | None = None,
    audits: Sequence[AuditRecord] = (),
) -> str:
    """Describes a subset, how it was made, and what has become of its clips (`still_there`).

    `ready_made` is the folder of recipes that a command may name without a path; `audits` are
    those of its rules.
    """
    info = subset.info
    parts = [
        _head(info),
        "## How it was chosen\n\n" + _funnel(info),
        *_audits(info, audits),
        *_scorers(info),
        "## Contents\n\n"
        + "\n\n".join([_counts(name, info["counts"][name]) for name in info["counts"]]),
        "## Distributions\n\n" + _distributions(info["distributions"]),
        "## Changes since\n\n" + _since(since),
        "## How to make it again\n\n" + _again(subset, ready_made),
    ]
    return "\n\n".join(parts) + "\n"


def _head(info: Mapping[str, Any]) -> str:
    catalog = info["catalog"]
    lines = [
        f"- {counted(info['n_clips'], 'clip')} of {counted(info['n_videos'], 'video')}, "
        f"{plain_hours(info['hours'])}",
        f"- chosen from {counted(catalog['clips'], 'clip')} of "
        f"{counted(catalog['videos'], 'video')}, {plain_hours(catalog['hours'])}",
        f"- recipe: {info['recipe']}"
        + (f", which extends {', '.join(info['extends'])}" if info["extends"] else ""),
    ]
    if info["source"]:
        lines.append(f"- source of the recipe: {_text(info['source'])}")
    if not info["verified"]:
        lines.append("- unverified: the publication itself doesn't state all of the recipe")
    if info["parameters"]:
        lines.append(
            "- parameters: "
            + ", ".join(f"{name} = {value}" for name, value in info["parameters"].items())
        )
    lines += [
        f"- seed: {info['seed']}",
        f"- hash over the sorted clip ids: `{info['hash']}`",
        f"- catalog snapshot: `{info['snapshot']}`"
        + (", read while a run was writing" if catalog["written_meanwhile"] else ""),
        f"- made {info['created_at'][:19].replace('T', ' ')} UTC by Clipmill "
        f"{info['code_version']}",
    ]
    said = f"{_text(info['description'])}\n\n" if info["description"] else ""
    return f"# {info['name']}\n\n{said}" + "\n".join(lines)


def _funnel(info: Mapping[str, Any]) -> str:
    catalog = info["catalog"]
    rows = [["", "the catalog", *_size(catalog), "", ""]]
    for rule in info["funnel"]:
        named = f"{_text(rule['name'])}: " if rule["name"] else ""
        rows.append(
            [
                rule["number"],
                f"{named}{rule['verb']} {_code(rule['says'])}",
                *_size(rule["remaining"]),
                f"{rule['took']['clips']:,}",
                f"{rule['took']['because_null']:,}",
            ]
        )
    table = _table(["", "rule", "clips", "videos", "hours", "removed", "missing value"], rows)
    found = [
        f"- rule {rule['number']}: {_code(one['column'])} {one['operator']} {one['value']:.6g}"
        for rule in info["funnel"]
        for one in rule["thresholds"]
    ]
    notes = [
        f"- rule {rule['number']}: {_text(note)}"
        for rule in info["funnel"]
        for note in rule["notes"]
    ]
    if regained := info.get("regained"):
        table += (
            f"\n\nOf these, {counted(regained['clips'], 'clip')}, "
            f"{plain_hours(regained['hours'])}, only thanks to a crop: export with "
            "`--media exact --crop safe`."
        )
    if published := info.get("published"):
        table += "\n\n" + _published(published)
    if found:
        table += "\n\nResulting thresholds:\n\n" + "\n".join(found)
    if notes:
        table += "\n\nNotes:\n\n" + "\n".join(notes)
    return table


def _published(published: Mapping[str, Any]) -> str:
    """The publication's funnel next to this one."""
    rows = [
        [
            _text(step["step"]),
            step["rule"] or "",
            f"{step['published_share']:.3g}%",
            "" if step["share"] is None else f"{step['share']:.3g}%",
        ]
        for step in published["steps"]
    ]
    mark = "" if published["verified"] else ", unverified"
    return (
        f"The publication's own funnel, of {_text(published['of'])} "
        f"({_text(published['source'])}{mark}):\n\n"
    ) + _table(["published step", "rule", "left there", "left here"], rows)


def _scorers(info: Mapping[str, Any]) -> list[str]:
    lines = []
    for role, scorer in info["scorers"].items():
        if scorer["waived"]:
            checked = "accepted without a check that it is the recipe's scorer"
        else:
            checked = f"checked to be {scorer['name']}"
        made = [f"column {_code(scorer['column'])}"]
        if scorer["label"]:
            made.append(f"stage {_code(scorer['label'])} (fingerprint {scorer['fingerprint']})")
        models = [
            f"  - {setting}: {_text(model['reference'])}"
            + (f" @ {model['revision']}" if model.get("revision") else "")
            + (f", {_text(model['identity'])}" if model.get("identity") else "")
            for setting, model in scorer["models"].items()
        ]
        lines += [f"- {_code(role)}: {', '.join(made)}; {checked}", *models]
    return ["## Scorers\n\n" + "\n".join(lines)] if lines else []


def _audits(info: Mapping[str, Any], audits: Sequence[AuditRecord]) -> list[str]:
    """What people's labels say about the thresholds of the rules."""
    if not audits:
        return []
    rows = []
    notes = []
    for audit in audits:
        found, number = audit.audited, rule_of(info, audit)
        rows.append(
            [
                number,
                _code(audit.comparison),
                f"{audit.labelled:,} of {len(audit.sample):,}",
                said(found.precision),
                said(found.recall),
                (audit.updated_at or audit.created_at)[:10],
                _text(", ".join(audit.labelled_by) or "–"),
            ]
        )
        asks = f"“{_text(audit.question)}”, " if audit.question else ""
        notes.append(
            f"- rule {number}: {asks}audit {_code(audit.name)}, over "
            f"{counted(audit.population.clips, 'clip')} of catalog snapshot "
            f"`{audit.snapshot}`"
        )
    table = _table(
        ["rule", "threshold", "labelled", "precision", "recall", "on", "labelled by"], rows
    )
    return [
        "## Audits\n\nPrecision is the share of the clips that the threshold keeps that people "
        "said yes to, and recall the share of all that deserve a yes that it keeps; with 95% "
        f"intervals.\n\n{table}\n\n" + "\n".join(notes)
    ]


def _counts(name: str, counts: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        ["unknown" if row[name] is None else _text(row[name]), *_size(row)]
        for row in counts[:_MOST]
    ]
    rest = counts[_MOST:]
    if rest:
        rows.append(
            [
                f"{len(rest):,} more",
                f"{sum(row['clips'] for row in rest):,}",
                f"{sum(row['videos'] for row in rest):,}",
                f"{sum(row['hours'] for row in rest):,.2f}",
            ]
        )
    return _table([name, "clips", "videos", "hours"], rows)


def _distributions(found: Mapping[str, Mapping[str, Any]]) -> str:
    names = ["min", "p05", "p25", "median", "p75", "p95", "max"]
    rows = [
        [name, f"{values['clips']:,}", *(f"{values[key]:.4g}" for key in names)]
        for name, values in found.items()
    ]
    return _table(["", "clips with a value", *names], rows)


def _since(since: Mapping[str, Any]) -> str:
    lines = []
    if since["removed"]:
        lines.append(
            f"- {since['removed']:,} of its clips are of videos that have been removed; "
            "exports leave them out"
        )
    if since["not_in_catalog"]:
        lines.append(
            f"- {since['not_in_catalog']:,} of its clips are no longer in the catalog, "
            "which shows what the newest run made"
        )
    if since["changed_steps"]:
        lines.append("- these steps have been run again: " + ", ".join(since["changed_steps"]))
    return "\n".join(lines) or "All of its clips are in the catalog, unchanged."


def _again(subset: FrozenSubset, ready_made: Path | None) -> str:
    info = subset.info
    dataset = subset.folder.parent.parent.absolute()
    where, written = info.get("where"), _to_write(info, ready_made)
    if where:
        recipe = ["--where", where]
    elif written:
        recipe = [f"./{info['recipe_files'][0]['name']}"]
    else:
        recipe = [Path(info["recipe_files"][0]["name"]).stem]
    words = [
        "clipmill",
        "subset",
        "create",
        str(dataset),
        *recipe,
        "--name",
        info["name"],
        "--seed",
        str(info["seed"]),
    ]
    for override in info["overrides"]:
        words += ["--set", override]
    command = shlex.join(words)
    if written:
        # In a separate folder, so that no file with that name is overwritten.
        command = "\n".join(['(cd "$(mktemp -d)"', *written, f"{command})"])
    files = [f"`{file['name']}`:\n\n{_fenced(file['text'])}" for file in info["recipe_files"]]
    return (
        f"{_fenced(command, 'sh')}\n\n"
        "On the same catalog this gives the same hash, and so there is nothing to do. The recipe, "
        "as written:\n\n"
        "was:\n\n"
        + "\n\n".join(files)
        + "\n\nIts rules with all parameters filled in:\n\n"
        + _fenced(
            yaml.safe_dump({"rules": info["rules"]}, sort_keys=False, allow_unicode=True, width=90)
        )
    )


def _to_write(info: Mapping[str, Any], ready_made: Path | None) -> list[str]:
    """Shell commands that write the recipe's files; none if it is ready-made and unchanged."""
    files = info["recipe_files"]
    if info.get("where") or (
        ready_made is not None
        and all(_holds(ready_made / file["name"], file["text"]) for file in files)
    ):
        return []
    found = []
    for file in files:
        ending = "END"
        while ending in file["text"].splitlines():
            ending += "_"
        text = file["text"] if file["text"].endswith("\n") else file["text"] + "\n"
        found.append(f"cat > {shell_word(file['name'])} <<'{ending}'\n{text}{ending}")
    return found


def _holds(path: Path, text: str) -> bool:
    return path.is_file() and path.read_text("utf-8") == text


def _size(row: Mapping[str, Any]) -> list[str]:
    return [f"{row['clips']:,}", f"{row['videos']:,}", f"{row['hours']:,.2f}"]


def _table(names: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """An aligned table that also reads well as text; columns that start with a letter are
    left-aligned."""
    lines = [list(names), *[[str(value) for value in row] for row in rows]]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(names))]
    left = [
        any(line[i][:1].isalpha() or line[i][:1] == "`" for line in lines[1:])
        for i in range(len(names))
    ]

    def row(cells: Sequence[str]) -> str:
        padded = (
            cell.ljust(width) if is_left else cell.rjust(width)
            for cell, width, is_left in zip(cells, widths, left, strict=True)
        )
        return f"| {' | '.join(padded)} |"

    rule = "|".join(
        "-" * (width + 2) if is_left else "-" * (width + 1) + ":"
        for width, is_left in zip(widths, left, strict=True)
    )
    return "\n".join([row(lines[0]), f"|{rule}|", *map(row, lines[1:])])


def _text(value: Any) -> str:
    """Text from anywhere as one line that Markdown doesn't interpret."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    for sign in "\\`*_[]<>|":
        line = line.replace(sign, "\\" + sign)
    return line


def _code(value: Any) -> str:
    line = " ".join(str(value).split()).replace("|", "\\|")
    return f"`` {line} ``" if "`" in line else f"`{line}`"


def _fenced(text: str, language: str = "yaml") -> str:
    fence = "```"
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"
