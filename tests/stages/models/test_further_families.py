"""Gemma 3, Idefics 3 and GLM-4V caption as bare transformers does, alone and in batches."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
import torch
from PIL import Image

from clipmill.stages import caption_clip
from clipmill.stages.caption_clip import CaptionClip
from clipmill.stages.models.captioners import PictureToCaption
from clipmill.stages.models.engines.requests import CHAT_PROMPT, answers
from clipmill.stages.models.generation import arguments_of
from tests.clip_models import make_qwen3_vl
from tests.further_chat_models import make_gemma3, make_glm4v, make_idefics3
from tests.models_factory import hf
from tests.stages.models.test_captioners import GREEDY, captioner, jpeg
from tests.stages.test_caption_clip import captioned, clip

FURTHER = [make_gemma3, make_idefics3, make_glm4v]


def bare_texts(folder, jpegs: list[bytes]) -> list[str]:
    """One picture at a time, by the processor's and the model's own methods."""
    processor = hf.AutoProcessor.from_pretrained(folder)
    model = hf.AutoModelForImageTextToText.from_pretrained(folder).eval()
    found = []
    for data in jpegs:
        parts = [
            {"type": "image", "image": Image.open(io.BytesIO(data)).convert("RGB")},
            {"type": "text", "text": CHAT_PROMPT},
        ]
        inputs = processor.apply_chat_template(
            [{"role": "user", "content": parts}],
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )
        with torch.inference_mode():
            made = model.generate(**inputs, **arguments_of(GREEDY, lambda: False))
        new = made[0, inputs["input_ids"].shape[1] :]
        found.append(processor.tokenizer.decode(new, skip_special_tokens=True))
    return found


@pytest.mark.parametrize("make", FURTHER)
def test_captions_are_those_of_bare_transformers(make, tmp_path):
    """Pictures of two shapes, so prompts differ in length where a model keeps shapes or tiles."""
    folder = make(tmp_path / "model")
    jpegs = [jpeg(i, 90 if i % 2 else 160) for i in range(4)]
    asked = [PictureToCaption(i, data) for i, data in enumerate(jpegs)]
    bare = bare_texts(folder, jpegs)
    for size in (1, 4):
        with captioner(folder, batch_images=size) as opened:
            found = opened.describe(asked, GREEDY)
        assert [found[i].text for i in range(4)] == bare
    assert len(set(bare)) > 1


@pytest.mark.parametrize("make", [make_glm4v, make_qwen3_vl])
def test_clip_of_one_frame_is_shown_as_an_image(make, tmp_path, monkeypatch):
    """These families' processors refuse a video of one frame."""

    def in_hex(engine, requests):
        """The model's own answers, as texts that are captions whatever bytes it makes."""
        found = answers(engine, requests)
        return [replace(one, text=f"said {one.text.encode().hex()}") for one in found]

    monkeypatch.setattr(caption_clip, "answers", in_hex)
    stage = CaptionClip(
        model=str(make(tmp_path / "model")), dtype="float32", max_new_tokens=4, when_cut_off="keep"
    )
    rows = captioned(stage, tmp_path, clip("one", (10.5,)), clip("two", (10.5, 12.0)))
    assert [rows[name]["error"] for name in ("one", "two")] == [None, None]
    assert [rows[name]["clip_shown_as"] for name in ("one", "two")] == ["images", "video"]
