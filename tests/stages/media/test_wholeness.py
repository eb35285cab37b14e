"""A file is truncated if bytes are missing. Durations in headers may be wrong."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import av
import pyarrow as pa
import pytest

from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.protocol import Workspace
from tests.download_helpers import outcome, stage
from tests.faults.corpus import film, remuxed, rendered
from tests.faults.corpus_bytes import box
from tests.media import THREE_SHOTS, cached
from tests.scanning import run


def read(tmp_path: Path, data: bytes, suffix: str) -> dict:
    """The row of download_videos for a file of these bytes."""
    path = tmp_path / f"file{suffix}"
    path.write_bytes(data)
    table = pa.Table.from_pylist(
        [{"source_key": source_key(str(path)), "url": str(path), "path": str(path)}], SOURCES
    )
    with stage(min_duration_seconds=None).open(Workspace(tmp_path, tmp_path)) as transform:
        return transform(table).to_pylist()[0]


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


# Complete, whatever the header says


def uneven_avi() -> bytes:
    """Two of three frames are shown, the third for three times as long: AVI counts all five."""
    return rendered(".avi", 1, uneven=True, codec="mpeg4", ticks=1)


def avi_of_a_longer_header() -> bytes:
    data = film("avi")
    return put(data, data.index(b"strh") + 8 + 32, struct.pack("<I", 500))


def webm_of_a_longer_header() -> bytes:
    """Like a screen recorder's that waits for a change: the last block has no duration."""
    data = film("webm")
    return put(data, data.index(b"\x44\x89\x88") + 3, struct.pack(">d", 60_000.0))


def mp4_of_longer_headers() -> bytes:
    data = film("mp4")
    for path, offset in (("moov/mvhd", 16), ("moov/trak/tkhd", 20), ("moov/trak/mdia/mdhd", 16)):
        data = put(data, box(data, path).content + offset, struct.pack(">I", 2_000_000))
    return data


def mp4_with_empty_samples() -> bytes:
    """Like those of recorders that repeat a frame; here it is the last ten."""
    data = film("mp4")
    return put(data, box(data, "moov/trak/mdia/minf/stbl/stsz").content + 12 + 4 * 40, bytes(40))


def flv_of_a_longer_header() -> bytes:
    data = film("flv")
    return put(data, data.index(b"\x00\x08duration\x00") + 11, struct.pack(">d", 600.0))


WHOLE = {
    "avi with frames left out": (uneven_avi, ".avi", 3.28, 50),
    "avi that declares more": (avi_of_a_longer_header, ".avi", 2.0, 50),
    "webm that declares more": (webm_of_a_longer_header, ".webm", 2.0, 50),
    "mp4 that declares more": (mp4_of_longer_headers, ".mp4", 2.0, 50),
    "mp4 with empty samples": (mp4_with_empty_samples, ".mp4", 1.6, 40),
    "flv that declares more": (flv_of_a_longer_header, ".flv", 2.0, 50),
}


@pytest.mark.parametrize("name", WHOLE)
def test_header_with_too_long_a_duration_is_not_truncation(tmp_path, name):
    make, suffix, seconds, frames = WHOLE[name]
    row = read(tmp_path, make(), suffix)
    assert outcome(row) == "kept", row["error"]
    assert row["duration_seconds"] == pytest.approx(seconds, abs=0.13)

    scanned = run(tmp_path / f"file{suffix}", tmp_path)["scan_videos"][0]
    assert scanned["error"] is None
    assert len(scanned["seconds"]) == pytest.approx(frames, abs=3)


# Truncated


def cut_kinds() -> dict[str, tuple[bytes, str]]:
    kinds = {
        kind: (film(kind), suffix)
        for kind, suffix in (
            ("mp4 moov first", ".mp4"),
            ("mkv", ".mkv"),
            ("webm", ".webm"),
            ("avi", ".avi"),
            ("flv h264", ".flv"),
            ("wmv", ".wmv"),
        )
    }
    kinds["avi with frames left out"] = (uneven_avi(), ".avi")
    return kinds


@pytest.mark.parametrize("filled", [False, True], ids=["shorter", "filled with zeros"])
def test_file_cut_off_anywhere_is_truncated(tmp_path, filled):
    for kind, (data, suffix) in cut_kinds().items():
        if filled and suffix in (".mp4", ".wmv"):
            continue  # their index is intact: such a file is damaged, and its pictures show it
        for share in (0.6, 0.85):
            at = round(len(data) * share)
            row = read(tmp_path, data[:at] + bytes(len(data) - at) * filled, suffix)
            assert outcome(row) == "bad_media", (kind, share)
            assert "truncated" in row["error"]["message"], (kind, row["error"])


@pytest.mark.parametrize(
    "kind",
    ["mkv", "webm", "ts h264", "flv h264", "mp4 moov first", "avi", "mp4 fragmented", "mkv live"],
)
def test_file_without_its_last_packet_is_kept(tmp_path, kind):
    data = film(kind)
    with av.open(io.BytesIO(data)) as container:
        suffix = {"mat": ".mkv", "mpe": ".ts", "flv": ".flv", "avi": ".avi"}.get(
            container.format.name[:3], ".mp4"
        )
        last = max(packet.pos + packet.size // 2 for packet in container.demux() if packet.size)
    row = read(tmp_path, data[:last], suffix)
    assert outcome(row) == "kept", row["error"]
    assert row["duration_seconds"] == pytest.approx(2.0, abs=0.13)
    scanned = run(tmp_path / f"file{suffix}", tmp_path)["scan_videos"][0]
    assert scanned["error"] is None
    assert len(scanned["seconds"]) >= 47


def test_file_that_lost_many_packets_is_reported(tmp_path):
    """Nothing declares how many there should be."""
    data = film("mp4 fragmented")
    with av.open(io.BytesIO(data)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    row = read(tmp_path, data[: positions[46] - 1], ".mp4")
    assert outcome(row) == "bad_media"
    assert "?" not in row["error"]["message"]


def test_undecodable_packets_do_not_count_towards_the_duration(tmp_path):
    """A recording that begins midway: its first second references earlier pictures."""
    source, _ = cached(THREE_SHOTS, keyframes=25, codec_options=(("bf", "0"),))
    for suffix in (".mkv", ".ts"):
        data = remuxed(source.read_bytes(), suffix, lambda packet, number: number > 0)
        row = read(tmp_path, data, suffix)
        scanned = run(tmp_path / f"file{suffix}", tmp_path)["scan_videos"][0]
        whole = scanned["end_seconds"] - scanned["seconds"][0]
        assert whole == pytest.approx(5.0, abs=0.05)
        assert row["duration_seconds"] == pytest.approx(whole, abs=0.05)


def test_long_last_picture_is_part_of_the_video(tmp_path):
    """A still at the end, as in screen recordings, in an MP4 whose header has its duration."""
    data = rendered(".mp4", 3, codec_options={"bf": "0"})
    stts = box(data, "moov/trak/mdia/minf/stbl/stts").content
    assert struct.unpack_from(">4I", data, stts) == (0, 1, 50, 512)
    from tests.faults.corpus_bytes import with_box

    data = with_box(
        data, "moov/trak/mdia/minf/stbl/stts", struct.pack(">6I", 0, 2, 49, 512, 1, 12800 * 6)
    )
    data = put(
        data, box(data, "moov/trak/mdia/mdhd").content + 16, struct.pack(">I", 49 * 512 + 12800 * 6)
    )
    row = read(tmp_path, data, ".mp4")
    assert outcome(row) == "kept", row["error"]
