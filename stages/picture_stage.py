"""Shared by stages that show each kept frame to a model of transformers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from clipmill.stages.frame_stage import FrameStage
from clipmill.stages.models.embedders import DType
from clipmill.stages.models.frame_batches import FrameBatches
from clipmill.stages.models.loading import local_folder
from clipmill.stages.protocol import resource
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.generation import ModelPlacement
    from clipmill.stages.models.transformers_images import PictureModel


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else [value]


Labels = Annotated[tuple[str | int, ...], BeforeValidator(_as_list)]
"""Classes of a model by name or number; one may stand without a list."""


class PictureStage(FrameStage):
    """Settings of a stage with a model of transformers that takes single pictures."""

    dtype: DType = Field(
        "float32",
        description="number format of the model; published thresholds are for float32; auto is "
        "bfloat16 if the CPU or GPU has instructions for it, otherwise float32",
    )
    batch_images: int = resource(
        16, ge=1, description="frames per model call; halved when memory runs out"
    )

    @property
    def most_gpus(self) -> float | None:
        return 1.0

    @contextmanager
    def batches(
        self, model: ModelReference, load: Callable[[Path, str, ModelPlacement], PictureModel]
    ) -> Iterator[FrameBatches]:
        """`load` makes the model from its folder, the setting that names it, and its place."""
        from clipmill.stages.models.torch_setup import prepare_torch

        prepare_torch()
        from clipmill.stages.models.transformers_images import placement

        setting = f"{self.name}.model"
        folder = local_folder(model, setting=setting)
        place = placement(setting, model, self.dtype)
        loaded = load(folder, setting, place)
        with FrameBatches(
            loaded.prepare,
            loaded.outputs,
            batch=self.batch_images,
            threads=self.threads,
            together=True,
            ahead=place.device.type != "cpu",
        ) as batches:
            yield batches
