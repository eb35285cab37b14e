"""Chat completions from a server that speaks OpenAI's protocol (vLLM, SGLang, llama.cpp, …)."""

from __future__ import annotations

import base64
import os
import random
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx

from schemas.errors import ClipmillError, ErrorKind, RowFailed
from stages.models.references import ModelReference

_LONGEST_WAIT_SECONDS = 60.0


@dataclass(frozen=True)
class Completion:
    """What the model said. `complete` is false where it was cut off at the token limit."""

    text: str
    complete: bool = True


@dataclass(frozen=True)
class Message:
    """One question: a text, and a JPEG picture or none."""

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
    """Asks one model behind a server, several questions at a time, each until it is answered.

    `key_variable` names the environment variable that holds the API key, so that no key stands in
    a recipe or in a run's record. `options` are added to every request; an option that is None
    takes a default one away (some models refuse `temperature`).
    """

    reference: ModelReference
    concurrency: int = 8
    timeout_seconds: float = 120.0
    retries: int = 4
    first_wait_seconds: float = 1.0
    key_variable: str = "OPENAI_API_KEY"
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        key = os.environ.get(self.key_variable)
        self._url = str(self.reference.server).rstrip("/")
        self._client = httpx.Client(
            timeout=httpx.Timeout(self.timeout_seconds, connect=min(10.0, self.timeout_seconds)),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=self.concurrency),
        )
        self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="openai-server")
        self._closing = threading.Event()

    def __enter__(self) -> OpenAIServer:
        return self

    def __exit__(self, *exception: object) -> None:
        self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._client.close()

    def check(self, setting: str) -> None:
        """Raises ClipmillError where nothing answers at the server's address.

        Any answer will do: not every server lists its models, and a wrong key shows in each row.
        """
        try:
            self._client.get(f"{self._url}/models", timeout=10.0)
        except httpx.ConnectError as error:
            raise ClipmillError(
                f"{setting}: no server answers at {self._url} ({error}); start it, or point to "
                f"another with --set {setting}=http://HOST:PORT/v1#MODEL"
            ) from error
        except httpx.HTTPError:
            # Slow or odd, but there: the requests themselves are tried again where needed.
            return

    def ask(
        self, messages: Sequence[Message], *, max_new_tokens: int
    ) -> list[Completion | RowFailed]:
        """One answer or failure a message, in the order of the messages."""
        def one(message: Message) -> Completion | RowFailed:
            try:
                return self._ask_one(message, max_new_tokens)
            except RowFailed as failure:
                return failure

        return list(self._pool.map(one, messages))

    def _ask_one(self, message: Message, max_new_tokens: int) -> Completion:
        body: dict[str, Any] = {
            "model": self.reference.model,
            "messages": [message.as_json()],
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "seed": 0,
            **self.options,
        }
        body = {name: value for name, value in body.items() if value is not None}
        for attempt in range(self.retries + 1):
            try:
                return self._post(body)
            except _TryAgain as problem:
                last = problem
            if attempt < self.retries:
                self._wait(attempt, last.after_seconds)
        raise RowFailed(last.kind, f"{last} (asked {self.retries + 1} times)")

    def _wait(self, attempt: int, after_seconds: float | None) -> None:
        # Spread out, so that many workers do not come back at the same moment.
        seconds = self.first_wait_seconds * 2**attempt * random.uniform(0.75, 1.25)
        self._closing.wait(min(max(seconds, after_seconds or 0.0), _LONGEST_WAIT_SECONDS))

    def _post(self, body: dict[str, Any]) -> Completion:
        # httpx bounds each read, not the whole answer; a server that drips is cut off here.
        deadline = time.monotonic() + self.timeout_seconds
        try:
            with self._client.stream("POST", f"{self._url}/chat/completions", json=body) as answer:
                parts = []
                for part in answer.iter_bytes():
                    parts.append(part)
                    if time.monotonic() > deadline:
                        raise httpx.ReadTimeout("the answer never ended")
        except httpx.TimeoutException as error:
            raise _TryAgain(
                "transient", f"{self._url} did not answer within {self.timeout_seconds:g} s"
            ) from error
        except httpx.HTTPError as error:
            raise _TryAgain(
                "transient", f"{self._url}: {type(error).__name__}: {error}"
            ) from error
        content = b"".join(parts)
        if answer.status_code != 200:
            raise self._refusal(answer, content)
        return self._completion(content)

    def _refusal(self, answer: httpx.Response, content: bytes) -> Exception:
        status = answer.status_code
        said = " ".join(content[:500].decode("utf-8", "replace").split())
        text = f"{self._url} answered {status}: {said}"
        if status in (408, 409, 425, 429) or status >= 500:
            return _TryAgain("transient", text, _retry_after(answer))
        if status in (401, 403):
            return RowFailed("blocked", f"{text}; the key is read from ${self.key_variable}")
        if status in (400, 413, 422):
            return RowFailed("model", text)
        return RowFailed("permanent", text)

    def _completion(self, content: bytes) -> Completion:
        try:
            choice = httpx.Response(200, content=content).json()["choices"][0]
            text = choice["message"]["content"]
            reason = choice.get("finish_reason")
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            said = content[:200].decode("utf-8", "replace")
            raise _TryAgain(
                "model", f"{self._url} answered with something that is no chat completion: {said!r}"
            ) from error
        if reason == "content_filter":
            raise RowFailed("model", f"{self._url} filtered its answer")
        if not isinstance(text, str | None):
            raise RowFailed("model", f"{self._url} answered with content that is no text")
        return Completion(text or "", complete=reason != "length")


class _TryAgain(Exception):
    def __init__(self, kind: ErrorKind, message: str, after_seconds: float | None = None) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.after_seconds = after_seconds


def _retry_after(answer: httpx.Response) -> float | None:
    try:
        return float(answer.headers.get("Retry-After", ""))
    except ValueError:
        return None


