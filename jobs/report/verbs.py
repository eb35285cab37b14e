"""English verbs and their forms, from `verbs.txt`. There is no model, so results are estimates."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_WORD = re.compile(
    r"(?P<base>[a-z]+)(?P<marks>(?:-(?:s|ing|ed))*)"
    r"(?:=(?P<past>[a-z]+)(?:=(?P<participle>[a-z]+))?)?\Z"
)
_SYLLABLE = re.compile(r"[aeiouy]+")
_DOUBLING = re.compile(r"[^aeiou][aeiouy][bdglmnprt]\Z")
_MORE_DOUBLING = {
    "begin",
    "control",
    "equip",
    "occur",
    "quit",
    "quiz",
    "transfer",
    "unzip",
    "backflip",
    "unpin",
    "unwrap",
}


@dataclass(frozen=True)
class Form:
    """One form of a verb. `counts` says where it counts as a verb.

    free: anywhere but after a determiner · after_be: after a form of "be" · after_taker: after a
    word that takes a base form, such as "to" · before_object: before a word that seldom stands
    after a noun, such as "the" or "into".
    """

    form: str
    lemma: str
    counts: str


@functools.cache
def verb_forms() -> tuple[Form, ...]:
    """Every form of every verb in the list; the first verb in the list with a form gets it."""
    found: dict[str, Form] = {}
    text = Path(__file__).with_name("verbs.txt").read_text(encoding="utf-8")
    words = [
        word for line in text.splitlines() if not line.startswith("#") for word in line.split()
    ]
    forms = [form for word in words for form in _forms(word)]
    # A base form takes precedence: "saw" is to saw, and "found" is past of find.
    for form in sorted(forms, key=lambda form: form.counts == "after_taker"):
        found.setdefault(form.form, form)
    return tuple(found.values())


def count_verbs_listed() -> int:
    return len({form.lemma for form in verb_forms()})


def _forms(word: str) -> Iterator[Form]:
    match = _WORD.match(word)
    if match is None:
        raise ValueError(f"verbs.txt: {word!r} is not written as the file's head says")
    base = match["base"]
    marks = set(match["marks"].split("-")[1:])
    yield Form(base, base, "after_taker")
    yield Form(third_person(base), base, "before_object" if "s" in marks else "free")
    yield Form(ing_form(base), base, "after_be" if "ing" in marks else "free")
    past = match["past"] or past_form(base)
    for form in {past, match["participle"] or past} - {base}:
        yield Form(form, base, "after_be" if "ed" in marks else "free")


def third_person(base: str) -> str:
    if base.endswith(("s", "x", "z", "ch", "sh", "o")):
        return f"{base}es"
    if _ends_in_consonant_y(base):
        return f"{base[:-1]}ies"
    return f"{base}s"


def ing_form(base: str) -> str:
    if base.endswith("ie"):
        return f"{base[:-2]}ying"
    if base.endswith("e") and not base.endswith(("ee", "oe", "ye")):
        return f"{base[:-1]}ing"
    return f"{base}{_doubled(base)}ing"


def past_form(base: str) -> str:
    if base.endswith("e"):
        return f"{base}d"
    if _ends_in_consonant_y(base):
        return f"{base[:-1]}ied"
    return f"{base}{_doubled(base)}ed"


def _ends_in_consonant_y(base: str) -> bool:
    return base.endswith("y") and base[-2] not in "aeiou"


def _doubled(base: str) -> str:
    """The consonant that stop, run and begin double before an ending."""
    one_syllable = len(_SYLLABLE.findall(base)) == 1
    doubles = base in _MORE_DOUBLING or (one_syllable and _DOUBLING.search(f" {base}"))
    return base[-1] if doubles else ""
