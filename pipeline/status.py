"""Counts the outcomes of all keys at every stage, from the tables themselves."""

from __future__ import annotations

import contextlib
import itertools
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypedDict

from clipmill.pipeline.catalog import views
from clipmill.pipeline.catalog.caption_texts import TextCounts, text_counts
from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.index import ShardFiles
from clipmill.pipeline.catalog.layout import Layout
from clipmill.pipeline.catalog.reasons import Reasons, reasons
from clipmill.pipeline.dataset.choices import asked_shards
from clipmill.pipeline.dataset.commit_fence import last_moved
from clipmill.pipeline.dataset.run_records import RunRecord
from clipmill.pipeline.dataset.shards import committed_shards, shard_name
from clipmill.pipeline.dataset.steps import Step, StepId, inputs_of, recorded_steps
from clipmill.pipeline.engine.retry import list_shards
from clipmill.pipeline.ingest.list_counts import kept_counts
from clipmill.schemas.damage import DamagedFile
from clipmill.schemas.folders import SOURCES
from clipmill.schemas.sql_text import escaped_for_glob, literal, quoted
from clipmill.schemas.step_tables import NOT_ASKED, StepTable, kept, outcomes

_RANK = "CASE outcome WHEN 'kept' THEN 0 WHEN 'rejected' THEN 1 WHEN 'failed' THEN 2 ELSE 3 END"


class Outcomes(TypedDict):
    """Keys by outcome."""

    kept: int
    rejected: int
    failed: int
    skipped: int


class IngestStatus(Outcomes):
    """The rows of lists, and the shards that they became."""

    inputs: int
    shards: int


class StageStatus(Outcomes):
    """The outcomes of the keys that a stage was given.

    Of those `skipped`, the runs' choices left out `not_asked`, and gates the others.
    """

    stage: str
    inputs: int
    not_asked: int
    pending: int
    shards_done: int
    shards_total: int
    seconds: float
    rows_per_second: float | None
    lost: int
    accounted: bool


class RunStatus(TypedDict):
    """The newest run."""

    run_id: str
    state: str
    started_at: str
    finished_at: str | None
    engine: str
    recipe_name: str


class Totals(TypedDict):
    """What the dataset holds, and how many frames were decoded for it.

    `published` counts clips that came with the sources and aren't made yet; `clips` the others.
    """

    videos: int
    clips: int
    published: int
    hours: float
    source_frames: int
    decoded_frames: int


class Status(Reasons):
    """The result of `status_report`.

    `moved_at` is when the running command last made progress, None if none is running. `lists`
    counts each list's lines and rows; `texts`, the captions in each column that models wrote.
    """

    dataset: str
    run: RunStatus | None
    moved_at: str | None
    ingest: IngestStatus
    lists: list[dict[str, Any]]
    stages: list[StageStatus]
    totals: Totals
    texts: list[TextCounts]


def status_report(dataset: Path) -> Status:
    """Per stage the keys by outcome, with totals; the JSON that `clipmill status` promises.

    inputs = kept + rejected + failed + skipped + pending for each stage. `pending` keys wait for
    shards that are not done yet, as far as the previous stage has made them; `lost` counts keys
    without an outcome in shards that are done, which is always an error.
    """
    # User queries can't reach the footers of earlier fingerprints.
    with open_catalog(dataset, allow_external=True) as catalog:
        layout = catalog.layout
        planned = recorded_steps(dataset, layout.record)
        footers = _footers(catalog)
        doubled = _has_doubled_videos(catalog)
        stages = [
            _stage(catalog, label, list(steps), footers, doubled)
            for label, steps in itertools.groupby(planned, key=lambda step: step.stage_label)
        ]
        found = reasons(catalog, skipped=any(stage["skipped"] for stage in stages))
        for stage in stages:
            _add_untouched(found, stage, layout.record)
            stage["not_asked"] = min(_not_asked(found, stage["stage"]), stage["skipped"])
        ingest = _outcome_counts(catalog, [layout.ingest], doubled)
        shards = len(committed_shards(layout.dataset / SOURCES))
        return {
            "dataset": str(dataset),
            "run": _run(layout),
            "moved_at": _moved_at(layout.dataset),
            "ingest": {"inputs": _sum(ingest), **ingest, "shards": shards},
            "lists": [asdict(counts) for counts in kept_counts(layout.dataset)],
            "stages": stages,
            "totals": _totals(catalog, footers),
            "texts": text_counts(catalog),
            **found,
        }


def _add_untouched(found: Reasons, stage: StageStatus, record: RunRecord | None) -> None:
    """Adds the rows of shards that the newest run was not asked for to the reasons."""
    chosen = None if record is None else record.get("choice")
    if chosen is None or not (count := stage["not_asked"]):
        return
    detail = f"{NOT_ASKED}: {chosen['said']}"
    for one in found["skipped"]:
        if (one["stage"], one["detail"]) == (stage["stage"], detail):
            one["count"] += count
            return
    found["skipped"].append({"stage": stage["stage"], "detail": detail, "count": count})


def _not_asked(found: Reasons, stage: str) -> int:
    return sum(
        one["count"]
        for one in found["skipped"]
        if one["stage"] == stage and one["detail"].startswith(NOT_ASKED)
    )


def _run(layout: Layout) -> RunStatus | None:
    record = layout.record
    if record is None:
        return None
    return {
        "run_id": record["run_id"],
        "state": record["state"],
        "started_at": record["started_at"],
        "finished_at": record["finished_at"],
        "engine": record["engine"],
        "recipe_name": record["recipe_name"],
    }


def _moved_at(dataset: Path) -> str | None:
    """When the running command last made progress; null if there is none."""
    moved = last_moved(dataset)
    return (
        None if moved is None else datetime.fromtimestamp(moved, UTC).isoformat(timespec="seconds")
    )


@dataclass(frozen=True)
class _Footers:
    """Sums over the footers of one step's files with one fingerprint."""

    seconds: float
    decoded_frames: int
    unbalanced: int


def _footers(catalog: Catalog) -> dict[StepId, _Footers]:
    """Sums over the shards' footers, by step and fingerprint, including all earlier ones."""
    root = catalog.layout.dataset
    if not any(root.glob("*/*/[0-9]*.parquet")):
        return {}
    pattern = literal(f"{escaped_for_glob(str(root))}/*/*/[0-9]*.parquet")
    rows = catalog.connection.execute(
        f"""
        SELECT m->>'step', m->>'fingerprint', sum((m->>'seconds')::DOUBLE),
            sum((m->>'decoded_frames')::BIGINT)::BIGINT,
            count(*) FILTER ((m->>'inputs')::BIGINT <>
                (m->>'kept')::BIGINT + (m->>'rejected')::BIGINT + (m->>'failed')::BIGINT
                + coalesce((m->>'skipped')::BIGINT, 0))
        FROM (SELECT decode(value)::JSON AS m, split_part(file_name, '/', -3) AS folder
              FROM parquet_kv_metadata({pattern}) WHERE decode(key) = 'clipmill')
        WHERE folder = m->>'step'  -- not the further tables of a step, which it is counted with
        GROUP BY ALL
        """
    ).fetchall()
    return {(step, print_): _Footers(*sums) for step, print_, *sums in rows}


def _totals(catalog: Catalog, footers: dict[StepId, _Footers]) -> Totals:
    # Only the clips, without the captions and scores that the view joins to them.
    makers = [
        table for table in catalog.layout.steps if table.role in ("download_videos", "split_clips")
    ]
    ((clips, hours),) = catalog.connection.execute(
        "SELECT count(*), coalesce(sum(duration_seconds), 0) / 3600 "
        f"FROM ({views.once(views.clip_rows(makers))})"
    ).fetchall()
    published = 0
    if catalog.layout.published is not None:
        ((published,),) = catalog.execute("SELECT count(*) FROM internal.published").fetchall()
    ((videos,),) = catalog.execute("SELECT count(*) FROM videos").fetchall()
    scan = views.primary(catalog.layout.steps, "scan_videos")
    source_frames = 0
    if scan is not None:
        rows = kept(scan, ["video_id", "source_frames"])
        ((source_frames,),) = catalog.connection.execute(
            "SELECT coalesce(sum(frames), 0)::BIGINT FROM (SELECT max(source_frames) AS frames "
            f"FROM ({rows}) GROUP BY video_id)"
        ).fetchall()
    return {
        "videos": videos,
        "clips": clips,
        "published": published,
        "hours": round(hours, 6),
        "source_frames": source_frames,
        "decoded_frames": sum(sums.decoded_frames or 0 for sums in footers.values()),
    }


def _stage(
    catalog: Catalog, label: str, steps: list[Step], footers: dict[StepId, _Footers], doubled: bool
) -> StageStatus:
    by_label = {table.step: table for table in catalog.layout.steps}
    counts = _outcome_counts(catalog, [by_label[step.label] for step in steps], doubled)
    pending, lost, untouched = _missing(catalog, steps, doubled)
    own = [footers[step.id] for step in steps if step.id in footers]
    seconds = round(sum(sums.seconds for sums in own), 3)
    done, total = _shards(catalog.layout, steps[-1])
    finished = _sum(counts)
    return {
        "stage": label,
        "inputs": finished + lost + pending + untouched,
        **counts,
        "skipped": counts["skipped"] + untouched,
        "not_asked": untouched,
        "pending": pending,
        "shards_done": done,
        "shards_total": total,
        "seconds": seconds,
        "rows_per_second": round(finished / seconds, 3) if seconds else None,
        "lost": lost,
        "accounted": lost == 0 and not any(sums.unbalanced for sums in own),
    }


def _outcome_counts(catalog: Catalog, steps: list[StepTable], doubled: bool) -> Outcomes:
    """Distinct keys by outcome; of inner steps, only keys that did not reach the last one.

    `doubled` says that a clip may be in two groups of shards.
    """
    if len(steps) == 1 and steps[0].key == "clip_id" and not doubled:
        # Then keys need not be looked up in the other groups.
        rows = catalog.connection.execute(
            f"SELECT {_RANK} AS rank, count(*) FROM ({outcomes(steps[0])}) GROUP BY rank"
        ).fetchall()
        return _by_outcome(rows)
    parts = []
    for number, step in enumerate(steps):
        inner = number < len(steps) - 1
        condition = "WHERE outcome <> 'kept'" if inner else ""
        parts.append(
            f"SELECT key, {_RANK} AS rank, {number} AS step FROM ({outcomes(step)}) {condition}"
        )
    # The last step that has a key decides; if it is in two shards, the best outcome counts.
    rows = catalog.connection.execute(
        f"SELECT rank, count(*) FROM (SELECT key, min(rank - 10 * step) + 10 * max(step) AS rank "
        f"FROM ({' UNION ALL '.join(parts)}) GROUP BY key) GROUP BY rank"
    ).fetchall()
    return _by_outcome(rows)


def _by_outcome(rows: list[tuple[int, int]]) -> Outcomes:
    found = dict(rows)
    return {
        "kept": found.get(0, 0),
        "rejected": found.get(1, 0),
        "failed": found.get(2, 0),
        "skipped": found.get(3, 0),
    }


def _sum(counts: Outcomes) -> int:
    return counts["kept"] + counts["rejected"] + counts["failed"] + counts["skipped"]


def _missing(catalog: Catalog, steps: list[Step], doubled: bool) -> tuple[int, int, int]:
    """Keys without an outcome: those waiting for a shard, those lost from a done one, and those in
    shards that the newest run was not asked for."""
    pending = lost = untouched = 0
    layout = catalog.layout
    asked = _asked_shards(layout)
    tables = {SOURCES: layout.ingest, **{table.step: table for table in layout.steps}}
    columns = {label: table.schema.names for label, table in tables.items()}
    for planned in steps:
        step, inputs = tables[planned.label], inputs_of(planned, columns)
        if not inputs.of_keys:
            continue
        # The first table determines the keys, whatever columns of it are read.
        base, *others = inputs.of_keys
        before = [tables[label] for label in (base, *others) if label in {base, *inputs.required}]
        of_videos = [tables[label] for label in inputs.of_videos if label in inputs.required]
        # Listed before the rows are read: a shard that is committed in between counts as not done.
        done = set(committed_shards(Path(step.folder))) if step.folder else set()
        if step.key == "clip_id" and not doubled:
            bases = _groups_that_lack_keys(catalog, step, before)
            if not bases:
                continue
            every = [step, *before, *of_videos]
            step, *rest = ShardFiles(every).only(map(shard_name, bases), every)
            before, of_videos = rest[: len(before)], rest[len(before) :]
        video = ["video_id"] if of_videos else []
        keys = [
            f"SELECT {', '.join([quoted(step.key) + ' AS key', *columns])}, _base, _retry FROM "
            f"({kept(table, [table.key, step.key, *columns])})"
            for table, columns in zip(before, [video, *([] for _ in before[1:])], strict=True)
        ]
        joins = "".join(
            f" JOIN ({query}) AS u{n} ON u{n}.key = u0.key AND u{n}._base = u0._base"
            for n, query in enumerate(keys[1:], 1)
        )
        # Two sources may lead to one video, the second of them through a retry.
        joins += "".join(
            f" JOIN (SELECT video_id, _base, min(_retry) AS _retry FROM "
            f"({kept(table, [table.key, 'video_id'])}) GROUP BY ALL) AS u{n} "
            f"ON u{n}.video_id = u0.video_id AND u{n}._base = u0._base"
            for n, table in enumerate(of_videos, len(keys))
        )
        retry = (
            "greatest(" + ", ".join(f"u{n}._retry" for n in range(len(keys) + len(of_videos))) + ")"
        )
        rows = catalog.connection.execute(
            f"""
            SELECT base, retry, count(*) FROM (
                SELECT DISTINCT ON (key) key, base, retry
                FROM (SELECT u0.key AS key, u0._base AS base, {retry} AS retry
                      FROM ({keys[0]}) AS u0{joins})
                ANTI JOIN ({outcomes(step)}) AS own USING (key)
            ) GROUP BY ALL
            """
        ).fetchall()
        for base, retried, count in rows:
            if shard_name(base, retried) in done:
                lost += count
            elif asked is None or shard_name(base) in asked:
                pending += count
            else:
                untouched += count
    return pending, lost, untouched


def _asked_shards(layout: Layout) -> frozenset[str] | None:
    with contextlib.suppress(DamagedFile):  # `verify` reports it
        return asked_shards(layout.dataset, layout.record)
    return None


def _has_doubled_videos(catalog: Catalog) -> bool:
    """Whether two sources led to one video, so that its clips are in two groups of shards."""
    query = views.doubled_groups([views.video_groups(catalog.layout.steps)])
    return catalog.connection.execute(f"SELECT 1 FROM ({query}) LIMIT 1").fetchone() is not None


def _groups_that_lack_keys(catalog: Catalog, step: StepTable, before: list[StepTable]) -> list[int]:
    """The groups of shards in which the step's keys differ from those of one of its inputs.

    Sets are compared by count and two sums over hashes, so most groups need no join of keys.
    """

    def sets(query: str) -> str:
        return (
            "SELECT _base, count(*) AS n, bit_xor(hash(key)) AS x, "
            f"sum(hash(key) & 4294967295) AS s FROM ({query}) GROUP BY _base"
        )

    inputs = [
        sets(f"SELECT {quoted(step.key)} AS key, _base FROM ({kept(table, [table.key, step.key])})")
        for table in before
    ]
    rows = catalog.connection.execute(
        f"WITH own AS ({sets(outcomes(step))}), inputs AS ({' UNION ALL '.join(inputs)}) "
        "SELECT _base FROM inputs EXCEPT SELECT i._base FROM inputs AS i JOIN own "
        "USING (_base, n, x, s) ORDER BY 1"
    ).fetchall()
    return [base for (base,) in rows]


def _shards(layout: Layout, step: Step) -> tuple[int, int]:
    """Shards committed by a stage's last step, and all that will pass through it."""
    done = set(committed_shards(step.folder(layout.dataset)))
    shards = list_shards(layout.dataset, committed_shards(layout.dataset / SOURCES))
    steps = recorded_steps(layout.dataset, layout.record)
    if (asked := _asked_shards(layout)) is not None:
        shards = replace(shards, first=tuple(name for name in shards.first if name in asked))
    return len(done), len(done.union(shards.relevant(steps, step)))
