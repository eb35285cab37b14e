"""Lets a run end in order: workers finish the step that they are at, and begin no other.

The mark is a folder on the dataset's storage, which workers on all nodes see. It is temporary:
what removes the leftovers of runs removes it, too.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

from clipmill.schemas.folders import SCRATCH


def _mark(dataset: Path, run_id: str) -> Path:
    return dataset / SCRATCH / f"halt-{run_id}"


def halt(dataset: Path, run_id: str) -> None:
    """Asks all workers of a run to begin nothing more."""
    _mark(dataset, run_id).mkdir(parents=True, exist_ok=True)


def is_halted(dataset: Path, run_id: str) -> bool:
    return _mark(dataset, run_id).exists()


def end_halt(dataset: Path, run_id: str) -> None:
    """Removes the mark when the run is over."""
    with contextlib.suppress(OSError):
        _mark(dataset, run_id).rmdir()
