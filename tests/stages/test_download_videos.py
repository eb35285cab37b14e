"""Every kind of source ends as exactly one row with its outcome."""

from __future__ import annotations

import functools
import io
import json
import os
import time
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.ids import content_video_id, source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.download_videos import DownloadVideos
from clipmill.stages.media.fetch.http_answers import retry_after_seconds
from clipmill.stages.media.fetch.media_store import MediaStore
from clipmill.stages.protocol import Workspace
from tests.download_helpers import assert_distance, make_audio, make_video, outcome, stage
from tests.http_server import Broken, Busy, File, Hang, Lying, Redirect, refusing_address, serve

VIDEO = make_video()
FAST_START = make_video(seed=1, options={"movflags": "faststart"})


@pytest.fixture
def site():
    with serve() as server:
        yield server


def sources(*items: str | dict) -> pa.Table:
    rows = []
    for item in items:
        row = {"url": item} if isinstance(item, str) else dict(item)
        if not row["url"].startswith("http"):
            row["path"] = row["url"]
        row.setdefault("source_key", source_key(row["url"]))
        rows.append(row)
    return pa.Table.from_pylist(rows, SOURCES)


def download(dataset: Path, *items: str | dict, **settings) -> list[dict]:
    """The rows for the items, in their order."""
    table = sources(*items)
    workspace = Workspace(dataset, dataset / "scratch")
    with stage(**settings).open(workspace) as transform:
        rows = transform(table).to_pylist()
    assert [row["source_key"] for row in rows] == table["source_key"].to_pylist()
    return rows


def media_files(dataset: Path) -> list[str]:
    return sorted(path.name for path in (dataset / "media").iterdir() if path.is_file())


def leftovers(dataset: Path) -> list[Path]:
    hidden = [dataset / "media" / name for name in (".work", ".ready")]
    return [path for folder in hidden if folder.is_dir() for path in folder.iterdir()]


# Good sources


def test_direct_url_becomes_a_complete_file_named_by_its_content(tmp_path, site):
    [row] = download(tmp_path, site.file("/a.mp4", VIDEO))
    assert outcome(row) == "kept"
    assert row["path"] == f"media/{row['video_id']}.mp4"
    assert (tmp_path / row["path"]).read_bytes() == VIDEO
    assert row["video_id"] == content_video_id(row["sha256"])
    assert (row["width"], row["height"], row["fps"], row["codec"]) == (64, 48, 10.0, "mpeg4")
    assert row["duration_seconds"] == pytest.approx(2.0)
    assert row["has_audio"] is False
    assert row["size_bytes"] == len(VIDEO)
    assert leftovers(tmp_path) == []


def test_direct_url_is_requested_once(tmp_path, site):
    download(tmp_path, site.file("/a.mp4", VIDEO))
    assert [(request.method, request.path) for request in site.log] == [("GET", "/a.mp4")]


def test_url_without_suffix_is_recognised_by_its_content_type(tmp_path, site):
    [row] = download(tmp_path, site.file("/watch", VIDEO, "video/mp4"))
    assert outcome(row) == "kept"
    assert row["path"].endswith(".mp4")
    assert len(site.log) == 1


def test_local_file_is_referenced_in_place(tmp_path):
    path = tmp_path / "a film.mp4"
    path.write_bytes(VIDEO)
    [row] = download(tmp_path / "dataset", str(path))
    assert row["path"] == str(path)
    assert row["downloaded_at"] is None
    assert media_files(tmp_path / "dataset") == []


def test_local_file_is_copied_on_request(tmp_path):
    path = tmp_path / "a film.mp4"
    path.write_bytes(VIDEO)
    dataset = tmp_path / "dataset"
    [row] = download(dataset, str(path), copy_local_files=True)
    assert (dataset / row["path"]).read_bytes() == VIDEO
    [again] = download(dataset, str(path), copy_local_files=True)
    assert again == row


def test_users_columns_of_a_source_are_kept(tmp_path, site):
    span = {
        "start_seconds": 0.0,
        "end_seconds": 1.0,
        "caption": "a span",
        "extra": [("k", "v")],
        "captions": None,
    }
    [row] = download(
        tmp_path,
        {
            "url": site.file("/a.mp4", VIDEO),
            "title": "T",
            "category": "C",
            "language": "de",
            "query": "Q",
            "caption": "noise",
            "video_id": "my id/../x",
            "spans": [span],
            "extra": [("colour", "red")],
        },
    )
    assert (row["title"], row["category"], row["language"], row["query"], row["caption_given"]) == (
        "T",
        "C",
        "de",
        "Q",
        "noise",
    )
    assert row["spans"] == [span]
    assert row["extra"] == [("colour", "red")]
    # An id that is not a file name is hashed.
    assert row["video_id"].startswith("h")
    assert media_files(tmp_path) == [f"{row['video_id']}.mp4"]


def test_older_versions_note_is_completed_without_a_new_download(tmp_path, site):
    """It lacks clocks and colours, which are read from the existing file."""
    site.file("/a.mp4", VIDEO)
    [first] = download(tmp_path, site.url("/a.mp4"))
    [note] = (tmp_path / "media" / ".found").glob("*.json")
    known = json.loads(note.read_text("utf-8"))
    for name in ("clock_starts_at_seconds", "pixel_format", "color_transfer", "color_primaries"):
        del known["probe"][name]
    note.write_text(json.dumps(known), "utf-8")
    asked = len(site.log)
    for rule in (1, 2):
        [again] = download(tmp_path, site.url("/a.mp4"), min_height=rule)
        assert {**again, "downloaded_at": None} == {**first, "downloaded_at": None}
    assert again["clock_starts_at_seconds"] == 0.0
    assert again["pixel_format"] == "yuv420p"
    assert len(site.log) == asked


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_width_and_height_are_as_displayed(tmp_path, rotation):
    path = tmp_path / "turned.mp4"
    path.write_bytes(make_video(rotation=rotation))
    [row] = download(tmp_path, str(path))
    assert (row["width"], row["height"]) == ((64, 48) if rotation == 180 else (48, 64))


@pytest.mark.parametrize(
    ("container", "codec"),
    [("matroska", "libvpx-vp9"), ("mpegts", "mpeg2video"), ("avi", "mpeg4"), ("mov", "mpeg4")],
)
def test_containers_are_read_whatever_their_suffix(tmp_path, container, codec):
    path = tmp_path / "odd.mp4"
    path.write_bytes(make_video(container=container, codec=codec))
    [row] = download(tmp_path, str(path))
    assert outcome(row) == "kept"
    assert row["duration_seconds"] == pytest.approx(2.0, abs=0.11)


# Rules


@pytest.mark.parametrize(
    ("settings", "rule", "detail"),
    [
        ({"min_duration_seconds": 5}, "min_duration_seconds", "2.00 < 5"),
        ({"max_duration_seconds": 1.5}, "max_duration_seconds", "2.00 > 1.5"),
        ({"min_height": 360}, "min_height", "48 < 360"),
    ],
)
def test_rules_reject_local_and_direct_files_alike(tmp_path, site, settings, rule, detail):
    path = tmp_path / "a.mp4"
    path.write_bytes(VIDEO)
    other = site.file("/b.mp4", FAST_START)
    for row in download(tmp_path, str(path), other, **settings):
        assert row["rejection"] == {"rule": f"download_videos.{rule}", "detail": detail}
        assert row["video_id"] is None
    assert media_files(tmp_path) == []
    assert leftovers(tmp_path) == []


def test_null_disables_rules(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video(0.3, (32, 16)))
    off = dict.fromkeys(
        ("min_duration_seconds", "max_duration_seconds", "min_height", "max_height")
    )
    assert outcome(*download(tmp_path, str(path), **off)) == "kept"


def test_portrait_video_counts_by_its_width(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(make_video(size=(48, 128)))
    [row] = download(tmp_path, str(path), min_height=64)
    assert row["rejection"]["detail"] == "48 < 64"


def test_large_direct_file_is_kept_unchanged(tmp_path, site):
    [row] = download(tmp_path, site.file("/a.mp4", VIDEO), max_height=32)
    assert (outcome(row), row["height"]) == ("kept", 48)


def test_rules_are_applied_again_without_a_second_download(tmp_path, site):
    url = site.file("/a.mp4", VIDEO)
    assert outcome(*download(tmp_path, url, min_height=360)) == "download_videos.min_height"
    assert outcome(*download(tmp_path, url, min_height=480)) == "download_videos.min_height"
    assert len(site.log) == 1
    assert outcome(*download(tmp_path, url, min_height=16)) == "kept"
    assert len(site.log) == 2


# Duplicates


def test_first_source_of_equal_files_is_kept(tmp_path, site):
    path = tmp_path / "a.mp4"
    path.write_bytes(VIDEO)
    urls = [site.file(f"/{name}.mp4", VIDEO) for name in "abc"]
    rows = download(tmp_path, *urls, str(path))
    assert [outcome(row) for row in rows] == ["kept", *["download_videos.duplicate"] * 3]
    first = rows[0]["source_key"]
    assert all(first in row["rejection"]["detail"] for row in rows[1:])
    assert all(urls[0] in row["rejection"]["detail"] for row in rows[1:])
    assert media_files(tmp_path) == [f"{rows[0]['video_id']}.mp4"]
    assert leftovers(tmp_path) == []


def test_slow_first_source_still_wins(tmp_path, site):
    first = site.script("/slow.mp4", Busy(503), Busy(503), File(VIDEO))
    rows = download(tmp_path, first, site.file("/fast.mp4", VIDEO), backoff_seconds=0.1)
    assert [outcome(row) for row in rows] == ["kept", "download_videos.duplicate"]


def test_given_video_id_is_used_once(tmp_path, site):
    rows = download(
        tmp_path,
        {"url": site.file("/a.mp4", VIDEO), "video_id": "x"},
        {"url": site.file("/b.mp4", FAST_START), "video_id": "x"},
    )
    assert [outcome(row) for row in rows] == ["kept", "download_videos.duplicate"]
    assert (tmp_path / rows[0]["path"]).read_bytes() == VIDEO


def test_rejected_duplicate_is_not_downloaded_again(tmp_path, site):
    items = [
        {"url": site.file("/a.mp4", VIDEO), "video_id": "x"},
        {"url": site.file("/b.mp4", make_video(size=(128, 96))), "video_id": "x"},
    ]
    rows = download(tmp_path, *items)
    assert download(tmp_path, *items) == rows
    assert len(site.log) == 2


def test_duplicates_are_detected_across_workers_and_runs(tmp_path, site):
    [first] = download(tmp_path, site.file("/a.mp4", VIDEO))
    [second] = download(tmp_path, site.file("/b.mp4", VIDEO))
    assert outcome(second) == "download_videos.duplicate"
    [again] = download(tmp_path, site.url("/a.mp4"))
    assert again == first
    [still] = download(tmp_path, site.url("/b.mp4"))
    assert still == second
    # Neither of the two was downloaded a second time.
    assert [request.path for request in site.log] == ["/a.mp4", "/b.mp4"]


def test_other_rules_may_make_another_source_the_first(tmp_path, site):
    first = {"url": site.file("/small.mp4", VIDEO), "video_id": "x"}
    second = {"url": site.file("/large.mp4", make_video(size=(128, 96))), "video_id": "x"}
    rows = download(tmp_path, first, second)
    assert [outcome(row) for row in rows] == ["kept", "download_videos.duplicate"]
    rows = download(tmp_path, first, second, min_height=64)
    assert [outcome(row) for row in rows] == ["download_videos.min_height", "kept"]
    # The earlier file, which earlier tables reference, was not overwritten.
    assert len(media_files(tmp_path)) == 2


# Servers


@pytest.mark.parametrize(
    ("status", "kind", "asked"),
    [
        (404, "permanent", 1),
        (410, "permanent", 1),
        (451, "permanent", 1),
        (400, "permanent", 1),
        (403, "blocked", 1),
        (401, "blocked", 1),
        (429, "transient", 3),
        (500, "transient", 3),
        (503, "transient", 3),
        (504, "transient", 3),
    ],
)
def test_status_determines_kind_and_number_of_attempts(tmp_path, site, status, kind, asked):
    [row] = download(tmp_path, site.status("/a.mp4", status))
    assert outcome(row) == kind
    assert f"HTTP {status}" in row["error"]["message"]
    assert len(site.log) == asked
    assert media_files(tmp_path) == []
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_is_retried_when_it_says(tmp_path, site, status):
    url = site.script("/a.mp4", Busy(status, retry_after="1"), File(VIDEO))
    [row] = download(tmp_path, url)
    assert outcome(row) == "kept"
    first, second = site.log
    assert second.at_seconds - first.at_seconds >= 1.0


def test_busy_host_is_paused_for_all_threads(tmp_path, site):
    site.script("/a.mp4", Busy(429, retry_after="1"), File(VIDEO))
    other = site.file("/b.mp4", FAST_START)
    rows = download(tmp_path, site.url("/a.mp4"), other, concurrency=1)
    assert [outcome(row) for row in rows] == ["kept", "kept"]
    started = site.log[0].at_seconds
    assert all(request.at_seconds - started >= 1.0 for request in site.log[1:])


def test_too_long_a_retry_after_is_an_immediate_failure(tmp_path, site):
    url = site.script("/a.mp4", Busy(429, retry_after="3600"))
    [row] = download(tmp_path, url, max_backoff_seconds=5)
    assert outcome(row) == "transient"
    assert "3600" in row["error"]["message"]
    assert len(site.log) == 1


def test_retry_after_may_be_a_date():
    assert retry_after_seconds("Wed, 21 Oct 2015 07:28:00 GMT") == 0.0
    assert retry_after_seconds("Fri, 31 Dec 2100 23:59:59 GMT") > 1e9
    assert retry_after_seconds("7") == 7.0
    assert retry_after_seconds("soon") is None


def test_pauses_double(tmp_path, site):
    download(tmp_path, site.status("/a.mp4", 500), backoff_seconds=0.2)
    gaps = np.diff(site.times)
    assert gaps[0] >= 0.2
    assert gaps[1] >= 0.4


def test_hanging_server_is_transient_after_the_timeout(tmp_path, site):
    began = time.monotonic()
    [row] = download(tmp_path, site.script("/a.mp4", Hang()), retries=1, timeout_seconds=0.3)
    assert outcome(row) == "transient"
    assert "timed out" in row["error"]["message"].lower()
    assert time.monotonic() - began < 40


def test_refused_connection_is_transient(tmp_path):
    with refusing_address() as address:
        [row] = download(tmp_path, f"http://{address}/a.mp4")
    assert outcome(row) == "transient"


def test_broken_download_resumes_where_it_broke(tmp_path, site):
    half = len(VIDEO) // 2
    url = site.script("/a.mp4", Broken(File(VIDEO), half), File(VIDEO))
    [row] = download(tmp_path, url)
    assert outcome(row) == "kept"
    assert (tmp_path / row["path"]).read_bytes() == VIDEO
    assert site.log[0].range is None
    start = int(site.log[1].range.removeprefix("bytes=").removesuffix("-"))
    assert 0 < start <= half


def test_file_that_changed_meanwhile_is_downloaded_from_the_start(tmp_path, site):
    url = site.script("/a.mp4", Broken(File(VIDEO), len(VIDEO) // 2), File(FAST_START))
    [row] = download(tmp_path, url)
    assert (tmp_path / row["path"]).read_bytes() == FAST_START


def test_broken_download_without_ranges_starts_again(tmp_path, site):
    plain = File(VIDEO, ranges=False, etag=False)
    url = site.script("/a.mp4", Broken(plain, len(VIDEO) // 2), plain)
    [row] = download(tmp_path, url)
    assert (tmp_path / row["path"]).read_bytes() == VIDEO
    assert [request.range for request in site.log] == [None, None]


def test_download_that_always_breaks_is_transient(tmp_path, site):
    url = site.script("/a.mp4", Broken(File(VIDEO, ranges=False), 1000))
    [row] = download(tmp_path, url)
    assert outcome(row) == "transient"
    assert "tried 3 times" in row["error"]["message"]
    assert leftovers(tmp_path) == []


def test_server_that_declares_more_than_it_sends_is_transient(tmp_path, site):
    [row] = download(tmp_path, site.script("/a.mp4", Lying(VIDEO, len(VIDEO) + 1000)))
    assert outcome(row) == "transient"
    assert media_files(tmp_path) == []


def test_server_that_declares_less_gives_a_truncated_video(tmp_path, site):
    [row] = download(tmp_path, site.script("/a.mp4", Lying(FAST_START, len(FAST_START) // 2)))
    assert outcome(row) == "bad_media"
    assert media_files(tmp_path) == []


def test_redirects_are_followed_and_loops_are_not(tmp_path, site):
    site.file("/b.mp4", VIDEO)
    rows = download(
        tmp_path,
        site.script("/a.mp4", Redirect("/b.mp4")),
        site.script("/loop.mp4", Redirect("/loop.mp4")),
    )
    assert [outcome(row) for row in rows] == ["kept", "permanent"]
    assert "redirects" in rows[1]["error"]["message"]


def test_requests_to_one_host_keep_their_distance(tmp_path, site):
    urls = [site.status(f"/{name}.mp4", 404) for name in "abcdef"]
    began = time.monotonic()
    download(tmp_path, *urls, sleep_seconds=0.2)
    assert len(site.log) == 6
    assert_distance(site.times, began, 0.2)


def test_download_rate_is_limited(tmp_path, site):
    began = time.monotonic()
    download(tmp_path, site.file("/a.mp4", VIDEO), rate_limit_bytes_per_second=2 * len(VIDEO))
    assert time.monotonic() - began >= 0.5


def test_cookies_and_user_agent_are_sent(tmp_path, site):
    cookies = tmp_path / "cookies.txt"
    cookies.write_text(
        "# Netscape HTTP Cookie File\n127.0.0.1\tFALSE\t/\tFALSE\t4000000000\tsession\tsecret\n"
    )
    download(tmp_path, site.file("/a.mp4", VIDEO), cookies_file=str(cookies), user_agent="me")
    assert site.log[0].headers["Cookie"] == "session=secret"
    assert site.log[0].headers["User-Agent"] == "me"


def test_missing_cookies_file_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="cookies_file"):
        download(tmp_path, "/nowhere.mp4", cookies_file="/nowhere.txt")


# Bad media


@functools.cache
def bad_files() -> dict[str, bytes]:
    webm = make_video(4, container="webm", codec="libvpx")
    png = io.BytesIO()
    with av.open(png, "w", format="image2pipe") as output:
        stream = output.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb24"
        output.mux(stream.encode(av.VideoFrame(64, 48, "rgb24")))
    return {
        "truncated, index at the end": VIDEO[: len(VIDEO) * 9 // 10],
        "truncated, index in front": FAST_START[: len(FAST_START) * 9 // 10],
        "truncated webm": webm[: len(webm) // 2],
        "empty": b"",
        "zeros": bytes(5000),
        "a page": b"<!DOCTYPE html><html><body>Not found</body></html>",
        "text": b"this is a text, and not a video\n" * 20,
        "audio only": make_audio(),
        "a still image": png.getvalue(),
    }


@pytest.mark.parametrize("name", list(bad_files()))
def test_invalid_or_truncated_video_is_bad_media(tmp_path, site, name):
    path = tmp_path / "local.mp4"
    path.write_bytes(bad_files()[name])
    rows = download(tmp_path, str(path), site.file("/a.mp4", bad_files()[name]))
    assert [outcome(row) for row in rows] == ["bad_media", "bad_media"], rows
    assert media_files(tmp_path) == []
    assert leftovers(tmp_path) == []


def test_video_that_ends_between_two_frames_is_truncated_too(tmp_path):
    with av.open(io.BytesIO(FAST_START)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    path = tmp_path / "a.mp4"
    path.write_bytes(FAST_START[: positions[17]])
    [row] = download(tmp_path, str(path))
    assert outcome(row) == "bad_media"
    assert "17 of 20" in row["error"]["message"]


def test_html_page_named_mp4_is_bad_media(tmp_path, site):
    [row] = download(tmp_path, site.page("/a.mp4", "<html>Gone</html>"))
    assert outcome(row) == "bad_media"
    assert "page" in row["error"]["message"]


def test_bad_row_fails_only_that_row(tmp_path, site):
    rows = download(
        tmp_path,
        site.status("/a.mp4", 404),
        site.file("/b.mp4", VIDEO),
        "/no/such/file.mp4",
        str(tmp_path),
        "http://[broken/x.mp4",
        "/nul\0byte.mp4",
    )
    assert [outcome(row) for row in rows] == [
        "permanent",
        "kept",
        "permanent",
        "permanent",
        "permanent",
        "permanent",
    ]
    assert "/no/such/file.mp4" in rows[2]["error"]["message"]


def test_any_names_are_safe(tmp_path):
    names = ("-rf.mp4", "a'b\"c;.mp4", "100%d.mp4", "film\n.mp4", "🎬 ünï.mp4", "concat:a.mp4")
    for number, name in enumerate(names):
        folder = tmp_path / "films"
        folder.mkdir(exist_ok=True)
        path = folder / name
        path.write_bytes(VIDEO)
        [row] = download(tmp_path / f"d{number}", str(path))
        assert (outcome(row), row["path"]) == ("kept", str(path))


# Killed runs


def test_complete_file_is_not_downloaded_again(tmp_path, site):
    urls = [site.file(f"/{name}.mp4", make_video(seed=ord(name))) for name in "abc"]
    rows = download(tmp_path, *urls)
    asked = len(site.log)
    assert download(tmp_path, *urls) == rows
    assert len(site.log) == asked


def test_run_killed_before_the_rename_keeps_complete_files(tmp_path, site, monkeypatch):
    url = site.file("/a.mp4", VIDEO)  # one: another might be in progress when this one dies

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MediaStore, "keep", die)
    with pytest.raises(KeyboardInterrupt):
        download(tmp_path, url)
    assert media_files(tmp_path) == []
    monkeypatch.undo()
    asked = len(site.log)
    assert [outcome(row) for row in download(tmp_path, url)] == ["kept"]
    assert len(site.log) == asked == 1


def test_partial_file_of_a_killed_download_is_never_mistaken_for_complete(tmp_path, site):
    url = site.file("/a.mp4", VIDEO)
    work = tmp_path / "media" / ".work" / source_key(url)
    work.mkdir(parents=True)
    (work / "download.mp4").write_bytes(VIDEO[:1000])
    [row] = download(tmp_path, url)
    assert (tmp_path / row["path"]).read_bytes() == VIDEO
    assert leftovers(tmp_path) == []


def test_deleted_file_is_downloaded_again(tmp_path, site):
    url = site.file("/a.mp4", VIDEO)
    [row] = download(tmp_path, url)
    (tmp_path / row["path"]).unlink()
    [again] = download(tmp_path, url)
    assert (tmp_path / again["path"]).read_bytes() == VIDEO


def test_full_disk_stops_the_run_and_fails_no_row(tmp_path, site, monkeypatch):
    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(MediaStore, "add", full)
    with pytest.raises(ClipmillError, match="free some space"):
        download(tmp_path, site.file("/a.mp4", VIDEO))


# Pages, by yt-dlp


def page(video: str) -> str:
    return f"""<!DOCTYPE html><html><head><title>A film &amp; more</title></head><body>
        <video src="{video}"></video></body></html>"""


def test_page_with_a_video_is_downloaded_by_yt_dlp(tmp_path, site):
    site.file("/files/v.mp4", VIDEO)
    [row] = download(tmp_path, site.page("/watch", page("/files/v.mp4")))
    assert outcome(row) == "kept", row
    assert row["extractor"] == "generic"
    # The generic extractor's id is not a platform's: two sites may both have a page `watch`.
    assert (row["source_id"], row["video_id"]) == (None, content_video_id(row["sha256"]))
    assert row["title"].startswith("A film & more")
    assert (tmp_path / row["path"]).read_bytes() == VIDEO
    assert leftovers(tmp_path) == []


def test_page_is_not_requested_again(tmp_path, site):
    site.file("/files/v.mp4", VIDEO)
    url = site.page("/watch", page("/files/v.mp4"))
    [row] = download(tmp_path, url)
    videos = len(site.asked("/files/v.mp4"))
    assert download(tmp_path, url) == [row]
    assert len(site.asked("/files/v.mp4")) == videos


@pytest.mark.parametrize(
    ("status", "kind"),
    [(404, "permanent"), (403, "blocked"), (503, "transient"), (429, "transient")],
)
def test_yt_dlps_errors_have_kinds_and_their_first_message(tmp_path, site, status, kind):
    site.status("/files/v.mp4", status)
    [row] = download(tmp_path, site.page("/watch", page("/files/v.mp4")))
    assert outcome(row) == kind, row["error"]
    assert str(status) in row["error"]["message"]


def test_yt_dlp_retries_and_resumes(tmp_path, site):
    site.script("/files/v.mp4", Busy(503), File(VIDEO))
    [row] = download(tmp_path, site.page("/watch", page("/files/v.mp4")), retries=4)
    assert outcome(row) == "kept", row


def test_page_without_a_video_is_permanent(tmp_path, site):
    [row] = download(tmp_path, site.page("/watch", "<html><body>Words only.</body></html>"))
    assert outcome(row) == "permanent"
    assert "Unsupported URL" in row["error"]["message"]


def test_page_with_several_videos_is_refused_with_advice(tmp_path, site):
    for name in "ab":
        site.file(f"/{name}.mp4", VIDEO)
    html = "<html><body><video src='/a.mp4'></video><video src='/b.mp4'></video></body></html>"
    [row] = download(tmp_path, site.page("/watch", html))
    assert outcome(row) == "permanent"
    assert "2 videos" in row["error"]["message"]
    assert "url:" in row["error"]["message"]


# Settings


def test_speed_and_folder_settings_do_not_change_the_fingerprint(tmp_path):
    plain = DownloadVideos()
    tuned = DownloadVideos(
        cookies_file="c.txt",
        proxy="http://p:1",
        user_agent="x",
        sleep_seconds=1,
        retries=1,
        rate_limit_bytes_per_second=1,
        backoff_seconds=1,
        timeout_seconds=1,
        concurrency=9,
        max_backoff_seconds=1,
    )
    assert tuned.identity() == plain.identity() == {}
    assert DownloadVideos(max_height=480).identity() == {"max_height": 480}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"yt_dlp": {"sleep-interval": 1}}, "did you mean 'sleep_interval"),
        ({"yt_dlp": {"outtmpl": "/etc/x"}}, "set by Clipmill"),
        ({"min_height": 800}, "nothing would be kept"),
    ],
)
def test_nonsensical_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        DownloadVideos(**settings)


def test_every_setting_has_a_description():
    own = DownloadVideos.model_fields
    assert [name for name, info in own.items() if not info.description and name != "workers"] == []
