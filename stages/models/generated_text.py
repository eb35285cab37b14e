"""Cleans generated texts, and rejects empty and repetitive ones."""

from __future__ import annotations

import re

import numpy as np

# Far beyond any caption: a server may return a book, whatever length was requested.
LONGEST_CHARACTERS = 20_000
# For scripts written without spaces: a piece repeated five times in a row or more.
_CHARACTERS_REPEAT = re.compile(r"(\w.{0,59}?)\1{4,}", re.DOTALL)
_REPEATED_CHARACTERS = 24
# Syllables of songs, laughter and noises, which are repeated for good reason, up to this often.
_SYLLABLES = """
la na da ha he ho hee hey hi oh ooh ah aah ay uh mm hmm yeah no go doo dum di ba bah boo blah fa ra
sha tra yay bye beep tick tock woof meow moo quack knock tap clap bang boom ding dong
"""
_SUNG = frozenset(_SYLLABLES.split())
_SUNG_WORDS = 16
# Invisible characters: control characters, which could control a terminal, marks that change the
# text's direction, and the byte order mark.
_UNSEEN = re.compile(
    "[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff]"
)
_NO_CHARACTER = re.compile("[\ud800-\udfff\ufffd]")


def tidy(text: str) -> str:
    """Removes invisible characters and collapses spaces.

    A truncated last character is dropped: the last token of a text may be only part of one.
    """
    text = _UNSEEN.sub("", text).rstrip("\ufffd")
    return " ".join(text.split())


def fault_of(text: str) -> str | None:
    """Why a cleaned text cannot be used; None if it can."""
    if not text:
        return "the text is empty"
    if len(text) > LONGEST_CHARACTERS:
        return (
            f"the text has {len(text):,} characters, more than {LONGEST_CHARACTERS:,}: "
            f"{shortened(text)}"
        )
    if _NO_CHARACTER.search(text):
        return f"the text contains bytes that are not characters: {shortened(text)}"
    if not any(character.isalnum() for character in text):
        return f"the text contains no word: {shortened(text)}"
    if repeated := _repetition(text):
        return f"the text repeats {shortened(repeated, 40)}: {shortened(text)}"
    return None


def shortened(text: str, most: int = 120) -> str:
    """The text as a quotation of at most `most` characters."""
    return repr(text if len(text) <= most else text[: most - 1] + "…")


def _repetition(text: str) -> str | None:
    """The piece that a text repeats over and over.

    A word may be repeated three times in good prose ("very, very, very"), six words not even
    twice. Syllables that are sung, laughed or barked may be repeated more often.
    """
    words = [word.strip(".,;:!?\"'()").casefold() for word in text.split()]
    numbers = np.array([*map({word: i for i, word in enumerate(words)}.get, words)])
    for length in range(1, len(words) // 2 + 1):
        allowed = 3 if length < 3 else 2 if length < 6 else 1
        # Places where a word differs from the one `length` words earlier; between two such places,
        # all are equal.
        differs = np.flatnonzero(numbers[length:] != numbers[:-length])
        ends = np.concatenate([[-1], differs, [len(words) - length]])
        runs = np.diff(ends) - 1
        for found in np.flatnonzero(runs >= allowed * length):
            last = int(ends[found]) + allowed * length + length
            piece = words[last - length + 1 : last + 1]
            if runs[found] + length > _SUNG_WORDS or not _SUNG.issuperset(piece):
                return " ".join(piece)
    for match in _CHARACTERS_REPEAT.finditer(text):
        if len(match.group()) >= _REPEATED_CHARACTERS and not _is_sung(match.group()):
            return match.group(1)
    return None


def _is_sung(text: str) -> bool:
    words = [word.strip(".,;:!?\"'()").casefold() for word in text.split()]
    # The first and the last may be parts of words.
    return 2 < len(words) <= _SUNG_WORDS and _SUNG.issuperset(words[1:-1])
