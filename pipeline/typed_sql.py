"""SQL that someone typed: that it only reads, and what DuckDB's errors mean for who typed it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import duckdb

from schemas import views
from schemas.errors import ClipmillError, UsageError

_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
_EXPLAIN = re.compile(r"explain(?:\s+analyze)?\s*(?:\([^()]*\)\s*)?(?P<query>.*)", re.I | re.S)
_COMMENT = re.compile(r"\s*(?:--[^\n]*(?:\n|\Z)|/\*.*?\*/)", re.S)
_CHANGES = re.compile(r"\b(copy|insert|update|delete|merge)\b", re.I)
_ALLOWED = ("allowed are SELECT, FROM, WITH, DESCRIBE, SHOW, SUMMARIZE, PIVOT and EXPLAIN of "
            "these. To keep a result, use --output FILE")
HIDING = frozenset((
    "query", "query_table", "json_execute_serialized_sql", "register_external_resource",
    "register_external_resource_type", "create_external_resource", "destroy_external_resource",
    "deregister_external_resource",
))
"""Functions that run SQL, or a function, which stands in a text: it could write, unseen."""
_HIDING_CALL = re.compile(
    rf"\b({'|'.join(HIDING)})\"?(?:\s|--[^\n]*\n|/\*.*?\*/)*\(", re.I | re.S)


def check_reads_only(connection: duckdb.DuckDBPyConnection, query: str) -> None:
    """Raises UsageError unless the text is one statement that only reads."""
    statements = duckdb.extract_statements(query)
    if not statements:
        raise UsageError("the query is empty; try: SELECT * FROM clips LIMIT 5")
    if len(statements) > 1:
        raise UsageError(f"{len(statements)} statements were given; give one at a time")
    try:
        kind = statements[0].type
    except ValueError as error:  # a statement that DuckDB's Python has no name for
        raise UsageError(f"the catalog is read-only; {_ALLOWED}") from error
    text = query
    while match := _COMMENT.match(text):
        text = text[match.end():]
    text = text.strip()
    if kind == duckdb.StatementType.EXPLAIN:
        inner = _EXPLAIN.match(text)
        if inner is None:
            raise UsageError("EXPLAIN is taken as EXPLAIN [ANALYZE] [(options)] SELECT …, without "
                             "comments between these words")
        check_reads_only(connection, inner["query"])
        return
    if found := _hidden(connection, query):
        raise UsageError(f"{found}() runs what stands in a text, which could be anything; "
                         "write that SQL itself")
    # DuckDB makes several statements of a PIVOT whose columns it has to find out first.
    if kind == duckdb.StatementType.MULTI and not _CHANGES.search(text):
        return
    if kind != duckdb.StatementType.SELECT or not _is_reading(connection, query):
        reading = kind in (duckdb.StatementType.SELECT, duckdb.StatementType.MULTI)
        word = "a WITH clause that writes" if reading else kind.name
        raise UsageError(f"the catalog is read-only, and this is {word}; {_ALLOWED}")


def _hidden(connection: duckdb.DuckDBPyConnection, query: str) -> str | None:
    """The first function of a SELECT that runs a text as SQL."""
    tree = json.loads(connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()[0][0])
    if tree["error"]:
        # Not to be had for what DuckDB makes several statements of: there the text is searched.
        match = _HIDING_CALL.search(query)
        return match[1].lower() if match else None
    names = (str(node.get("function_name", "")).lower() for node in _dictionaries(tree))
    return next((name for name in names if name in HIDING), None)


def _is_reading(connection: duckdb.DuckDBPyConnection, query: str) -> bool:
    """Whether every part of a SELECT only reads: its WITH clause may hold COPY or INSERT."""
    rows = connection.execute("SELECT json_serialize_sql(?)", [query]).fetchall()
    found = json.loads(rows[0][0])
    return not found["error"] and all(
        node["type"] in _QUERY_NODES for node in _dictionaries(found) if "cte_map" in node
    )


def _dictionaries(value: Any) -> Iterator[dict[str, Any]]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            yield item
            pending.extend(item.values())
        elif isinstance(item, list):
            pending.extend(item)


@contextmanager
def readable_errors() -> Iterator[None]:
    """DuckDB's errors as ours: the user's with status 2, the machine's with status 1."""
    try:
        yield
    except duckdb.PermissionException as error:
        raise UsageError(f"{_first_part(error)}\nA query reads the dataset's tables only; "
                         "--allow-external lets it read other files and the network") from error
    except duckdb.OutOfMemoryException as error:
        raise ClipmillError(_out_of_memory(_first_part(error))) from error
    except MemoryError as error:
        raise ClipmillError(_out_of_memory("its rows could not be held")) from error
    except OverflowError as error:
        raise UsageError(f"a date, time or interval lies beyond what can be shown ({error}); write "
                         "CAST(… AS VARCHAR)") from error
    except RuntimeError as error:
        # What a Ctrl-C is told as in the middle of some queries.
        if "interrupted" in str(error).lower():
            raise KeyboardInterrupt from error
        raise
    except OSError as error:
        # What goes wrong while Arrow reads rows comes as one, but without a number.
        if error.errno is not None:
            raise
        said = _first_part(error)
        if "Out of Memory" in said:
            raise ClipmillError(_out_of_memory(said)) from error
        raise ClipmillError(f"the query could not be completed: {said}") from error
    except (duckdb.IOException, duckdb.InternalException, duckdb.FatalException) as error:
        raise ClipmillError(f"the query could not be completed: {_first_part(error)}") from error
    except duckdb.CatalogException as error:
        known = ", ".join(views.VIEWS)
        raise UsageError(f"{error}\nViews: {known}; and steps.<step>, see SHOW ALL TABLES"
                         ) from error
    except duckdb.ParserException as error:
        hint = ""
        if re.search(r"\bat\b", str(error), re.I):
            hint = '\nAT is a keyword of SQL: the column `at` is written "at", in double quotes'
        raise UsageError(f"{error}{hint}") from error
    except duckdb.Error as error:
        raise UsageError(str(error)) from error


def _out_of_memory(reason: str) -> str:
    # DuckDB goes on with settings that cannot be set here.
    reason = reason.partition("\n")[0].removeprefix("Out of Memory Error: ")
    return (f"the query needs more memory than it may take ({reason}); ask for less at a time, or "
            "allow more with --memory-limit, e.g. --memory-limit 8GB")


def _first_part(error: Exception) -> str:
    return str(error).partition("\n\nStack Trace")[0]
