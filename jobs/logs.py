"""`clipmill logs`: merges what a run's processes logged, by time."""

from __future__ import annotations

import heapq
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill.jobs.formats import plain, write_rows
from clipmill.pipeline.dataset.commit_fence import goes_on
from clipmill.pipeline.dataset.run_logs import LEVELS, LogFile, log_files, logged_runs, read_line
from clipmill.pipeline.dataset.run_records import read_run, require_dataset
from clipmill.pipeline.exports.output_places import check_output
from clipmill.schemas.damage import DamagedFile
from clipmill.schemas.errors import UsageError
from clipmill.schemas.folders import LOGS, RUNS
from clipmill.schemas.words import counted

POLL_SECONDS = 0.3
_BATCH_ROWS = 2000
_COLUMNS = pa.schema(
    [
        ("time", pa.timestamp("us", tz="UTC")),
        ("level", pa.string()),
        ("event", pa.string()),
        ("run_id", pa.string()),
        ("worker", pa.string()),
        ("step", pa.string()),
        ("shard", pa.string()),
        ("key", pa.string()),
        ("kind", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int64()),
        ("seconds", pa.float64()),
        ("counts", pa.map_(pa.string(), pa.int64())),
        ("logger", pa.string()),
        ("traceback", pa.string()),
        ("versions", pa.map_(pa.string(), pa.string())),
        ("host", pa.string()),
        ("pid", pa.int64()),
    ]
)
Line = dict[str, Any]


def show_logs(
    dataset: Path,
    run: str | None = None,
    *,
    level: str = "info",
    follow: bool = False,
    format: str = "table",
    output: Path | None = None,
) -> None:
    """Prints the log lines of one run; with `follow` also those to come, until the run ends."""
    require_dataset(dataset)
    check_output(dataset, output)
    if follow and (format not in ("table", "jsonl") or output is not None):
        raise UsageError(
            "--follow prints lines as they arrive: with --format table or jsonl, and "
            "without --output"
        )
    run_id = _run(dataset, run)
    shown = LEVELS[LEVELS.index(level) :]
    damaged = [0]
    if follow:
        _follow(dataset, run_id, shown, _text if format == "table" else _json, damaged)
    else:
        lines = (
            line
            for line in merged(log_files(dataset, run_id), damaged)
            if line.get("level") in shown
        )
        if format == "table" and output is None:
            for line in lines:
                print(_text(line))
        else:
            write_rows(_reader(lines), format, output)
    if damaged[0]:
        sys.stdout.flush()
        print(
            f"{counted(damaged[0], 'damaged line')} skipped, from a process "
            "that was killed or a full disk.",
            file=sys.stderr,
        )


def _run(dataset: Path, asked: str | None) -> str:
    runs = logged_runs(dataset)
    if not runs:
        raise UsageError(
            f"{dataset} has no logs yet: runs write them to {dataset / LOGS}, unless "
            "their recipe says log_megabytes: 0"
        )
    if asked is None:
        return runs[-1]
    found = [run for run in runs if run == asked] or [
        run for run in runs if asked and run.startswith(asked)
    ]
    if len(found) != 1:
        what = "several runs have ids with this prefix" if found else "no run with this id has logs"
        near = ", ".join((found or runs)[-5:])
        raise UsageError(f"--run {asked}: {what}; {'they are' if found else 'the newest'}: {near}")
    return found[0]


def merged(files: Iterable[LogFile], damaged: list[int]) -> Iterator[Line]:
    """All lines by time; each worker's lines keep their order."""
    by_worker = itertools.groupby(files, key=lambda file: file.worker)
    streams = [_lines([file.path for file in group], damaged) for _, group in by_worker]
    return heapq.merge(*streams, key=lambda line: line["time"])


def _lines(paths: list[Path], damaged: list[int]) -> Iterator[Line]:
    for path in paths:
        try:
            file = open(path, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            continue  # rotated or deleted after it was listed
        with file:
            for line in file:
                found = read_line(line)
                if found is None:
                    damaged[0] += 1
                else:
                    yield found


def _follow(
    dataset: Path,
    run_id: str,
    shown: tuple[str, ...],
    text: Callable[[Line], str],
    damaged: list[int],
) -> None:
    """Prints lines until the run has ended, or its process is gone."""
    read: dict[tuple[int, int], int] = {}
    try:
        while True:
            # checked first, because the run's last lines are read below
            goes_on = _goes_on(dataset, run_id)
            for line in sorted(
                _new_of_all(dataset, run_id, read, damaged), key=lambda line: line["time"]
            ):
                if line.get("level") in shown:
                    print(text(line))
            sys.stdout.flush()
            if not goes_on:
                return
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        return  # Ctrl-C only ends the watching


def _goes_on(dataset: Path, run_id: str) -> bool:
    try:
        record = read_run(dataset / RUNS / f"{run_id}.json")
    except (OSError, DamagedFile):
        return False
    return record["state"] == "running" and goes_on(dataset, run_id)


def _new_of_all(
    dataset: Path, run_id: str, read: dict[tuple[int, int], int], damaged: list[int]
) -> list[Line]:
    """New lines of all files; each worker's lines keep their order.

    A file may be rotated between listing and reading: then its name has newer content than
    expected, so the files are read again until there is nothing new.
    """
    found: list[Line] = []
    files: list[LogFile] = []
    while (now := log_files(dataset, run_id)) != files:
        files = now
        found += [line for file in files for line in _new_lines(file.path, read, damaged)]
    return found


def _new_lines(path: Path, read: dict[tuple[int, int], int], damaged: list[int]) -> Iterator[Line]:
    """New complete lines of a file, also if it has been rotated."""
    try:
        with open(path, "rb") as file:
            state = path.stat()
            place = (state.st_dev, state.st_ino)
            file.seek(read.get(place, 0))
            while (line := file.readline()).endswith(b"\n"):
                read[place] = file.tell()
                found = read_line(line)
                if found is None:
                    damaged[0] += 1
                else:
                    yield found
    except FileNotFoundError:
        return


def _text(line: Line) -> str:
    """A line as text: what happened, where, and the message."""
    at = line["time"][:23].replace("T", " ")
    parts = [at, f"{line.get('level', ''):7}", f"{line.get('event', ''):12}"]
    parts += [str(line[name]) for name in ("step", "shard", "key", "kind") if line.get(name)]
    if line.get("worker") == "driver":
        parts.insert(3, "driver")
    if counts := line.get("counts"):
        parts.append(" ".join(f"{name}={count}" for name, count in counts.items()))
    if line.get("seconds") is not None:
        parts.append(f"{line['seconds']:g} s")
    if (line.get("attempts") or 0) > 1:
        parts.append(f"(attempt {line['attempts']})")
    text = " ".join(parts)
    if line.get("message"):
        text += f": {line['message']}"
    shown = [_harmless(text)]
    if line.get("traceback"):
        shown += [f"    {_harmless(said)}" for said in str(line["traceback"]).splitlines()]
    return "\n".join(shown)


def _json(line: Line) -> str:
    return json.dumps(plain(line))


def _harmless(text: str) -> str:
    """Removes control characters, because a message may come from the network."""
    return "".join(c if c.isprintable() else " " for c in text)


def _reader(lines: Iterator[Line]) -> pa.RecordBatchReader:
    def batches() -> Iterator[pa.RecordBatch]:
        while rows := [_row(line) for line in itertools.islice(lines, _BATCH_ROWS)]:
            yield from pa.Table.from_pylist(rows, _COLUMNS).to_batches()

    return pa.RecordBatchReader.from_batches(_COLUMNS, batches())


def _row(line: Line) -> Line:
    row = {name: line.get(name) for name in _COLUMNS.names}
    row["time"] = datetime.fromisoformat(line["time"])
    for name in ("counts", "versions"):
        row[name] = list((line.get(name) or {}).items())
    return row
