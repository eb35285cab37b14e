"""Finds the JSON in a model's answer, whatever surrounds it, and as far as it goes."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from clipmill.schemas.errors import RowFailed
from clipmill.stages.models.generated_text import LONGEST_CHARACTERS, shortened, tidy
from clipmill.stages.models.outputs.markup import without_fences
from clipmill.stages.models.outputs.reasoning import without_reasoning

_DECODER = json.JSONDecoder(strict=False)
_PAIR = re.compile(r'[\s,]*("(?:[^"\\]|\\.)*")\s*:\s*', re.DOTALL)
_ITEM = re.compile(r"[\s,]*")
# More than a schema of the largest form has, which a model may repeat before it answers.
_MOST_STARTS = 400


def object_of(
    said: str, wanted: Collection[str], *, off: Collection[str] = ()
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The JSON object in an answer that has most of the wanted fields, and the rules that were
    needed to find it; RowFailed if there is none.

    Of an object that was cut off, or is broken, those fields are there that are whole. A field
    whose name differs only in case, spaces or punctuation has the wanted name.
    """
    text, rules = _without_reasoning(said, off)
    found = _object_in(without_fences(text), wanted)
    if not found:
        raise _without_object(text)
    return found, rules


def texts_of(
    said: str, name: str, *, off: Collection[str] = ()
) -> tuple[list[str], tuple[str, ...]]:
    """The texts in an answer's list of this name, or in its only list, and the rules that were
    needed to find it; RowFailed if it has no list.

    Of a list that was cut off, or is broken, those texts are there that are whole.
    """
    text, rules = _without_reasoning(said, off)
    plain = without_fences(text).lstrip()
    named = re.search(rf'"{re.escape(name)}"\s*:\s*\[', plain, re.IGNORECASE)
    if named is None and not plain.startswith("["):
        found = _object_in(plain, (name,))
        if not found:
            raise _without_object(text)
        if not isinstance(found.get(name), str):
            raise RowFailed("model", f"the answer has no list {name}")
        return [found[name]], rules
    items = _whole_items(plain, 1 if named is None else named.end())
    return [one for item in items if (one := _only_text(item)) is not None], rules


def _without_reasoning(said: str, off: Collection[str]) -> tuple[str, tuple[str, ...]]:
    """What a model said but its reasoning; RowFailed if that is nothing, or too long."""
    rules: tuple[str, ...] = ()
    text = said
    if "reasoning" not in off:
        answer = without_reasoning(said)
        if answer.unfinished:
            raise RowFailed("model", f"reasoning without an answer: {shortened(tidy(said))}")
        rules = ("reasoning",) if answer.reasoned else ()
        text = answer.text
    if len(text) > LONGEST_CHARACTERS:
        raise RowFailed(
            "model",
            f"the answer has {len(text):,} characters, more than {LONGEST_CHARACTERS:,}: "
            f"{shortened(tidy(text))}",
        )
    return text, rules


def _without_object(text: str) -> RowFailed:
    shown = shortened(tidy(text)) if tidy(text) else "it is empty"
    return RowFailed("model", f"the answer has no JSON object with fields: {shown}")


def _object_in(text: str, wanted: Collection[str]) -> dict[str, Any]:
    """The object with most of the wanted fields, the first of them; it may be inside another."""
    plain = {_plain(name): name for name in wanted}
    best: dict[str, Any] = {}
    most = -1
    starts = [match.start() for match in re.finditer(r"\{", text)][:_MOST_STARTS]
    for start in starts:
        try:
            found, _ = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            found = _whole_pairs(text, start + 1)
        own = {plain.get(_plain(key), key): value for key, value in found.items()} | {
            name: found[name] for name in wanted if name in found
        }
        # No field is an object: that would be a schema's description of it.
        fitting = sum(not isinstance(own.get(name, {}), dict) for name in wanted)
        if own and fitting > most:
            best, most = own, fitting
    return best


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "_", name.casefold()).strip("_")


def _whole_pairs(text: str, at: int) -> dict[str, Any]:
    """The fields of a broken object up to the first that can't be read."""
    found: dict[str, Any] = {}
    while pair := _PAIR.match(text, at):
        try:
            name = json.loads(pair.group(1), strict=False)
            found[name], at = _DECODER.raw_decode(text, pair.end())
        except (ValueError, RecursionError):
            break
    return found


def _whole_items(text: str, at: int) -> list[Any]:
    """The items of a list, which may be broken, up to the first that can't be read."""
    found: list[Any] = []
    while True:
        try:
            item, at = _DECODER.raw_decode(text, _next_item(text, at))
        except (ValueError, RecursionError):
            return found
        found.append(item)


def _next_item(text: str, at: int) -> int:
    space = _ITEM.match(text, at)
    return at if space is None else space.end()


def _only_text(item: Any) -> str | None:
    """A text, or that of an object with a single one; None if it is neither."""
    if isinstance(item, Mapping):
        texts = [value for value in item.values() if isinstance(value, str)]
        return texts[0] if len(texts) == 1 else None
    return item if isinstance(item, str) else None
