"""Applies the rules: selects the clips that each rule keeps, as SQL over numbers.

Nothing depends on the order of rows, on threads or on the machine: ranks and draws are ordered by
numbers derived from clip ids, quantiles are exact, and sums are over whole milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from math import ceil, floor
from typing import Any

import numpy as np
import pyarrow as pa

from clipmill.pipeline.subsets import clusters, near
from clipmill.pipeline.subsets.candidates import ALL, CANDIDATES, Candidates, RuleColumns
from clipmill.pipeline.subsets.duplicates_within import DuplicatesWithin
from clipmill.pipeline.subsets.groups import (
    describe_shares,
    largest_shares,
    limits,
    part_of,
    weighted_by_group,
)
from clipmill.pipeline.subsets.rules import (
    Balance,
    Cap,
    Deduplicate,
    Percentile,
    Quota,
    Rule,
    Sample,
    Stratify,
    Where,
)
from clipmill.pipeline.subsets.shares import equal, proportional
from clipmill.pipeline.subsets.stored_embeddings import embeddings_step, near_duplicates
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import UsageError
from clipmill.schemas.scratch import ScratchFolder
from clipmill.schemas.step_tables import StepTable, kept
from clipmill.schemas.words import counted


@dataclass(frozen=True)
class Size:
    """How much a table of clips holds."""

    clips: int
    videos: int
    milliseconds: int

    @property
    def hours(self) -> float:
        return round(self.milliseconds / 3_600_000, 4)

    def plain(self) -> dict[str, Any]:
        return {"clips": self.clips, "videos": self.videos, "hours": self.hours}


@dataclass(frozen=True)
class Threshold:
    """A number that a clip's value is compared with: `column operator value`."""

    column: str
    operator: str
    value: float


@dataclass
class Outcome:
    """The result of a rule."""

    rule: Rule
    before: Size
    after: Size
    nulls: int = 0
    """How many of the removed clips were removed because a value was null."""
    thresholds: list[Threshold] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    regained: Size | None = None
    """Clips that pass only if they are cropped, of a rule that allows it."""

    @property
    def took(self) -> int:
        return self.before.clips - self.after.clips

    def plain(self) -> dict[str, Any]:
        return {
            "number": self.rule.number,
            "name": self.rule.name,
            "verb": self.rule.verb,
            "rule": self.rule.plain(),
            "says": self.rule.describe(),
            "remaining": self.after.plain(),
            "took": {"clips": self.took, "because_null": self.nulls},
            "thresholds": [asdict(threshold) for threshold in self.thresholds],
            "notes": self.notes,
            "regained": self.regained and self.regained.plain(),
        }


class RuleEngine:
    """Applies rules to tables of candidates; every table is named by its caller."""

    def __init__(self, candidates: Candidates) -> None:
        self.candidates = candidates
        self._connection = candidates.catalog.connection
        self._carried = "*"
        self._scratch = ScratchFolder("subset")

    def __enter__(self) -> RuleEngine:
        return self

    def __exit__(self, *details: object) -> None:
        self._scratch.remove()

    def size(self, table: str) -> Size:
        clips, videos, milliseconds = self._one(
            f"SELECT count(*), count(DISTINCT video), coalesce(sum(ms), 0) FROM {table}"
        )
        return Size(clips, videos, int(milliseconds))

    def drop(self, table: str) -> None:
        self._connection.execute(f"DROP TABLE IF EXISTS {table}")

    def execute(self, query: str) -> Any:
        """A query over the tables of clips."""
        return self._connection.execute(query)

    def apply(
        self,
        rule: Rule,
        source: str,
        target: str,
        before: Size | None = None,
        later: Sequence[Rule] = (),
        carry: Sequence[str] = (),
    ) -> Outcome:
        """Makes `target` of the clips of `source` that the rule keeps.

        It has only the columns that the rules of `later` need, and those of `carry`.
        """
        before = before or self.size(source)
        columns = self.candidates.columns[rule.number]
        used = [name for one in later for name in self.candidates.columns[one.number].names()]
        used += [columns.uncropped] if columns.uncropped else []
        self._carried = ", ".join(dict.fromkeys(["id", "video", "ms", *carry, *used]))
        outcome = Outcome(rule, before, before)
        try:
            _APPLY[type(rule.body)](self, rule, columns, source, target, outcome)
        except UsageError as error:
            raise UsageError(f"{rule.place}: {error}") from error
        outcome.after = self.size(target)
        if columns.uncropped:
            outcome.regained = self.regained([rule], target)
        return outcome

    def regained(self, rules: Sequence[Rule], table: str) -> Size | None:
        """The clips that pass only if they are cropped; None if no rule allows that."""
        names = [self.candidates.columns[rule.number].uncropped for rule in rules]
        if not any(names):
            return None
        passes = " AND ".join(f"coalesce({name}, false)" for name in names if name)
        return self.size(f"{table} WHERE NOT ({passes})")

    def funnel(
        self, rules: Sequence[Rule], on_rule: Callable[[Rule], None] = lambda rule: None
    ) -> Iterator[tuple[Outcome, str, str]]:
        """The rules in order, each with its input and output tables.

        The last table stays; earlier ones are dropped when the next rule is requested.
        """
        source = ALL
        size = self.size(ALL)
        uncropped = [self.candidates.columns[rule.number].uncropped for rule in rules]
        carry = [name for name in uncropped if name]
        for place, rule in enumerate(rules, 1):
            on_rule(rule)
            target = f"work.reach_{rule.number}"
            outcome = self.apply(rule, source, target, size, rules[place:], carry)
            yield outcome, source, target
            if source != ALL:
                self.drop(source)
            source, size = target, outcome.after

    def _one(self, query: str) -> tuple[Any, ...]:
        row = self._connection.execute(query).fetchone()
        assert row is not None
        return row

    def _keep(self, target: str, query: str) -> None:
        self._connection.execute(
            f"CREATE OR REPLACE TABLE {target} AS SELECT {self._carried} FROM ({query})"
        )

    def _where(
        self, rule: Rule, columns: RuleColumns, source: str, target: str, outcome: Outcome
    ) -> None:
        (value,) = columns.values
        self._keep(target, f"SELECT * FROM {source} WHERE {value}")
        outcome.nulls = self._one(f"SELECT count(*) FROM {source} WHERE {value} IS NULL")[0]

    def _percentile(
        self, rule: Rule, columns: RuleColumns, source: str, target: str, outcome: Outcome
    ) -> None:
        body = rule.body
        assert isinstance(body, Percentile)
        (value,) = columns.values
        (n,) = self._one(f"SELECT count({value}) FROM {source}")
        outcome.nulls = outcome.before.clips - n
        low, high = (Fraction(str(bound)) / 100 * n for bound in body.bounds)
        lowest, highest = floor(low) + 1, ceil(high)  # ranks from 1; both are kept
        conditions = [f"{value} IS NOT NULL"]
        for rank, operator in ((lowest, ">="), (highest, "<=")):
            if lowest > highest or not 1 <= rank <= n:
                conditions.append("false")
            elif rank > 1 if operator == ">=" else rank < n:
                # Half a rank lower, so that rounding can't select a neighbour.
                wanted = f"quantile_disc({value}, {(rank - 0.5) / n!r})"
                conditions.append(f"{value} {operator} (SELECT {wanted} FROM {source})")
                found = self._one(f"SELECT CAST({wanted} AS DOUBLE) FROM {source}")[0]
                outcome.thresholds.append(Threshold(body.column, operator, found))
        self._keep(target, f"SELECT * FROM {source} WHERE {' AND '.join(conditions)}")

    def _first_per_group(
        self, rule: Rule, columns: RuleColumns, source: str, target: str, outcome: Outcome
    ) -> None:
        body = rule.body
        assert isinstance(body, Cap | Quota)
        (group,) = columns.values
        limit = str(body.clips)
        if isinstance(body, Cap) and body.fraction is not None:
            limit = part_of(body.fraction, f"count(*) OVER (PARTITION BY {group})")
        takes_null = False
        if isinstance(body.clips, dict):
            limit, takes_null = limits(group, body.clips)
            outcome.notes += self._unknown_groups(group, body, source)
        order = ", ".join([*columns.order, columns.chance])
        ranked = (
            f"SELECT *, row_number() OVER (PARTITION BY {group} ORDER BY {order}) AS _place, "
            f"{limit} AS _limit FROM {source}"
            + ("" if takes_null else f" WHERE {group} IS NOT NULL")
        )
        self._keep(target, f"SELECT * FROM ({ranked}) WHERE _place <= _limit")
        if not takes_null:
            outcome.nulls = self._one(f"SELECT count(*) FROM {source} WHERE {group} IS NULL")[0]

    def _unknown_groups(self, group: str, body: Quota, source: str) -> list[str]:
        assert isinstance(body.clips, dict)
        named = [name for name in body.clips if name not in (None, "*")]
        rows = self._connection.execute(
            f"SELECT DISTINCT CAST({group} AS VARCHAR) AS name FROM {source} "
            f"WHERE {group} IS NOT NULL ORDER BY name LIMIT 1000"
        ).fetchall()
        there = [name for (name,) in rows]
        missing = [name for name in named if name not in there] if len(there) < 1000 else []
        if not missing:
            return []
        return [
            f"no clip that reaches the rule has {body.per} {' or '.join(map(repr, missing))}; "
            f"available: {', '.join(there[:20])}"
        ]

    def _sample(
        self, rule: Rule, columns: RuleColumns, source: str, target: str, outcome: Outcome
    ) -> None:
        body = rule.body
        assert isinstance(body, Sample)
        n = outcome.before.clips
        reach, weight = source, ""
        if body.per is not None:
            reach, weight = weighted_by_group(source, columns.values[0], body.weight)
            (n,) = self._one(f"SELECT count({columns.values[0]}) FROM {source}")
            outcome.nulls = outcome.before.clips - n
        elif columns.values:
            weight = f" / {columns.values[0]}"
            (wrong,) = self._one(
                f"SELECT count(*) FROM {source} WHERE {columns.values[0]} <= 0 "
                f"OR isinf({columns.values[0]})"
            )
            if wrong:
                raise UsageError(
                    f"a weight must be a positive number, but {body.weight} is not "
                    f"for {counted(wrong, 'clip')}; put a `where` rule before it, or "
                    "use greatest()"
                )
            (n,) = self._one(f"SELECT count({columns.values[0]}) FROM {source}")
            outcome.nulls = outcome.before.clips - n
            reach = f"(SELECT * FROM {source} WHERE {columns.values[0]} IS NOT NULL)"
        elif body.weight == "one_per_video":
            reach, weight = weighted_by_group(source, "video", "inverse")
        wanted = body.clips if body.clips is not None else round(Fraction(str(body.fraction)) * n)
        if body.clips is not None and body.clips >= n:
            outcome.notes.append(
                f"{counted(body.clips, 'clip')} requested, {n:,} "
                f"reach{'es' if n == 1 else ''} the rule: all stay"
            )
        # Efraimidis and Spirakis: the n smallest of -ln(u) / weight are a weighted sample without
        # replacement; with equal weights the smallest u do.
        u = f"((({columns.chance} >> 11) + 0.5) / 9007199254740992)"
        order = f"-ln({u}){weight}, {columns.chance}" if weight else columns.chance
        self._keep(target, f"SELECT * FROM {reach} ORDER BY {order} LIMIT {wanted}")
        if body.per is not None:
            shares = self._one(largest_shares(source, target, columns.values[0]))
            outcome.notes.append(describe_shares(body.per, *shares))

    def _stratify(
        self, rule: Rule, columns: RuleColumns, source: str, target: str, outcome: Outcome
    ) -> None:
        body = rule.body
        assert isinstance(body, Stratify)
        names = ", ".join(columns.values)
        order = ", ".join(f"{name} NULLS LAST" for name in columns.values)
        self._connection.execute(
            f"CREATE OR REPLACE TABLE work.strata AS SELECT {names}, count(*) AS n, row_number() "
            f"OVER (ORDER BY {order}) - 1 AS stratum FROM {source} GROUP BY {names}"
        )
        sizes = self._connection.execute("SELECT n FROM work.strata ORDER BY stratum").fetchnumpy()
        share = proportional if body.allocation == "proportional" else equal
        self._register_shares(share(np.asarray(sizes["n"], dtype=np.int64), body.clips))
        same = " AND ".join(f"s.{name} IS NOT DISTINCT FROM g.{name}" for name in columns.values)
        self._draw_shares(
            f"SELECT s.*, g.stratum AS _group FROM {source} AS s JOIN work.strata AS g ON {same}",
            columns.chance,
            target,
        )
        self._note_all(body.clips, outcome.before.clips, outcome)

    def _note_all(self, wanted: int, there: int, outcome: Outcome) -> None:
        if wanted >= there:
            outcome.notes.append(
                f"{counted(wanted, 'clip')} requested, {there:,} available: all stay"
            )

    def _register_shares(self, shares: np.ndarray) -> None:
        self._connection.register(
            "given_shares",
            pa.table({"_group": np.arange(len(shares), dtype=np.int64), "_share": shares}),
        )

    def _draw_shares(self, grouped: str, chance: str, target: str) -> None:
        """Draws from each `_group` as many as its share says, at random."""
        self._keep(
            target,
            "SELECT * FROM (SELECT g.*, _share, row_number() OVER "
            f" (PARTITION BY _group ORDER BY {chance}) AS _place FROM ({grouped}) AS g "
            "JOIN given_shares USING (_group)) WHERE _place <= _share",
        )
        self._connection.unregister("given_shares")

    def _balance(
        self, rule: Rule, columns: RuleColumns, source: str, target: str, outcome: Outcome
    ) -> None:
        body = rule.body
        assert isinstance(body, Balance)
        step = embeddings_step(self.candidates.catalog.layout, "embedding", body.embeddings)
        self._rank(source, columns.chance)
        labels = clusters.assign_clusters(
            self._rows(step, "embeddings"),
            outcome.before.clips,
            clusters=body.clusters,
            seed=self.candidates.seed,
            scratch=self._scratch.path,
            reread=lambda: self._rows(step, "embeddings"),
        )
        outcome.nulls = int((labels < 0).sum())
        sizes = np.bincount(labels[labels >= 0], minlength=body.clusters).astype(np.int64)
        self._register_shares(equal(sizes, body.clips))
        self._connection.register(
            "given_labels",
            pa.table(
                {"rank": np.arange(len(labels), dtype=np.int64), "_group": labels.astype(np.int64)}
            ),
        )
        self._draw_shares(
            f"SELECT s.*, l._group FROM {source} AS s JOIN work.ranked AS r USING (id) "
            "JOIN given_labels AS l ON l.rank = r.rank",
            columns.chance,
            target,
        )
        self._connection.unregister("given_labels")
        self._note_all(body.clips, outcome.before.clips - outcome.nulls, outcome)

    def _deduplicate(
        self, rule: Rule, columns: RuleColumns, source: str, target: str, outcome: Outcome
    ) -> None:
        body = rule.body
        assert isinstance(body, Deduplicate)
        order = ", ".join([*columns.order, columns.chance])
        if body.by == "bytes":
            (same,) = columns.values
            ranked = (
                f"SELECT *, row_number() OVER (PARTITION BY {same} ORDER BY {order}) AS "
                f"_place FROM {source}"
            )
            self._keep(target, f"SELECT * FROM ({ranked}) WHERE _place = 1 OR {same} IS NULL")
            return
        self._rank(source, order)
        n, scratch = outcome.before.clips, self._scratch.path
        if body.by == "frames":
            assert body.max_distance is not None
            rows = self._rows(self._hashes_step(), "frame_hashes")
            gone = near.near_hashes(rows, n, max_distance=body.max_distance)
        else:
            layout = self.candidates.catalog.layout
            step = embeddings_step(layout, body.by, body.embeddings)
            min_cosine = body.min_cosine or near_duplicates(layout, step)
            if min_cosine is None:
                raise UsageError(
                    f"min_cosine is needed: from which cosine on clips are near-duplicates by "
                    f"{step.step} depends on its model; look at pairs before you choose it"
                )
            if body.min_cosine is None:
                outcome.notes.append(
                    f"min_cosine is {min_cosine:g}, as measured for the model of {step.step}"
                )
            if body.within is not None:
                gone = self._gone_within(step, body.within, min_cosine, source, columns.values[-1])
            else:
                gone = near.near_vectors(
                    self._rows(step, "embeddings"), n, min_cosine=min_cosine, scratch=scratch
                )
        self._connection.register(
            "given_gone", pa.table({"rank": np.asarray(gone, dtype=np.int64)})
        )
        self._keep(
            target,
            f"SELECT * FROM {source} ANTI JOIN (SELECT id FROM work.ranked "
            "SEMI JOIN given_gone USING (rank)) AS g USING (id)",
        )
        self._connection.unregister("given_gone")

    def _gone_within(
        self, step: StepTable, within: str, min_cosine: float, source: str, group: str
    ) -> np.ndarray:
        duplicates = DuplicatesWithin(
            self._connection,
            self.candidates.catalog.layout.dataset,
            step,
            self.candidates.shards[step.step],
            within,
            min_cosine,
            self._scratch.path,
        )
        return duplicates.gone(
            f"SELECT r.rank, r.clip_id, s.{group} AS grp FROM {source} AS s "
            "JOIN work.ranked AS r USING (id)"
        )

    def _rank(self, source: str, order: str) -> None:
        self._connection.execute(
            "CREATE OR REPLACE TABLE work.ranked AS SELECT s.id, c.clip_id, s.rank FROM "
            f"(SELECT id, row_number() OVER (ORDER BY {order}) - 1 AS rank FROM {source}) AS s "
            f"JOIN {CANDIDATES} AS c ON c.rowid = s.id"
        )

    def _rows(self, step: StepTable, column: str) -> pa.RecordBatchReader:
        """`rank` and one column of a step, for the ranked clips that have it.

        Two sources may have led to one video, and so to its clips in two shards: the first counts.
        """
        self._connection.execute(
            "CREATE OR REPLACE TABLE work.placed AS SELECT clip_id, any_value(rank) AS rank, "
            f"min(_base) AS _base FROM work.ranked JOIN ({kept(step, ['clip_id'])}) "
            "USING (clip_id) GROUP BY clip_id"
        )
        # A separate cursor: a result that is being read blocks its connection.
        return (
            self._connection.cursor()
            .sql(
                f"SELECT p.rank, k.{column} FROM ({kept(step, ['clip_id', column])}) AS k "
                "JOIN work.placed AS p ON p.clip_id = k.clip_id AND p._base = k._base "
                f"WHERE k.{column} IS NOT NULL"
            )
            .to_arrow_reader(4096)
        )

    def _hashes_step(self) -> StepTable:
        """The step that made the perceptual hashes."""
        layout = self.candidates.catalog.layout
        found = [
            one for one in layout.steps if one.role == "hash_frames" and one.folder is not None
        ]
        if not found:
            raise UsageError(
                "the dataset has no hash_frames; add it with `clipmill run "
                f"--dataset {shell_word(layout.dataset)} --set hash_frames.stage=hash_frames`"
            )
        if len(found) > 1:
            raise UsageError(
                "the dataset has hash_frames more than once: "
                f"{', '.join(step.step for step in found)}; `clipmill run` without all but one"
            )
        return found[0]


_APPLY = {
    Where: RuleEngine._where,
    Percentile: RuleEngine._percentile,
    Cap: RuleEngine._first_per_group,
    Quota: RuleEngine._first_per_group,
    Sample: RuleEngine._sample,
    Stratify: RuleEngine._stratify,
    Balance: RuleEngine._balance,
    Deduplicate: RuleEngine._deduplicate,
}
