"""Prompts that fit into a model's context: with fewer lines of what a clip has many of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from clipmill.schemas.errors import RowFailed


class Counter(Protocol):
    """A model that counts tokens; `longest_prompt` is None if no limit is known."""

    longest_prompt: int | None

    def count_tokens(self, prompt: str) -> int: ...


def fitted(
    prompt_of: Callable[[int], str], lines: int, model: Counter, limit: int | None = None
) -> str:
    """The prompt with as many lines as fit, by bisection; RowFailed if it doesn't fit with one.

    `prompt_of` makes it with at most so many lines. The limit is the model's by default.
    """
    prompt = prompt_of(lines)
    limit = limit or model.longest_prompt
    if limit is None or model.count_tokens(prompt) <= limit:
        return prompt
    fits, too_many = 0, lines
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if model.count_tokens(prompt_of(middle)) <= limit:
            fits = middle
        else:
            too_many = middle
    if fits:
        return prompt_of(fits)
    least = ", and still does with a single fine caption" if lines else ""
    raise RowFailed(
        "model",
        f"the prompt takes {model.count_tokens(prompt)} tokens, more than "
        f"the {limit} allowed{least}",
    )


def spread(items: Sequence[Any], count: int) -> tuple[Any, ...]:
    """`count` of the items from the middles of as many equal parts, or all if there are fewer."""
    if len(items) <= count:
        return tuple(items)
    return tuple(items[(2 * i + 1) * len(items) // (2 * count)] for i in range(count))
