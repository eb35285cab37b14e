"""Finds dear stages that do work which a cheap gate could have spared them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipmill.pipeline.recipes.gates import SETTING, CheckedGate
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.pipeline.recipes.plan import PlannedStep


_WRITES_TEXT = "max_new_tokens"  # the setting of stages whose models write, word by word


def cost_rank(step: PlannedStep) -> int:
    """0 for plain computing, 1 for a model or a GPU, 2 for a model that writes text."""
    if step.stage.prompts() or _WRITES_TEXT in type(step.stage).model_fields:
        return 2
    models = [one for one in step.stage.references().values() if isinstance(one, ModelReference)]
    return 1 if models or step.stage.gpus else 0


def cheap_first_notes(steps: Sequence[PlannedStep], gates: Sequence[CheckedGate]) -> list[str]:
    """A warning for each dear stage without a gate that stands before a gate on cheaper columns."""
    notes = []
    rank = _ranks(steps)
    order = {step.label: place for place, step in enumerate(steps)}
    told: set[str] = set()
    first = {step.stage_label: step for step in reversed(steps)}
    for checked in gates:
        makers = set(checked.columns.values())
        needed = max((rank[stage] for stage in makers if stage in rank), default=0)
        for step in steps[: order[checked.step.label]]:
            # A stage's gate is at its first step, which may be over other rows.
            gated = first[step.stage_label]
            is_open = gated.gate is None and gated.key == step.key == checked.step.key
            if not is_open or step.stage_label in told or cost_rank(step) <= needed:
                continue
            told.add(step.stage_label)
            later = [
                label
                for label in dict.fromkeys(one.stage_label for one in steps)
                if label in makers and _place(steps, label) > order[step.label]
            ]
            move = f", and move {' and '.join(later)} before it" if later else ""
            notes.append(
                f"{step.stage_label} is dear and does all rows, but the gate of "
                f"{checked.step.stage_label} needs only "
                f"{', '.join(checked.columns) or 'no column'}, which is cheaper: give "
                f"{step.stage_label} the same `{SETTING}`{move}"
            )
    return notes


def _ranks(steps: Sequence[PlannedStep]) -> dict[str, int]:
    """What it takes to have each stage's columns: the dearest of it and of all that it needs."""
    by_step: dict[str, int] = {}
    by_stage: dict[str, int] = {}
    for step in steps:
        before = [by_step[label] for label in step.upstream if label in by_step]
        by_step[step.label] = max([cost_rank(step), *before])
        by_stage[step.stage_label] = max(by_step[step.label], by_stage.get(step.stage_label, 0))
    return by_stage


def _place(steps: Sequence[PlannedStep], stage_label: str) -> int:
    return min(n for n, step in enumerate(steps) if step.stage_label == stage_label)
