"""`clipmill verify`: prints what is wrong with a dataset, line by line, and the remedies."""

from __future__ import annotations

import contextlib
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

import clipmill
from clipmill.jobs.formats import write_rows
from clipmill.jobs.progress_bars import saying
from clipmill.pipeline.dataset.run_records import latest_run
from clipmill.schemas.command_line import shell_word, start_a_run
from clipmill.schemas.damage import DamagedFile
from clipmill.schemas.errors import storable
from clipmill.schemas.words import counted

if TYPE_CHECKING:
    from clipmill import Finding, Repaired, Verification

_COLUMNS = ("severity", "check", "where", "what", "next_step")


def verify_dataset(
    dataset: Path,
    *,
    repairs: bool = False,
    media: bool = True,
    format: str = "table",
    wait: bool = False,
) -> int:
    """Verifies a dataset and prints the findings; returns the exit status.

    With `repairs`, files that can be made again are set aside, and the status is 1 only if faults
    remain that this could not repair.
    """
    with saying() as say:
        found = clipmill.open(dataset).verify(media=media, repair=repairs, wait=wait, on_step=say)
    _print(found, format)
    sys.stdout.flush()  # the faults before the summary, if both go to the same place
    print(_summary(found, media=media), file=sys.stderr)
    if found.repaired is not None:
        print(_repaired(dataset, found.repaired), file=sys.stderr)
        return 1 if found.repaired.left else 0
    return 1 if found.faults else 0


def _print(report: Verification, format: str) -> None:
    found = [
        *(("fault", finding) for finding in report.faults),
        *(("note", finding) for finding in report.notes),
    ]
    if format == "json":
        print(json.dumps(_plain(report), indent=1, ensure_ascii=False))
    elif format == "table":
        for severity, finding in found:
            print(_line(severity, finding))
    else:
        rows = [
            (
                severity,
                finding.check,
                storable(finding.where),
                storable(finding.what),
                storable(finding.next_step),
            )
            for severity, finding in found
        ]
        columns = list(zip(*rows, strict=True)) if rows else [()] * len(_COLUMNS)
        table = pa.table(
            {
                name: pa.array(column, pa.string())
                for name, column in zip(_COLUMNS, columns, strict=True)
            }
        )
        write_rows(table.to_reader(), format)


def _line(severity: str, finding: Finding) -> str:
    prefix = "note: " if severity == "note" else ""
    then = f" → {finding.next_step}" if finding.next_step else ""
    text = f"{prefix}{finding.where}: {finding.check}: {finding.what}{then}"
    # File names may contain anything; what is printed must not control the terminal.
    return "".join(c if c.isprintable() else "\ufffd" for c in text)


def _plain(report: Verification) -> dict[str, Any]:
    def plain(findings: list[Finding]) -> list[dict[str, Any]]:
        return [
            {name: storable(asdict(finding)[name]) for name in _COLUMNS[1:]} for finding in findings
        ]

    found: dict[str, Any] = {
        "dataset": report.dataset,
        "checked": dict(report.checked),
        "faults": plain(report.faults),
        "notes": plain(report.notes),
        "pending_shards": report.pending,
        "is_running": report.is_running,
        "others": [storable(name) for name in report.others],
    }
    if (repaired := report.repaired) is not None:
        found["repaired"] = {
            "folder": str(repaired.folder) if repaired.folder else None,
            "moved": [storable(name) for name in repaired.moved],
            "awaited": list(repaired.awaited),
            "reopened_removals": repaired.reopened,
            "left": plain(list(repaired.left)),
        }
    return found


def _summary(report: Verification, *, media: bool) -> str:
    checked = report.checked
    parts = [
        counted(checked["runs"], "run record"),
        counted(checked["shards"], "shard") + " with " + counted(checked["rows"], "row"),
    ]
    parts.append(
        f"{counted(checked['media'], 'media file')} with {checked['media_bytes']:,} bytes"
        if media
        else "no media files (--no-media)"
    )
    if checked["subsets"]:
        parts.append(counted(checked["subsets"], "subset"))
    if checked["audits"]:
        parts.append(counted(checked["audits"], "audit"))
    if checked["index_files"]:
        parts.append(f"{counted(checked['index_files'], 'file')} of the index")
    found = counted(len(report.faults), "fault") if report.faults else "no faults"
    lines = [f"Checked {', '.join(parts)}: {found}."]
    if report.is_running:
        lines.append("Another command is using the dataset: unfinished work was skipped.")
    elif report.pending:
        lines.append(
            f"{counted(report.pending, 'shard')} of steps not done yet; "
            f"`clipmill run --dataset {shell_word(report.dataset)}` continues."
        )
    if report.others:
        names = ", ".join(report.others[:5]) + (", …" if len(report.others) > 5 else "")
        lines.append(f"Not part of the dataset, left alone: {names}")
    return "\n".join("".join(c if c.isprintable() else "\ufffd" for c in line) for line in lines)


def _names_sources(dataset: Path) -> bool:
    """Whether a run without a recipe would add sources: those of the newest run's recipe."""
    with contextlib.suppress(DamagedFile):
        record = latest_run(dataset)
        return record is not None and bool(record["recipe"]["sources"])
    return False


def _repaired(dataset: Path, repaired: Repaired) -> str:
    lines = []
    if repaired.folder is not None:
        # `dataset` as the user typed it: the folder is absolute.
        place = dataset / repaired.folder.parent.name / repaired.folder.name
        lines.append(
            f"Set aside in {place}: {counted(len(repaired.moved), 'file')} (why.json says "
            "why). Nothing was deleted; delete the folder once all is well."
        )
    if repaired.reopened:
        lines.append(
            f"{counted(repaired.reopened, 'removal')} reopened: the next run carries "
            f"{'it' if repaired.reopened == 1 else 'them'} out."
        )
    if repaired.needs_sources:
        again = (
            f"`clipmill run --dataset {shell_word(dataset)}` takes them again"
            if _names_sources(dataset)
            else start_a_run(dataset)
        )
        lines.append(
            f"Import imported sources again; for the others: {again}. That also makes the rest."
        )
    elif repaired.awaited or repaired.reopened:
        lines.append(f"`clipmill run --dataset {shell_word(dataset)}` makes it again.")
    if repaired.left:
        lines.append(
            f"{counted(len(repaired.left), 'fault')} can't be repaired this way; their "
            "next steps are above."
        )
    return "\n".join(lines)
