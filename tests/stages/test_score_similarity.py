"""score_similarity: cosines of frame mean and texts, on their own clip; null if there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.tables import TEXT_AT
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.models.vectors import as_column, unit
from clipmill.stages.score_similarity import ScoreSimilarity
from tests.tiny_clip import save_tiny_clip, transformed


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def batch(clips: list[dict[str, Any]]) -> pa.Table:
    rng = np.random.default_rng(3)
    vectors = [unit(rng.normal(size=(clip.get("n", 3), 24))) for clip in clips]
    fine = [
        [{"seconds": float(i), "text": text} for i, text in enumerate(clip["fine"])]
        if clip.get("fine") is not None
        else None
        for clip in clips
    ]
    return pa.table(
        {
            "clip_id": [clip["id"] for clip in clips],
            "embeddings": as_column(vectors),
            "text": pa.array([clip.get("text") for clip in clips], pa.string()),
            "caption_coarse": pa.array([clip.get("coarse") for clip in clips], pa.string()),
            "captions_fine": pa.array(fine, pa.list_(TEXT_AT)),
        }
    )


def test_cosines_of_single_frames_can_be_averaged_instead(model, tmp_path) -> None:
    """The result is lower if a clip's frames differ, and the same for a single frame."""
    table = batch([{"id": "a", "n": 4, "text": "a dog"}, {"id": "b", "n": 1, "text": "a cat"}])
    stages = [
        ScoreSimilarity(model=model, dtype="float32", over_frames=how)
        for how in ("cosine", "direction")
    ]
    single, whole = (transformed(stage, tmp_path, table) for stage in stages)
    for one, text in zip(single, ("a dog", "a cat"), strict=True):
        (frames,) = table.filter(pc.equal(table["clip_id"], one["clip_id"]))[
            "embeddings"
        ].to_pylist()
        towards = stages[0].load("text").embed_texts([text])[0]
        cosines = [np.dot(frame, towards) / np.linalg.norm(frame) for frame in frames]
        assert one["similarity"] == pytest.approx(np.mean(cosines), abs=1e-5)
    assert abs(single[0]["similarity"]) < abs(whole[0]["similarity"])
    assert single[1]["similarity"] == pytest.approx(whole[1]["similarity"], abs=1e-6)


def cosine(stage: ScoreSimilarity, frames: list, *texts: str) -> float:
    mean = np.asarray(frames, float)
    mean = (mean / np.linalg.norm(mean, axis=1, keepdims=True)).mean(axis=0)
    mean /= np.linalg.norm(mean)
    return float(np.mean(stage.load("text").embed_texts(texts) @ mean))


def test_every_scale_is_the_cosine_of_frame_mean_and_text(model, tmp_path) -> None:
    stage = ScoreSimilarity(model=model, dtype="float32")
    clips = [
        {
            "id": f"clip-{i}",
            "n": 1 + i % 4,
            "text": f"summary {i}",
            "coarse": f"coarse {i}",
            "fine": [f"fine {i} {j}" for j in range(3)],
        }
        for i in range(9)
    ]
    table = batch(clips)
    order = np.random.default_rng(0).permutation(9)
    rows = transformed(
        stage, tmp_path, *(table.take(pa.array(order)).slice(i, 4) for i in (0, 4, 8))
    )
    assert [row["clip_id"] for row in rows] == [f"clip-{i}" for i in order]
    for i, row in zip(order, rows, strict=True):
        clip, frames = clips[i], table["embeddings"][int(i)].as_py()
        assert row["similarity"] == pytest.approx(cosine(stage, frames, clip["text"]), abs=1e-4)
        assert row["similarity_coarse"] == pytest.approx(
            cosine(stage, frames, clip["coarse"]), abs=1e-4
        )
        assert row["similarity_fine"] == pytest.approx(
            cosine(stage, frames, *clip["fine"]), abs=1e-4
        )
        assert row["similarity_reason"] is None


def test_text_equal_to_its_frames_scores_one(model, tmp_path) -> None:
    stage = ScoreSimilarity(model=model, dtype="float32")
    vector = stage.load("text").embed_texts(["a red circle"])
    table = batch([{"id": "x", "text": "a red circle"}])
    table = table.set_column(1, "embeddings", as_column([np.repeat(vector, 4, axis=0)]))
    row = transformed(stage, tmp_path, table)[0]
    assert row["similarity"] == pytest.approx(1, abs=1e-3)


def test_missing_text_is_null_with_a_reason(model, tmp_path) -> None:
    rows = {
        row["clip_id"]: row
        for row in transformed(
            ScoreSimilarity(model=model),
            tmp_path,
            batch(
                [
                    {"id": "none"},
                    {"id": "blank", "text": "  ", "fine": []},
                    {"id": "coarse only", "coarse": "a dog"},
                    {"id": "all", "text": "a"},
                ]
            ),
        )
    }
    for key in ("none", "blank", "coarse only"):
        assert rows[key]["similarity"] is None
        assert rows[key]["similarity_reason"] == "the clip has no summarize_captions.caption"
        assert rows[key]["similarity_fine"] is None
        assert rows[key]["error"] is None
    assert rows["coarse only"]["similarity_coarse"] is not None
    assert rows["all"]["similarity_reason"] is None


def test_recipe_without_captions_gives_null_scores(model, tmp_path) -> None:
    table = batch([{"id": "x"}]).select(["clip_id", "embeddings"])
    row = transformed(ScoreSimilarity(model=model), tmp_path, table)[0]
    assert row["similarity"] is None
    assert row["similarity_reason"]


def test_clip_without_embeddings_is_null_with_a_reason(model, tmp_path) -> None:
    row = transformed(
        ScoreSimilarity(model=model), tmp_path, batch([{"id": "x", "n": 0, "text": "a"}])
    )[0]
    assert row["similarity"] is None
    assert "no embedding" in row["similarity_reason"]


def test_non_finite_score_is_null_with_a_reason(model, tmp_path) -> None:
    table = batch([{"id": "x", "text": "a"}])
    table = table.set_column(1, "embeddings", as_column([np.full((2, 24), np.nan)]))
    row = transformed(ScoreSimilarity(model=model), tmp_path, table)[0]
    assert row["similarity"] is None
    assert "not finite" in row["similarity_reason"]


def test_model_other_than_the_embeddings_is_refused(model, tmp_path) -> None:
    stage = ScoreSimilarity(model=model)
    stage.check_upstream({"embed_clips": EmbedClips(model=model)})
    other = EmbedClips(model=save_tiny_clip(tmp_path / "other", seed=5))
    with pytest.raises(ValueError, match="cannot be compared"):
        stage.check_upstream({"embed_clips": other})
    table = batch([{"id": "x", "text": "a"}])
    table = table.set_column(1, "embeddings", as_column([np.ones((1, 8))]))
    with pytest.raises(ClipmillError, match=r"have 8 numbers.*have 24"):
        transformed(stage, tmp_path, table)


def test_labels_are_settings(model) -> None:
    stage = ScoreSimilarity(
        model=model, embeddings="big", caption="split_clips.caption_given", captions="blip"
    )
    assert stage.columns_read() == (
        "big.embeddings",
        "split_clips.caption_given? as text",
        "blip.caption_coarse?",
        "blip.captions_fine?",
    )
    with pytest.raises(ValueError, match="caption"):
        ScoreSimilarity(caption="no_column")
