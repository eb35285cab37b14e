"""SQL of the catalog's views, generated from a dataset's tables on disk.

A view names its columns here once: their types give typed nulls if a recipe has no such stage, and
the reference page. `pipeline/catalog/catalog.py` finds the files and runs the SQL.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import pyarrow as pa

from clipmill.pipeline.catalog import languages
from clipmill.pipeline.catalog.audit_views import AUDIT_LABELS_VIEW, AUDITS_VIEW
from clipmill.schemas import tables
from clipmill.schemas.folders import SUBSET_CLIPS
from clipmill.schemas.sql_text import escaped_for_glob, literal, null, quoted
from clipmill.schemas.step_tables import NOT_AMONG_REMOVED, Columns, StepTable, empty, kept, newest
from clipmill.stages.built_in import built_in_stage
from clipmill.stages.clip_signals import CLIP_SIGNALS
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.scan_videos import FRAMES
from clipmill.stages.split_clips import CLIPS, SHOTS

TIME = pa.timestamp("us", tz="UTC")

CLIPS_VIEW: Columns = (
    ("clip_id", pa.string()),
    ("video_id", pa.string()),
    ("start_seconds", pa.float64()),
    ("end_seconds", pa.float64()),
    ("duration_seconds", pa.float64()),
    ("start_frame", pa.int64()),
    ("end_frame", pa.int64()),
    ("fps", pa.float64()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("caption", pa.string()),
    ("caption_coarse", pa.string()),
    ("captions_fine", pa.list_(tables.TEXT_AT)),
    ("tags", pa.list_(tables.TAG)),
    ("similarity", pa.float32()),
    ("aesthetic", pa.float32()),
    ("motion", pa.float32()),
    ("sharpness", pa.float32()),
    ("brightness", pa.float32()),
)
"""The first columns of every dataset's `clips`; those of scorers and custom stages follow, then
these:"""
CLIPS_VIDEO_COLUMNS: Columns = tuple(
    (name, pa.string()) for name in ("url", "title", "language", "category", "query")
)
# The last columns: the rest of what split_clips says about a clip. With `signals`, those follow.
CLIPS_SPLIT_COLUMNS: Columns = tuple(
    (name, CLIPS.field(name).type)
    for name in (
        "motion_max",
        "shot",
        "caption_given",
        "extra",
        "tone_mapped",
        "captions_given",
        "corrupt_frames",
    )
)
CLIPS_MEDIA = ("media", pa.string())
"""`present`; of a clip that is only published, `absent`, or `failed` if its video can't be had."""
VIDEOS_VIEW: Columns = tuple(
    (name, VIDEOS.field(name).type)
    for name in (
        "video_id",
        "url",
        "extractor",
        "source_id",
        "title",
        "description",
        "uploader",
        "license",
        "language",
        "category",
        "query",
        "duration_seconds",
        "width",
        "height",
        "fps",
        "codec",
        "has_audio",
        "size_bytes",
        "sha256",
        "path",
        "downloaded_at",
        "subtitles",
        "tags",
        "caption_given",
        "spans",
        "extra",
        "starts_at_seconds",
        "subtitle_words",
        "clock_starts_at_seconds",
        "pixel_format",
        "color_transfer",
        "color_primaries",
        "captions_given",
    )
)
# What the decode pass says about a video in `videos`.
_CORRUPT = "corrupt_frames"
_PLACE: Columns = (("url", pa.string()), ("video_id", pa.string()), ("shard", pa.string()))
REJECTIONS_VIEW: Columns = (
    ("stage", pa.string()),
    ("key", pa.string()),
    ("rule", pa.string()),
    ("detail", pa.string()),
    *_PLACE,
)
SKIPPED_VIEW: Columns = REJECTIONS_VIEW
_FAILURE: Columns = (
    ("stage", pa.string()),
    ("key", pa.string()),
    ("kind", pa.string()),
    ("message", pa.string()),
    ("attempts", pa.int32()),
    ("at", TIME),
    *_PLACE,
)
FAILURES_VIEW: Columns = (*_FAILURE, ("first_message", pa.string()), ("first_at", TIME))
FAILURES_ALL_VIEW: Columns = (*_FAILURE, ("resolved", pa.bool_()))
SHOTS_VIEW: Columns = tuple((field.name, field.type) for field in SHOTS)
FRAMES_INDEX_VIEW: Columns = tuple(
    (field.name, field.type) for field in FRAMES if field.name != "jpeg"
)
SOURCES_VIEW: Columns = tuple((field.name, field.type) for field in tables.SOURCES)
EMBEDDINGS_VIEW: Columns = (
    ("clip_id", pa.string()),
    ("stage", pa.string()),
    ("embeddings", pa.list_(pa.list_(pa.float32()))),
    ("embedding_seconds", pa.list_(pa.float64())),
)
_RUN_STEP = pa.struct([("step", pa.string()), ("fingerprint", pa.string())])
_RUN_PLACE = pa.struct([("device", pa.string()), ("dtype", pa.string())])
_RUN_SERVED = pa.struct([("address", pa.string()), ("said", pa.string())])
_RUN_MODEL = pa.struct(
    [
        *((name, pa.string()) for name in ("setting", "reference", "revision", "identity")),
        # Where the run's workers loaded it; null if they didn't need to, or it is a server.
        ("places", pa.list_(_RUN_PLACE)),
        # What each of its servers says about it, as JSON text; null if it is none of a server.
        ("served", pa.list_(_RUN_SERVED)),
    ]
)
RUN_STAGE = pa.struct(
    [
        ("stage", pa.string()),
        ("name", pa.string()),
        ("fingerprint", pa.string()),
        ("steps", pa.list_(_RUN_STEP)),
        ("score", pa.string()),
        ("models", pa.list_(_RUN_MODEL)),
        ("prompts", pa.map_(pa.string(), pa.string())),
        ("settings", pa.string()),
        ("gate", pa.string()),
    ]
)
RUNS_VIEW: Columns = (
    ("run_id", pa.string()),
    ("started_at", TIME),
    ("finished_at", TIME),
    ("recipe", pa.string()),
    ("code_version", pa.string()),
    ("engine", pa.string()),
    ("stages", pa.list_(RUN_STAGE)),
    ("state", pa.string()),
    ("recipe_resolved", pa.string()),
    ("versions", pa.map_(pa.string(), pa.string())),
)
SUBSETS_VIEW: Columns = (
    ("name", pa.string()),
    ("recipe", pa.string()),
    ("created_at", TIME),
    ("n_clips", pa.int64()),
    ("n_videos", pa.int64()),
    ("hours", pa.float64()),
    ("snapshot", pa.string()),
)
SUBSET_CLIPS_VIEW: Columns = (
    ("name", pa.string()),
    ("clip_id", pa.string()),
    ("video_id", pa.string()),
)
REMOVED_VIEW: Columns = (("video_id", pa.string()), ("reason", pa.string()), ("at", TIME))
VIEWS: dict[str, Columns] = {
    "clips": (*CLIPS_VIEW, *CLIPS_VIDEO_COLUMNS, *CLIPS_SPLIT_COLUMNS, CLIPS_MEDIA),
    "videos": VIDEOS_VIEW,
    "rejections": REJECTIONS_VIEW,
    "skipped": SKIPPED_VIEW,
    "failures": FAILURES_VIEW,
    "failures_all": FAILURES_ALL_VIEW,
    "runs": RUNS_VIEW,
    "subsets": SUBSETS_VIEW,
    "subset_clips": SUBSET_CLIPS_VIEW,
    "audits": AUDITS_VIEW,
    "audit_labels": AUDIT_LABELS_VIEW,
    "shots": SHOTS_VIEW,
    "frames_index": FRAMES_INDEX_VIEW,
    "sources": SOURCES_VIEW,
    "embeddings": EMBEDDINGS_VIEW,
    "removed": REMOVED_VIEW,
}
# The built-in step that provides each column of the clips view.
_CLIP_SOURCES = {
    "summarize_captions": (
        "caption",
        "caption_finish_reason",
        "caption_prompt_tokens",
        "caption_new_tokens",
        "caption_cleaned_by",
    ),
    "caption_frames": (
        "caption_coarse",
        "captions_fine",
        "coarse_finish_reason",
        "coarse_new_tokens",
        "coarse_cleaned_by",
        "fine_finish_reasons",
        "fine_new_tokens",
        "fine_cleaned_by",
    ),
    "tag_clips": ("tags",),
    "score_similarity": ("similarity", "similarity_coarse", "similarity_fine"),
    "score_aesthetic": ("aesthetic",),
}


@dataclass(frozen=True)
class _ViewColumn:
    """One column of a wide view: its name there, and where it comes from."""

    name: str
    table: StepTable
    column: str


def primary(steps: Iterable[StepTable], name: str) -> StepTable | None:
    """The step that represents a built-in stage in the views.

    This is the one whose label is the stage's name; a stage that is not a scorer may have any
    label if it is the only one of its kind.
    """
    found = [step for step in steps if step.role == name]
    named = [step for step in found if step.is_primary]
    if named:
        return named[0]
    return found[0] if len(found) == 1 and found[0].score is None else None


def _is_shown(step: StepTable, column: str) -> bool:
    """Whether `clips` shows a built-in stage's column: as of the promised scorers, only scores."""
    return step.score in (None, column) or column in built_in_stage(step.name).more_scores


def _provided(steps: Sequence[StepTable], level: str, promised: Columns) -> list[_ViewColumn]:
    """The step that provides each column of a view: promised columns first, then the others."""
    names = {name for name, _ in promised}
    found: dict[str, _ViewColumn] = {}
    further: list[_ViewColumn] = []
    taken: set[str] = set()
    roles = {name: primary(steps, name) for name in _CLIP_SOURCES} if level == "clip_id" else {}
    for name, step in roles.items():
        if step is not None:
            if step.is_built_in:
                taken.add(step.step)
            found.update(
                (column, _ViewColumn(column, step, column))
                for column in _CLIP_SOURCES[name]
                if column in step.schema.names
            )
    base = {"download_videos", "scan_videos", "split_clips"}
    used = names | {name for name, _ in (*CLIPS_VIDEO_COLUMNS, *CLIPS_SPLIT_COLUMNS)}
    # A label of one's own wins over the column of another stage.
    used |= {step.stage for step in steps if step.score is not None and step.stage != step.name}
    for step in steps:
        if step.key != level or step.step in taken or step.role in base:
            continue
        renamed = not step.is_primary
        for field in step.own_columns:
            column = field.name
            if column in found and found[column].table == step:
                continue
            if step.role in tables.EMBEDDERS and column in ("embeddings", "embedding_seconds"):
                continue  # the view `embeddings` has them
            if step.is_built_in and not _is_shown(step, column):
                continue
            if renamed and column == step.score:
                shown = step.stage
            elif not renamed and column in names and column not in found and not step.is_built_in:
                # A custom stage that replaces a built-in one that the recipe lacks.
                if column in {c for cs in _CLIP_SOURCES.values() for c in cs}:
                    found[column] = _ViewColumn(column, step, column)
                    continue
                shown = f"{step.stage}_{column}"
            else:
                shown = f"{step.stage}_{column}" if renamed or column in used else column
            used.add(shown)
            further.append(_ViewColumn(shown, step, column))
    return [*found.values(), *further]


def clip_columns(steps: Sequence[StepTable]) -> dict[str, tuple[StepTable, str]]:
    """The columns of `clips` that stages over clips made, by name: their table, and their name
    there.

    Columns from split_clips and those about the clip's video are not included.
    """
    return {
        column.name: (column.table, column.column)
        for column in _provided(steps, "clip_id", CLIPS_VIEW)
    }


def signal_columns(steps: Sequence[StepTable]) -> dict[str, tuple[StepTable, str]]:
    """The columns of `clips` that are signals: their table, and their name there.

    One whose name another stage's column has comes with the label before it.
    """
    split = primary(steps, "split_clips")
    if split is None:
        return {}
    taken = clip_columns(steps)
    return {
        f"{split.stage}_{name}" if name in taken else name: (split, name)
        for name in CLIP_SIGNALS.names
        if name in split.schema.names
    }


def video_columns(steps: Sequence[StepTable]) -> dict[str, str]:
    """The columns of `video_rows`, by name: the stage that made each; `steps` has a download."""
    download = primary(steps, "download_videos")
    scanned = primary(steps, "scan_videos")
    found = {} if download is None else {name: download.stage for name, _ in VIDEOS_VIEW}
    found.update((c.name, c.table.stage) for c in _provided(steps, "video_id", VIDEOS_VIEW))
    if scanned is not None and _CORRUPT in scanned.schema.names:
        found.setdefault(_CORRUPT, scanned.stage)
    if (detected := primary(steps, "detect_language")) is not None:
        found["language"] = detected.stage  # it reads what the source says, too
    return found


def language_columns(steps: Sequence[StepTable]) -> dict[str, StepTable]:
    """The columns of `clips` about its video's detected language, with the step that found it."""
    found = primary(steps, "detect_language")
    if found is None or primary(steps, "download_videos") is None:
        return {}
    taken = clip_columns(steps).keys() | signal_columns(steps).keys()
    names = (name for name, _ in languages.DETECTED_COLUMNS)
    return {name: found for name in names if name not in taken}


def usual_caption(steps: Sequence[StepTable]) -> str:
    """SQL of a clip's caption: `caption`, or what came with it if no stage makes captions."""
    made = any(column.name == "caption" for column in _provided(steps, "clip_id", CLIPS_VIEW))
    return "caption" if made else "coalesce(caption, caption_given)"


def tables_of_wide_views(steps: Sequence[StepTable]) -> set[str]:
    """The steps whose tables make up `clips` and `videos`."""
    makers = [primary(steps, name) for name in ("download_videos", "split_clips")]
    joined = [*_provided(steps, "clip_id", CLIPS_VIEW), *_provided(steps, "video_id", VIDEOS_VIEW)]
    return {
        table.step for table in (*makers, *(column.table for column in joined)) if table is not None
    }


def _beside(table: StepTable, key: str, names: Iterable[str], alias: str) -> str:
    """A join that adds a table's columns to `base`: by key, within one group of shards."""
    # `base` has no removed videos, so the joined rows need no check for them.
    rows = kept(replace(table, removed=False), dict.fromkeys([key, *names]))
    return (
        f" LEFT JOIN ({rows}) AS {alias} ON {alias}.{key} = base.{key} "
        f"AND {alias}._base = base._base"
    )


def _wide(base: str, key: str, columns: list[tuple[str, str]], joined: list[_ViewColumn]) -> str:
    """`base` joined with the tables that `joined` names, by `key`."""
    steps = list({column.table.step: column.table for column in joined}.values())
    parts = []
    for number, step in enumerate(steps):
        names = [column.column for column in joined if column.table.step == step.step]
        parts.append(_beside(step, key, names, f"t{number}"))
    picked = ", ".join(f"{expression} AS {quoted(name)}" for name, expression in columns)
    return f"SELECT {picked} FROM ({base}) AS base" + "".join(parts)


def video_rows(steps: Sequence[StepTable]) -> str:
    """The rows of `videos` with `_base` and `_first`, the first group of shards with the video.

    Two sources may have led to the same video; within a group the first of them counts.
    """
    download = primary(steps, "download_videos")
    further = _provided(steps, "video_id", VIDEOS_VIEW)
    scanned = primary(steps, "scan_videos")
    if (
        scanned is not None
        and _CORRUPT in scanned.schema.names
        and all(column.name != _CORRUPT for column in further)
    ):
        further.append(_ViewColumn(_CORRUPT, scanned, _CORRUPT))
    if download is None:
        return empty(
            (
                *VIDEOS_VIEW,
                *((c.name, c.table.schema.field(c.column).type) for c in further),
                *_GROUPS,
            )
        )
    names = [name for name, _ in VIDEOS_VIEW]
    rows = (
        f"SELECT *, min(_base) OVER (PARTITION BY video_id) AS _first FROM "
        f"({kept(download, ['source_key', *names])}) QUALIFY row_number() OVER "
        "(PARTITION BY video_id, _base ORDER BY _retry, source_key) = 1"
    )
    columns = {name: f"base.{quoted(name)}" for name in names}
    found = primary(steps, "detect_language")
    for column, (_, expression) in zip(further, _expressions(further), strict=True):
        if column.table == found and column.column == languages.DETECTED:
            columns["language"] = languages.filled(columns["language"], expression)
    groups = [(name, f"base.{name}") for name, _ in _GROUPS]
    picked = [*columns.items(), *_expressions(further), *groups]
    return _wide(rows, "video_id", picked, further)


_GROUPS: Columns = (("_base", pa.int64()), ("_first", pa.int64()))


def once(rows: str, *, keep_groups: bool = False) -> str:
    """The rows of `video_rows` or `clip_rows` with each video, and its clips, only once.

    With `keep_groups`, `_base` is kept.
    """
    hidden = "_first" if keep_groups else "_base, _first"
    return f"SELECT * EXCLUDE ({hidden}) FROM ({rows}) WHERE _first IS NULL OR _first = _base"


def video_groups(steps: Sequence[StepTable]) -> str:
    """`video_id` and `_base` of the kept videos."""
    download = primary(steps, "download_videos")
    if download is None:
        return empty((("video_id", pa.string()), _GROUPS[0]))
    return f"SELECT video_id, _base FROM ({kept(download, ['source_key', 'video_id'])})"


def doubled_groups(parts: Sequence[str]) -> str:
    """Of these pairs, those whose video is also in an earlier group."""
    pairs = " UNION ALL ".join(parts)
    firsts = "SELECT video_id, min(_base) AS _first FROM pairs GROUP BY video_id"
    return (
        f"WITH pairs AS MATERIALIZED ({pairs}) SELECT DISTINCT video_id, _base FROM pairs "
        f"JOIN ({firsts}) USING (video_id) WHERE _base > _first"
    )


def _expressions(joined: list[_ViewColumn]) -> list[tuple[str, str]]:
    numbers = {step: n for n, step in enumerate(dict.fromkeys(c.table.step for c in joined))}
    return [(c.name, f"t{numbers[c.table.step]}.{quoted(c.column)}") for c in joined]


def clip_rows(steps: Sequence[StepTable]) -> str:
    """The rows of `clips`: a clip's span, the stages' results, its video's name and location.

    With `_base` and `_first`, as in `video_rows`.
    """
    split = primary(steps, "split_clips")
    joined = _provided(steps, "clip_id", CLIPS_VIEW)
    given = dict(_expressions(joined))
    promised = [name for name, _ in CLIPS_VIEW]
    further = [column.name for column in joined if column.name not in promised]
    if split is None:
        fields = [
            (c.name, c.table.schema.field(c.column).type) for c in joined if c.name in further
        ]
        return empty((*CLIPS_VIEW, *fields, *CLIPS_VIDEO_COLUMNS, *CLIPS_SPLIT_COLUMNS, *_GROUPS))
    columns = []
    last = [
        (name, f"base.{quoted(name)}" if name in split.schema.names else null(kind))
        for name, kind in CLIPS_SPLIT_COLUMNS
    ]
    own = [name for name in [*promised, *(name for name, _ in last)] if name in split.schema.names]
    signals = signal_columns(steps)
    last += [(name, f"base.{quoted(column)}") for name, (_, column) in signals.items()]
    own += [column for _, column in signals.values()]
    for name, kind in CLIPS_VIEW:
        if name in own:
            columns.append((name, f"base.{quoted(name)}"))
        else:
            columns.append((name, given.get(name, null(kind))))
    columns += [(name, given[name]) for name in further]
    download = primary(steps, "download_videos")
    if download is None:
        columns += [(name, null(kind)) for name, kind in CLIPS_VIDEO_COLUMNS] + last
        columns += [("_base", "base._base"), ("_first", null(pa.int64()))]
        return _wide(kept(split, own), "clip_id", columns, joined)
    names = [name for name, _ in CLIPS_VIDEO_COLUMNS]
    of_video = {name: f"v.{quoted(name)}" for name in names}
    detected = primary(steps, "detect_language")
    if detected is not None:
        place = f"d.{quoted(languages.DETECTED)}"
        of_video["language"] = languages.filled(of_video["language"], place)
        last += [(name, f"d.{quoted(name)}") for name in language_columns(steps)]
    columns += [*of_video.items(), *last]
    columns += [("_base", "base._base"), ("_first", "v._first")]
    query = _wide(kept(split, own), "clip_id", columns, joined)
    picked = ", ".join(
        f"arg_min_null({quoted(name)}, (_base, _retry, source_key)) AS {quoted(name)}"
        for name in names
    )
    rows = kept(download, ["source_key", "video_id", *names])
    videos = f"SELECT video_id, min(_base) AS _first, {picked} FROM ({rows}) GROUP BY video_id"
    query += f" LEFT JOIN ({videos}) AS v ON v.video_id = base.video_id"
    if detected is None:
        return query
    found = languages.of_videos(detected)
    return f"{query} LEFT JOIN ({found}) AS d ON d.video_id = base.video_id"


def stored_rows(columns: Sequence[str], files: Sequence[str], *, hide_removed: bool) -> str:
    """Rows of a view that are stored in files, with their `_base`."""
    picked = ", ".join(map(quoted, columns))
    listed = ", ".join(literal(escaped_for_glob(file)) for file in files)
    condition = f" WHERE coalesce(video_id {NOT_AMONG_REMOVED}, true)" if hide_removed else ""
    return (
        f"SELECT {picked}, _base FROM read_parquet([{listed}], hive_partitioning=false){condition}"
    )


def put_together(columns: Sequence[str], parts: Sequence[str], doubled: str | None) -> str:
    """A view of rows from several places; `doubled` names a table of groups to leave out."""
    picked = ", ".join(map(quoted, columns))
    rows = " UNION ALL ".join(f"SELECT {picked}, _base FROM ({part})" for part in parts)
    without = f" ANTI JOIN {doubled} USING (video_id, _base)" if doubled else ""
    return f"SELECT {picked} FROM ({rows}){without}"


def _union(parts: list[str], columns: Columns) -> str:
    names = ", ".join(quoted(name) for name, _ in columns)
    if not parts:
        return empty(columns)
    return f"SELECT {names} FROM (" + " UNION ALL ".join(parts) + ")"


def embeddings_view(steps: Sequence[StepTable]) -> str:
    parts = [
        f"SELECT clip_id, {literal(step.stage)} AS stage, embeddings, embedding_seconds "
        f"FROM ({kept(step, ['clip_id', 'embeddings', 'embedding_seconds'])})"
        for step in steps
        if step.role in tables.EMBEDDERS
    ]
    return _union(parts, EMBEDDINGS_VIEW)


def plain_view(table: StepTable | None, columns: Columns) -> str:
    """Columns of a stored table; for a key in several shards, only the newest rows."""
    if table is None:
        return empty(columns)
    names = [name for name, _ in columns]
    picked = ", ".join(map(quoted, names))
    return f"SELECT {picked} FROM ({newest(table, names, kept_only=False)})"


def subset_clips_view(folders: Iterable[tuple[str, str]]) -> str:
    """The clips of the frozen subsets, given as (name, folder)."""
    columns = ", ".join(f"{quoted(name)}" for name, _ in SUBSET_CLIPS_VIEW[1:])
    parts = [
        f"SELECT {literal(name)} AS name, {columns} FROM "
        f"read_parquet({literal(f'{escaped_for_glob(folder)}/{SUBSET_CLIPS}')}, "
        "hive_partitioning=false)"
        for name, folder in folders
    ]
    return _union(parts, SUBSET_CLIPS_VIEW)
