"""Video–text models of transformers: X-CLIP and VideoPrism."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.media.read.images import FitMode, Interpolation
from clipmill.stages.models.video_text.base import (
    Loading,
    TwoTowers,
    VideoTextModel,
    configuration,
    counted,
)
from clipmill.stages.models.video_text.frame_preparation import FramePreparation

if TYPE_CHECKING:
    import torch


class _OfTransformers(VideoTextModel):
    """A model in transformers' format, with its tokenizer beside it."""

    def _load_as(
        self,
        model_class: Any,
        loading: Loading,
        processor: str,
        *,
        mode: FitMode,
        normalised: bool,
        interpolation: Interpolation,
    ) -> None:
        """Loads the folder; `processor` is its file about frames, the rest what that omits."""
        from transformers import AutoTokenizer

        folder = loading.folder
        model: Any = model_class.from_pretrained(
            folder, dtype=self.dtype, local_files_only=True, weights_only=True
        )
        self._tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self._model = model.to(self.device).eval()
        vision = model.config.vision_config
        self.frames = int(vision.num_frames)
        self.context = int(model.config.text_config.max_position_embeddings)
        side = vision.image_size
        self._prepare = FramePreparation.from_processor(
            (side, side) if isinstance(side, int) else (int(side[0]), int(side[1])),
            configuration(folder, processor),
            mode=mode,
            normalised=normalised,
            interpolation=interpolation,
        )

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return counted(self._tokenizer, texts)


class XCLIP(_OfTransformers):
    """Adapts each text to the video before it compares them, so both go through it together."""

    def _load(self, loading: Loading) -> None:
        from transformers import XCLIPModel

        self._load_as(
            XCLIPModel,
            loading,
            "preprocessor_config.json",
            mode="crop",
            normalised=True,
            interpolation="bilinear",
        )

    def cosines(
        self, clips: Sequence[Sequence[bytes]], texts: Sequence[Sequence[str]]
    ) -> list[np.ndarray]:
        pairs = [(clip, text) for clip, own in zip(clips, texts, strict=True) for text in own]
        done = self._clips.rows(pairs, self._cosines)
        flat = np.concatenate(done) if done else np.empty(0, np.float32)
        return np.split(flat, np.cumsum([len(own) for own in texts])[:-1]) if len(clips) else []

    def _cosines(
        self, pairs: Sequence[tuple[Sequence[bytes], str]], size: int
    ) -> Iterator[np.ndarray]:
        for start in range(0, len(pairs), size):
            beat()
            clips, texts = zip(*pairs[start : start + size], strict=True)
            yield self._batch_of_cosines(clips, texts)

    def _batch_of_cosines(
        self, clips: Sequence[Sequence[bytes]], texts: Sequence[str]
    ) -> np.ndarray:
        import torch

        pixels = self._pixels(clips, self._prepare)
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.context, return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            found = self._model(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                pixel_values=pixels,
            )
            # X-CLIP compares each text with each video: the matching pairs are on the diagonal.
            own = found.text_embeds.float()[range(len(clips)), range(len(clips))]
            seen = found.video_embeds.float()
            cosines = torch.nn.functional.cosine_similarity(seen, own)
            return cosines.masked_fill(~(seen.any(-1) & own.any(-1)), torch.nan).cpu().numpy()


class VideoPrism(_OfTransformers, TwoTowers):
    """VideoPrism with its text tower (`videoprism-lvt-…`); 64 tokens."""

    def _load(self, loading: Loading) -> None:
        from transformers import VideoPrismClipModel

        self._load_as(
            VideoPrismClipModel,
            loading,
            "video_preprocessor_config.json",
            mode="squash",
            normalised=False,
            interpolation="bicubic",
        )

    def _embedded_clips(self, clips: Sequence[Sequence[bytes]]) -> torch.Tensor:
        pixels = self._pixels(clips, self._prepare)
        found: torch.Tensor = self._model.get_video_features(pixels).pooler_output
        return found.reshape(len(clips), 1, -1)

    def _embedded_texts(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self._tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self.context,
            return_tensors="pt",
        ).to(self.device)
        found: torch.Tensor = self._model.get_text_features(
            tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output
        return found
