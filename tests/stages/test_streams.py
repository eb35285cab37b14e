"""Segmented streams: which rendition is used, and times that were never received."""

from __future__ import annotations

import functools
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.protocol import Workspace
from tests.download_helpers import outcome, stage
from tests.http_server import serve
from tests.media import COLOURS
from tests.scanning import run

RATE = 25


def render(path: Path, colours: str, size=(96, 54), sound: bool = True, **options: str) -> None:
    """A second of each colour (`-` for no picture at all), with a tone over all of it."""
    with av.open(
        str(path), "w", options=options, format="hls" if path.suffix == ".m3u8" else None
    ) as output:
        codec = "libvpx-vp9" if path.suffix == ".webm" else "libx264"
        own = {
            "libx264": {"g": str(RATE), "preset": "veryfast", "bf": "0"},
            "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
        }[codec]
        stream = output.add_stream(codec, rate=RATE, options=own)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        tone = (
            output.add_stream("libopus" if codec != "libx264" else "aac", rate=48000)
            if sound
            else None
        )
        words = colours.split()
        for number in range(len(words) * RATE):
            word = words[number // RATE]
            if word != "-":
                image = np.full((size[1], size[0], 3), COLOURS[word], np.uint8)
                image[:20, number % 20 : number % 20 + 10] = 250
                frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, RATE)
                output.mux(stream.encode(frame))
            if tone is not None:
                for part in (0, 960):
                    quiet = av.AudioFrame.from_ndarray(
                        np.zeros((1, 960), np.float32), "fltp", "mono"
                    )
                    quiet.sample_rate, quiet.pts = 48000, number * 1920 + part
                    output.mux(tone.encode(quiet))
        output.mux(stream.encode())
        if tone is not None:
            output.mux(tone.encode())


@functools.cache
def stream(colours: str, height: int, sound: bool = True) -> dict[str, bytes]:
    """The playlist and its segments of one second each, by name."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        render(
            folder / "list.m3u8",
            colours,
            (height * 16 // 9 // 2 * 2, height),
            sound,
            hls_time="1",
            hls_list_size="0",
        )
        return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def site():
    with serve() as server:
        for height in (54, 90, 180):
            put(server, f"{height}", stream("red blue", height))
        yield server


def put(site, folder: str, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        kind = "application/vnd.apple.mpegurl" if name.endswith(".m3u8") else "video/mp2t"
        site.file(f"/{folder}/{name}", data, kind)


def playlist(site, name: str, lines: list[str]) -> str:
    return site.page(name, "\n".join(["#EXTM3U", *lines, ""]), "application/vnd.apple.mpegurl")


def download(dataset: Path, url: str, **settings) -> dict:
    table = pa.Table.from_pylist(
        [{"source_key": source_key(url), "url": url, "extractor": "generic"}], SOURCES
    )
    settings = {"min_duration_seconds": None, "min_height": None, **settings}
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        return transform(table).to_pylist()[0]


# Renditions whose size is not in the playlist


@pytest.fixture
def unknown_sizes(site) -> str:
    return playlist(
        site,
        "/master.m3u8",
        [
            line
            for height, rate in ((180, 3_000_000), (54, 300_000), (90, 900_000))
            for line in (f"#EXT-X-STREAM-INF:BANDWIDTH={rate}", f"{height}/list.m3u8")
        ],
    )


@pytest.mark.parametrize(("most", "taken"), [(None, 180), (180, 180), (100, 90), (40, 54)])
def test_max_height_uses_the_files_if_the_playlist_has_no_sizes(
    tmp_path, unknown_sizes, most, taken
):
    row = download(tmp_path, unknown_sizes, max_height=most)
    assert outcome(row) == "kept", row["error"]
    assert row["height"] == taken


def test_min_height_is_applied_to_the_download(tmp_path, unknown_sizes):
    row = download(tmp_path, unknown_sizes, max_height=60, min_height=60)
    assert outcome(row) == "download_videos.min_height"
    assert row["rejection"]["detail"] == "54 < 60"


# Gaps


def pieces(site, folder: str, files: dict[str, bytes]) -> list[list[str]]:
    """The playlist lines of each segment."""
    put(site, folder, files)
    lines = files["list.m3u8"].decode().splitlines()
    return [
        [line, f"{folder}/{lines[at + 1]}"]
        for at, line in enumerate(lines)
        if line.startswith("#EXTINF")
    ]


HEAD = ["#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", "#EXT-X-PLAYLIST-TYPE:VOD"]


def clips_of(tmp_path: Path, row: dict, **settings) -> list[tuple[float, float]]:
    assert outcome(row) == "kept", row["error"]
    extra = dict(row["extra"] or ())
    tables = run(tmp_path / row["path"], tmp_path, extra=extra, **settings)
    begins = tables["scan_videos"][0]["seconds"][0]
    return [
        (round(clip["start_seconds"] - begins, 2), round(clip["end_seconds"] - begins, 2))
        for clip in tables["split_clips"]
    ]


@pytest.mark.parametrize("sound", [True, False], ids=["with sound", "silent"])
@pytest.mark.parametrize("boundaries", ["auto", "whole"])
def test_missing_segment_is_in_no_clip(tmp_path, site, sound, boundaries):
    film = pieces(site, "film", stream("red red red red red", 54, sound))
    lines = [line for number, piece in enumerate(film) if number != 2 for line in piece]
    row = download(tmp_path, playlist(site, "/hole.m3u8", [*HEAD, *lines, "#EXT-X-ENDLIST"]))
    assert clips_of(tmp_path, row, boundaries=boundaries) == [(0.0, 2.0), (3.0, 5.0)]


def test_gap_after_an_advertisement_is_in_no_clip(tmp_path, site):
    """Its timestamps restart, and those of the film continue as if it had lasted longer."""
    film = pieces(site, "film", stream("red red red red red", 54))
    advert = pieces(site, "advert", stream("blue blue", 54))
    lines = [line for piece in film[:2] for line in piece] + ["#EXT-X-DISCONTINUITY"]
    lines += [line for piece in advert for line in piece] + ["#EXT-X-DISCONTINUITY"]
    lines += [line for piece in film[2:] for line in piece] + ["#EXT-X-ENDLIST"]
    row = download(tmp_path, playlist(site, "/advert.m3u8", [*HEAD, *lines]))
    clips = clips_of(tmp_path, row)
    scanned = run(tmp_path / row["path"], tmp_path)["scan_videos"][0]
    shown = len(scanned["seconds"]) / RATE
    assert sum(end - start for start, end in clips) == pytest.approx(shown, abs=0.15)
    assert len(clips) == 3


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".webm"])
def test_still_picture_is_part_of_its_clip(tmp_path, suffix):
    """As in a screen recording; the sound continues, or there is no evidence of any."""
    for sound in (True, False):
        path = tmp_path / f"screen{sound}{suffix}"
        render(path, "red - - red red", sound=sound)
        for settings, wanted in (
            ({}, [(0.0, 5.0)]),
            ({"max_hold_seconds": 0.5}, [(0.0, 1.46), (3.0, 5.0)]),
        ):
            clips = run(path, tmp_path, **settings)["split_clips"]
            begins = clips[0]["start_seconds"]
            found = [
                (clip["start_seconds"] - begins, clip["end_seconds"] - begins) for clip in clips
            ]
            assert np.allclose(found, wanted, atol=0.05), (sound, settings, found)
