"""SQL of published clips: the given spans of sources whose videos are not split into clips yet.

They are part of `clips`, with the id that the clip will have, as far as it is known: a video that
only its bytes identify is called `source-<key>` until its file is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import pyarrow as pa

from clipmill.pipeline.catalog import views
from clipmill.pipeline.dataset.published_scores import Published, PublishedScore
from clipmill.pipeline.dataset.run_records import RunRecord, StageRecord
from clipmill.schemas.sql_text import literal, null, quoted
from clipmill.schemas.step_tables import (
    NOT_AMONG_REMOVED,
    Columns,
    StepTable,
    empty,
    kept,
    outcomes,
    scan,
)

_HANDS_ON = "take_given_score"
GIVEN_SCORE = "given_score"
_CUTTING = ("max_clip_seconds", "trim_start_seconds", "trim_end_seconds")
_OF_SOURCES = (
    "source_key",
    "video_id",
    "extractor",
    "platform_id",
    "url",
    "title",
    "language",
    "category",
    "query",
    "caption",
    "captions",
    "spans",
)
_SAFE = "[A-Za-z0-9_-]{1,80}"
# As in stages/media/fetch/extractors.py: then the id also has a part that only the URL names.
_IS_PART = (
    r"'[?&](p|part|img_index|item|files?|filename|path|preview)=|\.[a-z0-9]{2,5}([?#]|$)', 'i'"
)


def _safe_id(sql: str) -> str:
    return (
        f"CASE WHEN regexp_full_match({sql}, '{_SAFE}') AND NOT starts_with({sql}, '-') "
        f"THEN {sql} ELSE 'h' || left(sha256({sql}), 20) END"
    )


def known_video_id() -> str:
    """SQL of the id that the video of a row of `sources` will have, as far as it is known."""
    platform = (
        f"CASE WHEN lower(extractor) = 'youtube' AND regexp_full_match(platform_id, '{_SAFE}') "
        f"THEN 'youtube-' || platform_id ELSE {_safe_id('lower(extractor)')} || '-' || CASE WHEN "
        f"regexp_full_match(platform_id, '{_SAFE}') THEN platform_id "
        "ELSE 'h' || left(sha256(platform_id), 20) END END"
    )
    return (
        f"CASE WHEN video_id IS NOT NULL THEN {_safe_id('video_id')} "
        "WHEN extractor IS NOT NULL AND platform_id IS NOT NULL AND (lower(extractor) = 'youtube' "
        f"OR NOT coalesce(regexp_matches(url, {_IS_PART}), false)) THEN {platform} "
        "ELSE 'source-' || source_key END"
    )


def milliseconds(sql: str) -> str:
    """SQL of a time as clip ids write it."""
    return f"CAST(round_even({sql} * 1000, 0) AS BIGINT)"


def number(extra: str, column: str) -> str:
    """A published number as a double; null if it is none, as in the stage take_given_score."""
    text = f"{extra}[{literal(column)}]"
    value = f"TRY_CAST(replace({text}, '_', ' ') AS DOUBLE)"
    return f"CASE WHEN isfinite({value}) THEN {value} END"


def _scores(scores: Sequence[PublishedScore], extra: str) -> list[str]:
    return [f"{number(extra, score.column)} AS {quoted(score.name)}" for score in scores]


def shown_scores(
    published: Published, record: RunRecord | None, steps: Sequence[StepTable]
) -> tuple[PublishedScore, ...]:
    """The published scores, each under the label of the stage that takes it, if there is one."""
    if not published.spans:
        return ()
    stages = {stage["stage"]: stage for stage in record["stages"]} if record else {}
    taken: dict[str, PublishedScore] = {}
    made = views.clip_columns(steps)
    for name, (table, column) in made.items():
        stage = stages.get(table.stage)
        if stage is not None and stage["name"] == _HANDS_ON and column == table.score:
            settings = stage["settings"]
            taken[settings["column"]] = PublishedScore(
                name, settings["column"], str(settings["scorer"])
            )
    used = {*made, *views.signal_columns(steps), *(name for name, _ in views.VIEWS["clips"])}
    free = [
        score if score.name not in used else replace(score, name=f"published_{score.name}")
        for score in published.scores
        if score.column not in taken
    ]
    return (*taken.values(), *free)


def score_record(score: PublishedScore) -> StageRecord:
    """What a stage that takes this score would be recorded as."""
    return {
        "stage": score.name,
        "name": _HANDS_ON,
        "key": "clip_id",
        "steps": [
            {
                "step": score.name,
                "key": "clip_id",
                "fingerprint": "published",
                "upstream": [],
                "tables": {},
                "schema_columns": [],
            }
        ],
        "score": GIVEN_SCORE,
        "reads": [],
        "settings": {"column": score.column, "scorer": score.scorer},
        "models": {},
        "prompts": {},
    }


def score_table(label: str, ingest: StepTable) -> StepTable:
    """The table that such a stage would have; its rows are those of the sources."""
    return StepTable(
        label,
        label,
        _HANDS_ON,
        "clip_id",
        pa.schema([("clip_id", pa.string()), (GIVEN_SCORE, pa.float64())]),
        ingest.folder,
        score=GIVEN_SCORE,
        is_built_in=True,
    )


def published_rows(ingest: StepTable, scores: Sequence[PublishedScore]) -> str:
    """A row per given span of the kept sources, with `source_key` and `_base`.

    A span without an end has no row: what its clip is called depends on the video's length.
    """
    if not _has_files(ingest):
        return empty(_columns(scores))
    rows = kept(ingest, _OF_SOURCES)
    start, end = "coalesce(s.start_seconds, 0.0)", "s.end_seconds"
    picked = [
        f"video_id || '-' || {milliseconds(start)} || '-' || {milliseconds(end)} AS clip_id",
        "video_id",
        f"{start} AS start_seconds",
        f"{end} AS end_seconds",
        f"{end} - {start} AS duration_seconds",
        "coalesce(s.caption, caption) AS caption_given",
        "CASE WHEN s.caption IS NULL THEN captions ELSE s.captions END AS captions_given",
        "s.extra AS extra",
        *(name for name, _ in views.CLIPS_VIDEO_COLUMNS),
        *_scores(scores, "s.extra"),
        "source_key",
        "_base",
    ]
    identified = ", ".join(name for name in _OF_SOURCES if name not in ("video_id", "spans"))
    return (
        f"SELECT {', '.join(picked)} FROM (SELECT {identified}, {known_video_id()} AS video_id, "
        f"unnest(spans) AS s, _base FROM ({rows}) WHERE len(spans) > 0) "
        "WHERE s.end_seconds IS NOT NULL"
    )


_COLUMNS: Columns = (
    ("clip_id", pa.string()),
    ("video_id", pa.string()),
    ("start_seconds", pa.float64()),
    ("end_seconds", pa.float64()),
    ("duration_seconds", pa.float64()),
    ("caption_given", pa.string()),
    ("captions_given", pa.list_(pa.string())),
    ("extra", pa.map_(pa.string(), pa.string())),
    *views.CLIPS_VIDEO_COLUMNS,
)


def _columns(scores: Sequence[PublishedScore]) -> Columns:
    return (
        *_COLUMNS,
        *((score.name, pa.float64()) for score in scores),
        ("source_key", pa.string()),
        ("_base", pa.int64()),
    )


def no_rows(scores: Sequence[PublishedScore]) -> str:
    return empty((*_columns(scores), ("media", pa.string())))


def waiting_rows(
    ingest: StepTable,
    steps: Sequence[StepTable],
    scores: Sequence[PublishedScore],
    *,
    by_choices: bool = False,
) -> str:
    """The published clips that have no clip of their own yet, with `media`: absent or failed.

    `by_choices` says that a video may be done with only some of its spans, which a run chose.
    """
    rows = published_rows(ingest, scores)
    states = _states(steps)
    if states is None:
        return f"SELECT *, 'absent' AS media FROM ({rows})"
    waits, done_spans = "state IS DISTINCT FROM 'done'", ""
    if by_choices:
        waits = (
            f"({waits} OR NOT coalesce(list_contains(spans_done, "
            "{'first': p.start_seconds, 'last': p.end_seconds}), true))"
        )
        done_spans = (
            f" LEFT JOIN ({_spans_done(steps)}) AS asked "
            "ON asked.source_key = p.source_key AND asked._base = p._base"
        )
    return (
        "SELECT p.*, if(state IS DISTINCT FROM 'failed', 'absent', 'failed') AS media "
        f"FROM ({rows}) AS p LEFT JOIN ({states}) AS states "
        f"ON states.key = p.source_key AND states.base = p._base{done_spans} WHERE {waits}"
    )


def _spans_done(steps: Sequence[StepTable]) -> str:
    """`source_key, _base, spans_done`: the given spans with which each video was downloaded."""
    download = views.primary(steps, "download_videos")
    assert download is not None  # otherwise no state is known
    first = "coalesce(s.start_seconds, 0.0)"
    return (
        "SELECT source_key, _base, list_transform(spans, "
        f"lambda s: {{'first': {first}, 'last': s.end_seconds}}) AS spans_done "
        f"FROM ({kept(download, ['source_key', 'spans'])})"
    )


def _states(steps: Sequence[StepTable]) -> str | None:
    """`key, base, state` of the sources that a run has come to the end of: done, or failed.

    A source whose video another source has brought is done too.
    """
    download = views.primary(steps, "download_videos")
    if download is None or not _has_files(download):
        return None
    parts = [
        f"SELECT key, _base AS base, 'failed' AS state FROM ({outcomes(download)}) "
        "WHERE outcome IN ('failed', 'rejected')",
        f"SELECT source_key, _base, 'done' FROM ({scan(download, ['source_key', 'rejection'])}) "
        "WHERE rejection.rule = 'download_videos.duplicate'",
    ]
    videos = kept(download, ["source_key", "video_id"])
    for name in ("scan_videos", "split_clips"):
        step = views.primary(steps, name)
        if step is None or not _has_files(step):
            continue
        wanted = (
            "('failed', 'rejected', 'kept')"
            if name == "split_clips"
            else ("('failed', 'rejected')")
        )
        parts.append(
            "SELECT d.source_key, d._base, if(o.outcome = 'kept', 'done', 'failed') "
            f"FROM ({videos}) AS d JOIN ({outcomes(step)}) AS o ON o.key = d.video_id "
            f"AND o._base = d._base WHERE o.outcome IN {wanted}"
        )
    # In the order of names, done comes first.
    return f"SELECT key, base, min(state) AS state FROM ({' UNION ALL '.join(parts)}) GROUP BY ALL"


def _has_files(step: StepTable) -> bool:
    return step.folder is not None and (step.shards is None or bool(step.shards))


def tables_of_published(ingest: StepTable, steps: Sequence[StepTable]) -> list[StepTable]:
    """The tables that `waiting_rows` reads."""
    found = (
        views.primary(steps, name) for name in ("download_videos", "scan_videos", "split_clips")
    )
    return [ingest, *(step for step in found if step is not None)]


def stored_published(files: str, without: Sequence[int], *, hide_removed: bool) -> str:
    """Rows of `waiting_rows` that are stored in a list of files, without some base shards."""
    conditions = []
    if without:
        conditions.append(f"_base NOT IN ({', '.join(map(str, without))})")
    if hide_removed:
        conditions.append(f"video_id {NOT_AMONG_REMOVED}")
        conditions.append("source_key NOT IN (SELECT source_key FROM internal.removed_sources)")
    condition = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT * FROM read_parquet([{files}], hive_partitioning=false){condition}"


def own_scores(
    scores: Sequence[PublishedScore],
    steps: Sequence[StepTable],
    settings: Mapping[str, object] | None,
) -> list[str]:
    """The published scores of own clips that no stage has taken, from their `extra`.

    A score belongs to the whole span that it came with: where the run cuts spans, there is none.
    """
    made = views.clip_columns(steps)
    free = [score for score in scores if score.name not in made]
    if settings is None or any(settings.get(name) for name in _CUTTING):
        return [f"{null(pa.float64())} AS {quoted(score.name)}" for score in free]
    return _scores(free, "extra")


def all_clips(own: str, waiting: str | None, scores: Sequence[str], names: Sequence[str]) -> str:
    """`clips`: own clips and those that are only published, in the given order of columns."""
    more = "".join(f", {score}" for score in scores)
    # `media` comes first, which takes little to read: a count of a union reads its first column.
    rows = f"SELECT 'present' AS media, *{more} FROM ({own})"
    if waiting is not None:
        rows += f" UNION ALL BY NAME SELECT * EXCLUDE (source_key, _base) FROM ({waiting})"
    return f"SELECT {', '.join(map(quoted, names))} FROM ({rows})"


def clip_names(steps: Sequence[StepTable], scores: Sequence[PublishedScore]) -> list[str]:
    """The columns of `clips` in order."""
    made = views.clip_columns(steps)
    promised = [name for name, _ in views.CLIPS_VIEW]
    further = [name for name in made if name not in promised]
    further += [score.name for score in scores if score.name not in made]
    about = [name for name, _ in (*views.CLIPS_VIDEO_COLUMNS, *views.CLIPS_SPLIT_COLUMNS)]
    found = [*views.signal_columns(steps), *views.language_columns(steps)]
    return [*promised, *further, *about, *found, "media"]


KNOWN_VIDEOS_SQL = (
    "SELECT * FROM videos UNION ALL BY NAME SELECT DISTINCT ON (p.video_id) p.video_id, s.url, "
    "s.extractor, s.platform_id AS source_id, s.title, s.language, s.category, s.query "
    "FROM (SELECT DISTINCT video_id, source_key FROM internal.published) AS p "
    "JOIN sources AS s USING (source_key) "
    "WHERE s.rejection IS NULL AND s.error IS NULL "
    "AND p.video_id NOT IN (SELECT video_id FROM videos)"
)
"""`videos`, and those of which only published clips are there."""
