"""Tiny video–text models in the layouts in which the real ones are published, and their shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from clipmill.stages.models.torch_setup import prepare_torch

prepare_torch()
import torch  # noqa: E402 - torch must be made ready before it is imported

Shapes = dict[str, tuple[int, ...]]
WORDS = ["a", "red", "circle", "dog", "moves", "left", "right", "fast", "the", "in", "snow", "runs"]
BERT_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]


def viclip_shapes(
    video: int, text: int, layers: tuple[int, int], patch: int, side: int, frames: int, out: int
) -> Shapes:
    """The names and shapes of ViCLIP's tensors, as its published checkpoints have them."""

    def blocks(tower: str, width: int, count: int) -> Shapes:
        own: Shapes = {}
        for i in range(count):
            at = f"{tower}.transformer.resblocks.{i}."
            own |= {
                f"{at}attn.in_proj_weight": (3 * width, width),
                f"{at}attn.in_proj_bias": (3 * width,),
                f"{at}attn.out_proj.weight": (width, width),
                f"{at}attn.out_proj.bias": (width,),
                f"{at}mlp.c_fc.weight": (4 * width, width),
                f"{at}mlp.c_fc.bias": (4 * width,),
                f"{at}mlp.c_proj.weight": (width, 4 * width),
                f"{at}mlp.c_proj.bias": (width,),
            }
            own |= {
                f"{at}{norm}.{part}": (width,)
                for norm in ("ln_1", "ln_2")
                for part in ("weight", "bias")
            }
        return own

    v, t = "vision_encoder", "text_encoder"
    return {
        "temp": (),
        f"{v}.class_embedding": (video,),
        f"{v}.positional_embedding": ((side // patch) ** 2 + 1, video),
        f"{v}.temporal_positional_embedding": (1, frames, video),
        f"{v}.proj": (video, out),
        f"{v}.conv1.weight": (video, 3, 1, patch, patch),
        **{f"{v}.{n}.{p}": (video,) for n in ("ln_pre", "ln_post") for p in ("weight", "bias")},
        **blocks(v, video, layers[0]),
        f"{t}.positional_embedding": (32, text),
        f"{t}.text_projection": (text, out),
        f"{t}.token_embedding.weight": (49408, text),
        **{f"{t}.ln_final.{p}": (text,) for p in ("weight", "bias")},
        **blocks(t, text, layers[1]),
    }


def umt_shapes(
    video: int, text: int, layers: tuple[int, int], fusion: int, patch: int, out: int, words: int
) -> Shapes:
    """Those of a pretraining checkpoint of UMT, with a few of the tensors that scores don't use."""
    e = "vision_encoder.encoder."
    shapes: Shapes = {
        "temp": (),
        "itm_head.weight": (2, text),
        "itm_head.bias": (2,),
        "vision_encoder.clip_decoder.0.head.weight": (out, video),
        f"{e}patch_embed.proj.weight": (video, 3, 1, patch, patch),
        f"{e}patch_embed.proj.bias": (video,),
        "vision_proj.weight": (out, video),
        "vision_proj.bias": (out,),
        "text_proj.weight": (out, text),
        "text_proj.bias": (out,),
    }
    norms = [f"{e}norm", "vision_encoder.pool_norm"]
    for i in range(layers[0]):
        at = f"{e}blocks.{i}."
        shapes |= {
            f"{at}attn.q_bias": (video,),
            f"{at}attn.v_bias": (video,),
            f"{at}attn.qkv.weight": (3 * video, video),
            f"{at}attn.proj.weight": (video, video),
            f"{at}attn.proj.bias": (video,),
            f"{at}mlp.fc1.weight": (4 * video, video),
            f"{at}mlp.fc1.bias": (4 * video,),
            f"{at}mlp.fc2.weight": (video, 4 * video),
            f"{at}mlp.fc2.bias": (video,),
        }
        norms += [f"{at}norm1", f"{at}norm2"]
    shapes |= {f"{norm}.{part}": (video,) for norm in norms for part in ("weight", "bias")}
    b = "text_encoder.bert."
    shapes |= {
        f"{b}embeddings.word_embeddings.weight": (words, text),
        f"{b}embeddings.position_embeddings.weight": (512, text),
        f"{b}embeddings.token_type_embeddings.weight": (2, text),
    }
    norms = [f"{b}embeddings.LayerNorm"]
    for i in range(layers[1]):
        at = f"{b}encoder.layer.{i}."
        kinds = ["attention"] + (["crossattention"] if i >= fusion else [])
        for kind in kinds:
            seen = video if kind == "crossattention" else text
            for part, width in (("query", text), ("key", seen), ("value", seen)):
                shapes |= {
                    f"{at}{kind}.self.{part}.weight": (text, width),
                    f"{at}{kind}.self.{part}.bias": (text,),
                }
            shapes |= {
                f"{at}{kind}.output.dense.weight": (text, text),
                f"{at}{kind}.output.dense.bias": (text,),
            }
            norms.append(f"{at}{kind}.output.LayerNorm")
        shapes |= {
            f"{at}intermediate.dense.weight": (4 * text, text),
            f"{at}intermediate.dense.bias": (4 * text,),
            f"{at}output.dense.weight": (text, 4 * text),
            f"{at}output.dense.bias": (text,),
        }
        norms.append(f"{at}output.LayerNorm")
    return shapes | {f"{n}.{part}": (text,) for n in norms for part in ("weight", "bias")}


VICLIP_L = viclip_shapes(1024, 768, (24, 12), 14, 224, 8, 768)
VICLIP_B = viclip_shapes(768, 512, (12, 12), 16, 224, 8, 512)
UMT_L = umt_shapes(1024, 1024, (24, 24), 19, 16, 768, 30522)
TINY_VICLIP = viclip_shapes(128, 16, (2, 1), 8, 16, 4, 24)
TINY_UMT = umt_shapes(128, 128, (1, 3), 2, 56, 24, len(BERT_TOKENS))


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, torch.Tensor]:
    """Tensors of these shapes; wide enough that different inputs give different embeddings."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for name, shape in shapes.items():
        found[name] = torch.randn(shape, generator=generator) * (0.1 if len(shape) > 1 else 0.05)
        if ("norm" in name.lower() or ".ln_" in name) and name.endswith("weight"):
            found[name] += 1
    return found


def save_viclip(folder: Path, *, layout: str = "pth") -> dict[str, torch.Tensor]:
    """ViCLIP as its checkpoints (`pth`) or its hub repositories (`hub`) are laid out."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = random_state(TINY_VICLIP)
    if layout == "pth":
        torch.save({"model": state, "epoch": 9}, folder / "ViCLIP-L_InternVid-FLT-10M.pth")
    else:
        (folder / "config.json").write_text(
            '{"architectures": ["ViCLIP"], "auto_map": {"AutoModel": "viclip.ViCLIP"}, "size": "l"}'
        )
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return state


def save_umt(folder: Path) -> dict[str, torch.Tensor]:
    """UMT as `l16_25m.pth` is laid out, beside a BERT tokenizer of a few words."""
    folder.mkdir(parents=True, exist_ok=True)
    state = random_state(TINY_UMT)
    torch.save({"model": state}, folder / "l16_25m.pth")
    (folder / "vocab.txt").write_text("\n".join(BERT_TOKENS))
    return state


def _word_tokenizer(end: str | None) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    names = ["<pad>", "<unk>", *WORDS, "<end>"]
    vocabulary = {name: i for i, name in enumerate(names)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if end:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {end}", special_tokens=[(end, vocabulary[end])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", eos_token="<end>"
    )


def save_videoprism(folder: Path) -> Path:
    """VideoPrism with a text tower: four frames of 32 pixels, texts of 8 tokens."""
    from transformers import VideoPrismClipModel, VideoPrismConfig

    torch.manual_seed(0)
    small = {"hidden_size": 32, "intermediate_size": 32, "num_attention_heads": 2}
    config = VideoPrismConfig(
        vision_config={
            **small,
            "image_size": 32,
            "num_frames": 4,
            "tubelet_size": [1, 16, 16],
            "num_spatial_layers": 1,
            "num_temporal_layers": 1,
            "num_auxiliary_layers": 1,
        },
        text_config={
            **small,
            "vocab_size": len(WORDS) + 3,
            "num_hidden_layers": 1,
            "max_position_embeddings": 8,
        },
    )
    model = VideoPrismClipModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    _word_tokenizer(None).save_pretrained(folder)
    return folder
