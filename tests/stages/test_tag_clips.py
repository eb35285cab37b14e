"""tag_clips: the vocabulary's tags by score, with equal results from frames and embeddings."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.models.embedders import ClipEmbedder
from clipmill.stages.models.vectors import as_column, stored, unit
from clipmill.stages.tag_clips import SHIPPED_VOCABULARY, TagClips, read_vocabulary
from tests.tiny_clip import clips_with_frames, save_tiny_clip, transformed

TAGS = ["dog", "cat", "a red circle", "waterfall"]
CLIPS = {"one": [1, 2], "two": [3], "three": [4, 5, 6]}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture
def settings(model, tmp_path) -> dict:
    (tmp_path / "tags.txt").write_text(
        "# animals\ndog\ncat\n\na red circle  # a shape\ndog\nwaterfall\n"
    )
    return {
        "model": model,
        "vocabulary": tmp_path / "tags.txt",
        "dtype": "float32",
        "min_score": -1,
    }


def cosines(model: Path, seeds: list[int], template: str) -> np.ndarray:
    embedder = TagClips(model=model, dtype="float32").load("image", "text")
    frames = clips_with_frames({"x": seeds})["frames"][0].as_py()
    images = embedder.embed_images([frame["jpeg"] for frame in frames])
    return images @ embedder.embed_texts([template.replace("{tag}", tag) for tag in TAGS]).T


def tags_of(rows: list[dict]) -> dict[str, dict[str, float]]:
    return {row["clip_id"]: {tag["tag"]: tag["score"] for tag in row["tags"]} for row in rows}


@pytest.mark.parametrize("over_frames", ["mean", "max"])
def test_cosine_scores_compare_frames_and_texts(settings, model, tmp_path, over_frames):
    stage = TagClips(**settings, scores="cosine", over_frames=over_frames, templates="see {tag}")
    rows = tags_of(transformed(stage, tmp_path, clips_with_frames(CLIPS)))
    for key, seeds in CLIPS.items():
        expected = getattr(np, over_frames)(cosines(model, seeds, "see {tag}"), axis=0)
        assert rows[key] == pytest.approx(dict(zip(TAGS, expected, strict=True)), abs=1e-4)
        assert list(rows[key].values()) == sorted(rows[key].values(), reverse=True)


def test_softmax_scores_of_the_whole_vocabulary_sum_to_one(settings, model, tmp_path) -> None:
    rows = tags_of(transformed(TagClips(**settings), tmp_path, clips_with_frames(CLIPS)))
    scale = ClipEmbedder(TagClips(model=model).model, setting="s.model").logit_scale
    raised = np.exp(scale * cosines(model, CLIPS["one"], "a photo of {tag}."))
    expected = (raised / raised.sum(axis=1, keepdims=True)).mean(axis=0)
    assert rows["one"] == pytest.approx(dict(zip(TAGS, expected, strict=True)), abs=1e-4)
    assert sum(rows["three"].values()) == pytest.approx(1)


def test_top_k_and_min_score_keep_the_best(settings, tmp_path) -> None:
    batch = clips_with_frames(CLIPS)
    everything = tags_of(transformed(TagClips(**settings), tmp_path, batch))["one"]
    best = list(everything)
    two = tags_of(transformed(TagClips(**settings, top_k=2), tmp_path, batch))["one"]
    assert list(two) == best[:2]
    least = (everything[best[0]] + everything[best[1]]) / 2
    above = TagClips(**{**settings, "min_score": least})
    assert list(tags_of(transformed(above, tmp_path, batch))["one"]) == best[:1]
    none = TagClips(**{**settings, "min_score": 1.1})
    assert transformed(none, tmp_path, batch)[0]["tags"] == []


def test_several_templates_are_averaged(settings, model, tmp_path) -> None:
    templates = ["a photo of {tag}.", "{tag}"]
    stage = TagClips(**settings, templates=templates, scores="cosine")
    rows = tags_of(transformed(stage, tmp_path, clips_with_frames({"x": [1]})))
    embedder = stage.load("image", "text")
    image = embedder.embed_images([clips_with_frames({"x": [1]})["frames"][0].as_py()[0]["jpeg"]])
    texts = [embedder.embed_texts([t.replace("{tag}", tag) for t in templates]) for tag in TAGS]
    expected = unit(np.stack(texts).mean(axis=1)) @ image[0]
    assert rows["x"] == pytest.approx(dict(zip(TAGS, expected, strict=True)), abs=1e-4)


def test_stored_embeddings_give_the_same_tags_without_frames(settings, model, tmp_path) -> None:
    batch = clips_with_frames(CLIPS)
    embedded = transformed(EmbedClips(model=model, dtype="float32"), tmp_path, batch)
    vectors = [np.asarray(row["embeddings"]) for row in embedded]
    stage = TagClips(**settings, embeddings="embed_clips")
    assert stage.frames_picked() == ()
    assert stage.columns_read() == ("embed_clips.embeddings",)
    batch_of_vectors = pa.table({"clip_id": list(CLIPS), "embeddings": as_column(vectors)})
    again = tags_of(transformed(stage, tmp_path, batch_of_vectors))
    expected = tags_of(transformed(TagClips(**settings), tmp_path, batch))
    for key in CLIPS:
        assert again[key] == pytest.approx(expected[key], abs=1e-2)


def test_embeddings_of_another_model_are_refused(settings, model, tmp_path) -> None:
    """Before the run by their reference, during it by their length."""
    stage = TagClips(**settings, embeddings="embed_clips")
    other = EmbedClips(model=save_tiny_clip(tmp_path / "other", dimensions=8, seed=9))
    stage.check_upstream({"embed_clips": EmbedClips(model=model)})
    with pytest.raises(ValueError, match="cannot be compared"):
        stage.check_upstream({"embed_clips": other})
    TagClips(**settings).check_upstream({"embed_clips": other})
    batch = pa.table({"clip_id": ["x"], "embeddings": as_column([np.ones((1, 8))])})
    with pytest.raises(ClipmillError, match=r"have 8 numbers.*have 24"):
        transformed(stage, tmp_path, batch)
    assert stored(batch["embeddings"])[0].shape == (1, 8)


def test_clip_without_frames_fails(settings, tmp_path) -> None:
    rows = transformed(TagClips(**settings), tmp_path, clips_with_frames({"gone": [], "a": [1]}))
    assert {row["clip_id"]: row["error"] and row["error"]["kind"] for row in rows} == {
        "gone": "bad_media",
        "a": None,
    }


def test_vocabularies_are_read_without_duplicates_and_comments(settings, tmp_path) -> None:
    assert read_vocabulary(tmp_path / "tags.txt") == TAGS
    (tmp_path / "none.txt").write_text("# nothing\n\n")
    for path, message in [(tmp_path / "none.txt", "contains no tags"), (tmp_path / "no", "cannot")]:
        with pytest.raises(UsageError, match=message):
            read_vocabulary(path)


def test_fingerprint_depends_on_the_shipped_vocabularys_content(settings, model) -> None:
    tags = read_vocabulary(SHIPPED_VOCABULARY)
    assert 300 <= len(tags) <= 600
    shipped = TagClips(model=model).identity()["vocabulary"]
    assert shipped.startswith("sha256:")
    assert TagClips(**settings).identity()["vocabulary"] != shipped
    assert TagClips(model=model, vocabulary=SHIPPED_VOCABULARY).identity()["vocabulary"] == shipped


def test_template_without_a_placeholder_is_refused(model) -> None:
    with pytest.raises(ValueError, match=r"lacks \{tag\}"):
        TagClips(model=model, templates=["a photo"])
