"""Prompt templates of recipes: Jinja in a sandbox, with a closed list of variables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from clipmill.schemas.bounded_memory import bounded_memory

# A template may make a long prompt, and no more.
_MOST_BYTES = 2**30


class _Environment(ImmutableSandboxedEnvironment):
    # What is named here is done when a template is filled in, not already when it is read.
    intercepted_binops = frozenset(("*", "**"))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        if operator == "**":
            raise SecurityError("** is not allowed: computing it may take for ever")
        return super().call_binop(context, operator, left, right)


# A recipe may come from someone else: its templates reach neither Python's internals nor files.
_ENVIRONMENT = _Environment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)


def variables_of(template: str, allowed: Collection[str]) -> frozenset[str]:
    """The variables that a template uses; ValueError where it is malformed or uses others."""
    try:
        used = meta.find_undeclared_variables(_ENVIRONMENT.parse(template))
        # Unknown filters and tests are found when the template is compiled, not when parsed.
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


def render(template: str, values: Mapping[str, Any]) -> str:
    """The filled-in template; ValueError with the reason where that fails."""
    try:
        with bounded_memory(_MOST_BYTES):
            return _ENVIRONMENT.from_string(template).render(values).strip()
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
