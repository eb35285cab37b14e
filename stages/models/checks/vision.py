"""Checks of models that embed images, without their weights."""

from __future__ import annotations

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.models.checks.packages import packages_explained
from clipmill.stages.models.checks.pictures import example_jpeg
from clipmill.stages.references import DataFile, ModelReference


def check_vision_model(
    model: ModelReference | None, weights: DataFile, architecture: str, label: str
) -> str:
    """What is known of a vision model; ClipmillError if it can't be used as one."""
    from clipmill.stages.media.fetch.data_files import local_file
    from clipmill.stages.models.checks.skeleton import load_skeleton
    from clipmill.stages.models.image_models import (
        check_is_vision,
        kind_of_folder,
        load_vision_model,
        transformers_preparation,
    )
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    setting = f"{label}.{'weights' if model is None else 'model'}"
    if model is None:
        local_file(weights, setting=setting)
    else:
        folder = local_folder(model, setting=setting)
        with packages_explained(setting):
            try:
                if kind_of_folder(folder) == "transformers":
                    from transformers import AutoModel

                    check_is_vision(folder)
                    skeleton = load_skeleton(AutoModel, folder, setting, trust_remote_code=False)
                    transformers_preparation(folder)([example_jpeg()])
                    width = getattr(skeleton.config, "hidden_size", None)
                    size = f", embeddings of {width} numbers" if width else ""
                    return f"{type(skeleton).__name__}{size}"
            except (UsageError, ImportError):
                raise
            except ClipmillError as error:
                said = str(error)
                raise ClipmillError(
                    said if said.startswith(setting) else f"{setting}: {said}"
                ) from error
    # timm's models are small, and building one without weights takes as long as loading it.
    loaded = load_vision_model(model, weights, architecture, setting=label)
    width = loaded.embed_images([example_jpeg()]).shape[1]
    height, across = loaded.prepare.size
    named = architecture if model is None else model
    return f"{named}, embeddings of {width} numbers; pictures of {across} × {height}"
