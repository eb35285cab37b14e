"""Sites that take us for a bot, and hosts that stay away: asked less and less, and said so."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
import yaml

from pipeline.catalog import open_catalog
from schemas.ids import source_key
from schemas.tables import SOURCES
from stages.media.hosts import BotCheck, Hosts, LeftAlone, Manners
from stages.media.http import Patience, patiently
from stages.protocol import Workspace
from tests.download_helpers import add_extractor, make_video, outcome, stage
from tests.http_server import File, serve

SAID = "Sign in to confirm you\u2019re not a bot. Use --cookies for the authentication"
# Nothing is waited for, so that a row is asked for or fails at once.
HASTY = {"host_problems": 3, "host_pause_seconds": 5.0, "max_backoff_seconds": 0.0,
         "concurrency": 1}


@dataclass(frozen=True)
class Refusing:
    """A page with a status, or Cloudflare's way to ask for a proof."""

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
    """A site whose pages all look alike, while `suspects` says who gets a video behind them."""
    from yt_dlp.extractor.common import InfoExtractor
    from yt_dlp.utils import ExtractorError

    class HomeIE(InfoExtractor):
        _VALID_URL = r"https?://127\.0\.0\.1:\d+/home/(?P<id>\d+)"
        suspects = staticmethod(lambda number: True)

        def _real_extract(self, url):
            number = self._match_id(url)
            self._download_webpage(url, number)
            if self.suspects(int(number)):
                raise ExtractorError(SAID, expected=True)
            return {"id": number, "title": "A film", "formats": [
                {"format_id": "0", "url": site.url(f"/files/{number}.mp4"), "ext": "mp4"}]}

    for number in range(40):
        site.page(f"/home/{number}", "<html>")
        site.file(f"/files/{number}.mp4", make_video(seconds=1.0, seed=number))
    add_extractor(HomeIE, monkeypatch.setattr)
    return HomeIE


def download(dataset: Path, urls: list[str], extractor: str | None = "home", **settings):
    table = pa.Table.from_pylist(
        [{"source_key": source_key(url), "url": url, "extractor": extractor} for url in urls],
        SOURCES)
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        return transform(table).to_pylist()


def homes(site, *numbers: int) -> list[str]:
    return [site.url(f"/home/{number}") for number in numbers]


def test_a_site_that_takes_us_for_a_bot_is_left_alone(tmp_path, site, platform):
    """After the third only one tries each pause; the rest say why they were not asked."""
    began = time.monotonic()
    rows = download(tmp_path, homes(site, *range(12)), **HASTY)
    probes = int((time.monotonic() - began) / 5.0)
    assert {outcome(row) for row in rows} == {"blocked"}
    assert len(site.log) <= 3 + probes < 12
    messages = [row["error"]["message"] for row in rows]
    assert sum(SAID in message and "left alone" not in message for message in messages) \
        == len(site.log)
    assert f"after 3 bot checks in a row, the last: [Home] 2: {SAID}" in messages[3]


def test_a_site_that_has_calmed_down_is_asked_as_before(tmp_path, site, platform):
    """The first video that it gives out again ends the pauses, not the first page."""
    settings = {**HASTY, "host_pause_seconds": 1.0}
    rows = download(tmp_path, homes(site, 0, 1, 2, 3), **settings)
    assert {outcome(row) for row in rows} == {"blocked"}
    time.sleep(1.1)
    platform.suspects = staticmethod(lambda number: False)
    rows = download(tmp_path, homes(site, *range(20, 28)), **settings)
    assert {outcome(row) for row in rows} == {"kept"}


@dataclass(frozen=True)
class Late:
    """A file that comes once all others have been asked for, or when that takes too long."""

    file: File
    others: int

    def answer(self, handler) -> None:
        ends = time.monotonic() + 8
        while sum(one.path.startswith("/files/") for one in handler.server.log) <= self.others:
            if time.monotonic() > ends:
                handler.close_connection = True
                return
            time.sleep(0.05)
        self.file.answer(handler)


def test_a_video_that_is_given_out_lets_others_go_on_before_it_is_there(tmp_path, site, platform):
    download(tmp_path, homes(site, 0, 1, 2), **{**HASTY, "host_pause_seconds": 1.0})
    time.sleep(1.1)
    platform.suspects = staticmethod(lambda number: False)
    site.script("/files/20.mp4", Late(File(make_video(seconds=1.0)), others=6))
    rows = download(tmp_path, homes(site, *range(20, 27)), retries=0, **{
        **HASTY, "host_pause_seconds": 9.0, "max_backoff_seconds": 60, "concurrency": 2})
    assert [outcome(row) for row in rows] == ["kept"] * 7


def test_a_page_is_no_proof_of_good_will(tmp_path, site, platform):
    """Also where the page is first asked for directly, to see whether it is a file."""
    rows = download(tmp_path, homes(site, *range(12)), extractor=None, **HASTY)
    assert {outcome(row) for row in rows} == {"blocked"}
    pages = [request for request in site.log if request.path.startswith("/home")]
    assert len(pages) < 2 * 12


def test_bot_checks_now_and_then_are_those_videos_own(tmp_path, site, platform):
    platform.suspects = staticmethod(lambda number: number % 3 != 0)
    rows = download(tmp_path, homes(site, *range(12)), **HASTY)
    assert [outcome(row) for row in rows] == ["kept", "blocked", "blocked"] * 4
    assert not any("left alone" in row["error"]["message"] for row in rows if row["error"])


@pytest.mark.parametrize("status", [403, 503])
def test_cloudflares_challenge_is_a_bot_check(tmp_path, site, status):
    urls = [site.script(f"/{number}.mp4", Refusing(status, is_challenge=True))
            for number in range(5)]
    rows = download(tmp_path, urls, None, **HASTY)
    assert [outcome(row) for row in rows] == ["blocked"] * 5
    assert "Cloudflare" in rows[0]["error"]["message"]
    assert "bot checks in a row" in rows[-1]["error"]["message"]


def test_a_refusal_of_one_file_is_no_bot_check(tmp_path, site):
    rows = download(tmp_path, [site.status(f"/{number}.mp4", 403) for number in range(8)], None,
                    **HASTY)
    assert [outcome(row) for row in rows] == ["blocked"] * 8
    assert len(site.log) == 8


def test_a_host_that_is_gone_is_waited_for_no_more(tmp_path, site):
    """Each of 40 rows would wait for its max_backoff_seconds; once it is gone none does."""
    urls = [site.status(f"/{number}.mp4", 500) for number in range(40)]
    began = time.monotonic()
    rows = download(tmp_path, urls, None, host_problems=2, host_pause_seconds=1.0,
                    max_backoff_seconds=1.5, host_gone_seconds=2.0, retries=1, concurrency=1)
    assert {outcome(row) for row in rows} == {"transient"}
    assert all("is left alone until" in row["error"]["message"] for row in rows[2:])
    assert time.monotonic() - began < 15, "60 s if each row waits"


def test_a_gone_host_that_comes_back_is_found_by_a_probe(tmp_path, site):
    dead = [site.status(f"/{number}.mp4", 500) for number in range(6)]
    settings = {"host_problems": 1, "host_pause_seconds": 0.5, "max_backoff_seconds": 0.6,
                "host_gone_seconds": 0.1, "retries": 0, "concurrency": 1}
    download(tmp_path, dead, None, **settings)
    time.sleep(0.6)
    alive = [site.script(f"/alive{number}.mp4", File(make_video(seconds=1.0, seed=number)))
             for number in range(4)]
    assert {outcome(row) for row in download(tmp_path, alive, None, **settings)} == {"kept"}


def test_a_bot_check_is_the_sites_that_was_asked_first(tmp_path):
    hosts = Hosts(Manners(problems=1, pause_seconds=30, patience_seconds=0), tmp_path)
    hosts.begin_attempt()
    hosts.wait("site.example")
    hosts.wait("api.example")
    hosts.failed(BotCheck("blocked", SAID))
    hosts.begin_attempt()
    hosts.wait("api.example")
    with pytest.raises(LeftAlone, match=r"site\.example is left alone") as left:
        hosts.wait("site.example")
    assert left.value.kind == "blocked"


def test_an_answer_after_bot_checks_ends_no_pause(tmp_path):
    """The probe's first page comes as always; what counts is whether it gets its video."""
    hosts = Hosts(Manners(problems=1, pause_seconds=1.5, patience_seconds=0), tmp_path)

    def refused_elsewhere() -> None:
        hosts.wait("site.example")
        raise LeftAlone("blocked", "another host that the site leads to is left alone")

    hosts.begin_attempt()
    hosts.wait("site.example")
    hosts.failed(BotCheck("blocked", SAID))
    time.sleep(1.6)
    hosts.begin_attempt()
    hosts.wait("site.example")
    hosts.answered("site.example")
    with pytest.raises(LeftAlone):
        hosts.wait("site.example")
    time.sleep(1.6)
    with pytest.raises(LeftAlone, match="leads to"):
        patiently(refused_elsewhere, host="site.example", hosts=hosts, patience=Patience())
    with pytest.raises(LeftAlone):
        hosts.wait("site.example")
    hosts.begin_attempt()
    time.sleep(1.6)
    hosts.wait("site.example")
    hosts.succeeded()
    hosts.wait("site.example")


@pytest.mark.parametrize("way", ["retry", "a killed run's successor"])
def test_whoever_comes_next_is_asked_for_at_once(tmp_path, site, platform, way):
    """With new cookies, say; what the site did to the last run is no reason to fail these rows."""
    from jobs.run import run
    from pipeline.recipe import load_recipe

    (tmp_path / "urls.txt").write_text("\n".join(homes(site, *range(9))) + "\n")
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"sources": ["urls.txt"], "stages": {
        "download_videos": {"min_duration_seconds": 0.5, "min_height": 16, **HASTY,
                            "host_pause_seconds": 600.0, "host_gone_seconds": 0.001}}}))
    loaded, dataset = load_recipe(tmp_path / "recipe.yaml", engine="local"), tmp_path / "dataset"
    run(loaded, dataset)
    n_asked = len(site.log)
    assert n_asked == 2 * 3
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
