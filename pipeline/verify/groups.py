"""Checks one base shard through all tables: what is missing, lost, or of unknown origin.

Only the shards of one base are held in memory at a time: that is how the stages see them, too.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from clipmill.pipeline.catalog.damaged_files import why_damaged
from clipmill.pipeline.dataset.shards import base_shard, retry_number
from clipmill.pipeline.dataset.tombstones import Tombstone
from clipmill.pipeline.verify.findings import Book, Reopen, SetAside, some
from clipmill.pipeline.verify.layout import (
    SOURCES_NODE,
    Survey,
    SurveyedStep,
    frames_are_dropped,
    is_cache,
    missing_inputs,
)
from clipmill.pipeline.verify.shard_checks import ShardChecks, ShardRows
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.folders import SOURCES
from clipmill.schemas.ids import CLIP_ID
from clipmill.schemas.words import counted

Seen = Callable[[dict[SurveyedStep, dict[str, ShardRows]]], None]


@dataclass
class GroupChecks:
    """Iterates over the base shards; `seen` is given the rows of each in turn.

    `pending` counts by step the shards that the newest run has still to do.
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
        found: dict[SurveyedStep, dict[str, ShardRows]] = {}
        broken: set[SurveyedStep] = set()
        for node in (SOURCES_NODE, *survey.ordered):
            names = survey.group(node, base)
            found[node] = {}
            for shard in names:
                rows = self.shards.own_table(node, shard)
                if rows is None:
                    broken.add(node)
                else:
                    found[node][shard] = rows
                self._check_request(node, shard)
            for table in node.tables:
                if table != node.label:
                    self._check_further(node, table, base, found[node])
            self._check_missing(node, base, broken)
        if survey.removals_known:
            self._check_removed(found)
            for node in survey.ordered:
                before = {self._node(name) for name in node.inputs}
                if (
                    not broken & ({node} | before)
                    and None not in before
                    and (not self._check_keys(node, found))
                ):
                    broken.add(node)  # what was made from it lacks the same keys
        self.seen(found)

    def _node(self, name: tuple[str, str]) -> SurveyedStep | None:
        return SOURCES_NODE if name == SOURCES_NODE.id else self.survey.nodes.get(name)

    def _has_sources(self, base: str) -> bool:
        """Whether the base is one of the sources'; otherwise its files are reported here."""
        survey = self.survey
        if base in survey.shards(SOURCES_NODE):
            return True
        for node in survey.ordered:
            for shard in survey.group(node, base):
                # Such shards are not gone through here, but the views would read them.
                if why_damaged(survey.dataset / node.file(shard)) is not None:
                    self.shards.damaged.add((node.place(), shard))
        files = [
            (node, node.file(shard, table))
            for node in survey.ordered
            for table in node.tables
            for shard in survey.group(node, base, table)
        ]
        if any(SOURCES_NODE.id in node.inputs for node, _ in files):
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

    def _check_request(self, node: SurveyedStep, shard: str) -> None:
        if retry_number(shard) and not self.survey.passes(node, shard):
            self.book.remake(
                "orphan",
                node.file(shard),
                f"is a retry that retries/{shard}.json does not ask for",
                node.label,
                node.fingerprint,
                shard,
            )

    def _check_missing(self, node: SurveyedStep, base: str, broken: set[SurveyedStep]) -> None:
        survey, book = self.survey, self.book
        if node.label == SOURCES:
            return
        have = survey.shards(node)
        wanted = [base, *sorted(name for name in survey.requests if base_shard(name) == base)]
        below = [
            child
            for child in survey.below(node.id)
            if any(name == node.id for name in child.inputs)
        ]
        for shard in wanted:
            if shard in have or not survey.passes(node, shard):
                continue
            users = [
                child.label
                for child in below
                if shard in survey.shards(child) and node in missing_inputs(survey, child, shard)
            ]
            if users:
                book.remake(
                    "missing",
                    node.file(shard),
                    f"is missing, but {users[0]} was made from it",
                    node.label,
                    node.fingerprint,
                    shard,
                )
                broken.add(node)
            elif survey.must_have(node, shard):
                book.remake(
                    "missing",
                    node.file(shard),
                    "is missing, but the newest run says that it is done",
                    node.label,
                    node.fingerprint,
                    shard,
                    at_rest=True,
                )
            elif node.id in survey.current:
                self.pending[node.id] += 1
                book.report.pending += 1

    def _check_further(
        self, node: SurveyedStep, table: str, base: str, own: dict[str, ShardRows]
    ) -> None:
        survey, book = self.survey, self.book
        there = survey.group(node, base, table)
        for shard in there:
            videos = self.shards.further_table(node, table, shard)
            if videos is None or shard not in own or "video_id" not in own[shard].kept.schema.names:
                continue
            kept = own[shard].kept["video_id"].to_pylist()
            known = set(kept) if is_cache(table) else own[shard].keys
            if strangers := videos - known - survey.removed_videos:
                what = (
                    f"has rows of {counted(len(strangers), 'video')} that {node.file(shard)} "
                    f"does not have: {some(strangers)}"
                )
                if is_cache(table):
                    book.fault(
                        "orphan",
                        node.file(shard, table),
                        what,
                        book.repair,
                        SetAside((node.file(shard, table),)),
                    )
                else:
                    book.remake(
                        "orphan", node.file(shard, table), what, node.label, node.fingerprint, shard
                    )
        for shard in own:
            if shard in there:
                continue
            where = node.file(shard, table)
            if not is_cache(table):
                book.remake(
                    "missing",
                    where,
                    f"is missing, but {node.file(shard)} exists",
                    node.label,
                    node.fingerprint,
                    shard,
                )
            elif node.id in survey.current and not frames_are_dropped(survey.newest):
                book.note(
                    "frames",
                    where,
                    "is missing: stages that need frames read them from the video again",
                )

    def _check_removed(self, found: dict[SurveyedStep, dict[str, ShardRows]]) -> None:
        survey = self.survey
        if not survey.removals:
            return
        for node, shards in found.items():
            for shard, rows in shards.items():
                videos = _column(rows.kept, "video_id")
                left = {video for video in videos if video in survey.removed_videos}
                if node.key != "source_key":
                    left |= {key for key in rows.keys if survey.is_removed(key)}
                else:
                    kept = set(_column(rows.kept, "source_key"))
                    left |= kept & survey.removed_keys
                if left:
                    self._tell_removed(node, shard, left)

    def _tell_removed(self, node: SurveyedStep, shard: str, left: set[str]) -> None:
        book = self.book
        stones = [
            stone for stone in self.survey.removals if any(_belongs(stone, key) for key in left)
        ]
        done = [stone for stone in stones if stone.purged_at is not None]
        what = f"still has rows of removed videos: {some(left)}"
        video = next((video for stone in stones for video in stone.videos), "ID")
        finish = (
            f"{book.again} or `clipmill remove {shell_word(book.dataset)} --video {video}` "
            "finishes the removal"
        )
        if len(done) < len(stones):
            book.fault("removal", node.file(shard), what, finish, at_rest=True)
        else:
            book.fault(
                "removal",
                node.file(shard),
                what,
                f"`clipmill verify {shell_word(book.dataset)} --repair` reopens the "
                f"removal; then {finish}",
                *(Reopen(stone.name) for stone in done),
                at_rest=True,
            )

    def _check_keys(
        self, node: SurveyedStep, found: dict[SurveyedStep, dict[str, ShardRows]]
    ) -> bool:
        """inputs = kept + rejected + failed: the keys that came are the keys that are there."""
        own = found[node]
        given = _inputs(self.survey, node, found) if own else None
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
                node.file(shard),
                f"{counted(len(keys), 'key')} that it was "
                f"given {'is' if len(keys) == 1 else 'are'} neither kept, rejected nor "
                f"failed: {some(keys)}",
                node.label,
                node.fingerprint,
                shard,
            )
        for shard, rows in own.items():
            strangers = {key for key in rows.keys - given.keys() if not survey.is_removed(key)}
            if strangers:
                is_right = False
                before = " and ".join(label for label, _ in node.inputs if label in node.required)
                book.remake(
                    "orphan",
                    node.file(shard),
                    f"has {counted(len(strangers), 'key')} "
                    f"that {before} did not keep: {some(strangers)}",
                    node.label,
                    node.fingerprint,
                    shard,
                )
        return is_right


def _belongs(stone: Tombstone, key: str) -> bool:
    clip = CLIP_ID.match(key)
    return (
        key in stone.videos
        or key in stone.source_keys
        or (clip is not None and clip[1] in stone.videos)
    )


def _column(table: pa.Table, name: str) -> list[Any]:
    return table[name].to_pylist() if name in table.column_names else []


def _inputs(
    survey: Survey, node: SurveyedStep, found: dict[SurveyedStep, dict[str, ShardRows]]
) -> dict[str, set[str]] | None:
    """The keys that a step is given, each with the shards that bring it.

    As `pipeline/engine/step_inputs.py` finds them, over the whole group of a base shard. None where
    the records don't tell.
    """
    unit = node.key
    tables: dict[str, dict[str, ShardRows]] = {}
    levels: dict[str, set[str]] = {}
    for label, fingerprint in node.inputs:
        before = SOURCES_NODE if label == SOURCES else survey.nodes[label, fingerprint]
        tables[label] = found[before]
        levels[label] = {before.key, *before.columns}
    at_unit = [label for label in tables if unit in levels[label]]
    if not at_unit:
        return None
    base = at_unit[0]
    given: dict[str, set[str]] = {}
    videos: dict[str, str] = {}
    for rows in tables[base].values():
        keys = _column(rows.kept, unit)
        given.update((key, set()) for key in keys if key is not None)
        videos.update(zip(keys, _column(rows.kept, "video_id"), strict=False))
    for label in at_unit:
        kept: set[str] = set()
        for shard, rows in tables[label].items():
            for key in _column(rows.kept, unit):
                kept.add(key)
                if key in given:
                    given[key].add(shard)
        if label in node.required and label != base:
            given = {key: shards for key, shards in given.items() if key in kept}
    if "video_id" in levels[base]:
        for label in tables.keys() - set(at_unit):
            join = "video_id" if "video_id" in levels[label] else "source_key"
            known: dict[str, set[str]] = {}
            for shard, rows in tables[label].items():
                for video in _column(rows.kept, join):
                    known.setdefault(video, set()).add(shard)
            if label in node.required:
                given = {key: shards for key, shards in given.items() if videos.get(key) in known}
            for key, bringing in given.items():
                if key in videos:
                    bringing.update(known.get(videos[key], ()))
    return given
