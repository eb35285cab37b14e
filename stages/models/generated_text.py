"""What a generated text must be to stand in the dataset: tidy, not empty, not going in circles."""

from __future__ import annotations

import re

_THINKING = re.compile(r"<(think|thinking|reasoning)>.*?</\1>|◁think▷.*?◁/think▷", re.DOTALL)
# Some chat templates open the block in the prompt, so that only its end is generated.
_THINKING_TAIL = re.compile(r"^.*?(</(think|thinking|reasoning)>|◁/think▷)", re.DOTALL)
_THINKING_HEAD = re.compile(r"(<(think|thinking|reasoning)>|◁think▷).*$", re.DOTALL)
# For scripts written without spaces: a piece said five times in a row or more.
_CHARACTERS_REPEAT = re.compile(r"(\w.{0,59}?)\1{4,}", re.DOTALL)
_REPEATED_CHARACTERS = 24


def tidy(text: str) -> str:
    """Without thinking blocks (also one that never ended), white space collapsed."""
    text = _THINKING.sub(" ", text)
    text = _THINKING_TAIL.sub(" ", text)
    text = _THINKING_HEAD.sub(" ", text)
    return " ".join(text.split())


def fault_of(text: str) -> str | None:
    """Why a tidied text cannot be used, or None where it can."""
    if not text:
        return "the text is empty"
    if not any(character.isalnum() for character in text):
        return f"the text has no word in it: {shortened(text)}"
    if repeated := _repetition(text):
        return f"the text repeats {shortened(repeated, 40)}: {shortened(text)}"
    return None


def shortened(text: str, most: int = 120) -> str:
    """The text as a quotation of at most `most` characters."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")


def _repetition(text: str) -> str | None:
    """The piece that a text says over and over.

    A word may come three times in a row in good prose ("very, very, very"), six words may not come
    twice.
    """
    words = [word.strip(".,;:!?\"'()").casefold() for word in text.split()]
    for length in range(1, len(words) // 2 + 1):
        allowed = 3 if length < 3 else 2 if length < 6 else 1
        run = 0
        for i in range(length, len(words)):
            run = run + 1 if words[i] == words[i - length] else 0
            if run >= allowed * length:
                return " ".join(words[i - length + 1: i + 1])
    for match in _CHARACTERS_REPEAT.finditer(text):
        if len(match.group()) >= _REPEATED_CHARACTERS:
            return match.group(1)
    return None
