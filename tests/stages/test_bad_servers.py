"""Harmful servers: each ends as one row of the right kind, in bounded time."""

from __future__ import annotations

import errno
import fcntl
import gzip
import hashlib
import json
import multiprocessing
import os
import random
import resource as limits_of_process
import signal
import socket
import ssl
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest

from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.media.fetch import addresses
from clipmill.stages.media.fetch.addresses import is_private
from clipmill.stages.media.fetch.host_throttle import Hosts, Manners
from clipmill.stages.protocol import Workspace
from tests.download_helpers import assert_distance, make_video, outcome, stage
from tests.http_server import (
    Broken,
    Busy,
    Encoded,
    Endless,
    File,
    Hang,
    Lying,
    Redirect,
    Trickle,
    TrickledHeaders,
    serve,
)
from tests.ytdlp_changes import change_ytdlp_process

VIDEO = make_video()
# A slow server is given up after less than a second here, a silent one much later.
HASTY = {"min_bytes_per_second": 5_000, "min_speed_seconds": 0.4, "timeout_seconds": 100}
# openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 36500 \
#   -subj /CN=localhost -keyout key -out certificate; cat key certificate > self_signed.pem
SELF_SIGNED = Path(__file__).parents[1] / "files" / "self_signed.pem"

# Each worker is a separate process, forked from one that has only done the imports.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


@pytest.fixture
def site():
    with serve() as server:
        yield server


def download(dataset: Path, *urls: str, **settings) -> list[dict]:
    table = pa.Table.from_pylist(
        [{"source_key": source_key(url), "url": url} for url in urls], SOURCES
    )
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        rows = transform(table).to_pylist()
    assert [row["source_key"] for row in rows] == table["source_key"].to_pylist()
    left = [
        path
        for name in (".work", ".ready")
        if (dataset / "media" / name).is_dir()
        for path in (dataset / "media" / name).iterdir()
    ]
    assert left == []
    return rows


def page(video: str) -> str:
    return f"""<!DOCTYPE html><html><head><title>A film</title></head><body>
        <video src="{video}"></video></body></html>"""


# Slow, endless, too large


@pytest.mark.parametrize(
    "behaviour",
    [Trickle(File(VIDEO)), TrickledHeaders(), Trickle(File(VIDEO, etag=False, ranges=False))],
    ids=["body", "headers", "body without ranges"],
)
def test_server_that_sends_an_occasional_byte_is_cut_off(tmp_path, site, behaviour):
    """No silence is as long as the timeout, but every attempt ends after the window."""
    began = time.monotonic()
    [row] = download(tmp_path, site.script("/a.mp4", behaviour), retries=1, **HASTY)
    assert outcome(row) == "transient"
    assert "slower than" in row["error"]["message"]
    assert "(tried 2 times)" in row["error"]["message"]
    assert time.monotonic() - began < 40


def test_yt_dlps_requests_are_cut_off_too(tmp_path, site):
    site.script("/files/v.mp4", TrickledHeaders())
    began = time.monotonic()
    [row] = download(tmp_path, site.page("/watch", page("/files/v.mp4")), retries=0, **HASTY)
    assert outcome(row) == "transient", row
    assert "slower than" in row["error"]["message"]
    assert time.monotonic() - began < 40


@dataclass(frozen=True)
class SlowAtFirst:
    """Only a trickle, until the rest of the file is requested."""

    def answer(self, handler) -> None:
        file = File(VIDEO)
        (file if handler.asked_start() else Trickle(file, piece_bytes=100)).answer(handler)


def test_slow_download_resumes_where_it_was_cut_off(tmp_path, site):
    site.script("/a.mp4", SlowAtFirst())
    [row] = download(tmp_path, site.url("/a.mp4"), retries=5, **HASTY)
    assert outcome(row) == "kept"
    assert (tmp_path / row["path"]).read_bytes() == VIDEO
    start = int(site.log[-1].range.removeprefix("bytes=").removesuffix("-"))
    assert 100 <= start < len(VIDEO) // 2


def test_download_at_the_minimum_speed_is_left_alone(tmp_path, site):
    site.script("/a.mp4", Trickle(File(VIDEO), piece_bytes=len(VIDEO) // 12, pause_seconds=0.1))
    [row] = download(tmp_path, site.url("/a.mp4"), **HASTY)
    assert outcome(row) == "kept"
    assert len(site.log) == 1


def test_our_own_rate_limit_does_not_count_as_slow(tmp_path, site):
    [row] = download(
        tmp_path,
        site.file("/a.mp4", VIDEO),
        min_speed_seconds=0.5,
        retries=0,
        min_bytes_per_second=10 * len(VIDEO),
        rate_limit_bytes_per_second=len(VIDEO),
    )
    assert outcome(row) == "kept"


def test_all_attempts_together_have_a_time_limit(tmp_path, site):
    began = time.monotonic()
    [row] = download(
        tmp_path,
        site.script("/a.mp4", Trickle(File(VIDEO))),
        max_download_seconds=0.5,
        timeout_seconds=100,
    )
    assert outcome(row) == "transient"
    assert "max_download_seconds" in row["error"]["message"]
    assert time.monotonic() - began < 40
    assert len(site.log) <= 1


def test_endless_body_ends_at_the_size_limit(tmp_path, site):
    [row] = download(tmp_path, site.script("/a.mp4", Endless()), max_bytes=3_000_000)
    assert outcome(row) == "permanent"
    assert "max_bytes" in row["error"]["message"]
    assert len(site.log) == 1


def test_file_declared_too_large_is_not_downloaded(tmp_path, site):
    """The declared size decides: nothing of this one is received."""
    [row] = download(tmp_path, site.script("/b.mp4", Lying(b"", 10**9)), max_bytes=10**6)
    assert outcome(row) == "permanent"
    assert "max_bytes" in row["error"]["message"]
    [row] = download(tmp_path, site.file("/a.mp4", VIDEO), max_bytes=len(VIDEO) - 1)
    assert outcome(row) == "permanent"
    [row] = download(tmp_path, site.url("/a.mp4"), max_bytes=len(VIDEO))
    assert outcome(row) == "kept"


def test_endless_file_by_yt_dlp_ends_at_the_size_limit(tmp_path, site):
    """During the download, not at its end, which would come after 10 s."""
    trickle = Trickle(File(bytes(3_000_000)), 30_000, 0.1)
    site.script("/files/v.mp4", trickle)
    [row] = download(tmp_path, site.page("/watch", page("/files/v.mp4")), max_bytes=100_000)
    assert outcome(row) == "permanent", row
    assert "max_bytes" in row["error"]["message"]
    assert 100_000 < sum(trickle.sent) < 2_500_000


def test_large_file_by_yt_dlp_that_arrives_between_two_checks_is_refused(tmp_path, site):
    site.file("/files/v.mp4", VIDEO)
    url = site.page("/watch", page("/files/v.mp4"))
    [row] = download(tmp_path, url, max_bytes=len(VIDEO) - 1)
    assert outcome(row) == "permanent", row
    assert "max_bytes" in row["error"]["message"]
    [row] = download(tmp_path, url, max_bytes=len(VIDEO))
    assert outcome(row) == "kept", row


def test_endless_page_does_not_fill_the_memory(tmp_path, site):
    import yt_dlp  # noqa: F401 - its own size does not count

    before = limits_of_process.getrusage(limits_of_process.RUSAGE_SELF).ru_maxrss
    [row] = download(tmp_path, site.script("/watch", Endless("text/html", b"<html>")))
    assert outcome(row) == "permanent", row
    assert "64 MB" in row["error"]["message"]
    after = limits_of_process.getrusage(limits_of_process.RUSAGE_SELF).ru_maxrss
    assert (after - before) / 1024 < 300


# Compressed


def test_compressed_video_is_decompressed(tmp_path, site):
    [row] = download(tmp_path, site.script("/a.mp4", Encoded(gzip.compress(VIDEO))))
    assert (tmp_path / row["path"]).read_bytes() == VIDEO


@pytest.mark.parametrize(
    ("encoding", "data", "words"),
    [
        ("gzip", gzip.compress(bytes(200_000_000), 1), "grew from"),
        ("gzip", gzip.compress(VIDEO)[:10] + VIDEO, "broken"),
        ("br", VIDEO, "compressed as 'br'"),
        ("gzip, gzip", gzip.compress(gzip.compress(VIDEO)), "compressed as"),
    ],
)
def test_decompression_bomb_or_unknown_encoding_is_bad_media(tmp_path, site, encoding, data, words):
    [row] = download(tmp_path, site.script("/a.mp4", Encoded(data, encoding)))
    assert outcome(row) == "bad_media"
    assert words in row["error"]["message"]
    assert len(site.log) == 1


# Broken connections, bursts, names, TLS


@pytest.mark.parametrize("seed", range(4))
def test_resets_at_random_offsets_lose_nothing(tmp_path, site, seed):
    """The bytes are complete, and no byte that had arrived is requested again."""
    chance = random.Random(seed)
    cuts = [Broken(File(VIDEO), chance.randrange(1, len(VIDEO) // 3)) for _ in range(3)]
    [row] = download(tmp_path, site.script("/a.mp4", *cuts, File(VIDEO)), retries=3)
    assert outcome(row) == "kept"
    assert (tmp_path / row["path"]).read_bytes() == VIDEO
    starts = [int(r.range[6:-1]) for r in site.log if r.range]
    assert starts == sorted(starts)
    assert len(starts) == 3


def test_burst_of_errors_is_waited_out(tmp_path, site):
    burst = [Busy(500), Busy(503), Busy(429, retry_after="0"), Busy(502)]
    [row] = download(tmp_path, site.script("/a.mp4", *burst, File(VIDEO)), retries=4)
    assert outcome(row) == "kept"
    assert len(site.log) == 5


def test_circular_redirects_between_hosts_end(tmp_path, site):
    with serve() as other:
        other.script("/b.mp4", Redirect(site.url("/a.mp4")))
        [row] = download(tmp_path, site.script("/a.mp4", Redirect(other.url("/b.mp4"))))
    assert outcome(row) == "permanent"
    assert "redirects" in row["error"]["message"]


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://127.0.0.1/a.mp4"])
def test_redirect_to_another_scheme_is_permanent(tmp_path, site, target):
    [row] = download(tmp_path, site.script("/a.mp4", Redirect(target)))
    assert outcome(row) == "permanent"


@pytest.mark.parametrize("number", [socket.EAI_NONAME, socket.EAI_AGAIN])
def test_unresolvable_name_is_transient(tmp_path, monkeypatch, number):
    """The error is simulated, because a network may be slow or resolve every name."""
    resolve, asked = socket.getaddrinfo, []

    def nobody(host, *more, **named):
        if host != "no-such-host.invalid":
            return resolve(host, *more, **named)
        asked.append(host)
        raise socket.gaierror(number, "no such name")

    monkeypatch.setattr(socket, "getaddrinfo", nobody)
    [row] = download(tmp_path, "http://no-such-host.invalid/a.mp4", retries=1)
    assert outcome(row) == "transient"
    assert len(asked) == 2


def test_untrusted_certificate_is_permanent(tmp_path):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SELF_SIGNED)
    with serve(tls=context) as site:
        [row] = download(tmp_path, site.file("/a.mp4", VIDEO))
    assert outcome(row) == "permanent"
    assert "certificate" in row["error"]["message"]


def test_port_without_tls_is_permanent(tmp_path, site):
    [row] = download(tmp_path, site.file("/a.mp4", VIDEO).replace("http:", "https:"))
    assert outcome(row) == "permanent"
    assert "TLS" in row["error"]["message"]


def test_hanging_handshake_is_transient(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        [row] = download(
            tmp_path,
            f"https://127.0.0.1:{silent.getsockname()[1]}/a.mp4",
            retries=0,
            timeout_seconds=0.3,
        )
    assert outcome(row) == "transient"
    assert time.monotonic() - began < 40


def test_playlist_with_a_video_content_type_is_refused(tmp_path, site):
    """It could name any file on the machine that opens it."""
    secret = tmp_path / "secret.mp4"
    secret.write_bytes(VIDEO)
    text = f"#EXTM3U\n#EXTINF:2,\nfile://{secret}\n#EXT-X-ENDLIST\n"
    [row] = download(tmp_path, site.file("/a.mp4", text.encode()))
    assert outcome(row) in ("permanent", "bad_media"), row
    assert row["path"] is None


# Private addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.0.3",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "224.0.0.1",
        "255.255.255.255",
        "198.18.0.1",
        "::1",
        "::",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd12:3456::1",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "::7f00:1",
        "64:ff9b::a00:1",
        "2002:7f00:1::",
    ],
)
def test_address_is_private(address):
    assert is_private(address)


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "172.32.0.1",
        "192.169.0.1",
        "::ffff:8.8.8.8",
        "2606:4700::1111",
        "64:ff9b::808:808",
    ],
)
def test_address_is_public(address):
    assert not is_private(address)


@pytest.fixture
def inside(monkeypatch):
    """A server on what counts as private here: 127.0.0.2. All else counts as public."""

    def make_private(put) -> None:
        put(addresses, "is_private", lambda address: address == "127.0.0.2")

    make_private(monkeypatch.setattr)
    change_ytdlp_process(make_private, monkeypatch.setattr)
    with serve("127.0.0.2") as server:
        server.file("/secret.mp4", VIDEO)
        yield server


def test_loopback_is_refused_on_request_and_allowed_by_default(tmp_path, site):
    url = site.file("/a.mp4", VIDEO)
    [row] = download(tmp_path, url, private_addresses="refuse")
    assert outcome(row) == "permanent"
    assert "127.0.0.1 is a private address" in row["error"]["message"]
    assert site.log == []
    assert outcome(download(tmp_path, url)[0]) == "kept"


@pytest.mark.parametrize("name", ["localhost", "0x7f.1", "2130706433", "[::ffff:127.0.0.1]"])
def test_other_spellings_of_loopback_are_refused(tmp_path, site, name):
    site.file("/a.mp4", VIDEO)
    url = site.url("/a.mp4").replace("127.0.0.1", name)
    [row] = download(tmp_path, url, private_addresses="refuse", retries=0)
    assert row["error"]["kind"] in ("permanent", "transient")
    assert site.log == []


def test_redirect_to_a_private_address_is_refused(tmp_path, site, inside):
    url = site.script("/a.mp4", Redirect(inside.url("/secret.mp4")))
    [row] = download(tmp_path, url, private_addresses="refuse")
    assert outcome(row) == "permanent"
    assert inside.log == []
    assert outcome(download(tmp_path, url)[0]) == "kept"


def test_yt_dlp_cannot_reach_private_addresses(tmp_path, site, inside):
    urls = [
        site.page("/one", page(inside.url("/secret.mp4"))),
        site.page("/two", page("/files/v.mp4")),
        site.script("/three", Redirect(inside.url("/page"))),
    ]
    site.script("/files/v.mp4", Redirect(inside.url("/secret.mp4")))
    rows = download(tmp_path, *urls, private_addresses="refuse")
    assert [outcome(row) for row in rows] == ["permanent"] * 3, rows
    assert all("private address" in row["error"]["message"] for row in rows)
    assert inside.log == []


def test_playlist_that_only_ffmpeg_can_download_is_refused(tmp_path, site, inside):
    """yt-dlp passes some playlists to ffmpeg, whose connections can't be checked."""
    text = (
        '#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXT-X-KEY:METHOD=SAMPLE-AES,URI="k"\n'
        f"#EXTINF:2,\n{inside.url('/secret.mp4')}\n#EXT-X-ENDLIST\n"
    )
    url = site.page("/list.m3u8", text, "application/vnd.apple.mpegurl")
    [row] = download(tmp_path, url, private_addresses="refuse")
    assert outcome(row) == "permanent", row
    assert "private addresses" in row["error"]["message"], row
    assert inside.log == []


def test_segments_of_a_playlist_cannot_be_at_private_addresses(tmp_path, site, inside):
    text = (
        "#EXTM3U\n#EXT-X-TARGETDURATION:2\n"
        f"#EXTINF:2,\n{inside.url('/secret.mp4')}\n#EXT-X-ENDLIST\n"
    )
    url = site.page("/list.m3u8", text, "application/vnd.apple.mpegurl")
    settings = {"yt_dlp": {"concurrent_fragment_downloads": 3}}
    [row] = download(tmp_path, url, private_addresses="refuse", **settings)
    assert outcome(row) == "permanent", row
    assert "127.0.0.2 is a private address" in row["error"]["message"], row
    assert inside.log == []


def test_dns_rebinding_has_no_effect(tmp_path, site, inside, monkeypatch):
    """A public address for the first check, a private one for the connection after it."""
    # Nobody listens at the first, on any port.
    resolve, answers = socket.getaddrinfo, ["127.0.0.9"]

    def rebinding(host, port, *more, **named):
        if host == "rebinding.test":
            host = answers.pop(0) if answers else "127.0.0.2"
        return resolve(host, port, *more, **named)

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    url = inside.url("/secret.mp4").replace("127.0.0.2", "rebinding.test")
    rows = download(tmp_path, url, private_addresses="refuse", retries=3)
    assert outcome(rows[0]) == "permanent"
    assert "127.0.0.2 is a private address" in rows[0]["error"]["message"]
    assert inside.log == []


def test_proxy_may_have_a_private_address(tmp_path, site):
    """Then the proxy connects, and its target can't be checked from here."""
    site.script("http://films.example/a.mp4", File(VIDEO))
    [row] = download(
        tmp_path, "http://films.example/a.mp4", proxy=site.address, private_addresses="refuse"
    )
    assert outcome(row) == "kept", row


# Turns at a host, across several workers


def work(dataset: Path, urls: list[str], settings: dict) -> None:
    """One worker of a cluster, as another process; its results go to a separate file."""
    rows = download_only(dataset, urls, settings)
    (dataset / f"worker-{os.getpid()}.json").write_text(json.dumps(rows))


def download_only(dataset: Path, urls: list[str], settings: dict) -> list:
    table = pa.Table.from_pylist(
        [{"source_key": source_key(url), "url": url} for url in urls], SOURCES
    )
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        return [
            (outcome(row), (row["error"] or {}).get("message"))
            for row in transform(table).to_pylist()
        ]


def workers(dataset: Path, urls: list[str], count: int, **settings) -> list:
    """The results for all URLs, distributed over this many processes."""
    running = [
        PROCESSES.Process(target=work, args=(dataset, urls[number::count], settings))
        for number in range(count)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
        assert process.exitcode == 0
    return [row for path in dataset.glob("worker-*.json") for row in json.loads(path.read_text())]


def test_workers_keep_their_distance_together(tmp_path, site):
    """In the server's log: of three processes with two threads each, no two come too close."""
    urls = [site.status(f"/{number}.mp4", 404) for number in range(9)]
    workers(tmp_path / "before", urls[:1], 1)  # so that starting them takes no time later
    site.log.clear()
    began = time.monotonic()
    workers(tmp_path / "dataset", urls, 3, sleep_seconds=0.4, concurrency=2)
    assert len(site.log) == 9
    assert_distance(site.times, began, 0.4)


def test_workers_leave_a_broken_host_alone_together(tmp_path, site):
    """After enough failures, only probes reach it, however many workers there are."""
    urls = [site.status(f"/{number}.mp4", 500) for number in range(9)]
    rows = workers(
        tmp_path,
        urls,
        3,
        concurrency=2,
        retries=8,
        host_problems=5,
        host_pause_seconds=0.6,
        max_backoff_seconds=1.0,
    )
    assert [kind for kind, _ in rows] == ["transient"] * 9
    assert all("127.0.0.1 is left alone until" in message for _, message in rows)
    # Without a shared count, each of the 9 would be requested 9 times.
    times = site.times
    others_on_their_way = 5
    probes = (times[-1] - times[4]) / 0.6
    assert len(times) <= 5 + others_on_their_way + probes
    assert probes >= 1


def test_successful_probe_lets_all_continue(tmp_path, site):
    site.script("/a.mp4", *[Busy(500)] * 3, File(VIDEO))
    other = site.file("/b.mp4", make_video(seed=5))
    began = time.monotonic()
    rows = download(
        tmp_path,
        site.url("/a.mp4"),
        other,
        host_problems=3,
        host_pause_seconds=0.5,
        retries=4,
        max_backoff_seconds=100,
    )
    assert [outcome(row) for row in rows] == ["kept", "kept"]
    assert time.monotonic() - began < 40


def test_another_host_is_not_left_alone(tmp_path, site):
    with serve("127.0.0.3") as well:
        dead = [site.status(f"/{number}.mp4", 500) for number in range(3)]
        alive = well.file("/b.mp4", VIDEO)
        rows = download(
            tmp_path,
            *dead,
            alive,
            host_problems=2,
            host_pause_seconds=30,
            max_backoff_seconds=0.5,
            concurrency=4,
        )
    assert [outcome(row) for row in rows] == ["transient"] * 3 + ["kept"]


def test_client_error_is_not_the_hosts_problem(tmp_path, site):
    urls = [site.status(f"/{number}.mp4", 404) for number in range(6)]
    rows = download(tmp_path, *urls, host_problems=1, concurrency=1)
    assert [outcome(row) for row in rows] == ["permanent"] * 6


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"next_at": "soon"}', bytes(50)])
def test_truncated_state_file_is_replaced(tmp_path, text):
    turns = Hosts(Manners(sleep_seconds=0.05), tmp_path)
    turns.wait("a.example")
    [path] = tmp_path.iterdir()
    path.write_bytes(text)
    turns.wait("a.example")
    assert json.loads(path.read_text())["host"] == "a.example"


def test_wrong_clock_delays_nobody(tmp_path):
    turns = Hosts(Manners(sleep_seconds=0.05, problems=1, pause_seconds=100), tmp_path)
    turns.wait("a.example")
    [path] = tmp_path.iterdir()
    state = json.loads(path.read_text())
    path.write_text(json.dumps({**state, "next_at": 9e9, "held_until": 9e9, "open_until": 9e9}))
    began = time.monotonic()
    turns.wait("A.example.")
    assert time.monotonic() - began < 40


def test_threads_take_turns_where_the_file_system_has_no_locks(tmp_path, monkeypatch):
    def no_locks(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    turns = Hosts(Manners(sleep_seconds=0.05), tmp_path)
    times: list[float] = []

    def ask() -> None:
        for _ in range(3):
            turns.wait("a.example")
            times.append(time.monotonic())

    began = time.monotonic()
    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert len(times) == 12
    assert_distance(times, began, 0.05)


# Kills


def test_killed_download_is_resumed(tmp_path, site):
    """The next run requests only the rest, and only of the same version of the file."""
    data = make_video(seconds=4, size=(160, 120), seed=3)
    file = File(data)
    url = site.script(
        "/a.mp4", Trickle(file, piece_bytes=len(data) // 100, pause_seconds=0.08), file
    )
    process, noted = killed_on_the_way(tmp_path, url)
    assert process.exitcode == -signal.SIGKILL
    [row] = download(tmp_path, url)
    assert (tmp_path / row["path"]).read_bytes() == data
    again = site.log[1]
    assert again.range == f"bytes={noted['received']}-"
    assert 0 < noted["received"] < len(data)
    assert again.headers["If-Range"].startswith('"')


@pytest.mark.parametrize(
    "note",
    [
        {"validator": '"old"'},
        {"validator": None},
        {"url": "http://a.example/b.mp4"},
        {"received": 10**9},
        None,
    ],
)
def test_download_that_cannot_be_resumed_starts_again(tmp_path, site, note):
    """Another version on the server, no version, another URL, fewer bytes than noted, no note."""
    url = site.file("/a.mp4", VIDEO)
    work = tmp_path / "media" / ".work" / source_key(url)
    work.mkdir(parents=True)
    (work / "download.mp4").write_bytes(bytes(1000))
    if note is not None:
        current = f'"{hashlib.sha256(VIDEO).hexdigest()[:16]}"'
        known = {
            "url": url,
            "validator": current,
            "total": len(VIDEO),
            "received": 1000,
            "content_type": "video/mp4",
        }
        (work / "download.mp4.json").write_text(json.dumps({**known, **note}))
    [row] = download(tmp_path, url)
    assert (tmp_path / row["path"]).read_bytes() == VIDEO


def killed_on_the_way(dataset: Path, url: str) -> tuple[multiprocessing.Process, dict]:
    """A worker killed by SIGKILL once it has noted its part of the file; returns that note."""
    process = PROCESSES.Process(target=work, args=(dataset, [url], {}))
    process.start()
    note = dataset / "media" / ".work" / source_key(url) / "download.mp4.json"
    deadline = time.monotonic() + 100
    while not note.exists():
        assert time.monotonic() < deadline
        assert process.is_alive()
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.join(60)
    return process, json.loads(note.read_text())


def test_source_being_downloaded_by_another_worker_is_downloaded_separately(tmp_path, site):
    """A worker presumed dead may live: the two don't write to the same file."""
    url = site.script("/a.mp4", Trickle(File(VIDEO), len(VIDEO) // 10, 0.1), File(VIDEO))
    rows: list = []
    first = threading.Thread(target=lambda: rows.extend(download_only(tmp_path, [url], {})))
    first.start()
    while not site.log:
        time.sleep(0.01)
    rows.extend(download_only(tmp_path, [url], {}))
    first.join(100)
    assert [kind for kind, _ in rows] == ["kept", "kept"]


def test_server_that_hangs_after_the_first_bytes_is_transient(tmp_path, site):
    site.script("/a.mp4", Broken(File(VIDEO), 500), Hang())
    [row] = download(tmp_path, site.url("/a.mp4"), retries=1, timeout_seconds=0.3)
    assert outcome(row) == "transient"
