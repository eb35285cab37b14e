"""Draws the clips of an audit: a stratified random sample around a threshold.

The population are the clips that reach the audited rule, have a score, and would be kept with some
threshold: the other parts of the rule let them through. On each side of the threshold, clips are
ordered by their distance from it, and the nearest 20%, the next 30% and the other 50% are a
stratum each. Half of the sample comes from each side, and as much from each of its strata, so the
clips that a slightly different threshold would treat differently are looked at more often, and
the whole range is looked at. Each stratum's size is known, so estimates are not biased by that.

All draws are ordered by hashes of clip ids and the seed: the same catalog gives the same sample,
and a wider one contains it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import numpy as np

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.dataset.audit_records import (
    AuditRecord,
    Population,
    ReportedThreshold,
    SampledClip,
    Stratum,
)
from clipmill.pipeline.subsets.audit_question import Question, further_rules
from clipmill.pipeline.subsets.candidates import (
    ALL,
    CANDIDATES,
    checked_expressions,
    read_candidates,
)
from clipmill.pipeline.subsets.freeze import snapshot_of
from clipmill.pipeline.subsets.rule_engine import RuleEngine, Size
from clipmill.pipeline.subsets.rules import Percentile, Where
from clipmill.pipeline.subsets.shares import equal
from clipmill.schemas.errors import UsageError
from clipmill.schemas.safe_rectangles import IS_CROPPED
from clipmill.schemas.words import counted

DEFAULT_SAMPLE = 30
LARGEST_SAMPLE = 10_000
AUDITED = "work.audited"
_SHARES = (("near", 0.2), ("middle", 0.3), ("far", 0.5))
# With fewer clips on a side, each stratum would have fewer than two or three.
_FOR_THREE, _FOR_TWO = 9, 4
_QUANTILES = (0.75, 0.5, 0.25)


class Drawing:
    """The population of one audit, read from the catalog into a table of its connection."""

    def __init__(
        self,
        catalog: Catalog,
        question: Question,
        seed: int,
        on_step: Callable[[str], None] = lambda said: None,
    ) -> None:
        self._catalog, self._question, self._seed = catalog, question, seed
        self._connection = catalog.connection
        on_step("reading the clips")
        choice = question.choice
        self._expression = f"CAST(({choice.score}\n) AS DOUBLE)"
        with checked_expressions(catalog, question.scorers) as checker:
            kind = checker.type_of(choice.score, choice.rule.place)
            bodies = self._bodies(checker)
        self._is_single = kind == "FLOAT"
        added = further_rules(question.recipe, bodies)
        before = question.before
        own = (question.rule,) if choice.comparison is None else ()
        recipe = replace(question.recipe, rules=(*before, *own, *added))
        candidates = read_candidates(catalog, recipe, question.scorers)
        with RuleEngine(candidates) as engine:
            whole = engine.size(ALL)
            self.snapshot = snapshot_of(catalog, candidates, whole)["id"]
            source, size = ALL, whole
            steps = (*before, *own)
            for place, rule in enumerate(before, 1):
                on_step(f"rule {rule.number} of {len(question.recipe.rules)}: {rule.verb}")
                target = f"work.reach_{rule.number}"
                size = engine.apply(rule, source, target, size, (*steps[place:], *added)).after
                if source != ALL:
                    engine.drop(source)
                source = target
            self.reach = size
            on_step("drawing the sample")
            columns = [candidates.columns[rule.number].values[0] for rule in added]
            if choice.comparison is None:
                self.threshold = self._apply_percentile(engine, source, size, columns)
            else:
                assert choice.value is not None  # a comparison's
                self.threshold = choice.value
                self._make(source, *columns)
        self.population = self._count()
        self._connection.execute(f"DELETE FROM {AUDITED} WHERE x IS NULL")

    def _bodies(self, checker: Any) -> list[Where | Percentile]:
        """What to read for each clip: its score, whether that is NaN, and what the rule does."""
        choice, rule = self._question.choice, self._question.rule
        bodies: list[Where | Percentile] = [
            Percentile(column=self._expression, top=100),
            Where(expression=f"isnan({self._expression})"),
        ]
        if choice.comparison is not None:
            assert isinstance(rule.body, Where)
            text = rule.body.expression
            texts = [
                checker.with_outcome(text, rule.place, choice.comparison, outcome)
                for outcome in (True, False)
            ]
            # What a crop lets pass is kept whatever the threshold.
            or_cropped = f" OR {IS_CROPPED}" if rule.crop else ""
            bodies += [Where(expression=f"({one}\n){or_cropped}") for one in (*texts, text)]
        return bodies

    def _apply_percentile(
        self, engine: RuleEngine, source: str, size: Size, columns: Sequence[str]
    ) -> float:
        choice = self._question.choice
        outcome = engine.apply(choice.rule, source, "work.percentile", size)
        found = {one.operator: one.value for one in outcome.thresholds}
        if choice.operator not in found:
            raise UsageError(
                f"{choice.rule.place}: {choice.rule.describe()} leaves no clip out among the "
                f"{counted(size.clips, 'clip')} that reach it, so there is no threshold to audit"
            )
        threshold = found.pop(choice.operator)
        x, nan = columns
        others = [f"{x} {operator} {limit!r}::DOUBLE" for operator, limit in found.items()]
        met = " AND ".join(["true", *others])
        kept = "id IN (SELECT id FROM work.percentile)"
        self._make(source, x, nan, f"({met})", "false", kept)
        engine.drop("work.percentile")
        return threshold

    def _make(self, source: str, x: str, nan: str, met: str, not_met: str, kept: str) -> None:
        """The population's table; NaN counts as no value in `x`."""
        self._connection.execute(
            f"CREATE OR REPLACE TABLE {AUDITED} AS SELECT c.clip_id, c.video_id, s.* EXCLUDE (id) "
            f"FROM (SELECT id, {x} AS x, coalesce({nan}, false) AS is_nan, coalesce({met}, false) "
            f"AS if_met, coalesce({not_met}, false) AS if_not, coalesce({kept}, false) AS kept "
            f"FROM {source}) AS s JOIN {CANDIDATES} AS c ON c.rowid = s.id "
            "WHERE if_met OR if_not"
        )

    def _count(self) -> Population:
        valued, kept, without, nan, nan_kept = self._connection.execute(
            "SELECT count(x), count(*) FILTER (x IS NOT NULL AND kept), "
            "count(*) FILTER (x IS NULL AND NOT is_nan), count(*) FILTER (is_nan), "
            f"count(*) FILTER (is_nan AND kept) FROM {AUDITED}"
        ).fetchall()[0]
        return Population(valued, kept, without, nan, nan_kept)

    def check(self, wanted: int) -> None:
        """UsageError if no sample of this size can be drawn on both sides of the threshold."""
        people, choice = self.population, self._question.choice
        said = f"{choice.score} {choice.operator} {self.threshold:g}"
        if not people.clips:
            missing = people.without_value + people.not_a_number
            why = (
                f"all {counted(missing, 'clip')} that reach it have no {choice.score}"
                if missing
                else "no clip reaches it"
            )
            raise UsageError(f"nothing to audit at {said}: {why}")
        if not 0 < people.kept < people.clips:
            low, high = self._connection.execute(
                f"SELECT min(x), max(x) FROM {AUDITED}"
            ).fetchall()[0]
            side = "keeps" if people.kept else "leaves out"
            other = "left out" if people.kept else "kept"
            raise UsageError(
                f"{said} {side} all {counted(people.clips, 'clip')} that reach it, whose "
                f"{choice.score} is from {low:.6g} to {high:.6g}: with none {other} there is "
                "nothing to compare; choose a threshold between these numbers"
            )
        if wanted < 2:
            raise UsageError(f"--sample {wanted}: give at least 2, one clip on each side")
        if wanted > people.clips:
            raise UsageError(
                f"--sample {wanted}: only {counted(people.clips, 'clip')} with a value reach "
                f"{said}; give at most {people.clips}"
            )
        if wanted > LARGEST_SAMPLE:
            raise UsageError(f"--sample {wanted:}: give at most {LARGEST_SAMPLE:,}")

    def draw(
        self,
        wanted: int,
        thresholds: Sequence[float],
        *,
        name: str,
        question: str | None,
        code_version: str,
    ) -> AuditRecord:
        """The audit's record, with a sample without labels."""
        self.check(wanted)
        asked = self._question
        strata = self._stratify(wanted)
        sample = self._sample(strata)
        record = self._catalog.layout.record
        rules = [rule.plain() for rule in (*asked.before, asked.rule)]
        return AuditRecord(
            name=name,
            predicate=asked.recipe.where,
            recipe=None if asked.recipe.where is not None else asked.recipe.name,
            subset=asked.subset,
            rule=asked.rule.number,
            rules=rules,
            says=asked.rule.describe(),
            score=asked.choice.score,
            operator=asked.choice.operator,
            threshold=self.threshold,
            question=question,
            seed=self._seed,
            requested=wanted,
            population=self.population,
            strata=strata,
            thresholds=self.reported([*self.suggested(), *thresholds]),
            sample=sample,
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            code_version=code_version,
            snapshot=self.snapshot,
            run_id=record["run_id"] if record else None,
            scorer=asked.scorer,
        )

    def _stratify(self, wanted: int) -> tuple[Stratum, ...]:
        """Numbers the strata in the table's column `stratum`, and says how many to draw of each."""
        connection = self._connection
        kept = self.population.kept
        sides = {True: kept, False: self.population.clips - kept}
        of_sides = equal(np.array(list(sides.values()), dtype=np.int64), wanted)
        bounds: list[tuple[bool, str, int, int]] = []
        draws: list[int] = []
        for (is_kept, clips), share in zip(sides.items(), of_sides.tolist(), strict=True):
            here = _divided(clips, share)
            bounds += [(is_kept, *one) for one in here]
            sizes = np.array([last - first for _, first, last in here], dtype=np.int64)
            draws += equal(sizes, share).tolist()
        cases = " ".join(
            f"WHEN {'' if is_kept else 'NOT '}kept AND place <= {last} THEN {number}"
            for number, (is_kept, _, _, last) in enumerate(bounds)
        )
        connection.execute(
            f"CREATE OR REPLACE TABLE {AUDITED} AS SELECT * EXCLUDE (place), CASE {cases} END AS "
            "stratum FROM (SELECT *, row_number() OVER (PARTITION BY kept ORDER BY "
            f"abs(x - {self.threshold!r}::DOUBLE), {self._chance('place')}) AS place "
            f"FROM {AUDITED})"
        )
        rows = connection.execute(
            f"SELECT stratum, count(*), min(x), max(x) FROM {AUDITED} GROUP BY stratum ORDER BY 1"
        ).fetchall()
        return tuple(
            Stratum(is_kept, place, clips, draw, low, high)
            for (is_kept, place, _, _), draw, (_, clips, low, high) in zip(
                bounds, draws, rows, strict=True
            )
        )

    def _sample(self, strata: Sequence[Stratum]) -> tuple[SampledClip, ...]:
        # In an order that doesn't tell on which side of the threshold a clip is.
        draws = " ".join(f"WHEN {n} THEN {one.drawn}" for n, one in enumerate(strata))
        rows = self._connection.execute(
            "SELECT clip_id, video_id, stratum, x, if_met, if_not FROM (SELECT *, row_number() "
            f"OVER (PARTITION BY stratum ORDER BY {self._chance('draw')}) AS n FROM {AUDITED}) "
            f"WHERE n <= CASE stratum {draws} END ORDER BY {self._chance('order')}"
        ).fetchall()
        return tuple(SampledClip(*row) for row in rows)

    def _chance(self, purpose: str) -> str:
        return f"md5_number_lower(clip_id || ':{self._seed}:audit:{purpose}'), clip_id"

    def suggested(self) -> list[float]:
        """The audited threshold, and quartiles of the scores on each side as short numbers."""
        rows = self._connection.execute(
            f"SELECT quantile_disc(x, {list(_QUANTILES)}) FROM {AUDITED} "
            "WHERE isfinite(x) GROUP BY kept"
        ).fetchall()
        found = [value for (values,) in rows for value in values]
        if not found:
            return [self.threshold]
        spread = max(found) - min(found)
        digits = 2 - math.floor(math.log10(spread)) if spread > 0 else 6
        return [self.threshold, *(round(value, max(0, digits - 1)) for value in found)]

    def reported(self, values: Sequence[float]) -> tuple[ReportedThreshold, ...]:
        """Thresholds with the clips of each stratum that they keep, from the lowest on."""
        operator = self._question.choice.operator
        found = []
        for value in sorted(set(values)):
            limit = float(np.float32(value)) if self._is_single else float(value)
            rows = self._connection.execute(
                f"SELECT count(*) FILTER (CASE WHEN x {operator} {limit!r}::DOUBLE THEN if_met "
                f"ELSE if_not END) FROM {AUDITED} GROUP BY stratum ORDER BY stratum"
            ).fetchall()
            found.append(ReportedThreshold(value, limit, tuple(count for (count,) in rows)))
        return tuple(found)

    def check_same(self, record: AuditRecord) -> None:
        """UsageError if the catalog has changed since an audit was drawn from it."""
        if self.snapshot != record.snapshot or self.population != record.population:
            raise UsageError(
                f"the catalog has changed since the audit {record.name!r} was drawn: more clips, "
                "or counts at further thresholds, would not be of the same clips; draw a new one "
                "with another --name"
            )


def _divided(clips: int, drawn: int) -> list[tuple[str, int, int]]:
    """The strata of one side, as ranks by distance: (name, first, last)."""
    shares = _SHARES if drawn >= _FOR_THREE else _SHARES[:1] if drawn < _FOR_TWO else _SHARES[::2]
    whole = sum(share for _, share in shares)
    found: list[tuple[str, int, int]] = []
    total, first = 0.0, 0
    for name, share in shares:
        total += share
        last = clips if name == shares[-1][0] else math.ceil(clips * total / whole)
        if last > first:
            found.append((name if len(shares) > 1 else "all", first, last))
        first = last
    return found
