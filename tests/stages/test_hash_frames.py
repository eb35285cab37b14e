"""hash_frames: copies keep their hashes, other pictures have other ones, flat ones have none."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
import pyarrow as pa
import pytest

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.tables import FRAME
from clipmill.stages.hash_frames import HASH_BITS, HashFrames, perceptual_hash
from tests.media import SHARED_VIDEOS
from tests.tiny_clip import clips_with_frames, transformed

RECIPE = """
description: Splits and hashes.
stages:
  download_videos: {min_duration_seconds: null, min_height: null}
  split_clips: {}
  hash_frames: {}
"""

# This many frames of each real film are enough.
LONGEST_FRAMES = 90


def picture(seed: int, height: int = 360, width: int = 640) -> np.ndarray:
    """Shapes and grain, like film."""
    rng = np.random.default_rng(seed)
    coarse = cv2.resize(
        rng.integers(0, 256, (9, 16, 3), np.uint8), (width, height), interpolation=cv2.INTER_CUBIC
    )
    grain = rng.normal(0, 6, (height, width, 3))
    return (coarse * 0.8 + 20 + grain).clip(0, 255).astype(np.uint8)


def jpeg(image: np.ndarray, quality: int = 90) -> bytes:
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


def hashed(image: np.ndarray, quality: int = 90) -> int:
    found = perceptual_hash(jpeg(image, quality), min_contrast=4)
    assert found is not None
    return found


def distance(one: int, other: int) -> int:
    return (one ^ other).bit_count()


COPIES = {
    "stronger compression": lambda image: cv2.imdecode(
        np.frombuffer(jpeg(image, 15), np.uint8), cv2.IMREAD_COLOR
    ),
    "a third of the size": lambda image: cv2.resize(
        image, (214, 120), interpolation=cv2.INTER_AREA
    ),
    "other proportions": lambda image: cv2.resize(image, (480, 360)),
    "brighter": lambda image: cv2.convertScaleAbs(image, alpha=1.0, beta=20),
    "less contrast": lambda image: cv2.convertScaleAbs(image, alpha=0.8, beta=10),
    "grey": lambda image: cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR),
}


@pytest.mark.parametrize("copy", COPIES)
def test_copy_differs_in_few_bits(copy: str) -> None:
    for seed in range(12):
        image = picture(seed)
        assert distance(hashed(image), hashed(COPIES[copy](image))) <= 6, seed


def test_different_pictures_differ_in_about_half_of_the_bits() -> None:
    hashes = [hashed(picture(seed)) for seed in range(40)]
    distances = [distance(a, b) for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(distances) > 12
    assert 28 < np.mean(distances) < 36


def test_about_half_of_a_hash_is_set() -> None:
    """Bits compare with the median, and all 64 are used."""
    hashes = [hashed(picture(seed)) for seed in range(40)]
    assert {value.bit_count() for value in hashes} == {HASH_BITS // 2}
    ever, always = 0, (1 << HASH_BITS) - 1
    for value in hashes:
        ever, always = ever | value, always & value
    assert ever == (1 << HASH_BITS) - 1
    assert always == 0


def clips(frames: dict[str, Sequence[bytes]]) -> pa.Table:
    column = [
        [{"frame_number": i, "seconds": i / 2, "jpeg": data} for i, data in enumerate(clip)]
        for clip in frames.values()
    ]
    return pa.table({"clip_id": list(frames), "frames": pa.array(column, pa.list_(FRAME))})


def flat(level: int, noise: float = 2.0) -> bytes:
    rng = np.random.default_rng(level)
    return jpeg((level + rng.normal(0, noise, (180, 320, 3))).clip(0, 255).astype(np.uint8))


def test_flat_frame_has_no_hash_and_a_flat_clip_has_a_reason(tmp_path) -> None:
    """Black frames of different films would match each other without meaning."""
    shown = jpeg(picture(1))
    rows = {
        row["clip_id"]: row
        for row in transformed(
            HashFrames(),
            tmp_path,
            clips(
                {
                    "fades in": [flat(2), shown, shown],
                    "black": [flat(0), flat(3)],
                    "white": [flat(250)],
                }
            ),
        )
    }
    assert rows["fades in"]["frame_hashes"] == [None, hashed(picture(1)), hashed(picture(1))]
    assert rows["fades in"]["frame_hashes_reason"] is None
    for key, said in (("black", "all 2 frames are flat"), ("white", "its only frame is flat")):
        assert rows[key]["frame_hashes"] is None
        assert said in rows[key]["frame_hashes_reason"]
        assert rows[key]["error"] is None


def test_flatness_threshold_is_a_setting(tmp_path) -> None:
    batch = clips({"grain": [flat(100, noise=60)], "picture": [jpeg(picture(1))]})
    for min_contrast, left in ((0, ["grain", "picture"]), (20, ["picture"]), (100, [])):
        rows = transformed(HashFrames(min_contrast=min_contrast), tmp_path, batch)
        assert [row["clip_id"] for row in rows if row["frame_hashes"]] == left


def test_clip_with_broken_or_missing_frames_fails_alone(tmp_path) -> None:
    shown = jpeg(picture(1))
    rows = {
        row["clip_id"]: row
        for row in transformed(
            HashFrames(),
            tmp_path,
            clips(
                {
                    "good": [shown],
                    "broken": [shown, b"\xff\xd8 no picture"],
                    "gone": [],
                    "empty": [b""],
                }
            ),
        )
    }
    assert rows["good"]["error"] is None
    assert len(rows["good"]["frame_hashes"]) == 1
    for key in ("broken", "gone", "empty"):
        assert rows[key]["error"]["kind"] == "bad_media", key
        assert rows[key]["frame_hashes"] is None


def test_hashes_belong_to_their_clip_for_any_batching(tmp_path) -> None:
    batch = clips_with_frames({f"clip-{i}": [3 * i, 3 * i + 1] for i in range(9)})
    whole = transformed(HashFrames(), tmp_path, batch)
    pieces = [batch.slice(start, 2) for start in range(0, 9, 2)]
    assert transformed(HashFrames(), tmp_path, *pieces) == whole
    assert len({tuple(row["frame_hashes"]) for row in whole}) == 9


def transcode(
    source, target, *, height: int, crf: int, skip_frames: int = 0, brighter: int = 0
) -> None:
    """Another H.264 file of the same film, in another size, without its beginning."""
    import av

    with av.open(str(source)) as film, av.open(str(target), "w") as output:
        read = film.streams.video[0]
        stream = output.add_stream(
            "libx264", rate=read.average_rate, options={"crf": str(crf), "preset": "veryfast"}
        )
        width = round(read.width * height / read.height / 2) * 2
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number, frame in enumerate(film.decode(read)):
            if number < skip_frames:
                continue
            if number == LONGEST_FRAMES:
                break
            image = frame.reformat(width, height, "bgr24", threads=1).to_ndarray()
            new = type(frame).from_ndarray(cv2.add(image, (brighter,) * 3 + (0,)), "bgr24")
            new.pts, new.time_base = number - skip_frames, 1 / read.average_rate
            output.mux(stream.encode(new))
        output.mux(stream.encode())


@pytest.mark.slow
@pytest.mark.skipif(
    not SHARED_VIDEOS.is_dir(), reason="the real footage is not next to this checkout"
)
def test_copies_of_real_films_are_found_and_different_films_are_not(tmp_path) -> None:
    """Re-encoded, in other sizes, trimmed and brighter; through a run and near_hashes."""
    from clipmill.jobs.run import run
    from clipmill.pipeline.subsets.near import near_hashes

    films = tmp_path / "films"
    films.mkdir()
    names = (
        "sam2_dog_catch.mp4",
        "dog_eating_14s.mp4",
        "flower_bloom.mp4",
        "intel_car_topview_30s.mp4",
    )
    for name in names:
        source = SHARED_VIDEOS / name
        stem = source.stem
        transcode(source, films / f"{stem}.first.mp4", height=240, crf=20)
        transcode(source, films / f"{stem}.small.mp4", height=144, crf=33)
        transcode(
            source, films / f"{stem}.trimmed.mp4", height=180, crf=26, skip_frames=12, brighter=12
        )
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    loaded = load_recipe(tmp_path / "recipe.yaml", sources=[str(films)], engine="local")
    run(loaded, tmp_path / "dataset")
    with open_catalog(tmp_path / "dataset") as catalog:
        clips = catalog.ask(
            "SELECT parse_filename(path) AS file, clips.start_seconds, frame_hashes, "
            "row_number() OVER (ORDER BY file, clips.start_seconds) - 1 AS rank "
            "FROM clips JOIN videos USING (video_id) ORDER BY rank"
        ).read_all()
    gone = near_hashes(
        clips.select(["rank", "frame_hashes"]).to_reader(), len(clips), max_distance=6
    )
    stays = [
        file for rank, file in enumerate(clips["file"].to_pylist()) if rank not in gone.tolist()
    ]
    # Every clip of the first files stays, and none of the copies, which rank after them.
    assert stays == [file for file in clips["file"].to_pylist() if ".first." in file]
    assert len(stays) >= len(names)
