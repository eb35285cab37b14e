"""The public `Audit`: labels around a threshold, and what they say about it."""

from __future__ import annotations

import getpass
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.clips import Clips
from clipmill.pipeline.dataset.audit_estimates import Estimate, Quality
from clipmill.pipeline.dataset.audit_records import AuditRecord
from clipmill.schemas.errors import UsageError
from clipmill.schemas.sql_text import literal
from clipmill.schemas.words import counted

if TYPE_CHECKING:
    from clipmill.dataset import Dataset
    from clipmill.pipeline.catalog.catalog import Catalog
    from clipmill.pipeline.recipes.overrides import Settings
    from clipmill.pipeline.subsets.audit_question import Question

DEFAULT_SAMPLE = 30
DEFAULT_SEED = 42


class Audit:
    """A sample of clips around a threshold, their labels, and precision and recall from these.

    audit = dataset.audit("aesthetic >= 4.5", sample=30)
    for clip in audit.clips():
        ...
    audit.label({clip_id: True, other_id: False})
    audit.precision, audit.recall
    """

    def __init__(self, dataset: Dataset, record: AuditRecord, is_new: bool = False) -> None:
        self._dataset = dataset
        self.record = record
        """Everything that its file holds."""
        self.is_new = is_new
        """Whether this call drew the sample."""

    @property
    def name(self) -> str:
        return self.record.name

    @property
    def sample(self) -> list[str]:
        """The ids of its clips, in the order to label them: it does not tell their sides."""
        return [clip.clip_id for clip in self.record.sample]

    @property
    def labels(self) -> dict[str, bool]:
        """The labels so far, by clip."""
        return {clip.clip_id: clip.label for clip in self.record.sample if clip.label is not None}

    @property
    def unlabelled(self) -> list[str]:
        """Clips that are neither labelled nor skipped."""
        return [clip.clip_id for clip in self.record.waiting]

    @property
    def precision(self) -> Estimate | None:
        """Of the clips that the threshold keeps, the share that belongs; None without labels."""
        return self.record.audited.precision

    @property
    def recall(self) -> Estimate | None:
        """Of the clips that belong, the share that the threshold keeps."""
        return self.record.audited.recall

    @property
    def table(self) -> list[tuple[float, Quality]]:
        """Precision, recall and kept clips at each reported threshold, from the lowest on."""
        return [(at.value, quality) for at, quality in self.record.table]

    def __len__(self) -> int:
        return len(self.record.sample)

    def __repr__(self) -> str:
        record = self.record
        return (
            f"<audit {self.name!r}: {record.comparison}, {record.labelled} of "
            f"{counted(len(self), 'clip')} labelled>"
        )

    def clips(self, ids: Sequence[str] | None = None) -> Clips:
        """The clips of the sample as the catalog has them, in the order to label them.

        ids: only these.
        """
        wanted = self.sample if ids is None else list(ids)
        listed = ", ".join(map(literal, wanted)) or "NULL"
        with self._dataset._asking() as catalog:
            return Clips(
                self._dataset,
                catalog.relation(
                    f"SELECT * FROM clips WHERE clip_id IN ({listed}) ORDER BY "
                    f"list_position([{listed}], clip_id)"
                ).to_arrow_table(),
            )

    def label(self, labels: Mapping[str, bool | None], *, by: str | None = None) -> None:
        """Stores labels by clip; None takes one back.

        by: who labelled; by default the user of this process.
        """
        from clipmill.pipeline.dataset.audit_records import store_labels

        if unknown := [clip for clip in labels if clip not in set(self.sample)]:
            raise UsageError(
                f"no clip {unknown[0]!r} is in the sample of the audit {self.name!r}; `sample` "
                "lists its clips"
            )
        for clip, label in labels.items():
            if not isinstance(label, bool | None):
                raise UsageError(f"the label of {clip} is {label!r}; give True, False or None")
        who = by if by is not None else _user()
        self.record = store_labels(self._dataset.path, self.name, labels, by=who)

    def skip(self, *ids: str) -> None:
        """Marks clips as skipped: nobody can say, and they count as if they had not been drawn."""
        from clipmill.pipeline.dataset.audit_records import store_labels

        self.record = store_labels(self._dataset.path, self.name, dict.fromkeys(ids), skip=True)

    def read_labels(self, path: str | os.PathLike[str], *, by: str | None = None) -> int:
        """Stores the labels of a CSV file with clip_id and label; returns how many it has."""
        from clipmill.pipeline.subsets.audit_labels import read_labels

        found = read_labels(Path(path), self.record)
        self.label(found.labels, by=by)
        return len(found.labels)

    def write_template(self, path: str | os.PathLike[str]) -> None:
        """Writes the sample as a CSV file to fill in, for `read_labels`."""
        from clipmill.pipeline.catalog.links import clip_link
        from clipmill.pipeline.exports.output_places import check_output
        from clipmill.pipeline.subsets.audit_labels import write_template

        place = Path(path)
        check_output(self._dataset.path, place, "--write")
        if place.exists():
            raise UsageError(
                f"--write {place}: it exists, and may have labels; give the name of a new file"
            )
        beside = {
            row["clip_id"]: {
                **row,
                "link": clip_link(row["url"], row["start_seconds"], row["end_seconds"]),
            }
            for row in self.clips()
        }
        write_template(place, self.record, beside)

    def plain(self) -> dict[str, Any]:
        """The audit and its estimates as JSON."""
        return {
            **self.record.plain(),
            "labelled": self.record.labelled,
            "yes": self.record.yes,
            **_plain(self.record.audited),
            "thresholds": [{"value": value, **_plain(quality)} for value, quality in self.table],
        }


class Audits:
    """The audits of a dataset: what `Dataset` offers about them."""

    path: Path

    if TYPE_CHECKING:

        @property
        def _shown(self) -> Path: ...

        def _asking(self) -> AbstractContextManager[Catalog]: ...

    @property
    def audits(self) -> list[str]:
        """The names of the audits."""
        from clipmill.pipeline.dataset.audit_records import audit_names

        return audit_names(self.path)

    def load_audit(self, name: str) -> Audit:
        """An audit that was drawn earlier, with its labels."""
        from clipmill.pipeline.dataset.audit_records import load_audit

        return Audit(_dataset(self), load_audit(self._shown, name))

    def audit(
        self,
        where: str | None = None,
        *,
        subset: str | None = None,
        rule: int | None = None,
        score: str | None = None,
        sample: int | None = None,
        seed: int = DEFAULT_SEED,
        thresholds: Sequence[float] = (),
        question: str | None = None,
        name: str | None = None,
        settings: Settings = (),
        on_step: Callable[[str], None] = lambda step: None,
        **parameters: Any,
    ) -> Audit:
        """Draws clips around a threshold to label, for its precision and recall.

        The same threshold, seed and sample give the audit that exists, with its labels; a larger
        sample contains it.

        where: a condition with a threshold, such as `aesthetic >= 4.5 AND duration_seconds > 2`.
        subset: instead, a frozen subset's name or a subset recipe; `rule` is its rule's number.
        score: which of several thresholds is meant, such as `aesthetic` or `motion <= 20`.
        sample: how many clips to draw; 30 if not set.
        thresholds: others for which precision and recall are reported from the same labels.
        question: what a label answers, for whoever labels.
        settings, parameters: the recipe's, as in `create_subset`.
        """
        from clipmill.pipeline.dataset.audit_records import check_audit_name, load_audit

        for value in thresholds:
            if not math.isfinite(value):
                raise UsageError(f"--threshold {value}: give a number")
        if seed < 0:
            raise UsageError(f"--seed {seed}: give a whole number from 0 on")
        if where is not None and subset is not None:
            raise UsageError("give a condition with --where or a subset with --subset, not both")
        if where is None and subset is None:
            if name is None:
                there = f"; audits so far: {', '.join(self.audits)}" if self.audits else ""
                raise UsageError(
                    "say what to audit: a condition with --where, e.g. --where "
                    '"aesthetic >= 4.5", a subset or its recipe with --subset, or an audit that '
                    f"exists with --name{there}"
                )
            former = load_audit(self._shown, name)
            if sample in (None, former.requested) and not thresholds:
                return Audit(_dataset(self), former)
            if former.predicate is None:
                raise UsageError(
                    f"--name {name}: to draw more clips or report further thresholds, also give "
                    f"--subset {former.subset or former.recipe} --rule {former.rule}"
                )
            where, seed = former.predicate, former.seed
            score = f"{former.score} {former.operator} {former.threshold!r}"
        with self._asking() as catalog, catalog.bounded():
            asked = _asked(
                _dataset(self), catalog, where, subset, rule, score, settings, parameters
            )
            name = check_audit_name(name if name is not None else _name(asked, seed))
            record, is_new = _drawn(
                catalog, asked, name, sample, seed, thresholds, question, on_step
            )
        return Audit(_dataset(self), record, is_new)


def _dataset(audits: Audits) -> Dataset:
    from clipmill.dataset import Dataset

    assert isinstance(audits, Dataset)  # the only class that has audits
    return audits


def _asked(
    dataset: Dataset,
    catalog: Catalog,
    where: str | None,
    subset: str | None,
    rule: int | None,
    score: str | None,
    settings: Settings,
    parameters: Mapping[str, Any],
) -> Question:
    """What is audited; a subset's name goes before a recipe's."""
    from clipmill.dataset import _subset_recipe
    from clipmill.pipeline.subsets.audit_question import find_question, recipe_of
    from clipmill.pipeline.subsets.freeze import load_subset

    frozen = None
    if subset is not None and subset in dataset.subsets:
        if settings or parameters:
            raise UsageError(
                f"--subset {subset}: a frozen subset's parameters are fixed; name its recipe to "
                "change them"
            )
        frozen = load_subset(dataset.path, subset)
        recipe = recipe_of(frozen)
    else:
        recipe = _subset_recipe(subset, where, None, settings, parameters)
    return find_question(catalog, recipe, subset=frozen, rule=rule, score=score)


def _drawn(
    catalog: Catalog,
    asked: Question,
    name: str,
    sample: int | None,
    seed: int,
    thresholds: Sequence[float],
    question: str | None,
    on_step: Callable[[str], None],
) -> tuple[AuditRecord, bool]:
    """The audit of this name: a new one, or the one that exists, also with more of either."""
    from clipmill.pipeline.dataset.audit_records import add_audit, audit_names, load_audit
    from clipmill.pipeline.dataset.versions import code_version
    from clipmill.pipeline.subsets.audit_sample import Drawing

    dataset = catalog.layout.dataset
    former = load_audit(dataset, name) if name in audit_names(dataset) else None
    if former is not None:
        _check_same(former, asked, seed, question)
        question = former.question if question is None else question
        sample = former.requested if sample is None else sample
        there = [at.value for at in former.thresholds]
        thresholds = [*there, *(value for value in thresholds if value not in there)]
        if sample == former.requested and len(thresholds) == len(there):
            if question == former.question:
                return former, False
            return add_audit(dataset, replace(former, question=question)), False
        if sample < former.requested:
            raise UsageError(
                f"--sample {sample}: the audit {name!r} already has a sample of "
                f"{former.requested}; give a larger number, or this one another --name"
            )
    wanted = DEFAULT_SAMPLE if sample is None else sample
    drawing = Drawing(catalog, asked, seed, on_step)
    if former is not None:
        drawing.check_same(former)
    record = drawing.draw(
        wanted, thresholds, name=name, question=question, code_version=code_version()
    )
    if former is not None:
        _check_contains(record, former)
        record = replace(record, created_at=former.created_at, removed=former.removed)
    return add_audit(dataset, record), former is None


def _check_same(former: AuditRecord, asked: Question, seed: int, question: str | None) -> None:
    """UsageError if an audit of this name is about something else."""
    rules = [rule.plain() for rule in (*asked.before, asked.rule)]
    choice = asked.choice
    different = [
        said
        for said, is_different in (
            (
                f"{former.comparison}",
                (choice.score, choice.operator) != (former.score, former.operator)
                or choice.value not in (None, former.threshold),
            ),
            ("different rules", json.loads(json.dumps(rules)) != former.rules),
            (f"the seed {former.seed}", seed != former.seed),
            ("another scorer", asked.scorer != former.scorer),
            (
                f"the question {former.question!r}",
                former.labelled and question not in (None, former.question),
            ),
        )
        if is_different
    ]
    if different:
        raise UsageError(
            f"an audit {former.name!r} already exists, with {' and '.join(different)} "
            f"({former.labelled} of {counted(len(former.sample), 'clip')} labelled); give this one "
            "another name with --name"
        )


def _check_contains(record: AuditRecord, former: AuditRecord) -> None:
    """UsageError if labels would be lost: strata of very small samples differ from later ones."""
    there = {clip.clip_id for clip in record.sample}
    lost = [clip for clip in former.sample if clip.label is not None and clip.clip_id not in there]
    if lost:
        raise UsageError(
            f"--sample {record.requested}: {counted(len(lost), 'labelled clip')} of the audit "
            f"{former.name!r} would not be in that sample; give this one another --name"
        )


def _name(asked: Question, seed: int) -> str:
    """A name made from what is audited, so that the same command finds the same audit."""
    parts = [asked.subset or asked.recipe.name]
    if asked.recipe.where is None:
        parts.append(f"rule-{asked.rule.number}")
    if not asked.is_only:
        words = re.sub(r"[^A-Za-z0-9.]+", "-", asked.choice.score).strip("-.")[:30]
        sides = {">=": "from", ">": "above", "<=": "to", "<": "below"}
        parts += [word for word in (words, sides[asked.choice.operator]) if word]
    if seed != DEFAULT_SEED:
        parts.append(f"seed-{seed}")
    return "-".join(parts)[-100:].lstrip("-._")


def _plain(found: Quality) -> dict[str, Any]:
    def limits(name: str, one: Estimate | None) -> dict[str, float | None]:
        return {
            name: None if one is None else one.value,
            f"{name}_low": None if one is None else one.low,
            f"{name}_high": None if one is None else one.high,
        }

    return {
        "clips": found.clips,
        **limits("precision", found.precision),
        **limits("recall", found.recall),
    }


def _user() -> str:
    """Who runs this process; empty where the system can't say."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""
