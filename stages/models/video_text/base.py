"""What all video–text models share: they compare clips, given as JPEG frames, with texts."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from clipmill.schemas.errors import UsageError
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.media.read.images import decode_jpeg
from clipmill.stages.models.batch_size import BatchSize
from clipmill.stages.models.video_text.frame_preparation import FramePreparation

if TYPE_CHECKING:
    import torch

# Texts are short next to clips: more of them fit into one call.
_TEXTS_PER_CLIP = 8


@dataclass(frozen=True)
class Loading:
    """Where a model's files are, and how to load and run it."""

    folder: Path
    setting: str
    device: torch.device
    dtype: torch.dtype
    batch_clips: int = 8
    preparation: str | None = None
    """The name of one of those published for the model; None for its default."""


class VideoTextModel(ABC):
    """One loaded model.

    `frames` is the number of frames per clip that it takes, None if it takes any; `context` the
    number of tokens that it reads of a text, its special tokens included.
    """

    frames: int | None
    context: int

    def __init__(self, loading: Loading) -> None:
        self.device, self.dtype = loading.device, loading.dtype
        self._clips = BatchSize(loading.batch_clips)
        self._texts = BatchSize(loading.batch_clips * _TEXTS_PER_CLIP)
        self._load(loading)

    @abstractmethod
    def _load(self, loading: Loading) -> None:
        """Loads weights and tokenizer; any exception means that the folder is not as expected."""

    @abstractmethod
    def token_counts(self, texts: Sequence[str]) -> list[int]:
        """The tokens of each text, special ones included, as if the context had no end."""

    @abstractmethod
    def cosines(
        self, clips: Sequence[Sequence[bytes]], texts: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        """The cosines of each clip, given as JPEG frames in time order, with its own texts.

        If a clip has fewer frames than the model takes, some are repeated. A text longer than the
        model's context is truncated. NaN if clip or text has no direction.
        """

    def _pixels(self, clips: Sequence[Sequence[bytes]], prepare: FramePreparation) -> torch.Tensor:
        """Prepared frames of shape (clips, frames, 3, height, width).

        If the model takes any number of frames, the clips have equally many.
        """
        import torch

        count = self.frames or len(clips[0])
        shown = [decode_jpeg(data) for clip in clips for data in spread(clip, count)]
        pixels = torch.from_numpy(prepare(shown)).to(self.device, self.dtype)
        return pixels.view(len(clips), count, *pixels.shape[1:])


class TwoTowers(VideoTextModel):
    """A model that embeds clips and texts separately.

    A clip has one embedding or several, whose cosines are averaged.
    """

    @abstractmethod
    def _embedded_clips(self, clips: Sequence[Sequence[bytes]]) -> torch.Tensor:
        """Raw embeddings of shape (clips, embeddings per clip, d)."""

    @abstractmethod
    def _embedded_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Raw embeddings of shape (texts, d)."""

    def cosines(
        self, clips: Sequence[Sequence[bytes]], texts: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        if not clips:
            return []
        seen = self._seen(clips)
        distinct = list(dict.fromkeys(text for own in texts for text in own))
        read = self._texts.rows(distinct, self._units(self._embedded_texts))
        vectors = dict(zip(distinct, (row for part in read for row in part), strict=True))
        return [
            (np.stack([vectors[text] for text in own]) @ clip.T).mean(axis=1)
            for clip, own in zip(seen, texts, strict=True)
        ]

    def _seen(self, clips: Sequence[Sequence[bytes]]) -> list[np.ndarray]:
        """The embeddings of each clip.

        Where a model takes any number of frames, those of a clip must not depend on the clips that
        it shares a batch with: only clips with equally many share one.
        """
        alike: dict[int | None, list[int]] = {}
        for i, clip in enumerate(clips):
            alike.setdefault(len(clip) if self.frames is None else None, []).append(i)
        found: dict[int, np.ndarray] = {}
        for places in alike.values():
            parts = self._clips.rows([clips[i] for i in places], self._units(self._embedded_clips))
            found.update(zip(places, (row for part in parts for row in part), strict=True))
        return [found[i] for i in range(len(clips))]

    @staticmethod
    def _units(
        embed: Callable[[Sequence[Any]], torch.Tensor],
    ) -> Callable[[Sequence[Any], int], Iterable[np.ndarray]]:
        """`embed` in batches, with results of length 1; NaN for a zero row: it has no direction."""
        import torch

        def batches(items: Sequence[Any], size: int) -> Iterator[np.ndarray]:
            for start in range(0, len(items), size):
                beat()
                with torch.inference_mode():
                    found = embed(items[start : start + size]).float()
                    unit = torch.nn.functional.normalize(found, dim=-1)
                    zero = ~found.any(dim=-1, keepdim=True)
                    yield unit.masked_fill(zero, torch.nan).cpu().numpy()

        return batches


class FromWeights(TwoTowers):
    """A model without a configuration: the shapes of its tensors give all sizes."""

    preparations: ClassVar[Mapping[str, FramePreparation]]
    """Ways to prepare frames that were published for the model, its default first."""

    @classmethod
    @abstractmethod
    def check(cls, folder: Path) -> None:
        """Raises if the folder lacks something that loading needs; reads no numbers of weights."""

    @classmethod
    def preparation(cls, setting: str, named: str | None) -> FramePreparation:
        """The one that a setting names, or the first; UsageError for other names."""
        name = named or next(iter(cls.preparations))
        if name not in cls.preparations:
            raise UsageError(
                f"{setting}: for this model preprocessing can be "
                f"{' or '.join(cls.preparations)}, not {name!r}"
            )
        return cls.preparations[name]


def spread(frames: Sequence[bytes], count: int) -> list[bytes]:
    """`count` of the frames, evenly spaced, in order."""
    return [frames[i * len(frames) // count] for i in range(count)]


def counted(tokenizer: Any, texts: Sequence[str]) -> list[int]:
    """The tokens of each text by a tokenizer of transformers, without truncation."""
    if not texts:
        return []
    # Not verbose: it would warn of every text beyond the model's limit.
    return [len(ids) for ids in tokenizer(list(texts), verbose=False)["input_ids"]]


def configuration(folder: Path, name: str = "config.json") -> dict[str, Any]:
    """A JSON file of a model's folder; empty if it isn't there."""
    place = folder / name
    found: dict[str, Any] = json.loads(place.read_text("utf-8")) if place.is_file() else {}
    return found
