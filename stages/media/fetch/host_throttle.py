"""Spaces requests per host, across all threads and workers that share a folder.

Requests for anything other than media, such as subtitles, have separate states: a host that
refuses those still gets requests for media.

A host is contacted at most once every `sleep_seconds`. After a number of consecutive temporary
problems or bot checks, nobody contacts it for a while; then one request goes as a probe, and the
others wait for its result. A host that requests a pause itself (Retry-After) gets it, up to a day.
Times come from the machines' clocks: timestamps beyond the longest possible pause are ignored
(clock skew).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from clipmill.stages.media.fetch.host_states import HostState, HostStates, OwnStates, SharedStates
from clipmill.stages.media.fetch.problems import BotCheck, LeftAlone, PassingProblem
from clipmill.stages.media.fetch.watch import Stopwatch
from clipmill.stages.media.isolation import progress

# How often a waiting request checks whether the host's state has changed.
_LOOK_SECONDS = 0.5
# The longest pause that a server may request.
_LONGEST_HOLD_SECONDS = 24 * 3600.0


@dataclass(frozen=True)
class Manners:
    """Settings for the treatment of hosts.

    `sleep_seconds` is the minimum time between two requests to a host. After `problems`
    consecutive temporary problems or bot checks (None: never) a host is not contacted for
    `pause_seconds`. A row waits at most `patience_seconds` for that, over all its attempts, and
    not at all if probes have failed for `gone_seconds` (None: it always waits). Nor does it wait
    for a host that requested a pause of which more than `patience_seconds` remain.
    """

    sleep_seconds: float = 0.0
    problems: int | None = None
    pause_seconds: float = 60.0
    patience_seconds: float = 120.0
    gone_seconds: float | None = None


class _Attempt(threading.local):
    """A thread's current attempt: the hosts that it has contacted and when, and its row's waits.

    `kind` names the optional part of a video that is requested, None for everything else;
    `refusing` are the hosts that refused this row one such part: other parts may still be
    available. `probes` are paused hosts that this row may still try.
    """

    def __init__(self) -> None:
        self.kind: str | None = None
        self.refusing: set[str] = set()
        self.asked: list[tuple[str, float]] = []
        self.probes: set[str] = set()
        self.waited_seconds = 0.0
        self.stopwatch = Stopwatch()


class Hosts:
    """Request spacing for every host, shared through `folder`, or within this object only."""

    def __init__(self, manners: Manners | None = None, folder: Path | None = None) -> None:
        self._manners = manners or Manners()
        self._states: HostStates = OwnStates() if folder is None else SharedStates(folder)
        self._attempt = _Attempt()

    def begin_row(self) -> None:
        """Starts a new row: this thread's next requests are for it."""
        self._attempt.waited_seconds = 0.0
        self._attempt.probes = set()

    def begin_attempt(self, stopwatch: Stopwatch | None = None) -> None:
        """Starts a new attempt at this thread's file.

        The stopwatch doesn't run while the thread waits for a turn.
        """
        self._attempt.asked = []
        self._attempt.stopwatch = stopwatch or Stopwatch()

    @property
    def kind(self) -> str | None:
        """The optional part of a video that this thread requests; None for anything else."""
        return self._attempt.kind

    @contextlib.contextmanager
    def only_for(self, kind: str) -> Iterator[None]:
        """Within this context, the thread requests an optional part of a video."""
        attempt = self._attempt
        attempt.kind, attempt.refusing = kind, set()
        try:
            yield
        finally:
            attempt.kind = None

    def wait(self, host: str) -> None:
        """Sleeps until this request may be sent to `host`.

        Raises LeftAlone if the host's pause is too long; immediately for an optional part.
        """
        named = self._name(host)
        with self._attempt.stopwatch.paused():
            if named != _normal(host) and named not in self._attempt.refusing:
                self._wait(named, 0.0)
            self._wait(_normal(host), self._manners.patience_seconds)
        self._attempt.asked.append((named, time.time()))

    def _name(self, host: str) -> str:
        """The host's name, made distinct for requests other than for media."""
        kind = self._attempt.kind
        return _normal(host) if kind is None else f"{_normal(host)} ({kind})"

    def _wait(self, host: str, patience_seconds: float) -> None:
        attempt = self._attempt
        while pause := self._try_turn(host, attempt.probes, patience_seconds):
            seconds = min(pause.seconds, _LOOK_SECONDS)
            if pause.left_alone is not None:
                if pause.is_final or attempt.waited_seconds >= patience_seconds:
                    raise pause.left_alone
                attempt.waited_seconds += seconds
            progress.pause(seconds)

    def hold(self, host: str, seconds: float, said: str) -> None:
        """Pauses all requests to `host` for `seconds`, up to a day; `said` is its wording."""
        host = self._name(host)
        if self._attempt.kind is not None:
            self._attempt.refusing.add(host)
        with self._states.change(host) as state:
            until = time.time() + min(seconds, _LONGEST_HOLD_SECONDS)
            if until > state.held_until:
                state.held_until, state.hold_said = until, said[:300]
                state.is_hold_old = False

    def answered(self, host: str) -> None:
        """The host gave a proper answer, whatever its content: other rows may continue.

        After bot checks this proves nothing, because a bot check is a normal page, too.
        """
        host = self._name(host)
        if self._manners.problems is None or not self._states.knows(host):
            return
        with self._states.change(host) as state:
            if state.opened_at and not state.is_bot_check:
                state.close()
                state.problems = self._manners.problems - 1

    def succeeded(self, *, with_a_page: bool = False) -> None:
        """The attempt has come far enough to show that all hosts that it contacted work.

        After bot checks this proves nothing: the page may be a bot check, and a file may have been
        requested before them.
        """
        for host, asked_at in self._asked_first():
            if self._states.knows(host):
                with self._states.change(host) as state:
                    if not (state.is_bot_check and (with_a_page or asked_at < state.opened_at)):
                        state.forget()

    def got_through(self) -> None:
        """The contacted hosts deliver videos, so they don't treat this client as a bot."""
        for host, asked_at in self._asked_first():
            if self._states.knows(host):
                with self._states.change(host) as state:
                    if state.is_bot_check and asked_at >= state.opened_at:
                        state.forget()

    def failed(self, problem: PassingProblem | BotCheck) -> None:
        """The attempt ended with a temporary problem of the host that it contacted last.

        Or with a bot check, which counts against the host that it names, or the one contacted
        most.
        """
        asked = self._attempt.asked
        if not asked or self._manners.problems is None:
            return
        is_bot_check = isinstance(problem, BotCheck)
        if is_bot_check:
            host = _who_checked([one for one, _ in asked], problem.host)
            asked_at = dict(self._asked_first())[host]
        else:
            host, asked_at = asked[-1]
        with self._states.change(host) as state:
            if asked_at < state.opened_at:
                return  # contacted before the pause: already counted
            if state.is_bot_check != is_bot_check and not state.opened_at:
                state.problems = 0
            state.problems += 1
            if is_bot_check or not (state.opened_at and state.is_bot_check):
                state.last_problem, state.is_bot_check = problem.message[:300], is_bot_check
            if state.problems >= self._manners.problems:
                state.opened_at = time.time()
                state.open_until = state.opened_at + self._manners.pause_seconds
                state.alone_since = state.alone_since or state.opened_at
        self._attempt.probes.discard(host)

    def _asked_first(self) -> list[tuple[str, float]]:
        """Each host of the attempt, and when it was first contacted."""
        return list(dict(reversed(self._attempt.asked)).items())

    def last_asked(self, otherwise: str) -> str:
        asked = self._attempt.asked
        return asked[-1][0] if asked else _normal(otherwise)

    def _try_turn(self, host: str, probes: set[str], patience_seconds: float) -> _Pause | None:
        """How long to wait before checking again; None if the request may be made now.

        `probes` are paused hosts that this row may still try.
        """
        sleep, pause = self._manners.sleep_seconds, self._manners.pause_seconds
        if not sleep and not self._states.knows(host):
            return None
        with self._states.change(host) as state:
            now = time.time()
            state.next_at = _believable(state.next_at, now, sleep)
            state.held_until = _believable(state.held_until, now, _LONGEST_HOLD_SECONDS)
            state.open_until = _believable(state.open_until, now, pause)
            if state.held_until - now > patience_seconds:
                if not state.is_hold_old:
                    return _Pause(state.held_until - now, _asked_to_wait(state), is_final=True)
                # One row probes whether the pause is still needed.
                state.held_until, state.is_hold_old = 0.0, False
                state.opened_at = state.alone_since = now
            asked_again_at = max(state.next_at, state.held_until)
            if state.open_until > now and host not in probes:
                return _Pause(
                    max(asked_again_at, state.open_until) - now,
                    _left_alone(state),
                    self._is_gone(state),
                )
            if asked_again_at > now:
                return _Pause(asked_again_at - now)
            if state.opened_at and self._manners.problems is not None and host not in probes:
                # This row is the probe; the others wait for its result.
                probes.add(host)
                if now - state.open_until > pause:
                    state.alone_since = now  # nobody has tried since: the state is out of date
                state.open_until = now + pause
            state.next_at = now + sleep
            return None

    def _is_gone(self, state: HostState) -> bool:
        gone = self._manners.gone_seconds
        return gone is not None and state.opened_at - state.alone_since >= gone


def _who_checked(asked: list[str], known: str | None) -> str:
    """The host, of an attempt's hosts in order, that treated it as a bot.

    This is the host contacted most: redirecting hosts and APIs get fewer requests than the site.
    """
    host = _normal(known or "")
    return host if host in asked else max(reversed(asked), key=asked.count)


@dataclass(frozen=True)
class _Pause:
    """`left_alone` is the error for a row that stops waiting; `is_final`: no row waits."""

    seconds: float
    left_alone: LeftAlone | None = None
    is_final: bool = False


def _normal(host: str) -> str:
    return host.lower().rstrip(".")


def _believable(at: float, now: float, longest: float) -> float:
    """A time, limited to the furthest possible one in case another machine's clock is ahead."""
    return at if at <= now + longest + 1.0 else 0.0


def _left_alone(state: HostState) -> LeftAlone:
    until = time.strftime("%H:%M:%S UTC", time.gmtime(state.open_until))
    said = f"{state.host} is left alone until {until}, "
    if not state.problems:
        return LeftAlone(
            "transient",
            f"{said}while one row tries it: it had asked for a longer pause ({state.hold_said})",
        )
    what = "bot checks" if state.is_bot_check else "temporary problems"
    return LeftAlone(
        "blocked" if state.is_bot_check else "transient",
        f"{said}after {state.problems} {what} in a row, the last: {state.last_problem}",
    )


def _asked_to_wait(state: HostState) -> LeftAlone:
    return LeftAlone(
        "transient",
        f"{state.host} was not contacted: {state.hold_said}; "
        + _until_when("it", state.held_until),
    )


def asked_for_too_long(host: str, seconds: float) -> str:
    """What to do about a host that requests a longer pause than a row waits."""
    return _until_when(host, time.time() + min(seconds, _LONGEST_HOLD_SECONDS))


def _until_when(host: str, held_until: float) -> str:
    until = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(held_until))
    return (
        f"{host} asks to be left alone until {until}, longer than "
        "download_videos.max_backoff_seconds; after that, retry the failures of kind transient "
        "(for a list: `clipmill run`)"
    )


def ask_again(folder: Path) -> None:
    """Lets paused hosts be contacted again, whatever they answered.

    For a new run: cookies, the proxy or the day may have changed. A pause that a host requested
    stays in force if rows would wait for it; otherwise one row tries the host, because the pause
    may have been a mistake.
    """
    shared = SharedStates(folder)
    for host in shared.hosts():
        if shared.knows(host):
            with shared.change(host) as state:
                state.forget()
                state.is_hold_old = True
