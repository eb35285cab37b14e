"""Sites that treat us as a bot, and hosts that stay down: fewer and fewer requests, reported."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.schemas.ids import source_key
from clipmill.schemas.retries import Backoff
from clipmill.schemas.tables import SOURCES
from clipmill.stages.media.fetch.attempts import patiently
from clipmill.stages.media.fetch.host_throttle import Hosts, Manners
from clipmill.stages.media.fetch.problems import BotCheck, LeftAlone, PassingProblem
from clipmill.stages.media.fetch.ytdlp_errors import problem_of
from clipmill.stages.protocol import Workspace
from tests.download_helpers import add_extractor, make_video, outcome, stage
from tests.http_server import File, serve

SAID = "Sign in to confirm you\u2019re not a bot. Use --cookies for the authentication"
# No waiting, so that a row is requested or fails immediately; pauses end in a test only if it sets
# them.
HASTY = {
    "host_problems": 3,
    "host_pause_seconds": 600.0,
    "max_backoff_seconds": 0.0,
    "concurrency": 1,
}


@dataclass(frozen=True)
class Refusing:
    """A page with a status, or Cloudflare's challenge."""

    status: int = 200
    is_challenge: bool = False

    def answer(self, handler) -> None:
        handler.send_response(self.status)
        handler.send_header("Content-Type", "text/html")
        if self.is_challenge:
            handler.send_header("cf-mitigated", "challenge")
        handler.send_header("Content-Length", "6")
        handler.end_headers()
        handler.body(b"<html>")


@pytest.fixture
def site():
    with serve() as server:
        yield server


@pytest.fixture
def platform(monkeypatch, site):
    """A site with identical pages; `suspects` decides who gets a video behind them."""
    from yt_dlp.extractor.common import InfoExtractor
    from yt_dlp.utils import ExtractorError

    class HomeIE(InfoExtractor):
        _VALID_URL = r"https?://127\.0\.0\.1:\d+/home/(?P<id>\d+)"
        files = site.url("/files/")
        pages = 3  # as YouTube's page, player and script
        suspects = staticmethod(lambda number: True)

        def _real_extract(self, url):
            number = self._match_id(url)
            for _ in range(self.pages):
                self._download_webpage(url, number)
            if self.suspects(int(number)):
                raise ExtractorError(SAID, expected=True)
            return {
                "id": number,
                "title": "A film",
                "formats": [{"format_id": "0", "url": f"{self.files}{number}.mp4", "ext": "mp4"}],
            }

    for number in range(40):
        site.page(f"/home/{number}", "<html>")
        site.file(f"/files/{number}.mp4", make_video(seconds=1.0, seed=number))
    add_extractor(HomeIE, monkeypatch.setattr)
    return HomeIE


def download(dataset: Path, urls: list[str], extractor: str | None = "home", **settings):
    table = pa.Table.from_pylist(
        [{"source_key": source_key(url), "url": url, "extractor": extractor} for url in urls],
        SOURCES,
    )
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        return transform(table).to_pylist()


def homes(site, *numbers: int) -> list[str]:
    return [site.url(f"/home/{number}") for number in numbers]


def test_site_with_bot_checks_is_paused(tmp_path, site, platform):
    """After the third, nobody contacts it for a while; the other rows say why."""
    rows = download(tmp_path, homes(site, *range(12)), **HASTY)
    assert {outcome(row) for row in rows} == {"blocked"}
    assert len(site.log) == 3 * 3
    messages = [row["error"]["message"] for row in rows]
    assert sum(SAID in message and "left alone" not in message for message in messages) == 3
    assert f"after 3 bot checks in a row, the last: [Home] 2: {SAID}" in messages[3]


@pytest.mark.parametrize(
    "extractor",
    ["home", pytest.param(None, marks=pytest.mark.slow)],
    ids=["known", "asked for directly first"],
)
@pytest.mark.parametrize("gone", [None, 0.001], ids=["waited for", "gone"])
def test_site_without_further_bot_checks_is_used_as_before(
    tmp_path, site, platform, extractor, gone
):
    """One row makes all requests for a video; the video ends the pauses, not a page."""
    settings = {**HASTY, "host_pause_seconds": 1.0, "host_gone_seconds": gone}
    for numbers in (range(4), range(4, 6)):
        rows = download(tmp_path, homes(site, *numbers), extractor, **settings)
        assert {outcome(row) for row in rows} == {"blocked"}
        time.sleep(1.1)
    platform.suspects = staticmethod(lambda number: False)
    rows = download(tmp_path, homes(site, *range(20, 28)), extractor, **settings)
    assert {outcome(row) for row in rows} == {"kept"}


@dataclass(frozen=True)
class Late:
    """A file that arrives once all others have been requested, or after a timeout."""

    file: File
    others: int

    def answer(self, handler) -> None:
        ends = time.monotonic() + 60
        while sum(one.path.startswith("/files/") for one in handler.server.log) <= self.others:
            if time.monotonic() > ends:
                handler.close_connection = True
                return
            time.sleep(0.05)
        self.file.answer(handler)


@pytest.mark.slow
def test_started_video_download_ends_the_pause(tmp_path, site, platform):
    download(tmp_path, homes(site, 0, 1, 2), **{**HASTY, "host_pause_seconds": 1.0})
    time.sleep(1.1)
    platform.suspects = staticmethod(lambda number: False)
    site.script("/files/20.mp4", Late(File(make_video(seconds=1.0)), others=6))
    rows = download(
        tmp_path,
        homes(site, *range(20, 27)),
        retries=0,
        timeout_seconds=120,
        **{**HASTY, "host_pause_seconds": 90.0, "max_backoff_seconds": 200, "concurrency": 2},
    )
    assert [outcome(row) for row in rows] == ["kept"] * 7


def test_page_does_not_end_a_pause(tmp_path, site, platform):
    """Even if the page is first requested directly, to see whether it is a file."""
    rows = download(tmp_path, homes(site, *range(12)), extractor=None, **HASTY)
    assert {outcome(row) for row in rows} == {"blocked"}
    pages = [request for request in site.log if request.path.startswith("/home")]
    assert len(pages) < 4 * 12


def test_occasional_bot_checks_affect_only_their_videos(tmp_path, site, platform):
    platform.suspects = staticmethod(lambda number: number % 3 != 0)
    rows = download(tmp_path, homes(site, *range(12)), **HASTY)
    assert [outcome(row) for row in rows] == ["kept", "blocked", "blocked"] * 4
    assert not any("left alone" in row["error"]["message"] for row in rows if row["error"])


@pytest.mark.parametrize("status", [403, 503])
def test_cloudflares_challenge_is_a_bot_check(tmp_path, site, status):
    urls = [
        site.script(f"/{number}.mp4", Refusing(status, is_challenge=True)) for number in range(5)
    ]
    rows = download(tmp_path, urls, None, **HASTY)
    assert [outcome(row) for row in rows] == ["blocked"] * 5
    assert "Cloudflare" in rows[0]["error"]["message"]
    assert "bot checks in a row" in rows[-1]["error"]["message"]


def test_refusal_of_one_file_is_not_a_bot_check(tmp_path, site):
    rows = download(
        tmp_path, [site.status(f"/{number}.mp4", 403) for number in range(8)], None, **HASTY
    )
    assert [outcome(row) for row in rows] == ["blocked"] * 8
    assert len(site.log) == 8


def test_host_that_is_down_is_not_waited_for(tmp_path, site):
    """Each of 40 rows would wait for its max_backoff_seconds; once the host is down, none does.

    Except an occasional row that tries twice, if all pause between the two.
    """
    urls = [site.status(f"/{number}.mp4", 500) for number in range(40)]
    began = time.monotonic()
    rows = download(
        tmp_path,
        urls,
        None,
        host_problems=2,
        host_pause_seconds=1.0,
        max_backoff_seconds=1.5,
        host_gone_seconds=2.0,
        retries=1,
        concurrency=1,
    )
    assert {outcome(row) for row in rows} == {"transient"}
    assert sum("is left alone until" in row["error"]["message"] for row in rows) > 30
    assert time.monotonic() - began < 40, "60 s if each row waits"


def test_probe_detects_that_a_host_is_back(tmp_path, site):
    dead = [site.status(f"/{number}.mp4", 500) for number in range(6)]
    settings = {
        "host_problems": 1,
        "host_pause_seconds": 0.5,
        "max_backoff_seconds": 0.6,
        "host_gone_seconds": 0.1,
        "retries": 0,
        "concurrency": 1,
    }
    download(tmp_path, dead, None, **settings)
    time.sleep(0.6)
    alive = [
        site.script(f"/alive{number}.mp4", File(make_video(seconds=1.0, seed=number)))
        for number in range(4)
    ]
    assert {outcome(row) for row in download(tmp_path, alive, None, **settings)} == {"kept"}


def test_page_instead_of_a_file_does_not_end_a_pause(tmp_path, site):
    """It may be the next check, whatever its URL ends in."""
    challenged = [site.script(f"/{number}.mp4", Refusing(is_challenge=True)) for number in range(3)]
    download(tmp_path, challenged, None, **{**HASTY, "host_pause_seconds": 0.5})
    time.sleep(0.6)
    page = site.page("/page.mp4", "<html>")
    rows = download(tmp_path, [page, site.file("/v.mp4", make_video())], None, **HASTY)
    assert [outcome(row) for row in rows] == ["bad_media", "blocked"]
    assert "is left alone until" in rows[1]["error"]["message"]


def test_media_that_never_arrives_is_the_hosts_problem(tmp_path, site, platform):
    platform.suspects = staticmethod(lambda number: False)
    for number in range(12):
        site.status(f"/files/{number}.mp4", 500)
    rows = download(tmp_path, homes(site, *range(12)), **HASTY)
    assert {outcome(row) for row in rows} == {"transient"}
    assert sum(request.path.startswith("/files") for request in site.log) <= 4


# Which host, and for how long


def turns(folder: Path, **manners) -> Hosts:
    """With pauses longer than any test, unless it sets them."""
    return Hosts(
        Manners(**{"problems": 1, "pause_seconds": 600.0, "patience_seconds": 0.0, **manners}),
        folder,
    )


def checked(folder: Path, *hosts: str) -> None:
    """Pauses hosts with bot checks, and ends the pauses."""
    for host in hosts:
        attempt(turns(folder, pause_seconds=0.5), host).failed(BotCheck(SAID))
    time.sleep(0.6)


def attempt(hosts: Hosts, *asked: str, new_row: bool = True) -> Hosts:
    if new_row:
        hosts.begin_row()
    hosts.begin_attempt()
    for host in asked:
        hosts.wait(host)
    return hosts


@pytest.mark.parametrize(
    ("asked", "known", "whose"),
    [
        (["site.example"] * 3 + ["api.example"], None, "site.example"),
        (["short.example", "site.example", "site.example"], None, "site.example"),
        (["short.example", "site.example"], None, "site.example"),
        (
            ["short.example", "site.example", "cdn.example", "cdn.example"],
            "Site.example",
            "site.example",
        ),
    ],
)
def test_bot_check_counts_for_the_site(tmp_path, asked, known, whose):
    """Not for the host of a URL that redirects to it, nor of one of its APIs."""
    hosts = turns(tmp_path)
    attempt(hosts, *asked).failed(BotCheck(SAID, known))
    for host in set(asked) - {whose}:
        attempt(hosts, host)
    with pytest.raises(LeftAlone, match=f"^{whose} is left alone") as left:
        attempt(hosts, whose)
    assert left.value.kind == "blocked"


def test_answers_to_earlier_requests_do_not_end_a_pause(tmp_path):
    long_download = attempt(turns(tmp_path), "site.example")
    attempt(turns(tmp_path), "site.example").failed(BotCheck(SAID))
    long_download.got_through()
    long_download.succeeded()
    with pytest.raises(LeftAlone):
        attempt(turns(tmp_path), "site.example")


def test_transient_problems_and_bot_checks_are_counted_separately(tmp_path):
    hosts = turns(tmp_path, problems=3)
    for _ in range(2):
        attempt(hosts, "site.example").failed(PassingProblem("timed out"))
    for _ in range(2):
        attempt(hosts, "site.example").failed(BotCheck(SAID))
    attempt(hosts, "site.example").failed(BotCheck(SAID))
    with pytest.raises(LeftAlone, match="after 3 bot checks in a row, the last: Sign in"):
        attempt(hosts, "site.example")


def test_transient_problem_does_not_change_a_pause_after_bot_checks(tmp_path):
    checked(tmp_path, "site.example")
    hosts = turns(tmp_path)
    attempt(hosts, "site.example").failed(PassingProblem("timed out"))
    hosts.answered("site.example")
    with pytest.raises(LeftAlone, match="2 bot checks") as left:
        attempt(hosts, "site.example")
    assert left.value.kind == "blocked"


def test_host_that_nobody_contacted_is_not_down(tmp_path):
    """It was paused an hour ago; the others wait for the first that tries it again."""
    hosts = turns(tmp_path, pause_seconds=0.3, patience_seconds=20.0, gone_seconds=0.6)
    for _ in range(3):
        attempt(hosts, "site.example").failed(PassingProblem("refused"))
    time.sleep(1.0)
    attempt(hosts, "site.example")
    other = turns(tmp_path, pause_seconds=0.3, patience_seconds=20.0, gone_seconds=0.6)
    attempt(other, "site.example")


def test_probing_row_may_continue_until_a_request_fails(tmp_path):
    checked(tmp_path, "site.example")
    hosts = turns(tmp_path)
    attempt(hosts, "site.example", "site.example")
    with pytest.raises(LeftAlone):
        attempt(turns(tmp_path), "site.example")
    attempt(hosts, "site.example", new_row=False).failed(BotCheck(SAID))
    with pytest.raises(LeftAlone):
        attempt(hosts, "site.example", new_row=False)


def test_answer_after_bot_checks_does_not_end_a_pause(tmp_path):
    """The first page arrives as always; what counts is whether there is a video behind it."""
    checked(tmp_path, "site.example", "calm.example")
    hosts = turns(tmp_path)

    def refused_elsewhere(_) -> None:
        hosts.wait("site.example")
        raise LeftAlone("blocked", "another host that the site leads to is left alone")

    attempt(hosts, "site.example").answered("site.example")
    with pytest.raises(LeftAlone, match="leads to"):
        patiently(
            refused_elsewhere, host="site.example", hosts=hosts, patience=Backoff(5, 2.0, 120.0)
        )
    with pytest.raises(LeftAlone, match=r"site\.example"):
        attempt(hosts, "site.example")
    attempt(hosts, "calm.example").got_through()
    attempt(hosts, "calm.example")


# yt-dlp's messages


def test_redirect_to_a_paused_site_is_not_the_redirectors_problem():
    from yt_dlp.networking.exceptions import TransportError

    left = LeftAlone("blocked", "site.example is left alone")
    assert problem_of(TransportError(cause=left), "ERROR: [generic] 1: timed out") is left


@pytest.mark.parametrize(
    ("message", "kind", "is_check"),
    [
        (f"ERROR: [youtube] a: {SAID}", "blocked", True),
        (
            "ERROR: [generic] 1: Got HTTP Error 403 caused by Cloudflare anti-bot challenge",
            "blocked",
            True,
        ),
        ("ERROR: [generic] captcha-howto: Video unavailable", "permanent", False),
        ("ERROR: Unable to open https://a.test/captcha?x: does not exist", "permanent", False),
        ("ERROR: [youtube] a: Sign in to confirm your age", "blocked", False),
    ],
)
def test_only_messages_about_bots_are_bot_checks(message, kind, is_check):
    found = problem_of(Exception("x"), message)
    assert (found.kind, isinstance(found, BotCheck)) == (kind, is_check)


# Across runs


@pytest.mark.slow
@pytest.mark.parametrize("way", ["retry", "a killed run's successor"])
def test_next_run_requests_immediately(tmp_path, site, platform, way):
    """With new cookies, for example; the site's checks in the last run don't fail these rows."""
    from clipmill.jobs.run import run
    from clipmill.pipeline.recipes.recipe import load_recipe

    (tmp_path / "urls.txt").write_text("\n".join(homes(site, *range(9))) + "\n")
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(
            {
                "sources": ["urls.txt"],
                "stages": {
                    "download_videos": {
                        "min_duration_seconds": 0.5,
                        "min_height": 16,
                        **HASTY,
                        "host_pause_seconds": 600.0,
                        "host_gone_seconds": 0.001,
                    }
                },
            }
        )
    )
    loaded, dataset = load_recipe(tmp_path / "recipe.yaml", engine="local"), tmp_path / "dataset"
    run(loaded, dataset)
    n_asked = len(site.log)
    assert n_asked == 4 * 3
    assert statuses(dataset) == {"blocked": 9}
    platform.suspects = staticmethod(lambda number: False)
    if way == "retry":
        run(loaded, dataset, retry_kinds=["blocked"])
    else:
        for shard in (dataset / "download_videos").glob("*/*.parquet"):
            shard.unlink()
        run(loaded, dataset)
    assert statuses(dataset) == {"kept": 9}


def statuses(dataset: Path) -> dict[str, int]:
    with open_catalog(dataset) as catalog:
        failed = catalog.execute("SELECT kind, count(*) FROM failures GROUP BY ALL").fetchall()
        (kept,) = catalog.execute("SELECT count(*) FROM videos").fetchone()
    return dict(failed) | ({"kept": kept} if kept else {})
