"""Checks the SQL of a gate: one expression over the columns of one row.

DuckDB parses it, and binds it to the columns that earlier stages make; nothing is read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import duckdb

from clipmill.pipeline.catalog.gate_rows import VIEW_OF, GateRows
from clipmill.pipeline.catalog.user_sql import CLOCKS, HIDING, dictionaries, hint_at_quotes
from clipmill.schemas.errors import UsageError
from clipmill.schemas.sql_text import quoted
from clipmill.schemas.words import did_you_mean

_MISSING = re.compile(r'(?:column|table) (?:with name )?"(.+?)"')
_NUMERIC = ("INT", "FLOAT", "DOUBLE", "DECIMAL", "NUMERIC")
_MULTIPLYING = frozenset(("unnest", "unlist", "generate_subscripts"))


class GateSql:
    """Checks gates' expressions with a connection that can reach no file."""

    def __init__(self) -> None:
        self._connection = duckdb.connect(
            ":memory:",
            config={"enable_external_access": False, "python_enable_replacements": False},
        )
        rows = self._connection.execute(
            "SELECT function_name, bool_and(function_type = 'aggregate'), "
            "bool_or(stability <> 'CONSISTENT') FROM duckdb_functions() GROUP BY ALL"
        ).fetchall()
        self._aggregates = {name for name, is_aggregate, _ in rows if is_aggregate}
        self._changing = {name for name, _, changes in rows if changes} - {"error"}

    def close(self) -> None:
        self._connection.close()

    def condition(
        self, text: str, place: str, rows: GateRows, later: Mapping[str, str], stage: str
    ) -> set[str]:
        """The columns that a predicate names; UsageError if it can't be a gate there.

        `later` are columns that later stages make, with the stage.
        """
        columns, kind = self._checked(text, place, rows, later, stage)
        if kind not in ("BOOLEAN", '"NULL"', "NULL"):
            raise UsageError(
                f"{place}: {text!r} is of type {kind}, but a gate is a condition, "
                "such as `motion > 2`"
            )
        return columns

    def score(
        self, text: str, place: str, rows: GateRows, later: Mapping[str, str], stage: str
    ) -> set[str]:
        """The columns that an expression names; UsageError if it is not a number."""
        columns, kind = self._checked(text, place, rows, later, stage)
        if not any(word in kind.upper() for word in _NUMERIC) or kind.endswith("[]"):
            raise UsageError(
                f"{place}: {text!r} is of type {kind}, but the best of something are those with "
                "the highest number, such as `of: similarity`"
            )
        return columns

    def _checked(
        self, text: str, place: str, rows: GateRows, later: Mapping[str, str], stage: str
    ) -> tuple[set[str], str]:
        tree = self._tree(text, place)
        for node in dictionaries(tree):
            self._check_node(node, text, place)
        known = {name.lower(): name for name in rows.columns}
        named = {
            part.lower()
            for node in dictionaries(tree)
            if node.get("class") == "COLUMN_REF"
            for part in node["column_names"]
        }
        picked = ", ".join(map(quoted, rows.columns))
        view = quoted(VIEW_OF[rows.key])
        query = f"SELECT {text}\nFROM (SELECT {picked} FROM ({rows.query})) AS {view} LIMIT 0"
        try:
            description = self._connection.execute(query).description
        except duckdb.Error as error:
            raise UsageError(
                f"{place}: {self._explained(error, text, rows, later, stage)}"
            ) from error
        return {known[name] for name in named if name in known}, str(description[0][1])

    def _tree(self, text: str, place: str) -> dict[str, Any]:
        try:
            count = len(duckdb.extract_statements(f"SELECT {text}\n"))
            (found,) = self._connection.execute(
                "SELECT json_serialize_sql(?)", [f"SELECT {text}\n"]
            ).fetchall()[0]
        except duckdb.Error as error:
            raise UsageError(f"{place}: {text!r}: {_first_line(error)}") from error
        parsed = json.loads(found)
        if parsed["error"]:
            raise UsageError(f"{place}: {text!r}: {parsed['error_message']}")
        select = parsed["statements"][0]["node"] if count == 1 else {}
        if not _is_bare(select):
            raise UsageError(
                f"{place}: {text!r} is not one condition; write one expression over columns, "
                "without FROM, AS or a comma outside parentheses"
            )
        only: dict[str, Any] = select["select_list"][0]
        return only

    def _check_node(self, node: Mapping[str, Any], text: str, place: str) -> None:
        name = str(node.get("function_name", "")).lower()
        column = node.get("column_names") or [""]
        if len(column) == 1 and column[0].lower() in CLOCKS:
            name = column[0].lower()
        if node.get("class") == "SUBQUERY":
            raise UsageError(
                f"{place}: {text!r} has a subquery, but a gate looks at one row at a time; to "
                "choose the best of all rows, write `where: {best: 30%, of: similarity}`"
            )
        if node.get("class") == "WINDOW" or name in self._aggregates:
            raise UsageError(
                f"{place}: {text!r}: {name}() looks at other rows, but a gate looks at one row "
                "at a time; to choose the best of all rows, write "
                "`where: {best: 30%, of: similarity}`"
            )
        if node.get("class") == "PARAMETER":
            raise UsageError(f"{place}: {text!r}: `?` and $names have no value here")
        if name in HIDING or name in _MULTIPLYING or node.get("class") == "STAR":
            raise UsageError(f"{place}: {text!r}: {name or '*'} is not allowed in a gate")
        if name in self._changing or name in CLOCKS:
            raise UsageError(
                f"{place}: {text!r}: {name} may give a different result each time, but a gate "
                "must choose the same rows after an interruption"
            )

    def _explained(
        self, error: duckdb.Error, text: str, rows: GateRows, later: Mapping[str, str], stage: str
    ) -> str:
        said = _first_line(error)
        found = _MISSING.search(said) if isinstance(error, duckdb.BinderException) else None
        if found is None:
            return f"{text!r}: {said}"
        name = found[1].lower()
        stages = {column.lower(): stage for column, stage in later.items()}
        if name in stages and stages[name] == stage:
            return f"{text!r} names the column {found[1]}, which the stage itself makes"
        if name in stages and stages[name] in rows.columns.values():
            view = VIEW_OF[rows.key]
            return (
                f"{text!r} names the column {found[1]}, which {view} has not, and this gate "
                f"chooses {view}; there are: {', '.join(rows.columns)}"
            )
        if name in stages:
            return (
                f"{text!r} names the column {found[1]}, which {stages[name]} makes, and that "
                "comes later in the recipe; move it, or the gate"
            )
        return (
            f"{text!r} names the column {found[1]}, which no stage before it makes; "
            f"{did_you_mean(found[1].lower(), rows.columns)}there are: {', '.join(rows.columns)}"
            f"{hint_at_quotes(error)}"
        )


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _is_bare(select: Mapping[str, Any]) -> bool:
    """Whether a SELECT is nothing but one expression."""
    if select.get("type") != "SELECT_NODE" or select["from_table"]["type"] != "EMPTY":
        return False
    parts = ("where_clause", "group_expressions", "having", "qualify", "modifiers", "sample")
    if any(select.get(part) for part in parts) or select["cte_map"]["map"]:
        return False
    return len(select["select_list"]) == 1 and not select["select_list"][0]["alias"]
