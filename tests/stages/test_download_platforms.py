"""A platform's renditions, subtitles, descriptions, and refusals."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.media.fetch.problems import PassingProblem
from clipmill.stages.media.fetch.ytdlp_errors import problem_of
from clipmill.stages.media.read.subtitles import parse_subtitles, seconds_of
from clipmill.stages.protocol import Workspace
from tests.download_helpers import make_audio, make_video, outcome, stage

VTT = """WEBVTT

00:00:00.500 --> 00:00:01.500 align:start
A <c.red>red</c> &amp; round thing

00:00:01.500 --> 00:00:02.000
A red & round thing
rolls away
"""
JSON3 = json.dumps(
    {
        "events": [
            {
                "tStartMs": 0,
                "dDurationMs": 1000,
                "segs": [{"utf8": "hello "}, {"utf8": "there", "tOffsetMs": 400}],
            },
            {"tStartMs": 1000, "dDurationMs": 500, "segs": [{"utf8": "\n"}]},
            {"tStartMs": 1200, "dDurationMs": 0},
        ]
    }
)


def watch(dataset, site, **settings) -> dict:
    url = site.url("/home/Ab_3")
    rows = pa.Table.from_pylist(
        [{"source_key": source_key(url), "url": url, "extractor": "home"}], SOURCES
    )
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        [row] = transform(rows).to_pylist()
    return row


def rendition(site, width: int, height: int, **more) -> dict:
    """One format that the platform offers; the file's size shows which was used."""
    path = f"/files/{width}x{height}.mp4"
    site.file(path, make_video(1.0, (width // 10, height // 10)))
    return {
        "format_id": f"{width}x{height}",
        "url": site.url(path),
        "ext": "mp4",
        "width": width,
        "height": height,
        "vcodec": "mpeg4",
        "acodec": "none",
        **more,
    }


def test_platforms_metadata_is_kept(tmp_path, site, platform):
    platform.info = {
        "formats": [rendition(site, 640, 360)],
        "description": "D",
        "uploader": "U",
        "tags": ["x", "y"],
        "license": "CC-BY",
        "language": "en",
        "categories": ["Sports"],
        "duration": 20,
    }
    row = watch(tmp_path, site, min_duration_seconds=0.5)
    assert outcome(row) == "kept", row
    assert {
        name: row[name]
        for name in (
            "video_id",
            "extractor",
            "source_id",
            "title",
            "description",
            "uploader",
            "tags",
            "license",
            "language",
            "category",
        )
    } == {
        "video_id": "home-Ab_3",
        "extractor": "home",
        "source_id": "Ab_3",
        "title": "A film",
        "description": "D",
        "uploader": "U",
        "tags": ["x", "y"],
        "license": "CC-BY",
        "language": "en",
        "category": "Sports",
    }
    assert row["path"] == "media/home-Ab_3.mp4"


@pytest.mark.parametrize(
    ("offered", "max_height", "taken"),
    [
        ([(640, 360), (1280, 720), (1920, 1080)], 720, (128, 72)),
        ([(640, 360), (1280, 720), (1920, 1080)], None, (192, 108)),
        ([(640, 360), (1280, 720), (1920, 1080)], 480, (64, 36)),
        # All are above: the smallest.
        ([(1920, 1080), (2560, 1440)], 720, (192, 108)),
        # Portrait: the shorter side is the height.
        ([(360, 640), (720, 1280), (1080, 1920)], 720, (72, 128)),
    ],
)
def test_best_rendition_within_max_height_is_used(
    tmp_path, site, platform, offered, max_height, taken
):
    platform.info = {"formats": [rendition(site, *size) for size in offered]}
    row = watch(tmp_path, site, max_height=max_height)
    assert (row["width"], row["height"]) == taken, row


def test_custom_format_is_used(tmp_path, site, platform):
    platform.info = {"formats": [rendition(site, 640, 360), rendition(site, 1280, 720)]}
    row = watch(tmp_path, site, format="640x360")
    assert row["width"] == 64


def test_video_and_audio_are_muxed(tmp_path, site, platform):
    site.file("/files/sound.m4a", make_audio())
    sound = {
        "format_id": "sound",
        "url": site.url("/files/sound.m4a"),
        "ext": "m4a",
        "vcodec": "none",
        "acodec": "mp4a.40.2",
    }
    platform.info = {"formats": [sound, rendition(site, 640, 360)]}
    row = watch(tmp_path, site)
    assert outcome(row) == "kept", row
    assert row["has_audio"] is True


@pytest.mark.parametrize(
    ("info", "settings", "rule"),
    [
        ({"duration": 5}, {"min_duration_seconds": 10}, "min_duration_seconds"),
        ({"duration": 4000}, {"max_duration_seconds": 1800}, "max_duration_seconds"),
        ({}, {"min_height": 480}, "min_height"),
    ],
)
def test_rules_are_applied_before_the_download(tmp_path, site, platform, info, settings, rule):
    platform.info = {"formats": [rendition(site, 640, 360)], **info}
    row = watch(tmp_path, site, **settings)
    assert outcome(row) == f"download_videos.{rule}"
    assert site.log == []


def test_live_video_is_transient(tmp_path, site, platform):
    platform.info = {"formats": [rendition(site, 640, 360)], "is_live": True}
    assert outcome(watch(tmp_path, site)) == "transient"


def test_subtitles_become_spans(tmp_path, site, platform):
    def offer(path: str, text: str, kind: str) -> list[dict]:
        return [{"url": site.page(path, text, "text/plain"), "ext": kind}]

    platform.info = {
        "formats": [rendition(site, 640, 360)],
        "subtitles": {"en": offer("/en.vtt", VTT, "vtt"), "fr": offer("/fr.vtt", VTT, "vtt")},
        "automatic_captions": {
            "de-orig": offer("/de.json3", JSON3, "json3"),
            "sv": offer("/sv.json3", JSON3, "json3"),
        },
    }
    row = watch(tmp_path, site)
    assert row["subtitles"] == [
        {
            "start_seconds": 0.0,
            "end_seconds": 1.0,
            "text": "hello there",
            "language": "de-orig",
            "automatic": True,
        },
        {
            "start_seconds": 0.5,
            "end_seconds": 1.5,
            "text": "A red & round thing",
            "language": "en",
            "automatic": False,
        },
        {
            "start_seconds": 1.5,
            "end_seconds": 2.0,
            "text": "A red & round thing rolls away",
            "language": "en",
            "automatic": False,
        },
    ]
    assert row["subtitle_words"] == [
        [{"seconds": 0.0, "text": "hello"}, {"seconds": 0.4, "text": " there"}],
        None,
        None,
    ]
    only = watch(tmp_path, site, automatic_subtitles=False, subtitle_languages=["fr"])
    assert {span["language"] for span in only["subtitles"]} == {"fr"}


def test_video_is_kept_if_only_its_subtitles_fail(tmp_path, site, platform):
    platform.info = {
        "formats": [rendition(site, 640, 360)],
        "subtitles": {"en": [{"url": site.status("/en.vtt", 429), "ext": "vtt"}]},
    }
    row = watch(tmp_path, site)
    assert outcome(row) == "kept", row
    assert row["subtitles"] == []
    assert "429" in row["failed_parts"][0]["message"]


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("Private video. Sign in if you've been granted access to this video", "permanent"),
        ("Video unavailable. This video has been removed by the uploader", "permanent"),
        ("This video is no longer available because the account has been terminated", "permanent"),
        ("The uploader has not made this video available in your country", "permanent"),
        ("Sign in to confirm you’re not a bot. Use --cookies for the authentication", "blocked"),
        ("Sign in to confirm your age. This video may be inappropriate for some users.", "blocked"),
        ("Join this channel to get access to members-only content", "blocked"),
        ("This video is only available for registered users. Use --cookies", "blocked"),
        ("Premieres in 3 hours", "transient"),
        ("This live event will begin in 2 days", "transient"),
        (
            "Video unavailable. This content isn't available, try again later. The current session "
            "has been rate-limited by YouTube for up to an hour.",
            "transient",
        ),
        ("Unable to download webpage: The read operation timed out", "transient"),
        ("Requested format is not available", "permanent"),
        ("This video is DRM protected", "permanent"),
    ],
)
def test_sites_message_decides_the_kind(tmp_path, site, platform, message, kind):
    from yt_dlp.utils import ExtractorError

    platform.info = {"error": ExtractorError(message, expected=True)}
    row = watch(tmp_path, site, retries=0)
    assert outcome(row) == kind, row["error"]
    assert message in row["error"]["message"]


def test_full_disk_stops_the_run_under_yt_dlp_too(tmp_path, site, platform):
    platform.info = {"error": OSError(28, "No space left on device")}
    with pytest.raises(ClipmillError, match="free some space"):
        watch(tmp_path, site, retries=0)


def test_geo_block_is_permanent(tmp_path, site, platform):
    from yt_dlp.utils import GeoRestrictedError

    platform.info = {"error": GeoRestrictedError("Not here.", countries=["DE"])}
    assert outcome(watch(tmp_path, site)) == "permanent"


def test_first_message_is_kept():
    from yt_dlp.utils import DownloadError

    problem = problem_of(DownloadError("ERROR: No such file"), "ERROR: [x] a1: Private video")
    assert isinstance(problem, RowFailed)
    assert (problem.kind, problem.message) == ("permanent", "[x] a1: Private video")


def test_http_errors_inside_yt_dlp_keep_retry_after():
    import io

    from yt_dlp.networking.common import Response
    from yt_dlp.networking.exceptions import HTTPError
    from yt_dlp.utils import DownloadError, ExtractorError

    response = Response(io.BytesIO(), "http://a.example/", {"Retry-After": "7"}, status=429)
    cause = ExtractorError("Unable to download", cause=HTTPError(response))
    problem = problem_of(DownloadError("x", (ExtractorError, cause, None)), None)
    assert isinstance(problem, PassingProblem)
    assert (problem.retry_after_seconds, problem.whole_host) == (7.0, True)


# Subtitle files


def test_subrip_with_commas_and_markup_is_parsed():
    text = "1\r\n00:01:02,500 --> 00:01:03,000\r\n<i>One</i>\r\ntwo\r\n\r\n2\r\n\r\nnonsense\r\n"
    [span] = parse_subtitles(text, "srt")
    assert (span.start_seconds, span.end_seconds, span.text) == (62.5, 63.0, "One two")


@pytest.mark.parametrize("text", ["", "WEBVTT", "WEBVTT\n\n00:02.000 --> 00:01.000\nbackwards"])
def test_subtitles_without_a_cue_give_no_spans(text):
    assert parse_subtitles(text, "vtt") == []


@pytest.mark.parametrize(
    ("text", "kind", "message"),
    [
        ("{}", "json3", "events"),
        ("[", "json3", "Expecting"),
        ("x", "ttml", "TTML"),
        ("x", "lrc", "vtt"),
    ],
)
def test_invalid_subtitles_are_an_error(text, kind, message):
    with pytest.raises(ValueError, match=message):
        parse_subtitles(text, kind)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("00:00:01.500", 1.5), ("01:02:03", 3723.0), ("2:03.25", 123.25), ("7", 7.0), ("0.1", 0.1)],
)
def test_all_time_formats_are_parsed(text, seconds):
    assert seconds_of(text) == pytest.approx(seconds)
