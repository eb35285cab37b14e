"""Reads weights files of models that have no configuration, without running pickled code."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.schemas.errors import ClipmillError

if TYPE_CHECKING:
    import torch

# In order of preference.
_PATTERNS = ("*.safetensors", "*.pth", "*.pt", "*.bin")


def weights_file(folder: Path) -> Path:
    """The folder's only file of weights; ClipmillError if there are several or none."""
    for pattern in _PATTERNS:
        found = sorted(folder.glob(pattern))
        if len(found) > 1:
            names = ", ".join(path.name for path in found)
            raise ClipmillError(
                f"{folder} contains several files of weights: {names}; leave one of them there"
            )
        if found:
            return found[0]
    raise ClipmillError(f"{folder} contains no weights ({', '.join(_PATTERNS)})")


def read_state(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name; of a checkpoint, those under its key `model` or `module`."""
    import torch

    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    # Files from before PyTorch 1.6 can't be mapped into memory.
    mapped = zipfile.is_zipfile(path)
    found: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    for key in ("model", "module"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} contains a {type(found).__name__}, not named tensors")
    return {str(k): value for k, value in found.items() if isinstance(value, torch.Tensor)}
