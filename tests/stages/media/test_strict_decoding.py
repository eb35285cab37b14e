"""Damaged files: the same result on every machine, and corrupt pictures counted."""

from __future__ import annotations

import random
import subprocess
from dataclasses import replace
from pathlib import Path

import av
import imageio_ffmpeg
import pytest

from clipmill.stages.media.cutting.cut import cut_clips
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest, CutResult
from clipmill.stages.media.read import fast
from tests.numbered import numbers_of, render_numbered
from tests.scanning import run

COUNT = 100


def damaged(path: Path, source: Path, numbers: range, share: float, seed: int = 4) -> Path:
    """The file with some bytes of this share of these packets changed."""
    with av.open(str(source)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    draw = random.Random(seed)
    content = bytearray(source.read_bytes())
    chosen = sorted(draw.sample(numbers, round(len(numbers) * share)))
    for number in chosen:
        position, size = places[number]
        for _ in range(6):
            content[position + draw.randrange(6, size)] ^= draw.randrange(1, 256)
    path.write_bytes(content)
    return path


def given_by(path: Path, threads: int, monkeypatch) -> tuple[list[float], list[float]]:
    monkeypatch.setattr(fast, "_threads", lambda stream: threads)
    video = fast.FastVideo(path)
    times = [picture.seconds for picture in video.pictures()]
    return times, video.corrupt_seconds


@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("libx264", "mp4"),
        ("libvpx-vp9", "webm"),
        ("libx265", "mp4"),
        ("mpeg2video", "ts"),
        ("mpeg4", "mp4"),
    ],
)
def test_damaged_file_gives_the_same_frames_with_any_number_of_threads(
    codec, suffix, tmp_path, monkeypatch
):
    """By default, two threads give other frames than one, and eight others again."""
    whole = tmp_path / f"whole.{suffix}"
    options = {"x265-params": "log-level=none"} if codec == "libx265" else None
    render_numbered(whole, COUNT, codec=codec, keyframes=12, options=options)
    for seed in range(3):
        path = damaged(tmp_path / f"damaged.{suffix}", whole, range(5, COUNT), 0.15, seed)
        first = given_by(path, 1, monkeypatch)
        assert first[1], "nothing is damaged"
        for threads in (2, 8):
            assert given_by(path, threads, monkeypatch) == first


@pytest.fixture(scope="module")
def half_damaged(tmp_path_factory) -> Path:
    """Two seconds of intact pictures, and two of mostly corrupt ones."""
    folder = tmp_path_factory.mktemp("damage")
    whole = folder / "whole.mp4"
    render_numbered(whole, COUNT, keyframes=10)
    return damaged(folder / "half.mp4", whole, range(50, COUNT), 0.8)


@pytest.mark.parametrize("boundaries", ["given", "whole"])
def test_rule_drops_clips_of_mostly_corrupt_pictures(half_damaged, boundaries, tmp_path):
    how = {"boundaries": boundaries}
    spans = [(0.0, 2.0), (2.0, 3.9)] if boundaries == "given" else None
    if spans is None:
        how["max_clip_seconds"] = 2.0
    made = run(half_damaged, tmp_path, spans, **how)
    (scanned,) = made["scan_videos"]
    assert 10 < scanned["corrupt_frames"] == len(scanned["corrupt_seconds"]) <= 50
    assert min(scanned["corrupt_seconds"]) >= 1.9
    (clip,) = made["split_clips"]
    assert (clip["start_seconds"], clip["corrupt_frames"]) == (0.0, 0)
    assert [shot["rule"] for shot in made["shots"]] == (
        [None, "split_clips.max_corrupt_share"] if spans else [None]
    )
    both = run(half_damaged, tmp_path, spans, max_corrupt_share=1.0, **how)["split_clips"]
    assert [clip["corrupt_frames"] for clip in both] == [0, scanned["corrupt_frames"]]


def test_corrupt_frames_are_null_in_exact_mode(half_damaged, tmp_path):
    made = run(half_damaged, tmp_path, boundaries="whole", exact=True)
    assert made["scan_videos"][0]["corrupt_frames"] is None
    assert {clip["corrupt_frames"] for clip in made["split_clips"]} == {None}


def test_intact_file_has_no_corrupt_frames(tmp_path):
    whole = tmp_path / "whole.mp4"
    render_numbered(whole, 60, options={"x264-params": "tff=1:open-gop=1:keyint=20"})
    made = run(whole, tmp_path, boundaries="whole")
    assert made["scan_videos"][0]["corrupt_frames"] == 0
    assert [clip["corrupt_frames"] for clip in made["split_clips"]] == [0]


@pytest.mark.parametrize("boundaries", ["given", "whole"])
def test_encrypted_file_gives_no_clip(boundaries, tmp_path):
    whole, locked = tmp_path / "whole.mp4", tmp_path / "locked.mp4"
    render_numbered(whole, 60)
    subprocess.run(
        [
            imageio_ffmpeg.get_ffmpeg_exe(),
            "-v",
            "error",
            "-i",
            str(whole),
            "-c",
            "copy",
            "-encryption_scheme",
            "cenc-aes-ctr",
            "-encryption_key",
            "0f" * 16,
            "-encryption_kid",
            "1e" * 16,
            str(locked),
        ],
        check=True,
        stdin=subprocess.DEVNULL,
    )
    made = run(
        locked, tmp_path, [(0.0, 2.0)] if boundaries == "given" else None, boundaries=boundaries
    )
    assert not any(row["clip_id"] for row in made.get("split_clips", []))
    last = made.get("split_clips") or made["scan_videos"]
    assert last[0]["error"] or last[0]["rejection"]


def test_only_files_known_to_be_sound_are_copied_without_decoding(half_damaged, tmp_path):
    """One frame is decoded for a clip whose file was decoded before; all, for any other clip."""
    open_groups = tmp_path / "open.mp4"
    render_numbered(
        open_groups,
        60,
        options={"x264-params": "open-gop=1:b-adapt=0:scenecut=0:keyint=15:min-keyint=15"},
    )
    whole = tmp_path / "whole.mp4"
    render_numbered(whole, 60, keyframes=10)

    def copied(path: Path, start: float, end: float, **known: bool) -> CutResult:
        request = CutRequest("c", start, end, tmp_path / "c.mp4")
        (result,) = cut_clips(path, [request], CutOptions("copy"), **known)
        return result

    sound, unknown = copied(whole, 1.0, 2.0, is_sound=True), copied(whole, 1.0, 2.0)
    assert sound.decoded_frames < 5 < unknown.n_frames == unknown.decoded_frames
    assert replace(sound, decoded_frames=0) == replace(unknown, decoded_frames=0)
    assert numbers_of(sound.path) == list(range(50 - sound.n_frames, 50))
    reaching = copied(open_groups, 1.0, 2.0, is_sound=True)
    assert reaching.decoded_frames == reaching.n_frames
    spoilt = copied(half_damaged, 2.4, 3.6)
    if spoilt.problem is None:
        assert spoilt.decoded_frames == spoilt.n_frames
    else:
        assert spoilt.problem.kind == "bad_media"
