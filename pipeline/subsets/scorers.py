"""Checks whether the catalog has the scorer that a subset recipe was made for.

Scores of two scorers have different scales, so a threshold is only valid for the scorer that it
was published for: the stage, its models, its settings, and those of the stages that it reads.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.catalog.views import CLIPS_VIDEO_COLUMNS
from clipmill.pipeline.dataset.run_records import ModelRecord, StageRecord
from clipmill.pipeline.recipes.strict_yaml import parse_yaml
from clipmill.pipeline.subsets.scorer_specs import (
    Accepted,
    Made,
    ScorerSpec,
    fits_any,
    reference_of,
)
from clipmill.schemas.command_line import shell_word, start_a_run
from clipmill.schemas.errors import UsageError
from clipmill.schemas.step_tables import StepTable
from clipmill.stages.split_clips import CLIPS

# A stage that only passes on what others computed may represent any column.
_HANDS_ON = "take_given_score"
# Settings that determine what a score is about, and its scale.
_TELLING = ("column", "scorer", "caption", "embeddings", "over_frames", "frames_per_clip")
_NOT_YET = "nothing of it is computed yet"


@dataclass(frozen=True)
class ResolvedScorer:
    """The column of `clips` that a scorer of the rules uses, and what made it.

    `label` is None if no stage over clips made the column. `waived`: the check was skipped.
    """

    role: str
    column: str
    name: str
    waived: bool
    label: str | None = None
    stage: str | None = None
    fingerprint: str | None = None
    models: dict[str, ModelRecord] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)
    upstream: dict[str, dict[str, Any]] = field(default_factory=dict)

    def describe(self) -> str:
        """The column and what made it, in one line."""
        made = "not a score of any stage"
        if self.label is not None and self.stage is not None:
            made = _made_by(self.label, self.stage, self.models, self.settings)
        return f"{self.column}: {made}" + (", accepted without a check" if self.waived else "")

    def record(self) -> dict[str, Any]:
        """Plain data, for a subset's provenance."""
        return asdict(self)


@dataclass(frozen=True)
class Missing:
    """A column that a recipe reads and the catalog lacks, or has from another scorer."""

    column: str
    scorer: str
    """The scorer's usual name."""
    stage: str | None
    """The stage that makes it; None if that has to be a stage of one's own."""
    instead: str
    """What the catalog has in its place, in words."""


def find_scorers(
    scorers: Mapping[str, ScorerSpec | Literal["any"]], catalog: Catalog, *, recipe: str
) -> tuple[dict[str, ResolvedScorer], list[Missing]]:
    """Like `resolve`, but also returns what is missing."""
    if not scorers:
        return {}, []
    stages = _Stages(catalog)
    found, missing = _search(scorers, stages, recipe)
    return found, [
        Missing(role, spec.name, _maker(spec), _instead(role, spec, stages))
        for role, spec in missing.items()
    ]


def _maker(spec: ScorerSpec) -> str | None:
    """The name of the built-in stage that makes a scorer's column."""
    if spec.set:
        return next(iter(spec.set)).partition(".")[0]
    if not spec.add:
        return None
    label = list(spec.add)[-1]
    return str(spec.add[label].get("stage", label))


def resolve(
    scorers: Mapping[str, ScorerSpec | Literal["any"]], catalog: Catalog, *, recipe: str
) -> dict[str, ResolvedScorer]:
    """Finds for each scorer the column of `clips` that the recipe was made for.

    If a role's own column doesn't match, any other that does is used. Raises UsageError that
    names, for every role without one, the scorer, what the catalog has instead, and the command
    that adds it.
    """
    stages = _Stages(catalog)
    found, missing = _search(scorers, stages, recipe)
    if missing:
        raise UsageError(_refusal(recipe, missing, stages))
    return found


def _search(
    scorers: Mapping[str, ScorerSpec | Literal["any"]], stages: _Stages, recipe: str
) -> tuple[dict[str, ResolvedScorer], dict[str, ScorerSpec]]:
    """The scorers that the catalog has, and the requirements for those that it lacks."""
    found: dict[str, ResolvedScorer] = {}
    missing: dict[str, ScorerSpec] = {}
    for role, spec in scorers.items():
        if spec == "any":
            found[role] = stages.taken(role, recipe)
            continue
        assert isinstance(spec, ScorerSpec)
        fitting = next(
            (
                column
                for accepted in spec.accepts
                for column in stages.columns(role)
                if not stages.mismatches(column, accepted)
            ),
            None,
        )
        if fitting is None:
            missing[role] = spec
        else:
            found[role] = stages.resolved(role, fitting, spec.name, waived=False)
    return {role: found[role] for role in scorers if role in found}, missing


class _Stages:
    """The columns of `clips` and the newest run's record of the stages that made them."""

    def __init__(self, catalog: Catalog) -> None:
        layout = catalog.layout
        if layout.record is None and not layout.published:
            raise UsageError(
                f"{layout.dataset} has no run yet, and so no scores; {start_a_run(layout.dataset)}"
            )
        self.dataset = layout.dataset
        self.has_run = layout.record is not None
        self.records: list[StageRecord] = layout.stages
        self._made: dict[str, tuple[StepTable, str]] = layout.clip_columns
        self._others = {*CLIPS.names, *(name for name, _ in CLIPS_VIDEO_COLUMNS)}

    def columns(self, role: str) -> list[str]:
        """The columns that stages made; the one with the role's name comes first."""
        return sorted(self._made, key=lambda name: name != role)

    def record_of(self, column: str) -> StageRecord | None:
        """The run's record of the stage that made a column."""
        if column not in self._made:
            return None
        label = self._made[column][0].stage
        return next(record for record in self.records if record["stage"] == label)

    def said(self, column: str) -> str:
        """What made a column, briefly."""
        record = self.record_of(column)
        assert record is not None  # only called for columns that stages made
        return _made_by(record["stage"], record["name"], record["models"], record["settings"])

    def upstream(self, record: StageRecord) -> list[StageRecord]:
        """The records of the stages that a stage reads from."""
        labels = {label for step in record["steps"] for label in step["upstream"]}
        return [
            other for other in self.records if labels & {step["step"] for step in other["steps"]}
        ]

    def scores(self) -> list[str]:
        """The columns that scorers made."""
        return [name for name, (table, column) in self._made.items() if table.score == column]

    def mismatches(self, column: str, accepted: Accepted) -> list[str]:
        """Why a column is not the accepted scorer, in words; empty if it is."""
        record = self.record_of(column)
        assert record is not None  # only called for columns that stages made
        table, own_name = self._made[column]
        if accepted.stage is not None and record["name"] != accepted.stage:
            return [f"it is made by {record['name']}, not {accepted.stage}"]
        if accepted.stage is not None and record["score"] not in (None, own_name):
            return [f"it is {own_name}, which is not the score of {accepted.stage}"]
        if accepted.column is not None:
            if not fits_any(accepted.column, [column]):
                return [f"it is called {column}, not {accepted.column}"]
            if accepted.stage is None and table.is_built_in and record["name"] != _HANDS_ON:
                return [f"it is made by {record['name']}, which measures something else"]
        found = accepted.mismatches(record)
        for name, made in accepted.upstream.items():
            read = [other for other in self.upstream(record) if other["name"] == name]
            if not read:
                found.append(f"it reads from no {name}")
            elif all(made.mismatches(other) for other in read):
                found += [
                    f"of {read[0]['stage']}, which it reads from, {text}"
                    for text in made.mismatches(read[0])
                ]
        if not found and table.folder is None:
            found.append(_NOT_YET)
        return found

    def resolved(self, role: str, column: str, name: str, *, waived: bool) -> ResolvedScorer:
        record = self.record_of(column)
        if record is None:
            return ResolvedScorer(role, column, name, waived)
        return ResolvedScorer(
            role,
            column,
            name,
            waived,
            label=record["stage"],
            stage=record["name"],
            fingerprint=record["steps"][-1]["fingerprint"],
            models=record["models"],
            settings=record["settings"],
            upstream={
                other["stage"]: {
                    "stage": other["name"],
                    "models": other["models"],
                    "settings": other["settings"],
                }
                for other in self.upstream(record)
                if other["models"]
            },
        )

    def taken(self, role: str, recipe: str) -> ResolvedScorer:
        """The column as it is, whichever stage made it."""
        if role not in self._made and role not in self._others:
            raise UsageError(
                f"{recipe}: scorers.{role}=any accepts the column {role!r} as it is, "
                f"but `clips` has none; columns from scorers and other stages: "
                f"{', '.join(self._made) or 'none'}"
            )
        return self.resolved(role, role, "any", waived=True)


def _refusal(recipe: str, missing: Mapping[str, ScorerSpec], stages: _Stages) -> str:
    said = {
        role: f"{spec.name}{f' ({spec.means})' if spec.means else ''} in the column `{role}`; "
        f"{_instead(role, spec, stages)}"
        for role, spec in missing.items()
    }
    if len(said) == 1:
        parts = [f"{recipe} was made for {text}" for text in said.values()]
    else:
        parts = [f"{recipe} was made for these scorers:", *(f"- {text}" for text in said.values())]
    if any(stages.record_of(role) is None for role in missing):
        scores = [f"{name} by {stages.said(name)}" for name in stages.scores()]
        parts.append(f"Its scores: {'; '.join(scores) or 'none'}")
    return "\n".join([*parts, *dict.fromkeys(_ways_out(missing, stages))])


def _ways_out(missing: Mapping[str, ScorerSpec], stages: _Stages) -> list[str]:
    """The commands that add what is missing, and what the user must know about it."""
    if not stages.has_run:
        return [f"The others need a run: {start_a_run(stages.dataset)}"]
    command, own, notes = _Command(stages), [], []
    for role, spec in missing.items():
        if any(
            stages.mismatches(column, accepted) == [_NOT_YET]
            for column in stages.columns(role)
            for accepted in spec.accepts
        ):
            own.append(f"To compute `{role}`:\n  {command.start}")
            continue
        notes += [spec.note] if spec.note else []
        if spec.add or spec.set:
            command.add(spec.add)
            command.set(spec.set)
        else:
            own.append(
                f"Clipmill has no stage for `{role}`: write one whose score is that number "
                f"(docs/stages.md), and add it under that label:\n"
                f"  {command.start} --set {role}.stage=./my_stage.py:MyStage"
            )
    ways = (
        [f"To add {'it' if len(missing) == 1 else 'what Clipmill has stages for'}:\n  {command}"]
        if command
        else []
    )
    if present := [role for role in missing if stages.record_of(role) is not None]:
        waivers = " ".join(f"--set scorers.{role}=any" for role in present)
        notes.append(
            f"To accept a column without this check, and have the subset's record say so: {waivers}"
        )
    return [*ways, *own, *notes]


def _instead(role: str, spec: ScorerSpec, stages: _Stages) -> str:
    """What the catalog has in a role's column, and how it differs from the closest accepted
    scorer."""
    if stages.record_of(role) is None:
        return "the catalog has no such column"
    reasons = min(
        (stages.mismatches(role, accepted) for accepted in spec.accepts),
        key=lambda found: ("made by" in found[0], len(found)),
    )
    return f"the catalog's column comes from {stages.said(role)}: {'; '.join(reasons)}"


class _Command:
    """The `clipmill run` that adds stages to the recipe of the dataset's newest run."""

    def __init__(self, stages: _Stages) -> None:
        dataset = stages.dataset
        place = os.path.relpath(dataset) if dataset.is_relative_to(Path.cwd()) else str(dataset)
        self.start = f"clipmill run --dataset {shell_word(place)}"
        self._stages = stages
        self._taken = {record["stage"] for record in stages.records}
        self._added: list[tuple[str, str, dict[str, Any]]] = []
        self._set: dict[str, Any] = {}

    def add(self, wanted: Mapping[str, Mapping[str, Any]]) -> None:
        """Adds stages, the last one being the scorer; existing ones among the others are reused."""
        called: dict[str, str] = {}
        for number, (label, given) in enumerate(wanted.items(), 1):
            settings = {
                name: called.get(value, value) if isinstance(value, str) else value
                for name, value in given.items()
            }
            stage = settings.pop("stage", label)
            same = self._same(stage, settings) if number < len(wanted) else None
            if same is not None:
                called[label] = same
                continue
            called[label] = new = self._free(label)
            self._taken.add(new)
            self._added.append((new, stage, settings))

    def set(self, wanted: Mapping[str, Any]) -> None:
        """Gives settings to stages that the recipe has."""
        for place, value in wanted.items():
            stage, _, setting = place.partition(".")
            labels = [one["stage"] for one in self._stages.records if one["name"] == stage]
            self._set[f"{(labels or [stage])[0]}.{setting}"] = value

    def _same(self, stage: str, settings: Mapping[str, Any]) -> str | None:
        """The label of an equally configured stage, of the catalog or added before."""
        for label, *added in self._added:
            if added == [stage, settings]:
                return label
        for record in self._stages.records:
            models = {
                name: [str(value), f"{value}@*"]
                for name, value in settings.items()
                if name in record["models"]
            }
            others = {name: value for name, value in settings.items() if name not in models}
            made = Made(models=models, settings=others)
            if record["name"] == stage and not made.mismatches(record):
                return str(record["stage"])
        return None

    def _free(self, label: str) -> str:
        names = iter([label, *(f"{label}_{number}" for number in range(2, 100))])
        return next(name for name in names if name not in self._taken)

    def __bool__(self) -> bool:
        return bool(self._added or self._set)

    def __str__(self) -> str:
        words = [self.start]
        words += [
            f"--set {shlex.quote(f'{name}={_yaml(value)}')}" for name, value in self._set.items()
        ]
        for label, stage, settings in self._added:
            given = {"stage": stage, **settings}
            words += [
                f"--set {shlex.quote(f'{label}.{name}={_yaml(value)}')}"
                for name, value in given.items()
            ]
        return " ".join(words)


def _yaml(value: Any) -> str:
    """A value in the form that `--set` reads."""
    with contextlib.suppress(UsageError):
        if isinstance(value, str) and parse_yaml(value, "a setting") == value:
            return value
    return json.dumps(value, ensure_ascii=False)


def _made_by(
    label: str, stage: str, models: Mapping[str, Mapping[str, Any]], settings: Mapping[str, Any]
) -> str:
    """A brief description of a stage: label, name, models, what it scores and how."""
    said = [f"{name} {reference_of(model)}" for name, model in models.items()]
    said += [f"{name} {settings[name]}" for name in _TELLING if settings.get(name) is not None]
    named = stage if stage == label else f"{label}, a {stage}"
    return f"{named} ({', '.join(said)})" if said else named
