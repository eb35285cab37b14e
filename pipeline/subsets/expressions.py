"""Checks the SQL inside a recipe: one read-only, deterministic expression.

DuckDB parses it; refusals depend on the parsed tree, never on the text.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import duckdb

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.catalog.user_sql import CLOCKS, HIDING, readable_errors
from clipmill.schemas.errors import ClipmillError, UsageError

_QUERY_NODES = {"SELECT_NODE", "SET_OPERATION_NODE", "RECURSIVE_CTE_NODE", "CTE_NODE"}
# These run SQL from a text, which can't be checked here.
_HIDING = HIDING
_MULTIPLYING = {"unnest", "unlist", "generate_subscripts"}
_COMPARISONS = {
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_GREATERTHANOREQUALTO": ">=",
    "COMPARE_LESSTHAN": "<",
    "COMPARE_LESSTHANOREQUALTO": "<=",
}
_MIRRORED = {">": "<", ">=": "<=", "<": ">", "<=": ">="}
_DIRECTIONS = {"ASCENDING": "ASC", "DESCENDING": "DESC", "ORDER_DEFAULT": "ASC"}
NUMERIC = (
    "TINYINT",
    "SMALLINT",
    "INTEGER",
    "BIGINT",
    "HUGEINT",
    "UTINYINT",
    "USMALLINT",
    "UINTEGER",
    "UBIGINT",
    "UHUGEINT",
    "FLOAT",
    "DOUBLE",
    "DECIMAL",
)


@dataclass(frozen=True)
class Comparison:
    """`left operator right` within a predicate, with the constant on the right."""

    left: str
    operator: str
    right: str


@dataclass(frozen=True)
class OrderTerm:
    """One term of an order: an expression, and `DESC NULLS LAST` or similar."""

    expression: str
    direction: str


class Expressions:
    """Checks expressions against the `clips` of an open catalog."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        rows = catalog.connection.execute(
            "SELECT DISTINCT function_name FROM duckdb_functions() "
            "WHERE stability <> 'CONSISTENT' AND function_name <> 'error'"
        ).fetchall()
        self._changing = {name for (name,) in rows}
        rows = catalog.connection.execute(
            "SELECT function_name FROM duckdb_functions() GROUP BY ALL "
            "HAVING bool_and(function_type = 'aggregate')"
        ).fetchall()
        self._aggregates = {name for (name,) in rows}

    def type_of(self, text: str, place: str) -> str:
        """The DuckDB type of an expression that is safe to run; UsageError if it is not one."""
        self._tree(text, place)
        # The expression comes first, so that DuckDB's pointer to a mistake is easy to follow.
        query = f"SELECT {text}\nFROM clips LIMIT 0"
        with errors_at(place):
            columns = self._catalog.execute(query).description
        if len(columns) != 1:
            raise UsageError(f"{place}: {text!r} expands to {len(columns)} columns; expected one")
        return str(columns[0][1])

    def order(self, text: str, place: str) -> list[OrderTerm]:
        """The terms of an order like `similarity DESC, duration_seconds`."""
        select = self._select(f"SELECT 1 ORDER BY {text}\n", place)
        modifiers = select["modifiers"]
        kinds = [modifier["type"] for modifier in modifiers]
        if kinds != ["ORDER_MODIFIER"] or not _is_bare({**select, "modifiers": []}):
            raise UsageError(
                f"{place}: {text!r} is not an order; expected something like `similarity DESC`"
            )
        terms = []
        for term in modifiers[0]["orders"]:
            nulls = "NULLS FIRST" if term["null_order"] == "NULLS FIRST" else "NULLS LAST"
            expression = self._text(term["expression"])
            self.type_of(expression, place)
            terms.append(OrderTerm(expression, f"{_DIRECTIONS[term['type']]} {nulls}"))
        return terms

    def comparisons(self, text: str, place: str) -> list[Comparison]:
        """A predicate's comparisons of something with a constant number."""
        found = [
            one
            for node in _outside_subqueries(self._tree(text, place))
            for one in self._compared(node)
            if one is not None
        ]
        return [one for one in dict.fromkeys(found) if self._is_number(one, place)]

    def conjuncts(self, text: str, place: str) -> list[str]:
        """The conditions that AND joins in a predicate, outside of parentheses and inside."""
        nodes = list(_joined_by_and(self._tree(text, place)))
        if len(nodes) == 1:
            return [text]
        return self._as_written(text, nodes, place) or [self._text(node) for node in nodes]

    def _as_written(
        self, text: str, nodes: Sequence[dict[str, Any]], place: str
    ) -> list[str] | None:
        """The source text of joined conditions; None if parentheses enclose several of them."""
        source = text.encode()
        ends = [
            at
            for at, kind in duckdb.tokenize(text)
            if kind == duckdb.token_type.keyword and source[at : at + 3].lower() == b"and"
        ]
        found, start = [], 0
        for node in nodes:
            for end in (*ends, len(source)):
                if end <= start:
                    continue
                part = source[start:end].decode().strip()
                with contextlib.suppress(UsageError):
                    if _without_places(self._tree(part, place)) == _without_places(node):
                        found.append(part)
                        start = end + len("and")
                        break
            else:
                return None
        return found

    def _compared(self, node: dict[str, Any]) -> list[Comparison | None]:
        """The comparisons in one node; None in the place of one that is not with a constant."""
        if node.get("class") == "BETWEEN" and node["type"] == "COMPARE_BETWEEN":
            pairs = [(node["input"], ">=", node["lower"]), (node["input"], "<=", node["upper"])]
        elif node.get("class") == "COMPARISON" and node["type"] in _COMPARISONS:
            operator = _COMPARISONS[node["type"]]
            pairs = [(node["left"], operator, node["right"])]
            if _is_constant(node["left"]):
                pairs = [(node["right"], _MIRRORED[operator], node["left"])]
        else:
            return []
        return [
            Comparison(self._text(left), operator, self._text(right))
            if _is_constant(right) and not _is_constant(left) and not _has_subquery(left)
            else None
            for left, operator, right in pairs
        ]

    def with_outcome(self, text: str, place: str, comparison: Comparison, outcome: bool) -> str:
        """The predicate as it is for clips for which one of its comparisons has this outcome."""
        constant = self._tree("true" if outcome else "false", place)

        def replaced(value: Any) -> Any:
            if isinstance(value, list):
                return [replaced(item) for item in value]
            if not isinstance(value, dict) or value.get("class") == "SUBQUERY":
                return value
            compared = self._compared(value)
            if comparison not in compared:
                return {key: replaced(item) for key, item in value.items()}
            if len(compared) == 1 or not outcome:
                return constant
            # Of BETWEEN, the other bound is left.
            rest = self._tree("1 <= 2" if compared[0] == comparison else "1 >= 2", place)
            bound = value["upper" if compared[0] == comparison else "lower"]
            return {**rest, "left": value["input"], "right": bound}

        return self._text(replaced(self._tree(text, place)))

    def _is_number(self, comparison: Comparison, place: str) -> bool:
        if not is_numeric(self.type_of(comparison.left, place)):
            return False
        try:
            query = f"SELECT CAST(({comparison.right}) AS DOUBLE)"
            return self._catalog.connection.execute(query).fetchall()[0][0] is not None
        except duckdb.Error:
            return False

    def _tree(self, text: str, place: str) -> dict[str, Any]:
        select = self._select(f"SELECT {text}\n", place)
        if not _is_bare(select):
            raise UsageError(
                f"{place}: {text!r} is more than one expression; a rule needs one, "
                "without FROM, AS or a comma outside parentheses"
            )
        tree: dict[str, Any] = select["select_list"][0]
        self._check_looks_at_one_clip(tree, place)
        return tree

    def _check_looks_at_one_clip(self, tree: dict[str, Any], place: str) -> None:
        for node in _outside_subqueries(tree):
            name = str(node.get("function_name", "")).lower()
            if node.get("class") == "WINDOW" or name in self._aggregates:
                raise UsageError(
                    f"{place}: {name}() uses clips other than the one in question; use a "
                    "percentile, cap or quota rule, or a subquery such as "
                    "(SELECT avg(similarity) FROM clips)"
                )
            if name in _MULTIPLYING:
                raise UsageError(
                    f"{place}: {name}() makes several rows from one clip; use a list "
                    "function such as list_contains or list_filter"
                )

    def _select(self, query: str, place: str) -> dict[str, Any]:
        with errors_at(place):
            count = len(duckdb.extract_statements(query))
        if count != 1:
            raise UsageError(f"{place}: expected one expression, found {count} statements")
        (text,) = self._catalog.connection.execute(
            "SELECT json_serialize_sql(?)", [query]
        ).fetchall()[0]
        found = json.loads(text)
        if found["error"]:
            raise UsageError(
                f"{place}: only read-only expressions are allowed here: {found['error_message']}"
            )
        self._check(found, place)
        node: dict[str, Any] = found["statements"][0]["node"]
        if node["type"] != "SELECT_NODE":
            raise UsageError(f"{place}: expected one expression, not a set operation")
        return node

    def _check(self, found: Any, place: str) -> None:
        for node in _dictionaries(found):
            if "cte_map" in node and node["type"] not in _QUERY_NODES:
                raise UsageError(f"{place}: a WITH clause that writes is not allowed")
            if node.get("sample"):
                raise UsageError(
                    f"{place}: SAMPLE would give different clips each time; use a "
                    "`sample` rule, which has a seed"
                )
            if node.get("class") == "PARAMETER":
                raise UsageError(
                    f"{place}: `?` has no meaning here; declare a parameter and write $name"
                )
            name = str(node.get("function_name", "")).lower()
            if name in _HIDING:
                raise UsageError(f"{place}: {name}() is not allowed in a recipe")
            column = node.get("column_names") or [""]
            if len(column) == 1 and column[0].lower() in CLOCKS:
                name = column[0].lower()
            if name in self._changing or name in CLOCKS:
                raise UsageError(
                    f"{place}: {name} may give a different result each time, but the same recipe "
                    "must give the same clips; use a parameter with --set, or a `sample` rule for "
                    "randomness"
                )

    def _text(self, node: dict[str, Any]) -> str:
        """A part of a syntax tree as SQL again."""
        (template,) = self._catalog.connection.execute(
            "SELECT json_serialize_sql('SELECT 1')"
        ).fetchall()[0]
        whole = json.loads(template)
        whole["statements"][0]["node"]["select_list"] = [node]
        (text,) = self._catalog.connection.execute(
            "SELECT json_deserialize_sql(?)", [json.dumps(whole)]
        ).fetchall()[0]
        return str(text).removeprefix("SELECT ")


def _joined_by_and(node: dict[str, Any]) -> Iterator[dict[str, Any]]:
    if node["type"] != "CONJUNCTION_AND":
        yield node
        return
    for part in node["children"]:
        yield from _joined_by_and(part)


def _without_places(value: Any) -> Any:
    """A syntax tree without the places of its parts in the text."""
    if isinstance(value, list):
        return [_without_places(item) for item in value]
    if isinstance(value, dict):
        return {k: _without_places(item) for k, item in value.items() if k != "query_location"}
    return value


def is_numeric(kind: str) -> bool:
    return kind.partition("(")[0] in NUMERIC


@contextmanager
def errors_at(place: str) -> Iterator[None]:
    """Raises DuckDB's errors as ours, preceded by the recipe and the rule."""
    try:
        with readable_errors():
            try:
                yield
            except duckdb.PermissionException as error:
                raise UsageError(
                    f"{str(error).partition(chr(10))[0]}\nA recipe reads the "
                    "dataset's views only, no other files and no network"
                ) from error
    except ClipmillError as error:
        raise type(error)(f"{place}: {error}") from error


def _is_bare(select: dict[str, Any]) -> bool:
    """Whether a SELECT is nothing but one expression."""
    parts = ("where_clause", "group_expressions", "having", "qualify", "modifiers")
    if select["from_table"]["type"] != "EMPTY" or any(select.get(part) for part in parts):
        return False
    if select["cte_map"]["map"] or len(select["select_list"]) != 1:
        return False
    only = select["select_list"][0]
    return not only["alias"] and only["class"] != "STAR"


def _dictionaries(value: Any, stop: str | None = None) -> Iterator[dict[str, Any]]:
    pending = [value]
    while pending:
        item = pending.pop()
        if isinstance(item, dict):
            if stop is not None and item.get("class") == stop:
                continue
            yield item
            pending.extend(reversed(item.values()))
        elif isinstance(item, list):
            pending.extend(reversed(item))


def _outside_subqueries(tree: dict[str, Any]) -> Iterator[dict[str, Any]]:
    return _dictionaries(tree, stop="SUBQUERY")


def _has_subquery(tree: dict[str, Any]) -> bool:
    return any(node.get("class") == "SUBQUERY" for node in _dictionaries(tree))


def _is_constant(tree: dict[str, Any]) -> bool:
    return not any(
        node.get("class") in ("COLUMN_REF", "SUBQUERY", "LAMBDA", "LAMBDA_REF")
        for node in _dictionaries(tree)
    )
