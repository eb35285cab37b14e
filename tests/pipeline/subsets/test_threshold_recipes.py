"""Ready-made recipes that consist of thresholds keep the clips between the published numbers.

Most of their columns come from stages of one's own; here they are given.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from math import ceil, floor
from pathlib import Path
from typing import Any

import pytest

import clipmill
from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, names
from clipmill.schemas.errors import UsageError
from tests.pipeline.subsets.test_ready_made import CASES, WITHOUT_SCORERS
from tests.scored_catalog import (
    Clip,
    Made,
    aesthetic,
    build,
    embeddings,
    own,
    random_clips,
    similarity,
)

INF = math.inf
B32 = "open_clip:ViT-B-32/openai"
DATA_JUICER = {
    "nsfw": (-INF, 0.000195383),
    "similarity": (0.306337, INF),
    "flow_farneback": (3, 20),
    "aesthetic": (4.18164, INF),
    "seconds": (2, INF),
}
# By recipe, the span of each column; "seconds" is the clip's length.
BOUNDS: dict[str, dict[str, tuple[float, float]]] = {
    "koala-36m": {"vtss": (2.5, INF)},
    "goku-480": {
        "aesthetic": (4.3, INF),
        "text_area": (-INF, 0.02),
        "flow_raft": (0.3, 20),
        "dino_similarity": (0.85, INF),
    },
    "goku-720": {
        "aesthetic": (4.5, INF),
        "text_area": (-INF, 0.01),
        "flow_raft": (0.5, 15),
        "dino_similarity": (0.9, INF),
    },
    "goku-1080": {
        "aesthetic": (4.5, INF),
        "text_area": (-INF, 0.01),
        "flow_raft": (0.5, 8),
        "dino_similarity": (0.9, INF),
    },
    "movie-gen": {
        "seconds": (4, 120),
        "shots_per_second": (-INF, 0.85),
        "aesthetic": (4, INF),
        "vmaf_motion": (2, INF),
        "motion_vectors_pixels": (0.5, 7),
        "cluster": (-INF, INF),
    },
    "data-juicer-evolution": DATA_JUICER,
    "data-juicer-msrvtt": {
        "aesthetic": (3.18, INF),
        "similarity": (0.166, INF),
        "nsfw": (-INF, 0.348),
        "watermark": (-INF, 0.965),
    },
    "spatialvid": {
        "seconds": (3, 15),
        "aesthetic": (4, INF),
        "luminance": (20, 140),
        "vmaf_motion": (2, 14),
        "text_area": (-INF, 0.3),
    },
    "ultravideo": {
        "bad_frame_share": (-INF, 0.05),
        "vtss": (0.01, INF),
        "flow_raft": (0.1, 100),
        "videoclip_xl": (0.2, INF),
    },
    "open-sora-plan": {
        "lpips_motion": (0.001, 0.3),
        "aesthetic": (4.75, INF),
        "dover_technical": (0, INF),
    },
    "lvd-2m": {"seconds": (10, INF), "flow_raft": (20, INF)},
}
# The clips here have 720 lines; all concepts stay.
PARAMETERS: dict[str, dict[str, Any]] = {
    "goku-1080": {"min_height": 720},
    "movie-gen": {"min_side": 720, "kept_by_concept": 1.0},
}
SHARES = {"openvid-1m"}
FROM_FILES = {"open-sora-2"}
FROM_CLUSTERS = {"nemo-semdedup"}
FRAMES = {"data-juicer-evolution": 3, "data-juicer-msrvtt": 3, "spatialvid": 3}


def around(low: float, high: float) -> tuple[float, float]:
    """A range of values of which about half are in the span, if it has an end."""
    if low == -INF and high == INF:
        return 0.0, 9.0
    low = max(low, high - 10) if high < INF else low
    high = min(high, low + 10)
    half = (high - low) / 2
    return low - half, high + half


def write_catalog(
    dataset: Path, name: str, bounds: Mapping[str, tuple[float, float]]
) -> list[Clip]:
    columns = {column: around(*span) for column, span in bounds.items() if column != "seconds"}
    clips = random_clips(300, columns)
    for number, clip in enumerate(clips):  # no two look alike
        clip.vectors = [[float(number == place) for place in range(len(clips))]]
    frames = FRAMES.get(name, 4)
    made = [embeddings(frames=frames)]
    for column in columns:
        if column == "aesthetic":
            made.append(aesthetic(over="mean"))
        elif column == "similarity":
            made.append(embeddings("embed_b32", B32, frames))
            made.append(similarity(model=B32, over="cosine", reads="embed_b32"))
        else:
            made.append(own(column))
    build(dataset, clips, made, shards=1)
    return clips


def kept(dataset: Path, recipe: str, **parameters: Any) -> set[str]:
    with clipmill.open(dataset) as opened:
        subset = opened.create_subset(recipe, name="kept", **parameters)
        rows = opened.sql(f"SELECT clip_id FROM subset_clips WHERE name = '{subset.name}'")
        return {clip for (clip,) in rows.fetchall()}


def passes(clip: Clip, bounds: Mapping[str, tuple[float, float]]) -> bool:
    values = {**clip.values, "seconds": clip.seconds}
    return all(
        (value := values[name]) is not None and low <= value <= high
        for name, (low, high) in bounds.items()
    )


def test_all_recipes_are_in_one_of_the_tests():
    here = {*BOUNDS, *SHARES, *FROM_FILES, *FROM_CLUSTERS}
    assert here | {case.recipe for case in CASES} | WITHOUT_SCORERS == set(names(SUBSET_FOLDER))


@pytest.mark.parametrize("name", BOUNDS)
def test_recipe_keeps_what_lies_between_its_thresholds(name, tmp_path):
    clips = write_catalog(tmp_path, name, BOUNDS[name])
    expected = {clip.id for clip in clips if passes(clip, BOUNDS[name])}
    assert 0 < len(expected) < len(clips)
    assert kept(tmp_path, name, **PARAMETERS.get(name, {})) == expected


def test_openvid_keeps_shares(tmp_path):
    columns = ("aesthetic", "frame_similarity", "flow_unimatch", "dover_technical")
    clips = write_catalog(tmp_path, "openvid-1m", dict.fromkeys(columns, (0.0, 1.0)))
    left = clips
    for column, (low, high) in zip(
        columns, ((0.8, 1.0), (0.05, 0.95), (0.05, 0.95), (0.7, 1.0)), strict=True
    ):
        left = [clip for clip in left if clip.values[column] is not None]
        left.sort(key=lambda clip: clip.values[column])
        left = left[floor(len(left) * low + 1e-9) : ceil(len(left) * high - 1e-9)]
    assert kept(tmp_path, "openvid-1m") == {clip.id for clip in left} != set()


def test_open_sora_2_reads_properties_of_files(tmp_path):
    pixels = 1280 * 720 * 25 * 60
    videos = {
        "generic-good": {"size_bytes": ceil(0.0025 * pixels)},
        "generic-few-bits": {"size_bytes": floor(0.0025 * pixels) - 1},
        "generic-size-unknown": {"size_bytes": None},
    }
    clips = [Clip(video, 0.0, end) for video in videos for end in (1.9, 2.0, 8.0, 8.1)]
    build(tmp_path, clips, [], videos=videos, shards=1)
    assert kept(tmp_path, "open-sora-2") == {"generic-good-0-2000", "generic-good-0-8000"}
    with pytest.raises(UsageError, match="removes the last"):
        kept(tmp_path, "open-sora-2", max_aspect=1.5)


def test_nemo_keeps_the_farthest_of_near_clips_in_a_cluster(tmp_path):
    near, other = [1.0, 0.01], [0.0, 1.0]
    given = [
        (0, 0.2, near),
        (0, 0.3, [1.0, 0.0]),
        (0, 0.1, other),
        (1, 0.1, near),
        (None, None, near),
    ]
    clips = [
        Clip(f"generic-{i}", 0.0, 1.0, values={"cluster": number, "cluster_distance": away})
        for i, (number, away, _) in enumerate(given)
    ]
    for clip, (_, _, vector) in zip(clips, given, strict=True):
        clip.vectors = [vector]
    with pytest.raises(UsageError, match=r"cluster_clips\.embeddings=embed_clips"):
        kept(build(tmp_path / "without", clips, [embeddings()]), "nemo-semdedup")
    made = [embeddings(), Made("cluster_clips", "cluster_clips")]
    build(tmp_path / "dataset", clips, made, shards=2)
    assert kept(tmp_path / "dataset", "nemo-semdedup") == {clip.id for clip in clips[1:]}
