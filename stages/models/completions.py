"""What a model that makes text answers, and how it is told whether the answer is whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Completion:
    """The model's answer. `complete` is false if it was cut off at the token limit.

    Tokens are counted by the model's own tokenizer; None where a server doesn't tell. The token
    that ends the answer counts, as it does in the usage of servers.
    """

    text: str
    complete: bool = True
    prompt_tokens: int | None = None
    new_tokens: int | None = None


def ending_tokens(model: Any) -> frozenset[int]:
    """The tokens after which `generate` stops, for a model or the language model inside it."""
    ends: set[int] = set()
    for module in model.modules():
        found = getattr(getattr(module, "generation_config", None), "eos_token_id", None)
        ends.update([found] if isinstance(found, int) else found or [])
    return frozenset(ends)


def completions(
    texts: Sequence[str],
    tokens: Any,
    *,
    ends: Iterable[int],
    padding: int | None,
    limit: int,
    prompt_tokens: Sequence[int] | None,
) -> list[Completion]:
    """Answers from a batch of new tokens, one row per answer, padded at the end.

    A row as long as the limit is whole if its last token ends it or pads it. Beam search pads with
    an ending token where the padding token is 0, so both count the same.
    """
    ends = frozenset(ends)
    stops = ends if padding is None else ends | {padding}
    found = []
    for i, (text, row) in enumerate(zip(texts, tokens.tolist(), strict=True)):
        stop = len(row)
        while stop and row[stop - 1] in stops:
            stop -= 1
        ended = stop < len(row)
        found.append(
            Completion(
                text,
                complete=ended or len(row) < limit,
                prompt_tokens=prompt_tokens[i] if prompt_tokens is not None else None,
                new_tokens=stop + (ended and row[stop] in ends),
            )
        )
    return found
