"""Measures classify_frames against the bare classifier: ViT-B/16 at 224 pixels, random weights.

    python -m benchmarks.signal_models --stage classify_frames [--rounds 5]

Both compute in float32 on all cores; the bare model gets inputs that are ready.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.signal_models._frames import as_clips, compare, film_frames, parsed
from clipmill.stages.classify_frames import ClassifyFrames
from clipmill.stages.models.torch_setup import prepare_torch


def main(options: Sequence[str]) -> None:
    given = parsed("classify_frames", __doc__, options)
    prepare_torch()
    import torch
    import transformers

    from benchmarks.signal_models._published import vit_base

    some = list(film_frames(given.videos).values())[: given.frames]
    with tempfile.TemporaryDirectory() as folder:
        stage = ClassifyFrames(
            model=str(vit_base(Path(folder))), label="nsfw", cpus=torch.get_num_threads()
        )
        model = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
        pixels = torch.rand(min(stage.batch_images, len(some)), 3, 224, 224)

        @torch.inference_mode()
        def bare() -> None:
            for _ in range(0, len(some), stage.batch_images):
                model(pixel_values=pixels)

        compare(stage, as_clips(some), {"the model, inputs ready": bare}, given.rounds)
