"""Labels in CSV files: written without labels to be filled in, and read back."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from clipmill.pipeline.dataset.audit_records import AuditRecord
from clipmill.schemas.errors import ClipmillError, UsageError, printable
from clipmill.schemas.words import did_you_mean

COLUMNS = ("clip_id", "label", "link", "start_seconds", "end_seconds")
_WORDS = {
    **dict.fromkeys(("yes", "y", "1", "true"), True),
    **dict.fromkeys(("no", "n", "0", "false"), False),
}


@dataclass(frozen=True)
class FileOfLabels:
    """The labels of a file, and how many of its clips have none yet."""

    labels: dict[str, bool]
    empty: int


def read_labels(path: Path, record: AuditRecord) -> FileOfLabels:
    """The labels of a CSV file with the columns clip_id and label; other columns are ignored.

    UsageError for a clip that is not of the sample, for a label that is neither yes nor no, and for
    a clip that is labelled twice differently; each names the line.
    """
    known = {clip.clip_id for clip in record.sample}
    labels: dict[str, bool] = {}
    lines: dict[str, int] = {}
    empty: set[str] = set()
    for line, row in _rows(path):
        clip_id, word = row["clip_id"].strip(), row["label"].strip()
        if not clip_id and not word:
            continue
        if clip_id not in known:
            raise UsageError(
                f"{path}, line {line}: no clip {printable(clip_id)!r} is in the sample of the "
                f"audit {record.name!r}; {did_you_mean(clip_id, known)}--write FILE writes a "
                f"list of its {len(known):,} clips"
            )
        if not word:
            empty.add(clip_id)
            continue
        label = _WORDS.get(word.lower())
        if label is None:
            raise UsageError(
                f"{path}, line {line}: the label {printable(word)!r} is neither yes nor no; "
                "allowed: yes, no, 1, 0, true, false, or nothing for a clip without a label"
            )
        if labels.get(clip_id, label) != label:
            raise UsageError(
                f"{path}, line {line}: {clip_id} is {'yes' if label else 'no'} here, and "
                f"{'no' if label else 'yes'} in line {lines[clip_id]}; leave one of them"
            )
        labels[clip_id] = label
        lines[clip_id] = line
    if not labels and not empty:
        raise UsageError(
            f"{path} has no labels; --write FILE writes a list of the sample's clips to fill in"
        )
    return FileOfLabels(labels, len(empty - labels.keys()))


def _rows(path: Path) -> Iterable[tuple[int, dict[str, str]]]:
    try:
        text = path.read_text("utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"--labels {path}: no such file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"--labels {path}: it is not UTF-8 text") from error
    except OSError as error:
        raise ClipmillError(f"--labels {path}: cannot be read: {error.strerror}") from error
    heading = text.partition("\n")[0]
    # Spreadsheets of some countries separate with semicolons or tabs.
    separator = max(",;\t", key=heading.count)
    reader = csv.DictReader(io.StringIO(text), delimiter=separator, restval="")
    try:
        names = {str(name).strip().lower(): name for name in reader.fieldnames or ()}
        if lacking := [name for name in COLUMNS[:2] if name not in names]:
            raise UsageError(
                f"{path}: its first line must name the columns clip_id and label; it lacks "
                f"{' and '.join(lacking)}"
            )
        for row in reader:
            yield reader.line_num, {name: row[names[name]] or "" for name in COLUMNS[:2]}
    except csv.Error as error:
        raise UsageError(f"{path}, line {reader.line_num}: it is not CSV: {error}") from error


def write_template(
    path: Path, record: AuditRecord, clips: Mapping[str, Mapping[str, object]]
) -> None:
    """Writes the sample's clips, with the labels that there are, in the order to label them.

    `clips` has what else is written about a clip, by id.
    """
    found = io.StringIO()
    writer = csv.writer(found, lineterminator="\n")
    writer.writerow(COLUMNS)
    for clip in record.sample:
        label = "" if clip.label is None else "yes" if clip.label else "no"
        beside = clips.get(clip.clip_id, {})
        writer.writerow([clip.clip_id, label, *(beside.get(name) or "" for name in COLUMNS[2:])])
    try:
        path.write_text(found.getvalue(), "utf-8")
    except OSError as error:
        raise ClipmillError(f"--write {path}: cannot be written: {error.strerror}") from error
