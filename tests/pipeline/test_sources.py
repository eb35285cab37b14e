"""Every input row becomes one source, one rejection or one failure, and only once."""

from __future__ import annotations

import csv
import json
import os
import string
import threading
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clipmill.pipeline.dataset.shards import shard_path
from clipmill.pipeline.ingest.platforms import identify
from clipmill.pipeline.ingest.shard_sizes import FittedShards
from clipmill.pipeline.ingest.sources import (
    SourceSpec,
    ingest,
    list_source_shards,
    source_from_argument,
)
from clipmill.schemas.errors import UsageError
from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.media.isolation import isolated
from tests.download_helpers import add_extractor
from tests.http_server import Busy, File, serve

YOUTUBE = "https://www.youtube.com/watch?v="


@pytest.fixture
def site():
    with serve() as server:
        yield server


def read(dataset: Path) -> list[dict]:
    rows = []
    for shard in list_source_shards(dataset):
        table = pq.read_table(shard_path(dataset / "sources", shard))
        assert table.schema.remove_metadata().equals(SOURCES)
        rows += table.to_pylist()
    return rows


def take(folder: Path, *specs: SourceSpec | dict, shard_videos: int = 16, **more) -> list[dict]:
    """The rows after an ingest into `folder/dataset`."""
    specs = [SourceSpec.model_validate(spec) for spec in specs]
    ingest(folder / "dataset", specs, shard_videos=shard_videos, base_folder=folder, **more)
    rows = read(folder / "dataset")
    assert [row["position"] for row in rows] == list(range(len(rows)))
    assert len({row["source_key"] for row in rows}) == len(rows)
    return rows


def write(folder: Path, name: str, text: str | bytes) -> dict:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return {"path": name}


def kept(rows: list[dict]) -> list[dict]:
    return [row for row in rows if row["rejection"] is None and row["error"] is None]


def urls(rows: list[dict]) -> list[str]:
    return [row["url"] for row in kept(rows)]


# List formats

RECORDS = [
    {
        "url": "https://a.example/1.mp4",
        "category": "sport",
        "language": "en",
        "query": "juggling",
        "caption": "a man juggles",
        "title": "One",
        "video_id": "v1",
        "licence": "CC-BY",
    },
    {
        "url": "https://a.example/2.mp4",
        "category": "",
        "language": "",
        "query": "",
        "caption": "",
        "title": "",
        "video_id": "",
        "licence": "",
    },
]


def as_csv(delimiter: str = ",") -> str:
    lines = [delimiter.join(RECORDS[0])]
    lines += [delimiter.join(record.values()) for record in RECORDS]
    return "\n".join(lines) + "\n"


def as_parquet(folder: Path) -> bytes:
    path = folder / "source.parquet"
    pq.write_table(pa.Table.from_pylist(RECORDS), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    "name",
    [
        "a.csv",
        "a.tsv",
        "a.jsonl",
        "a.parquet",
        "semicolons.csv",
        "bom.csv",
        "utf16.csv",
        "UPPER.CSV",
    ],
)
def test_all_list_formats_give_the_same_rows(tmp_path, name):
    text = {
        "a.csv": as_csv(),
        "UPPER.CSV": as_csv(),
        "a.tsv": as_csv("\t"),
        "semicolons.csv": as_csv(";"),
        "bom.csv": b"\xef\xbb\xbf" + as_csv().encode(),
        "utf16.csv": as_csv().encode("utf-16"),
        "a.parquet": as_parquet(tmp_path),
        "a.jsonl": "\n".join(map(json.dumps, RECORDS)),
    }[name]
    first, second = take(tmp_path, write(tmp_path, name, text))
    assert first == {
        "source_key": source_key("https://a.example/1.mp4"),
        "position": 0,
        "url": "https://a.example/1.mp4",
        "path": None,
        "extractor": None,
        "platform_id": None,
        "video_id": "v1",
        "spans": None,
        "title": "One",
        "category": "sport",
        "language": "en",
        "query": "juggling",
        "caption": "a man juggles",
        "extra": [("licence", "CC-BY")],
        "listed_in": None,
        "captions": None,
        "rejection": None,
        "error": None,
    }
    assert {name for name, value in second.items() if value is not None} == {
        "source_key",
        "position",
        "url",
    }


def test_text_list_has_one_source_per_line(tmp_path):
    text = "# known good\nhttps://a.example/1.mp4\n\n  films/b.mp4  \nfile:///x/c%20d.mp4\n"
    rows = take(tmp_path, write(tmp_path, "a.txt", text))
    assert urls(rows) == ["https://a.example/1.mp4", str(tmp_path / "films/b.mp4"), "/x/c d.mp4"]
    assert [row["path"] for row in rows] == [None, str(tmp_path / "films/b.mp4"), "/x/c d.mp4"]


def test_paths_in_a_list_are_relative_to_its_folder(tmp_path):
    (tmp_path / "lists").mkdir()
    rows = take(tmp_path, write(tmp_path, "lists/a.csv", "path\n../films/b.mp4\n"))
    assert urls(rows) == [str(tmp_path / "films/b.mp4")]


def test_values_that_no_table_can_store_are_replaced(tmp_path):
    line = '{"url": "https://a.example/1", "title": "half \\ud800 pair", "n": 3, "x": {"a": [1]}}'
    [row] = take(tmp_path, write(tmp_path, "a.jsonl", line))
    assert row["title"] == "half � pair"
    assert row["extra"] == [("n", "3"), ("x", '{"a": [1]}')]


def test_url_column_can_be_named(tmp_path):
    spec = write(tmp_path, "a.csv", "path,file\nno,b.mp4\n") | {"url_column": "file"}
    [row] = take(tmp_path, spec)
    assert row["path"] == str(tmp_path / "b.mp4")
    assert row["extra"] == [("path", "no")]


def test_folder_is_searched_recursively(tmp_path):
    for name in ("b.mp4", "a/c.WEBM", "a/.hidden.mp4", ".git/d.mp4", "notes.txt"):
        path = tmp_path / "films" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert urls(take(tmp_path, {"path": "films"})) == [
        str(tmp_path / "films" / name) for name in ("b.mp4", "a/c.WEBM")
    ]


def test_globs_and_single_files(tmp_path):
    for name in ("b.mp4", "a.mp4", "c.mov"):
        (tmp_path / name).touch()
    assert urls(take(tmp_path, {"path": "*.mp4"}, {"path": "c.mov"})) == [
        str(tmp_path / name) for name in ("a.mp4", "b.mp4", "c.mov")
    ]


def test_name_that_is_not_utf8_is_a_failure_row(tmp_path):
    (tmp_path / "films").mkdir()
    name = bytes(tmp_path / "films") + b"/\xff.mp4"
    try:
        open(name, "wb").close()
    except OSError:
        pytest.skip("this file system takes only UTF-8 names")
    [row] = take(tmp_path, {"path": "films"})
    assert row["error"]["kind"] == "permanent"
    assert "UTF-8" in row["error"]["message"]


# Times


def test_rows_of_one_source_become_its_spans_in_order(tmp_path):
    text = (
        "url,start_seconds,end_seconds,caption,score\n"
        "https://a.example/1.mp4,00:01:05.250,00:01:10.5,later,2\n"
        "https://a.example/2.mp4,,,whole,3\n"
        "https://A.EXAMPLE:443/1.mp4,1.5,3,earlier,1\n"
    )
    first, second = take(tmp_path, write(tmp_path, "a.csv", text))
    assert first["spans"] == [
        {
            "start_seconds": 1.5,
            "end_seconds": 3.0,
            "caption": "earlier",
            "extra": [("score", "1")],
            "captions": None,
        },
        {
            "start_seconds": 65.25,
            "end_seconds": 70.5,
            "caption": "later",
            "extra": [("score", "2")],
            "captions": None,
        },
    ]
    assert (first["caption"], first["extra"]) == (None, None)
    assert (second["spans"], second["caption"], second["extra"]) == (
        None,
        "whole",
        [("score", "3")],
    )


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        ("5", "3", "empty or negative"),
        ("-1", "3", "empty or negative"),
        ("soon", "3", "start_sec"),
        ("1", "", "without end"),
        ("1", "nan", "end_seconds"),
        ("1", "inf", "end_seconds"),
    ],
)
def test_nonsensical_span_is_a_failure_row(tmp_path, start, end, message):
    text = (
        f"url,start_seconds,end_seconds\nhttps://a.example/1,{start},{end}\n"
        "https://a.example/2,1,2\n"
    )
    rows = take(tmp_path, write(tmp_path, "a.csv", text))
    assert rows[0]["error"]["kind"] == "permanent"
    assert message in rows[0]["error"]["message"]
    assert "a.csv:2" in rows[0]["error"]["message"]
    assert urls(rows) == ["https://a.example/2"]


@given(
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 5000), st.integers(1, 5000)),
        min_size=1,
        max_size=25,
    )
)
@settings(max_examples=25)
def test_no_span_is_lost_or_duplicated(tmp_path_factory, listed):
    folder = tmp_path_factory.mktemp("spans")
    lines = ["url,start_seconds,end_seconds"]
    wanted: dict[str, set] = {}
    for video, start, length in listed:
        url = f"https://a.example/{video}.mp4"
        lines.append(f"{url},{start / 100},{(start + length) / 100}")
        wanted.setdefault(url, set()).add((start / 100, (start + length) / 100))
    rows = take(folder, write(folder, "a.csv", "\n".join(lines)))
    found = {
        row["url"]: [(s["start_seconds"], s["end_seconds"]) for s in row["spans"]]
        for row in kept(rows)
    }
    assert {url: set(spans) for url, spans in found.items()} == wanted
    assert all(spans == sorted(set(spans)) for spans in found.values())
    repeats = len(listed) - sum(map(len, wanted.values()))
    assert sum(row["rejection"] is not None for row in rows) == repeats


# Bad rows and bad input


def test_row_without_a_url_is_a_failure_row(tmp_path):
    text = "url,title\nhttps://a.example/1,x\n,no url\nhttps://a.example/2,one,cell,too many\n"
    rows = take(tmp_path, write(tmp_path, "a.csv", text))
    assert urls(rows) == ["https://a.example/1"]
    messages = [row["error"]["message"] for row in rows[1:]]
    assert "a.csv:3: no URL" in messages[0]
    assert "a.csv:4: 4 cells" in messages[1]


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", "17", '{"title": "no url"}'])
def test_malformed_line_is_a_failure_row(tmp_path, line):
    text = '{"url": "https://a.example/1"}\n' + line + "\n"
    rows = take(tmp_path, write(tmp_path, "a.jsonl", text))
    assert rows[1]["error"]["kind"] == "permanent"
    assert "a.jsonl:2" in rows[1]["error"]["message"]


@pytest.mark.parametrize("url", ["s3://bucket/a.mp4", "http://", "http://h:port/a", "gopher://x/y"])
def test_unsupported_url_is_a_failure_row(tmp_path, url):
    [row] = take(tmp_path, write(tmp_path, "a.txt", url))
    assert row["error"]["kind"] == "permanent"
    assert url in row["error"]["message"]


@pytest.mark.parametrize(
    ("name", "text", "column", "message"),
    [
        ("a.csv", "link2,title\nx,y\n", None, "link2, title"),
        ("a.csv", "video_link,title\nx,y\n", "video_lnk", "did you mean 'video_link'"),
        ("a.csv", "url,url\nx,y\n", None, "twice"),
        ("a.csv", "", None, "is empty"),
        ("a.txt", "x\n", "url", "no column"),
        ("a.txt", "\n# nothing\n", None, "gives no sources"),
        ("a.parquet", "no parquet", None, "not a Parquet file"),
        ("a.xlsx", "x", None, ".csv"),
    ],
)
def test_bad_input_is_a_usage_error_that_names_the_file(tmp_path, name, text, column, message):
    spec = write(tmp_path, name, text) | {"url_column": column}
    with pytest.raises(UsageError, match=message) as error:
        take(tmp_path, spec)
    assert name in str(error.value)
    assert list_source_shards(tmp_path / "dataset") == []


def test_missing_input_is_a_usage_error(tmp_path):
    (tmp_path / "empty").mkdir()
    for path in ("nowhere.csv", "empty", "*.mp4"):
        with pytest.raises(UsageError, match=path.replace("*", r"\*")):
            take(tmp_path, {"path": path})


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"path": "a", "url": "b"},
        {"search": []},
        {"path": "a", "colum": "x"},
        {"path": "a", "results": 0},
        {"url": "u", "yt_dlp": {"nosuch": 1}},
    ],
)
def test_source_item_names_exactly_one_place(spec):
    with pytest.raises(ValidationError):
        SourceSpec.model_validate(spec)


def test_arguments_of_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert source_from_argument("films").path == str(tmp_path / "films")
    assert source_from_argument("file:///a/b.mp4").path == "/a/b.mp4"
    assert source_from_argument("https://a.example/x").url == "https://a.example/x"
    assert source_from_argument("ytsearch3:cats").url == "ytsearch3:cats"


# Duplicates and known ids


def test_source_listed_twice_is_ingested_once(tmp_path):
    text = "\n".join(
        [
            YOUTUBE + "dQw4w9WgXcQ",
            "https://a.example/1.mp4",
            "https://youtu.be/dQw4w9WgXcQ?t=4",
            "https://A.example:443/1.mp4#t=5",
        ]
    )
    rows = take(tmp_path, write(tmp_path, "a.txt", text))
    assert urls(rows) == [YOUTUBE + "dQw4w9WgXcQ", "https://a.example/1.mp4"]
    for row, first in zip(rows[2:], rows[:2], strict=True):
        assert row["rejection"]["rule"] == "sources.duplicate"
        assert first["url"] in row["rejection"]["detail"]
        assert first["source_key"] in row["rejection"]["detail"]


@pytest.mark.parametrize(
    "known",
    [
        "dQw4w9WgXcQ",
        "youtube-dQw4w9WgXcQ",
        "youtube dQw4w9WgXcQ",
        "https://m.youtube.com/watch?feature=x&v=dQw4w9WgXcQ",
    ],
)
def test_known_ids_are_rejected(tmp_path, known):
    (tmp_path / "known.txt").write_text(f"# known\n{known}\nxxxxxxxxxxx\n")
    text = f"https://youtu.be/dQw4w9WgXcQ\n{YOUTUBE}aaaaaaaaaaa\n"
    rows = take(tmp_path, write(tmp_path, "a.txt", text), exclude_ids=tmp_path / "known.txt")
    assert rows[0]["rejection"]["rule"] == "sources.exclude_ids"
    assert urls(rows) == [YOUTUBE + "aaaaaaaaaaa"]


def test_known_ids_can_be_the_users_own(tmp_path):
    (tmp_path / "known.txt").write_text("v2\n")
    text = "url,video_id\nhttps://a.example/1,v1\nhttps://a.example/2,v2\n"
    rows = take(tmp_path, write(tmp_path, "a.csv", text), exclude_ids=tmp_path / "known.txt")
    assert urls(rows) == ["https://a.example/1"]


# Shards


def numbered(numbers: range) -> str:
    return "\n".join(f"https://a.example/{n}.mp4" for n in numbers)


def sizes(dataset: Path) -> list[int]:
    return [
        pq.read_metadata(shard_path(dataset / "sources", shard)).num_rows
        for shard in list_source_shards(dataset)
    ]


def test_shards_never_change_and_new_ones_are_added(tmp_path):
    spec = write(tmp_path, "a.txt", numbered(range(10)))
    first = take(tmp_path, spec, shard_videos=4)
    assert sizes(tmp_path / "dataset") == [4, 4, 2]
    # The same again, in another order and with another shard size: nothing new.
    assert take(tmp_path, spec, shard_videos=3) == first
    write(tmp_path, "a.txt", "\n".join(reversed(numbered(range(13)).split("\n"))))
    rows = take(tmp_path, spec, shard_videos=4)
    assert rows[:10] == first
    assert sizes(tmp_path / "dataset") == [4, 4, 2, 3]


def test_few_videos_are_spread_over_more_shards(tmp_path):
    """As many as suit the machine that they first come to; what is there stays as it is."""

    def of(count: int, name: str, fitted: FittedShards, size_bytes: int = 3 << 20) -> list[int]:
        (tmp_path / name).mkdir(exist_ok=True)
        films = [tmp_path / name / f"{n}.mp4" for n in range(count)]
        for film in films:
            film.touch()
            os.truncate(film, size_bytes)
        spec = write(tmp_path, f"{name}.txt", "\n".join(map(str, films)))
        ingest(tmp_path / name, [SourceSpec(**spec)], shard_videos=fitted, base_folder=tmp_path)
        return sizes(tmp_path / name)

    assert of(20, "a", FittedShards(2)) == [2] * 10
    assert of(3, "b", FittedShards(2)) == [1] * 3
    assert of(30, "c", FittedShards(1)) == [7] * 4 + [2]
    assert of(2 * FittedShards(2).most, "d", FittedShards(2)) == [16] * 16
    assert of(20, "a", FittedShards(16)) == [2] * 10
    # Small files share a shard: its steps cost more than they do.
    assert of(20, "e", FittedShards(8), size_bytes=400_000) == [5] * 4
    assert of(20, "f", FittedShards(8), size_bytes=10_000) == [16, 4]
    assert of(20, "g", FittedShards(8), size_bytes=0) == [16, 4]
    # What is downloaded together stays together.
    spec = write(tmp_path, "urls.txt", numbered(range(10)))
    take(tmp_path, spec, shard_videos=FittedShards(4, downloads=4))
    assert sizes(tmp_path / "dataset") == [4, 4, 2]


def test_repeated_ingest_adds_no_second_rejection_or_failure(tmp_path):
    (tmp_path / "known.txt").write_text("https://a.example/3.mp4\n")
    text = numbered(range(4)) + "\n" + numbered(range(2)) + "\ns3://x/y\n"
    spec = write(tmp_path, "a.txt", text)
    first = take(tmp_path, spec, exclude_ids=tmp_path / "known.txt")
    assert len(first) == 7
    assert take(tmp_path, spec, exclude_ids=tmp_path / "known.txt") == first


def test_shard_size_counts_videos_to_download(tmp_path):
    text = numbered(range(3)) + "\n" + numbered(range(3)) + "\nhttps://a.example/9.mp4\n"
    take(tmp_path, write(tmp_path, "a.txt", text), shard_videos=2)
    assert sizes(tmp_path / "dataset") == [2, 5]


def test_killed_ingest_continues_with_the_next_shard(tmp_path):
    spec = write(tmp_path, "a.txt", numbered(range(10)))
    whole = take(tmp_path, spec, shard_videos=4)
    folder = tmp_path / "dataset" / "sources"
    shard_path(folder, "000002").unlink()
    (folder / ".000002.abcd.tmp").write_bytes(b"half")
    assert take(tmp_path, spec, shard_videos=4) == whole


def test_limit_applies_to_the_list_not_the_run(tmp_path):
    spec = write(tmp_path, "a.txt", numbered(range(10)))
    assert len(take(tmp_path, spec, limit=4)) == 4
    assert len(take(tmp_path, spec, limit=4)) == 4
    assert len(take(tmp_path, spec, limit=6)) == 6
    assert len(take(tmp_path, spec)) == 10


def test_report_counts_all_outcomes(tmp_path):
    specs = [SourceSpec(path="a.txt")]
    write(tmp_path, "a.txt", numbered(range(3)) + "\n" + numbered(range(1)) + "\ns3://x/y\n")
    report = ingest(tmp_path / "d", specs, shard_videos=2, base_folder=tmp_path)
    assert (report.kept, report.rejected, report.failed, report.known) == (3, 1, 1, 0)
    assert report.shards == ("000000", "000001")
    again = ingest(tmp_path / "d", specs, shard_videos=2, base_folder=tmp_path)
    assert (again.kept, again.known, again.shards) == (0, 5, ())
    assert "nothing new" in again.describe()


def test_new_spans_of_a_known_source_are_reported(tmp_path):
    spec = SourceSpec(path="a.csv")
    head = "url,start_seconds,end_seconds\n"
    write(tmp_path, "a.csv", head + "https://a.example/1,1,2\n")
    ingest(tmp_path / "d", [spec], shard_videos=2, base_folder=tmp_path)
    write(tmp_path, "a.csv", head + "https://a.example/1,1,2\nhttps://a.example/1,3,4\n")
    report = ingest(tmp_path / "d", [spec], shard_videos=2, base_folder=tmp_path)
    assert report.changed_spans == 1
    assert "other spans" in report.describe()
    assert len(read(tmp_path / "d")[0]["spans"]) == 1


# Playlists and searches


def feed(site, path: str, *titles: str) -> str:
    """A list that yt-dlp expands: a feed of links."""
    items = "".join(
        f"<item><title>{title}</title><link>{site.url(f'/{title}.html')}</link></item>"
        for title in titles
    )
    text = (
        f'<?xml version="1.0"?><rss version="2.0"><channel><title>F</title>{items}</channel></rss>'
    )
    return site.script(path, File(text.encode(), "application/rss+xml"))


def test_playlist_is_expanded_flat(tmp_path, site):
    spec = {"url": feed(site, "/feed", "a", "b", "c"), "category": "talks"}
    rows = take(tmp_path, spec)
    assert urls(rows) == [site.url(f"/{name}.html") for name in "abc"]
    assert [row["title"] for row in rows] == ["a", "b", "c"]
    assert {row["category"] for row in rows} == {"talks"}
    # Flat: none of the listed pages was opened.
    assert {request.path for request in site.log} == {"/feed"}


def test_playlist_is_requested_once_unless_refreshed(tmp_path, site):
    spec = {"url": feed(site, "/feed", "a", "b")}
    take(tmp_path, spec)
    asked = len(site.log)
    feed(site, "/feed", "a", "b", "c")
    assert len(take(tmp_path, spec)) == 2
    assert len(site.log) == asked
    assert len(take(tmp_path, spec | {"refresh": True})) == 3


def test_number_of_entries_is_limited(tmp_path, site):
    assert len(take(tmp_path, {"url": feed(site, "/feed", "a", "b", "c"), "results": 2})) == 2


def test_page_with_one_video_stays_that_page(tmp_path, site):
    site.file("/v.mp4", b"x" * 1000)
    url = site.page("/watch", "<html><video src='/v.mp4'></video></html>")
    assert urls(take(tmp_path, {"url": url})) == [url]


def test_page_with_several_videos_gives_their_files(tmp_path, site):
    for name in "ab":
        site.file(f"/{name}.mp4", b"x" * 1000)
    url = site.page(
        "/all", "<html><body><video src='/a.mp4'></video><video src='/b.mp4'></video></body></html>"
    )
    assert urls(take(tmp_path, {"url": url})) == [site.url("/a.mp4"), site.url("/b.mp4")]


def test_direct_url_is_not_requested_at_ingest(tmp_path, site):
    take(tmp_path, {"url": site.file("/a.mp4", b"x")})
    assert site.log == []


@pytest.mark.parametrize(("status", "kind"), [(404, "permanent"), (503, "transient")])
def test_unavailable_playlist_is_a_failure_row(tmp_path, site, status, kind):
    url = site.status("/feed", status)
    rows = take(tmp_path, {"url": url, "retries": 0}, write(tmp_path, "a.txt", numbered(range(1))))
    assert rows[0]["error"]["kind"] == kind
    assert str(status) in rows[0]["error"]["message"]
    assert rows[0]["url"] == url
    assert urls(rows) == ["https://a.example/0.mp4"]


def test_failed_playlist_is_requested_again(tmp_path, site):
    spec = {"url": site.script("/feed", Busy(503)), "retries": 0}
    failed = take(tmp_path, spec)
    assert [row["error"]["kind"] for row in failed] == ["transient"]
    feed(site, "/feed", "a", "b")
    ingest(tmp_path / "dataset", [SourceSpec(**spec)], shard_videos=4)
    rows = read(tmp_path / "dataset")
    assert urls(rows) == [site.url("/a.html"), site.url("/b.html")]
    # The newest row of the playlist's key has its outcome.
    last = [row for row in rows if row["source_key"] == failed[0]["source_key"]][-1]
    assert last["rejection"]["rule"] == "sources.expanded"
    ingest(tmp_path / "dataset", [SourceSpec(**spec)], shard_videos=4)
    assert read(tmp_path / "dataset") == rows


@pytest.fixture
def search_engine(tmp_path, monkeypatch):
    """A search of yt-dlp's kind that asks nobody: `homesearchN:term` finds N videos.

    Gives the file of the terms that it was asked for.
    """
    from yt_dlp.extractor.common import SearchInfoExtractor

    terms = tmp_path / "asked.txt"

    class HomeSearchIE(SearchInfoExtractor):
        _SEARCH_KEY = "homesearch"

        def _search_results(self, query):
            with terms.open("a") as file:
                print(query, file=file)
            if query == "broken":
                from yt_dlp.utils import ExtractorError

                raise ExtractorError("Sign in to confirm you are not a bot", expected=True)
            for number in range(0 if query == "nothing" else 50):
                name = f"{query.replace(' ', '_')[:8]:_<8}{number:03d}"
                yield self.url_result(YOUTUBE + name, "Youtube", name, f"{query} {number}")

    add_extractor(HomeSearchIE, monkeypatch.setattr)
    return terms


def test_search_terms_are_expanded_and_kept_as_queries(tmp_path, search_engine):
    spec = {"search": ["how to juggle", "tying knots"], "search_engine": "homesearch", "results": 3}
    rows = take(tmp_path, spec)
    assert [row["query"] for row in rows] == ["how to juggle"] * 3 + ["tying knots"] * 3
    assert rows[0]["title"] == "how to juggle 0"
    assert rows[0]["platform_id"] == "how_to_j000"
    assert take(tmp_path, spec) == rows
    assert sorted(search_engine.read_text().splitlines()) == ["how to juggle", "tying knots"]


def test_columns_of_a_search_term_file_are_copied_to_the_results(tmp_path, search_engine):
    write(tmp_path, "terms.csv", "activity,category,code\nSleeping,Care,010101\n,Care,2\n")
    rows = take(
        tmp_path,
        {
            "search_file": "terms.csv",
            "url_column": "activity",
            "search_engine": "homesearch",
            "results": 2,
            "language": "en",
        },
    )
    assert [(row["query"], row["category"], row["language"]) for row in kept(rows)] == [
        ("Sleeping", "Care", "en")
    ] * 2
    assert kept(rows)[0]["extra"] == [("code", "010101")]
    assert "terms.csv:3" in rows[2]["error"]["message"]


def test_search_term_that_fails_or_finds_nothing_affects_only_itself(tmp_path, search_engine):
    rows = take(
        tmp_path,
        {
            "search": ["broken", "nothing", "cats"],
            "retries": 0,
            "results": 2,
            "search_engine": "homesearch",
        },
    )
    assert [row["error"] and row["error"]["kind"] for row in rows] == [
        "blocked",
        "permanent",
        None,
        None,
    ]
    assert [row["query"] for row in rows] == ["broken", "nothing", "cats", "cats"]


def test_stop_does_not_wait_for_a_hanging_search(tmp_path, monkeypatch):
    go_on, ended = threading.Event(), threading.Event()

    def search(function, url, *_, **__):
        if "stop" in url:
            raise KeyboardInterrupt
        go_on.wait(100)
        ended.set()
        return []

    monkeypatch.setattr(isolated, "run_fetching", search)
    try:
        with pytest.raises(KeyboardInterrupt):
            take(tmp_path, {"search": ["stop", "hang"]})
        assert not ended.is_set()
    finally:
        go_on.set()


def test_limit_stops_searching(tmp_path, search_engine):
    terms = [f"term {number}" for number in range(40)]
    rows = take(tmp_path, {"search": terms, "search_engine": "homesearch"}, limit=5)
    assert len(rows) == 5
    assert len(search_engine.read_text().splitlines()) <= 8


# Identity, offline


@pytest.mark.parametrize(
    "url",
    [
        "https://www.youtube.com/watch?v=dQw4w9WgXcQ",
        "http://youtube.com/watch?v=dQw4w9WgXcQ&t=9s",
        "https://youtu.be/dQw4w9WgXcQ",
        "https://youtu.be/dQw4w9WgXcQ?si=abc",
        "https://m.youtube.com/watch?feature=share&v=dQw4w9WgXcQ",
        "https://www.youtube.com/embed/dQw4w9WgXcQ",
        "https://www.youtube.com/shorts/dQw4w9WgXcQ",
        "https://www.youtube-nocookie.com/embed/dQw4w9WgXcQ",
        "https://music.youtube.com/watch?v=dQw4w9WgXcQ",
        "https://www.youtube.com/watch?v=dQw4w9WgXcQ&list=PLx5f8IelFRgEe4FIq8Yc",
    ],
)
def test_platforms_video_has_one_id_for_all_url_forms(url):
    found = identify(url)
    assert (found.extractor, found.platform_id) == ("youtube", "dQw4w9WgXcQ")
    assert found.locator == "youtube dQw4w9WgXcQ"
    assert not found.is_list


@pytest.mark.parametrize(
    ("url", "extractor"),
    [
        ("https://vimeo.com/76979871", "vimeo"),
        ("https://www.tiktok.com/@u/video/7000000000000000000", "tiktok"),
        ("https://x.com/someone/status/1234567890", "twitter"),
        ("https://www.dailymotion.com/video/x5kesuj", "dailymotion"),
    ],
)
def test_other_platforms_are_recognised(url, extractor):
    assert identify(url).extractor == extractor


@pytest.mark.parametrize(
    "url",
    [
        "https://www.youtube.com/@nasa",
        "https://www.youtube.com/channel/UCLA_DiR1FfKNvjuUpBHmylQ",
        "https://www.youtube.com/playlist?list=PLx5f8IelFRgEe4FIq8Yc",
        "https://vimeo.com/channels/x",
        "ytsearch10:how to juggle",
    ],
)
def test_playlists_are_distinguished_from_videos(url):
    assert identify(url).is_list


@given(
    host=st.from_regex(r"[a-z]{3,8}\.invalid", fullmatch=True),
    path=st.text(string.ascii_letters + string.digits + "/._-", max_size=20),
    query=st.text(string.ascii_letters + "=&", max_size=10),
)
@settings(max_examples=50)
def test_url_and_its_normal_form_have_the_same_id(host, path, query):
    url = f"http://{host}/{path}" + (f"?{query}" if query else "")
    normal = identify(url).locator
    assert identify(normal).locator == normal
    assert (
        identify(f"HTTP://{host.upper()}:80/{path}" + (f"?{query}" if query else "")).locator
        == normal
    )


def test_long_list_takes_seconds(tmp_path):
    """20 000 rows; a scan over all of yt-dlp's patterns would take a minute."""
    with open(tmp_path / "a.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        writer.writerows(
            (
                f"https://cdn{n % 50}.example.com/{n}.mp4" if n % 2 else f"{YOUTUBE}{n:011d}",
                f"caption {n}",
            )
            for n in range(20_000)
        )
    began = time.process_time()
    take(tmp_path, {"path": "a.csv"}, shard_videos=5000)
    assert time.process_time() - began < 15
