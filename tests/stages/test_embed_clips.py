"""embed_clips: every embedding on its own clip, of length 1, or a failure with a reason."""

from __future__ import annotations

import pickle

import numpy as np
import pyarrow as pa
import pytest

from clipmill.schemas.errors import RowFailed
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.media.read.sampling import target_seconds
from clipmill.stages.models.vectors import as_column, frame_mean, stored, unit
from clipmill.stages.protocol import Uniform
from tests.tiny_clip import clips_with_frames, save_tiny_clip, transformed


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> EmbedClips:
    return EmbedClips(model=save_tiny_clip(tmp_path_factory.mktemp("clip")), dtype="float32")


CLIPS = {f"clip-{i}": [10 * i + j for j in range(1 + i % 4)] for i in range(12)}


def test_embeddings_belong_to_their_clip_for_any_batching(stage, tmp_path) -> None:
    """A single frame gives the same embedding as within other clips, batches and orders."""
    batch = clips_with_frames(CLIPS)
    whole = {row["clip_id"]: row for row in transformed(stage, tmp_path, batch)}
    assert set(whole) == set(CLIPS)
    order = np.random.default_rng(0).permutation(len(CLIPS))
    shuffled = batch.take(pa.array(order))
    pieces = [shuffled.slice(start, 5) for start in range(0, len(CLIPS), 5)]
    other = stage.model_copy(update={"batch_images": 3})
    for row in transformed(other, tmp_path, *pieces):
        expected = whole[row["clip_id"]]
        assert row["embedding_seconds"] == [i / 2 for i in range(len(CLIPS[row["clip_id"]]))]
        np.testing.assert_allclose(row["embeddings"], expected["embeddings"], atol=2e-3)
    alone = transformed(stage, tmp_path, clips_with_frames({"x": [CLIPS["clip-7"][2]]}))
    np.testing.assert_allclose(
        alone[0]["embeddings"][0], whole["clip-7"]["embeddings"][2], atol=2e-3
    )
    vectors = np.concatenate([np.asarray(row["embeddings"], float) for row in whole.values()])
    similar = unit(vectors) @ unit(vectors).T
    assert (similar.argmax(axis=1) == np.arange(len(vectors))).all()


def test_embeddings_have_length_one_as_half_floats(stage, tmp_path) -> None:
    rows = transformed(stage, tmp_path, clips_with_frames(CLIPS))
    for row in rows:
        np.testing.assert_allclose(np.linalg.norm(row["embeddings"], axis=1), 1, atol=2e-3)


def test_frame_similarity_is_the_smallest_cosine_of_neighbours(stage, tmp_path) -> None:
    assert "frame_similarity" not in stage.table_schema.names
    also = EmbedClips(model=stage.model, dtype="float32", frame_similarity=True)
    assert EmbedClips.table_of(also.model_dump()) == also.table_schema
    for row in transformed(also, tmp_path, clips_with_frames({**CLIPS, "gone": []})):
        vectors = np.asarray(row["embeddings"] or [[1.0]], float)
        if len(vectors) == 1:
            assert row["frame_similarity"] is None
        else:
            expected = (vectors[1:] * vectors[:-1]).sum(axis=1).min()
            assert row["frame_similarity"] == pytest.approx(expected, abs=3e-3)


def test_clip_without_frames_fails_and_the_others_are_kept(stage, tmp_path) -> None:
    rows = {
        row["clip_id"]: row
        for row in transformed(
            stage, tmp_path, clips_with_frames({"a": [1], "gone": [], "b": [2, 3]})
        )
    }
    assert rows["gone"]["error"]["kind"] == "bad_media"
    assert rows["gone"]["embeddings"] is None
    assert [len(rows[key]["embeddings"]) for key in "ab"] == [1, 2]
    assert rows["a"]["error"] is None
    assert len(transformed(stage, tmp_path, clips_with_frames({"gone": []}))) == 1


def test_invalid_frame_is_bad_media(stage, tmp_path) -> None:
    batch = clips_with_frames({"a": [1]})
    broken = batch["frames"].to_pylist()
    broken[0][0]["jpeg"] = b"no image"
    batch = batch.set_column(1, "frames", pa.array(broken, batch.schema.field("frames").type))
    with pytest.raises(RowFailed, match="not an image") as caught:
        transformed(stage, tmp_path, batch)
    assert caught.value.kind == "bad_media"


def test_stage_requests_evenly_spread_frames(stage) -> None:
    assert stage.frames_picked() == (Uniform(4),)
    assert EmbedClips(frames_per_clip=8).frames_picked() == (Uniform(8),)
    assert target_seconds(stage.frames_picked()[0], 0, 8) == [1, 3, 5, 7]
    assert pickle.loads(pickle.dumps(stage)) == stage


def test_other_weights_have_another_fingerprint(tmp_path) -> None:
    one = EmbedClips(model=save_tiny_clip(tmp_path / "one", seed=1))
    other = EmbedClips(model=save_tiny_clip(tmp_path / "two", seed=2))
    moved = EmbedClips(model=save_tiny_clip(tmp_path / "three", seed=1), batch_images=5)
    assert one.identity() != other.identity()
    assert one.identity() == moved.identity()


def test_vector_columns_round_trip() -> None:
    rng = np.random.default_rng(0)
    clips = [unit(rng.normal(size=(n, 6))) for n in (2, 0, 3)]
    column = as_column(clips)
    read = stored(pa.chunked_array([column.slice(0, 1), column.slice(1)]))
    assert [len(clip) for clip in read] == [2, 0, 3]
    for before, after in zip(clips, read, strict=True):
        if len(before):
            np.testing.assert_allclose(after, before, atol=1e-3)
    assert stored(pa.array([None], column.type))[0].shape == (0, 0)
    assert len(as_column([])) == 0


def test_frame_mean_weighs_frames_equally_and_has_length_one() -> None:
    np.testing.assert_allclose(frame_mean(np.array([[1.0, 0], [0, 1.0]])), [2**-0.5, 2**-0.5])
    assert not unit(np.zeros((1, 3))).any()
