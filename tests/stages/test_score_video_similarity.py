"""score_video_similarity: a model's cosine of each clip and its text, on its own clip."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.caption_frames import CaptionFrames
from clipmill.stages.models.torch_setup import prepare_torch
from clipmill.stages.models.video_text.from_transformers import XCLIP
from clipmill.stages.protocol import Starts, Uniform
from clipmill.stages.score_similarity import ScoreSimilarity
from clipmill.stages.score_video_similarity import ScoreVideoSimilarity
from tests.tiny_clip import clips_with_frames, transformed

CLIPS = {f"clip-{i}": [10 * i + j for j in range(4)] for i in range(5)}
WORDS = ["a", "red", "circle", "dog", "moves", "left", "right", "fast"]


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A random X-CLIP of four frames, with a tokenizer of eight words."""
    prepare_torch()
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, XCLIPConfig, XCLIPModel

    folder = tmp_path_factory.mktemp("xclip")
    torch.manual_seed(0)
    end = len(WORDS) + 2
    config = XCLIPConfig(
        projection_dim=24,
        prompt_num_attention_heads=2,
        prompt_layers=1,
        text_config={
            "vocab_size": end + 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 12,
            "eos_token_id": end,
            "bos_token_id": end,
            "pad_token_id": 0,
        },
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "mit_hidden_size": 24,
            "mit_intermediate_size": 24,
            "mit_num_hidden_layers": 1,
            "mit_num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
            "num_frames": 4,
        },
    )
    made = XCLIPModel(config)
    with torch.no_grad():
        # As published, the prompts start at almost nothing and frames hardly count.
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    made.save_pretrained(folder)
    vocabulary = {"<pad>": 0, "<unk>": 1, **{w: i + 2 for i, w in enumerate(WORDS)}, "<end>": end}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <end>", special_tokens=[("<end>", end)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    ).save_pretrained(folder)
    return folder


def batch(clips: dict[str, list[int]], texts: list[str | None]) -> pa.Table:
    return clips_with_frames(clips).append_column("text", pa.array(texts, pa.string()))


def test_every_clip_has_the_models_cosine_with_its_own_text(model, tmp_path) -> None:
    import torch
    from transformers import AutoTokenizer, XCLIPModel

    from clipmill.stages.media.read.images import decode_jpeg, to_batch

    texts = [
        "a red circle moves left",
        "a dog",
        "a circle moves right fast",
        "dog dog",
        "red " * 40,
    ]
    table = batch(CLIPS, texts)
    stage = ScoreVideoSimilarity(model=model, dtype="float32", frames_per_clip=4, batch_clips=2)
    rows = transformed(stage, tmp_path, table.take(pa.array([3, 0, 4, 2, 1])))
    assert [row["clip_id"] for row in rows] == [f"clip-{i}" for i in (3, 0, 4, 2, 1)]
    own, tokenizer = XCLIPModel.from_pretrained(model).eval(), AutoTokenizer.from_pretrained(model)
    for row in rows:
        i = int(row["clip_id"][-1])
        frames = [decode_jpeg(f["jpeg"]) for f in table["frames"][i].as_py()]
        pixels = to_batch(
            frames, (32, 32), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), "crop", "bilinear"
        )
        tokens = tokenizer([texts[i]], truncation=True, max_length=12, return_tensors="pt")
        with torch.inference_mode():
            out = own(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                pixel_values=torch.from_numpy(pixels)[None],
            )
        expected = out.logits_per_video[0, 0].item() / np.exp(own.logit_scale.item())
        assert row["video_similarity"] == pytest.approx(expected, abs=1e-4)
    assert np.ptp([row["video_similarity"] for row in rows]) > 1e-3


def test_the_order_of_frames_counts(model, tmp_path) -> None:
    stage = ScoreVideoSimilarity(model=model, dtype="float32")
    rows = transformed(
        stage, tmp_path, batch({"on": [1, 2, 3, 4], "back": [4, 3, 2, 1]}, ["a dog"] * 2)
    )
    assert abs(rows[0]["video_similarity"] - rows[1]["video_similarity"]) > 1e-6


def test_too_few_frames_are_repeated(model, tmp_path) -> None:
    rows = transformed(
        ScoreVideoSimilarity(model=model, dtype="float32"),
        tmp_path,
        batch({"two": [1, 2], "four": [1, 1, 2, 2]}, ["a dog"] * 2),
    )
    assert rows[0]["video_similarity"] == pytest.approx(rows[1]["video_similarity"], abs=1e-5)


def test_missing_caption_is_null_and_missing_frames_a_failure(model, tmp_path) -> None:
    stage = ScoreVideoSimilarity(model=model)
    rows = {
        row["clip_id"]: row
        for row in transformed(
            stage, tmp_path, batch({"mute": [1], "gone": [], "good": [2]}, [None, "a dog", "a dog"])
        )
    }
    assert rows["mute"]["video_similarity"] is None
    assert rows["mute"]["video_similarity_reason"] == "the clip has no summarize_captions.caption"
    assert rows["gone"]["error"]["kind"] == "bad_media"
    assert rows["good"]["video_similarity"] is not None
    without = transformed(stage, tmp_path, clips_with_frames({"x": [1]}))
    assert without[0]["video_similarity_reason"]
    assert stage.frames_picked() == (Uniform(8),)
    assert ScoreVideoSimilarity(model=model, frame_choice="starts").frames_picked() == (Starts(8),)


def test_caption_must_be_a_text_that_comes() -> None:
    """A misspelt label would give no clip a score, and say nothing."""
    before = {"caption_frames": CaptionFrames(model="./x")}
    for stage in (ScoreVideoSimilarity, ScoreSimilarity):
        stage().check_upstream({})
        with pytest.raises(ValueError, match=r"caption is .*, but no stage 'caption_frame' comes"):
            stage(caption="caption_frame.caption_coarse").check_upstream(before)
        with pytest.raises(ValueError, match="which is double, not one text"):
            stage(caption="caption_frames.coarse_seconds").check_upstream(before)
    ScoreSimilarity(caption="caption_frames.captions_fine").check_upstream(before)
    with pytest.raises(ValueError, match="captions is blip, but no stage of that name comes"):
        ScoreSimilarity(captions="blip").check_upstream(before)


def test_non_finite_weights_give_null_with_a_reason(model, tmp_path) -> None:
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(model, tmp_path / "poisoned")
    state = load_file(folder / "model.safetensors")
    state["text_projection.weight"].fill_(float("nan"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    rows = transformed(ScoreVideoSimilarity(model=folder), tmp_path, batch(CLIPS, WORDS[:5]))
    assert [row["video_similarity"] for row in rows] == [None] * len(CLIPS)
    assert all("not finite" in row["video_similarity_reason"] for row in rows)


def test_batch_is_halved_permanently_if_memory_runs_out(model, tmp_path, monkeypatch) -> None:
    expected = transformed(ScoreVideoSimilarity(model=model), tmp_path, batch(CLIPS, WORDS[:5]))
    sizes: list[int] = []
    original = XCLIP._batch_of_cosines

    def limited(self, clips, texts):
        sizes.append(len(clips))
        if len(clips) > 2:
            raise MemoryError
        return original(self, clips, texts)

    monkeypatch.setattr(XCLIP, "_batch_of_cosines", limited)
    found = transformed(ScoreVideoSimilarity(model=model), tmp_path, batch(CLIPS, WORDS[:5]))
    assert sizes == [5, 2, 2, 1]
    assert [row["clip_id"] for row in found] == [row["clip_id"] for row in expected]
    np.testing.assert_allclose(
        [row["video_similarity"] for row in found],
        [row["video_similarity"] for row in expected],
        atol=2e-2,
    )


def test_model_of_another_kind_is_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(ClipmillError, match=r"score_video_similarity\.model.*model_type is 'clip'"):
        transformed(ScoreVideoSimilarity(model=tmp_path), tmp_path, clips_with_frames({}))
