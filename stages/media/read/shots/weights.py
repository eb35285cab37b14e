"""The file with the weights of the detector `cascade`. Imports nothing that takes time."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights.json"


@functools.cache
def weights_digest() -> str:
    """Changes when the weights do: they decide what is found."""
    return hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
