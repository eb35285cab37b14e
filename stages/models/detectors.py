"""Object detectors of transformers. Import it only after `prepare_torch`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.generation import ModelPlacement, load_weights
from clipmill.stages.models.transformers_images import Label, PictureModel, numbers_of

WHAT = "an object detector such as RT-DETR, DETR or YOLOS"


class ObjectDetector(PictureModel):
    """A loaded detector; its result for a picture is an array of boxes, as in `boxes`."""

    def __init__(
        self,
        folder: Path,
        setting: str,
        place: ModelPlacement,
        labels: Sequence[Label],
        least_confidence: float,
        *,
        batch: int = 1,
        load: Any = load_weights,
    ) -> None:
        super().__init__(
            transformers.AutoModelForObjectDetection,
            WHAT,
            folder,
            setting,
            place,
            batch=batch,
            load=load,
        )
        if not hasattr(self.processor, "post_process_object_detection"):
            raise ClipmillError(
                f"{self.where}: its image processor ({type(self.processor).__name__}) doesn't turn "
                "a detector's outputs into boxes; see its preprocessor_config.json"
            )
        stage = setting.rpartition(".")[0]
        self.chosen = numbers_of(labels, self.names, f"{stage}.label")
        self._least_confidence = least_confidence

    def results(self, outputs: Any, count: int) -> list[np.ndarray]:
        for name in ("logits", "pred_boxes"):
            outputs[name] = outputs[name].float().cpu()
        found = self.processor.post_process_object_detection(
            # Of a picture of 1 × 1, the pixels are shares.
            outputs,
            threshold=self._least_confidence,
            target_sizes=[(1, 1)] * count,
        )
        results = []
        for one in found:
            boxes = np.column_stack([one["boxes"].numpy(), one["scores"].numpy()])
            wanted = np.isin(one["labels"].numpy(), self.chosen)
            results.append(boxes[wanted].astype(np.float32))
        return results
