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
    from clipmill.audit import Audit
    from clipmill.clips import Clips
    from clipmill.dataset import Dataset, open
    from clipmill.importing import import_internvid, import_published
    from clipmill.pipeline.catalog.index_writer import IndexReport
    from clipmill.pipeline.costs.bill import Bill, StageBill
    from clipmill.pipeline.costs.budget import BudgetSpent
    from clipmill.pipeline.costs.resampling import Range
    from clipmill.pipeline.costs.spent import Cost, StageCost
    from clipmill.pipeline.dataset.audit_estimates import Estimate, Quality
    from clipmill.pipeline.exports.run_export import Exported, ExportWatcher
    from clipmill.pipeline.ingest.span_import import ImportReport
    from clipmill.pipeline.removal.purge import Purged
    from clipmill.pipeline.removal.under_lock import Removal
    from clipmill.pipeline.status import IngestStatus, StageStatus, Status
    from clipmill.pipeline.training import ClipDataset
    from clipmill.pipeline.verify.findings import Finding, Repaired, Verification
    from clipmill.running import RunResult, StageProgress, plan, retry, run
    from clipmill.schemas.errors import ClipmillError, RowFailed, RowRejected, UsageError
    from clipmill.stages.protocol import (
        Middle,
        PerSecond,
        Rows,
        Stage,
        Starts,
        Uniform,
        Workspace,
        resource,
    )
    from clipmill.stages.references import DataFile, ModelReference
    from clipmill.subset import Subset

__all__ = [
    "Audit",
    "Bill",
    "BudgetSpent",
    "ClipDataset",
    "ClipmillError",
    "Clips",
    "Cost",
    "DataFile",
    "Dataset",
    "Estimate",
    "ExportWatcher",
    "Exported",
    "Finding",
    "ImportReport",
    "IndexReport",
    "IngestStatus",
    "Middle",
    "ModelReference",
    "PerSecond",
    "Purged",
    "Quality",
    "Range",
    "Removal",
    "Repaired",
    "RowFailed",
    "RowRejected",
    "Rows",
    "RunResult",
    "Stage",
    "StageBill",
    "StageCost",
    "StageProgress",
    "StageStatus",
    "Starts",
    "Status",
    "Subset",
    "Uniform",
    "UsageError",
    "Verification",
    "Workspace",
    "import_internvid",
    "import_published",
    "open",
    "plan",
    "resource",
    "retry",
    "run",
]

# Imported on first use: `import clipmill` takes milliseconds and needs only what is used.
_PLACES = {
    "Audit": "audit",
    "BudgetSpent": "pipeline.costs.budget",
    "ClipDataset": "pipeline.training",
    "ClipmillError": "schemas.errors",
    "Clips": "clips",
    "Cost": "pipeline.costs.spent",
    "DataFile": "stages.references",
    "Dataset": "dataset",
    "Estimate": "pipeline.dataset.audit_estimates",
    "Bill": "pipeline.costs.bill",
    "ExportWatcher": "pipeline.exports.run_export",
    "Exported": "pipeline.exports.run_export",
    "Finding": "pipeline.verify.findings",
    "ImportReport": "pipeline.ingest.span_import",
    "IndexReport": "pipeline.catalog.index_writer",
    "IngestStatus": "pipeline.status",
    "Middle": "stages.protocol",
    "ModelReference": "stages.references",
    "PerSecond": "stages.protocol",
    "Purged": "pipeline.removal.purge",
    "Quality": "pipeline.dataset.audit_estimates",
    "Range": "pipeline.costs.resampling",
    "Removal": "pipeline.removal.under_lock",
    "Repaired": "pipeline.verify.findings",
    "RowFailed": "schemas.errors",
    "RowRejected": "schemas.errors",
    "Rows": "stages.protocol",
    "RunResult": "running",
    "Stage": "stages.protocol",
    "Starts": "stages.protocol",
    "StageBill": "pipeline.costs.bill",
    "StageCost": "pipeline.costs.spent",
    "StageProgress": "running",
    "StageStatus": "pipeline.status",
    "Status": "pipeline.status",
    "Subset": "subset",
    "Uniform": "stages.protocol",
    "UsageError": "schemas.errors",
    "Verification": "pipeline.verify.findings",
    "Workspace": "stages.protocol",
    "import_internvid": "importing",
    "import_published": "importing",
    "open": "dataset",
    "plan": "running",
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
