"""A model server that the run starts itself: started, watched, started again, ended."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from clipmill.schemas.errors import ClipmillError, printable
from clipmill.stages.media.isolation.progress import beat

logger = logging.getLogger("clipmill.models.server")
logger.setLevel(logging.INFO)  # below what Python shows by itself

_LOOK_SECONDS = 0.2
_HEALTH_SECONDS = 10.0
# After a connection broke, a dying server ends within this time.
_DYING_SECONDS = 5.0
_LEAVING_SECONDS = 10.0
# Without an answer in between; then no further start would help.
_MOST_DEATHS_IN_A_ROW = 4
_LAST_LINES = 20
_LINE_CHARACTERS = 300
# A line per request says nothing, and there are millions.
_ACCESS_LINE = re.compile(r'"(GET|POST) /\S* HTTP/')
# Variables for this process's Python that would break another one.
_NOT_PASSED_ON = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PYTHONSTARTUP")
_WATCHER = Path(__file__).with_name("watched_program.py")


class StartedServer:
    """A server program on a loopback port; usable from any thread once started.

    It ends with this process, however that ends. `setting` names it in errors. Every line that it
    prints goes to the run's log. It is started again when it has died or no longer answers, unless
    that happens again and again without an answer in between.
    """

    def __init__(
        self,
        command: Callable[[int], Sequence[str]],
        setting: str,
        *,
        start_seconds: float,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._command, self._setting = command, setting
        self._start_seconds = start_seconds
        self._environment = environment or {}
        self._port = _free_port()
        self._lock = threading.Lock()
        self._closing = threading.Event()
        self._said: deque[str] = deque(maxlen=_LAST_LINES)
        self._process: subprocess.Popen[bytes] | None = None
        self._deaths_in_a_row = 0
        self.epoch = 0
        """How often it was started."""
        self.last_words = ""
        """How it ended the last time that it died, and what it said before."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}/v1"

    def start(self) -> None:
        """Starts it and waits until it answers; ClipmillError if it doesn't."""
        with self._lock:
            self._start()

    def close(self) -> None:
        """Ends it; also while it starts."""
        self._closing.set()
        if self._process is not None:
            self._end(self._process)

    def has_answered(self) -> None:
        self._deaths_in_a_row = 0

    def has_died(self, epoch: int, *, is_silent: bool) -> bool:
        """Whether it died since `epoch`, when a request was sent whose connection broke.

        If so, it is running again. One that `is_silent`, and is so at its health check, too, is
        ended. Raises ClipmillError if it can't be had any more.
        """
        with self._lock:
            if self.epoch != epoch or self._closing.is_set():
                return self.epoch != epoch
            process = self._process
            assert process is not None, "it was started before anything was sent"
            if is_silent:
                if self._is_well(_HEALTH_SECONDS):
                    return False
                logger.warning("%s: the server no longer answers and is ended", self._setting)
                self._end(process)
            try:
                process.wait(_DYING_SECONDS)
            except subprocess.TimeoutExpired:
                return False
            self._deaths_in_a_row += 1
            how = self.last_words = self._how_it_ended(process)
            if self._deaths_in_a_row >= _MOST_DEATHS_IN_A_ROW:
                raise ClipmillError(
                    f"{self._setting}: the server died {self._deaths_in_a_row} times in a row, "
                    f"the last time {how}"
                )
            logger.warning("%s: the server died %s; starting it again", self._setting, how)
            self._start()
            return True

    def _last_lines(self) -> str:
        """What it printed last, indented."""
        return "".join(f"\n  {line}" for line in list(self._said)) or " nothing"

    def _start(self) -> None:
        command = list(self._command(self._port))
        if not Path(command[0]).is_file():
            raise ClipmillError(
                f"{self._setting}: no Python at {command[0]}; install the server in an "
                "environment of its own, and name that environment's bin/python"
            )
        logger.info("%s: starting %s", self._setting, " ".join(command))
        self._said.clear()
        environment = {k: v for k, v in os.environ.items() if k not in _NOT_PASSED_ON}
        process = subprocess.Popen(
            [sys.executable, "-I", str(_WATCHER), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**environment, "PYTHONUNBUFFERED": "1", **self._environment},
        )
        self._process = process
        self.epoch += 1
        threading.Thread(target=self._hear, args=(process,), daemon=True).start()
        began = time.monotonic()
        while not self._is_well(1.0):
            beat()
            if self._closing.wait(_LOOK_SECONDS):
                raise ClipmillError(f"{self._setting}: the run was stopped")
            if process.poll() is not None:
                raise ClipmillError(
                    f"{self._setting}: the server ended before it answered, "
                    f"{self._how_it_ended(process)}"
                )
            if time.monotonic() - began > self._start_seconds:
                self._end(process)
                raise ClipmillError(
                    f"{self._setting}: the server did not answer within "
                    f"{self._start_seconds:g} s (start_seconds). It said last:{self._last_lines()}"
                )
        logger.info("%s: the server answers after %.1f s", self._setting, time.monotonic() - began)

    def _is_well(self, seconds: float) -> bool:
        """Whether its health check, or else its list of models, answers."""
        root = self.url.removesuffix("/v1")
        try:
            with httpx.Client(timeout=seconds, trust_env=False) as client:
                answer = client.get(f"{root}/health")
                if answer.status_code == 404:
                    answer = client.get(f"{self.url}/models")
        except httpx.HTTPError:
            return False
        return answer.status_code == 200

    def _hear(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for raw in process.stdout:
            line = printable(raw.decode("utf-8", "replace")).rstrip()[:_LINE_CHARACTERS]
            if line and not _ACCESS_LINE.search(line):
                self._said.append(line)
                logger.info("%s: %s", self._setting, line)

    def _how_it_ended(self, process: subprocess.Popen[bytes]) -> str:
        # What it said last may still be on its way.
        time.sleep(_LOOK_SECONDS)
        code = process.wait()
        how = f"by signal {code - 128}" if code > 128 else f"with exit status {code}"
        return f"{how}. It said last:{self._last_lines()}"

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        """Closing its input tells the watcher to end the program and all that it has started."""
        assert process.stdin is not None
        process.stdin.close()
        try:
            process.wait(_LEAVING_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


class _Shared:
    """Servers in use by this process, so that stages with the same model share one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._used: dict[object, tuple[StartedServer, int]] = {}

    @contextmanager
    def use(self, key: object, make: Callable[[], StartedServer]) -> Iterator[StartedServer]:
        with self._lock:
            server, users = self._used.get(key, (None, 0))
            if server is None:
                server = make()
                try:
                    server.start()
                except BaseException:
                    server.close()
                    raise
            self._used[key] = (server, users + 1)
        try:
            yield server
        finally:
            with self._lock:
                users = self._used[key][1] - 1
                self._used[key] = (server, users)
                if not users:
                    del self._used[key]
            if not users:
                server.close()


shared_servers = _Shared()
