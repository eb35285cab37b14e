"""`clipmill audit`: draws clips around a threshold, takes labels, prints precision and recall."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import clipmill
from clipmill.jobs.formats import plain
from clipmill.jobs.progress_bars import saying
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import UsageError, printable
from clipmill.schemas.words import counted

_COLUMNS = ("threshold", "precision", "recall", "clips kept")


def audit(
    dataset: Path,
    *,
    labels: Path | None = None,
    write: Path | None = None,
    page: Path | None = None,
    blind: bool = False,
    by: str | None = None,
    format: str = "table",
    memory_limit: str | None = None,
    **asked: Any,
) -> None:
    """Draws or opens an audit, labels it in the terminal or from a file, and prints what it says.

    Asks in the terminal only if nothing else is to be done with the sample.
    """
    if labels is not None and not labels.is_file():
        raise UsageError(f"--labels {labels}: no such file")
    with clipmill.open(dataset, memory_limit=memory_limit) as opened:
        with saying() as say:
            found = opened.audit(on_step=say, **asked)
        if labels is not None:
            taken = found.read_labels(labels, by=by)
            print(f"{labels}: {counted(taken, 'label')}", file=sys.stderr)
        if page is not None:
            _write_page(dataset, found, page, blind)
        if write is not None:
            found.write_template(write)
            print(
                f"{write}: {counted(len(found), 'clip')}; fill in the column label with yes or no, "
                f"then: clipmill audit {shell_word(dataset)} --name {found.name} --labels "
                f"{shell_word(write)}",
                file=sys.stderr,
            )
        in_terminal = sys.stdin.isatty() and sys.stdout.isatty()
        others = labels is not None or write is not None or format != "table"
        if found.unlabelled and not others:
            if in_terminal:
                from clipmill.jobs.audit_labelling import label_in_terminal

                label_in_terminal(opened, found, blind=blind, by=by)
            elif page is None and not found.labels:
                raise UsageError(
                    "the sample is drawn, but clips are labelled in a terminal, and this is none; "
                    "write them to a file with --write FILE.csv, and read its labels with: "
                    "clipmill audit "
                    f"{shell_word(dataset)} --name {found.name} --labels FILE.csv"
                )
        if format == "json":
            print(json.dumps(plain(found.plain()), indent=2, ensure_ascii=False))
            return
        print("\n".join(summary(found)))
        if found.unlabelled:
            print(
                f"\n{counted(len(found.unlabelled), 'clip')} still to label: clipmill audit "
                f"{shell_word(dataset)} --name {found.name}"
            )


def _write_page(dataset: Path, found: clipmill.Audit, page: Path, blind: bool) -> None:
    from clipmill.jobs.report.audit_page import write_audit_page

    write_audit_page(dataset, found.record, page, blind=blind)
    print(f"{page}: {counted(len(found), 'clip')} with their frames", file=sys.stderr)


def summary(found: clipmill.Audit) -> list[str]:
    """What the labels say, in lines."""
    record = found.record
    people = record.population
    where = f"rule {record.rule} of {record.subset or record.recipe}, " if record.recipe else ""
    missing = []
    if people.without_value:
        missing.append(f"{people.without_value:,} without a value")
    if people.not_a_number:
        kept = f" (kept: {people.not_a_number_kept:,})" if people.not_a_number_kept else ""
        missing.append(f"{people.not_a_number:,} with NaN{kept}")
    skipped = sum(clip.is_skipped for clip in record.sample)
    lines = [
        f"{found.name}",
        f"{where}{record.comparison}"
        + (f", in {says}" if (says := _one_line(record.says)) != record.comparison else ""),
        f"{counted(people.clips, 'clip')} reach it: {people.kept:,} kept, "
        f"{people.clips - people.kept:,} left out",
        *([f"Not counted: {', '.join(missing)}"] if missing else []),
        f"{record.labelled:,} of {counted(len(found), 'sampled clip')} labelled: {record.yes:,} "
        f"yes, {record.labelled - record.yes:,} no"
        + (f", {skipped:,} skipped" if skipped else "")
        + (f"; {record.removed:,} removed from the dataset" if record.removed else ""),
    ]
    if record.labelled:
        lines += ["", *_table(found), "", "In brackets: 95% intervals. > marks the threshold."]
    return [printable(line) for line in lines]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _table(found: clipmill.Audit) -> list[str]:
    rows: list[Sequence[str]] = [_COLUMNS]
    audited = found.record.threshold
    for value, quality in found.table:
        mark = "> " if value == audited else "  "
        rows.append(
            (
                f"{mark}{value:.6g}",
                share(quality.precision),
                share(quality.recall),
                f"{quality.clips:,}",
            )
        )
    widths = [max(len(row[i]) for row in rows) for i in range(len(_COLUMNS))]
    return [
        "  ".join(
            cell.rjust(width) if i == len(_COLUMNS) - 1 else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def share(estimate: clipmill.Estimate | None) -> str:
    """`71% (52–85%)`."""
    if estimate is None:
        return "–"
    low, high = (f"{100 * value:.0f}" for value in (estimate.low, estimate.high))
    return f"{100 * estimate.value:.0f}% ({low}–{high}%)"
