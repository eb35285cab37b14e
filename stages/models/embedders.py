"""Image and text embeddings by any contrastive model of open_clip, and by those of transformers.

A reference names the model as a folder with `open_clip_config.json` and weights, as the id of
such a repository on the hub, or as one of open_clip's own pairs of architecture and weights:
`open_clip:ViT-L-14/openai`. A folder or repository in transformers' format has `config.json`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.media.read.images import FitMode
from clipmill.stages.models.batch_size import BatchSize
from clipmill.stages.models.image_embedders import ImageEmbedder, unit_rows
from clipmill.stages.models.image_embedders import ImagePreparation as ImagePreparation
from clipmill.stages.models.loading import local_folder
from clipmill.stages.models.naflex import Patches
from clipmill.stages.models.published_weights import PAIR, published_weights
from clipmill.stages.models.text_towers import token_counts
from clipmill.stages.models.torch_setup import best_device, default_dtype, prepare_torch, say_place
from clipmill.stages.protocol import ModelCheck, Stage, resource
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    import torch

Tower = Literal["image", "text"]
DType = Literal["auto", "float32", "bfloat16"]

_FIT: dict[str, FitMode] = {"shortest": "crop", "squash": "squash", "longest": "pad"}
_TEXT_BATCH = 256
# Texts are repeated within a batch and in neighbouring clips, rarely later.
_REMEMBERED_TEXTS = 4096

# OpenAI's CLIP, which LAION's aesthetic heads were trained on.
DEFAULT_MODEL = ModelReference(hub=f"{PAIR}ViT-L-14/openai")


def preparation_of(model: torch.nn.Module) -> ImagePreparation | Patches:
    """How a model wants its images; equals its open_clip transform to about one grey level."""
    from open_clip.model import get_model_preprocess_cfg

    plain: Any = getattr(model, "preparation", None)  # a TransformersClip
    if isinstance(plain, Patches):
        return plain
    if plain is not None:
        return ImagePreparation(
            plain.size, plain.mean, plain.deviation, plain.mode, plain.interpolation, fill=0
        )
    config = get_model_preprocess_cfg(model)
    size = config["size"]
    return ImagePreparation(
        size=(size, size) if isinstance(size, int) else (int(size[0]), int(size[-1])),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        mode=_FIT[config.get("resize_mode") or "shortest"],
        interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
        fill=int(config.get("fill_color") or 0),
    )


class ClipEmbedder(ImageEmbedder):
    """One loaded model; embeddings are float32 rows of length 1.

    Only the requested towers are kept in memory. In bfloat16, the third digit of an embedding
    depends on the other items in its batch.
    """

    def __init__(
        self,
        reference: ModelReference,
        *,
        setting: str,
        towers: Sequence[Tower] = ("image", "text"),
        dtype: DType = "auto",
        batch_images: int = 32,
        trust_remote_code: bool = False,
        threads: int = 1,
    ) -> None:
        prepare_torch()
        import torch

        device = best_device()
        number = default_dtype(device) if dtype == "auto" else getattr(torch, dtype)
        say_place(setting, reference, device, number)
        self._fresh = BatchSize(_TEXT_BATCH)
        model, self._tokenize = _load(
            reference, setting, with_tokenizer="text" in towers, trust_remote_code=trust_remote_code
        )
        # Before the cast: bfloat16 would round them.
        self.logit_scale = float(model.logit_scale.detach().exp())
        bias = getattr(model, "logit_bias", None)
        self.logit_bias = None if bias is None else float(bias.detach())
        prepare = preparation_of(model)
        _drop_towers(model, towers)
        self._model = model.to(device=device, dtype=number).eval()
        self._texts: dict[str, np.ndarray] = {}
        super().__init__(
            prepare, device=device, dtype=number, batch_images=batch_images, threads=threads
        )

    @property
    def context(self) -> int:
        """Tokens that the model reads of a text, special ones included."""
        return int(self._tokenize.context_length)

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, special ones included, before any truncation."""
        return token_counts(self._tokenize, texts)

    @property
    def image_model(self) -> Callable[..., torch.Tensor]:
        """The image tower: takes what `prepare.inputs` gives, returns raw features."""
        tower: Callable[..., torch.Tensor] = self._model.encode_image
        return tower

    def embed_texts(self, texts: Sequence[str]) -> np.ndarray:
        """Embeddings of texts, in their order; repeated texts are embedded once.

        A text longer than the model's context (77 tokens for CLIP) is truncated, as in open_clip:
        its tokenizer puts the end token in the last place.
        """
        fresh = list(dict.fromkeys(text for text in texts if text not in self._texts))
        found = {text: self._texts[text] for text in texts if text in self._texts}
        vectors = self._fresh.rows(fresh, self._embed_fresh)
        found.update(zip(fresh, (row for part in vectors for row in part), strict=True))
        self._texts.update(found)
        while len(self._texts) > _REMEMBERED_TEXTS:
            del self._texts[next(iter(self._texts))]
        return np.stack([found[text] for text in texts]) if texts else np.empty((0, 0), np.float32)

    def _embed_fresh(self, texts: Sequence[str], size: int) -> Iterator[np.ndarray]:
        import torch

        for start in range(0, len(texts), size):
            beat()
            with torch.inference_mode():
                tokens = self._tokenize(list(texts[start : start + size])).to(self.device)
                yield unit_rows(self._model.encode_text(tokens))


def _drop_towers(model: torch.nn.Module, keep: Sequence[Tower]) -> None:
    drop: Any = getattr(model, "drop_towers", None)  # a TransformersClip
    if drop is not None:
        drop(keep)
        return
    unused = [] if "image" in keep else ["visual"]
    if "text" not in keep:
        unused += ["text", "transformer", "token_embedding", "ln_final"]
    for name in unused:
        if hasattr(model, name):
            setattr(model, name, None)


def _load(
    reference: ModelReference, setting: str, *, with_tokenizer: bool, trust_remote_code: bool
) -> tuple[Any, Any]:
    import open_clip

    folder = local_folder(reference, setting=setting)
    try:
        if reference.hub and reference.hub.startswith(PAIR):
            published = published_weights(reference.hub)
            name, options = (
                published.architecture,
                {
                    "pretrained": str(weights_file(folder)),
                    "force_quick_gelu": published.quick_gelu,
                    "force_preprocess_cfg": published.preprocessing,
                },
            )
        else:
            if not (folder / "open_clip_config.json").is_file():
                if is_of_transformers(folder):
                    from clipmill.stages.models.transformers_clip import TransformersClip

                    wrapped = TransformersClip(folder, trust_remote_code=trust_remote_code)
                    return wrapped, wrapped.tokenize
                raise UsageError(
                    f"{setting}: {reference} contains no open_clip_config.json; models must be in "
                    "open_clip's format, such as open_clip:ViT-B-32/openai or a repository of "
                    "timm or laion, or in that of transformers, with a config.json"
                )
            name, options = f"local-dir:{folder}", {}
        model = open_clip.create_model(name, require_pretrained=True, weights_only=True, **options)
        return model, open_clip.get_tokenizer(name) if with_tokenizer else None
    except ClipmillError:
        raise
    # Both libraries raise many kinds of errors for a malformed folder.
    except Exception as error:
        raise ClipmillError(
            f"{setting}: the model {reference} in {folder} cannot be loaded: "
            f"{type(error).__name__}: {error}"
        ) from error


def is_of_transformers(folder: Path) -> bool:
    """Whether a folder holds a model in transformers' format."""
    place = folder / "config.json"
    return place.is_file() and "model_type" in json.loads(place.read_text("utf-8"))


def weights_file(folder: Path) -> Path:
    """The file that holds a model of open_clip; FileNotFoundError if there is none."""
    for pattern in ("open_clip_*.safetensors", "*.safetensors", "open_clip_*.bin", "*.bin"):
        if found := sorted(folder.glob(pattern)):
            return found[0]
    raise FileNotFoundError("no weights as safetensors or .bin")


IMAGE_CALLS_AT_ONCE = 4
"""Calls of a stage that embeds images, so that the model finds full batches across shards."""


class EmbedderStage(Stage):
    """Settings of a stage that embeds images or texts."""

    model: ModelReference = Field(
        DEFAULT_MODEL,
        description="contrastive model: open_clip:ARCHITECTURE/WEIGHTS, or hub id or folder in "
        "the format of open_clip or of transformers (CLIP, SigLIP and the like)",
    )
    dtype: DType = Field(
        "auto",
        description="number format of the model; auto is bfloat16 if the CPU or GPU has "
        "instructions for it, otherwise float32",
    )
    trust_remote_code: bool = Field(
        False,
        description="run Python code from the model's folder, as jina-clip needs; only for folders "
        "that you trust (no code is fetched from the hub)",
    )
    batch_images: int = resource(
        32, ge=1, description="images per model call; halved when memory runs out"
    )

    @property
    def most_gpus(self) -> float | None:
        return 1.0

    def embedder_check(self, label: str, *towers: Tower) -> ModelCheck:
        """The check of the model, of which these towers are needed."""

        def run() -> str:
            from clipmill.stages.models.checks.embedders import check_embedder

            return check_embedder(
                self.model, f"{label}.model", towers, trust_remote_code=self.trust_remote_code
            )

        return ModelCheck(
            "model", run, (*towers, self.trust_remote_code), ("torch", "open_clip", "transformers")
        )

    def load(self, *towers: Tower) -> ClipEmbedder:
        return ClipEmbedder(
            self.model,
            setting=f"{self.name}.model",
            towers=towers,
            dtype=self.dtype,
            batch_images=self.batch_images,
            trust_remote_code=self.trust_remote_code,
            threads=math.ceil(self.cpus),
        )

    def same_model(self, label: str, before: Mapping[str, Stage]) -> None:
        """ValueError if the embeddings of stage `label` are from a different model."""
        other = before.get(label)
        if isinstance(other, EmbedderStage) and other.model.identity() != self.model.identity():
            raise ValueError(
                f"the embeddings of {label} come from {other.model}, but model is {self.model}; "
                "embeddings of two models cannot be compared, so set both to the same"
            )
