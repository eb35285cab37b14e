"""Submits a command to a Ray cluster's job server and follows what the job prints."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import aiohttp
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from clipmill.schemas.errors import ClipmillError, UsageError

_ANSWER_SECONDS = (5.0, 30.0)  # to connect, and to answer
# After this silence the job's state is checked; a connection may break without notice.
_QUIET_SECONDS = 10.0
_AGAIN_SECONDS = 1.0
# If set, Ray prefers each of these variables to the address that it is given.
_ADDRESSES_OF_ENVIRONMENT = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
_TROUBLE = (
    RayError,
    aiohttp.ClientError,
    OSError,
    RuntimeError,
    ValueError,
    TypeError,
    LookupError,
)


class _Client(JobSubmissionClient):
    """Ray's client; by default it would wait forever for a head node that no longer answers."""

    def _do_request(self, method: str, endpoint: str, **given: Any) -> Any:
        return super()._do_request(method, endpoint, timeout=_ANSWER_SECONDS, **given)


class _NoAnswer(Exception):
    """The job server can't be asked just now, because of the error that caused this one."""


class Job:
    """A job that was submitted to a cluster's job server."""

    def __init__(self, client: JobSubmissionClient, job_id: str, address: str) -> None:
        self._client = client
        self.address = address
        self._state: str | None = None
        self.id = job_id

    def follow(self, output: TextIO, *, patience_seconds: float = 60.0) -> str:
        """Copies the job's log to `output`, as it grows, until the job ends; returns its last
        state.

        A broken connection is reopened, and the log continues where it stopped. Raises
        ClipmillError if the job server doesn't answer for `patience_seconds`, or has lost the job.
        """
        return asyncio.run(self._follow(output, patience_seconds))

    async def _follow(self, output: TextIO, patience_seconds: float) -> str:
        written = 0
        lost_at: float | None = None
        while True:
            try:
                if lost_at is not None:
                    self._state = await self._ask_state()
                passed = 0  # a new connection sends the log from its beginning
                async for text in self._log():
                    new = text[max(0, written - passed) :]
                    passed += len(text)
                    written = max(written, passed)
                    output.write(new)
                    output.flush()
                    lost_at = None
                state = self._state or await self._ask_state()
            except _NoAnswer as problem:
                lost_at = lost_at or time.monotonic()
                if time.monotonic() - lost_at >= patience_seconds:
                    raise self._lost(problem.__cause__) from problem
            else:
                if state is not None:
                    return state
                lost_at = None
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _log(self) -> AsyncIterator[str]:
        """The log from its beginning, until the server ends it or the job has ended."""
        # It is an asynchronous generator, which Ray's types don't say.
        stream: Any = self._client.tail_job_logs(self.id)
        coming = asyncio.ensure_future(anext(stream, None))
        try:
            while True:
                done, _ = await asyncio.wait({coming}, timeout=_QUIET_SECONDS)
                if done:
                    try:
                        text = coming.result()
                    except _TROUBLE as error:
                        raise _NoAnswer from error
                    if text is None:
                        return
                    yield text
                    coming = asyncio.ensure_future(anext(stream, None))
                elif self._state is not None:
                    return  # the job had already ended, and nothing has arrived since
                else:
                    self._state = await self._ask_state()
        finally:
            coming.cancel()
            with contextlib.suppress(*_TROUBLE, asyncio.CancelledError):
                await coming
            await stream.aclose()

    async def _ask_state(self) -> str | None:
        """The state in which the job ended; None if it is still running."""
        try:
            state = await asyncio.to_thread(self._client.get_job_status, self.id)
        except _TROUBLE as error:
            if isinstance(error, RuntimeError) and "status code 404" in str(error):
                raise ClipmillError(
                    f"the job server at {self.address} no longer knows job {self.id}: its head "
                    "was restarted, and the job ended with the previous one; submit it again, "
                    "and it does what is missing"
                ) from error
            raise _NoAnswer from error
        return str(state.value) if state.is_terminal() else None

    def _lost(self, error: BaseException | None) -> ClipmillError:
        return ClipmillError(
            f"the job server at {self.address} no longer answers: {_first_words(error)}; the job "
            f"may still be running: once it answers, `ray job logs --address {self.address} "
            f"--follow {self.id}` shows what it prints"
        )

    def message(self) -> str:
        """What the cluster says about how the job ended."""
        try:
            return str(self._client.get_job_info(self.id).message or "no message")
        except _TROUBLE as error:
            return f"no message ({_first_words(error)})"


def submit_job(address: str, command: str, folder: Path, constraints: Path | None) -> Job:
    """Submits `command` to the job server at `address`, with `folder` as its working directory.

    `constraints` names the pinned versions for the job's environment; with None the job uses the
    nodes' packages. Raises ClipmillError if the server can't be reached or refuses, UsageError if
    `address` is not one of a job server.
    """
    url = job_server(address)
    environment: dict[str, Any] = {
        "working_dir": str(folder),
        "env_vars": {"PYTHONUNBUFFERED": "1"},
    }
    if constraints is not None:
        pins = [
            line
            for line in constraints.read_text("utf-8").splitlines()
            if line and not line.startswith(("#", "-"))
        ]
        environment["pip"] = {"packages": pins, "pip_check": False}
    try:
        with _address_of_command_line():
            client = _Client(url)
        return Job(client, client.submit_job(entrypoint=command, runtime_env=environment), url)
    except _TROUBLE as error:
        raise ClipmillError(
            f"the job server at {url} did not accept the job: "
            f"{_first_words(error)}; {_advice(error)}"
        ) from error


def job_server(address: str) -> str:
    """A job server's URL; `http://` is added to a bare host and port.

    Raises UsageError if it can't be one.
    """
    url = (address if "://" in address else f"http://{address}").rstrip("/")
    try:
        parts = urlsplit(url)
        is_one = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_one = False
    if not is_one:
        raise UsageError(
            f"--address {address!r} is not the address of a job server; give the "
            "dashboard's, e.g. --address http://head:8265"
        )
    return url


@contextlib.contextmanager
def _address_of_command_line() -> Iterator[None]:
    """Keeps Ray from using another address than the given one."""
    kept = {name: os.environ.pop(name) for name in _ADDRESSES_OF_ENVIRONMENT if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(kept)


def _advice(error: Exception) -> str:
    said = str(error)
    if said.startswith(("Authentication required", "Authentication failed")):
        return (
            "this cluster requires a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH "
            "to a file with the token that the head was started with"
        )
    return (
        "is it the dashboard's address (port 8265 by default), and is its head running? "
        "`ray start --head --dashboard-host=0.0.0.0` starts one"
    )


def _first_words(error: BaseException | None) -> str:
    """The error's first line; Ray adds pages of advice for its own command line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__
