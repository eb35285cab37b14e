"""Embeddings of texts by sentence-embedding models, equal to those of sentence-transformers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.models.backbones import load_backbone
from clipmill.stages.models.batch_size import BatchSize
from clipmill.stages.models.checks.packages import packages_explained
from clipmill.stages.models.loading import local_folder
from clipmill.stages.models.sentence_layout import Dense, SentenceLayout, read_layout
from clipmill.stages.models.torch_setup import (
    best_device,
    default_dtype,
    prepare_torch,
    say_place,
    torch_threads,
)
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    import torch

DType = Literal["auto", "float32", "bfloat16"]
# A tokenizer that knows no limit says so by a huge number.
_UNLIMITED = 100_000
# Texts are repeated within a batch and in neighbouring clips (titles), rarely later.
_REMEMBERED_TEXTS = 4096


class SentenceModel:
    """One loaded model; embeddings are float32 rows of length 1."""

    def __init__(
        self,
        reference: ModelReference,
        *,
        setting: str,
        dtype: DType = "float32",
        batch_texts: int = 32,
        max_tokens: int | None = None,
        threads: int | None = None,
    ) -> None:
        prepare_torch()
        import torch

        folder = local_folder(reference, setting=setting)
        self.device = best_device()
        self.dtype = default_dtype(self.device) if dtype == "auto" else getattr(torch, dtype)
        self._threads = threads
        self._batch = BatchSize(batch_texts)
        with packages_explained(setting):
            try:
                self.layout = read_layout(folder)
                self._tokenizer = load_tokenizer(self.layout)
                model = _load_transformer(self.layout.transformer)
                after = [_load_dense(dense) for dense in self.layout.dense]
            except ImportError:
                raise
            except ClipmillError as error:
                raise ClipmillError(f"{setting}: {error}") from error
            except Exception as error:  # a malformed folder raises many kinds of errors
                raise ClipmillError(
                    f"{setting}: the model {reference} in {folder} cannot be loaded as one of "
                    f"sentences: {type(error).__name__}: {error}"
                ) from error
        self.context = min(
            text_limit(self.layout, self._tokenizer, model.config), max_tokens or _UNLIMITED
        )
        say_place(setting, reference, self.device, self.dtype)
        self._model = model.to(device=self.device, dtype=self.dtype).eval()
        self._after = [layer.to(device=self.device, dtype=self.dtype).eval() for layer in after]
        self._remembered: dict[tuple[str, str], np.ndarray] = {}

    def token_counts(self, texts: Sequence[str], prompt: str = "") -> list[int]:
        """The tokens of each text with its prompt, special ones included, before truncation."""
        given = [prompt + text for text in texts]
        if not given:
            return []
        return [len(ids) for ids in self._tokenizer(given, verbose=False)["input_ids"]]

    def embed_texts(self, texts: Sequence[str], prompt: str = "") -> np.ndarray:
        """Embeddings of texts, in their order, each with the prompt before it; repeated texts are
        embedded once.

        Of a text of more tokens than the model reads, its beginning counts.
        """
        wanted = dict.fromkeys(texts)
        fresh = [text for text in wanted if (prompt, text) not in self._remembered]
        # Texts of similar length go together, so that little is computed for padding.
        counts = self.token_counts(fresh, prompt)
        order = sorted(range(len(fresh)), key=lambda i: (-counts[i], fresh[i]))
        ordered = [fresh[i] for i in order]
        parts = self._batch.rows(ordered, lambda some, size: self._pieces(some, size, prompt))
        rows = (row for part in parts for row in part)
        found = {
            text: self._remembered[prompt, text]
            for text in wanted
            if (prompt, text) in self._remembered
        }
        found.update(zip(ordered, rows, strict=True))
        self._remembered.update({(prompt, text): row for text, row in found.items()})
        while len(self._remembered) > _REMEMBERED_TEXTS:
            del self._remembered[next(iter(self._remembered))]
        return np.stack([found[text] for text in texts]) if texts else np.empty((0, 0), np.float32)

    def _pieces(self, texts: Sequence[str], size: int, prompt: str) -> Iterator[np.ndarray]:
        for start in range(0, len(texts), size):
            beat()
            yield self._computed(texts[start : start + size], prompt)

    def tokens(self, texts: Sequence[str], prompt: str = "") -> Any:
        """A batch of texts as the model takes it, on its device."""
        tokens = self._tokenizer(
            [prompt + text for text in texts],
            padding=True,
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        )
        return tokens.to(self.device)

    def forward(self, tokens: Any) -> torch.Tensor:
        """The transformer's vectors of each token."""
        vectors: torch.Tensor = self._model(**tokens).last_hidden_state
        return vectors

    def _computed(self, texts: Sequence[str], prompt: str) -> np.ndarray:
        import torch

        with torch.inference_mode(), torch_threads(self._threads):
            tokens = self.tokens(texts, prompt)
            counted = tokens["attention_mask"]
            if prompt and not self.layout.include_prompt:
                counted = _without_prompt(counted, self._prompt_tokens(prompt))
            rows = pooled(
                self.forward(tokens).float(), counted, tokens["attention_mask"], self.layout.pooling
            )
            for layer in self._after:
                rows = layer(rows.to(self.dtype)).float()
            lengths = torch.linalg.vector_norm(rows, dim=-1, keepdim=True)
            units = torch.nn.functional.normalize(rows, dim=-1)
            return units.masked_fill(lengths == 0, torch.nan).cpu().numpy()

    def _prompt_tokens(self, prompt: str) -> int:
        ids = self._tokenizer([prompt], verbose=False)["input_ids"][0]
        return len(ids) - (bool(ids) and ids[-1] in self._tokenizer.all_special_ids)


def load_tokenizer(layout: SentenceLayout) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(layout.transformer, local_files_only=True)
    if layout.lower_case:
        _lower_case(tokenizer)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _lower_case(tokenizer: Any) -> None:
    from tokenizers import normalizers

    before = tokenizer.backend_tokenizer.normalizer
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), *([] if before is None else [before])]
    )


def text_limit(layout: SentenceLayout, tokenizer: Any, config: Any) -> int:
    """The most tokens of a text that the model reads."""
    if layout.max_tokens is not None:
        return int(layout.max_tokens)
    positions = getattr(config, "max_position_embeddings", None)
    limits = [tokenizer.model_max_length, positions if positions and positions > 0 else None]
    return int(min((n for n in limits if n and n < _UNLIMITED), default=_UNLIMITED))


def _load_transformer(folder: Path) -> Any:
    model = load_backbone(folder)
    # T5 and the like: only the encoder makes vectors of a text.
    return model.get_encoder() if model.config.is_encoder_decoder else model


def _load_dense(dense: Dense) -> Any:
    import torch

    weights = _dense_weights(dense.folder)
    linear = torch.nn.Linear(dense.inputs, dense.outputs, bias=dense.has_bias)
    linear.load_state_dict(
        {name.removeprefix("linear."): value.float() for name, value in weights.items()}
    )
    return torch.nn.Sequential(linear, getattr(torch.nn, dense.activation)())


def _dense_weights(folder: Path) -> dict[str, torch.Tensor]:
    import torch

    path = folder / "model.safetensors"
    if path.is_file():
        from safetensors.torch import load_file

        return load_file(path)
    found: dict[str, torch.Tensor] = torch.load(
        folder / "pytorch_model.bin", map_location="cpu", weights_only=True
    )
    return found


def pooled(
    vectors: torch.Tensor, counted: torch.Tensor, mask: torch.Tensor, modes: Sequence[str]
) -> torch.Tensor:
    """One row per text from its tokens' vectors; several ways of pooling are joined.

    `mask` says which tokens are the text's, `counted` which of them are pooled.
    """
    import torch

    return torch.cat([_POOL[mode](vectors, counted, mask) for mode in modes], dim=-1)


def _without_prompt(mask: torch.Tensor, tokens: int) -> torch.Tensor:
    # Padding may be on the left: the prompt begins at the first token of the text.
    return mask * (mask.cumsum(dim=1) > tokens)


def _sums(vectors: torch.Tensor, weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    weights = weights.to(vectors.dtype).unsqueeze(-1)
    return (vectors * weights).sum(dim=1), weights.sum(dim=1).clamp(min=1e-9)


def _mean(vectors: torch.Tensor, counted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    total, count = _sums(vectors, counted)
    return total / count


def _mean_sqrt(vectors: torch.Tensor, counted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    total, count = _sums(vectors, counted)
    return total / count.sqrt()


def _weighted(vectors: torch.Tensor, counted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    total, count = _sums(vectors, counted * mask.cumsum(dim=1))
    return total / count


def _at(vectors: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    import torch

    return vectors[torch.arange(len(vectors), device=vectors.device), places]


def _first(vectors: torch.Tensor, counted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _at(vectors, counted.int().argmax(dim=1))


def _last(vectors: torch.Tensor, counted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return _at(vectors, counted.shape[1] - 1 - counted.flip(1).int().argmax(dim=1))


def _largest(vectors: torch.Tensor, counted: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return vectors.masked_fill(counted.unsqueeze(-1) == 0, -math.inf).amax(dim=1)


_POOL: dict[str, Callable[[Any, Any, Any], Any]] = {
    "cls": _first,
    "max": _largest,
    "mean": _mean,
    "mean_sqrt_len_tokens": _mean_sqrt,
    "weightedmean": _weighted,
    "lasttoken": _last,
}
