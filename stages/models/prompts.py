"""Prompt templates of recipes: Jinja in a sandbox, with a closed list of variables."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

# A recipe may come from someone else: its templates reach neither Python's internals nor files.
_ENVIRONMENT = ImmutableSandboxedEnvironment(
    undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False
)


def variables_of(template: str, allowed: Collection[str]) -> frozenset[str]:
    """The variables that a template uses; ValueError where it is malformed or uses others."""
    try:
        used = meta.find_undeclared_variables(_ENVIRONMENT.parse(template))
        # Unknown filters and tests are found when the template is compiled, not when parsed.
        _ENVIRONMENT.from_string(template)
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
        return _ENVIRONMENT.from_string(template).render(values).strip()
    except (TemplateError, TypeError, ArithmeticError, LookupError) as error:
        raise ValueError(f"the prompt template cannot be filled in: {error}") from error
