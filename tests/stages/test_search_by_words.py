"""Searches by words: the model that made the embeddings of texts or frames embeds them."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

import clipmill
from clipmill.schemas.errors import ClipmillError
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.embed_texts import EmbedTexts
from tests.in_process import heard
from tests.pipeline.subsets.test_embeddings_of_kinds import texts, with_identity
from tests.scored_catalog import Clip, build, embeddings
from tests.sentence_folders import save_sentence_model
from tests.synthetic import write_shard
from tests.tiny_clip import clips_with_frames, save_tiny_clip, transformed


def test_words_find_the_closest_texts(tmp_path, capfd):
    """With the model that the record names, which must still be the same."""
    model = save_sentence_model(tmp_path / "model", {}, prompts={"query": "red "})
    stage = EmbedTexts(model=model, text="summarize_captions.caption")
    captions = ["a dog", "a red circle", "a blue square moves right", "red star is above"]
    clips = [Clip(f"generic-v{i}", 0.0, 1.0, caption=text) for i, text in enumerate(captions)]
    table = pa.table({"clip_id": [clip.id for clip in clips], "text": captions})
    for clip, row in zip(clips, transformed(stage, tmp_path, table), strict=True):
        clip.vectors_of["embed_texts"] = row["embeddings"]
    dataset = build(tmp_path / "dataset", clips, [texts()])
    settings = stage.model_dump(mode="json")
    with_identity(dataset, "embed_texts", "model", stage.identity()["model"], **settings)
    with clipmill.open(dataset) as opened:
        found = opened.search("star is above")
        assert found[0]["caption"] == captions[3]  # with the prompt for queries the same text
        assert found[0]["search_cosine"] == pytest.approx(1, abs=1e-3)
        assert found[0]["search_seconds"] is None
        assert len(found) == 4
        assert len(opened.search("star is above", where="caption LIKE '%red%'")) == 2
    done = heard(capfd, "search", dataset, "star", "is", "above", "--limit", 1)
    assert captions[3] in done.stdout
    (model / "config.json").write_text((model / "config.json").read_text() + "\n")
    with (
        clipmill.open(dataset) as opened,
        pytest.raises(ClipmillError, match="is not what it was when the embeddings were made"),
    ):
        opened.search("a dog")


def test_words_find_the_closest_frames(tmp_path):
    """By a model of pictures and texts: the clip's best frame counts, and says when it is."""
    stage = EmbedClips(model=save_tiny_clip(tmp_path / "clip"), dtype="float32")
    clips = [Clip(f"generic-v{i}", 0.0, 3.0) for i in range(8)]
    frames = {clip.id: [10 * i + j for j in range(1 + i % 3)] for i, clip in enumerate(clips)}
    rows = transformed(stage, tmp_path, clips_with_frames(frames))
    dataset = build(tmp_path / "dataset", clips, [embeddings()], shards=1)
    settings = stage.model_dump(mode="json")
    with_identity(dataset, "embed_clips", "model", stage.identity()["model"], **settings)
    write_shard(dataset, "embed_clips", "embed_clips-1", "000000", rows, stage.table_schema)
    words = stage.load("text").embed_texts(["a dog runs"])[0]
    cosines = [np.array(row["embeddings"]) @ words for row in rows]
    with clipmill.open(dataset) as opened:
        found = opened.search("a dog runs", limit=3)
    order = sorted(range(len(rows)), key=lambda i: -cosines[i].max())
    assert [row["clip_id"] for row in found] == [rows[i]["clip_id"] for i in order[:3]]
    for row, i in zip(found, order, strict=False):
        assert row["search_cosine"] == pytest.approx(cosines[i].max(), abs=2e-3)
        assert row["search_seconds"] == rows[i]["embedding_seconds"][int(cosines[i].argmax())]
