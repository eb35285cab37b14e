"""How a model of transformers is loaded: attention, fewer bits, several devices."""

from __future__ import annotations

import importlib.metadata
from typing import TYPE_CHECKING, Any

from clipmill.schemas.errors import ClipmillError

if TYPE_CHECKING:
    from clipmill.stages.models.generation import ModelPlacement

# The names of what is installed, since two versions of FlashAttention share the module flash_attn.
_ATTENTION_PACKAGES = {"flash_attention_2": "flash-attn", "flash_attention_3": "flash-attn-3"}
_HOW_TO_INSTALL = {
    "flash-attn-3": "build it from the folder hopper of FlashAttention's repository (no package "
    "index has it)"
}


def loading_options(place: ModelPlacement, what: str) -> dict[str, Any]:
    """Arguments of `from_pretrained`; ClipmillError if a package that they need is missing.

    `what` is the setting that names the model.
    """
    options: dict[str, Any] = {}
    stage = what.rpartition(".")[0]
    if place.attention != "auto":
        if package := _ATTENTION_PACKAGES.get(place.attention):
            _require(package, f"{stage}.attention: {place.attention}")
        options["attn_implementation"] = place.attention
    if place.quantization != "none":
        setting = f"{stage}.quantization: {place.quantization}"
        _require(place.quantization.partition("_")[0], setting)
        _require("accelerate", setting)
        options["quantization_config"] = _quantization(place)
        options["device_map"] = {"": place.device}
    if place.device_map != "none":
        _require("accelerate", f"{stage}.device_map: {place.device_map}")
        options["device_map"] = place.device_map
    return options


def _require(package: str, setting: str) -> None:
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        how = _HOW_TO_INSTALL.get(package, f"`pip install {package}`")
        raise ClipmillError(
            f"{setting} needs the package {package}, which is not installed; {how}, or leave the "
            "setting out"
        ) from None


def _quantization(place: ModelPlacement) -> Any:
    import transformers

    if place.quantization == "bitsandbytes_8bit":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    if place.quantization == "bitsandbytes_4bit":
        return transformers.BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=place.dtype
        )
    import torchao.quantization as torchao

    config = (
        torchao.Int8WeightOnlyConfig()
        if place.quantization == "torchao_int8"
        else torchao.Int4WeightOnlyConfig()
    )
    return transformers.TorchAoConfig(config)
