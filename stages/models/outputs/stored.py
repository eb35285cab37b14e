"""What is stored of a model's answer: a caption, how it ended, its tokens, and what cleaned it."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from clipmill.schemas.errors import RowFailed
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.generated_text import fault_of, shortened, tidy
from clipmill.stages.models.outputs.cleaning import CUT_TO_SENTENCES, cleaned, whole_sentences

WhenCutOff = Literal["fail", "keep", "sentence"]
# How a text ended, in the words of OpenAI's protocol.
STOP = "stop"
LENGTH = "length"


@dataclass(frozen=True)
class StoredText:
    """A usable caption, and the values of the columns beside it."""

    text: str
    finish_reason: str
    prompt_tokens: int | None
    new_tokens: int | None
    cleaned_by: tuple[str, ...]


def stored_text(
    answer: Completion | RowFailed,
    *,
    when_cut_off: WhenCutOff,
    limit: int,
    setting: str,
    asked: Sequence[str] = (),
    off: Collection[str] = (),
) -> StoredText:
    """The caption in an answer; RowFailed if there is none.

    `limit` is the token limit and `setting` its name, `asked` the prompt and the request
    in it, and `off` the rules that
    are left out.
    """
    if isinstance(answer, RowFailed):
        raise answer
    found = cleaned(answer.text, asked=asked, off=off)
    cut_off = f"cut off at {limit} tokens ({setting})"
    if found.fault:
        said = "" if found.text else f" (the model said {shortened(tidy(answer.text))})"
        said = said if tidy(answer.text) else ""
        end = "" if answer.complete else f"; it was {cut_off}"
        raise RowFailed("model", f"{found.fault}{said}{end}")
    stored = StoredText(
        found.text,
        STOP if answer.complete else LENGTH,
        answer.prompt_tokens,
        answer.new_tokens,
        found.rules,
    )
    if answer.complete or when_cut_off == "keep":
        return stored
    if when_cut_off == "fail":
        raise RowFailed("model", f"the text was {cut_off}: {shortened(found.text)}")
    whole = whole_sentences(found.text)
    if not whole or fault_of(whole):
        raise RowFailed(
            "model",
            f"the text was {cut_off} before its first sentence ended: {shortened(found.text)}",
        )
    if whole == found.text:
        return stored
    return replace(stored, text=whole, cleaned_by=(*found.rules, CUT_TO_SENTENCES))
