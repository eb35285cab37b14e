"""Tiny models that don't fit a stage, or whose folder is damaged: what checks must refuse."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.models_factory import hf, tiny_model
from tests.tiny_clip import save_tiny_clip

_SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"


def copy_of(name: str, folder: Path) -> Path:
    return Path(shutil.copytree(tiny_model(name), folder))


def changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a JSON file in place."""
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def clip_of_transformers(folder: Path) -> Path:
    vision = {**_SMALL, "image_size": 32, "patch_size": 8}
    text = {**_SMALL, "vocab_size": 99, "max_position_embeddings": 16}
    config = hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=16)
    hf.CLIPModel(config).save_pretrained(folder)
    return folder


def masked_bert(folder: Path) -> Path:
    """Its weights would load as a decoder's, and write noise."""
    hf.BertForMaskedLM(hf.BertConfig(vocab_size=99, **_SMALL)).save_pretrained(folder)
    return folder


def encoder_of_t5(folder: Path) -> Path:
    config = hf.T5Config(vocab_size=99, d_model=32, d_kv=16, d_ff=64, num_layers=1, num_heads=2)
    hf.T5EncoderModel(config).save_pretrained(folder)
    return folder


def instruct_blip_video(folder: Path) -> Path:
    config = hf.InstructBlipVideoConfig(
        vision_config={**_SMALL, "image_size": 28, "patch_size": 14},
        qformer_config={**_SMALL, "vocab_size": 8, "encoder_hidden_size": 32},
        text_config=hf.OPTConfig(
            vocab_size=99,
            hidden_size=32,
            ffn_dim=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            word_embed_proj_dim=32,
        ).to_dict(),
        num_query_tokens=4,
        video_token_index=98,
    )
    hf.InstructBlipVideoForConditionalGeneration(config).save_pretrained(folder)
    return folder


def without_weights(folder: Path) -> Path:
    copy = copy_of("blip", folder)
    (copy / "model.safetensors").unlink()
    return copy


def cut_off(folder: Path) -> Path:
    copy = copy_of("chat", folder)
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[:-1000])
    return copy


def without_processor(folder: Path) -> Path:
    copy = copy_of("blip", folder)
    for name in ("preprocessor_config.json", "processor_config.json"):
        (copy / name).unlink(missing_ok=True)
    return copy


def without_layers(folder: Path) -> Path:
    copy = copy_of("t5", folder)
    changed(copy / "config.json", lambda config: config.update(num_layers=3))
    return copy


def of_another_size(folder: Path) -> Path:
    copy = copy_of("chat", folder)
    changed(copy / "config.json", lambda config: config.update(intermediate_size=48))
    return copy


def with_another_tokenizer(folder: Path) -> Path:
    """The words' numbers are beyond the model's."""
    copy = copy_of("t5", folder)
    other = tiny_model("chat")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(other / name, copy / name)
    return copy


def without_picture_in_template(folder: Path) -> Path:
    copy = copy_of("qwen_vl", folder)
    plain = "{% for m in messages %}{% for p in m.content %}{{ p.text }}{% endfor %}{% endfor %}"
    (copy / "chat_template.jinja").write_text(plain)
    return copy


def with_broken_template(folder: Path) -> Path:
    copy = copy_of("chat", folder)
    (copy / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content ")
    return copy


def with_pictures_too_large(folder: Path) -> Path:
    copy = copy_of("blip", folder)
    for path in copy.glob("*processor_config.json"):
        text = path.read_text()
        path.write_text(
            text.replace('"height": 48', '"height": 96').replace('"width": 48', '"width": 96')
        )
    return copy


def embedder_without_configuration(folder: Path) -> Path:
    save_tiny_clip(folder)
    (folder / "open_clip_config.json").unlink()
    return folder


def embedder_without_a_layer(folder: Path) -> Path:
    save_tiny_clip(folder)
    changed(
        folder / "open_clip_config.json",
        lambda config: config["model_cfg"]["vision_cfg"].update(layers=2),
    )
    return folder


def embedder_of_another_width(folder: Path) -> Path:
    save_tiny_clip(folder)
    changed(
        folder / "open_clip_config.json", lambda config: config["model_cfg"].update(embed_dim=48)
    )
    return folder


def pointers(folder: Path) -> Path:
    copy = copy_of("qwen_vl", folder)
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        (copy / name).write_bytes(POINTER)
    return copy


def pointer_of_an_embedder(folder: Path) -> Path:
    save_tiny_clip(folder)
    (folder / "open_clip_model.safetensors").write_bytes(POINTER)
    return folder


def index_as_pointer(folder: Path) -> Path:
    copy = without_weights(folder)
    (copy / "model.safetensors.index.json").write_bytes(POINTER)
    return copy


def with_damaged_index(folder: Path) -> Path:
    copy = without_weights(folder)
    (copy / "model.safetensors.index.json").write_text('{"weight_map": ')
    return copy


def adapter(folder: Path) -> Path:
    folder.mkdir()
    about = {"base_model_name_or_path": "Qwen/Qwen2.5-VL", "peft_type": "LORA"}
    (folder / "adapter_config.json").write_text(json.dumps(about))
    (folder / "adapter_model.safetensors").write_bytes(b"x")
    return folder


def gguf(folder: Path) -> Path:
    copy = without_weights(folder)
    (copy / "model-q4_k_m.gguf").write_bytes(b"GGUF")
    return copy


def gguf_file(folder: Path) -> Path:
    return gguf(folder) / "model-q4_k_m.gguf"


def weights_file(folder: Path) -> Path:
    save_tiny_clip(folder)
    return folder / "open_clip_model.safetensors"


def hubs_cache(folder: Path) -> Path:
    copy_of("blip", folder / "snapshots" / "0123")
    return folder


def parent(folder: Path) -> Path:
    save_tiny_clip(folder / "the-model")
    return folder


def empty(folder: Path) -> Path:
    folder.mkdir()
    return folder


def without_tokenizer(folder: Path) -> Path:
    copy = copy_of("qwen_vl", folder)
    for path in copy.glob("tokenizer*"):
        path.unlink()
    return copy
