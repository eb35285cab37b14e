"""Asks for labels in the terminal, one key per clip."""

from __future__ import annotations

import contextlib
import os
import sys
import termios
import tty
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

import clipmill
from clipmill.jobs.report.audit_page import DEFAULT_QUESTION, score_names
from clipmill.jobs.report.sample_clips import clock
from clipmill.pipeline.catalog.links import clip_link
from clipmill.schemas.errors import printable
from clipmill.schemas.sql_text import literal

_MOST_KEYS = 64
_END = "\x04"
_KEYS = "[y]es  [n]o  [s]kip  [u]ndo  [q]uit"


def label_in_terminal(
    dataset: clipmill.Dataset, audit: clipmill.Audit, *, blind: bool = False, by: str | None = None
) -> None:
    """Shows the clips without a label and stores each answer at once, until the last or `q`.

    `blind` doesn't show the scores, which tell what the rule does with a clip.
    """
    rows = {row["clip_id"]: row for row in audit.clips()}
    paths = _paths(dataset, rows)
    console = Console(highlight=False)
    question = printable(audit.record.question or DEFAULT_QUESTION)
    with _keys_of_terminal() as keys:
        console.print(Text(f"{question}  {_KEYS}", style="bold"))
        _label(console, keys, audit, rows, paths, blind, by)


def _label(
    console: Console,
    keys: Iterator[str],
    audit: clipmill.Audit,
    rows: Mapping[str, Mapping[str, Any]],
    paths: Mapping[str, Path],
    blind: bool,
    by: str | None,
) -> None:
    waiting = [clip for clip in audit.unlabelled if clip in rows]
    place, done = 0, len(audit) - len(waiting)
    while place < len(waiting):
        clip = waiting[place]
        console.rule(f"{done + place + 1} of {len(audit)}", align="left", characters="─")
        _show(console, rows[clip], paths.get(rows[clip]["video_id"]), blind)
        key = _asked(console, keys, is_first=place == 0)
        if key == "q":
            console.print("quit")
            return
        if key == "u":
            place -= 1
            audit.label({waiting[place]: None}, by=by)
            console.print("back to the one before")
            continue
        if key == "s":
            audit.skip(clip)
            console.print("skipped")
        else:
            audit.label({clip: key == "y"}, by=by)
            console.print({"y": "yes", "n": "no"}[key])
        place += 1
    console.print()


def _asked(console: Console, keys: Iterator[str], *, is_first: bool) -> str:
    console.print(Text("y, n, s, u or q? "), end="")
    for key in keys:
        if key in ("y", "n", "s", "q") or (key == "u" and not is_first):
            return key
        console.print("(nothing to undo) " if key == "u" else "(y, n, s, u or q) ", end="")
    return "q"


@contextlib.contextmanager
def _keys_of_terminal() -> Iterator[Iterator[str]]:
    """The keys typed, each at once and unseen, until Ctrl-D; Ctrl-C and Ctrl-Z act as always.

    For the whole time, so that what is typed while a clip is being stored is not lost.
    """
    terminal = sys.stdin.fileno()
    former = termios.tcgetattr(terminal)
    tty.setcbreak(terminal, termios.TCSADRAIN)
    try:
        yield _keys(terminal)
    finally:
        termios.tcsetattr(terminal, termios.TCSADRAIN, former)


def _keys(terminal: int) -> Iterator[str]:
    while typed := os.read(terminal, _MOST_KEYS):
        keys = typed.decode("utf-8", "replace").lower()
        # An arrow or function key comes as a sequence of characters.
        for key in "?" if keys.startswith("\x1b") else keys:
            if key == _END:
                return
            yield key


def _show(console: Console, row: Mapping[str, Any], path: Path | None, blind: bool) -> None:
    span = f"{clock(row['start_seconds'])}–{clock(row['end_seconds'])}"
    link = clip_link(row["url"], row["start_seconds"], row["end_seconds"])
    seconds = f"{row['duration_seconds']:.3g} s"
    lines = [Text(row["clip_id"], style="bold"), Text(f"{span}, {seconds}")]
    if link:
        lines.append(Text(_line(link)))
    if path is not None and str(path) != row["url"]:
        lines.append(Text(_line(path)))
    for line in lines:
        console.print(line, soft_wrap=True)  # so that a terminal still recognises an address
    console.print(Text(_line(row["caption"]) if row["caption"] else "no caption"))
    if not blind and (names := score_names(dict(row))):
        console.print(Text("  ".join(f"{name} {row[name]:.4g}" for name in names), style="dim"))


def _line(value: object) -> str:
    return " ".join(printable(str(value)).split())


def _paths(dataset: clipmill.Dataset, rows: Mapping[str, Mapping[str, Any]]) -> dict[str, Path]:
    """Where the videos' files are."""
    videos = ", ".join(sorted({literal(row["video_id"]) for row in rows.values()})) or "NULL"
    found = dataset.sql(f"SELECT video_id, path FROM videos WHERE video_id IN ({videos})")
    return {video: dataset.path / path for video, path in found.fetchall() if path}
