"""Asks servers that speak OpenAI's protocol, whatever they are asked: turns, retries, health."""

from __future__ import annotations

import contextvars
import functools
import logging
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from typing import Any, Generic, Self, TypeVar

import httpx

from clipmill.schemas.errors import ClipmillError, RowFailed, ServerRefused
from clipmill.schemas.retries import Backoff, retried
from clipmill.stages.models.engines.addresses import Address, not_reached
from clipmill.stages.models.engines.alarm import Alarm
from clipmill.stages.models.engines.chat_protocol import (
    NotTaken,
    NotUnderstood,
    TryAgain,
    error_status,
    refusal,
)
from clipmill.stages.models.engines.lines import Answer
from clipmill.stages.models.engines.server_turns import Health, Turns
from clipmill.stages.models.engines.started_servers import StartedServer
from clipmill.stages.models.places import note_served
from clipmill.stages.references import ModelReference
from clipmill.stages.usage import REQUESTS, use

logger = logging.getLogger("clipmill.models.server")

_LONGEST_WAIT_SECONDS = 60.0
# Consecutive unanswered requests after which the servers count as down.
_UNANSWERED = 8
# Time for interrupted requests to end. A connection that is still being opened can't be cut, and
# ends by itself.
_LEAVING_SECONDS = 2.0
# A request during which the server died so often is at fault.
_DEATHS_OF_A_REQUEST = 2

Asked = TypeVar("Asked")
Found = TypeVar("Found")


class ServerClient(ABC, Generic[Asked, Found]):
    """One model on one or several servers; `concurrency` requests are in flight at a time.

    Each goes to the address with the fewest in flight; one that fails again and again is left out
    for a while. Failed requests are retried. `key_variable` names the environment variable that
    holds the API key, so that no key is in a recipe or a run's record. `options` are added to every
    request; an option that is None removes a default (some models refuse `temperature`).

    After as many consecutive unanswered requests as are sent at a time, and at least 8, the others
    fail without being sent, and those that come later wait while a single one is tried. So servers
    that are down cost about a minute per round instead of hours, and are used again once they are
    back.

    A wrong key (401, 403), an account without credit (402), or a model or address that isn't there
    (404, a redirect), is ServerRefused with the `setting` that names the model. Once a server has
    answered, 403 concerns only its request: some servers refuse what a picture shows that way.

    With a server of its own, `started`, a request whose connection breaks because the server dies
    is sent again, alone, to the server that is started in its place. If that dies, too, the
    request fails as a crash.

    Exiting the context manager, even during requests, cuts those and sends no more.
    """

    bounds_time = True
    refused_part = ""
    """What a server that takes only a part of a request refuses, and what is done about it."""

    def __init__(
        self,
        reference: ModelReference,
        *,
        setting: str = "",
        concurrency: int = 8,
        timeout_seconds: float = 120.0,
        retries: int = 4,
        first_wait_seconds: float = 1.0,
        key_variable: str = "OPENAI_API_KEY",
        options: Mapping[str, Any] | None = None,
        started: StartedServer | None = None,
    ) -> None:
        self._setting, self._reference, self._started = setting, reference, started
        self._concurrency, self._retries = concurrency, retries
        self._timeout_seconds, self._first_wait_seconds = timeout_seconds, first_wait_seconds
        self._key_variable = key_variable
        self._options = options or {}
        self._model = str(reference.model)
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="model-server")
        self._closing = threading.Event()
        self._alarm = Alarm()
        tls = httpx.create_ssl_context()
        headers = {**_authorization(key_variable), **self.more_headers}
        self._addresses = [
            Address(url, headers, tls, self._closing, self._alarm, direct=started is not None)
            for url in reference.servers
        ]
        self._lock = threading.Lock()
        self._asked: set[Future[Found]] = set()
        self._health = Health(max(concurrency, _UNANSWERED))
        self._turns = Turns(concurrency)
        self._asking = 0
        self._answered = threading.Condition()
        self._has_answered = False
        self._takes_all: bool | None = None  # not known yet
        self._answered_by: set[str] = set()

    @abstractmethod
    def message(
        self, request: Asked, model: str, options: Mapping[str, Any], *, in_full: bool
    ) -> tuple[str, bytes]:
        """The path below the address, and the body; `in_full` with what not all servers take."""

    @abstractmethod
    def understood(self, url: str, content: bytes) -> tuple[Found, str]:
        """What an answer with status 200 says, and what it says about the model that gave it.

        NotUnderstood if it is something else, such as an error.
        """

    def has_more(self, request: Asked) -> bool:
        """Whether a request has something that not all servers take."""
        return False

    @property
    def more_headers(self) -> dict[str, str]:
        return {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._health.close()
        self._turns.close()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for address in self._addresses:
            address.cut()
        with self._lock:
            left = [asked for asked in self._asked if not asked.cancelled()]
        wait(left, _LEAVING_SECONDS)
        with self._answered:
            self._answered.wait_for(lambda: not self._asking, _LEAVING_SECONDS)
        for address in self._addresses:
            address.close()
        self._alarm.close()

    def check(self) -> list[str]:
        """Records what the servers say about the model; ClipmillError if none is there.

        Returns the names of the models that they list, if they do.
        """
        missing = []
        names: dict[str, None] = {}
        for address in self._addresses:
            try:
                listed = address.models(self._timeout_seconds)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                address.leave_out()
                missing.append(not_reached(address.name, error))
                continue
            names.update(dict.fromkeys(listed))
            if self._reference.served_as in listed and self._reference.model not in listed:
                # The name itself has an @, which usually begins a revision.
                self._model = self._reference.served_as
            note_served(self._setting, address.shown, listed.get(self._model, {}))
        if len(missing) == len(self._addresses):
            raise ClipmillError(
                f"{self._setting}: {'; '.join(missing)}, or point to another with "
                f"--set {self._setting}=http://HOST:PORT/v1#MODEL"
            )
        for said in missing:
            logger.warning("%s: %s; it is left out for now", self._setting, said)
        return list(names)

    def answer(self, request: Asked) -> Found | RowFailed:
        """Answers in the calling thread: to hand a request to another one and back would take
        about as long as all else about it."""
        with self._answered:
            self._asking += 1
        try:
            with self._alarm.beating():
                return self._answer(request, time.monotonic())
        except RowFailed as failure:
            return failure
        finally:
            with self._answered:
                self._asking -= 1
                self._answered.notify_all()

    def submit(self, request: Asked) -> Future[Found]:
        # With the caller's context, which has the account for what is used.
        answer = functools.partial(self._answer, request, time.monotonic())
        asked = self._pool.submit(contextvars.copy_context().run, answer)
        with self._lock:
            self._asked.add(asked)
        asked.add_done_callback(self._forget)
        return asked

    def submit_all(self, requests: Sequence[Asked]) -> list[Future[Found]]:
        return [self.submit(request) for request in requests]

    def _forget(self, asked: Future[Found]) -> None:
        with self._lock:
            self._asked.discard(asked)

    def _answer(self, request: Asked, submitted: float) -> Found:
        retries = self._retries
        if self._health.is_down():
            pause = self._backoff(retries).pause_seconds(retries)
            if not self._health.may_ask(submitted, pause):
                raise self._not_contacted()
            retries = 0 if self._health.is_down() else retries
        well = False
        try:
            found = self._sent(request, retries)
            well = True
            return found
        except RowFailed as failure:
            well = failure.kind != "transient"
            raise
        finally:
            self._health.went(well)

    def _not_contacted(self) -> RowFailed:
        if self._closing.is_set():
            return self._stopped()
        where = ", ".join(address.name for address in self._addresses)
        return RowFailed(
            "transient",
            f"{where} left the last {self._health.unanswered} requests without an answer, so it "
            "was not contacted",
        )

    def _stopped(self) -> RowFailed:
        return RowFailed("transient", f"no longer waiting for {self._model}: the run was stopped")

    def _sent(self, request: Asked, retries: int) -> Found:
        """The answer; a request that may have killed the run's own server is sent again, alone."""
        deaths = 0
        while True:
            try:
                with self._turns.turn(alone=deaths > 0):
                    return self._asked_for(request, retries)
            except _Died as died:
                deaths += 1
                if deaths == _DEATHS_OF_A_REQUEST:
                    raise RowFailed(
                        "crash",
                        f"the server died {deaths} times during this request, the last time {died}",
                    ) from died

    def _asked_for(self, request: Asked, retries: int) -> Found:
        """The answer, asked for with what not all servers take, unless this one has refused it."""
        if not self.has_more(request) or self._takes_all is False:
            return self._asked_again(request, retries, in_full=False)
        try:
            found = self._asked_again(request, retries, in_full=True)
        except NotTaken as first:
            if self._takes_all:
                raise
            try:
                found = self._asked_again(request, retries, in_full=False)
            except NotTaken:
                raise first from None
            self._takes_all = False
            logger.warning("%s: %s", self._setting, self.refused_part.format(first))
            return found
        self._takes_all = True
        return found

    def _asked_again(self, request: Asked, retries: int, *, in_full: bool) -> Found:
        path, body = self.message(request, self._model, self._options, in_full=in_full)
        tried: set[Address] = set()

        def attempt() -> Found:
            if self._closing.is_set():
                raise self._stopped()
            with self._best_address(tried) as address:
                tried.add(address)
                return self._attempt(address, path, body)

        def pause_of(problem: TryAgain, seconds: float, is_last: bool) -> float:
            if self._has_address_besides(tried):
                return 0.0
            return min(max(seconds, problem.after_seconds or 0.0), _LONGEST_WAIT_SECONDS)

        try:
            return retried(
                attempt,
                self._backoff(retries),
                TryAgain,
                sleep=self._closing.wait,
                pause_of=pause_of,
            )
        except TryAgain as last:
            times = "once" if retries == 0 else f"{retries + 1} times"
            raise RowFailed(last.kind, f"{last} (tried {times})") from last

    def _attempt(self, address: Address, path: str, body: bytes) -> Found:
        use(REQUESTS)
        epoch = 0 if self._started is None else self._started.epoch
        well = False
        try:
            answer = address.post(path, body, self._timeout_seconds)
            if answer.status != 200:
                raise self._refused(address, answer)
            found, by = self._found(address, answer.content)
            well = True
        except TryAgain as problem:
            if problem.lost and self._started is not None and not self._closing.is_set():
                silent = isinstance(problem.__cause__, httpx.TimeoutException)
                if self._started.has_died(epoch, is_silent=silent):
                    raise _Died(self._started.last_words) from problem
            raise
        except RowFailed:
            well = True  # the request's own fault
            raise
        finally:
            with self._lock:
                address.went_well(well)
        self._has_answered = True
        if self._started is not None:
            self._started.has_answered()
        if by and by not in self._answered_by:
            self._answered_by.add(by)
            logger.info("%s: %s answers as %s", self._setting, address.name, by)
        return found

    def _found(self, address: Address, content: bytes) -> tuple[Found, str]:
        try:
            return self.understood(address.name, content)
        except NotUnderstood as problem:
            status = error_status(content)
            if status is None:
                raise
            raise self._refused(address, Answer(status, content)) from problem

    def _refused(self, address: Address, answer: Answer) -> Exception:
        found = refusal(
            address.name, answer, key_variable=self._key_variable, setting=self._setting
        )
        if isinstance(found, ServerRefused) and found.status == 403 and self._has_answered:
            return RowFailed(found.kind, found.message)
        return found

    @contextmanager
    def _best_address(self, tried: Collection[Address]) -> Iterator[Address]:
        """The address with the fewest requests in flight.

        One that is left out is taken only if all are, one that was tried only if no other is there.
        """
        with self._lock:
            now = time.monotonic()
            address = min(
                self._addresses,
                key=lambda one: (max(one.out_until, now), one in tried, one.in_flight),
            )
            address.in_flight += 1
        try:
            yield address
        finally:
            with self._lock:
                address.in_flight -= 1

    def _has_address_besides(self, tried: Collection[Address]) -> bool:
        """Whether one that is not left out has not been tried."""
        now = time.monotonic()
        return any(one.out_until <= now and one not in tried for one in self._addresses)

    def _backoff(self, retries: int) -> Backoff:
        return Backoff(retries, self._first_wait_seconds, _LONGEST_WAIT_SECONDS, spread=0.25)


class _Died(Exception):
    """The run's own server died during a request, and runs again."""


def _authorization(key_variable: str) -> dict[str, str]:
    key = os.environ.get(key_variable, "").strip()
    if not key.isascii() or not key.isprintable():
        raise ClipmillError(
            f"${key_variable} holds no valid API key: it contains non-ASCII or control characters"
        )
    return {"Authorization": f"Bearer {key}"} if key else {}
