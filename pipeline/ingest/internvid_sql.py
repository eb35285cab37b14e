"""SQL that reads any of InternVid's published rows, however it is written.

It reads Parquet files, and those lines of JSON that are not written like the others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import duckdb

from clipmill.schemas.sql_text import literal, quoted

YOUTUBE_ID, START, END, CAPTION = NEEDED = (
    "YoutubeID",
    "Start_timestamp",
    "End_timestamp",
    "Caption",
)
SCORE = "UMT_Score"

# Quotes a number that is the value of a key, so that its digits stay as published. A quote inside
# a string follows a backslash, so no caption can match.
_NUMBER = r"""'([^\\]":\s*)(-?[0-9][0-9.eE+-]*)(\s*[,}])', '\1"\2"\3', 'g'"""
_TIME = (
    r"""'^(?:(\d+):)?(\d{1,2}):(\d{1,2})(?:[.,](\d{1,9}))?$'"""
    ", ['hours', 'minutes', 'seconds', 'fraction']"
)
# The same times as from `seconds_of`: whole seconds and the fraction are added as doubles.
_MACROS = (
    # Most texts have no space at an end, and `trim` is slow.
    r"CREATE TEMP MACRO stripped(t) AS CASE WHEN regexp_matches(t, '^[ \t\r\n]|[ \t\r\n]\z|^\z') "
    r"THEN nullif(trim(t, E' \t\r\n'), '') ELSE t END",
    # TRY_CAST even for matched parts: DuckDB may cast values that CASE does not select.
    "CREATE TEMP MACRO clock_seconds(r, t) AS CASE WHEN r.seconds <> '' THEN "
    "coalesce(TRY_CAST(r.hours AS DOUBLE), 0) * 3600 + TRY_CAST(r.minutes AS DOUBLE) * 60 "
    "+ TRY_CAST(r.seconds AS DOUBLE) + concat('0.', r.fraction, '0')::DOUBLE "
    "ELSE TRY_CAST(t AS DOUBLE) END",
    # The usual form first, which is read without a regular expression's groups.
    r"CREATE TEMP MACRO seconds_of(t) AS CASE WHEN regexp_full_match(t, '\d\d:\d\d:\d\d\.\d{3}') "
    "THEN TRY_CAST(left(t, 2) AS DOUBLE) * 3600 + TRY_CAST(substr(t, 4, 2) AS DOUBLE) * 60 "
    "+ TRY_CAST(substr(t, 7, 2) AS DOUBLE) + TRY_CAST(concat('0.', substr(t, 10), '0') AS DOUBLE) "
    f"ELSE clock_seconds(regexp_extract(t, {_TIME}), t) END",
    "CREATE TEMP MACRO said(entries) AS map_from_entries(list_filter(entries, lambda e: "
    "e.value IS NOT NULL AND e.value <> '' AND lower(e.value) <> 'nan'))",
)


def connect(config: Mapping[str, str | int | bool]) -> duckdb.DuckDBPyConnection:
    """A new database in memory that has what the queries use."""
    connection = duckdb.connect(":memory:", config=dict(config))
    for macro in _MACROS:
        connection.execute(macro)
    return connection


def json_rows(table: str, columns: Mapping[str, str], score: str | None) -> str:
    """The rows of a table of `row, line`; `columns` names the keys that are needed."""
    picked = {name: f"m[{literal(column)}]" for name, column in columns.items()}
    others = ", ".join(map(literal, (columns[YOUTUBE_ID], columns.get(CAPTION, CAPTION))))
    kept = f"list_filter(map_entries(m), lambda e: e.key NOT IN ({others}))"
    if score not in (None, SCORE):
        kept = (
            f"list_transform({kept}, lambda e: {{'key': CASE WHEN e.key = "
            f"{literal(score)} THEN '{SCORE}' ELSE e.key END, 'value': e.value}})"
        )
    parsed = f"TRY(regexp_replace(line, {_NUMBER})::JSON::MAP(VARCHAR, VARCHAR))"
    source = (
        f"(SELECT \"row\", {parsed} AS m FROM {table} WHERE regexp_matches(line, '[^ \t\r\n]'))"
    )
    return _rows('"row"', "m IS NOT NULL", picked, f"TRY(said({kept}))", source)


def parquet_rows(
    place: str, columns: Mapping[str, str], score: str | None, others: Sequence[str]
) -> str:
    """The rows of a Parquet file, whose columns `others` are kept as text."""
    picked = {name: f"CAST({quoted(column)} AS VARCHAR)" for name, column in columns.items()}
    entries = ", ".join(
        f"{{'key': {literal(SCORE if name == score else name)}, "
        f"'value': CAST({quoted(name)} AS VARCHAR)}}"
        for name in others
    )
    return _rows(
        "file_row_number + 1",
        "true",
        picked,
        f"said([{entries}])",
        f"read_parquet({place}, file_row_number = true)",
    )


def _rows(row: str, readable: str, picked: Mapping[str, str], extra: str, source: str) -> str:
    read = (
        f'SELECT {row} AS "row", {readable} AS readable, '
        f"stripped({picked[YOUTUBE_ID]}) AS id, stripped({picked[START]}) AS start_text, "
        f"stripped({picked[END]}) AS end_text, "
        f"stripped({picked.get(CAPTION, 'NULL::VARCHAR')}) AS caption, {extra} AS extra "
        f"FROM {source}"
    )
    return (
        f'SELECT "row", id, start_seconds, end_seconds, caption, map_keys(extra) AS keys, '
        f'map_values(extra) AS "values", {_PROBLEM} AS problem FROM (SELECT *, '
        "seconds_of(start_text) AS start_seconds, seconds_of(end_text) AS end_seconds "
        f"FROM ({read}))"
    )


_UNREADABLE_TIME = "'{} {} is neither seconds nor HH:MM:SS.mmm'"
_PROBLEM = f"""CASE
    WHEN NOT readable THEN 'not valid JSON, or not an object with distinct keys'
    WHEN id IS NULL THEN 'no {YOUTUBE_ID} in this row'
    WHEN NOT regexp_full_match(id, '[A-Za-z0-9_-]{{11}}')
        THEN format('{YOUTUBE_ID} {{}} is not 11 letters, digits, _ or -', left(id, 100))
    WHEN start_text IS NULL THEN 'no {START} in this row'
    WHEN end_text IS NULL THEN 'no {END} in this row'
    WHEN start_seconds IS NULL OR NOT isfinite(start_seconds)
        THEN format({_UNREADABLE_TIME}, '{START}', left(start_text, 100))
    WHEN end_seconds IS NULL OR NOT isfinite(end_seconds)
        THEN format({_UNREADABLE_TIME}, '{END}', left(end_text, 100))
    WHEN start_seconds < 0 OR end_seconds <= start_seconds
        THEN format('the span from {{}} to {{}} is empty or negative', start_text, end_text)
    END"""
