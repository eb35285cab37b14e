"""HDR10 and HLG become ordinary pictures wherever models or people look at them."""

from __future__ import annotations

import io
import subprocess
from pathlib import Path

import av
import cv2
import imageio_ffmpeg
import numpy as np
import pytest
from PIL import Image

from clipmill.jobs.run import run as run_recipe
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.training import ClipDataset
from clipmill.stages.media.cutting.cut import cut_clips
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest
from clipmill.stages.media.read.hdr import ToneMap
from tests.scanning import run

SIZE = (160, 96)
TRANSFERS = {"hdr10": "smpte2084", "hlg": "arib-std-b67"}


def ffmpeg(*words: str | Path) -> bytes:
    return subprocess.run(
        [imageio_ffmpeg.get_ffmpeg_exe(), "-v", "error", "-y", *map(str, words)],
        check=True,
        stdin=subprocess.DEVNULL,
        capture_output=True,
    ).stdout


def ordinary() -> np.ndarray:
    """An RGB picture of many colours, pale and saturated, from dark to bright."""
    width, height = SIZE
    across, down = np.meshgrid(np.linspace(0, 179, width), np.linspace(30, 235, height))
    hsv = np.stack([across, np.full_like(across, 130), down], axis=2).astype(np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB)


def render(folder: Path, name: str, transfer: str) -> Path:
    """The ordinary picture as high dynamic range film with a white of 100 nits, by zscale."""
    Image.fromarray(ordinary()).save(folder / "ordinary.png")
    path = folder / f"{name}.mp4"
    ffmpeg(
        "-loop",
        1,
        "-i",
        folder / "ordinary.png",
        "-t",
        "0.4",
        "-r",
        25,
        "-vf",
        "zscale=min=gbr:tin=bt709:pin=bt709:rin=pc:m=2020_ncl:p=2020:r=tv:npl=100:"
        f"t={transfer},format=yuv420p10le",
        "-c:v",
        "libx265",
        "-crf",
        12,
        "-preset",
        "ultrafast",
        "-x265-params",
        "log-level=none",
        "-color_trc",
        transfer,
        "-color_primaries",
        "bt2020",
        "-colorspace",
        "bt2020nc",
        path,
    )
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("hdr")
    films = {name: render(folder, name, transfer) for name, transfer in TRANSFERS.items()}
    ffmpeg(
        "-loop",
        1,
        "-i",
        folder / "ordinary.png",
        "-t",
        "0.4",
        "-r",
        25,
        "-pix_fmt",
        "yuv420p",
        folder / "plain.mp4",
    )
    return {**films, "plain": folder / "plain.mp4"}


def off(image: np.ndarray) -> float:
    """The difference of an RGB picture from the ordinary one, in grey levels."""
    assert image.shape == (*SIZE[::-1], 3)
    return float(np.abs(image.astype(int) - ordinary().astype(int)).mean())


def first(path: Path) -> np.ndarray:
    png = ffmpeg("-i", path, "-frames:v", 1, "-f", "image2pipe", "-c:v", "png", "-")
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def test_kept_frames_are_tone_mapped_and_marked(films, tmp_path):
    """Statistics are the same for the whole file and for a span of it."""
    measures: dict[str, list[list[float]]] = {}
    for name, path in films.items():
        for spans, settings in ((None, {}), (None, {"exact": True}), ([(0.0, 0.3)], {})):
            found = run(path, tmp_path, spans, min_clip_seconds=0, frame_quality=100, **settings)
            jpeg = np.frombuffer(found["frames"][0]["jpeg"], np.uint8)
            assert off(cv2.imdecode(jpeg, cv2.IMREAD_COLOR_RGB)) < 8, (name, settings)
            clip = found["split_clips"][0]
            measures.setdefault(name, []).append([clip["sharpness"], clip["brightness"]])
            for table in ("scan_videos", "split_clips"):
                assert found[table][0]["tone_mapped"] is (name != "plain")
    for name, (whole, _, spanned) in measures.items():
        assert spanned == pytest.approx(whole, rel=0.02), name
    assert off(first(films["hdr10"])) > 20  # kept frames before tone mapping


def test_exact_clips_are_tone_mapped_and_copies_are_not(films, tmp_path):
    for name, transfer in TRANSFERS.items():
        for media in ("exact", "copy"):
            request = CutRequest(media, 0.0, 0.4, tmp_path / f"{name}-{media}.mp4")
            [result] = cut_clips(
                films[name],
                [request],
                CutOptions(media, crf=8) if media == "exact" else CutOptions(media),
            )
            assert result.problem is None
            with av.open(str(result.path)) as container:
                frame = next(container.decode(video=0))
            if media == "exact":
                assert off(first(result.path)) < 8
                assert (
                    frame.format.name,
                    frame.color_trc,
                    frame.color_primaries,
                    frame.colorspace,
                ) == ("yuv420p", 1, 1, 1)
            else:
                assert (frame.color_trc, frame.color_primaries) == (
                    {"smpte2084": 16, "arib-std-b67": 18}[transfer],
                    9,
                )


def test_catalog_has_colour_metadata_and_training_frames_are_tone_mapped(films, tmp_path):
    (tmp_path / "recipe.yaml").write_text(
        "stages:\n  download_videos: {min_duration_seconds: null, min_height: null}\n"
        "  split_clips: {min_clip_seconds: 0}\n"
    )
    loaded = load_recipe(
        tmp_path / "recipe.yaml", engine="local", sources=[str(path) for path in films.values()]
    )
    run_recipe(loaded, tmp_path / "dataset")
    with open_catalog(tmp_path / "dataset") as catalog:
        rows = (
            catalog.ask(
                "SELECT v.path, pixel_format, color_transfer, color_primaries, tone_mapped "
                "FROM videos v JOIN clips USING (video_id)"
            )
            .read_all()
            .to_pylist()
        )
    said = {Path(row.pop("path")).stem: tuple(row.values()) for row in rows}
    assert said == {
        "hdr10": ("yuv420p10le", "smpte2084", "bt2020", True),
        "hlg": ("yuv420p10le", "arib-std-b67", "bt2020", True),
        "plain": ("yuv420p", None, None, False),
    }
    for sample in ClipDataset(tmp_path / "dataset", caption=None, frames=1, size=None):
        assert off(sample["video"][0].permute(1, 2, 0).numpy()) < 8


def test_bright_light_is_compressed_and_keeps_its_order_and_hue():
    codes = np.linspace(0, 65535, 200).astype(np.uint16)
    grey = np.repeat(codes[None, :, None], 3, axis=2)
    for is_hlg in (False, True):
        mapped = ToneMap(is_hlg, True, 1000.0)(grey)[0].astype(int)
        assert (np.diff(mapped[:, 1]) >= 0).all()
        assert np.abs(mapped - mapped[:, :1]).max() <= 1
        assert mapped[0].tolist() == [0, 0, 0]
        assert mapped[-1].min() >= 254
    # 100, 300 and 1000 nits of PQ are distinguished.
    nits = np.array([[[33297] * 3, [40808] * 3, [49268] * 3]], np.uint16)
    white, bright, peak = ToneMap(False, True, 1000.0)(nits)[0, :, 0].tolist()
    assert 200 < white < bright - 10 < peak - 10


def test_colours_are_decoded_by_their_declared_matrix_and_range(tmp_path):
    """BT.709 is never read as BT.601, full range never as limited, by any of the readers."""
    for matrix, pixels, codec in (
        ("bt709", "yuv420p", "libx264"),
        ("bt709", "yuvj420p", "libx264"),
        ("smpte170m", "yuv420p", "libx264"),
        ("bt709", "yuv422p10le", "prores_ks"),
    ):
        path = tmp_path / ("film.mov" if codec == "prores_ks" else "film.mp4")
        full = pixels.startswith("yuvj")
        ffmpeg(
            "-f",
            "lavfi",
            "-i",
            "color=0xC83C28:s=64x48:r=25:d=0.2,format=rgb24",
            "-vf",
            f"scale=out_color_matrix={matrix}:out_range={'pc' if full else 'tv'},format={pixels}",
            "-c:v",
            codec,
            "-colorspace",
            matrix,
            "-color_primaries",
            matrix,
            "-color_trc",
            matrix,
            "-color_range",
            "pc" if full else "tv",
            path,
        )
        for spans, settings in ((None, {}), (None, {"exact": True}), ([(0.0, 0.2)], {})):
            found = run(path, tmp_path, spans, min_clip_seconds=0, frame_quality=100, **settings)
            image = cv2.imdecode(
                np.frombuffer(found["frames"][0]["jpeg"], np.uint8), cv2.IMREAD_COLOR_RGB
            )
            assert np.abs(image[24, 32].astype(int) - (0xC8, 0x3C, 0x28)).max() <= 4
