"""The same protection for requests by others: yt-dlp's redirects, lists, ffmpeg."""

from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from http.client import HTTPConnection
from pathlib import Path

import psutil
import pyarrow as pa
import pytest

from clipmill.pipeline.ingest import playlists as expansion
from clipmill.pipeline.ingest.source_spec import SourceSpec
from clipmill.pipeline.ingest.sources import ingest
from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.media.fetch import ytdlp_calls
from clipmill.stages.media.isolation.isolated import Limits
from clipmill.stages.protocol import Workspace
from tests.download_helpers import add_extractor, assert_distance, make_video, outcome, stage
from tests.http_server import Endless, File, Hang, Redirect, Trickle, serve
from tests.ytdlp_changes import change_ytdlp_process

VIDEO = make_video()
HASTY = {"min_bytes_per_second": 5_000, "min_speed_seconds": 0.4, "timeout_seconds": 100}


@pytest.fixture
def site():
    with serve() as server:
        yield server


@pytest.fixture
def inside():
    """A server at another loopback address, which must not be contacted."""
    with serve("127.0.0.2") as server:
        server.file("/secret.mp4", VIDEO)
        yield server


def download(dataset: Path, *rows: dict, **settings) -> list[dict]:
    table = pa.Table.from_pylist(
        [{"source_key": source_key(row["url"]), **row} for row in rows], SOURCES
    )
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        return transform(table).to_pylist()


def page(video: str) -> str:
    return f"<!DOCTYPE html><title>A film</title><video src='{video}'></video>"


# yt-dlp's redirects


@pytest.fixture(params=["requests", "urllib"])
def library(request, monkeypatch):
    """What yt-dlp makes its requests with."""
    library = request.param

    def leave_out_others(put) -> None:
        from yt_dlp.YoutubeDL import YoutubeDL

        build = YoutubeDL.build_request_director
        put(
            YoutubeDL,
            "build_request_director",
            lambda self, handlers, preferences=None: build(
                self, [one for one in handlers if one.RH_KEY.lower() == library], preferences
            ),
        )

    change_ytdlp_process(leave_out_others, monkeypatch.setattr)
    return library


def test_each_redirect_of_yt_dlp_takes_its_turn(tmp_path, site, library):
    site.page("/page", page("/one"))
    for here, there in (("/start", "/page"), ("/one", "/two"), ("/two", "/v.mp4")):
        site.script(here, Redirect(there))
    site.file("/v.mp4", VIDEO)
    # No `.mp4` at the end, and no plain file, so that yt-dlp is used.
    row = {"url": site.url("/start"), "extractor": "home"}
    download(tmp_path / "before", row)  # so that importing yt-dlp takes no time later
    site.log.clear()
    began = time.monotonic()
    [row] = download(tmp_path / "dataset", row, sleep_seconds=0.5)
    assert outcome(row) == "kept", row
    assert {"/start", "/page", "/one", "/two", "/v.mp4"} <= {one.path for one in site.log}
    assert_distance(site.times, began, 0.5)


def test_redirect_to_a_paused_host_waits_or_fails(tmp_path, site, library):
    with serve("127.0.0.3") as broken:
        dead = [{"url": broken.status(f"/{number}.mp4", 500)} for number in range(2)]
        rows = download(tmp_path, *dead, host_problems=2, retries=0, host_pause_seconds=30)
        assert [outcome(row) for row in rows] == ["transient"] * 2
        asked = len(broken.log)
        site.script("/start", Redirect(broken.url("/page")))
        [row] = download(
            tmp_path,
            {"url": site.url("/start"), "extractor": "home"},
            host_problems=2,
            host_pause_seconds=30,
            max_backoff_seconds=0.5,
        )
        assert len(broken.log) == asked
    assert outcome(row) == "transient", row
    assert "127.0.0.3 is left alone until" in row["error"]["message"]


def test_redirecting_host_is_not_blamed_for_its_target(tmp_path, site, library):
    with serve("127.0.0.3") as broken:
        broken.status("/page", 500)
        site.script("/start", Redirect(broken.url("/page")))
        url = site.url("/start")
        [row] = download(
            tmp_path,
            {"url": url, "extractor": "home"},
            host_problems=2,
            retries=1,
            host_pause_seconds=30,
            max_backoff_seconds=0.2,
        )
        assert outcome(row) == "transient", row
        [row] = download(
            tmp_path,
            {"url": site.file("/v.mp4", VIDEO)},
            host_problems=2,
            host_pause_seconds=30,
            max_backoff_seconds=0.2,
        )
    assert outcome(row) == "kept", row


def test_redirect_is_an_answer_from_a_paused_host(tmp_path, site, library):
    """So others may contact it again, whatever the redirect's target answers."""
    rules = {"host_problems": 2, "retries": 0, "host_pause_seconds": 0.8}
    dead = [{"url": site.status(f"/{number}.mp4", 500)} for number in range(2)]
    assert [outcome(row) for row in download(tmp_path, *dead, **rules)] == ["transient"] * 2
    with serve("127.0.0.3") as broken:
        site.script("/start", Redirect(broken.status("/page", 500)))
        [row] = download(
            tmp_path,
            {"url": site.url("/start"), "extractor": "home"},
            **rules,
            max_backoff_seconds=5,
        )
        assert outcome(row) == "transient", row
        assert broken.log
    [row] = download(
        tmp_path, {"url": site.file("/v.mp4", VIDEO)}, **rules, max_backoff_seconds=0.1
    )
    assert outcome(row) == "kept", row


def test_libraries_whose_connections_cannot_be_checked_are_not_used(
    tmp_path, site, inside, monkeypatch
):
    """One that yt-dlp would like best must not be asked where addresses are refused."""
    asked = tmp_path / "asked"

    def add_unseen(put) -> None:
        from yt_dlp import YoutubeDL as made_by
        from yt_dlp.networking import common

        module = sys.modules[made_by.__module__]

        class UnseenRH(common.RequestHandler):
            _SUPPORTED_URL_SCHEMES = ("http",)

            def _send(self, request):
                asked.touch()
                raise OSError("it connected by itself")

        def prefer(handler, request):
            return 10_000 if isinstance(handler, UnseenRH) else 0

        handlers = {**common._REQUEST_HANDLERS, UnseenRH.RH_KEY: UnseenRH}
        put(module, "_REQUEST_HANDLERS", handlers)
        put(module, "_RH_PREFERENCES", {*common._RH_PREFERENCES, prefer})

    change_ytdlp_process(add_unseen, monkeypatch.setattr)
    for refuse in ("allow", "refuse"):
        download(
            tmp_path / refuse,
            {"url": inside.url("/page"), "extractor": "home"},
            private_addresses=refuse,
            retries=0,
        )
        assert asked.exists() == (refuse == "allow")
        asked.unlink(missing_ok=True)


# Playlists, channels and searches


def take(dataset: Path, url: str, *, settings: dict | None = None, **spec) -> list[dict]:
    import pyarrow.parquet as pq

    ingest(
        dataset,
        [SourceSpec(url=url, retries=0, **spec)],
        shard_videos=1000,
        downloads=stage(**(settings or {})),
    )
    return pq.read_table(dataset / "sources").to_pylist()


def feed(*links: str) -> bytes:
    items = "".join(f"<item><title>x</title><link>{link}</link></item>" for link in links)
    return f'<?xml version="1.0"?><rss version="2.0"><channel>{items}</channel></rss>'.encode()


def test_list_is_not_fetched_from_a_private_address(tmp_path, site, inside):
    inside.script("/feed", File(feed(site.url("/a.html")), "application/rss+xml"))
    site.script("/feed", Redirect(inside.url("/feed")))
    for number, (url, asked) in enumerate(
        ((inside.url("/feed"), "127.0.0.2"), (site.url("/feed"), "127.0.0.1"))
    ):
        [row] = take(tmp_path / f"{number}", url, settings={"private_addresses": "refuse"})
        assert outcome(row) == "permanent", row
        assert f"{asked} is a private address" in row["error"]["message"]
    assert inside.log == []
    assert outcome(take(tmp_path / "allowed", site.url("/feed"))[0]) == "kept"
    assert inside.log != []


@pytest.mark.parametrize(
    "behaviour", [Trickle(File(feed("http://a.test/") * 50, "application/rss+xml")), Hang()]
)
def test_slow_list_is_transient(tmp_path, site, behaviour):
    began = time.monotonic()
    [row] = take(tmp_path, site.script("/feed", behaviour), settings=HASTY)
    assert outcome(row) == "transient", row
    assert time.monotonic() - began < 40


def test_list_has_a_total_time_limit(tmp_path, site):
    site.script(
        "/slow", Trickle(File(feed("http://a.test/"), "application/rss+xml"), pause_seconds=0.2)
    )
    began = time.monotonic()
    [row] = take(
        tmp_path,
        site.url("/slow"),
        settings={
            "max_download_seconds": 0.5,
            "min_speed_seconds": 1,
            "min_bytes_per_second": None,
        },
    )
    assert outcome(row) == "transient", row
    assert "max_download_seconds" in row["error"]["message"]
    assert time.monotonic() - began < 40


def test_endless_list_is_bounded(tmp_path, site, monkeypatch):
    [row] = take(
        tmp_path / "bytes",
        site.script(
            "/feed", Endless("application/rss+xml", b'<?xml version="1.0"?><rss><channel>')
        ),
    )
    assert outcome(row) == "permanent", row
    monkeypatch.setattr(expansion, "MAX_ENTRIES", 3)
    links = [f"http://a.test/{number}" for number in range(5)]
    url = site.script("/long", File(feed(*links), "application/rss+xml"))
    [row] = take(tmp_path / "entries", url)
    assert outcome(row) == "permanent", row
    assert "`results`" in row["error"]["message"]
    assert len(take(tmp_path / "some", url, results=5)) == 5


def test_lists_and_downloads_take_turns_at_a_host_together(tmp_path, site):
    site.script(
        "/feed", File(feed(site.url("/a.html"), site.url("/b.html")), "application/rss+xml")
    )
    video = {"url": site.file("/v.mp4", VIDEO)}

    def both(dataset: Path, seconds: float) -> None:
        take(dataset, site.url("/feed"), settings={"sleep_seconds": seconds})
        download(dataset, video, sleep_seconds=seconds)

    both(tmp_path / "before", 0.0)  # so that importing yt-dlp takes no time later
    site.log.clear()
    began = time.monotonic()
    both(tmp_path / "dataset", 2.0)
    assert len(site.log) >= 2
    assert_distance(site.times, began, 2.0)


# ffmpeg, which yt-dlp starts for sections


@pytest.fixture
def platform(monkeypatch, site):
    from yt_dlp.extractor.common import InfoExtractor

    class HomeIE(InfoExtractor):
        _VALID_URL = r"https?://127\.0\.0\.1:\d+/home/(?P<id>\w+)"
        video = site.url("/v.mp4")
        info: dict = {}

        def _real_extract(self, url):
            return {
                "id": self._match_id(url),
                "title": "A film",
                "duration": 60.0,
                "formats": [{"format_id": "0", "url": self.video, "ext": "mp4"}],
                **self.info,
            }

    add_extractor(HomeIE, monkeypatch.setattr)
    return HomeIE


@dataclass(frozen=True)
class Mark:
    """Responds like `then`, and records that it was contacted."""

    then: object
    asked: threading.Event = field(default_factory=threading.Event)

    def answer(self, handler) -> None:
        self.asked.set()
        self.then.answer(handler)


def fetchers(url: str) -> list[psutil.Process]:
    """Processes that were given this address, anywhere."""
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        if process.info["status"] != psutil.STATUS_ZOMBIE and url in (
            process.info["cmdline"] or ()
        ):
            found.append(process)
    return found


def gone(url: str, seconds: float = 30.0) -> bool:
    until = time.monotonic() + seconds
    while fetchers(url):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


PART = {"spans": [{"start_seconds": 5.0, "end_seconds": 8.0}], "extractor": "home"}


@pytest.mark.parametrize(
    ("settings", "kind", "words"),
    [
        ({"min_bytes_per_second": 5_000, "min_speed_seconds": 3.0}, "transient", "slower"),
        (
            {"max_download_seconds": 4.0, "min_speed_seconds": 1.0, "min_bytes_per_second": None},
            "transient",
            "max_download_seconds",
        ),
    ],
)
def test_ffmpeg_is_killed_at_a_limit(tmp_path, site, platform, settings, kind, words):
    """In the seconds before, the program starts and requests the file."""
    mark = Mark(Trickle(File(VIDEO)))
    site.script("/v.mp4", mark)
    began = time.monotonic()
    [row] = download(
        tmp_path,
        {"url": site.url("/home/film1"), **PART},
        sections=True,
        retries=0,
        timeout_seconds=100,
        **settings,
    )
    assert mark.asked.is_set()
    assert site.log[-1].headers["User-Agent"].startswith(("Lavf", "Mozilla"))
    assert outcome(row) == kind, row
    assert words in row["error"]["message"]
    assert fetchers(platform.video) == []
    assert time.monotonic() - began < 40


def work(dataset: Path, url: str, video: str) -> None:
    """A worker that downloads a section until it is killed."""
    from yt_dlp.extractor.common import InfoExtractor

    class HomeIE(InfoExtractor):
        _VALID_URL = r"https?://127\.0\.0\.1:\d+/home/(?P<id>\w+)"

        def _real_extract(self, url):
            return {
                "id": "film1",
                "title": "A film",
                "duration": 60.0,
                "formats": [{"format_id": "0", "url": video, "ext": "mp4"}],
            }

    add_extractor(HomeIE)
    download(dataset, {"url": url, **PART}, sections=True, timeout_seconds=60, retries=0)


def test_ffmpeg_does_not_outlive_a_killed_worker(tmp_path, site):
    mark = Mark(Hang(60))
    video = site.script("/v.mp4", mark)
    worker = multiprocessing.get_context("forkserver").Process(
        target=work, args=(tmp_path, site.url("/home/film1"), video)
    )
    worker.start()
    assert mark.asked.wait(60)
    assert [process.name() for process in fetchers(video)]
    os.kill(worker.pid, signal.SIGKILL)
    worker.join(60)
    assert gone(video)


@pytest.mark.parametrize("address", ["{file}", "file:{file}", "concat:{file}", "-i", ""])
def test_site_cannot_make_ffmpeg_read_a_local_file(tmp_path, site, platform, address, monkeypatch):
    """It is not even started for something that is not a network address."""
    started = tmp_path / "started"

    def note_programs(put) -> None:
        from clipmill.stages.media.fetch.ytdlp_process import Worker

        starting = Worker.starting

        def noted(self, arguments):
            with started.open("a") as file:
                print("-i" in arguments, file=file)
            starting(self, arguments)

        put(Worker, "starting", noted)

    change_ytdlp_process(note_programs, monkeypatch.setattr)
    (tmp_path / "secret.mp4").write_bytes(make_video(8))
    file = {"format_id": "0", "ext": "mp4", "url": address.format(file=tmp_path / "secret.mp4")}
    # yt-dlp leaves the second to ffmpeg.
    for number, one in enumerate((file, {**file, "protocol": "m3u8"})):
        platform.info = {"formats": [one]}
        for sections in (True, False):
            dataset = tmp_path / f"{number}-{sections}"
            [row] = download(
                dataset, {"url": site.url("/home/film1"), **PART}, sections=sections, retries=0
            )
            assert outcome(row) in ("permanent", "transient"), row
            assert not list((dataset / "media").glob("*.mp4"))
    assert not started.exists() or "True" not in started.read_text()


# yt-dlp itself, which runs in a process of its own


@pytest.fixture
def endless(monkeypatch, site):
    """A site whose pages yt-dlp never has done with: it sleeps, or computes without a break."""
    from yt_dlp.extractor.common import InfoExtractor

    class EndlessIE(InfoExtractor):
        _VALID_URL = r"https?://127\.0\.0\.1:\d+/home/(?P<id>sleep|compute)"

        def _real_extract(self, url):
            if self._match_id(url) == "sleep":
                time.sleep(600)
            re.match(r"(a+)+$", 60 * "a" + "b")

    add_extractor(EndlessIE, monkeypatch.setattr)


def helpers() -> set[int]:
    return {child.pid for child in psutil.Process().children(recursive=True)}


def test_a_page_that_yt_dlp_never_has_done_with_is_ended(tmp_path, site, endless):
    download(tmp_path / "before", {"url": site.page("/watch", "words"), "extractor": "home"})
    before = helpers()
    row = {"url": site.url("/home/sleep"), "extractor": "home"}
    [row] = download(tmp_path, row, max_download_seconds=1.5, min_speed_seconds=1.0)
    assert outcome(row) == "transient", row
    assert "max_download_seconds" in row["error"]["message"]
    assert helpers() < before, "the process that hung"
    [row] = download(tmp_path, {"url": site.page("/one", page("/v.mp4"))}, retries=0)
    assert outcome(row) == "permanent", row


def test_a_page_that_lets_no_thread_run_is_ended_from_outside(tmp_path, site, endless, monkeypatch):
    limits = Limits(stall_seconds=3.0, time_limit_seconds=math.inf)
    monkeypatch.setattr(ytdlp_calls, "_OF_PROCESS", limits)
    [row] = download(tmp_path, {"url": site.url("/home/compute"), "extractor": "home"})
    assert outcome(row) == "crash", row
    assert "fetching made no progress for 3 s" in row["error"]["message"]


def test_a_process_of_yt_dlps_that_dies_costs_one_row(tmp_path, site, monkeypatch):
    def die(put) -> None:
        from yt_dlp.extractor.generic import GenericIE

        def died(self, url):
            os.kill(os.getpid(), signal.SIGSEGV)

        put(GenericIE, "_real_extract", died)

    change_ytdlp_process(die, monkeypatch.setattr)
    site.file("/v.mp4", VIDEO)
    rows = download(
        tmp_path, *({"url": url} for url in (site.page("/one", page("/v.mp4")), site.url("/v.mp4")))
    )
    assert [outcome(row) for row in rows] == ["crash", "kept"], rows
    assert "crashes yt-dlp's process" in rows[0]["error"]["message"]


def test_nothing_is_replaced_in_the_worker(tmp_path, site):
    site.file("/v.mp4", VIDEO)
    for refuse in ("allow", "refuse"):
        row = {"url": site.page("/watch", page("/v.mp4")), "extractor": "home"}
        download(tmp_path / refuse, row, private_addresses=refuse)
    assert "connect" not in vars(socket.socket)
    for method in (subprocess.Popen.__init__, threading.Thread.start, HTTPConnection.putrequest):
        assert not method.__module__.startswith("clipmill"), method


# Subtitles


def test_endless_subtitles_fail_only_the_subtitles(tmp_path, site, platform, monkeypatch):
    def allow_little(put) -> None:
        from clipmill.stages.media.fetch import ytdlp_requests

        put(ytdlp_requests, "MAX_SUBTITLE_BYTES", 2 << 20)

    change_ytdlp_process(allow_little, monkeypatch.setattr)
    site.file("/v.mp4", VIDEO)
    platform.info = {
        "subtitles": {
            "en": [
                {"url": site.script("/en.vtt", Endless("text/vtt", b"WEBVTT\n\n")), "ext": "vtt"}
            ]
        }
    }
    [row] = download(tmp_path, {"url": site.url("/home/film1"), "extractor": "home"})
    assert outcome(row) == "kept", row
    assert row["subtitles"] == []
    assert "subtitles of more than 2 MB" in row["failed_parts"][0]["message"]


# The size limit, to the byte


@dataclass(frozen=True)
class Counted:
    """Sends far more than is allowed, and counts what was received."""

    sent: list = field(default_factory=lambda: [0])

    def answer(self, handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", "video/mp4")
        handler.send_header("Connection", "close")
        handler.end_headers()
        while not handler.server.stopping.is_set() and self.sent[0] < 100_000_000:
            handler.wfile.write(bytes(65536))
            self.sent[0] += 65536


def test_no_more_is_written_than_the_size_limit(tmp_path, site):
    """At loopback's speed, checking every second would come gigabytes too late."""
    counted = Counted()
    [row] = download(tmp_path, {"url": site.script("/v.mp4", counted)}, max_bytes=1_000_000)
    assert outcome(row) == "permanent"
    assert counted.sent[0] < 30_000_000
