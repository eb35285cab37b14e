"""Contrastive models in transformers' own format, under the interface of open_clip's models.

Import it only after `prepare_torch`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from clipmill.stages.models.naflex import Patches
from clipmill.stages.models.pixels import PlainPixels

CONFIGURATION = "config.json"
# Those with one pooled vector per image and per text, whose images only need to be resized,
# cropped and normalised, or cut into patches. Other types may come with code of their own.
_TYPES = ("clip", "siglip", "siglip2", "altclip", "chinese_clip", "metaclip_2")
_IN_PATCHES = "siglip2"
# SigLIP was trained on texts of one length.
_FULL_LENGTH = ("siglip", "siglip2")
_IMAGE_INPUTS = ("pixel_values", "pixel_attention_mask", "spatial_shapes")
_TOWERS = {
    "image": ("vision_model", "visual_projection"),
    "text": ("text_model", "text_projection"),
}
# A tokenizer that knows no limit says so by a huge number.
_UNLIMITED = 100_000
# Of open_clip's words for how an image is made to fit.
_RESIZE_MODES = ("shortest", "squash")


class TransformersClip(nn.Module):
    """A loaded model (by `load`, if it is given); `preparation` says how it wants its images."""

    def __init__(
        self, folder: Path, *, trust_remote_code: bool, load: Callable[[Path], Any] | None = None
    ) -> None:
        super().__init__()
        kind = _checked_type(folder, trust_remote_code)
        options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": trust_remote_code}
        self.model: Any = (
            AutoModel.from_pretrained(folder, dtype=torch.float32, weights_only=True, **options)
            if load is None
            else load(folder)
        )
        self.preparation = _preparation(folder, kind, options)
        self.tokenize = Texts(
            AutoTokenizer.from_pretrained(folder, **options),
            getattr(self.model.config.text_config, "max_position_embeddings", None),
            to_full_length=kind in _FULL_LENGTH,
        )

    @property
    def logit_scale(self) -> torch.Tensor:
        scale: torch.Tensor = self.model.logit_scale
        return scale

    @property
    def logit_bias(self) -> torch.Tensor | None:
        bias: torch.Tensor | None = getattr(self.model, "logit_bias", None)
        return bias

    def encode_image(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Of pixels; those in patches with their mask, and their numbers down and across."""
        named = dict(zip(_IMAGE_INPUTS, inputs, strict=False))
        return _vectors(self.model.get_image_features(**named))

    def encode_text(self, tokens: Any) -> torch.Tensor:
        return _vectors(self.model.get_text_features(**tokens))

    def drop_towers(self, keep: Sequence[str]) -> None:
        """Frees the towers that are not among those to `keep`."""
        for tower, names in _TOWERS.items():
            for name in names if tower not in keep else ():
                if hasattr(self.model, name):
                    setattr(self.model, name, None)


class Texts:
    """Tokenizes texts, truncated to what the model reads, as open_clip's tokenizers do."""

    def __init__(self, tokenizer: Any, positions: int | None, *, to_full_length: bool) -> None:
        self._tokenizer = tokenizer
        self._padding = "max_length" if to_full_length else "longest"
        limits = [n for n in (positions, tokenizer.model_max_length) if n and n < _UNLIMITED]
        self.context_length = min(limits, default=_UNLIMITED)

    def __call__(self, texts: Sequence[str]) -> Any:
        return self._tokenizer(
            list(texts),
            padding=self._padding,
            truncation=True,
            max_length=self.context_length,
            return_tensors="pt",
        )

    def counts(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text without truncation, special ones included."""
        return [len(ids) for ids in self._tokenizer(list(texts), verbose=False)["input_ids"]]


def _checked_type(folder: Path, trust_remote_code: bool) -> str:
    config = json.loads((folder / CONFIGURATION).read_text("utf-8"))
    kind = str(config.get("model_type"))
    if "AutoModel" in config.get("auto_map", {}) and kind not in _TYPES:
        if not trust_remote_code:
            raise ValueError(
                "it includes its own code, which runs only with trust_remote_code: true"
            )
    elif kind not in _TYPES:
        raise ValueError(
            f"its model_type is {kind!r}; of transformers' models, this stage takes "
            f"{', '.join(_TYPES)}"
        )
    return kind


def _preparation(folder: Path, kind: str, options: dict[str, Any]) -> PlainPixels | Patches:
    place = folder / "preprocessor_config.json"
    settings = json.loads(place.read_text("utf-8")) if place.is_file() else {}
    if settings.get("resize_mode") in _RESIZE_MODES:  # in open_clip's words, as jina-clip has them
        size = settings["size"]
        return PlainPixels(
            (size, size) if isinstance(size, int) else (int(size[0]), int(size[-1])),
            "squash" if settings["resize_mode"] == "squash" else "crop",
            "bilinear" if settings.get("interpolation") == "bilinear" else "bicubic",
            tuple(settings["mean"]),
            tuple(settings["std"]),
        )
    processor = AutoImageProcessor.from_pretrained(folder, **options)
    of_kind = Patches if kind == _IN_PATCHES else PlainPixels
    found = of_kind.of(processor)
    if found is None:
        does = "resize, cut into patches" if kind == _IN_PATCHES else "resize, crop"
        raise ValueError(
            f"its image processor ({type(processor).__name__}) does something else than to {does} "
            "and normalise, which this stage doesn't do"
        )
    return found


def _vectors(found: Any) -> torch.Tensor:
    vectors: torch.Tensor = found if isinstance(found, torch.Tensor) else found.pooler_output
    return vectors
