"""choose_caption: the caption nearest to the frames, and all others with their similarity."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.tables import TEXT_AT
from clipmill.stages.caption_clip import CaptionClip
from clipmill.stages.caption_frames import CaptionFrames
from clipmill.stages.choose_caption import ChooseCaption
from clipmill.stages.models.vectors import as_column
from clipmill.stages.score_similarity import ScoreSimilarity
from tests.tiny_clip import save_tiny_clip, transformed

PLACES = ("a.caption", "b.captions", "c.captions_fine")


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def batch(*clips: dict[str, Any]) -> pa.Table:
    fine = [[{"seconds": 0.0, "text": text} for text in clip.get("fine") or []] for clip in clips]
    return pa.table(
        {
            "clip_id": [clip["id"] for clip in clips],
            "embeddings": as_column([clip["frames"] for clip in clips]),
            "text_0": pa.array([clip.get("one") for clip in clips], pa.string()),
            "text_1": pa.array([clip.get("many") for clip in clips], pa.list_(pa.string())),
            "text_2": pa.array(fine, pa.list_(TEXT_AT)),
        }
    )


def stage(model: Path, **settings: Any) -> ChooseCaption:
    settings = {"captions": PLACES, "dtype": "float32"} | settings
    return ChooseCaption(model=str(model), **settings)


@pytest.fixture(scope="module")
def towards(model):
    """Frames that look like a text."""
    embedder = stage(model).load("text")
    return lambda text: np.stack([embedder.embed_texts([text])[0]] * 2)


def test_best_caption_is_chosen_and_all_are_kept(model, towards, tmp_path):
    texts = {"one": "a dog", "many": ["a cat", "a red car"], "fine": ["rain", "a dog"]}
    clips = [{"id": text, "frames": towards(text), **texts} for text in ("a red car", "a dog")]
    car, dog = transformed(stage(model), tmp_path, batch(*clips))
    assert (car["caption_chosen"], car["chosen_from"]) == ("a red car", "b.captions")
    assert (dog["caption_chosen"], dog["chosen_from"]) == ("a dog", "a.caption")
    assert car["chosen_similarity"] == pytest.approx(1, abs=0.01)
    assert [(one["source"], one["text"]) for one in car["caption_candidates"]] == [
        ("a.caption", "a dog"),
        ("b.captions", "a cat"),
        ("b.captions", "a red car"),
        ("c.captions_fine", "rain"),
    ]
    # As score_similarity has it.
    table = batch(clips[0]).rename_columns(["clip_id", "embeddings", "text", "x", "captions_fine"])
    (same,) = transformed(ScoreSimilarity(model=str(model), dtype="float32"), tmp_path, table)
    assert same["similarity"] == pytest.approx(car["caption_candidates"][0]["similarity"], abs=1e-6)


def test_margin_favours_what_is_named_first(model, towards, tmp_path):
    clip = {"id": "a", "frames": towards("a red car"), "one": "a dog", "many": ["a red car"]}
    (near,) = transformed(stage(model), tmp_path, batch(clip))
    first, second = (one["similarity"] for one in near["caption_candidates"])
    for margin, chosen in ((second - first - 0.01, "a red car"), (second - first + 0.01, "a dog")):
        (row,) = transformed(stage(model, margin=max(0, margin)), tmp_path, batch(clip))
        assert row["caption_chosen"] == chosen


def test_without_a_caption_or_an_embedding_none_is_chosen(model, towards, tmp_path):
    none = {"id": "a", "frames": towards("x"), "one": " "}
    dark = {"id": "b", "frames": np.empty((0, 0)), "one": "a dog"}
    first, second = transformed(stage(model), tmp_path, batch(none, dark))
    assert (first["caption_chosen"], first["caption_candidates"]) == (None, [])
    assert "the clip has none of a.caption" in first["chosen_reason"]
    assert second["caption_candidates"][0]["text"] == "a dog"
    assert second["chosen_reason"] == "embed_clips has no embedding of this clip"


def test_embeddings_of_another_size_end_the_run(model, tmp_path):
    table = batch({"id": "a", "frames": np.ones((1, 7)), "one": "a dog"})
    with pytest.raises(ClipmillError, match=r"7 numbers, those of .* have 24"):
        transformed(stage(model), tmp_path, table)


@pytest.mark.parametrize(
    ("captions", "words"),
    [(["a"], "expected LABEL.COLUMN"), ([], "at least 1 item"), (["a.b", "a.b"], "named twice")],
)
def test_settings_that_make_no_sense_are_refused(captions, words):
    with pytest.raises(ValidationError, match=words):
        ChooseCaption(captions=captions)


def test_candidates_must_be_texts_of_stages_before_it():
    before = {"caption_frames": CaptionFrames(), "one": CaptionClip(fields=["short", "subjects"])}
    fits = ["caption_frames.captions_fine", "one.short", "one.subjects"]
    ChooseCaption(captions=fits).check_upstream(before)
    with pytest.raises(ValueError, match="no stage 'two' comes before it"):
        ChooseCaption(captions=["two.short"]).check_upstream(before)
    with pytest.raises(ValueError, match=r"one.clip_seconds, which is list<.*double>, not texts"):
        ChooseCaption(captions=["one.clip_seconds"]).check_upstream(before)
