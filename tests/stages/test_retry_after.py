"""A host that requests a pause gets it from every row, thread and process, not just one row.

No test waits for a pause: the server's log shows the requests, and no pause that must not be
waited for ends within a test.
"""

from __future__ import annotations

import json
import multiprocessing
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.ingest.source_spec import SourceSpec
from clipmill.pipeline.ingest.sources import ingest
from clipmill.schemas.errors import RowFailed
from clipmill.schemas.ids import source_key
from clipmill.schemas.retries import Backoff
from clipmill.schemas.tables import SOURCES
from clipmill.stages.media.fetch.attempts import patiently
from clipmill.stages.media.fetch.host_throttle import Hosts, Manners, ask_again
from clipmill.stages.media.fetch.problems import LeftAlone, PassingProblem
from clipmill.stages.media.fetch.ytdlp_errors import problem_of
from clipmill.stages.protocol import Workspace
from tests.download_helpers import add_extractor, make_video, outcome, stage
from tests.http_server import Busy, Redirect, serve

HOUR, DAY = "3600", "86400"
NEXT_STEP = "retry the failures of kind transient"

PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload([__name__])


@pytest.fixture
def site():
    with serve() as server:
        yield server


def download(dataset: Path, urls: list[str], extractor: str | None = None, **settings):
    table = pa.Table.from_pylist(
        [{"source_key": source_key(url), "url": url, "extractor": extractor} for url in urls],
        SOURCES,
    )
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        return transform(table).to_pylist()


def work(dataset: Path, urls: list[str], settings: dict) -> None:
    """A worker process; its rows go to a separate file."""
    rows = download(dataset, urls, **settings)
    (dataset / f"worker-{source_key(urls[0])}.json").write_text(
        json.dumps([[outcome(row), row["error"]["message"]] for row in rows])
    )


def overloaded(site, count: int, status: int = 429, retry_after: str = HOUR) -> list[str]:
    return [site.script(f"/{number}.mp4", Busy(status, retry_after)) for number in range(count)]


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize("retries", [0, 2])
def test_long_pause_applies_to_all_rows_of_the_host(tmp_path, site, status, retries):
    """Even if the row that received it has no attempt left."""
    rows = download(tmp_path, overloaded(site, 8, status), concurrency=1, retries=retries)
    assert len(site.log) == 1
    assert [outcome(row) for row in rows] == ["transient"] * 8
    for row in rows:
        message = row["error"]["message"]
        assert f"HTTP {status} from 127.0.0.1" in message
        assert "left alone until 2" in message
        assert "download_videos.max_backoff_seconds" in message
        assert NEXT_STEP in message
    assert "Retry-After: 3600 s" in rows[0]["error"]["message"]
    assert all("127.0.0.1 was not contacted" in row["error"]["message"] for row in rows[1:])


def test_long_pause_applies_to_all_processes(tmp_path, site):
    """Of three with two threads each, all waiting for their turn, one sends a request."""
    urls = overloaded(site, 9)
    settings = {"sleep_seconds": 600.0, "concurrency": 2}
    running = [
        PROCESSES.Process(target=work, args=(tmp_path, urls[number::3], settings))
        for number in range(3)
    ]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
        assert process.exitcode == 0
    rows = [row for path in tmp_path.glob("worker-*.json") for row in json.loads(path.read_text())]
    assert len(site.log) == 1
    assert [kind for kind, _ in rows] == ["transient"] * 9
    assert all(NEXT_STEP in message for _, message in rows)


@pytest.mark.parametrize(
    "retry_after", [DAY, "9" * 12, "9" * 6000, "Fri, 31 Dec 2100 23:59:59 GMT"]
)
def test_pauses_are_at_most_a_day_and_absurd_ones_ignored(tmp_path, site, retry_after):
    rows = download(tmp_path, overloaded(site, 3, retry_after=retry_after), concurrency=1)
    assert [outcome(row) for row in rows] == ["transient"] * 3
    assert len(site.log) == 1
    [state] = (tmp_path / "media" / ".hosts").glob("*.json")
    left = json.loads(state.read_text())["held_until"] - time.time()
    assert 80_000 < left <= 86_400


def test_other_hosts_are_used_meanwhile(tmp_path, site):
    with serve("127.0.0.3") as well:
        rows = download(
            tmp_path, [*overloaded(site, 2), well.file("/a.mp4", make_video())], concurrency=1
        )
    assert [outcome(row) for row in rows] == ["transient", "transient", "kept"]


def test_the_answering_host_is_paused_not_the_redirecting_one(tmp_path, site):
    with serve("127.0.0.3") as other:
        [busy] = overloaded(other, 1)
        led = site.script("/led.mp4", Redirect(busy))
        rows = download(
            tmp_path, [led, site.file("/b.mp4", make_video()), led + "?again", busy], concurrency=1
        )
    assert [outcome(row) for row in rows] == ["transient", "kept", "transient", "transient"]
    assert "127.0.0.3 was not contacted" in rows[2]["error"]["message"]
    assert len(other.log) == 1


def test_error_of_one_file_pauses_only_that_row(tmp_path, site):
    """Only 429 and 503 apply to the whole host."""
    rows = download(
        tmp_path, [*overloaded(site, 1, 500), site.file("/b.mp4", make_video())], concurrency=1
    )
    assert [outcome(row) for row in rows] == ["transient", "kept"]
    assert len(site.asked("/0.mp4")) == 1


# With yt-dlp, and in lists


@pytest.fixture
def platform(monkeypatch):
    """A site whose extractor continues without its page, like many."""
    from yt_dlp.extractor.common import InfoExtractor

    class HomeIE(InfoExtractor):
        _VALID_URL = r"https?://127\.0\.0\.1:\d+/home/(?P<id>\d+)"
        is_needed = True

        def _real_extract(self, url):
            number = self._match_id(url)
            self._download_webpage(url, number, fatal=self.is_needed)
            return {
                "id": number,
                "title": "A film",
                "formats": [
                    {"format_id": "0", "url": url.replace("/home/", "/files/"), "ext": "mp4"}
                ],
            }

    add_extractor(HomeIE, monkeypatch.setattr)
    return HomeIE


@pytest.mark.parametrize("is_needed", [True, False])
def test_yt_dlps_requests_obey_it_too(tmp_path, site, platform, is_needed):
    platform.is_needed = is_needed
    urls = [site.script(f"/home/{number}", Busy(429, HOUR)) for number in range(4)]
    for number in range(4):
        site.file(f"/files/{number}", make_video(seed=number))
    rows = download(tmp_path, urls, "home", concurrency=1)
    assert [outcome(row) for row in rows] == ["transient"] * 4
    assert all(NEXT_STEP in row["error"]["message"] for row in rows)
    assert len(site.log) == 1


def test_page_fetched_by_both_libraries_is_requested_once(tmp_path, site):
    rows = download(
        tmp_path,
        [site.script(f"/watch{number}", Busy(503, HOUR)) for number in range(3)],
        concurrency=1,
    )
    assert [outcome(row) for row in rows] == ["transient"] * 3
    assert len(site.log) == 1


def test_lists_obey_it_and_pass_it_to_downloads(tmp_path, site):
    lists = [SourceSpec(url=site.script(f"/list{number}", Busy(429, HOUR))) for number in range(2)]
    ingest(tmp_path, lists, shard_videos=10, downloads=stage())
    rows = pq.read_table(tmp_path / "sources").to_pylist()
    assert [outcome(row) for row in rows] == ["transient"] * 2
    assert all("127.0.0.1" in row["error"]["message"] for row in rows)
    assert all("for a list: `clipmill run`" in row["error"]["message"] for row in rows)
    [row] = download(tmp_path, [site.file("/a.mp4", make_video())])
    assert outcome(row) == "transient"
    assert len(site.log) == 1


def test_host_of_a_wrapped_error_is_the_one_that_answered():
    from yt_dlp.networking.common import Response
    from yt_dlp.networking.exceptions import HTTPError

    answer = Response(fp=None, url="http://busy.test/a", status=429, headers={"Retry-After": HOUR})
    problem = problem_of(HTTPError(answer), "ERROR: HTTP Error 429")
    assert (problem.host, problem.retry_after_seconds) == ("busy.test", 3600.0)
    hosts = Hosts()
    hosts.begin_row()

    def attempt(_) -> None:
        hosts.wait("busy.test")
        hosts.wait("later.test")
        raise problem

    with pytest.raises(RowFailed, match="3600"):
        patiently(attempt, host="x.test", hosts=hosts, patience=Backoff(5, 2.0, 120.0))
    hosts.wait("later.test")
    with pytest.raises(LeftAlone, match=r"busy\.test"):
        hosts.wait("busy.test")


# Across runs


def test_next_run_probes_a_paused_host_with_one_request(tmp_path, site):
    """A day may be a mistake. Until it ends, a retry sends one request; after success, all."""
    from clipmill.jobs.run import run
    from clipmill.pipeline.recipes.recipe import load_recipe

    urls = overloaded(site, 6, retry_after=DAY)
    (tmp_path / "urls.txt").write_text("\n".join(urls) + "\n")
    (tmp_path / "recipe.yaml").write_text(
        yaml.safe_dump(
            {
                "sources": ["urls.txt"],
                "stages": {
                    "download_videos": {
                        "min_duration_seconds": 0.5,
                        "min_height": 16,
                        "concurrency": 1,
                    }
                },
            }
        )
    )
    loaded, dataset = load_recipe(tmp_path / "recipe.yaml", engine="local"), tmp_path / "dataset"
    patient = load_recipe(
        tmp_path / "recipe.yaml",
        engine="local",
        overrides=["download_videos.concurrency=4", "download_videos.max_backoff_seconds=6000"],
    )
    run(loaded, dataset)
    assert statuses(dataset) == {"transient": 6}
    assert len(site.log) == 1
    run(patient, dataset, retry_kinds=["transient"])  # of four at a time, too
    assert statuses(dataset) == {"transient": 6}
    assert len(site.log) == 2
    for number in range(6):
        site.file(f"/{number}.mp4", make_video(seed=number))
    run(patient, dataset, retry_kinds=["transient"])
    assert statuses(dataset) == {"kept": 6}


def statuses(dataset: Path) -> dict[str, int]:
    with open_catalog(dataset) as catalog:
        failed = catalog.execute("SELECT kind, count(*) FROM failures GROUP BY ALL").fetchall()
        (kept,) = catalog.execute("SELECT count(*) FROM videos").fetchone()
    return dict(failed) | ({"kept": kept} if kept else {})


def turns(folder: Path, **manners) -> Hosts:
    """A worker's own view of the hosts; none of its rows waits by default."""
    return Hosts(
        Manners(problems=3, pause_seconds=600.0, **{"patience_seconds": 0.0, **manners}), folder
    )


def test_one_row_probes_a_paused_host_and_the_others_learn_the_result(tmp_path):
    turns(tmp_path).hold("a.test", 86_400, "HTTP 429 from a.test")
    with pytest.raises(LeftAlone, match="was not contacted: HTTP 429"):
        turns(tmp_path).wait("a.test")
    ask_again(tmp_path)
    probe, other = turns(tmp_path), turns(tmp_path)
    probe.begin_attempt()
    probe.wait("a.test")
    with pytest.raises(LeftAlone, match="while one row tries it: it had asked for a longer pause"):
        other.wait("a.test")
    probe.answered("a.test")
    other.wait("a.test")


def test_host_that_still_requests_a_pause_is_paused_again(tmp_path):
    turns(tmp_path).hold("a.test", 86_400, "HTTP 429")
    ask_again(tmp_path)
    probe = turns(tmp_path)
    probe.wait("a.test")
    probe.hold("a.test", 7200, "HTTP 503")
    for one in (probe, turns(tmp_path)):
        with pytest.raises(LeftAlone, match="was not contacted: HTTP 503"):
            one.wait("a.test")


def test_short_pause_applies_to_the_next_run(tmp_path):
    began = time.time()
    turns(tmp_path).hold("a.test", 1.0, "HTTP 429")
    ask_again(tmp_path)
    turns(tmp_path, patience_seconds=100.0).wait("a.test")
    assert time.time() - began >= 1.0


def test_shorter_pause_does_not_end_a_longer_one(tmp_path):
    hosts = turns(tmp_path)
    hosts.hold("a.test", 7200, "the longer")
    hosts.hold("A.test.", 1, "the shorter")
    with pytest.raises(LeftAlone, match="the longer"):
        hosts.wait("a.test")


def test_rows_own_backoff_ends_with_the_row(tmp_path):
    """Our own back-off after the last attempt would delay others for nothing."""
    hosts = turns(tmp_path)

    def attempt(_) -> None:
        hosts.wait("a.test")
        raise PassingProblem("HTTP 503", whole_host=True)

    with pytest.raises(RowFailed):
        patiently(attempt, host="a.test", hosts=hosts, patience=Backoff(0, 1000.0, 1000.0))
    hosts.wait("a.test")
