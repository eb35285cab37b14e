"""Prepares a process for torch: a working torchvision import, a device, a dtype."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.stages.models.places import note_place

if TYPE_CHECKING:
    import torch

_logger = logging.getLogger("clipmill.models")
_logger.setLevel(logging.INFO)  # below what Python shows by itself

# What importing torchvision raises if its compiled operators can't be loaded.
_UNLOADED_OPERATORS = "operator torchvision::nms does not exist"
# The operators that torchvision uses during its import.
_SCHEMAS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)
# A torch.library.Library removes its definitions when it is garbage-collected.
_library: torch.library.Library | None = None


def prepare_torch() -> None:
    """Makes `import torchvision` work; call it before importing open_clip or transformers.

    PyPI's torchvision wheel has operators compiled for CUDA. A CPU build of torch can't load them,
    and the import then fails because of an object detection operator that nothing here calls;
    open_clip and transformers' model classes fail with it. This declares the schemas of the
    missing operators, without implementations. If torchvision loads, or isn't installed, nothing
    happens. It also lets torch use huge pages, where the system does.
    """
    global _library
    # A large model's activations are new memory for every batch. In huge pages, the system hands it
    # out in a twentieth of the page faults, which took a tenth of a CPU model's time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
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


@contextmanager
def torch_threads(most: int | None) -> Iterator[None]:
    """Computes with at most this many threads on a CPU; None leaves torch's own number."""
    import torch

    before = torch.get_num_threads()
    if most is None or most >= before:
        yield
        return
    torch.set_num_threads(most)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def best_device() -> torch.device:
    """The first GPU available to this process, else the CPU."""
    import torch

    return torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")


def say_place(setting: str, folder: object, device: torch.device, dtype: torch.dtype) -> None:
    """Records a model's device and dtype in the run's log and record."""
    import torch

    name = f" ({torch.cuda.get_device_name(device)})" if device.type == "cuda" else ""
    numbers = str(dtype).removeprefix("torch.")
    _logger.info("%s (%s) computes on %s%s in %s", setting, folder, device, name, numbers)
    # Without its index, which only says which GPU the worker was assigned.
    note_place(setting, f"{device.type}{name}", numbers)


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 if the device supports it natively, else float32."""
    import torch

    if device.type == "cuda":
        fast = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        fast = device.type == "cpu" and cpu_has_bf16()
    return torch.bfloat16 if fast else torch.float32


@functools.cache
def cpu_has_bf16() -> bool:
    """Whether this CPU has bf16 arithmetic (AVX512-BF16, AMX-BF16, or Arm's bf16).

    Read from the CPU's flags, because torch also says yes if bf16 is only emulated, slowly. False
    if the system doesn't list the flags.
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
