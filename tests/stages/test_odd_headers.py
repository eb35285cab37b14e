"""Odd headers and URLs from servers: a clear kind and message."""

from __future__ import annotations

import http.cookiejar
import re
from dataclasses import dataclass
from pathlib import Path

import httpx
import pyarrow as pa
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from clipmill.schemas.errors import RowFailed
from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.media.fetch.cookies import cookie_jar
from clipmill.stages.media.fetch.host_throttle import Hosts
from clipmill.stages.media.fetch.http_answers import retry_after_seconds
from clipmill.stages.media.fetch.turns import take_turn
from clipmill.stages.protocol import Workspace
from tests.download_helpers import make_video, outcome, stage
from tests.http_server import serve

VIDEO = make_video()
# Messages of Python or a codec, which say nothing about a source.
INSIDE = re.compile(r"codec|UnicodeError|OverflowError|ValueError|TypeError|AttributeError")

ODD = [
    b"",
    b"9" * 30,
    b"9" * 5000,
    b"-1",
    b"1e5",
    b"\xd9\xa3",
    b"\xff\xfe",
    b"5, 5",
    b'"',
    b"W/",
    b"bytes 5-/",
    b"video/mp4; charset=\xff",
    b"text/plain; charset=no-such",
    b"Mon, 01 Jan 2024 00:00:00 +999999999999999",
    b"Mon, 99 Foo 99999 99:99:99 GMT",
    b"Thu, 31 Dec 9999 23:59:59 -2359",
    b"a\x01b",
    b"a=\xd9\xa3; path=/",
    b"a=\x01; path=/",
    b"http://[::1",
    b"x" * 20_000,
]
LOCATIONS = [
    b"http://[::1",
    b"http://a..b/",
    b"http://" + b"a" * 70 + b".test/",
    b"a\x01b",
    "http://\u00fc..b/".encode(),
    b"http://127.0.0.1:99999/",
    b"http://127.0.0.1:x/",
]


@dataclass(frozen=True)
class Odd:
    """A video, or half of one, with one given header."""

    name: bytes
    value: bytes
    status: int = 200
    is_cut: bool = False

    def answer(self, handler) -> None:
        headers = {
            b"content-type": b"video/mp4",
            b"content-length": b"%d" % len(VIDEO),
            b"connection": b"close",  # or yt-dlp asks again on it, if the end comes late
            self.name: self.value,
        }
        handler.wfile.write(
            b"HTTP/1.1 %d X\r\n" % self.status
            + b"".join(b"%s: %s\r\n" % pair for pair in headers.items())
            + b"\r\n"
        )
        handler.wfile.write(VIDEO[: len(VIDEO) // 2] if self.is_cut else VIDEO)
        handler.close_connection = True


@pytest.fixture
def site():
    with serve() as server:
        yield server


def download(dataset: Path, urls: list[str], extractor: str | None = None, **settings):
    table = pa.Table.from_pylist(
        [{"source_key": source_key(url), "url": url, "extractor": extractor} for url in urls],
        SOURCES,
    )
    settings = {"retries": 1, "host_problems": None, "concurrency": 2, **settings}
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        return transform(table).to_pylist()


@pytest.mark.parametrize(
    "name",
    [
        b"content-length",
        b"content-range",
        b"content-type",
        b"content-encoding",
        b"date",
        b"last-modified",
        b"etag",
        b"set-cookie",
        b"retry-after",
    ],
)
@pytest.mark.parametrize("suffix", [".mp4", ""], ids=["a file", "a page, perhaps"])
def test_odd_header_fails_at_most_its_own_row(tmp_path, site, name, suffix):
    """After a truncated response, the next request gets the same header."""
    urls = [
        site.script(
            f"/{number}-{is_cut}{suffix}",
            Odd(name, value, 500 if name == b"retry-after" else 200, is_cut),
        )
        for number, value in enumerate(ODD)
        for is_cut in (False, True)
    ]
    rows = download(tmp_path, [*urls, site.file("/whole.mp4", make_video(seed=1))])
    assert outcome(rows[-1]) == "kept"
    for url, row in zip(urls, rows, strict=False):
        if row["error"] is not None:
            assert not INSIDE.search(row["error"]["message"]), (url, row["error"])
            assert row["error"]["kind"] in ("transient", "permanent", "bad_media")


@pytest.mark.parametrize("extractor", [None, "generic"], ids=["directly", "by yt-dlp"])
@pytest.mark.parametrize("location", LOCATIONS)
def test_redirect_to_an_invalid_url_is_permanent(tmp_path, site, location, extractor):
    [row] = download(tmp_path, [site.script("/a.mp4", Odd(b"location", location, 302))], extractor)
    assert outcome(row) == "permanent", row
    # yt-dlp tries again with another library, which has its own messages.
    assert extractor or not INSIDE.search(row["error"]["message"]), row
    assert len(site.log) <= (1 if extractor is None else 2)


@pytest.mark.parametrize("extractor", [None, "generic"], ids=["directly", "by yt-dlp"])
@pytest.mark.parametrize(
    "url",
    [
        "http://a..b/a.mp4",
        f"http://{'a' * 64}.test/a.mp4",
        f"http://{'a.' * 127}test/a.mp4",
        "http://.test/a.mp4",
        "http://\u00fc..b/a.mp4",
        "http://[::1/a.mp4",
        "http://a.test:x/a.mp4",
    ],
)
def test_invalid_host_is_permanent(tmp_path, url, extractor):
    [row] = download(tmp_path, [url], extractor)
    assert outcome(row) == "permanent", row
    assert not INSIDE.search(row["error"]["message"]), row


def test_host_names_may_be_long_and_end_with_a_dot():
    for host in ("a.test.", f"{'a' * 63}.test", "127.0.0.1", "[2606:4700::1111]"):
        take_turn(Hosts(), f"http://{host}/a.mp4")
    with pytest.raises(RowFailed, match="1 to 63 characters"):
        take_turn(Hosts(), "http://a..b/")


@given(
    st.one_of(
        st.text(),
        st.from_regex(r"\A\d{1,40}\Z"),
        st.from_regex(
            r"\A(Mon|Thu), \d{1,3} (Jan|Feb|Dec) \d{1,6} \d\d:\d\d:\d\d "
            r"([+-]\d{1,20}|GMT|UTC|[A-Z]{1,4})?\Z"
        ),
    )
)
@example("Mon, 01 Jan 2024 00:00:00 +999999999999999")
@example("Thu, 31 Dec 9999 23:59:59 -2359")
@example("Mon, 01 Jan 0001 00:00:00 +2359")
@example("9" * 6000)
@example("\u0663")
@example("nan")
@example("-5")
def test_retry_after_is_a_finite_time_or_nothing(value):
    seconds = retry_after_seconds(value)
    assert seconds is None or 0 <= seconds <= 1e10


# Cookies


def test_cookie_that_cannot_be_sent_is_not_stored(tmp_path, site):
    """Stored, it would break all later requests to its host."""
    rows = download(
        tmp_path,
        [
            site.script("/a.mp4", Odd(b"set-cookie", "a=\u00fc; path=/".encode())),
            site.script("/b.mp4", Odd(b"set-cookie", b"b=good; path=/")),
            site.file("/c.mp4", make_video(seed=1)),
        ],
        concurrency=1,
    )
    assert outcome(rows[0]) == outcome(rows[2]) == "kept"
    assert site.asked("/c.mp4")[0].headers["Cookie"] == "b=good"


def test_only_sendable_cookies_of_a_file_are_used(tmp_path):
    file = tmp_path / "cookies.txt"
    file.write_text(
        "# Netscape HTTP Cookie File\n"
        + "".join(
            f"a.test\tFALSE\t/\tFALSE\t4102444800\t{name}\t{value}\n"
            for name, value in (("good", "1"), ("odd", "\u00fc"))
        ),
        "utf-8",
    )
    jar = cookie_jar(file)
    assert [cookie.name for cookie in jar] == ["good"]
    client = httpx.Client(cookies=jar)
    assert client.build_request("GET", "http://a.test/").headers["Cookie"] == "good=1"
    assert isinstance(cookie_jar(None), http.cookiejar.CookieJar)
