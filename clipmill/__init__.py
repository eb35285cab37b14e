"""Clipmill turns video sources into a queryable video–text dataset.

    import clipmill

    clipmill.run("timestamps-only", sources="videos/", dataset="my-dataset")
    dataset = clipmill.open("my-dataset")
    dataset.sql("SELECT clip_id, motion FROM clips WHERE motion > 5").df()

This module is the public interface. Names in `clipmill.jobs`, `clipmill.pipeline`,
`clipmill.stages` and `clipmill.schemas` may change between releases.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clipmill.dataset import Clips, Dataset, Subset, open
    from clipmill.pipeline.training import ClipDataset
    from clipmill.running import RunResult, StageProgress, retry, run
    from clipmill.schemas.errors import ClipmillError, RowFailed, RowRejected, UsageError
    from clipmill.stages.protocol import (
        Middle,
        PerSecond,
        Rows,
        Stage,
        Uniform,
        Workspace,
        resource,
    )
    from clipmill.stages.references import DataFile, ModelReference

__all__ = [
    "ClipDataset",
    "ClipmillError",
    "Clips",
    "DataFile",
    "Dataset",
    "Middle",
    "ModelReference",
    "PerSecond",
    "RowFailed",
    "RowRejected",
    "Rows",
    "RunResult",
    "Stage",
    "StageProgress",
    "Subset",
    "Uniform",
    "UsageError",
    "Workspace",
    "open",
    "resource",
    "retry",
    "run",
]

# Imported on first use: `import clipmill` takes milliseconds and needs only what is used.
_PLACES = {
    "ClipDataset": "pipeline.training",
    "ClipmillError": "schemas.errors",
    "Clips": "dataset",
    "DataFile": "stages.references",
    "Dataset": "dataset",
    "Middle": "stages.protocol",
    "ModelReference": "stages.references",
    "PerSecond": "stages.protocol",
    "RowFailed": "schemas.errors",
    "RowRejected": "schemas.errors",
    "Rows": "stages.protocol",
    "RunResult": "running",
    "Stage": "stages.protocol",
    "StageProgress": "running",
    "Subset": "dataset",
    "Uniform": "stages.protocol",
    "UsageError": "schemas.errors",
    "Workspace": "stages.protocol",
    "open": "dataset",
    "resource": "stages.protocol",
    "retry": "running",
    "run": "running",
}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from clipmill.schemas.extras import extras_explained

    with extras_explained("train" if name == "ClipDataset" else None):
        return getattr(importlib.import_module(f"clipmill.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
