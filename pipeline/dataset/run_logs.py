"""Logs of a run: JSON lines in the dataset's folder, one file per process.

`logs/<run_id>/driver.jsonl` is the driver's; every worker has one next to it. Each line is
appended by a single write to a file opened for it, so rotating a file, or deleting one to keep the
run below its limit, loses no other lines. Logs are optional: if one can't be written, the run
continues without it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import socket
import threading
import time
import traceback
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from clipmill.pipeline.dataset.shards import temporary_beside
from clipmill.schemas.errors import MAX_MESSAGE_CHARACTERS
from clipmill.schemas.folders import LOGS

DRIVER = "driver"
LEVELS = ("info", "warning", "error")
MAX_TRACEBACK_CHARACTERS = 6000
_TRACEBACKS = 20  # per shard
_MAX_NAME_CHARACTERS = 500
_MAX_BLOCK_BYTES = 256 * 1024
_UNSAFE = re.compile(r"[^A-Za-z0-9_.-]+")
_FILE = re.compile(r"(?P<worker>.+?)(?:\.(?P<number>\d+))?\.jsonl\Z")


@dataclass(frozen=True)
class LogLimits:
    """Maximum size of a process's file before it is rotated, and of all files of a run."""

    file_bytes: int
    run_bytes: int

    @classmethod
    def of(cls, file_megabytes: int, run_megabytes: int) -> LogLimits:
        return cls(file_megabytes * 2**20, run_megabytes * 2**20)


NO_LOGS = LogLimits(0, 0)


class RunLog:
    """The log of one process of a run; usable from any thread."""

    def __init__(self, dataset: Path, run_id: str, worker: str, limits: LogLimits) -> None:
        self.worker = worker
        self._folder = dataset / LOGS / run_id
        self._path = self._folder / f"{worker}.jsonl"
        self._limits = limits
        self._always = {
            "run_id": run_id,
            "worker": worker,
            "host": socket.gethostname(),
            "pid": os.getpid(),
        }
        self._lock = threading.RLock()
        self._number = 0
        self._unchecked_bytes = 0

    def write(
        self, event: str, message: str | None = None, *, level: str = "info", **fields: Any
    ) -> None:
        """Appends one line; fields that are None are left out."""
        self.write_all([self.line(event, message, level=level, **fields)])

    def line(
        self, event: str, message: str | None = None, *, level: str = "info", **fields: Any
    ) -> bytes:
        """One line; unbounded values are truncated."""
        found = {
            "time": datetime.now(UTC).isoformat(timespec="microseconds"),
            "level": level,
            "event": event,
            "message": _cut(message, MAX_MESSAGE_CHARACTERS),
            **fields,
            **self._always,
        }
        if "key" in found:
            found["key"] = _cut(found["key"], _MAX_NAME_CHARACTERS)
        plain = {name: value for name, value in found.items() if value is not None}
        # As ASCII, so that no message can control the terminal that shows the file.
        return json.dumps(plain, default=str).encode() + b"\n"

    def raised(
        self, event: str, error: BaseException, *, level: str = "error", **fields: Any
    ) -> None:
        """Logs a line with the error's traceback."""
        self.write(
            event,
            f"{type(error).__name__}: {error}",
            level=level,
            traceback=bounded_traceback(error),
            **fields,
        )

    def write_all(self, lines: Sequence[bytes]) -> None:
        """Appends whole lines; several share one write."""
        if not self._limits.run_bytes:
            return
        with self._lock, contextlib.suppress(OSError):
            for block in _blocks(lines):
                self._append(block)

    def _append(self, block: bytes) -> None:
        try:
            size = self._path.stat().st_size
        except FileNotFoundError:
            size = 0
            self._folder.mkdir(parents=True, exist_ok=True)
        if size and size + len(block) > self._limits.file_bytes:
            self._number += 1
            os.replace(self._path, self._folder / f"{self.worker}.{self._number}.jsonl")
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
        try:
            os.write(handle, block)
        finally:
            os.close(handle)
        self._unchecked_bytes += len(block)
        # Often enough that hundreds of workers together stay near the limit.
        if self._unchecked_bytes > min(self._limits.run_bytes // 16, _MAX_BLOCK_BYTES):
            self._unchecked_bytes = 0
            self._keep_below_limit()

    def _keep_below_limit(self) -> None:
        """Deletes the oldest files of the run, rotated ones first, but never the driver's."""
        found = []
        for entry in os.scandir(self._folder):
            if entry.name.endswith(".jsonl"):
                with contextlib.suppress(FileNotFoundError):  # another worker deleted it first
                    state = entry.stat()
                    match = _FILE.match(entry.name)
                    number = int(match["number"] or 0) if match else 0
                    # The number decides if the file system's times are too coarse.
                    found.append((not number, state.st_mtime, number, entry.path, state.st_size))
        total = sum(size for *_, size in found)
        spared = {str(self._path), str(self._folder / f"{DRIVER}.jsonl")}
        for *_, path, size in sorted(found):
            if total <= self._limits.run_bytes:
                return
            if path not in spared:
                with contextlib.suppress(FileNotFoundError):
                    Path(path).unlink()
                total -= size


def _blocks(lines: Sequence[bytes]) -> Iterator[bytes]:
    """The lines in blocks of a bounded size; no line is split."""
    block: list[bytes] = []
    size = 0
    for line in lines:
        if block and size + len(line) > _MAX_BLOCK_BYTES:
            yield b"".join(block)
            block, size = [], 0
        block.append(line)
        size += len(line)
    if block:
        yield b"".join(block)


def _cut(text: Any, most: int) -> str | None:
    if text is None:
        return None
    whole = str(text)
    return whole if len(whole) <= most else whole[: most - 1] + "…"


def bounded_traceback(error: BaseException) -> str:
    """The traceback's text; a long one is cut to its beginning and, mostly, its end."""
    text = "".join(traceback.format_exception(error))
    if len(text) <= MAX_TRACEBACK_CHARACTERS:
        return text
    first = MAX_TRACEBACK_CHARACTERS // 4
    return text[:first] + "\n[…]\n" + text[len(text) - MAX_TRACEBACK_CHARACTERS + first :]


def worker_name(labels: Sequence[str]) -> str:
    """A unique name for this process's log, from its first step's label."""
    parts = (
        labels[0][:40],
        socket.gethostname().partition(".")[0][:40],
        str(os.getpid()),
        uuid.uuid4().hex[:8],
    )
    return "-".join(_UNSAFE.sub("_", part) for part in parts).lstrip(".-")


@contextlib.contextmanager
def python_messages(log: RunLog) -> Iterator[None]:
    """Also writes libraries' log messages, from warnings on, and Python's warnings to the log.

    They still go to their usual destinations, too.
    """
    handler = _MessageHandler(log)
    root = logging.getLogger()
    shown = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        with contextlib.suppress(Exception):
            log.write(
                "warning",
                f"{category.__name__}: {message}",
                level="warning",
                logger=f"{filename}:{lineno}",
            )
        shown(message, category, filename, lineno, file, line)

    root.addHandler(handler)
    warnings.showwarning = show
    try:
        yield
    finally:
        root.removeHandler(handler)
        if warnings.showwarning is show:
            warnings.showwarning = shown


class _MessageHandler(logging.Handler):
    """Writes records to a run's log; without another handler they are also shown as usual."""

    def __init__(self, log: RunLog) -> None:
        super().__init__(logging.INFO)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        # a message that can't be formatted must not stop the run
        with contextlib.suppress(Exception):
            level = (
                "error"
                if record.levelno >= logging.ERROR
                else "warning"
                if record.levelno >= logging.WARNING
                else "info"
            )
            error = record.exc_info[1] if record.exc_info else None
            self._log.write(
                "log",
                record.getMessage(),
                level=level,
                logger=record.name,
                traceback=bounded_traceback(error) if error else None,
            )
        others = [
            other
            for other in logging.getLogger().handlers
            if not isinstance(other, _MessageHandler)
        ]
        last = logging.lastResort
        if not others and last is not None and record.levelno >= last.level:
            last.handle(record)


@dataclass(frozen=True)
class LogFile:
    """One file of a run's logs; a worker's file without a number is its newest."""

    path: Path
    worker: str
    number: int | None


def logged_runs(dataset: Path) -> list[str]:
    """Ids of the runs that have logs, oldest first."""
    try:
        entries = list(os.scandir(dataset / LOGS))
    except FileNotFoundError:
        return []
    return sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")


def log_files(dataset: Path, run_id: str) -> list[LogFile]:
    """All log files of a run, each worker's files together in the order of their lines."""
    found = []
    with contextlib.suppress(FileNotFoundError):
        for entry in os.scandir(dataset / LOGS / run_id):
            if (match := _FILE.match(entry.name)) and entry.is_file():
                number = match["number"]
                found.append(
                    LogFile(Path(entry.path), match["worker"], int(number) if number else None)
                )
    return sorted(found, key=lambda file: (file.worker, file.number is None, file.number or 0))


def read_line(line: bytes) -> dict[str, Any] | None:
    """A line's fields; None for a damaged line."""
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) and _is_sound(found) else None


_KINDS: dict[str, type | tuple[type, ...]] = {
    "time": str,
    "message": str,
    "traceback": str,
    "counts": dict,
    "versions": dict,
    "seconds": (int, float),
    "attempts": int,
    "pid": int,
}


def _is_sound(line: dict[str, Any]) -> bool:
    """Whether the fields have the expected types."""
    try:
        datetime.fromisoformat(line["time"])
    except (KeyError, TypeError, ValueError):
        return False
    return all(isinstance(value, _KINDS.get(name, str)) for name, value in line.items())


def forget(dataset: Path, is_meant: Callable[[str], bool]) -> None:
    """Deletes the lines about keys from all runs' logs; nobody else may be writing to them."""
    for run_id in logged_runs(dataset):
        for file in log_files(dataset, run_id):
            lines = file.path.read_bytes().splitlines(keepends=True)
            left = [
                line
                for line in lines
                if (found := read_line(line)) is None or not is_meant(found.get("key") or "")
            ]
            if len(left) != len(lines):
                temporary = temporary_beside(file.path)
                temporary.write_bytes(b"".join(left))
                os.replace(temporary, file.path)


class ShardLog:
    """Logs one step's shard for a worker: its start, its failures and its end."""

    def __init__(self, log: RunLog, step: str, shard: str) -> None:
        self._log = log
        self._where: dict[str, Any] = {"step": step, "shard": shard}
        self._tracebacks_left = _TRACEBACKS
        self._started = time.monotonic()

    def start(self, inputs: int) -> None:
        self._log.write("shard_start", counts={"inputs": inputs}, **self._where)

    def end(self, counts: Mapping[str, int]) -> None:
        found = {name: count for name, count in counts.items() if count or name == "inputs"}
        self._log.write("shard_end", counts=found, **self._seconds(), **self._where)

    def stopped(self, error: BaseException) -> None:
        self._log.raised("shard_stopped", error, **self._seconds(), **self._where)

    def failures(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Logs each row that has an error; `key` is the name of the key column."""
        self._log.write_all(
            [
                self._log.line(
                    "failure",
                    row["error"]["message"],
                    level="error",
                    key=row[key],
                    kind=row["error"]["kind"],
                    attempts=row["error"]["attempts"],
                    **self._where,
                )
                for row in rows
                if row["error"] is not None
            ]
        )

    def raised(self, event: str, error: BaseException, key: str | None = None) -> None:
        """Logs an exception of a stage; after many in a shard, only the failures' messages are
        logged."""
        if self._tracebacks_left:
            self._tracebacks_left -= 1
            self._log.raised(event, error, level="warning", key=key, **self._where)

    def _seconds(self) -> dict[str, Any]:
        return {"seconds": round(time.monotonic() - self._started, 3)}
