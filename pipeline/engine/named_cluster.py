"""Whether there is a Ray cluster to use, without importing Ray."""

from __future__ import annotations

import os
import sys


def has_cluster() -> bool:
    """Whether a cluster is named for all commands, or this program has joined or started one."""
    ray = sys.modules.get("ray")
    return bool(os.environ.get("RAY_ADDRESS")) or (ray is not None and ray.is_initialized())
