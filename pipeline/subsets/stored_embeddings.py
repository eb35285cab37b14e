"""Finds the step whose embeddings a rule or a search compares."""

from __future__ import annotations

from typing import Literal

from clipmill.pipeline.catalog.layout import Layout
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import UsageError
from clipmill.schemas.step_tables import StepTable
from clipmill.schemas.tables import EMBEDDERS, TEXT_EMBEDDER
from clipmill.stages.embed_images import NEAR_DUPLICATES as NEAR_IMAGES
from clipmill.stages.embed_texts import NEAR_DUPLICATES as NEAR_TEXTS

Kind = Literal["embedding", "text"]
"""Of pictures, unless the label names a step of texts; or of texts."""


def embeddings_step(
    layout: Layout, kind: Kind, label: str | None = None, *, option: str = "`embeddings:`"
) -> StepTable:
    """The step with this label, or else the only one of its kind.

    Embeddings by embed_clips come before those by embed_images. UsageError if there is none, or
    several and no label, which `option` would give.
    """
    wanted = (TEXT_EMBEDDER,) if kind == "text" else EMBEDDERS
    there = [step for step in layout.steps if step.role in wanted and step.folder is not None]
    if label is None and kind == "embedding":
        there = [step for step in there if step.role != TEXT_EMBEDDER]
    if not there:
        stage = wanted[0]
        raise UsageError(
            f"the dataset has no {stage}; add it with `clipmill run --dataset "
            f"{shell_word(layout.dataset)} --set {stage}.stage={stage}`"
        )
    labels = ", ".join(step.step for step in there)
    if label is not None:
        found = [step for step in there if step.step == label]
        if not found:
            raise UsageError(f"the dataset has no step {label!r}; available: {labels}")
        return found[0]
    first = min((step.role for step in there if step.role), key=EMBEDDERS.index)
    found = [step for step in there if step.role == first]
    if len(found) > 1:
        raise UsageError(
            f"the dataset has {first} more than once; name one with {option}, of "
            f"{', '.join(step.step for step in found)}"
        )
    return found[0]


def near_duplicates(layout: Layout, step: StepTable) -> float | None:
    """From which cosine on two clips are near-duplicates by these embeddings.

    Measured for the models that come in packages; None for others.
    """
    models = next(
        (
            stage["models"]
            for stage in (layout.record["stages"] if layout.record else ())
            if stage["stage"] == step.stage
        ),
        {},
    )
    return next(
        (
            known[model["identity"]]
            for known in (NEAR_IMAGES, NEAR_TEXTS)
            for model in models.values()
            if model["identity"] in known
        ),
        None,
    )
