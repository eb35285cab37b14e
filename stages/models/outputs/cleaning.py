"""Makes a caption of what a model said, or says why it is none; names the rules that did it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from clipmill.stages.models.generated_text import LONGEST_CHARACTERS, fault_of, shortened, tidy
from clipmill.stages.models.outputs.answers import answer_in
from clipmill.stages.models.outputs.control_tokens import (
    without_places,
    without_tokens,
    without_turns,
)
from clipmill.stages.models.outputs.markup import (
    caption_in,
    is_json,
    without_fences,
    without_markdown,
)
from clipmill.stages.models.outputs.reasoning import is_unmarked_reasoning, without_reasoning
from clipmill.stages.models.outputs.wording import (
    is_refusal,
    without_closing,
    without_echo,
    without_preamble,
)

TextRule = Literal[
    "reasoning",
    "answer",
    "chat",
    "control_tokens",
    "places",
    "echo",
    "json",
    "markdown",
    "preamble",
    "closing",
    "refusal",
]
TEXT_RULES: tuple[TextRule, ...] = get_args(TextRule)
CUT_TO_SENTENCES = "cut_to_sentences"
"""Recorded like a rule where a text that was cut off was shortened to its whole sentences."""

_SENTENCE_END = re.compile(r"[.!?]+[\"'”’)\]]*(?=\s|\Z)|[。！？]+[”’」』）]*")
_ABBREVIATION = re.compile(
    r"(?:^|[\s(])(?:mr|mrs|ms|dr|prof|st|no|vs|etc|approx|inc|jr|sr|fig|e\.g|i\.e|[a-z])\Z", re.I
)


@dataclass(frozen=True)
class Cleaned:
    """A caption, the rules that changed it, and why it can't be used (None if it can)."""

    text: str
    rules: tuple[str, ...] = ()
    fault: str | None = None


def cleaned(said: str, *, asked: Sequence[str] = (), off: Collection[str] = ()) -> Cleaned:
    """The caption in what a model said when it was `asked` this (a prompt, its request).

    Rules in `off` are left out.
    """
    rules: list[str] = []

    def applied(rule: TextRule, change: Callable[[str], str], text: str) -> str:
        if rule in off:
            return text
        changed = change(text)
        if changed != text and tidy(changed) != tidy(text):
            rules.append(rule)
        return changed

    def failed(fault: str, text: str) -> Cleaned:
        return Cleaned(tidy(text[:LONGEST_CHARACTERS]), tuple(rules), fault)

    text = said
    if "reasoning" not in off:
        answer = without_reasoning(text)
        if answer.unfinished:
            return failed(f"reasoning without an answer: {shortened(tidy(said))}", said)
        if answer.reasoned:
            rules.append("reasoning")
        text = answer.text
    if len(text) > LONGEST_CHARACTERS:
        return Cleaned(tidy(text), tuple(rules), fault_of(tidy(text)))
    text = applied("answer", lambda text: _or_same(answer_in(text), text), text)
    text = applied("places", without_places, text)
    text = applied("chat", without_turns, text)
    text = applied("control_tokens", without_tokens, text)
    if "reasoning" not in off and is_unmarked_reasoning(text):
        return failed(f"reasoning without an answer: {shortened(tidy(text))}", text)
    for request in asked:
        before = text
        text = applied("echo", partial(without_echo, asked=request), text)
        if not text.strip() and before.strip():
            return failed(f"the text only repeats the prompt: {shortened(tidy(before))}", before)
    text = applied("preamble", without_preamble, text)
    if "json" not in off:
        block = without_fences(text)
        if is_json(block):
            found = caption_in(block)
            if found is None:
                return failed(f"the text is JSON, not a caption: {shortened(tidy(text))}", text)
            rules.append("json")
            text = found
    text = applied("markdown", lambda text: without_markdown(without_fences(text)), text)
    text = applied("preamble", without_preamble, text)
    if "refusal" not in off and is_refusal(text):
        return failed(f"the model refuses: {shortened(tidy(text))}", text)
    text = applied("closing", without_closing, text)
    text = tidy(text)
    return Cleaned(text, tuple(dict.fromkeys(rules)), fault_of(text))


def _or_same(found: str | None, text: str) -> str:
    return text if found is None else found


def whole_sentences(text: str) -> str:
    """The sentences of a text that was cut off, without the unfinished last one; may be empty."""
    end = 0
    for mark in _SENTENCE_END.finditer(text):
        if not (mark.group() == "." and _ABBREVIATION.search(text[: mark.start()])):
            end = mark.end()
    return text[:end].strip()
