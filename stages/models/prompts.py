"""Prompt templates of recipes: sandboxed Jinja with a closed list of variables."""

from __future__ import annotations

import functools
import re
import threading
from collections.abc import Collection, Mapping
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from clipmill.schemas.bounded_memory import bounded_memory

# Limits the length of a prompt that a template makes.
_MOST_BYTES = 2**30
_limiting = threading.Lock()

# What a text made with only these can be as long as is bounded by its template and its values.
_PLAIN_NODES = (
    nodes.Template,
    nodes.Output,
    nodes.TemplateData,
    nodes.Name,
    nodes.Const,
    nodes.If,
    nodes.CondExpr,
    nodes.Getattr,
    nodes.Compare,
    nodes.Operand,
    nodes.And,
    nodes.Or,
    nodes.Not,
)
_PLAIN_FILTERS = frozenset(
    ("capitalize", "default", "first", "join", "last", "length", "lower", "title", "trim", "upper")
)


class _Environment(ImmutableSandboxedEnvironment):
    # These run when a template is rendered, not already when it is compiled.
    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("** is not allowed: computing it may take for ever")
        return super().call_binop(context, operator, left, right)


# A recipe may be a stranger's: its templates can reach neither Python's internals nor files.
_ENVIRONMENT = _Environment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)


def variables_of(template: str, allowed: Collection[str]) -> frozenset[str]:
    """The variables that a template uses; ValueError if it is malformed or uses others."""
    return _variables_of(template, tuple(allowed))


@functools.lru_cache(maxsize=64)
def _variables_of(template: str, allowed: tuple[str, ...]) -> frozenset[str]:
    try:
        used = meta.find_undeclared_variables(_ENVIRONMENT.parse(template))
        # Unknown filters and tests are only detected when compiling a template, not when parsing
        # it.
        _ENVIRONMENT.from_string(template)
    except RecursionError as error:
        raise ValueError("the template is nested too deeply") from error
    except TemplateSyntaxError as error:
        raise ValueError(f"line {error.lineno} of the template: {error.message}") from error
    if unknown := sorted(used - set(allowed)):
        raise ValueError(
            f"the template uses {', '.join(unknown)}; allowed variables: {', '.join(allowed)}"
        )
    return frozenset(used)


def fixed_opening(template: str) -> str:
    """The text before the first variable or statement of a template."""
    return re.split(r"\{[{%#]", template, maxsplit=1)[0].strip()


def own_words(template: str) -> str:
    """The text of a template that is in it whatever its variables are."""
    return re.sub(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", " ", template, flags=re.DOTALL)


def render(template: str, values: Mapping[str, Any]) -> str:
    """The rendered template; ValueError with the reason if that fails."""
    try:
        compiled, is_plain = _compiled(template)
        if is_plain:
            return compiled.render(values).strip()
        # The limit is the process's, so only one thread at a time may set it.
        with _limiting, bounded_memory(_MOST_BYTES):
            return compiled.render(values).strip()
    except (
        TemplateError,
        TypeError,
        ValueError,
        ArithmeticError,
        LookupError,
        MemoryError,
        RecursionError,
    ) as error:
        said = str(error) or type(error).__name__
        raise ValueError(f"the prompt template cannot be rendered: {said}") from error


@functools.lru_cache(maxsize=64)
def _compiled(template: str) -> tuple[Template, bool]:
    """The template, and whether it can't make a text much longer than its values."""
    return _ENVIRONMENT.from_string(template), _is_plain(_ENVIRONMENT.parse(template))


def _is_plain(node: nodes.Node, *, loops: int = 0) -> bool:
    if isinstance(node, nodes.For):
        loops += 1
        known = loops == 1
    elif isinstance(node, nodes.Filter):
        known = node.name in _PLAIN_FILTERS
    else:
        known = isinstance(node, _PLAIN_NODES)
    return known and all(_is_plain(child, loops=loops) for child in node.iter_child_nodes())
