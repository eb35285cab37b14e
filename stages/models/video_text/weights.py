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


def read_state(path: Path, *, only_shapes: bool = False) -> dict[str, torch.Tensor]:
    """The tensors of a file by name; of a checkpoint, those under its key `model` or `module`.

    With `only_shapes` they are on the meta device, and their numbers are not read.
    """
    import torch

    if path.suffix == ".safetensors":
        from safetensors import safe_open
        from safetensors.torch import load_file

        if not only_shapes:
            return load_file(path)
        with safe_open(path, framework="pt") as file:
            return {
                name: torch.empty(file.get_slice(name).get_shape(), device="meta")
                for name in file.keys()  # noqa: SIM118 - it is no mapping
            }
    # Files from before PyTorch 1.6 can't be mapped into memory.
    mapped = zipfile.is_zipfile(path)
    place = "meta" if only_shapes else "cpu"
    found: Any = torch.load(path, map_location=place, weights_only=True, mmap=mapped)
    for key in ("model", "module"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict):
        raise ValueError(f"{path.name} contains a {type(found).__name__}, not named tensors")
    return {str(k): value for k, value in found.items() if isinstance(value, torch.Tensor)}
