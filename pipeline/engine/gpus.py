"""Which stages of a recipe get GPUs on a machine, and which ones fall back to its CPUs."""

from __future__ import annotations

from dataclasses import replace

from clipmill.pipeline.recipes.plan import Plan, PlannedStep
from clipmill.pipeline.recipes.recipe import Recipe


def with_gpus_of(plan: Plan, gpus: float, recipe: Recipe) -> tuple[Plan, list[str]]:
    """The plan for a machine or cluster with so many GPUs, and what is worth telling.

    Without any GPU, a recipe that says `without_gpus: use_cpus` runs on CPUs. A stage that only
    asks servers gets no GPU. Neither changes a fingerprint.
    """
    falls_back = not gpus and recipe.without_gpus == "use_cpus"
    idle = [step for step in plan.steps if step.stage.gpus and not step.stage.uses_gpus]
    moved = [step for step in plan.steps if step.stage.gpus and falls_back and step not in idle]
    said = []
    if moved:
        said.append(f"No GPU: {_labels(moved)} {'runs' if len(moved) == 1 else 'run'} on CPUs.")
    if idle and not falls_back:
        said.append(f"{_labels(idle)}: a server computes, so no GPU is taken for it here.")
    changed = {step.label for step in (*idle, *moved)}
    steps = tuple(
        replace(step, stage=step.stage.model_copy(update={"gpus": 0.0}))
        if step.label in changed
        else step
        for step in plan.steps
    )
    return replace(plan, steps=steps), said


def gpus_here() -> int:
    """GPUs that models in this process can use."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _labels(steps: list[PlannedStep]) -> str:
    return ", ".join(dict.fromkeys(step.stage_label for step in steps))
