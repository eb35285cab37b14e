"""Calls yt-dlp in its helper process, and repeats the calls as the settings say."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlsplit

from clipmill.schemas.retries import Backoff
from clipmill.stages.media.fetch import ytdlp_process
from clipmill.stages.media.fetch.attempts import patiently
from clipmill.stages.media.fetch.host_throttle import Hosts
from clipmill.stages.media.fetch.watch import DownloadLimits, Stopwatch
from clipmill.stages.media.fetch.ytdlp_errors import logger
from clipmill.stages.media.isolation import isolated

Result = TypeVar("Result")

# No total limit: an attempt's own limits exclude the time in which it waits its turn.
_OF_PROCESS = isolated.Limits(time_limit_seconds=math.inf)


class Call(Protocol):
    """Runs a function in yt-dlp's process: it gets a `Worker`, and the other arguments."""

    def __call__(self, function: Callable[..., Result], /, *args: Any) -> Result: ...


@dataclass(frozen=True)
class YtDlp:
    """yt-dlp for one URL, whose files are in `folder`.

    `checks` answers what yt-dlp's process asks about the video: `judge` and `check_known`.
    """

    url: str
    folder: Path
    hosts: Hosts
    patience: Backoff
    limits: DownloadLimits
    checks: Mapping[str, Callable[..., None]] = field(default_factory=dict)

    def attempt(self, attempt: Callable[[Call], Result], most_retries: int | None = None) -> Result:
        """The result of `attempt`, which is repeated after temporary problems."""
        patience = self.patience
        if most_retries is not None:
            patience = replace(patience, retries=min(patience.retries, most_retries))

        def attempted(stopwatch: Stopwatch) -> Result:
            def call(function: Callable[..., Any], /, *args: Any) -> Any:
                return self._call(stopwatch, function, *args)

            return attempt(call)

        host = urlsplit(self.url).hostname or self.url
        return patiently(attempted, host=host, hosts=self.hosts, patience=patience)

    def call(
        self, function: Callable[..., Result], /, *args: Any, most_retries: int | None = None
    ) -> Result:
        """The result of a function in yt-dlp's process, repeated after temporary problems."""
        return self.attempt(lambda call: call(function, *args), most_retries)

    def _call(self, stopwatch: Stopwatch, function: Callable[..., Any], *args: Any) -> Any:
        hosts = self.hosts
        answers: dict[str, Callable[..., Any]] = {
            "wait": hosts.wait,
            "hold": hosts.hold,
            "answered": hosts.answered,
            "last_asked": lambda: hosts.last_asked(""),
            "got_through": hosts.got_through,
            "log": lambda message: logger.info("%s", message),
            **self.checks,
        }
        attempt = ytdlp_process.Attempt(
            self.folder,
            self.limits,
            stopwatch.seconds,
            hosts.kind,
            ytdlp_process.proxies_of_environment(),
        )
        return isolated.run_fetching(
            ytdlp_process.run,
            self.url,
            attempt,
            function,
            *args,
            limits=_OF_PROCESS,
            answer=lambda question, given: answers[question](*given),
        )
