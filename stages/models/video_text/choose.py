"""Finds out which video–text model a folder contains, and loads it."""

from __future__ import annotations

from pathlib import Path

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.models.embedders import DType
from clipmill.stages.models.loading import local_folder
from clipmill.stages.models.torch_setup import best_device, default_dtype, prepare_torch, say_place
from clipmill.stages.models.video_text import umt, viclip
from clipmill.stages.models.video_text.base import (
    FromWeights,
    Loading,
    VideoTextModel,
    configuration,
)
from clipmill.stages.models.video_text.from_transformers import XCLIP, VideoPrism
from clipmill.stages.models.video_text.weights import read_state, weights_file
from clipmill.stages.references import ModelReference

_BY_TYPE: dict[str, type[VideoTextModel]] = {"xclip": XCLIP, "videoprism": VideoPrism}
_BY_TENSOR: dict[str, type[VideoTextModel]] = {viclip.SIGN: viclip.ViCLIP, umt.SIGN: umt.UMT}
_KNOWN = "X-CLIP, VideoPrism (with its text tower), ViCLIP or UMT"


def load_video_text_model(
    reference: ModelReference,
    *,
    setting: str,
    dtype: DType = "auto",
    batch_clips: int = 8,
    preparation: str | None = None,
) -> VideoTextModel:
    """The model of a reference; `preparation` names one of those published for it."""
    prepare_torch()
    import torch

    folder = local_folder(reference, setting=setting)
    device = best_device()
    chosen = default_dtype(device) if dtype == "auto" else getattr(torch, dtype)
    say_place(setting, reference, device, chosen)
    try:
        kind = _prepared_kind(folder, setting, preparation)
        return kind(Loading(folder, setting, device, chosen, batch_clips, preparation))
    except UsageError:
        raise
    # A malformed folder raises many kinds of errors.
    except Exception as error:
        said = (
            str(error) if isinstance(error, ClipmillError) else f"{type(error).__name__}: {error}"
        )
        raise ClipmillError(
            f"{setting}: {reference} in {folder} cannot be loaded as a video–text model: {said}"
        ) from error


def model_kind(folder: Path) -> type[VideoTextModel]:
    """The class for a folder: by its configuration, or without one by the names of its weights."""
    config = configuration(folder)
    kind = config.get("model_type")
    if kind in _BY_TYPE:
        return _BY_TYPE[kind]
    if config.get("architectures") == ["ViCLIP"]:
        return viclip.ViCLIP
    if kind is not None:
        raise ValueError(f"its model_type is {kind!r}; this stage takes {_KNOWN}")
    names = read_state(weights_file(folder), only_shapes=True).keys()
    for sign, found in _BY_TENSOR.items():
        if sign in names:
            return found
    raise ValueError(f"its weights have the names of no model that this stage takes: {_KNOWN}")


def checked_kind(folder: Path, setting: str, preparation: str | None) -> type[VideoTextModel]:
    """As `model_kind`, if that can be loaded with this preparation, as far as headers tell.

    UsageError for another preparation; any other exception says what is wrong with the folder.
    """
    kind = _prepared_kind(folder, setting, preparation)
    if issubclass(kind, FromWeights):
        kind.check(folder)
    return kind


def _prepared_kind(folder: Path, setting: str, preparation: str | None) -> type[VideoTextModel]:
    kind = model_kind(folder)
    if issubclass(kind, FromWeights):
        kind.preparation(setting, preparation)
    elif preparation is not None:
        raise UsageError(
            f"{setting}: {folder} brings its own preprocessing; leave `preprocessing` out"
        )
    return kind
