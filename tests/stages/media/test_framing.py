"""Hidden borders are cropped, and non-square pixels are made square."""

from __future__ import annotations

import io
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from clipmill.pipeline.training import ClipDataset
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.media.cutting.cut import cut_clips
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest
from clipmill.stages.media.fetch.section_files import rebase
from clipmill.stages.media.fetch.sections import NoSection
from clipmill.stages.media.read.framing import framing_of
from clipmill.stages.media.read.probe import probe
from clipmill.stages.split_clips import CLIPS
from tests.scanning import run
from tests.synthetic import START, STEPS, run_record, write_run, write_shard

STORED, SHOWN, CORNER = (160, 96), (140, 80), (4, 6)
END_SECONDS = 0.4


def ffmpeg(*words: str | Path) -> bytes:
    return subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, words)],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    ).stdout


def shown(path: Path, *filters: str) -> np.ndarray:
    words = ["-vf", ",".join(filters)] if filters else []
    png = ffmpeg("-i", path, "-frames:v", 1, *words, "-f", "image2pipe", "-c:v", "png", "-")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def render(path: Path, *words: str) -> Path:
    ffmpeg("-f", "lavfi", "-i", f"testsrc2=s={STORED[0]}x{STORED[1]}:r=25:d=0.4", *words, path)
    return path


def boxes(data: bytes, kinds: list[bytes], begin: int, end: int) -> Iterator[list[int]]:
    """Start positions of the boxes at a path."""
    while begin < end:
        size, kind = struct.unpack_from(">I4s", data, begin)
        if kind == kinds[0]:
            if len(kinds) == 1:
                yield [begin]
            else:
                yield from (
                    [begin, *inner] for inner in boxes(data, kinds[1:], begin + 8, begin + size)
                )
        begin += size


def with_aperture(path: Path) -> Path:
    """Adds the `clap` box with which MP4 and MOV declare the visible part of a picture.

    Its offsets are those of the centre; the header is at the file's end, so nothing else moves.
    """
    data = bytearray(path.read_bytes())
    chain = next(boxes(data, [b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd"], 0, len(data)))
    entry = chain[-1] + 16
    end = entry + struct.unpack_from(">I", data, entry)[0]
    off = [2 * at - (whole - part) for at, whole, part in zip(CORNER, STORED, SHOWN, strict=True)]
    clap = struct.pack(">I4sIIIIiIiI", 40, b"clap", SHOWN[0], 1, SHOWN[1], 1, off[0], 2, off[1], 2)
    data[end:end] = clap
    for at in (*chain, entry):
        struct.pack_into(">I", data, at, struct.unpack_from(">I", data, at)[0] + len(clap))
    path.write_bytes(data)
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("framing")
    prores = with_aperture(
        render(
            folder / "prores.mov",
            "-c:v",
            "prores_ks",
            "-profile:v",
            "4",
            "-pix_fmt",
            "yuva444p10le",
        )
    )
    mp4 = with_aperture(
        render(folder / "h264.mp4", "-c:v", "libx264", "-crf", "8", "-pix_fmt", "yuv420p")
    )
    ffmpeg("-i", mp4, "-c", "copy", folder / "h264.mkv")
    ffmpeg("-display_rotation", "90", "-i", mp4, "-c", "copy", folder / "turned.mp4")
    return {
        "prores": prores,
        "mp4": mp4,
        "mkv": folder / "h264.mkv",
        "turned": folder / "turned.mp4",
    }


def assert_alike(image: np.ndarray, expected: np.ndarray) -> None:
    assert image.shape == expected.shape
    assert np.abs(image.astype(int) - expected.astype(int)).mean() < 6


def kept(found: dict) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(found["frames"][0]["jpeg"], np.uint8), cv2.IMREAD_COLOR_RGB)


@pytest.mark.parametrize("name", ["prores", "mp4", "mkv", "turned"])
def test_hidden_borders_are_cropped_in_sizes_frames_and_clips(name, files, tmp_path):
    path, expected = files[name], shown(files[name])
    size = SHOWN[::-1] if name == "turned" else SHOWN
    assert expected.shape[1::-1] == size
    assert (probe(path).width, probe(path).height) == size
    for spans, settings in ((None, {}), (None, {"exact": True}), ([(0.0, 0.3)], {})):
        found = run(path, tmp_path, spans, min_clip_seconds=0, frame_quality=100, **settings)
        assert (found["scan_videos"][0]["width"], found["scan_videos"][0]["height"]) == size
        assert_alike(kept(found), expected)
    for media in ("copy", "exact"):
        request = CutRequest(media, 0.0, END_SECONDS, tmp_path / f"{media}.mp4")
        [result] = cut_clips(path, [request], CutOptions(media))
        assert result.problem is None, result.problem
        assert (result.width, result.height) == size
        assert_alike(shown(result.path), expected)


def test_training_frames_are_cropped_as_displayed(files, tmp_path):
    dataset = tmp_path / "dataset"
    videos = [
        {"source_key": name, "video_id": f"file-{name}", "path": str(path)}
        for name, path in files.items()
    ]
    clips = [
        {
            "video_id": f"file-{name}",
            "clip_id": f"file-{name}-0-40",
            "start_seconds": 0.0,
            "end_seconds": 0.04,
            "duration_seconds": 0.04,
        }
        for name in files
    ]
    for step, rows, schema in (("download_videos", videos, VIDEOS), ("split_clips", clips, CLIPS)):
        write_shard(dataset, step, STEPS[step][1], "000000", rows, schema)
    write_run(
        dataset,
        run_record("r1", START, {name: STEPS[name] for name in ("download_videos", "split_clips")}),
    )
    for sample in ClipDataset(dataset, caption=None, frames=1, size=None):
        expected = shown(files[sample["clip_id"].split("-")[1]])
        assert_alike(sample["video"][0].permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize(
    ("aspect", "size"),
    [("16/11", (233, 96)), ("8/9", (160, 108)), ("1281/1280", (160, 96)), ("1000", (160, 96))],
)
def test_pixels_are_made_square_as_in_players(aspect, size, tmp_path):
    """Except nearly square ones, as after scaling to an even number, and nonsensical ratios."""
    path = render(tmp_path / "film.mp4", "-vf", f"setsar={aspect}", "-pix_fmt", "yuv420p")
    assert (probe(path).width, probe(path).height) == size
    expected = shown(path, f"scale={size[0]}:{size[1]}", "setsar=1")
    for spans, settings in ((None, {}), (None, {"exact": True}), ([(0.0, 0.3)], {})):
        found = run(path, tmp_path, spans, min_clip_seconds=0, frame_quality=100, **settings)
        assert (found["split_clips"][0]["width"], found["split_clips"][0]["height"]) == size
        assert_alike(kept(found), expected)
    for media in ("copy", "exact"):
        request = CutRequest(media, 0.0, END_SECONDS, tmp_path / f"{media}.mp4")
        [result] = cut_clips(path, [request], CutOptions(media))
        assert (result.width, result.height) == size
        with av.open(str(result.path)) as container:
            again = framing_of(container.streams.video[0])
        assert again.size(*STORED) == size


def test_copies_keep_the_containers_pixel_aspect_ratio(tmp_path):
    """For clips and sections; if it can't be stored, the whole video is downloaded."""
    for suffix in (".mp4", ".mkv"):
        square = render(tmp_path / f"square{suffix}", "-pix_fmt", "yuv420p")
        path = tmp_path / f"film{suffix}"
        ffmpeg("-i", square, "-c", "copy", "-aspect", "3:1", path)
        size = (probe(path).width, probe(path).height)
        assert size == (288, 96)
        request = CutRequest("copy", 0.0, END_SECONDS, tmp_path / "copy.mp4")
        [result] = cut_clips(path, [request], CutOptions("copy"))
        assert (result.width, result.height) == size
        if suffix == ".mkv":
            with pytest.raises(NoSection, match="shape"):
                rebase(path, tmp_path / "part.mkv")
        else:
            rebase(path, tmp_path / "part.mp4")
            part = probe(tmp_path / "part.mp4")
            assert (part.width, part.height) == size
