"""Prepares a process for torch: a torchvision that imports, a device, a dtype."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.stages.models.places import note_place

if TYPE_CHECKING:
    import torch

_logger = logging.getLogger("clipmill.models")
_logger.setLevel(logging.INFO)  # below what Python shows by itself

# What torchvision's import raises where its compiled operators could not be loaded.
_UNLOADED_OPERATORS = "operator torchvision::nms does not exist"
# The operators that torchvision touches while it is imported.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A torch.library.Library undoes its definitions when it is collected.
_library: torch.library.Library | None = None


def prepare_torch() -> None:
    """Makes `import torchvision` work; call it before open_clip or transformers are imported.

    PyPI's torchvision wheel holds operators compiled for CUDA. With a CPU build of torch they
    cannot be loaded, and the import then fails over an operator of object detection that nothing
    here calls, taking open_clip and the model classes of transformers with it. The schemas of the
    missing operators are declared in its place, without any code behind them. Where torchvision
    loads, or is not installed, nothing happens.
    """
    global _library
    if "torchvision" in sys.modules or importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if str(error) != _UNLOADED_OPERATORS or _library is not None:
            raise
    else:
        return
    import torch

    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _SCHEMAS:
        _library.define(schema)
    importlib.import_module("torchvision")


def best_device() -> torch.device:
    """The first GPU that this process may use, else the CPU."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def say_place(setting: str, folder: object, device: torch.device, dtype: torch.dtype) -> None:
    """Records in the run's log and record where a model computes, and in which number format."""
    import torch

    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    numbers = str(dtype).removeprefix("torch.")
    _logger.info("%s (%s) computes on %s%s in %s", setting, folder, device, name, numbers)
    # Without its number, which says only which GPU the worker was given.
    note_place(setting, f"{device.type}{name}", numbers)


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the device computes in it natively, else float32."""
    import torch

    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and cpu_has_bf16()
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether this CPU has bf16 arithmetic (AVX512-BF16, AMX-BF16, or Arm's bf16).

    Read from the flags, as torch's own answer is also yes where bf16 is only emulated, slowly.
    False where the system does not list the flags.
    """
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return False
    return has_bf16_flag(text)


def has_bf16_flag(cpuinfo: str) -> bool:
    """Whether the text of /proc/cpuinfo lists bf16 instructions."""
    for line in cpuinfo.splitlines():
        name, _, flags = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())
    return False
