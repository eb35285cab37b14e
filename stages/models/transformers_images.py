"""Loads models of transformers that take single pictures, with their own image processors.

Import it only after `prepare_torch`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.models.batch_size import BatchSize
from clipmill.stages.models.embedders import DType
from clipmill.stages.models.generation import ModelPlacement, load_config, load_weights
from clipmill.stages.models.torch_setup import best_device, default_dtype, say_place
from clipmill.stages.references import ModelReference

_MOST_NAMES = 12
Label = str | int


class PictureModel:
    """A model, and how its own image processor prepares a picture.

    `auto_class` is the one of transformers that loads it, `what` says what kind of model is needed,
    `load` builds the model in place of `load_weights`.
    """

    def __init__(
        self,
        auto_class: Any,
        what: str,
        folder: Path,
        setting: str,
        place: ModelPlacement,
        *,
        batch: int = 1,
        load: Any = load_weights,
    ) -> None:
        self.where = f"{setting}: {folder}"
        config = load_config(folder, setting, trust_remote_code=False)
        if type(config) not in auto_class._model_mapping:
            raise ClipmillError(f"{self.where} is a {config.model_type}; the stage needs {what}")
        self.model = load(auto_class, folder, setting, place, trust_remote_code=False)
        self.place = place
        self._size = BatchSize(batch)
        try:
            self.processor: Any = transformers.AutoImageProcessor.from_pretrained(
                folder, local_files_only=True
            )
        except ImportError:
            raise
        # A malformed folder raises many kinds of errors.
        except Exception as error:
            raise ClipmillError(
                f"{self.where}: its image processor can't be loaded; see its "
                f"preprocessor_config.json ({type(error).__name__}: {error})"
            ) from error
        self.names: dict[int, str] = {
            int(number): str(name) for number, name in self.model.config.id2label.items()
        }

    def prepare(self, image: np.ndarray) -> dict[str, torch.Tensor]:
        """The model's inputs for an RGB picture, each with one row."""
        found = self.processor(images=Image.fromarray(image), return_tensors="pt")
        return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}

    def outputs(self, prepared: Sequence[dict[str, torch.Tensor]]) -> list[Any]:
        """What `results` gives for each of some prepared pictures, in their order.

        Only pictures of one size share a batch: none is padded, so that its result doesn't depend
        on the others.
        """
        by_shape: dict[torch.Size, list[int]] = {}
        for number, inputs in enumerate(prepared):
            by_shape.setdefault(inputs["pixel_values"].shape, []).append(number)
        found: list[Any] = [None] * len(prepared)
        for numbers in by_shape.values():
            of_lists: Any = self._computed  # a batch's results are counted, whatever they are
            parts = self._size.rows([prepared[number] for number in numbers], of_lists)
            results = (result for part in parts for result in part)
            for number, result in zip(numbers, results, strict=True):
                found[number] = result
        return found

    def _computed(
        self, prepared: Sequence[dict[str, torch.Tensor]], size: int
    ) -> Iterable[list[Any]]:
        for start in range(0, len(prepared), size):
            rows = prepared[start : start + size]
            inputs = {
                name: torch.cat([row[name] for row in rows]).to(self.place.device)
                for name in rows[0]
            }
            inputs["pixel_values"] = inputs["pixel_values"].to(self.place.dtype)
            with torch.inference_mode():
                yield self.results(self.model(**inputs), len(rows))

    def results(self, outputs: Any, count: int) -> list[Any]:
        """One result per picture of a batch."""
        raise NotImplementedError


def placement(setting: str, model: ModelReference, dtype: DType) -> ModelPlacement:
    """The first GPU, else the CPU; it is written to the log and the run's record."""
    device = best_device()
    chosen = default_dtype(device) if dtype == "auto" else getattr(torch, dtype)
    say_place(setting, model, device, chosen)
    return ModelPlacement(device, chosen)


def numbers_of(labels: Sequence[Label], names: dict[int, str], setting: str) -> list[int]:
    """The model's numbers of classes, given by name, whatever its case, or by number.

    UsageError with the model's names if there is no such class.
    """
    found = []
    for label in labels:
        if isinstance(label, int):
            fitting = [label] if label in names else []
        else:
            fitting = [number for number, name in names.items() if name == label] or [
                number for number, name in names.items() if name.lower() == label.lower()
            ]
        if not fitting:
            known = [f"{name} ({number})" for number, name in sorted(names.items())[:_MOST_NAMES]]
            more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
            raise UsageError(
                f"{setting}: the model has no class {label!r}; its classes are "
                f"{', '.join(known)}{more}"
            )
        found += fitting
    return list(dict.fromkeys(found))
