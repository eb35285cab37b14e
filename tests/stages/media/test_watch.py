"""Limits on a download attempt, with simulated data and clock."""

from __future__ import annotations

import threading
import time
from types import SimpleNamespace

import pytest

from clipmill.stages.media.fetch import watch
from clipmill.stages.media.fetch.problems import PassingProblem
from clipmill.stages.media.fetch.watch import BytesSoFar, DownloadLimits, Stopwatch, Watch

LIMITS = DownloadLimits(min_bytes_per_second=1000, window_seconds=0.4)


class Download:
    """A download that grows by `bytes_a_look` with each check."""

    def __init__(self, bytes_a_look: int) -> None:
        self.bytes_a_look, self.looks = bytes_a_look, 0

    def __call__(self) -> BytesSoFar:
        self.looks += threading.current_thread() is not threading.main_thread()
        return BytesSoFar(self.looks * self.bytes_a_look, 0)

    def go_on(self, watching: Watch, looks: int) -> None:
        until = self.looks + looks
        while self.looks < until:
            watching.check()
            time.sleep(0.01)


def watching_of(download: Download) -> Watch:
    return Watch(LIMITS, download, Stopwatch(), cut_off=lambda problem: None)


def test_pause_of_this_process_does_not_count_against_a_server(monkeypatch):
    """A stopped process, say, for minutes: nothing could come meanwhile."""
    clock = SimpleNamespace(ahead=0.0, monotonic=lambda: time.monotonic() + clock.ahead)
    monkeypatch.setattr(watch, "time", clock)
    download = Download(400)
    with watching_of(download) as watching:
        for _ in range(3):
            download.go_on(watching, looks=6)
            clock.ahead += 100.0


def test_slow_server_is_detected_despite_frequent_pauses(monkeypatch):
    began = time.monotonic()
    monkeypatch.setattr(
        watch, "time", SimpleNamespace(monotonic=lambda: began + 100 * (time.monotonic() - began))
    )
    download = Download(20)
    with watching_of(download) as watching, pytest.raises(PassingProblem, match="slower than"):
        download.go_on(watching, looks=50)
