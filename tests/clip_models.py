"""Tiny models of further architectures that see videos, or several pictures but no videos."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.models_factory import CHAT_TEMPLATE, CHAT_TOKENS, _bytes, _save, hf

_QWEN2 = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 1024,
}
_SIGHT = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def _template(image: str, video: str) -> str:
    """The chat template with other placeholders; without `video`, it has none for videos."""
    template = CHAT_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", image)
    template = template.replace("<|vision_start|><|video_pad|><|vision_end|>", video)
    return template if video else template.replace("'video'", "'none'")


def _tokenizer(template: str, *more: str, **named: str) -> Any:
    tokens = [*CHAT_TOKENS, *more, *named.values()]
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=_bytes(tokens),
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=tokens,
        extra_special_tokens=named,
    )
    tokenizer.chat_template = template
    return tokenizer


def _text(tokenizer: Any) -> dict[str, Any]:
    token = tokenizer.convert_tokens_to_ids
    return {
        "vocab_size": len(tokenizer),
        **_QWEN2,
        "eos_token_id": token("<|im_end|>"),
        "pad_token_id": token("<|endoftext|>"),
    }


def make_qwen3_vl(folder: Path, seed: int = 0) -> Path:
    """Qwen3-VL, whose processor writes the frames' times into the prompt."""
    template = _template(
        "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>"
    )
    tokenizer = _tokenizer(template)
    token = tokenizer.convert_tokens_to_ids
    size = {"shortest_edge": 32 * 32, "longest_edge": 32 * 32 * 16}
    processor = hf.Qwen3VLProcessor(
        hf.Qwen2VLImageProcessor(size=size, patch_size=16),
        tokenizer,
        hf.Qwen3VLVideoProcessor(size=size),
        chat_template=template,
    )
    config = hf.Qwen3VLConfig(
        text_config={
            **_text(tokenizer),
            "head_dim": 16,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [2, 3, 3],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 32,
            "patch_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [1],
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
    )
    return _save(folder, hf.Qwen3VLForConditionalGeneration(config), processor, seed)


def make_internvl(folder: Path, seed: int = 0) -> Path:
    """InternVL, whose videos are pictures with numbers in the prompt."""
    template = _template("<IMG_CONTEXT>\n", "<video>\n")
    tokenizer = _tokenizer(
        template,
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    size = {"height": 28, "width": 28}
    processor = hf.InternVLProcessor(
        hf.GotOcr2ImageProcessor(size=size, crop_to_patches=False),
        tokenizer,
        hf.InternVLVideoProcessor(size=size),
        image_seq_length=1,
        chat_template=template,
    )
    config = hf.InternVLConfig(
        vision_config={**_SIGHT, "image_size": [28, 28], "patch_size": [14, 14]},
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        image_seq_length=1,
    )
    return _save(folder, hf.InternVLForConditionalGeneration(config), processor, seed)


def make_smolvlm(folder: Path, seed: int = 0) -> Path:
    """SmolVLM2, as published with a template without videos: its processor has its own."""
    template = _template("<image>", "")
    pieces = [f"<row_{i}_col_{j}>" for i in (1, 2) for j in (1, 2)]
    more = ("<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<image>", "<video>")
    tokenizer = _tokenizer(template, *more, *pieces)
    size = {"longest_edge": 28}
    processor = hf.SmolVLMProcessor(
        image_processor=hf.SmolVLMImageProcessor(
            size=size, max_image_size=size, do_image_splitting=False
        ),
        tokenizer=tokenizer,
        video_processor=hf.SmolVLMVideoProcessor(
            size=size, max_image_size=size, num_frames=64, fps=1
        ),
        image_seq_len=1,
        chat_template=template,
    )
    config = hf.SmolVLMConfig(
        vision_config={**_SIGHT, "image_size": 28, "patch_size": 14},
        text_config={"model_type": "llama", **_text(tokenizer)},
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return _save(folder, hf.SmolVLMForConditionalGeneration(config), processor, seed)


def make_llava_next_video(folder: Path, seed: int = 0) -> Path:
    """LLaVA-NeXT-Video: videos without times."""
    template = _template("<image>\n", "<video>\n")
    tokenizer = _tokenizer(template, "<image>", "<video>")
    token = tokenizer.convert_tokens_to_ids
    sizes = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    grid = [[28, 56], [56, 28]]
    processor = hf.LlavaNextVideoProcessor(
        image_processor=hf.LlavaNextImageProcessor(**sizes, image_grid_pinpoints=grid),
        tokenizer=tokenizer,
        video_processor=hf.LlavaNextVideoVideoProcessor(**sizes),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    config = hf.LlavaNextVideoConfig(
        vision_config={
            "model_type": "clip_vision_model",
            **_SIGHT,
            "image_size": 28,
            "patch_size": 14,
        },
        text_config={"model_type": "llama", **_text(tokenizer)},
        image_token_index=token("<image>"),
        video_token_index=token("<video>"),
        vision_feature_layer=-1,
        image_grid_pinpoints=grid,
    )
    return _save(folder, hf.LlavaNextVideoForConditionalGeneration(config), processor, seed)


def make_llava(folder: Path, seed: int = 0) -> Path:
    """LLaVA: pictures only; its processor would drop a video without a word."""
    template = _template("<image>\n", "")
    tokenizer = _tokenizer(template, "<image>")
    size = {"height": 28, "width": 28}
    processor = hf.LlavaProcessor(
        hf.CLIPImageProcessor(size={"shortest_edge": 28}, crop_size=size),
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    config = hf.LlavaConfig(
        vision_config={
            "model_type": "clip_vision_model",
            **_SIGHT,
            "image_size": 28,
            "patch_size": 14,
        },
        text_config={"model_type": "qwen2", **_text(tokenizer)},
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_layer=-1,
    )
    return _save(folder, hf.LlavaForConditionalGeneration(config), processor, seed)
