"""Runs a plan in phases, with thresholds and fits between them, until no gate lets more in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from clipmill.pipeline.dataset.run_records import RecordOfThisRun, RunRecord
from clipmill.pipeline.dataset.steps import fingerprints
from clipmill.pipeline.engine.fitting import (
    Report,
    fit_notes,
    fit_record,
    fit_step,
    needs_fit,
    require_fit,
)
from clipmill.pipeline.engine.letting_in import (
    LettingIn,
    groups_that_wait,
    is_true,
    let_through,
    skipped_and_done,
)
from clipmill.pipeline.engine.thresholds import Phase, phases, with_threshold
from clipmill.pipeline.recipes.cheap_first import cheap_first_notes
from clipmill.pipeline.recipes.gates import SETTING, check_gates
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList, pending
from clipmill.schemas.words import counted

RunPhase = Callable[[Plan, Phase, ShardList], None]
"""Runs what is pending of some steps."""


class GatedRun:
    """One run's phases and gates; `list_shards` lists what there is now, `say` tells the user."""

    def __init__(
        self,
        plan: Plan,
        steps: Sequence[PlannedStep],
        dataset: Path,
        latest: RunRecord | None,
        list_shards: Callable[[], ShardList],
        say: Callable[[str], None],
    ) -> None:
        self._plan, self._steps, self._dataset = plan, tuple(steps), dataset
        self._latest = latest
        self._list_shards, self._say = list_shards, say
        gated = [step.label for step in plan.steps if step.gate is not None]
        before = latest.get("may_skip", []) if latest is not None else []
        self.may_skip: list[str] = sorted({*gated, *before})
        """Labels of steps that this run, or an earlier one, may have made skip rows."""
        self._checked = {one.step.label: one for one in check_gates(plan.steps)}
        self._letting = LettingIn(dataset, frozenset(self.may_skip))

    def let_in_before(self, record: RunRecord) -> None:
        """Requests what the gates let in among rows that were skipped before.

        If nothing has changed since a run that ended, that run has already done so.
        """
        if not self.may_skip or self._is_settled(record):
            return
        plan = self._plan
        for step in self._steps:
            gate = step.gate
            if gate is not None and gate.of_all:
                if self._groups_that_wait(step):
                    continue
                plan, _ = with_threshold(plan, step.label, self._dataset)
            self._request(plan, [plan.by_label[step.label]])

    def _is_settled(self, record: RunRecord) -> bool:
        latest = self._latest
        return (
            latest is not None
            and latest["state"] == "done"
            and latest.get("until") == record.get("until")
            and latest.get("choice") == record.get("choice")
            and not is_another(latest, record)
        )

    def notes(self, todo: Mapping[str, Sequence[str]]) -> list[str]:
        """What the gates will do, as far as it is known, and what could be cheaper."""
        gates = [one for one in self._checked.values() if one.step in self._steps]
        lines = []
        for checked in gates:
            step, gate = checked.step, checked.gate
            line = f"Gate of {step.stage_label}: {gate.says()}"
            if not checked.columns and not gate.of_all:
                if not is_true(step):
                    line += "; this is never true: it lets nothing through"
            elif not gate.of_all and todo[step.label] and not any(map(todo.get, checked.depends)):
                found = let_through(self._plan, checked, self._dataset)
                if found is not None:
                    passed, whole = found
                    line += f"; {passed:,} of {counted(whole, 'row')} so far pass"
                    line += "" if passed else ": it lets nothing through"
            lines.append(line)
        return [*lines, *cheap_first_notes(self._plan.steps, gates)]

    def run(
        self,
        run_phase: RunPhase,
        record: RecordOfThisRun,
        tell: Callable[[str], None],
        report: Report,
    ) -> None:
        """Runs phase after phase; before the next one, all that passes only now is done, too.

        So a threshold is found when nothing more can change it, whatever was interrupted.
        """
        plan, so_far = self._plan, []
        for phase in phases(self._steps, self._dataset):
            first = plan.by_label[phase[0].label]
            if first.gate is not None and first.gate.of_all:
                plan, threshold = with_threshold(plan, first.label, self._dataset)
                record.add_threshold(first.stage_label, threshold.gate.says(), threshold.value)
                tell(threshold.says())
                self._request(plan, [plan.by_label[first.label]])
            so_far.append([step.label for step in phase])
            todo = so_far[-1:]
            while todo:
                for labels in todo:
                    steps = tuple(plan.by_label[label] for label in labels)
                    self._fit(plan, steps[0], record, tell, report)
                    run_phase(plan, steps, self._list_shards())
                done = [plan.by_label[label] for labels in so_far for label in labels]
                todo = so_far if self._request(plan, done) else []

    def _fit(
        self,
        plan: Plan,
        step: PlannedStep,
        record: RecordOfThisRun,
        tell: Callable[[str], None],
        report: Report,
    ) -> None:
        """Lets a phase's first step find what it needs, if it has work and did not find it yet."""
        if not needs_fit(step, self._dataset):
            return
        if not pending(plan, [step], self._list_shards(), self._dataset)[step.label]:
            return
        require_fit(step, self._dataset)
        tell(f"{step.stage_label}: fitting it to the rows of all shards …")
        if fit_step(plan, step, self._dataset, record.run_id, report) is not None:
            found = fit_record(self._dataset, step)
            assert found is not None  # it was just stored
            record.add_fit(step.stage_label, found)
            tell(f"{step.stage_label}: fitted to {counted(found['rows'], 'row')}.")

    def tell_at_the_end(self) -> None:
        """Says which gates have let nothing through, and which fits are of far fewer rows."""
        for line in fit_notes(self._plan, self._steps, self._dataset):
            self._say(line)
        for step in self._steps:
            if step.gate is not None:
                skipped, done = skipped_and_done(step, self._dataset)
                if skipped and not done:
                    self._say(
                        f"The gate of {step.stage_label}, {step.gate.says()}, let nothing "
                        f"through: all {counted(skipped, 'row')} are skipped."
                    )

    def _groups_that_wait(self, step: PlannedStep) -> set[str]:
        checked = self._checked.get(step.label)
        return groups_that_wait(self._plan, step, checked, self._list_shards(), self._dataset)

    def _request(self, plan: Plan, steps: Sequence[PlannedStep]) -> bool:
        if not self.may_skip:
            return False
        asked = self._letting.request(plan, steps, self._list_shards())
        for stage, number in asked.items():
            self._say(f"{counted(number, 'row')} that {stage} skipped before will be done now.")
        return bool(asked)


def is_another(latest: RunRecord, record: RunRecord) -> bool:
    """Whether a run makes other tables than the newest one did, or has other gates."""
    return fingerprints(latest) != fingerprints(record) or gates_of(latest) != gates_of(record)


def gates_of(record: RunRecord) -> dict[str, object]:
    """The gates in a run's recipe, by stage."""
    stages = record["recipe"].get("stages") or {}
    return {label: found[SETTING] for label, found in stages.items() if SETTING in found}
