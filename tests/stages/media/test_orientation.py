"""Pictures are rotated and mirrored as their file declares, everywhere."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from clipmill.pipeline.training import ClipDataset
from clipmill.schemas.ids import clip_id
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.media.cutting.cut import cut_clips
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest
from clipmill.stages.media.read.probe import probe
from clipmill.stages.protocol import Workspace
from clipmill.stages.split_clips import CLIPS
from tests.numbered import render_numbered
from tests.scanning import run, scan
from tests.synthetic import START, STEPS, run_record, write_run, write_shard

SIZE = (120, 80)
END_SECONDS = 0.4
# What ffmpeg writes into the header, and whether that swaps the sides.
HEADERS = {
    "mirrored": (("-display_hflip",), False),
    "upside down": (("-display_vflip",), False),
    "turned 90": (("-display_rotation", "90"), True),
    "turned 180": (("-display_rotation", "180"), False),
    "turned 270": (("-display_rotation", "270"), True),
    "turned and mirrored": (("-display_rotation", "90", "-display_hflip"), True),
    "turned and upside down": (("-display_rotation", "90", "-display_vflip"), True),
    "nothing": ((), False),
}


def ffmpeg(*words: str | Path) -> bytes:
    return subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, words)],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    ).stdout


def shown(path: Path) -> np.ndarray:
    """The first picture, RGB, as ffmpeg displays it by default."""
    png = ffmpeg("-i", path, "-frames:v", 1, "-f", "image2pipe", "-c:v", "png", "-")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def assert_alike(image: np.ndarray, expected: np.ndarray) -> None:
    assert image.shape == expected.shape
    difference = np.abs(image.astype(int) - expected.astype(int))
    assert difference.mean() < 6, difference.mean()


def headed(source: Path, header: tuple[str, ...], target: Path) -> Path:
    ffmpeg(*header, "-i", source, "-c", "copy", target)
    return target


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("orientation")
    render_numbered(folder / "plain.mp4", 10, size=SIZE, options={"crf": "8"})
    return {
        name: headed(folder / "plain.mp4", header, folder / f"{name.replace(' ', '-')}.mp4")
        for name, (header, _) in HEADERS.items()
    }


@pytest.mark.parametrize("name", HEADERS)
def test_kept_frames_and_sizes_are_as_displayed(name, files, tmp_path):
    path, expected = files[name], shown(files[name])
    size = SIZE[::-1] if HEADERS[name][1] else SIZE
    assert expected.shape[1::-1] == size
    assert (probe(path).width, probe(path).height) == size
    for spans, settings in ((None, {}), (None, {"exact": True}), ([(0.0, 0.3)], {})):
        found = run(path, tmp_path, spans, min_clip_seconds=0, frame_quality=100, **settings)
        [row] = found["scan_videos"]
        assert (row["width"], row["height"]) == size, settings
        assert (found["split_clips"][0]["width"], found["split_clips"][0]["height"]) == size
        jpeg = np.frombuffer(found["frames"][0]["jpeg"], np.uint8)
        assert_alike(cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB), expected)


@pytest.mark.parametrize("name", HEADERS)
@pytest.mark.parametrize("media", ["copy", "exact"])
def test_copied_and_exact_clips_are_as_displayed(media, name, files, tmp_path):
    request = CutRequest("c", 0.0, END_SECONDS, tmp_path / "c.mp4")
    [result] = cut_clips(files[name], [request], CutOptions(media))
    assert result.problem is None
    expected = shown(files[name])
    assert (result.width, result.height) == expected.shape[1::-1]
    assert_alike(shown(result.path), expected)


def test_training_frames_are_as_displayed(files, tmp_path):
    dataset = tmp_path / "dataset"
    videos, clips = [], []
    for path in files.values():
        video = f"file-{path.stem}"
        videos.append({"source_key": video, "video_id": video, "path": str(path)})
        clips.append(
            {
                "video_id": video,
                "clip_id": clip_id(video, 0.0, 0.04),
                "start_seconds": 0.0,
                "end_seconds": 0.04,
                "duration_seconds": 0.04,
            }
        )
    for step, rows, schema in (("download_videos", videos, VIDEOS), ("split_clips", clips, CLIPS)):
        write_shard(dataset, step, STEPS[step][1], "000000", rows, schema)
    write_run(
        dataset,
        run_record("r1", START, {name: STEPS[name] for name in ("download_videos", "split_clips")}),
    )
    samples = {
        sample["clip_id"]: sample
        for sample in ClipDataset(dataset, caption=None, frames=1, size=None)
    }
    for path in files.values():
        video = samples[clip_id(f"file-{path.stem}", 0.0, 0.04)]["video"]
        assert_alike(video[0].permute(1, 2, 0).numpy(), shown(path))


@pytest.mark.parametrize(
    ("suffix", "codec"), [(".mkv", "libx264"), (".webm", "libvpx"), (".mov", "libx264")]
)
def test_orientation_in_other_containers(suffix, codec, tmp_path):
    """Matroska rotates a projection; if a copy can't store it, it is refused, never wrong."""
    plain = tmp_path / f"plain{suffix}"
    render_numbered(plain, 10, size=SIZE, codec=codec)
    for name in ("mirrored", "turned 90", "turned and mirrored"):
        path = headed(plain, HEADERS[name][0], tmp_path / f"headed{suffix}")
        expected = shown(path)
        scanned = scan(path, Workspace(tmp_path, tmp_path), frame_quality=100)
        jpeg = np.frombuffer(scanned["frames"].to_pylist()[0]["jpeg"], np.uint8)
        assert_alike(cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB), expected)
        for media in ("copy", "exact"):
            request = CutRequest(media, 0.0, END_SECONDS, tmp_path / f"{media}.mp4")
            [result] = cut_clips(path, [request], CutOptions(media))
            assert result.problem is None, result.problem
            assert_alike(shown(result.path), expected)


def test_matrix_without_a_quarter_turn_is_rounded_to_the_nearest(tmp_path):
    render_numbered(tmp_path / "plain.mp4", 5, size=SIZE)
    for degrees, turned in (("7", False), ("-88.5", True), ("45", False), ("50", True)):
        path = headed(tmp_path / "plain.mp4", ("-display_rotation", degrees), tmp_path / "odd.mp4")
        assert (probe(path).width, probe(path).height) == (SIZE[::-1] if turned else SIZE)
        pictures = []
        for exact in (False, True):
            found = scan(path, Workspace(tmp_path, tmp_path), exact=exact, frame_quality=100)
            jpeg = np.frombuffer(found["frames"].to_pylist()[0]["jpeg"], np.uint8)
            pictures.append(cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB))
        assert_alike(*pictures)
