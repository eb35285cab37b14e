"""Which rows of a shard a run is asked for, and which given spans of a source.

Rows that a retry shard names are always asked for; what is made from them only if the run asks
for it, since the retry may be an earlier run's.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipmill.pipeline.dataset.choices import Choice, ChosenOfShard, open_choice, stored_choices
from clipmill.pipeline.dataset.shards import base_shard
from clipmill.pipeline.engine.step_inputs import kept_rows, read_group, read_shard
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList
from clipmill.schemas.folders import SOURCES
from clipmill.schemas.ids import CLIP_ID, clip_id
from clipmill.schemas.step_tables import NOT_ASKED
from clipmill.schemas.tables import SOURCES as SOURCES_SCHEMA

_LEEWAY_MS = 1
Spans = list[dict[str, Any]]


@dataclass
class Asked:
    """The run's choice, applied to one shard at a time; without a choice, everything is asked."""

    plan: Plan
    dataset: Path
    shards: ShardList
    choice: Choice | None = field(init=False)
    _latest: tuple[str, ChosenOfShard] | None = None

    def __post_init__(self) -> None:
        name = self.shards.choice
        self.choice = None if name is None else open_choice(self.dataset, name)

    def split(
        self, step: PlannedStep, shard: str, rows: pa.Table, named: Collection[str] | None
    ) -> tuple[pa.Table, dict[str, str]]:
        """The rows to process, and why each of the others is skipped.

        `named` are the keys for which a retry shard was requested. The given spans of a source are
        reduced to those that are asked for.
        """
        if self.choice is None or not rows.num_rows:
            return rows, {}
        keys = rows[step.key].to_pylist()
        asked = self.keys(step, base_shard(shard), keys) | set(named or ())
        left_out = {key: f"{NOT_ASKED}: {self.choice.said}" for key in keys if key not in asked}
        rows = rows.filter(pa.array([key in asked for key in keys], pa.bool_()))
        if (column := spans_column(step)) is not None:
            rows = self._with_asked_spans(step, shard, rows, column)
        return rows, left_out

    def keys(self, step: PlannedStep, base: str, keys: Collection[str]) -> set[str]:
        """Those of a step's keys in a base shard that are asked for."""
        if self.choice is None or not keys:
            return set(keys)
        chosen = self._of(base)
        if step.key == "source_key":
            return chosen.sources & set(keys)
        sources = ShardSources(self.plan, self.dataset, self.shards.group(base))
        if step.key == "video_id":
            return {key for key in keys if sources.of_videos.get(key, set()) & chosen.sources}
        return {key for key in keys if self._is_asked(key, sources, chosen)}

    def _is_asked(self, clip: str, sources: ShardSources, chosen: ChosenOfShard) -> bool:
        for source in sources.of_clip(clip):
            if source not in chosen.clips:
                continue
            clips = chosen.clips[source]
            if clips is None or clip in clips:
                return True
            spans = [span for span in clips.values() if span is not None]
            if spans and _is_made_from(clip, spans, sources.spans.get(source) or []):
                return True
        return False

    def _of(self, base: str) -> ChosenOfShard:
        assert self.choice is not None
        if self._latest is None or self._latest[0] != base:
            self._latest = (base, self.choice.of(base))
        return self._latest[1]

    # Given spans

    def _with_asked_spans(
        self, step: PlannedStep, shard: str, rows: pa.Table, column: str
    ) -> pa.Table:
        before = spans_before(step, self.dataset, self.shards.group(base_shard(shard)))
        spans = [
            self.spans(key, base_shard(shard), given, before.get(key))
            for key, given in zip(rows[step.key].to_pylist(), rows[column].to_pylist(), strict=True)
        ]
        kind = rows.schema.field(column).type
        place = rows.schema.get_field_index(column)
        return rows.set_column(place, column, pa.array(spans, kind))

    def spans(
        self, source: str, base: str, given: Spans | None, before: Spans | None
    ) -> Spans | None:
        """The given spans of a source that are asked for, and those that were `before`."""
        if self.choice is None or not given:
            return given
        chosen = self._of(base)
        if source in chosen.clips:
            clips = [chosen.clips[source]]
        else:  # a failure of an earlier run, which is tried again
            clips = [one.clips[source] for one in self._earlier(base) if source in one.clips]
        places: set[int] = set()
        for one in clips:
            if one is None:
                return given
            found = [span for span in one.values() if span is not None]
            if len(found) < len(one) and before is None:
                return given  # clips that a recipe has made from the whole video
            places.update(found)
        if not clips:
            return given
        known = before or []
        return [span for at, span in enumerate(given) if at in places or span in known]

    def _earlier(self, base: str) -> list[ChosenOfShard]:
        return [choice.of(base) for choice in stored_choices(self.dataset)]


def shards_of(choice: Choice, shards: ShardList, *, with_retries: bool = False) -> ShardList:
    """Only the shards that hold something of a choice; `with_retries`, also all retries."""
    first = choice.shards
    return ShardList(
        tuple(shard for shard in shards.first if shard in first),
        {
            name: request
            for name, request in shards.retries.items()
            if with_retries or base_shard(name) in first
        },
        choice.name,
    )


def spans_column(step: PlannedStep) -> str | None:
    """The column in which a step gets a source's given spans, if it passes them on."""
    if step.key != "source_key" or "spans" not in step.columns:
        return None
    return next(
        (read.shown_as for read in step.reads if (read.label, read.column) == (SOURCES, "spans")),
        None,
    )


def spans_before(step: PlannedStep, dataset: Path, group: Sequence[str]) -> dict[str, Spans]:
    """The spans that each source's newest kept row at a step has."""
    found: dict[str, Spans] = {}
    for _, rows in read_group(step, dataset, group, ["spans", "rejection", "error"]):
        for row in kept_rows(rows).select([step.key, "spans"]).to_pylist():
            found[row[step.key]] = row["spans"] or []
    return found


@dataclass
class ShardSources:
    """The sources that the videos and clips of one base shard come from."""

    plan: Plan
    dataset: Path
    group: Sequence[str]

    @functools.cached_property
    def of_videos(self) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for step in self.plan.steps:
            if step.key == "source_key" and "video_id" in step.columns:
                for source, video in self._pairs(step, "video_id"):
                    found.setdefault(video, set()).add(source)
        return found

    @functools.cached_property
    def _video_of_clip(self) -> dict[str, str]:
        maker = next(
            (s for s in self.plan.steps if "clip_id" in s.columns and s.key != "clip_id"), None
        )
        if maker is None:
            return {}
        return {clip: video for video, clip in self._pairs(maker, "clip_id")}

    def _pairs(self, step: PlannedStep, column: str) -> list[tuple[str, str]]:
        return [
            (row[step.key], row[column])
            for _, rows in read_group(
                step, self.dataset, self.group, [column, "rejection", "error"]
            )
            for row in kept_rows(rows).select([step.key, column]).to_pylist()
        ]

    def of_clip(self, clip: str) -> set[str]:
        video = self._video_of_clip.get(clip)
        return set() if video is None else self.of_videos.get(video, set())

    @functools.cached_property
    def spans(self) -> Mapping[str, Spans]:
        """The given spans of each source, all of them."""
        table = read_shard(
            self.dataset / SOURCES, self.group[0], SOURCES_SCHEMA, ["source_key", "spans"]
        )
        table = table.filter(pc.is_valid(table["spans"]))
        return dict(zip(*table.to_pydict().values(), strict=True))


def _is_made_from(clip: str, chosen: Sequence[int], spans: Spans) -> bool:
    """Whether a clip is made from one of the chosen spans: it may begin later and end earlier."""
    parts = CLIP_ID.match(clip)
    if parts is None:
        return False
    video = parts[1]
    names = [
        None
        if span["end_seconds"] is None
        else clip_id(video, span["start_seconds"] or 0.0, span["end_seconds"])
        for span in spans
    ]
    if clip in names:
        return names.index(clip) in chosen
    start, end = (int(parts[name].replace("m", "-")) for name in ("start", "end"))
    for at in chosen:
        first = (spans[at]["start_seconds"] or 0.0) * 1000
        last = spans[at]["end_seconds"]
        if first - _LEEWAY_MS <= start and (last is None or end <= last * 1000 + _LEEWAY_MS):
            return True
    return False
