"""Splits a caption into sentences by a few rules, for captions in English and similar scripts.

A sentence ends at `.`, `!`, `?` or `…` before white space, at a full-width end mark (。！？), and
at the end of a line. A period doesn't end it after a title, an initial or another abbreviation
that stands before something (Dr., e.g., J.), and after those that may also stand last (etc., p.m.)
only if a capital letter follows. After an ellipsis, a small letter continues the sentence.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_BREAK = re.compile(r"""(?:[.!?…]+["'”’)\]]*(?=\s)|[。！？]+[」』”’）]*)\s*""")
_LIST_MARK = re.compile(r"\s*(?:[-*•–]|\d{1,2}[.)])\s+")
_NEVER_LAST = re.compile(
    r"(mrs?|ms|dr|prof|st|mt|gen|col|capt|lt|sgt|rev|hon|sen|rep|vs|e\.g|i\.e|cf|nos?|figs?|vol|pp"
    r"|approx|ca|est|min|max|[a-z])\."
)
_SOMETIMES_LAST = re.compile(
    r"(etc|a\.m|p\.m|u\.s|u\.k|u\.s\.a|jr|sr|inc|ltd|co|corp|ave|blvd|rd|ft|in|lbs?|oz|sec|jan|feb"
    r"|mar|apr|jun|jul|aug|sept?|oct|nov|dec)\."
)


def sentences(text: str) -> list[str]:
    """The sentences of a text in order, without white space around them; empty if it has none."""
    found = []
    for line in text.splitlines():
        marked = _LIST_MARK.match(line)
        found += [part.strip() for part in _split(line[marked.end() :] if marked else line)]
    return [part for part in found if re.search(r"\w", part)]


def _split(line: str) -> Iterator[str]:
    start = 0
    for found in _BREAK.finditer(line):
        if _ends(line[start : found.end()].rstrip(), line[found.end() :]):
            yield line[start : found.end()]
            start = found.end()
    yield line[start:]


def _ends(before: str, after: str) -> bool:
    """Whether a sentence ends between the two."""
    small = after[:1].islower()
    if before.endswith(("..", "…")):
        return not small
    if not before.endswith("."):
        return True
    word = before.split()[-1].lstrip("\"'“‘([").lower()
    if _NEVER_LAST.fullmatch(word):
        return False
    return not (small and _SOMETIMES_LAST.fullmatch(word))
