"""Texts beyond a scorer's context are counted, flagged, and by choice scored in sentences."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from clipmill.stages.models.long_texts import divided
from clipmill.stages.models.sentences import sentences
from clipmill.stages.models.vectors import as_column, unit
from clipmill.stages.score_similarity import ScoreSimilarity
from tests.tiny_clip import save_tiny_clip, transformed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog runs. It barks!  Why? ", ["A dog runs.", "It barks!", "Why?"]),
        # Captioners often write small letters only.
        ("a dog runs. a cat sits", ["a dog runs.", "a cat sits"]),
        (
            "Dr. J. Smith meets Mr. Lee, e.g. at No. 3.5 St. John's. They talk",
            ["Dr. J. Smith meets Mr. Lee, e.g. at No. 3.5 St. John's.", "They talk"],
        ),
        (
            "At 5 p.m. the U.S. team wins. Cups, balls, etc. They go.",
            ["At 5 p.m. the U.S. team wins.", "Cups, balls, etc.", "They go."],
        ),
        ('He says "Stop." She stops.', ['He says "Stop."', "She stops."]),
        ("He waits... then runs… Then stops.", ["He waits... then runs…", "Then stops."]),
        ("1. A dog\n- a cat.\n\n  A man", ["A dog", "a cat.", "A man"]),
        ("一只狗在跑。它很快！", ["一只狗在跑。", "它很快！"]),
        ("...", []),
        ("", []),
    ],
)
def test_sentences_end_where_a_reader_would_end_them(text, expected) -> None:
    assert sentences(text) == expected


class Words:
    """Counts words, and reads four of them."""

    context = 4

    def token_counts(self, texts):
        return [len(text.split()) for text in texts]


LONG = "One two three. Four five. Six seven eight nine ten."


def test_only_texts_that_are_too_long_are_divided() -> None:
    found = divided(["One two. Three", LONG], Words(), "best")
    assert found["One two. Three"].parts == ("One two. Three",)
    assert not found["One two. Three"].truncated
    assert found[LONG].parts == ("One two three.", "Four five.", "Six seven eight nine ten.")
    assert found[LONG].tokens == 10
    assert found[LONG].truncated  # its last sentence still is
    scores = dict(zip(found[LONG].parts, (0.1, 0.5, 0.3), strict=True))
    assert found[LONG].score(scores, "best") == 0.5
    assert found[LONG].score(scores, "mean") == pytest.approx(0.3)
    whole = divided([LONG], Words(), "truncate", sentence_scores=True)[LONG]
    assert whole.parts == (LONG,)
    assert whole.truncated
    assert whole.scored == [LONG, *found[LONG].parts]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"), context=8)


CAPTION = "A red circle moves left. A dog runs over the wet grass. It barks."


def scored(model, folder, **settings) -> dict:
    vectors = unit(np.random.default_rng(0).normal(size=(3, 24)))
    table = pa.table(
        {
            "clip_id": ["x"],
            "embeddings": as_column([vectors]),
            "text": pa.array([CAPTION], pa.string()),
            "caption_coarse": pa.array(["a dog"], pa.string()),
        }
    )
    (row,) = transformed(ScoreSimilarity(model=model, dtype="float32", **settings), folder, table)
    return row


def cosines(model, folder, *texts: str) -> list[float]:
    embedder = ScoreSimilarity(model=model, dtype="float32").load("text")
    frames = unit(np.random.default_rng(0).normal(size=(3, 24)).astype(np.float32))
    return (embedder.embed_texts(texts) @ unit(frames.mean(axis=0))).tolist()


def test_long_captions_are_flagged_and_scored_in_sentences_by_choice(model, tmp_path) -> None:
    parts = sentences(CAPTION)
    whole, *single = cosines(model, tmp_path, CAPTION, *parts)
    row = scored(model, tmp_path)
    assert row["similarity"] == pytest.approx(whole, abs=1e-3)
    assert row["similarity_text_tokens"] == 20
    assert row["similarity_truncated"]
    assert row["similarity_coarse_truncated"] is False
    assert row["similarity_fine_truncated"] is None
    assert row["similarity_sentences"] is None
    mean = scored(model, tmp_path, long_text="mean")
    assert mean["similarity"] == pytest.approx(np.mean(single), abs=1e-3)
    assert mean["similarity_truncated"]  # the second sentence has ten tokens
    assert mean["similarity_coarse"] == pytest.approx(row["similarity_coarse"], abs=1e-6)
    best = scored(model, tmp_path, long_text="best", sentence_scores=True)
    assert best["similarity"] == pytest.approx(max(single), abs=1e-3)
    assert [one["text"] for one in best["similarity_sentences"]] == parts
    np.testing.assert_allclose(
        [one["score"] for one in best["similarity_sentences"]], single, atol=1e-3
    )


def test_default_settings_leave_a_stages_identity_as_it_was(model) -> None:
    known = set(ScoreSimilarity(model=model).identity())
    assert known == {"model"}
    assert set(ScoreSimilarity(model=model, long_text="best").identity()) == {"model", "long_text"}
