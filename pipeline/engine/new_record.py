"""Builds a run's record: recipe, versions, models and fingerprints."""

from __future__ import annotations

import platform
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType

from clipmill.pipeline.dataset.choices import Choice
from clipmill.pipeline.dataset.run_records import FitRecord, ModelRecord, RunRecord, StageRecord
from clipmill.pipeline.dataset.versions import code_version, package_versions
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList
from clipmill.pipeline.recipes.recipe import LoadedRecipe
from clipmill.stages.models.loading import resolved_revision
from clipmill.stages.protocol import Stage
from clipmill.stages.references import ModelReference


def new_record(
    loaded: LoadedRecipe,
    plan: Plan,
    steps: tuple[PlannedStep, ...],
    shards: ShardList,
    may_skip: Sequence[str] = (),
    choice: Choice | None = None,
    engine: str | None = None,
    fits: Mapping[str, FitRecord | None] = MappingProxyType({}),
) -> RunRecord:
    """The record of a run; its intended extent tells `verify` what must exist.

    `engine` is the one that was chosen; None where nothing is run. `fits` are those that stages
    have, by label.
    """
    now = datetime.now(UTC)
    return {
        "run_id": f"{now:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:6]}",
        "started_at": now.isoformat(),
        "finished_at": None,
        "state": "running",
        "recipe_name": loaded.name,
        "recipe": loaded.record(),
        "code_version": code_version(),
        "versions": {
            "python": platform.python_version(),
            "system": platform.platform(),
            **package_versions(),
        },
        "engine": engine or loaded.recipe.engine,
        "until": None if len(steps) == len(plan.steps) else steps[-1].stage_label,
        "last_shard": shards.first[-1] if shards.first else None,
        "may_skip": list(may_skip),
        "choice": None if choice is None else choice.record,
        "stages": [_stage_record(plan, label, loaded, fits) for label in loaded.stages],
    }


def _stage_record(
    plan: Plan, label: str, loaded: LoadedRecipe, fits: Mapping[str, FitRecord | None]
) -> StageRecord:
    stage = loaded.stages[label]
    steps = [step for step in plan.steps if step.stage_label == label]
    record: StageRecord = {
        "stage": label,
        "name": stage.name,
        "key": stage.key,
        "steps": [
            {
                "step": step.label,
                "key": step.key,
                "fingerprint": step.fingerprint,
                "upstream": list(step.upstream),
                "tables": {table: step.place(table) for table in step.tables},
                "schema_columns": list(step.columns),
            }
            for step in steps
        ],
        "score": stage.score,
        "reads": list(stage.columns_read()),
        "settings": stage.model_dump(mode="json"),
        "models": _models(stage),
        "prompts": stage.prompts(),
        "gate": gate.says() if (gate := loaded.gates.get(label)) is not None else None,
    }
    if label in fits:
        record["fit"] = fits[label]
    return record


def _models(stage: Stage) -> dict[str, ModelRecord]:
    """Every model and data file of a stage by setting: its origin, revision and checksum."""
    found: dict[str, ModelRecord] = {}
    for setting, value in stage.references().items():
        if isinstance(value, ModelReference):
            place, revision = str(value), resolved_revision(value) or value.revision
        else:
            place, revision = str(value), None
        found[setting] = {"reference": place, "revision": revision, "identity": value.identity()}
    return found
