"""Tiny models of further architectures with a chat template: Gemma 3, Idefics 3 and GLM-4V."""

from __future__ import annotations

from pathlib import Path

from tests.clip_models import _QWEN2, _SIGHT, _template, _text, _tokenizer
from tests.models_factory import _save, hf


def make_gemma3(folder: Path, seed: int = 0) -> Path:
    """Gemma 3: a picture is a run of soft tokens between its own two, whose tokens see each other.

    Its template has no role for the system, and calls the model's turn "model".
    """
    named = {
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
        "image_token": "<image_soft_token>",
    }
    template = (
        "{% for message in messages %}"
        "{% if (message.role == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "<|im_start|>{{ 'model' if message.role == 'assistant' else message.role }}\n"
        "{% if message.content is string %}{{ message.content }}{% else %}"
        "{% for part in message.content %}{% if part.type == 'image' %}<start_of_image>"
        "{% elif part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>model\n{% endif %}"
    )
    tokenizer = _tokenizer(template, **named)
    token = tokenizer.convert_tokens_to_ids
    processor = hf.Gemma3Processor(
        hf.Gemma3ImageProcessor(size={"height": 28, "width": 28}),
        tokenizer,
        chat_template=template,
        image_seq_length=4,
    )
    config = hf.Gemma3Config(
        text_config={
            **_text(tokenizer),
            "head_dim": 16,
            "query_pre_attn_scalar": 16,
            "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        vision_config={
            "model_type": "siglip_vision_model",
            **_SIGHT,
            "image_size": 28,
            "patch_size": 7,
            "vision_use_head": False,
        },
        mm_tokens_per_image=4,
        boi_token_index=token("<start_of_image>"),
        eoi_token_index=token("<end_of_image>"),
        image_token_index=token("<image_soft_token>"),
    )
    return _save(folder, hf.Gemma3ForConditionalGeneration(config), processor, seed)


def make_idefics3(folder: Path, seed: int = 0) -> Path:
    """Idefics 3, which cuts a picture into tiles: as many of them as its shape needs."""
    template = _template("<image>", "")
    pieces = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
    more = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<image>")
    tokenizer = _tokenizer(template, *more, *pieces)
    processor = hf.Idefics3Processor(
        hf.Idefics3ImageProcessor(
            size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, do_image_splitting=True
        ),
        tokenizer,
        image_seq_len=1,
        chat_template=template,
    )
    config = hf.Idefics3Config(
        vision_config={**_SIGHT, "image_size": 28, "patch_size": 14},
        text_config={"model_type": "llama", **_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return _save(folder, hf.Idefics3ForConditionalGeneration(config), processor, seed)


def make_glm4v(folder: Path, seed: int = 0) -> Path:
    """GLM-4.1V: a video's frames are pictures, each before its second, between two tokens."""
    names = [f"<|{edge}_of_{what}|>" for what in ("image", "video") for edge in ("begin", "end")]
    template = _template(f"{names[0]}<|image|>{names[1]}", f"{names[2]}<|video|>{names[3]}")
    tokenizer = _tokenizer(template, "<|image|>", "<|video|>", *names)
    token = tokenizer.convert_tokens_to_ids
    size = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 4}
    of_video = {"shortest_edge": 28 * 28, "longest_edge": 28 * 28 * 32}
    processor = hf.Glm4vProcessor(
        hf.Glm4vImageProcessor(size=size),
        tokenizer,
        hf.Glm4vVideoProcessor(size=of_video, max_image_size={"longest_edge": 28 * 28 * 32}),
        chat_template=template,
    )
    config = hf.Glm4vConfig(
        text_config={
            **_text(tokenizer),
            "num_hidden_layers": _QWEN2["num_hidden_layers"],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "partial_rotary_factor": 0.5,
                "mrope_section": [1, 1, 2],
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "image_size": 56,
        },
        image_token_id=token("<|image|>"),
        video_token_id=token("<|video|>"),
        image_start_token_id=token(names[0]),
        image_end_token_id=token(names[1]),
        video_start_token_id=token(names[2]),
        video_end_token_id=token(names[3]),
    )
    return _save(folder, hf.Glm4vForConditionalGeneration(config), processor, seed)
