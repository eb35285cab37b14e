"""The plan: a recipe's steps, each one's place on disk, and what is pending."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import pyarrow as pa

from clipmill.pipeline.dataset.shards import base_shard, committed_shards, shard_order
from clipmill.pipeline.dataset.steps import Read, Step, StepId, downstream, reads_of
from clipmill.pipeline.recipes.fingerprints import fingerprint, fingerprint_in
from clipmill.pipeline.recipes.gates import Gate, check_gates
from clipmill.pipeline.recipes.recipe import LoadedRecipe
from clipmill.pipeline.recipes.stage_classes import class_reference, stage_class
from clipmill.schemas.errors import UsageError
from clipmill.schemas.folders import FRAMES, RESERVED_LABELS, SOURCES
from clipmill.stages.protocol import Stage

_LONGEST_LABEL = 60  # it is also part of temporary files' names
KEY_LEVELS = ("source_key", "video_id", "clip_id")


@dataclass(frozen=True)
class PlannedStep(Step):
    """A step that can be run; plain data except for `stage`, which can be recreated from `spec`.

    Rows that don't pass its `gate` are skipped.
    """

    stage: Stage
    gate: Gate | None = None

    @property
    def built_in_schema(self) -> pa.Schema | None:
        return self.stage.table_schema if class_reference(self.stage) == self.name else None

    @classmethod
    def of(
        cls,
        label: str,
        stage_label: str,
        stage: Stage,
        fingerprint: str,
        upstream: Mapping[str, str],
        gate: Gate | None = None,
    ) -> PlannedStep:
        return cls(
            label,
            stage_label,
            stage.name,
            stage.key,
            fingerprint,
            upstream,
            reads_of(stage.columns_read(), upstream),
            (label, *stage.more_tables),
            tuple(stage.table_schema.names),
            stage.score,
            stage,
            gate,
        )

    def spec(self) -> dict[str, Any]:
        """What another process needs to recreate this step (without hashing weights again)."""
        return {
            "label": self.label,
            "stage_label": self.stage_label,
            "class": class_reference(self.stage),
            "settings": self.stage.model_dump(),
            "fingerprint": self.fingerprint,
            "upstream": dict(self.upstream),
            "gate": None if self.gate is None else asdict(self.gate),
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> PlannedStep:
        stage = stage_class(spec["class"], Path("/")).model_validate(spec["settings"])
        return cls.of(
            spec["label"],
            spec["stage_label"],
            stage,
            spec["fingerprint"],
            spec["upstream"],
            None if spec["gate"] is None else Gate(**spec["gate"]),
        )


@dataclass(frozen=True)
class Plan:
    """All steps of a recipe in the order in which a shard passes through them.

    `stop_after` is how many alike failures of a stage end the run (0: none do), and `keeps_back`
    whether shards that hold nothing else wait until the others are done.
    """

    steps: tuple[PlannedStep, ...]
    drop_frames: bool = False
    stop_after: int = 0
    keeps_back: bool = False
    by_label: dict[str, PlannedStep] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_label", {step.label: step for step in self.steps})

    def until(self, stage_label: str | None) -> tuple[PlannedStep, ...]:
        """The steps up to and including a stage of the recipe."""
        if stage_label is None:
            return self.steps
        labels = [step.stage_label for step in self.steps]
        if stage_label not in labels:
            raise UsageError(
                f"--until {stage_label!r}: the recipe has no such stage; its stages: "
                f"{', '.join(dict.fromkeys(labels))}"
            )
        last = max(i for i, label in enumerate(labels) if label == stage_label)
        return self.steps[: last + 1]

    def frames_step(self) -> PlannedStep | None:
        return next((step for step in self.steps if FRAMES in step.stage.more_tables), None)

    def spec(self) -> dict[str, Any]:
        return {
            "steps": [step.spec() for step in self.steps],
            "drop_frames": self.drop_frames,
            "stop_after": self.stop_after,
            "keeps_back": self.keeps_back,
        }

    @classmethod
    def from_spec(cls, spec: dict[str, Any]) -> Plan:
        steps = tuple(PlannedStep.from_spec(step) for step in spec["steps"])
        return cls(steps, spec["drop_frames"], spec["stop_after"], spec["keeps_back"])


def build_plan(loaded: LoadedRecipe, dataset: Path | None = None) -> Plan:
    """Orders, checks and fingerprints the steps of a recipe.

    What a dataset holds of a step under a former fingerprint of it stays valid.
    """
    steps: list[PlannedStep] = []
    for stage_label, stage in loaded.stages.items():
        gate = loaded.gates.get(stage_label)
        _check_gpus(stage_label, stage)
        for part in stage.steps():
            label = stage_label if part is stage or part.name == stage.name else part.name
            if label != stage_label:
                _check_is_alone(stage, label, stage_label, steps)
            _check_label(label, stage_label, steps)
            steps.append(replace(_step(label, stage_label, part, steps, dataset), gate=gate))
            gate = None  # it chooses what the stage's first step gets
    _check_levels(steps)
    check_gates(steps)
    recipe = loaded.recipe
    return Plan(tuple(steps), recipe.drop_frames, recipe.stop_after_alike_failures)


def _check_is_alone(
    stage: Stage, inner: str, stage_label: str, before: Sequence[PlannedStep]
) -> None:
    """UsageError if a stage before it has the same inner step."""
    same = (step for step in before if step.label == inner != step.stage_label)
    other = next((step.stage_label for step in same), None)
    if other is not None:
        raise UsageError(
            f"stages.{stage_label}: a recipe can have one {stage.name} only, and {other} is one: "
            f"both would make the table {inner}. Change the settings of {other} (what it made so "
            "far is kept, and used again with the former settings), or run the other recipe with "
            "a dataset of its own"
        )


def _check_label(label: str, stage_label: str, before: Sequence[PlannedStep]) -> None:
    """UsageError for a name that a folder of the dataset, or another table in it, already has."""
    # On some file systems, names that differ only in case are the same.
    taken = {name.lower() for step in before for name in (step.label, *step.stage.more_tables)}
    if label.lower() in taken:
        raise UsageError(f"stages.{stage_label}: the name {label!r} is already taken")
    if label.lower() in RESERVED_LABELS:
        raise UsageError(
            f"stages.{stage_label}: a stage can't be named {label!r}: the dataset "
            "uses that name for something else; write `my_"
            f"{label.lower()}: {{stage: …}}`"
        )
    if len(label) > _LONGEST_LABEL:
        raise UsageError(
            f"stages.{stage_label[:40]}…: a label has at most {_LONGEST_LABEL} "
            "characters, because it is a folder name"
        )


def _check_gpus(stage_label: str, stage: Stage) -> None:
    """UsageError if a worker is to hold GPUs that its stage can't use."""
    most = stage.most_gpus
    if most is None or stage.gpus <= most:
        return
    spread = (
        ", or spread the model over several with device_map: auto"
        if "device_map" in type(stage).model_fields
        else ""
    )
    raise UsageError(
        f"stages.{stage_label}.gpus: {stage.gpus:g}, but its model computes on one GPU and would "
        "waste the others; give it 1, since each further GPU gets a worker of its own"
        f"{spread}"
    )


def _step(
    label: str, stage_label: str, stage: Stage, before: list[PlannedStep], dataset: Path | None
) -> PlannedStep:
    known = {step.label: step for step in before}
    try:
        stage.check_upstream({step.label: step.stage for step in before})
    except ValueError as error:
        raise UsageError(f"stages.{stage_label}: {error}") from error
    reads = []
    for read in map(Read.parse, stage.columns_read()):
        if read.label == SOURCES or read.label in known:
            if read.label in known:
                _check_column(known[read.label], read, stage_label)
            reads.append(read)
        elif not read.optional:
            raise UsageError(
                f"stages.{stage_label} reads {read.label}.{read.column}, but no stage "
                f"{read.label!r} comes before it in the recipe"
            )
    shown = [read.shown_as for read in reads]
    if doubled := {name for name in shown if shown.count(name) > 1}:
        raise UsageError(f"stages.{stage_label} reads two columns named {sorted(doubled)}")
    upstream = dict.fromkeys(read.label for read in reads if read.label != SOURCES)
    if stage.key == "clip_id":
        # Every clip-level stage depends on the clips, whether or not it reads one of their columns.
        base = next((s for s in before if "clip_id" in s.stage.table_schema.names), None)
        if base is None:
            raise UsageError(
                f"stages.{stage_label} works on clips, but no stage before it makes "
                "them; put split_clips first"
            )
        upstream = {base.label: None, **upstream}
    if stage.frames_picked():
        maker = next((s for s in before if FRAMES in s.stage.more_tables), None)
        if maker is not None:
            upstream[maker.label] = None
    inputs = {name: known[name].fingerprint for name in upstream}
    digits = (
        fingerprint(stage, inputs)
        if dataset is None
        else fingerprint_in(dataset, label, stage_label, stage, inputs)
    )
    return PlannedStep.of(label, stage_label, stage, digits, inputs)


def _check_column(step: PlannedStep, read: Read, stage_label: str) -> None:
    names = step.stage.table_schema.names
    if read.column not in names:
        raise UsageError(
            f"stages.{stage_label} reads {read.label}.{read.column}, but "
            f"{read.label} writes only: {', '.join(names)}"
        )


def _check_levels(steps: list[PlannedStep]) -> None:
    makers = [
        s for s in steps if "clip_id" in s.stage.table_schema.names and s.stage.key != "clip_id"
    ]
    if len(makers) > 1:
        raise UsageError(
            f"two stages make clips ({makers[0].label} and {makers[1].label}); a "
            "dataset has one set of clips"
        )
    for step in steps:
        if step.stage.key not in KEY_LEVELS:
            raise UsageError(
                f"stages.{step.stage_label}: key {step.stage.key!r} is unknown; "
                f"allowed: {', '.join(KEY_LEVELS)}"
            )
    # A source's own video_id is known only for some platforms before the download.
    columns = {
        SOURCES: {"source_key"},
        **{step.label: set(step.stage.table_schema.names) for step in steps},
    }
    for step in steps:
        _check_rows_are_found(step, columns)


def _check_rows_are_found(step: Step, columns: dict[str, set[str]]) -> None:
    """UsageError if the rows that the step reads from a table can't be matched to its keys."""
    key = step.key
    known_by = {key, "video_id"} if key == "clip_id" else {key}
    for read in step.reads:
        if not known_by & columns[read.label]:
            raise UsageError(
                f"stages.{step.stage_label} reads {read.label}.{read.column}, but its key is "
                f"{key}, and rows of {read.label} can't be matched by "
                f"{' or '.join(sorted(known_by))}; read from a stage whose rows can, e.g. "
                "download_videos for facts about a source"
            )
    if not any(key in columns[label] for label in step.upstream or (SOURCES,)):
        raise UsageError(
            f"stages.{step.stage_label} has the key {key}, but reads from no stage "
            "whose rows have it; have it read a column of an earlier stage that does"
        )


class Beginning(TypedDict):
    """Keys of a request, and the step at which they begin."""

    step: str
    fingerprint: str
    keys: list[str]


class RetryRequest(Beginning):
    """A request for a small new shard: keys that failed at a step, or `why` else they are wanted.

    Older requests have no time. One may begin at further steps, `also`: a step that reads the
    results of several of them then gets each row once.
    """

    asked_at: NotRequired[str | None]
    why: NotRequired[str]
    also: NotRequired[list[Beginning]]


ASKED_FOR = "asked for"
"""Why a shard was requested whose keys were left out by the choices of earlier runs."""


def beginnings(request: RetryRequest) -> dict[StepId, list[str]]:
    """The keys of a request by the step at which they begin."""
    parts = (request, *request.get("also", ()))
    return {(one["step"], one["fingerprint"]): one["keys"] for one in parts}


def named_keys(request: RetryRequest, step: Step) -> set[str] | None:
    """The keys that a request names at a step; None if it does not begin there."""
    keys = beginnings(request).get(step.id)
    return None if keys is None else set(keys)


def have_passed(request: RetryRequest | None) -> bool:
    """Whether the keys that a request names have passed the gates of their steps."""
    return request is not None and request.get("why") != ASKED_FOR


@dataclass(frozen=True)
class ShardList:
    """The shards of a dataset: the first ones, and retries with the steps where each begins.

    With a `choice` (its name), these are the shards that hold something of it.
    """

    first: tuple[str, ...]
    retries: dict[str, RetryRequest]
    choice: str | None = None

    def passes(self, steps: Sequence[Step], step: Step, shard: str) -> bool:
        """Whether a shard passes through one of the steps: a retry begins where its rows failed."""
        request = self.retries.get(shard)
        if request is None:
            return True
        current = beginnings(request).keys() & {one.id for one in steps}
        return any(step.label in downstream(steps, label) for label, _ in current)

    def group(self, shard: str) -> list[str]:
        """The first shard and its retries so far, oldest first.

        Numbers may be missing: a retry whose request was damaged has been set aside.
        """
        base = base_shard(shard)
        return [base, *self._retries_of.get(base, ())]

    @functools.cached_property
    def _retries_of(self) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for name in sorted(self.retries, key=shard_order):
            found.setdefault(base_shard(name), []).append(name)
        return found

    def relevant(self, steps: Sequence[Step], step: Step) -> list[str]:
        """All shards that pass through one of the steps, in order."""
        retries = [shard for shard in self.retries if self.passes(steps, step, shard)]
        return sorted([*self.first, *retries], key=shard_order)


def is_current(steps: Sequence[Step], request: RetryRequest) -> bool:
    return not beginnings(request).keys().isdisjoint(step.id for step in steps)


def pending(
    plan: Plan, steps: Iterable[PlannedStep], shards: ShardList, dataset: Path
) -> dict[str, list[str]]:
    """The shards that each step still has to do, in order."""
    found = {}
    for step in steps:
        done = set(committed_shards(step.folder(dataset)))
        found[step.label] = [s for s in shards.relevant(plan.steps, step) if s not in done]
    return found
