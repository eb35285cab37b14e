"""Reads YAML as plain data: texts, numbers, times, lists and mappings, and nothing else."""

from __future__ import annotations

import math
from typing import Any

import yaml
from yaml.constructor import ConstructorError

from clipmill.schemas.errors import UsageError

# Aliases may repeat a value many times, but no more than anybody would write out.
_MOST_VALUES = 100_000
# Python takes long to read longer numbers or times, and to write them in an error.
_MOST_CHARACTERS = 400
_KINDS = ("null", "bool", "int", "float", "timestamp", "str", "seq", "map")


def parse_yaml(text: str, where: str) -> Any:
    """The value of a text. UsageError that names `where` and the line of the error."""
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except yaml.YAMLError as error:
        raise UsageError(f"{where} is not valid YAML: {_in_one_line(error)}") from error
    except RecursionError as error:
        raise UsageError(f"{where} is not valid YAML: it is nested too deeply") from error


def _in_one_line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    said = [getattr(error, "context", None), getattr(error, "problem", None)]
    return f"line {mark.line + 1}, column {mark.column + 1}: {', '.join(filter(None, said))}"


class _StrictLoader(yaml.SafeLoader):
    """Reads plain data only; a repeated key is an error instead of overriding the first."""

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _values_in(node, {}) > _MOST_VALUES:
            raise ConstructorError(
                None,
                None,
                f"its aliases (*name) expand to more than {_MOST_VALUES:,} values",
                node.start_mark,
            )
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        kind = node.tag.removeprefix("tag:yaml.org,2002:")
        if kind not in _KINDS:
            raise ConstructorError(
                None,
                None,
                f"the tag {node.tag!r} is not supported here: "
                "expected texts, numbers, lists and mappings",
                node.start_mark,
            )
        if (
            isinstance(node, yaml.ScalarNode)
            and kind != "str"
            and (len(node.value) > _MOST_CHARACTERS)
        ):
            raise ConstructorError(None, None, f"{_shown(node)} is too long", node.start_mark)
        if kind in ("int", "float") and ":" in node.value:
            return node.value  # YAML 1.1 reads the time 00:01:30 as 90
        try:
            return super().construct_object(node, deep)
        except (yaml.YAMLError, RecursionError):
            raise
        except Exception as error:  # SafeLoader passes on any error, such as an invalid date
            why = f": {error}" if isinstance(error, ValueError) else ""
            raise ConstructorError(
                None, None, f"{_shown(node)} can't be read{why}", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise ConstructorError(None, None, f"{_shown(node)} is not a mapping", node.start_mark)
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, list | dict):
                raise ConstructorError(
                    None,
                    None,
                    f"{_shown(key_node)} can't be a key: use text instead",
                    key_node.start_mark,
                )
            if key in seen:
                raise ConstructorError(
                    None, None, f"the key {key!r} is given twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _shown(node: yaml.Node) -> str:
    """A node as it is written, shortened."""
    if not isinstance(node, yaml.ScalarNode):
        return f"that is a {'list' if isinstance(node, yaml.SequenceNode) else 'mapping'}"
    kind = node.tag.rpartition(":")[2]
    text = node.value if len(node.value) <= 40 else f"{node.value[:40]}…"
    return f"{text!r} (read as {kind})"


def _values_in(node: yaml.Node, known: dict[int, float]) -> float:
    """How many values a node has with aliases expanded; a recursive one is infinite."""
    if id(node) not in known:
        known[id(node)] = math.inf
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        known[id(node)] = 1 + sum(
            _values_in(one, known)
            for item in inner
            for one in (item if isinstance(item, tuple) else (item,))
        )
    return known[id(node)]
