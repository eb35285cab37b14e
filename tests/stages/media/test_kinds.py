"""A file that is not a video is described, with the next step if there is one."""

from __future__ import annotations

import gzip
import io
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from tests.download_helpers import outcome
from tests.faults.corpus import film, remuxed
from tests.faults.corpus_bytes import box
from tests.media import Scene, cached
from tests.scanning import run
from tests.stages.media.test_wholeness import read

_FRAGMENTS = {"movflags": "+frag_keyframe+empty_moov+default_base_moof"}


def sound_and_cover(suffix: str) -> bytes:
    """A song with its cover picture."""
    file = io.BytesIO()
    with av.open(file, "w", format={".mp4": "mp4", ".mkv": "matroska"}[suffix]) as output:
        sound = output.add_stream("aac", rate=16000)
        cover = output.add_stream("mjpeg", rate=1)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), "fltp", "mono")
        tone.sample_rate = 16000
        picture = av.VideoFrame(64, 48, "yuvj420p")
        picture.pts, picture.time_base = 0, Fraction(1, 1)
        for stream, frame in ((cover, picture), (sound, tone)):
            output.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def encrypted() -> bytes:
    path, _ = cached(
        (Scene("red", 1.0),),
        container_options=(
            ("encryption_scheme", "cenc-aes-ctr"),
            ("encryption_key", "76a6c65c5ea762046bd749a2e632ccbb"),
            ("encryption_kid", "a7e61c373e219033c21091fa607bf3b8"),
        ),
    )
    return path.read_bytes()


def without_index() -> bytes:
    data = film("mp4")
    return data[: box(data, "moov").start]


def fragments_alone() -> bytes:
    data = film("mp4 fragmented")
    return data[box(data, "moof").start :]


def no_packets() -> bytes:
    """The header of a camera's file, with a timecode track next to the video track."""
    data = remuxed(film("mp4"), ".mov", options=_FRAGMENTS)
    return data[: box(data, "moof").start]


def unknown_codec() -> bytes:
    return film("mp4").replace(b"avc1", b"zzz1")


WORDS = {
    "playlist": (b"#EXTM3U\n#EXTINF:2,\na.ts\n", ".mp4", "HLS playlist (M3U8)"),
    "manifest": (b'<?xml version="1.0"?>\n<MPD type="static"></MPD>', ".mp4", "DASH manifest"),
    "list": (b"ffconcat version 1.0\nfile a.mp4\n", ".mp4", "ffconcat list"),
    "page": (b"\n<!DOCTYPE html><html></html>", ".mp4", "web page"),
    "error of a bucket": (b'<?xml version="1.0"?><Error/>', ".mp4", "XML"),
    "answer of an API": (b'{"error": "gone"}', ".webm", "JSON"),
    "subtitles": (b"1\n00:00:00,000 --> 00:00:02,000\nhello\n", ".mkv", "SubRip"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\n", ".mp4", "git lfs pull"),
    "packed": (gzip.compress(b"x" * 500), ".mp4", "gzip"),
    "picture": (b"\xff\xd8\xff\xe0" + bytes(500), ".mp4", "a picture (JPEG)"),
    "zeros": (bytes(70_000), ".mp4", "nothing but zeros"),
    "empty": (b"", ".mp4", "an empty file"),
    "noise": (random.Random(1).randbytes(9000), ".mp4", "in an unsupported format"),
    "header of a Matroska": (b"\x1aE\xdf\xa3" + bytes(60), ".mkv", "Matroska or WebM, but broken"),
    "mp4 without an index": (without_index, ".mp4", "its index (moov) is missing"),
    "mp4 cut off before it": (lambda: without_index()[:-400], ".mp4", "truncated before its index"),
    "pieces alone": (fragments_alone, ".mp4", "pieces of a fragmented MP4 without their header"),
    "no packets": (no_packets, ".mov", "declared, but has no frame"),
    "song": (lambda: sound_and_cover(".mp4"), ".mp4", "holds sound and a cover picture"),
    "encrypted": (encrypted, ".mp4", "encrypted (cenc)"),
    "unknown codec": (unknown_codec, ".mp4", "codec is not supported by FFmpeg"),
}


@pytest.mark.parametrize("name", WORDS)
def test_file_that_is_not_a_video_is_described(tmp_path, name):
    make, suffix, words = WORDS[name]
    row = read(tmp_path, make() if callable(make) else make, suffix)
    assert outcome(row) == "bad_media"
    said = row["error"]["message"]
    assert words in said
    for inside in ("object", "attribute", "Errno", "Invalid argument", "?"):
        assert inside not in said


def test_both_stages_describe_a_cover_alike(tmp_path):
    (tmp_path / "song.mp4").write_bytes(sound_and_cover(".mp4"))
    error = run(tmp_path / "song.mp4", tmp_path)["scan_videos"][0]["error"]
    assert "it holds sound and a cover picture" in error["message"]


def test_short_video_with_longer_sound_is_read_to_its_end(tmp_path: Path):
    """Withheld frames are returned at the end of their stream, not of another one."""
    source, _ = cached((Scene("red", 0.2),), audio=True)
    data = source.read_bytes()
    row = read(tmp_path, remuxed(data, ".mkv"), ".mkv")
    assert outcome(row) == "kept", row["error"]
