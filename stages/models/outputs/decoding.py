"""Decodes new tokens, but keeps the special tokens that mark reasoning, answers and places.

Without them, a model's reasoning and its answer are one text: Magistral's [THINK] and gpt-oss's
channels are special tokens, which decoding leaves out.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from typing import Any

from clipmill.stages.models.outputs.reasoning import OPENS_IN_PROMPT

MARKS = (
    *("<think>", "</think>", "[THINK]", "[/THINK]", "◁think▷", "◁/think▷"),
    *("<seed:think>", "</seed:think>", "<mm:think>", "</mm:think>", "<unused94>", "<unused95>"),
    *("<|inner_prefix|>", "<|inner_suffix|>", "<|channel>", "<channel|>"),
    *("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    *("<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|return|>"),
    *("<answer>", "</answer>", "<|begin_of_box|>", "<|end_of_box|>"),
    *("<ref>", "</ref>", "<box>", "</box>", "<quad>", "</quad>", "<|box_start|>", "<|box_end|>"),
    *("<|quad_start|>", "<|quad_end|>", "<|det|>", "<|/det|>"),
)
# Tokens of a prompt's end in which a mark is looked for; a mark may be several tokens.
_TAIL = 12


class Decoder:
    """Turns rows of tokens into texts, by the tokenizer that it was made for or a copy of it."""

    def __init__(self, tokenizer: Any) -> None:
        self._marks = _special_marks(tokenizer)

    def texts(self, tokenizer: Any, rows: Any, prompts: Any = None) -> list[str]:
        """One text per row of new tokens; both are tensors.

        Where the template opens the reasoning at the end of its prompt, only the end of it is
        generated, or not even that: then its mark comes before each text.
        """
        opening = ""
        if prompts is not None:
            found = OPENS_IN_PROMPT.search(tokenizer.decode(prompts[0].tolist()[-_TAIL:]))
            opening = found.group() if found else ""
        return [opening + self._text(tokenizer, row) for row in rows.tolist()]

    def _text(self, tokenizer: Any, tokens: Sequence[int]) -> str:
        if self._marks.keys().isdisjoint(tokens):
            return str(tokenizer.decode(tokens, skip_special_tokens=True))
        parts = []
        for is_mark, run in groupby(tokens, self._marks.__contains__):
            piece = list(run)
            parts.append(
                "".join(self._marks[token] for token in piece)
                if is_mark
                else str(tokenizer.decode(piece, skip_special_tokens=True))
            )
        return "".join(parts)


def _special_marks(tokenizer: Any) -> dict[int, str]:
    added = tokenizer.added_tokens_decoder
    return {
        number: str(token.content)
        for number, token in added.items()
        if token.special and token.content in MARKS
    }
