"""Checks that user SQL is read-only and explains DuckDB's errors."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from clipmill.pipeline.catalog import views
from clipmill.schemas.errors import ClipmillError, UsageError

_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_EXPLAIN = re.compile(
    r"(?P<comments>(?:\s*--[^\n]*\n|\s*/\*.*?\*/)*)\s*explain(?P<analyze>\s+analyze)?\s*"
    r"(?P<options>\(\s*(?:analyze|format)\b[\w\s,]*\))?(?P<query>.*)",
    re.I | re.S,
)
_CHANGING = frozenset(("copy", "insert", "update", "delete", "merge", "truncate"))
_ALLOWED = (
    "allowed are SELECT, FROM, WITH, DESCRIBE, SHOW, SUMMARIZE, PIVOT and EXPLAIN of "
    "these. To keep a result, use --output FILE"
)
HIDING = frozenset(
    (
        "query",
        "query_table",
        "json_execute_serialized_sql",
        "register_external_resource",
        "register_external_resource_type",
        "create_external_resource",
        "destroy_external_resource",
        "deregister_external_resource",
    )
)
"""Functions that run SQL, or a function, given as text: it could write without being checked."""

CLOCKS = frozenset(
    (
        "current_date",
        "current_time",
        "current_timestamp",
        "localtime",
        "localtimestamp",
        "current_user",
        "session_user",
        "user",
        "current_catalog",
        "current_schema",
        "current_database",
    )
)
"""Names that SQL treats as functions although they are written like columns."""

KEYWORD_COLUMNS = frozenset(("at",))
"""Columns of the views that SQL accepts as names only when they are quoted."""


def reading_statement(connection: duckdb.DuckDBPyConnection, query: str) -> str:
    """The text to run for one read-only statement.

    Run this text and not the typed one: for EXPLAIN it is rebuilt from the query that was checked.
    Raises UsageError for any other statement.
    """
    statements = duckdb.extract_statements(query)
    if not statements:
        raise UsageError("the query is empty; try: SELECT * FROM clips LIMIT 5")
    if len(statements) > 1:
        raise UsageError(f"expected one statement, found {len(statements)}")
    try:
        kind = statements[0].type
    except ValueError as error:  # a statement type that DuckDB's Python package doesn't know
        raise UsageError(f"the catalog is read-only; {_ALLOWED}") from error
    # DuckDB splits a PIVOT whose columns it must first discover into several statements, and an
    # EXPLAIN of one, too.
    explain = _EXPLAIN.fullmatch(query)
    if (
        explain
        and kind in (duckdb.StatementType.EXPLAIN, duckdb.StatementType.MULTI)
        and _is_empty(explain["comments"])
    ):
        inner = reading_statement(connection, explain["query"])
        return f"EXPLAIN{explain['analyze'] or ''} {explain['options'] or ''} {inner}"
    if kind == duckdb.StatementType.EXPLAIN:
        raise UsageError(
            "EXPLAIN must be written as EXPLAIN [ANALYZE] [(options)] SELECT …, "
            "without comments between these words"
        )
    if kind == duckdb.StatementType.MULTI:
        # Such a statement has no syntax tree, and DuckDB's parser accepts unexpected characters as
        # spaces or ends of comments: these words may occur nowhere in it.
        words = set(re.findall(r"[a-z_]+", query.lower(), re.A))
        if found := sorted(words & (HIDING | _CHANGING)):
            raise UsageError(
                f"a PIVOT that discovers its columns can't be checked if it contains "
                f"the word {found[0]}; name them: PIVOT … ON column IN (…)"
            )
        return query
    if kind != duckdb.StatementType.SELECT:
        raise UsageError(f"the catalog is read-only, but this is {kind.name}; {_ALLOWED}")
    tree = json.loads(connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()[0][0])
    nodes = [] if tree["error"] else list(dictionaries(tree))
    names = [str(node.get("function_name", "")).lower() for node in nodes]
    if hiding := next((name for name in names if name in HIDING), None):
        raise UsageError(
            f"{hiding}() runs SQL given as text, which could do anything; write that SQL directly"
        )
    if not nodes or not all(node["type"] in _QUERY_NODES for node in nodes if "cte_map" in node):
        raise UsageError(f"the catalog is read-only, but this WITH clause writes; {_ALLOWED}")
    return query


def _is_empty(text: str) -> bool:
    """Whether DuckDB, too, sees nothing but comments."""
    try:
        return not duckdb.extract_statements(text)
    except duckdb.Error:
        return False


def dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    """All nodes of a syntax tree."""
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


@contextmanager
def readable_errors(query: str = "") -> Iterator[None]:
    """Raises DuckDB's errors as ours: the user's with status 2, the machine's with status 1.

    For a `query` that can't be parsed, the error says whether a column's name is to blame.
    """
    try:
        yield
    except duckdb.PermissionException as error:
        raise UsageError(
            f"{_first_part(error)}\nA query can only read the dataset's tables; "
            "--allow-external lets it read other files and the network"
        ) from error
    except duckdb.OutOfMemoryException as error:
        raise ClipmillError(_out_of_memory(_first_part(error))) from error
    except MemoryError as error:
        raise ClipmillError(_out_of_memory("its rows could not be held")) from error
    except OverflowError as error:
        raise UsageError(
            f"a date, time or interval is outside the range that can be shown "
            f"({error}); write CAST(… AS VARCHAR)"
        ) from error
    except RuntimeError as error:
        # Some queries report Ctrl-C in this way.
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from error
        raise
    except OSError as error:
        # Errors from reading rows through Arrow have this class, but no error number.
        if error.errno is not None:
            raise
        raise ClipmillError(_incomplete(_first_part(error))) from error
    except (duckdb.IOException, duckdb.InternalException, duckdb.FatalException) as error:
        raise ClipmillError(_incomplete(_first_part(error))) from error
    except duckdb.CatalogException as error:
        known = ", ".join(views.VIEWS)
        raise UsageError(
            f"{error}\nViews: {known}; and steps.<step>, see SHOW ALL TABLES"
        ) from error
    except duckdb.ParserException as error:
        raise UsageError(f"{error}{_keyword_hint(query)}") from error
    except duckdb.Error as error:
        raise UsageError(f"{error}{hint_at_quotes(error)}") from error


def hint_at_quotes(error: Exception) -> str:
    """A hint for text in double quotes, which SQL reads as a column name."""
    said, _, line = str(error).partition("\nLINE ")
    found = re.search(r'(?:column|table) (?:with name )?"(.+?)"', said)
    if found is None or f'"{found[1]}"' not in line:
        return ""
    return (
        f"\nIf {found[1]!r} is text, write it in single quotes; double quotes are for column "
        "names. In a shell: \"… = 'text'\""
    )


def _keyword_hint(query: str) -> str:
    """A hint for a column name that is an SQL keyword, if that is the mistake.

    It is the mistake if the query can be parsed once those words are quoted.
    """
    text, mended, end = query.encode(), b"", 0
    found = set()
    for start, _ in duckdb.tokenize(query):
        word = re.match(rb"\w+", text[start:])
        if word is not None and (name := word[0].decode().lower()) in KEYWORD_COLUMNS:
            found.add(name)
            mended += text[end:start] + b'"' + word[0] + b'"'
            end = start + len(word[0])
    try:
        duckdb.extract_statements((mended + text[end:]).decode())
    except duckdb.Error:
        return ""
    return "".join(
        f"\n{name.upper()} is an SQL keyword: write the column `{name}` as "
        f'"{name}", in double quotes'
        for name in sorted(found)
    )


def _incomplete(said: str) -> str:
    if "Out of Memory" in said:
        return _out_of_memory(said)
    # Where no memory is left to format an error either, DuckDB reports that as an internal one.
    if "bad_alloc" in said:
        return _out_of_memory("its rows could not be held")
    return f"the query could not be completed: {said}"


def _out_of_memory(reason: str) -> str:
    # DuckDB goes on to suggest settings that can't be changed here.
    reason = reason.partition("\n")[0].removeprefix("Out of Memory Error: ")
    return (
        f"the query needs more memory than allowed ({reason}); read less at a time, or "
        "allow more with --memory-limit, e.g. --memory-limit 8GB"
    )


def _first_part(error: Exception) -> str:
    return str(error).partition("\n\nStack Trace")[0]
