"""Counts what the models' texts are like: cut off, cleaned, or the same for many videos."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypedDict

import pyarrow as pa

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.schemas.sql_text import literal, quoted
from clipmill.schemas.step_tables import CLIP_ID_PATTERN, StepTable, kept

MANY_VIDEOS = 10
"""A text that stands at clips of as many videos describes none of them."""
SHOWN_TEXTS = 5


class RepeatedText(TypedDict):
    """A text that clips of many videos share."""

    text: str
    clips: int
    videos: int


class TextCounts(TypedDict):
    """The texts of one column; of those `told`, it is known how they ended.

    Of fine captions, which are many, the others are not counted at all.
    `cleaned` counts texts by the rule that changed them. `repeated_clips` have a text that is also
    that of clips of at least ten videos, apart from case and full stops; `repeated`
    lists the most common of these texts.
    """

    stage: str
    column: str
    texts: int
    told: int
    cut_off: int
    cleaned: dict[str, int]
    repeated_texts: int
    repeated_clips: int
    repeated: list[RepeatedText]


@dataclass(frozen=True)
class _TextColumn:
    table: StepTable
    name: str
    reason: str
    rules: str
    is_list: bool


def text_counts(catalog: Catalog) -> list[TextCounts]:
    """Counts for each column of captions, in the order of the recipe."""
    return [_counts(catalog, column) for column in _text_columns(catalog.layout.steps)]


def _text_columns(steps: tuple[StepTable, ...]) -> Iterator[_TextColumn]:
    """Columns of captions beside which a stage says how each text ended."""
    for table in steps:
        if table.folder is None or table.key != "clip_id":
            continue
        names = set(table.schema.names)
        for field in table.schema:
            is_list = pa.types.is_list(field.type)
            if not (field.name.startswith("caption") and (is_list or field.type == pa.string())):
                continue
            for short in (field.name, field.name.partition("_")[2]):
                reason = f"{short}_finish_reason{'s' if is_list else ''}"
                rules = f"{short}_cleaned_by"
                if {reason, rules} <= names:
                    yield _TextColumn(table, field.name, reason, rules, is_list)
                    break


def _counts(catalog: Catalog, column: _TextColumn) -> TextCounts:
    beside = [column.reason, column.rules]
    rows = kept(column.table, ["clip_id", *([] if column.is_list else [column.name]), *beside])
    text, reason, rules = map(quoted, (column.name, column.reason, column.rules))
    if column.is_list:
        said = told = f"sum(len({reason}))"
        cut = f"sum(len(list_filter({reason}, lambda x: x = 'length')))"
    else:
        said = f"count({text})"
        told, cut = f"count({reason})", f"count(*) FILTER ({reason} = 'length')"
    ((texts, with_reason, cut_off),) = catalog.execute(
        f"SELECT {', '.join(f'coalesce({one}, 0)::BIGINT' for one in (said, told, cut))} "
        f"FROM ({rows})"
    ).fetchall()
    cleaned = catalog.execute(
        f"SELECT rule, count(*) AS n FROM (SELECT unnest({rules}) AS rule FROM ({rows})) "
        "GROUP BY rule ORDER BY n DESC, rule"
    ).fetchall()
    found = [] if column.is_list else catalog.execute(_repeated(column)).fetchall()
    return {
        "stage": column.table.stage,
        "column": column.name,
        "texts": texts,
        "told": with_reason,
        "cut_off": cut_off,
        "cleaned": dict(cleaned),
        "repeated_texts": found[0][3] if found else 0,
        "repeated_clips": found[0][4] if found else 0,
        "repeated": [
            {"text": said, "clips": clips, "videos": videos} for said, clips, videos, *_ in found
        ],
    }


def _repeated(column: _TextColumn) -> str:
    """SQL of the texts that clips of many videos share, the most common first.

    Only clips with a common text are looked at closely, so that a million different texts cost two
    passes over their hashes.
    """
    text = quoted(column.name)
    rows = kept(column.table, ["clip_id", column.name])
    said = (
        f"SELECT clip_id, {text} AS text, hash(replace(lower({text}), '.', '')) AS number "
        f"FROM ({rows}) WHERE {text} IS NOT NULL"
    )
    video = f"hash(regexp_extract(clip_id, {literal(CLIP_ID_PATTERN)}, 1))"
    return (
        f"WITH common AS (SELECT number FROM ({said}) GROUP BY number "
        f"HAVING count(*) >= {MANY_VIDEOS}), "
        f"pairs AS (SELECT number, {video} AS video, count(*) AS clips FROM ({said}) "
        "SEMI JOIN common USING (number) GROUP BY ALL), "
        "found AS (SELECT number, sum(clips)::BIGINT AS clips, count(*) AS videos FROM pairs "
        f"GROUP BY number HAVING count(*) >= {MANY_VIDEOS}), "
        "most AS (SELECT *, count(*) OVER () AS texts, sum(clips) OVER ()::BIGINT AS all_clips "
        f"FROM found ORDER BY videos DESC, clips DESC, number LIMIT {SHOWN_TEXTS}), "
        f"named AS (SELECT number, min(text) AS text FROM ({said}) SEMI JOIN most USING (number) "
        "GROUP BY number) "
        "SELECT text, clips, videos, texts, all_clips FROM most JOIN named USING (number) "
        "ORDER BY videos DESC, clips DESC, text"
    )
