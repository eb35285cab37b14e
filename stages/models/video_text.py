"""Video–text models: transformers' X-CLIP, which takes several frames in order."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.read.images import decode_jpeg, to_batch
from clipmill.stages.models.batch_size import BatchSize
from clipmill.stages.models.embedders import DType
from clipmill.stages.models.loading import local_folder
from clipmill.stages.models.torch_setup import best_device, default_dtype, prepare_torch, say_place
from clipmill.stages.references import ModelReference

# From the preprocessor_config.json of the published checkpoints.
_MEAN, _STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
_BICUBIC = 3  # PIL's number


class VideoTextModel:
    """One loaded X-CLIP; `frames` is the number of frames per clip that it takes."""

    def __init__(
        self,
        reference: ModelReference,
        *,
        setting: str,
        dtype: DType = "auto",
        batch_clips: int = 8,
    ) -> None:
        prepare_torch()
        import torch
        from transformers import AutoTokenizer, XCLIPModel

        self._batch = BatchSize(batch_clips)
        folder = local_folder(reference, setting=setting)
        self._device = best_device()
        self._dtype = default_dtype(self._device) if dtype == "auto" else getattr(torch, dtype)
        say_place(setting, reference, self._device, self._dtype)
        try:
            kind = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
            if kind != "xclip":
                raise ValueError(f"its model_type is {kind!r}, not 'xclip'")
            model: Any = XCLIPModel.from_pretrained(
                folder, dtype=self._dtype, local_files_only=True, weights_only=True
            )
            self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            place = folder / "preprocessor_config.json"
            self._images = json.loads(place.read_text("utf-8")) if place.is_file() else {}
        # A malformed folder raises many kinds of errors.
        except Exception as error:
            raise ClipmillError(
                f"{setting}: {reference} in {folder} cannot be loaded as X-CLIP: "
                f"{type(error).__name__}: {error}"
            ) from error
        self._model = model.to(self._device).eval()
        vision = model.config.vision_config
        self.frames: int = vision.num_frames
        self._size = (vision.image_size, vision.image_size)
        self._context: int = model.config.text_config.max_position_embeddings

    def cosines(self, clips: Sequence[Sequence[bytes]], texts: Sequence[str]) -> np.ndarray:
        """The cosine of each clip, given as JPEG frames in time order, with its own text.

        If a clip has fewer frames than the model takes, some are repeated. A text longer than the
        model's context is truncated. NaN if either of them has no direction.
        """
        done = self._batch.rows(list(zip(clips, texts, strict=True)), self._cosines)
        return np.concatenate(done) if done else np.empty(0, np.float32)

    def _cosines(
        self, pairs: Sequence[tuple[Sequence[bytes], str]], size: int
    ) -> Iterator[np.ndarray]:
        for start in range(0, len(pairs), size):
            clips, texts = zip(*pairs[start : start + size], strict=True)
            yield self._batch_of_cosines(clips, texts)

    def _batch_of_cosines(
        self, clips: Sequence[Sequence[bytes]], texts: Sequence[str]
    ) -> np.ndarray:
        import torch

        shown = [data for clip in clips for data in _spread(clip, self.frames)]
        pixels = to_batch(
            [decode_jpeg(data) for data in shown],
            self._size,
            self._images.get("image_mean", _MEAN),
            self._images.get("image_std", _STD),
            "crop",
            "bicubic" if self._images.get("resample") == _BICUBIC else "bilinear",
        )
        tokens = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._context,
            return_tensors="pt",
        ).to(self._device)
        with torch.inference_mode():
            videos = torch.from_numpy(pixels).to(self._device, self._dtype)
            found = self._model(
                input_ids=tokens["input_ids"],
                attention_mask=tokens["attention_mask"],
                pixel_values=videos.view(len(clips), self.frames, *pixels.shape[1:]),
            )
            # X-CLIP compares each text with each video: the matching pairs are on the diagonal.
            own = found.text_embeds.float()[range(len(clips)), range(len(clips))]
            seen = found.video_embeds.float()
            cosines = torch.nn.functional.cosine_similarity(seen, own)
            return cosines.masked_fill(~(seen.any(-1) & own.any(-1)), torch.nan).cpu().numpy()


def _spread(frames: Sequence[bytes], count: int) -> list[bytes]:
    """`count` of the frames, evenly spaced, in order."""
    return [frames[i * len(frames) // count] for i in range(count)]
