"""Provenance of an export's clips and columns, for its manifest and card."""

from __future__ import annotations

import fnmatch
import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.dataset.run_records import StageRecord
from clipmill.pipeline.dataset.steps import fingerprints
from clipmill.pipeline.exports.request import PERSONAL, ExportRequest
from clipmill.pipeline.exports.selection import Unit
from clipmill.pipeline.exports.units import read_problems, read_unit
from clipmill.pipeline.subsets.candidates import committed
from clipmill.pipeline.subsets.freeze import FrozenSubset

# Licences of the models that the ready-made recipes name, or that stages have by default, as their
# publishers state them.
_MODEL_LICENCES = {
    "Qwen/Qwen2-VL-2B-Instruct": "Apache-2.0",
    "Qwen/Qwen2.5-1.5B-Instruct": "Apache-2.0",
    "Salesforce/blip2-opt-*": "MIT; its OPT language model under Meta's licence, for research only",
    "Salesforce/blip-image-captioning-*": "BSD-3-Clause",
    "open_clip:*/openai": "MIT",
    "*sac+logos+ava1-l14-*": "Apache-2.0",
    "*ava+logos-l14-*": "Apache-2.0",
    "*sa_0_4_vit_*": "MIT",
}
_SUBSET_KEYS = (
    "name",
    "recipe",
    "description",
    "source",
    "verified",
    "seed",
    "parameters",
    "hash",
    "snapshot",
    "created_at",
    "code_version",
    "n_clips",
    "n_videos",
    "hours",
)


def clips_of(catalog: Catalog, subset: FrozenSubset | None) -> dict[str, Any]:
    """Identifies the source of the clips by hash: the frozen subset, or the catalog's current
    state.

    Removals are recorded separately from the catalog, because they may change during an export.
    """
    if subset is not None:
        return {"subset": subset.info["hash"]}
    made = list(fingerprints(catalog.layout.record).values())
    removed = [row[0] for row in catalog.execute("SELECT video_id FROM removed").fetchall()]
    return {"catalog": _hash([made, committed(catalog)]), "removed": hash_of(removed)}


def hash_of(videos: Iterable[str]) -> str:
    return _hash(sorted(videos))


def _hash(value: Any) -> str:
    return "sha256:" + hashlib.sha256(json.dumps(value).encode()).hexdigest()


def provenance(
    catalog: Catalog, request: ExportRequest, subset: FrozenSubset | None
) -> dict[str, Any]:
    """How the columns were made and the subset was chosen, without paths of this machine."""
    record = catalog.layout.record
    columns: dict[str, list[str]] = {}
    for name, (table, _) in catalog.layout.clip_columns.items():
        columns.setdefault(table.stage, []).append(name)
    found: dict[str, Any] = {
        "recipe": record["recipe_name"] if record else None,
        "run_id": record["run_id"] if record else None,
        "code_version": record["code_version"] if record else None,
        "stages": [
            _stage(stage, columns.get(stage["stage"], [])) for stage in catalog.layout.stages
        ],
    }
    if subset is not None:
        info = subset.info
        found["subset"] = {name: info.get(name) for name in _SUBSET_KEYS}
        rules = info.get("rules")
        if request.redact and PERSONAL.search(json.dumps(rules)):
            # These query titles and the like, and their parameters may contain some.
            rules = found["subset"]["parameters"] = None
        found["subset"]["rules"] = rules
    return found


def _stage(stage: StageRecord, columns: Sequence[str]) -> dict[str, Any]:
    models = {}
    for setting, model in stage["models"].items():
        reference = str(model["reference"])
        models[setting] = {
            # Only the name of a local file: its folder is private to this machine.
            "model": Path(reference).name if Path(reference).is_absolute() else reference,
            "revision": model["revision"],
            "identity": model["identity"],
            "licence": next(
                (
                    licence
                    for pattern, licence in _MODEL_LICENCES.items()
                    if fnmatch.fnmatchcase(reference, pattern)
                ),
                None,
            ),
        }
    return {
        "stage": stage["stage"],
        "name": stage["name"],
        "fingerprint": stage["steps"][-1]["fingerprint"] if stage["steps"] else None,
        "columns": list(columns),
        "models": models,
    }


@dataclass
class Summary:
    """What an export holds, and what failed, counted over its units."""

    clips: int = 0
    videos: int = 0
    milliseconds: int = 0
    licences: Counter[str] = field(default_factory=Counter)
    sites: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)
    cropped: tuple[int, int] | None = None
    """Clips of which a part is shown, and their milliseconds; None if nothing was cropped."""

    @property
    def hours(self) -> float:
        return self.milliseconds / 3_600_000

    def plain(self) -> dict[str, Any]:
        """The manifest's contents except the counts of clips."""
        return {
            "videos": self.videos,
            "hours": round(self.hours, 6),
            "licences": _sorted(self.licences),
            "sites": _sorted(self.sites),
            **self._plain_crop(),
        }

    def _plain_crop(self) -> dict[str, Any]:
        if self.cropped is None:
            return {}
        clips, milliseconds = self.cropped
        return {"cropped": {"clips": clips, "hours": round(milliseconds / 3_600_000, 6)}}

    @property
    def failures(self) -> dict[str, int]:
        """Failed clips by kind."""
        return _sorted(self.failed)


def _sorted(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def summarise(request: ExportRequest, units: Sequence[Unit]) -> Summary:
    """Counts what will be written; units hold whole videos."""
    found = Summary()
    names = ["video_id", "duration_seconds", "license", "extractor"]
    if request.crop is not None:
        names.append("media_crop_left")
        found.cropped = 0, 0
    for unit in units:
        rows = read_unit(request, unit, names)
        found.clips += rows.num_rows
        milliseconds = pc.round(pc.multiply(rows["duration_seconds"], 1000.0)).cast(pa.int64())
        found.milliseconds += pc.sum(milliseconds).as_py() or 0
        if found.cropped is not None:
            cropped = pc.is_valid(rows["media_crop_left"])
            clips, before = found.cropped
            found.cropped = (
                clips + (pc.sum(cropped).as_py() or 0),
                before + (pc.sum(milliseconds.filter(cropped)).as_py() or 0),
            )
        videos = rows.group_by(["video_id", "license", "extractor"]).aggregate([])
        found.videos += videos.num_rows
        found.licences.update(value or "not stated" for value in videos["license"].to_pylist())
        found.sites.update(value or "file" for value in videos["extractor"].to_pylist())
        if request.cut is not None:
            found.failed.update(read_problems(request, unit)["kind"].to_pylist())
    return found
