"""Settings given from Python, in the form that `--set` takes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

Settings = Mapping[str, Any] | Sequence[str]
"""Values by name, or texts `name=value` as `--set` takes them."""


def as_overrides(settings: Settings) -> list[str]:
    """`name=value` with the value as JSON, which is YAML too; paths become text."""
    if not isinstance(settings, Mapping):
        return list(settings)
    return [f"{name}={json.dumps(value, default=os.fspath)}" for name, value in settings.items()]
