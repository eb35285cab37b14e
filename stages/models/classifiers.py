"""Image classifiers of transformers. Import it only after `prepare_torch`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import transformers

from clipmill.stages.models.generation import ModelPlacement, load_weights
from clipmill.stages.models.transformers_images import Label, PictureModel, numbers_of

Activation = Literal["auto", "softmax", "sigmoid", "none"]
WHAT = "an image classifier such as ViTForImageClassification"


class ImageClassifier(PictureModel):
    """A loaded classifier; its result for a picture is the score of the labels together."""

    def __init__(
        self,
        folder: Path,
        setting: str,
        place: ModelPlacement,
        labels: Sequence[Label],
        activation: Activation,
        *,
        batch: int = 1,
        load: Any = load_weights,
    ) -> None:
        super().__init__(
            transformers.AutoModelForImageClassification,
            WHAT,
            folder,
            setting,
            place,
            batch=batch,
            load=load,
        )
        stage = setting.rpartition(".")[0]
        self.chosen = numbers_of(labels, self.names, f"{stage}.label")
        self.activation = (
            activation if activation != "auto" else published_activation(self.model.config)
        )

    def results(self, outputs: Any, count: int) -> list[float]:
        """Probabilities of classes that exclude each other are added; else the largest counts."""
        logits = outputs.logits.reshape(count, -1).float()
        if self.activation == "softmax":
            found = torch.softmax(logits, dim=-1)[:, self.chosen].sum(dim=-1)
        else:
            if self.activation == "sigmoid":
                logits = torch.sigmoid(logits)
            found = logits[:, self.chosen].amax(dim=-1)
        scores: list[float] = found.cpu().tolist()
        return scores


def published_activation(config: Any) -> Activation:
    """What transformers' own pipeline applies to the outputs of a model with this configuration."""
    problem = getattr(config, "problem_type", None)
    if problem == "regression":
        return "none"
    if problem == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"
