"""Repeats a download's attempts, as the settings allow and each host requests."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from clipmill.schemas.errors import RowFailed, RowRejected
from clipmill.schemas.retries import Backoff, retried
from clipmill.schemas.words import counted
from clipmill.stages.media.fetch.host_throttle import Hosts, asked_for_too_long
from clipmill.stages.media.fetch.problems import BotCheck, LeftAlone, PassingProblem
from clipmill.stages.media.fetch.watch import Stopwatch
from clipmill.stages.media.isolation import progress

Result = TypeVar("Result")


class NotAMediaFile(Exception):
    """The server answered with a page or a manifest, which yt-dlp has to read."""


def patiently(
    attempt: Callable[[Stopwatch], Result], *, host: str, hosts: Hosts, patience: Backoff
) -> Result:
    """The result of `attempt`; RowFailed of kind transient if its last error was a PassingProblem.

    The attempt waits for its turn at each host; `host` is blamed if it contacted none. Its
    stopwatch counts the time of all attempts.
    """
    stopwatch = Stopwatch()
    problems: list[PassingProblem] = []

    def sleep(seconds: float) -> None:
        with stopwatch.paused():
            progress.pause(seconds)

    def pause_of(problem: PassingProblem, pause: float, is_last: bool) -> float:
        hosts.failed(problem)
        problems.append(problem)
        asked_for = problem.retry_after_seconds
        if asked_for is not None:
            pause = max(pause, asked_for)
        # A host's request to wait applies to other rows even when this row has given up.
        asker = problem.host or hosts.last_asked(host)
        if problem.whole_host and (asked_for is not None or not is_last):
            hosts.hold(asker, pause, problem.message)
        if asked_for is not None and asked_for > patience.longest_seconds:
            raise RowFailed(
                "transient",
                f"{problem.message} (Retry-After: {asked_for:.0f} s); "
                + asked_for_too_long(asker, asked_for),
            ) from problem
        return pause

    try:
        return retried(
            lambda: _attempted(attempt, hosts, stopwatch),
            patience,
            PassingProblem,
            sleep=sleep,
            pause_of=pause_of,
        )
    except PassingProblem as last:
        message = problems[0].message
        if last.message != message:
            message += f"; in the end: {last.message}"
        raise RowFailed(
            "transient", f"{message} (tried {counted(len(problems), 'time')})"
        ) from last


def _attempted(
    attempt: Callable[[Stopwatch], Result], hosts: Hosts, stopwatch: Stopwatch
) -> Result:
    """One attempt; its outcome is recorded for its hosts, except for a PassingProblem."""
    hosts.begin_attempt(stopwatch)
    try:
        result = attempt(stopwatch)
    except BotCheck as problem:
        hosts.failed(problem)
        raise
    except LeftAlone:
        raise
    except NotAMediaFile:
        hosts.succeeded(with_a_page=True)
        raise
    except (RowFailed, RowRejected) as answer:
        kind = answer.kind if isinstance(answer, RowFailed) else None
        if kind != "transient":
            hosts.succeeded(with_a_page=kind == "bad_media")
        raise
    hosts.succeeded()
    return result
