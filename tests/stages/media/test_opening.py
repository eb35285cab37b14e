"""What is opened as media, and headers whose claims must not cost memory."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.isolation import isolated
from clipmill.stages.media.isolation.isolated import Limits, collect_isolated, run_isolated
from clipmill.stages.media.read.decode import open_container
from clipmill.stages.media.read.measures import WantedMeasures
from clipmill.stages.media.read.probe import probe
from clipmill.stages.media.read.scan import ScanSettings, scan_video
from tests import isolated_functions
from tests.huge import huge_h264
from tests.media import Scene, cached, render

SCAN = ScanSettings(False, None, None, True, 384, 90, 2.0, WantedMeasures())
_MPD = """<?xml version="1.0"?>
<MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S"
 profiles="urn:mpeg:dash:profile:isoff-on-demand:2011"><Period><AdaptationSet mimeType="video/mp4">
<Representation id="1" bandwidth="1000"><BaseURL>film.ts</BaseURL></Representation>
</AdaptationSet></Period></MPD>"""
_PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{name}\n#EXT-X-ENDLIST\n"
LISTS = {
    "list.ffconcat": "ffconcat version 1.0\nfile film.ts\n",
    "called.mp4": "ffconcat version 1.0\nfile film.ts\n",
    "playlist.m3u8": _PLAYLIST.format(name="film.ts"),
    "called-a-film.mp4": _PLAYLIST.format(name="film.ts"),
    "playlist-of-a-playlist.m3u8": _PLAYLIST.format(name="playlist.m3u8"),
    "dash.mpd": _MPD,
    "session.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
    "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
}


@pytest.fixture
def lists(tmp_path) -> Path:
    render(tmp_path / "film.ts", [Scene("red", 1.0)])
    for name, text in LISTS.items():
        (tmp_path / name).write_text(text)
    return tmp_path


@pytest.mark.parametrize("name", LISTS)
def test_file_that_references_other_files_is_refused(name, lists):
    """These are next to it and intact, so only its format can be the reason."""
    assert probe(lists / "film.ts").height == 180
    for read in (probe, open_container):
        with pytest.raises(RowFailed, match=r"not a readable media|cannot be opened") as caught:
            read(lists / name)
        assert caught.value.kind == "bad_media"


@pytest.mark.parametrize("name", ["http:film.mp4", "concat:a|b.mp4", "%03d.mp4", "-i.mp4"])
def test_file_name_is_never_a_url_or_pattern(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an absolute path could be nothing else
    render(tmp_path / "film.mp4", [Scene("red", 1.0)])
    (tmp_path / "film.mp4").rename(tmp_path / name)
    assert probe(Path(name)).height == 180


def peak_bytes(function, path: Path, *args: object, message: str) -> int:
    """Peak memory of a new helper that failed with `message`."""
    isolated.end_helpers()
    limits = Limits(60, 120, 2 << 30)
    run_isolated(isolated_functions.load, path, "clipmill.stages.media.read.scan", limits=limits)
    with pytest.raises(RowFailed, match=message) as caught:
        collect_isolated(function, path, *args, limits=limits)
    assert caught.value.kind == "bad_media"
    pid = run_isolated(isolated_functions.whose, path, limits=limits)  # the same helper as before
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


@pytest.mark.parametrize("suffix", [".h264", pytest.param(".ts", marks=pytest.mark.slow)])
def test_declared_huge_pictures_take_no_memory(suffix, tmp_path):
    """Above 8192 × 8192 nothing is decoded; unproven 8K is decoded three times."""
    usual = peak_bytes(probe, tmp_path / "none.mp4", message="not a readable media file")
    for side, message, more in (
        (12288, "declares pictures of 12288×12288; at most", 80 << 20),
        (8192, "but the first 3 decoded ones are broken", 400 << 20),
    ):
        huge_h264(tmp_path / f"{side}{suffix}", side, side)
        assert peak_bytes(probe, tmp_path / f"{side}{suffix}", message=message) < usual + more
    path = tmp_path / f"12288{suffix}"
    assert peak_bytes(scan_video, path, SCAN, message="at most") < usual + (80 << 20)


def test_frames_invented_by_the_decoder_are_not_a_video(tmp_path):
    """The declared size is small enough to be decoded to the end."""
    huge_h264(tmp_path / "film.h264", 2560, 1440)
    with pytest.raises(RowFailed, match=r"of 10 frames only [0-3] can be decoded"):
        collect_isolated(scan_video, tmp_path / "film.h264", SCAN, limits=Limits())


@pytest.mark.slow
def test_genuine_large_film_is_read(tmp_path):
    path, _ = cached(
        (Scene("red", 0.2),), size=(7680, 4320), codec_options=(("preset", "ultrafast"),)
    )
    facts = run_isolated(probe, path, limits=Limits())
    assert (facts.width, facts.height) == (7680, 4320)
    frames, columns = collect_isolated(scan_video, path, SCAN, limits=Limits())
    assert columns["source_frames"] == 5
    assert frames
