"""Checks of models that classify pictures, or find objects in them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.checks.packages import packages_explained
from clipmill.stages.models.checks.pictures import example_jpeg
from clipmill.stages.models.checks.skeleton import load_skeleton
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.classifiers import Activation


def check_classifier(
    reference: ModelReference, setting: str, labels: Sequence[str | int], activation: Activation
) -> str:
    """What is known of an image classifier; ClipmillError if the stage can't classify with it."""
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    with packages_explained(setting):
        from clipmill.stages.models.classifiers import ImageClassifier

        folder = local_folder(reference, setting=setting)
        model = ImageClassifier(folder, setting, _nowhere(), labels, activation, load=load_skeleton)
        chosen = ", ".join(model.names[number] for number in model.chosen)
        return f"{type(model.model).__name__}, {model.activation} of {chosen}; {_pictures(model)}"


def check_detector(reference: ModelReference, setting: str, labels: Sequence[str | int]) -> str:
    """What is known of an object detector; ClipmillError if the stage can't find objects by it."""
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    with packages_explained(setting):
        from clipmill.stages.models.detectors import ObjectDetector

        folder = local_folder(reference, setting=setting)
        model = ObjectDetector(folder, setting, _nowhere(), labels, 0.5, load=load_skeleton)
        chosen = ", ".join(model.names[number] for number in model.chosen)
        return f"{type(model.model).__name__}, finds {chosen}; {_pictures(model)}"


def _nowhere() -> Any:
    import torch

    from clipmill.stages.models.generation import ModelPlacement

    return ModelPlacement(torch.device("meta"), torch.float32)


def _pictures(model: Any) -> str:
    """The size to which a model's processor brings pictures; ClipmillError if it can't."""
    from clipmill.stages.media.read.images import decode_jpeg

    try:
        prepared = model.prepare(decode_jpeg(example_jpeg()))["pixel_values"]
    # A malformed folder raises many kinds of errors.
    except Exception as error:
        raise ClipmillError(
            f"{model.where}: its image processor can't prepare a picture "
            f"({type(error).__name__}: {error}); see its preprocessor_config.json"
        ) from error
    *_, height, width = prepared.shape
    wanted = getattr(model.model.config, "image_size", None)
    if isinstance(wanted, int) and (height, width) != (wanted, wanted):
        raise ClipmillError(
            f"{model.where}: its image processor makes pictures of {width} × {height} pixels, the "
            f"model takes {wanted} × {wanted}; see its preprocessor_config.json"
        )
    return f"pictures of {width} × {height}"
