"""Requests chat completions from a server with OpenAI's protocol (vLLM, SGLang, llama.cpp, …)."""

from __future__ import annotations

import base64
import os
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import httpx

from clipmill.schemas.errors import ClipmillError, ErrorKind, RowFailed, ServerRefused
from clipmill.schemas.retries import Backoff, retried
from clipmill.stages.media.fetch.proxies import proxies_of_environment
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.models.completions import Completion
from clipmill.stages.references import ModelReference
from clipmill.stages.usage import REQUESTS, TOKENS_IN, TOKENS_OUT, TOLD_TOKENS, use

_LONGEST_WAIT_SECONDS = 60.0
_CHECK_SECONDS = 10.0
# Consecutive unanswered requests after which a server counts as down.
_UNANSWERED = 8
# A chat completion is a few kilobytes of text, perhaps with its reasoning and probabilities.
_MOST_BYTES = 8 * 2**20
# Time for interrupted requests to end. A connection that is still being opened can't be cut, and
# ends by itself.
_LEAVING_SECONDS = 2.0
_BEAT_SECONDS = 1.0
# `length` is OpenAI's own word; the others are in use for the same.
_CUT_OFF = ("length", "max_tokens", "model_length")


@dataclass(frozen=True)
class Message:
    """One request: a text, and optionally a JPEG picture."""

    text: str
    jpeg: bytes | None = None

    def as_json(self) -> dict[str, Any]:
        if self.jpeg is None:
            return {"role": "user", "content": self.text}
        data = base64.b64encode(self.jpeg).decode("ascii")
        picture = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}
        return {"role": "user", "content": [picture, {"type": "text", "text": self.text}]}


@dataclass
class OpenAIServer:
    """A client for one model on a server; sends several requests at a time and retries failed
    ones.

    `key_variable` names the environment variable that holds the API key, so that no key is in a
    recipe or a run's record. `options` are added to every request; an option that is None removes
    a default (some models refuse `temperature`).

    After as many consecutive unanswered requests as are sent at a time, and at least 8, the other
    requests of a call are not sent, and each later call first waits and tries a single one. So a
    server that is down costs about a minute per batch instead of hours, and is used again once it
    is back.

    A wrong key (401, 403), or a model or address that isn't there (404), is ServerRefused with the
    `setting` that names the model. Once the server has answered, 403 concerns only its request:
    some servers refuse what a picture shows that way.

    Exiting the context manager, even during `ask`, cuts pending requests and sends no more.
    """

    reference: ModelReference
    concurrency: int = 8
    timeout_seconds: float = 120.0
    retries: int = 4
    first_wait_seconds: float = 1.0
    key_variable: str = "OPENAI_API_KEY"
    options: Mapping[str, Any] = field(default_factory=dict)
    setting: str = ""

    def __post_init__(self) -> None:
        self._url = str(self.reference.server).rstrip("/")
        self._headers = self._authorization()
        self._tls = httpx.create_ssl_context()
        self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="openai-server")
        self._closing = threading.Event()
        self._own = threading.local()
        self._lines: list[_Line] = []
        self._asked: list[Future[Completion | RowFailed]] = []
        self._lock = threading.Lock()
        self._unanswered = 0
        self._has_answered = False

    def _authorization(self) -> dict[str, str]:
        key = os.environ.get(self.key_variable, "").strip()
        if not key.isascii() or not key.isprintable():
            raise ClipmillError(
                f"${self.key_variable} holds no valid API key: it contains "
                "non-ASCII or control characters"
            )
        return {"Authorization": f"Bearer {key}"} if key else {}

    def __enter__(self) -> OpenAIServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        for line in list(self._lines):
            line.end()
        wait([asked for asked in self._asked if not asked.cancelled()], _LEAVING_SECONDS)
        for line in list(self._lines):
            line.client.close()

    def check(self) -> None:
        """Raises ClipmillError if nothing answers at the server's address.

        Any answer is accepted: not every server lists its models, and a wrong key fails each row.
        """
        try:
            self._exchange("GET", "models", min(_CHECK_SECONDS, self.timeout_seconds))
        except httpx.ConnectError as error:
            raise ClipmillError(
                f"{self.setting}: no server answers at {self._url} ({error}); start it, or "
                f"point to another with --set {self.setting}=http://HOST:PORT/v1#MODEL"
            ) from error
        except (httpx.HTTPError, _TooLong):
            # Slow or odd, but reachable: the requests themselves are retried if necessary.
            return

    def ask(
        self, messages: Sequence[Message], *, max_new_tokens: int
    ) -> list[Completion | RowFailed]:
        """One answer or failure per message, in the order of the messages."""

        def one(message: Message) -> Completion | RowFailed:
            if self._is_gone():
                return RowFailed(
                    "transient",
                    f"{self._url} left the last {self._unanswered} "
                    "requests without an answer, so it was not contacted",
                )
            return self._answer(message, max_new_tokens, self.retries)

        first: list[Completion | RowFailed] = []
        if messages and self._is_gone():
            self._closing.wait(self._backoff(self.retries).pause_seconds(self.retries))
            first = [self._answer(messages[0], max_new_tokens, 0)]
        self._asked = [self._pool.submit(one, message) for message in messages[len(first) :]]
        try:
            waiting = set(self._asked)
            while waiting:
                beat()  # a separate setting limits how long an answer may take
                _, waiting = wait(waiting, _BEAT_SECONDS)
            return first + [asked.result() for asked in self._asked]
        finally:
            for asked in self._asked:
                asked.cancel()

    def _is_gone(self) -> bool:
        return self._unanswered >= max(self.concurrency, _UNANSWERED)

    def _answer(
        self, message: Message, max_new_tokens: int, retries: int
    ) -> Completion | RowFailed:
        found: Completion | RowFailed
        try:
            found = self._ask_one(message, max_new_tokens, retries)
        except RowFailed as failure:
            found = failure
        passing = isinstance(found, RowFailed) and found.kind == "transient"
        with self._lock:
            self._unanswered = self._unanswered + 1 if passing else 0
        return found

    def _ask_one(self, message: Message, max_new_tokens: int, retries: int) -> Completion:
        body: dict[str, Any] = {
            "model": self.reference.model,
            "messages": [message.as_json()],
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "seed": 0,
            **self.options,
        }
        body = {name: value for name, value in body.items() if value is not None}

        def attempt() -> Completion:
            if self._closing.is_set():
                raise RowFailed(
                    "transient", f"no longer waiting for {self._url}: the run was stopped"
                )
            return self._post(body)

        def pause_of(problem: _TryAgain, seconds: float, is_last: bool) -> float:
            return min(max(seconds, problem.after_seconds or 0.0), _LONGEST_WAIT_SECONDS)

        try:
            return retried(
                attempt,
                self._backoff(retries),
                _TryAgain,
                sleep=self._closing.wait,
                pause_of=pause_of,
            )
        except _TryAgain as last:
            times = "once" if retries == 0 else f"{retries + 1} times"
            raise RowFailed(last.kind, f"{last} (tried {times})") from last

    def _backoff(self, retries: int) -> Backoff:
        return Backoff(retries, self.first_wait_seconds, _LONGEST_WAIT_SECONDS, spread=0.25)

    def _post(self, body: dict[str, Any]) -> Completion:
        use(REQUESTS)
        try:
            answer, content = self._exchange("POST", "chat/completions", self.timeout_seconds, body)
        except httpx.TimeoutException as error:
            raise _TryAgain(
                "transient", f"{self._url} did not answer within {self.timeout_seconds:g} s"
            ) from error
        except httpx.HTTPError as error:
            raise _TryAgain("transient", f"{self._url}: {type(error).__name__}: {error}") from error
        except _TooLong as error:
            raise _TryAgain(
                "model", f"{self._url} answered with more than {_MOST_BYTES >> 20} MiB"
            ) from error
        if answer.status_code != 200:
            raise self._refusal(answer, content)
        return self._completion(content)

    def _exchange(
        self, method: str, path: str, seconds: float, body: dict[str, Any] | None = None
    ) -> tuple[httpx.Response, bytes]:
        """A response and its body; raises httpx.HTTPError or _TooLong if there is none in time."""
        content = bytearray()
        with (
            self._line().within(seconds) as line,
            line.client.stream(
                method,
                f"{self._url}/{path}",
                json=body,
                headers=self._headers,
                timeout=httpx.Timeout(seconds, connect=min(_CHECK_SECONDS, seconds)),
                extensions={"trace": line.watch},
            ) as answer,
        ):
            for part in answer.iter_bytes():
                content += part
                if len(content) > _MOST_BYTES:
                    raise _TooLong
        return answer, bytes(content)

    def _line(self) -> _Line:
        """This thread's own client, kept for its next request."""
        if not hasattr(self._own, "line"):
            with proxies_of_environment():
                self._own.line = _Line(httpx.Client(verify=self._tls), self._closing)
            self._lines.append(self._own.line)
        line: _Line = self._own.line
        return line

    def _refusal(self, answer: httpx.Response, content: bytes) -> Exception:
        status = answer.status_code
        said = " ".join(content[:500].decode("utf-8", "replace").split())
        text = f"{self._url} answered {status}: {said}"
        if status in (408, 409, 425, 429) or status >= 500:
            return _TryAgain("transient", text, _retry_after(answer))
        if status in (401, 403):
            text = f"{text}; the key is read from ${self.key_variable}"
            if status == 403 and self._has_answered:
                return RowFailed("blocked", text)
            return ServerRefused("blocked", text, status, self.setting)
        if status == 404:
            return ServerRefused("permanent", text, status, self.setting)
        if status in (400, 413, 422):
            return RowFailed("model", text)
        return RowFailed("permanent", text)

    def _completion(self, content: bytes) -> Completion:
        try:
            answer = httpx.Response(200, content=content).json()
            counts = _count_tokens(answer.get("usage"))
            choice = answer["choices"][0]
            text = choice["message"]["content"]
            reason = choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            said = content[:200].decode("utf-8", "replace")
            raise _TryAgain(
                "model",
                f"{self._url} answered with something that is not a chat completion: {said!r}",
            ) from error
        if reason == "content_filter":
            raise RowFailed("model", f"{self._url} filtered its answer")
        if not isinstance(text, str | None):
            raise RowFailed("model", f"{self._url} answered with content that is not text")
        self._has_answered = True
        return Completion(text or "", reason not in _CUT_OFF, *counts)


class _Line:
    """One thread's client, with one connection that can be cut after a time limit.

    httpx only limits each wait for bytes, not the whole response: a server that sends one byte at
    a time would never time out. Once `closing` is set, any new connection is cut as soon as it is
    open.
    """

    def __init__(self, client: httpx.Client, closing: threading.Event) -> None:
        self.client = client
        self._closing = closing
        self._socket: socket.socket | None = None
        self._cut = False

    def watch(self, event: str, details: Mapping[str, Any]) -> None:
        """An httpcore `trace` that records each new connection."""
        if event.endswith(("connect_tcp.complete", "start_tls.complete")):
            self._socket = details["return_value"].get_extra_info("socket")
            if self._cut or self._closing.is_set():
                self._shut()

    @contextmanager
    def within(self, seconds: float) -> Iterator[_Line]:
        """Cuts the connection after this many seconds; then raises httpx.ReadTimeout."""
        self._cut = False
        clock = threading.Timer(seconds, self.end)
        clock.daemon = True
        clock.start()
        try:
            yield self
        except httpx.HTTPError as error:
            if self._cut:
                raise httpx.ReadTimeout("the answer never ended") from error
            raise
        finally:
            clock.cancel()
            clock.join()
        if self._cut:
            # A body without a declared length looks complete when its connection ends.
            raise httpx.ReadTimeout("the answer never ended")

    def end(self) -> None:
        """Cuts the connection now."""
        self._cut = True
        self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)


class _TooLong(Exception):
    pass


class _TryAgain(Exception):
    def __init__(self, kind: ErrorKind, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.after_seconds = after_seconds


def _count_tokens(usage: Any) -> tuple[int | None, int | None]:
    """The tokens of prompt and answer that a server says it has charged; not all servers do."""
    told = usage if isinstance(usage, Mapping) else {}
    into, out = told.get("prompt_tokens"), told.get("completion_tokens")
    if not (isinstance(into, int) and isinstance(out, int) and min(into, out) >= 0):
        return None, None
    use(TOKENS_IN, into)
    use(TOKENS_OUT, out)
    use(TOLD_TOKENS)
    return into, out


def _retry_after(answer: httpx.Response) -> float | None:
    try:
        return float(answer.headers.get("Retry-After", ""))
    except ValueError:
        return None
