"""Tiny random sentence-embedding models in the layout of sentence-transformers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.models_factory import _framed, _save, _words, hf

WIDTH = 32
_BERT = {
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
_OF_MODULES = "sentence_transformers.models."


def save_transformer(
    folder: Path, *, seed: int = 0, positions: int = 24, left: bool = False
) -> Path:
    """A BERT with words as tokens, without any file of sentence-transformers."""
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = hf.PreTrainedTokenizerFast(
        tokenizer_object=_framed(_words(tokens), "[CLS]", "[SEP]"),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        padding_side="left" if left else "right",
    )
    config = hf.BertConfig(vocab_size=len(tokenizer), max_position_embeddings=positions, **_BERT)
    return _save(folder, hf.BertModel(config), tokenizer, seed)


def save_sentence_model(
    folder: Path,
    pooling: Mapping[str, Any],
    *,
    after: Sequence[str] = ("Normalize",),
    max_tokens: int | None = None,
    prompts: Mapping[str, str] | None = None,
    seed: int = 0,
    left: bool = False,
) -> Path:
    """The same with its modules: a pooling, then layers named Dense or Normalize."""
    import torch
    from safetensors.torch import save_file

    save_transformer(folder, seed=seed, left=left)
    names = ["Transformer", "Pooling", *after]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{name}" if i else "", "type": _OF_MODULES + name}
        for i, name in enumerate(names)
    ]
    _write(folder / "modules.json", modules)
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_tokens})
    _write(folder / "config_sentence_transformers.json", {"prompts": dict(prompts or {})})
    _write(folder / "1_Pooling/config.json", {"word_embedding_dimension": WIDTH, **pooling})
    for i, name in enumerate(names):
        place = folder / f"{i}_{name}"
        if name == "Dense":
            config = {"in_features": WIDTH, "out_features": 12, "bias": True}
            activation = "torch.nn.modules.activation.Tanh"
            _write(place / "config.json", {**config, "activation_function": activation})
            generator = torch.Generator().manual_seed(seed)
            weights = {
                "linear.weight": torch.randn((12, WIDTH), generator=generator),
                "linear.bias": torch.randn(12, generator=generator),
            }
            save_file(weights, place / "model.safetensors")
    return folder


def _write(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
