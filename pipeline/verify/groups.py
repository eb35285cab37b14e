"""Checks one base shard through all tables: what is missing, lost, or of unknown origin.

Only the shards of one base are in memory at a time, as in the stages.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from clipmill.pipeline.catalog.damaged_files import why_damaged
from clipmill.pipeline.dataset.shards import base_shard, retry_number
from clipmill.pipeline.dataset.steps import KeptRows, Step, given_keys, inputs_of
from clipmill.pipeline.verify.findings import Book, Reopen, SetAside, some
from clipmill.pipeline.verify.layout import (
    SOURCES_STEP,
    Survey,
    frames_are_dropped,
    is_cache,
    missing_inputs,
)
from clipmill.pipeline.verify.shard_checks import ShardChecks, ShardRows
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.folders import SOURCES
from clipmill.schemas.ids import is_of
from clipmill.schemas.words import counted

Seen = Callable[[dict[Step, dict[str, ShardRows]]], None]


@dataclass
class GroupChecks:
    """Iterates over the base shards; `seen` gets the rows of each in turn.

    `pending` counts by step the shards that the newest run still has to do.
    """

    survey: Survey
    shards: ShardChecks
    book: Book
    seen: Seen = lambda rows: None
    pending: Counter[tuple[str, str]] = field(default_factory=Counter)

    def check(self, base: str) -> None:
        survey = self.survey
        if not self._has_sources(base):
            return
        found: dict[Step, dict[str, ShardRows]] = {}
        broken: set[Step] = set()
        for step in (SOURCES_STEP, *survey.ordered):
            names = survey.group(step, base)
            found[step] = {}
            for shard in names:
                rows = self.shards.own_table(step, shard)
                if rows is None:
                    broken.add(step)
                else:
                    found[step][shard] = rows
                self._check_request(step, shard)
            for table in step.tables:
                if table != step.label:
                    self._check_further(step, table, base, found[step])
            self._check_missing(step, base, broken)
        if survey.removals_known:
            self._check_removed(found)
            for step in survey.ordered:
                before = {self._step(name) for name in step.inputs.items()}
                if (
                    not broken & ({step} | before)
                    and None not in before
                    and (not self._check_keys(step, found))
                ):
                    broken.add(step)  # tables made from it lack the same keys
        self.seen(found)

    def _step(self, name: tuple[str, str]) -> Step | None:
        return SOURCES_STEP if name == SOURCES_STEP.id else self.survey.steps.get(name)

    def _has_sources(self, base: str) -> bool:
        """Whether the base is one of the sources'; otherwise its files are reported here."""
        survey = self.survey
        if base in survey.shards(SOURCES_STEP):
            return True
        for step in survey.ordered:
            for shard in survey.group(step, base):
                # Such shards are not checked here, but the views would read them.
                if why_damaged(survey.dataset / step.file(shard)) is not None:
                    self.shards.damaged.add((step.place(), shard))
        files = [
            (step, step.file(shard, table))
            for step in survey.ordered
            for table in step.tables
            for shard in survey.group(step, base, table)
        ]
        if any(SOURCES in step.inputs for step, _ in files):
            self.book.remake(
                "missing",
                f"{SOURCES}/{base}.parquet",
                f"is missing, but {counted(len(files), 'shard')} made from it "
                f"{'is' if len(files) == 1 else 'are'}",
                SOURCES,
                "",
                base,
            )
            return False
        for _, file in files:
            self.book.stray("orphan", file, f"the sources have no shard {base}")
        return False

    def _check_request(self, step: Step, shard: str) -> None:
        if retry_number(shard) and not self.survey.passes(step, shard):
            self.book.remake(
                "orphan",
                step.file(shard),
                f"is a retry that retries/{shard}.json does not ask for",
                step.label,
                step.fingerprint,
                shard,
            )

    def _check_missing(self, step: Step, base: str, broken: set[Step]) -> None:
        survey, book = self.survey, self.book
        if step.label == SOURCES:
            return
        have = survey.shards(step)
        wanted = [base, *sorted(name for name in survey.requests if base_shard(name) == base)]
        below = [
            child
            for child in survey.below(step.id)
            if child.inputs.get(step.label) == step.fingerprint
        ]
        for shard in wanted:
            if shard in have or not survey.passes(step, shard):
                continue
            users = [
                child.label
                for child in below
                if shard in survey.shards(child) and step in missing_inputs(survey, child, shard)
            ]
            if users:
                book.remake(
                    "missing",
                    step.file(shard),
                    f"is missing, but {users[0]} was made from it",
                    step.label,
                    step.fingerprint,
                    shard,
                )
                broken.add(step)
            elif survey.must_have(step, shard):
                book.remake(
                    "missing",
                    step.file(shard),
                    "is missing, but the newest run says that it is done",
                    step.label,
                    step.fingerprint,
                    shard,
                    at_rest=True,
                )
            elif step.id in survey.current:
                self.pending[step.id] += 1
                book.report.pending += survey.is_asked_for(shard)

    def _check_further(self, step: Step, table: str, base: str, own: dict[str, ShardRows]) -> None:
        survey, book = self.survey, self.book
        there = survey.group(step, base, table)
        for shard in there:
            videos = self.shards.further_table(step, table, shard)
            if videos is None or shard not in own or "video_id" not in own[shard].kept.schema.names:
                continue
            kept = own[shard].kept["video_id"].to_pylist()
            known = set(kept) if is_cache(table) else own[shard].keys
            if strangers := videos - known - survey.removed_videos:
                what = (
                    f"has rows of {counted(len(strangers), 'video')} that {step.file(shard)} "
                    f"does not have: {some(strangers)}"
                )
                if is_cache(table):
                    book.fault(
                        "orphan",
                        step.file(shard, table),
                        what,
                        book.repair,
                        SetAside((step.file(shard, table),)),
                    )
                else:
                    book.remake(
                        "orphan", step.file(shard, table), what, step.label, step.fingerprint, shard
                    )
        for shard in own:
            if shard in there:
                continue
            where = step.file(shard, table)
            if not is_cache(table):
                book.remake(
                    "missing",
                    where,
                    f"is missing, but {step.file(shard)} exists",
                    step.label,
                    step.fingerprint,
                    shard,
                )
            elif step.id in survey.current and not frames_are_dropped(survey.newest):
                book.note(
                    "frames",
                    where,
                    "is missing: stages that need frames read them from the video again",
                )

    def _check_removed(self, found: dict[Step, dict[str, ShardRows]]) -> None:
        survey = self.survey
        if not survey.removals:
            return
        for step, shards in found.items():
            for shard, rows in shards.items():
                videos = _column(rows.kept, "video_id")
                left = {video for video in videos if video in survey.removed_videos}
                if step.key != "source_key":
                    left |= {key for key in rows.keys if survey.is_removed(key)}
                else:
                    kept = set(_column(rows.kept, "source_key"))
                    left |= kept & survey.removed_keys
                if left:
                    self._tell_removed(step, shard, left)

    def _tell_removed(self, step: Step, shard: str, left: set[str]) -> None:
        book = self.book
        stones = [
            stone
            for stone in self.survey.removals
            if any(is_of(key, stone.videos, stone.source_keys) for key in left)
        ]
        done = [stone for stone in stones if stone.purged_at is not None]
        what = f"still has rows of removed videos: {some(left)}"
        video = next((video for stone in stones for video in stone.videos), "ID")
        finish = (
            f"{book.again} or `clipmill remove {shell_word(book.dataset)} --video {video}` "
            "finishes the removal"
        )
        if len(done) < len(stones):
            book.fault("removal", step.file(shard), what, finish, at_rest=True)
        else:
            book.fault(
                "removal",
                step.file(shard),
                what,
                f"`clipmill verify {shell_word(book.dataset)} --repair` reopens the "
                f"removal; then {finish}",
                *(Reopen(stone.name) for stone in done),
                at_rest=True,
            )

    def _check_keys(self, step: Step, found: dict[Step, dict[str, ShardRows]]) -> bool:
        """Checks that each given key has an outcome, and no other key has one."""
        own = found[step]
        given = _given(self.survey, step, found) if own else None
        if given is None:
            return True
        is_right = True
        survey, book = self.survey, self.book
        have: set[str] = set().union(*(rows.keys for rows in own.values()))
        lost: dict[str, list[str]] = {}
        for key, bringing in given.items():
            if key not in have and bringing <= own.keys() and not survey.is_removed(key):
                lost.setdefault(max(bringing, key=retry_number), []).append(key)
        for shard, keys in lost.items():
            is_right = False
            book.remake(
                "accounting",
                step.file(shard),
                f"{counted(len(keys), 'key')} that it was "
                f"given {'is' if len(keys) == 1 else 'are'} neither kept, rejected, failed nor "
                f"skipped: {some(keys)}",
                step.label,
                step.fingerprint,
                shard,
            )
        for shard, rows in own.items():
            strangers = {key for key in rows.keys - given.keys() if not survey.is_removed(key)}
            if strangers:
                is_right = False
                before = " and ".join(label for label in step.inputs if label in step.required)
                book.remake(
                    "orphan",
                    step.file(shard),
                    f"has {counted(len(strangers), 'key')} "
                    f"that {before} did not keep: {some(strangers)}",
                    step.label,
                    step.fingerprint,
                    shard,
                )
        return is_right


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else []


def _given(
    survey: Survey, step: Step, found: dict[Step, dict[str, ShardRows]]
) -> dict[str, set[str]] | None:
    """The keys that a step is given over a whole base shard, each with the shards that add it.

    None if the records don't show them.
    """
    columns: dict[str, tuple[str, ...]] = {}
    kept: dict[str, dict[str, KeptRows]] = {}
    for label, fingerprint in step.inputs.items():
        before = SOURCES_STEP if label == SOURCES else survey.steps[label, fingerprint]
        columns[label] = before.columns
        kept[label] = {s: KeptRows.of(rows.kept, step.key) for s, rows in found[before].items()}
    inputs = inputs_of(step, columns)
    return given_keys(inputs, kept) if inputs.of_keys else None
