"""The lines below the tables of `run`, `retry` and `status`: reasons, and commands that help."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import printable
from clipmill.schemas.step_tables import EXPANDED_RULE, MENDED_RULE, REMOVED_RULE
from clipmill.schemas.words import counted

if TYPE_CHECKING:
    from clipmill import Status

_WHEN_TO_RETRY = {
    "transient": "later",
    "blocked": "after adding cookies, a proxy or another user_agent, or waiting",
    "permanent": "once the source is available again",
    "bad_media": "once the file has been replaced",
    "model": "once the model has been changed, or has more memory",
    "crash": "with more memory or time",
}
# Of stages that fetch nothing: these kinds are then about a model's server.
_WHEN_TO_ASK_AGAIN = {
    "transient": "once the model's server answers",
    "blocked": "once the model's server accepts the key",
    "permanent": "once the model's server is set right",
}

_OF_NO_SETTING = {
    "sources.duplicate": "duplicate source",
    "download_videos.duplicate": "duplicate video",
    EXPANDED_RULE: "expanded list",
    MENDED_RULE: "fixed row",
    REMOVED_RULE: "removed video",
}
_LONGEST_MESSAGE = 100


def when_to_retry(kind: str, count: int, after_downloads: int) -> str:
    """What must change before a retry helps; `after_downloads` failures are not of downloads."""
    of_servers = _WHEN_TO_ASK_AGAIN.get(kind)
    if of_servers is None or not after_downloads:
        return _WHEN_TO_RETRY[kind]
    if after_downloads == count:
        return of_servers
    return f"{_WHEN_TO_RETRY[kind]}; of stages with models, {of_servers}"


def lines_below(report: Status) -> Iterator[str]:
    """Lines for a `status_report`; those that begin with two spaces are commands to paste."""
    dataset = shell_word(report["dataset"])
    yield from _rejected(report, dataset)
    yield from _skipped(report, dataset)
    yield from _failed(report, dataset)
    yield from _texts(report)
    waiting = [
        f"{counted(stage['pending'], 'row')} at {stage['stage']}"
        for stage in report["stages"]
        if stage["pending"]
    ]
    if waiting:
        yield f"Not done yet: {', '.join(waiting)}. To continue:"
        yield f"  clipmill run --dataset {dataset}"


def _rejected(report: Status, dataset: str) -> Iterator[str]:
    found = report["rejections"]
    if not found:
        return
    parts = []
    for one in found:
        if one["rule"] in _OF_NO_SETTING:
            parts.append(counted(one["count"], _OF_NO_SETTING[one["rule"]]))
        else:
            parts.append(
                f"{one['count']:,} by {one['rule'].rpartition('.')[2]} ({_line(one['detail'])})"
            )
    total = sum(one["count"] for one in found)
    yield f"{total:,} rejected: {', '.join(parts)}."
    settings = [one["keep"] for one in found if one["keep"]]
    if settings:
        kept = sum(one["count"] for one in found if one["keep"])
        some = f"{kept:,} of them" if kept < total else "it" if total == 1 else "them"
        yield (f"To keep {some} (the stage and later ones run again, nothing is downloaded twice):")
        yield "  " + " ".join(
            [f"clipmill run --dataset {dataset}", *(f"--set {setting}" for setting in settings)]
        )


def _skipped(report: Status, dataset: str) -> Iterator[str]:
    found = report["skipped"]
    if not found:
        return
    parts = [f"{one['count']:,} at {one['stage']} ({_line(one['detail'])})" for one in found]
    total = sum(one["count"] for one in found)
    yield f"{total:,} skipped: {', '.join(parts)}."
    yield f'  clipmill sql {dataset} "FROM skipped"  # lists {"it" if total == 1 else "them"}'


def _failed(report: Status, dataset: str) -> Iterator[str]:
    found = report["failures"]
    if not found:
        return
    parts = [
        f"{one['count']:,} {one['kind']} ({'e.g. ' if one['messages'] > 1 else ''}"
        f"{_line(one['message'])})"
        for one in found
    ]
    total = sum(one["count"] for one in found)
    of_kept = sum(one["parts"] for one in found)
    some = f" ({counted(of_kept, 'part')} of kept rows)" if of_kept else ""
    yield f"{total:,} failed{some}: {', '.join(parts)}."
    commands = [(f"clipmill failures {dataset}", f"lists {'it' if total == 1 else 'them'}")]
    commands += [
        (
            f"clipmill retry {dataset} --kind {one['kind']}",
            when_to_retry(one["kind"], one["count"], one["after_downloads"]),
        )
        for one in found
        if one["can_be_retried"]
    ]
    longest = max(len(command) for command, _ in commands)
    for command, says in commands:
        yield f"  {command:{longest}}  # {says}"


def _texts(report: Status) -> Iterator[str]:
    """What to know about the models' texts; nothing if all are whole, clean and different."""
    for one in report["texts"]:
        parts = [f"{one['cut_off']:,} cut off"] if one["cut_off"] else []
        if one["cleaned"]:
            rules = ", ".join(f"{count:,} by {rule}" for rule, count in one["cleaned"].items())
            parts.append(f"cleaned: {rules}")
        if parts:
            yield f"{one['column']}: {counted(one['told'], 'text')}, {'; '.join(parts)}."
        if one["repeated"]:
            most = one["repeated"][0]
            share = one["repeated_clips"] / one["texts"]
            yield (
                f"{one['column']}: {counted(one['repeated_clips'], 'clip')} ({share:.1%}) share "
                f"{counted(one['repeated_texts'], 'text')} with clips of other videos, most often "
                f'"{_line(most["text"])}" ({counted(most["clips"], "clip")} of '
                f"{counted(most['videos'], 'video')})."
            )


def _line(text: str | None) -> str:
    line = " ".join(printable(text or "?").split())
    return line if len(line) <= _LONGEST_MESSAGE else f"{line[: _LONGEST_MESSAGE - 1]}…"
