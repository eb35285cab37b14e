"""Models of published sizes with random weights, for speed, which doesn't depend on weights."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.stages.models.torch_setup import prepare_torch

DEMO = Path(__file__).resolve().parent.parent / "jobs" / "demo" / "models"


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how much of it."""

    architecture: str = "ViT-L-14"
    width: int = 768
    layers: int = 12
    picture_side: int = 384
    clips: int = 2048
    captions: int = 512
    texts: int = 512
    new_tokens: int = 20
    shards: int = 24
    llm_width: int = 1024
    llm_layers: int = 24
    disk_bytes: float = 6e9


FULL = Sizes()
# For its test, on a CPU.
DRY = Sizes("ViT-B-32", 96, 2, 96, 16, 8, 8, 6, 3, 64, 2, 1e8)
# On a CPU, to compare with bare loops.
SMALL = Sizes("ViT-B-32", 384, 6, 224, 64, 32, 48, 12, 4, 256, 4, 2e9)


def clip_model(folder: Path, sizes: Sizes) -> Path:
    """An open_clip model of the published architecture."""
    prepare_torch()
    import open_clip
    from safetensors.torch import save_file

    folder.mkdir()
    if sizes == DRY:
        shutil.copytree(DEMO / "clip", folder, dirs_exist_ok=True)
        return folder
    model = open_clip.create_model(sizes.architecture, pretrained=None)
    configuration = {
        "model_cfg": open_clip.get_model_config(sizes.architecture),
        "preprocess_cfg": {},
    }
    (folder / "open_clip_config.json").write_text(json.dumps(configuration))
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    return folder


def captioner(folder: Path, sizes: Sizes) -> Path:
    """BLIP (base, if full) with the demo's tokenizer."""
    prepare_torch()
    import torch
    import transformers

    shutil.copytree(DEMO / "captioner", folder)
    processor = json.loads((folder / "processor_config.json").read_text())
    processor["image_processor"]["size"] = dict.fromkeys(("height", "width"), sizes.picture_side)
    (folder / "processor_config.json").write_text(json.dumps(processor))
    config: Any = transformers.BlipConfig.from_pretrained(folder)
    for part in (config.text_config, config.vision_config):
        part.hidden_size, part.intermediate_size = sizes.width, 4 * sizes.width
        part.num_hidden_layers = sizes.layers
        part.num_attention_heads = max(1, sizes.width // 64)
    config.vision_config.image_size = sizes.picture_side
    config.text_config.encoder_hidden_size = sizes.width
    torch.manual_seed(0)
    model: Any = transformers.BlipForConditionalGeneration(config)
    model.save_pretrained(folder)
    return folder


def summariser(folder: Path, sizes: Sizes) -> Path:
    """T5 (base, if full) with the demo's tokenizer."""
    prepare_torch()
    import torch
    import transformers

    shutil.copytree(DEMO / "summarizer", folder)
    config: Any = transformers.T5Config.from_pretrained(folder)
    config.d_model, config.d_ff = sizes.width, 4 * sizes.width
    config.num_layers = config.num_decoder_layers = sizes.layers
    config.num_heads, config.d_kv = max(1, sizes.width // 64), 64
    torch.manual_seed(0)
    model: Any = transformers.T5ForConditionalGeneration(config)
    model.save_pretrained(folder)
    return folder


def language_model(folder: Path, sizes: Sizes) -> Path:
    """Qwen2 (0.5 billion parameters, if full) with a chat template."""
    threads = _threads()
    from tests.models_factory import make_chat  # it sets the number of threads

    make_chat(folder)
    import torch
    import transformers

    torch.set_num_threads(threads)
    config: Any = transformers.Qwen2Config.from_pretrained(folder)
    config.hidden_size, config.intermediate_size = sizes.llm_width, 4 * sizes.llm_width
    config.num_hidden_layers = sizes.llm_layers
    config.layer_types = ["full_attention"] * sizes.llm_layers
    config.num_attention_heads = config.num_key_value_heads = max(1, sizes.llm_width // 64)
    config.max_position_embeddings = 4096
    torch.manual_seed(0)
    model: Any = transformers.Qwen2ForCausalLM(config)
    model.save_pretrained(folder)
    return folder


def _threads() -> int:
    import torch

    return torch.get_num_threads()
