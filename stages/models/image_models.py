"""Embeddings of images by vision models of timm and transformers, and by single files of weights.

A folder or hub repository with `architecture` in its `config.json` is timm's, one with `model_type`
transformers'. A file of weights belongs to an architecture of timm that is named with it.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.extras import extras_explained
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.media.read.images import FitMode
from clipmill.stages.models.backbones import load_backbone
from clipmill.stages.models.checks.packages import packages_explained
from clipmill.stages.models.embedders import weights_file
from clipmill.stages.models.image_embedders import ImageEmbedder, ImagePreparation
from clipmill.stages.models.loading import local_folder
from clipmill.stages.models.torch_setup import best_device, default_dtype, prepare_torch, say_place
from clipmill.stages.references import DataFile, ModelReference

if TYPE_CHECKING:
    import torch

Fit = Literal["model", "whole"]
Vectors = Callable[["torch.Tensor"], "torch.Tensor"]
_CONFIGURATION = "config.json"
_BILINEAR = 2  # PIL's number
_TIMM_FIT: dict[str, FitMode] = {"center": "crop", "squash": "squash", "border": "pad"}
# EfficientNet-Lite as converted by efficientnet-lite-pytorch: its layers have other names than
# timm's, in the same order.
_OTHER_NAMES = "_conv_stem.weight"


class VisionModel(ImageEmbedder):
    """A vision model with its preparation; `vectors` gives one row of features per image."""

    def __init__(
        self,
        model: torch.nn.Module,
        vectors: Vectors,
        prepare: ImagePreparation,
        *,
        place: object,
        setting: str,
        dtype: str = "float32",
        batch_images: int = 32,
        threads: int = 1,
    ) -> None:
        import torch

        device = best_device()
        number = default_dtype(device) if dtype == "auto" else getattr(torch, dtype)
        say_place(setting, place, device, number)
        model.to(device=device, dtype=number).eval()
        self._vectors = vectors
        super().__init__(
            prepare,
            device=device,
            dtype=number,
            batch_images=batch_images,
            threads=threads,
            most_threads=threads,
        )

    @property
    def image_model(self) -> Vectors:
        return self._vectors


def load_vision_model(
    model: ModelReference | None,
    weights: DataFile,
    architecture: str,
    *,
    setting: str,
    fit: Fit = "model",
    **options: Any,
) -> VisionModel:
    """A model from a folder or the hub, or else weights for an architecture of timm.

    `setting` is the stage's name, for errors. With `fit: whole`, the whole picture is squashed to
    the model's size, otherwise its middle is taken as the model has it.
    """
    prepare_torch()
    with packages_explained(setting):
        if model is None:
            path = local_file(weights, setting=f"{setting}.weights")
            named: object = path
            loaded = timm_model(architecture, f"{setting}.architecture")
            setting = f"{setting}.weights"
            try:
                _load_weights(loaded, architecture, path)
            except ClipmillError as error:
                raise ClipmillError(f"{setting}: {error}") from error
            vectors: Vectors = loaded
            preparation = _timm_preparation(loaded)
        else:
            setting = f"{setting}.model"
            folder = local_folder(model, setting=setting)
            named = folder
            try:
                loaded, vectors, preparation = _from_folder(folder, setting)
            except (UsageError, ImportError):
                raise
            except ClipmillError as error:
                raise ClipmillError(f"{setting}: {error}") from error
            except Exception as error:  # a malformed folder raises many kinds of errors
                raise ClipmillError(
                    f"{setting}: the model in {folder} cannot be loaded: "
                    f"{type(error).__name__}: {error}"
                ) from error
    if fit == "whole":
        preparation = ImagePreparation(
            preparation.size,
            preparation.mean,
            preparation.std,
            "squash",
            preparation.interpolation,
            preparation.fill,
        )
    return VisionModel(loaded, vectors, preparation, place=named, setting=setting, **options)


def timm_model(architecture: str, setting: str, **options: Any) -> Any:
    """An architecture of timm without weights and without its classifier."""
    with extras_explained("signals"):
        import timm
    try:
        return timm.create_model(architecture, pretrained=False, num_classes=0, **options)
    except RuntimeError as error:
        near = timm.list_models(f"*{architecture.partition('_')[0]}*")[:5]
        hint = f"; similar ones: {', '.join(near)}" if near else ""
        raise UsageError(f"{setting}: timm has no model {architecture!r}{hint}") from error


def _load_weights(model: Any, architecture: str, path: Path) -> None:
    """Loads a file's weights, without those of a classifier; ClipmillError if they don't fit."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ClipmillError(
            f"{path} contains a pickle with more than weights, which may run code when it is "
            "loaded; use safetensors"
        ) from error
    except Exception as error:  # safetensors has its own error for a damaged file, torch several
        raise ClipmillError(
            f"{path} is damaged or not complete, fetch it again ({type(error).__name__}: {error})"
        ) from error
    state = state.get("state_dict", state)
    wanted = model.state_dict()
    if _OTHER_NAMES in state:
        # The last ones are the classifier's.
        state = dict(zip(wanted, state.values(), strict=False))
    other = [
        name
        for name, value in wanted.items()
        if name not in state or state[name].shape != value.shape
    ]
    if other:
        raise ClipmillError(
            f"{path} doesn't fit timm's {architecture}: {len(other)} of {len(wanted)} weights are "
            f"missing or of another size, the first of them {other[0]}"
        )
    model.load_state_dict({name: state[name] for name in wanted})


def _timm_preparation(model: Any) -> ImagePreparation:
    from timm.data.config import resolve_model_data_config

    config = resolve_model_data_config(model)
    height, width = (int(side) for side in config["input_size"][1:])
    mode = _TIMM_FIT[config["crop_mode"]]
    scaled = None
    if mode == "crop" and config["crop_pct"] != 1:
        # As timm: rounded down.
        scaled = int(height / config["crop_pct"]), int(width / config["crop_pct"])
    return ImagePreparation(
        (height, width),
        tuple(config["mean"]),
        tuple(config["std"]),
        mode,
        "bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        0,
        scaled,
    )


def kind_of_folder(folder: Path) -> Literal["timm", "transformers"]:
    """Whose layout a model's folder has; ClipmillError if neither."""
    place = folder / _CONFIGURATION
    config = json.loads(place.read_text("utf-8")) if place.is_file() else {}
    if config.get("architecture"):
        return "timm"
    if config.get("model_type"):
        return "transformers"
    raise ClipmillError(
        f"{folder} contains no config.json of a model of timm (with `architecture`) or of "
        "transformers (with `model_type`)"
    )


def _from_folder(folder: Path, setting: str) -> tuple[Any, Vectors, ImagePreparation]:
    if kind_of_folder(folder) == "timm":
        config = json.loads((folder / _CONFIGURATION).read_text("utf-8"))
        architecture = config["architecture"]
        model = timm_model(
            architecture,
            setting,
            pretrained_cfg_overlay=config.get("pretrained_cfg"),
            **config.get("model_args", {}),
        )
        _load_weights(model, architecture, weights_file(folder))
        return model, model, _timm_preparation(model)
    check_is_vision(folder)
    backbone = load_backbone(folder)
    return backbone, features_of(backbone), transformers_preparation(folder)


def check_is_vision(folder: Path) -> None:
    """ClipmillError for models of transformers that need more than an image."""
    config = json.loads((folder / _CONFIGURATION).read_text("utf-8"))
    if "text_config" in config or "vision_config" in config:
        raise ClipmillError(
            f"{folder} is a model of pictures and texts ({config['model_type']}), for embed_clips; "
            "embed_images takes vision models such as facebook/dinov2-base"
        )


def features_of(model: Any) -> Vectors:
    """What makes one vector of an image of a model of transformers.

    The pooled output, unless a learned linear pooler makes it: such poolers were trained for
    another task, and published files often lack them. Then the first token (CLS) counts.
    """
    import torch

    pooler = getattr(model, "pooler", None)
    is_learned = pooler is not None and any(
        isinstance(module, torch.nn.Linear) for module in pooler.modules()
    )

    def vectors(pixels: torch.Tensor) -> torch.Tensor:
        found = model(pixel_values=pixels)
        rows = None if is_learned else getattr(found, "pooler_output", None)
        if rows is None:
            hidden = found.last_hidden_state
            rows = hidden[:, 0] if hidden.ndim == 3 else hidden.mean(dim=(2, 3))
        return torch.flatten(rows, 1)

    return vectors


def transformers_preparation(folder: Path) -> ImagePreparation:
    """How a model of transformers wants its images; ClipmillError if that is more than to resize,
    crop and normalise.
    """
    place = folder / "preprocessor_config.json"
    config = json.loads(place.read_text("utf-8")) if place.is_file() else {}
    size = config.get("size") or {}
    crop = config.get("crop_size") or {}
    crop = {"height": crop, "width": crop} if isinstance(crop, int) else crop
    if isinstance(size, int):  # as older files have it
        size = {"shortest_edge": size} if crop else {"height": size, "width": size}
    edge = size.get("shortest_edge")
    height, width = size.get("height"), size.get("width")
    scaled: tuple[Any, Any] | None = None
    mode: FitMode = "squash"
    if edge and config.get("crop_pct"):  # ConvNeXt: smaller models see the middle
        if edge < 384:
            side = int(edge / config["crop_pct"])
            mode, scaled = "crop", (side, side)
        height = width = edge
    elif config.get("do_center_crop", edge is not None) and crop:
        mode = "crop" if edge else "squash"
        scaled = (edge, edge) if edge else (height, width)
        height, width = crop["height"], crop["width"]
    if not config.get("do_resize", True) or not height or not width:
        raise ClipmillError(
            f"{place} doesn't say to which size pictures are resized and cropped; expected size "
            "and crop_size, as of DINOv2 or ViT"
        )
    normalise = config.get("do_normalize", True)
    return ImagePreparation(
        (height, width),
        tuple(config["image_mean"]) if normalise else (0.0, 0.0, 0.0),
        tuple(config["image_std"]) if normalise else (1.0, 1.0, 1.0),
        mode,
        "bilinear" if config.get("resample") == _BILINEAR else "bicubic",
        0,
        None if scaled == (height, width) else scaled,
    )
