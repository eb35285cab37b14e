"""Settings given from Python, in the form that `--set` takes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """`name=value` with the value as JSON, which is YAML too; paths become text."""
    return [f"{name}={json.dumps(value, default=os.fspath)}" for name, value in settings.items()]
