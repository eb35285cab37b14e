"""Detects the language of a text, by py3langid's model."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from lzma import LZMAError
from pathlib import Path
from typing import Any

from pydantic import Field

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.extras import extras_explained
from clipmill.schemas.words import did_you_mean
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.protocol import ModelCheck, Stage
from clipmill.stages.references import DataFile

WEIGHTS = DataFile.model_validate(
    "package:py3langid/data/model.npz.xz"
    "#sha256=f4f4a2c3465ca1f081541037f9cac23021d68151c2f709c55ae5eedfca522963"
)

# Nothing of a language: web and e-mail addresses, mentions, hashtags.
_ADDRESSES = re.compile(r"(?:https?://|www\.)\S+|\S+@\S+\.\w+|(?<!\w)[@#]\w+")
# A syllable or a word each.
_SYLLABLES = re.compile(
    "[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]"
)
_LETTERS_A_SYLLABLE = 2
_LONGEST = 4000
"""Characters of a text that are looked at."""
NO_LANGUAGE = "zxx"
# Varieties that count as the language that platforms name (ISO 639-3's macrolanguages).
_WIDER = {
    "ary": "ar",
    "arz": "ar",
    "fuv": "ff",
    "gug": "gn",
    "kik": "ki",
    "ltg": "lv",
    "nn": "no",
    "sdh": "ku",
    "uzs": "uz",
    "wuu": "zh",
    "yue": "zh",
}
_CACHED = 4096
_NEGLIGIBLE = 0.001


@dataclass(frozen=True)
class Detected:
    """A language with its probability, or why there is none; what is unsure has both."""

    language: str | None
    confidence: float | None = None
    reason: str | None = None


@functools.lru_cache(1)
def _loaded(path: str) -> Any:
    """The model, for all detectors of a process: unpacking it takes a second."""
    with extras_explained("signals"):
        from py3langid.langid import LanguageIdentifier

    try:
        return LanguageIdentifier.from_modelpath(path, norm_probs=True)
    except (OSError, ValueError, KeyError, TypeError, EOFError, LZMAError) as error:
        raise ClipmillError(f"{path} is not a model of py3langid: {error}") from error


class LanguageDetector:
    """Says which language a text is in; only those of `languages` are considered, if given."""

    def __init__(
        self,
        weights: Path,
        *,
        languages: Sequence[str] = (),
        min_letters: int,
        min_confidence: float,
        setting: str = "languages",
    ) -> None:
        self._model = copy.copy(_loaded(str(weights)))
        self._wanted = frozenset(languages)
        self._min_letters, self._min_confidence = min_letters, min_confidence
        if languages:
            self._model.set_languages(self._labels(languages, setting))
        self.detect = functools.lru_cache(_CACHED)(self._detect)

    def _labels(self, languages: Sequence[str], setting: str) -> list[str]:
        """The model's labels for some languages; UsageError for one that it doesn't know."""
        known = [label for label in self._model.labels if label != NO_LANGUAGE]
        names = {*known, *_WIDER.values()}
        for language in languages:
            if language not in names:
                raise UsageError(
                    f"{setting}: the model knows no language {language!r}; "
                    f"{did_you_mean(language, sorted(names))}it knows {', '.join(sorted(names))}"
                )
        return [label for label in known if self._name(label) in self._wanted]

    def _name(self, label: str) -> str:
        return label if label in self._wanted else _WIDER.get(label, label)

    def _detect(self, text: str) -> Detected:
        text = plain_text(text)
        if not text:
            return Detected(None, None, "no text")
        if (letters := count_letters(text)) < self._min_letters:
            return Detected(None, None, f"too short: {letters} letters")
        found: dict[str, float] = {}
        for label, probability in self._model.rank(text):  # the likeliest first
            if probability < _NEGLIGIBLE and found:
                break
            name = self._name(label)
            found[name] = found.get(name, 0.0) + probability
        (best, sure), *others = sorted(found.items(), key=lambda one: -one[1])
        if best == NO_LANGUAGE:
            return Detected(None, sure, "no language: numbers, names or markup")
        if sure < self._min_confidence:
            second = f", {others[0][0]} {others[0][1]:.2f}" if others else ""
            return Detected(None, sure, f"unsure: {best} {sure:.2f}{second}")
        return Detected(best, min(sure, 1.0))


def plain_text(text: str | None) -> str:
    """The part of a text that may be in a language."""
    return " ".join(_ADDRESSES.sub(" ", (text or "")[:_LONGEST]).split())


def count_letters(text: str) -> int:
    """Letters; those of scripts with a character per syllable count as two."""
    letters = sum(map(str.isalpha, text))
    return letters + (_LETTERS_A_SYLLABLE - 1) * len(_SYLLABLES.findall(text))


class LanguageStage(Stage):
    """Settings of a stage that detects languages."""

    model: DataFile = Field(WEIGHTS, description="py3langid's model: a file model.npz.xz")
    languages: tuple[str, ...] = Field(
        (), description="languages to choose from, such as [en, de]; all if empty"
    )
    min_letters: int = Field(
        6,
        ge=1,
        description="a text of fewer letters is too short; Chinese, Japanese and Korean characters "
        "count as two",
    )
    min_confidence: float = Field(
        0.4, ge=0, le=1, description="probability from which the likeliest language counts"
    )

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        def run() -> str:
            if self.languages:
                self.detector(label)
            else:
                local_file(self.model, setting=f"{label}.model")
            return "py3langid's model"

        yield ModelCheck("model", run, self.languages, ("py3langid",))

    def detector(self, label: str) -> LanguageDetector:
        """Loads the model; `label` is the stage's own, for errors."""
        return LanguageDetector(
            local_file(self.model, setting=f"{label}.model"),
            languages=self.languages,
            min_letters=self.min_letters,
            min_confidence=self.min_confidence,
            setting=f"{label}.languages",
        )
