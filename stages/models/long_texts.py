"""Texts that are longer than a scorer reads, and scores of single sentences."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.stages.models.sentences import sentences
from clipmill.stages.protocol import Stage

LongText = Literal["truncate", "mean", "best"]

SENTENCE_SCORE = pa.struct([("text", pa.string()), ("score", pa.float32())])


def text_columns(score: str) -> list[tuple[str, pa.DataType]]:
    """The columns about the text of a score: its length, whether it was cut, its sentences."""
    return [
        (f"{score}_text_tokens", pa.int32()),
        (f"{score}_truncated", pa.bool_()),
        (f"{score}_sentences", pa.list_(SENTENCE_SCORE)),
    ]


class TextReader(Protocol):
    """A model with a text tower that reads `context` tokens of a text."""

    @property
    def context(self) -> int: ...

    def token_counts(self, texts: Sequence[str]) -> list[int]: ...


class TextScorer(Stage):
    """Settings of a stage that scores texts with a model that reads only so much of them."""

    long_text: LongText = Field(
        "truncate",
        description="what is scored of a text with more tokens than the model reads: its beginning "
        "(truncate), or its sentences, of whose scores the mean or the best is taken",
    )
    sentence_scores: bool = Field(
        False, description="also store the score of each sentence of the caption"
    )


@dataclass(frozen=True)
class DividedText:
    """What is scored of one text."""

    tokens: int
    truncated: bool
    """Whether the model doesn't see all of it, or of one of its parts."""
    parts: tuple[str, ...]
    """The text itself, or its sentences, whose scores become its score."""
    sentences: tuple[str, ...]
    """Sentences whose scores are stored."""

    @property
    def scored(self) -> list[str]:
        """All texts that need a score, each once."""
        return list(dict.fromkeys((*self.parts, *self.sentences)))

    def score(self, scores: Mapping[str, float], how: LongText) -> float:
        """The text's own score, from those of `scored`; NaN if one of its parts has none."""
        found = np.array([scores[part] for part in self.parts])
        return float(found.max() if how == "best" else found.mean())

    def columns(self, name: str, scores: Mapping[str, float]) -> dict[str, Any]:
        """The values of `text_columns`."""
        by_sentence = [
            {"text": text, "score": score if np.isfinite(score) else None}
            for text in self.sentences
            for score in [scores[text]]
        ]
        return {
            f"{name}_text_tokens": self.tokens,
            f"{name}_truncated": self.truncated,
            f"{name}_sentences": by_sentence or None,
        }


def divided(
    texts: Iterable[str], model: TextReader, how: LongText, *, sentence_scores: bool = False
) -> dict[str, DividedText]:
    """How each distinct text is scored."""
    distinct = list(dict.fromkeys(texts))
    counts = dict(zip(distinct, model.token_counts(distinct), strict=True))
    pieces = {
        text: sentences(text) or [text]
        for text in distinct
        if sentence_scores or (how != "truncate" and counts[text] > model.context)
    }
    others = [part for own in pieces.values() for part in own if part not in counts]
    others = list(dict.fromkeys(others))
    counts.update(zip(others, model.token_counts(others), strict=True))
    found = {}
    for text in distinct:
        long = how != "truncate" and counts[text] > model.context
        parts = tuple(pieces[text]) if long else (text,)
        found[text] = DividedText(
            counts[text],
            any(counts[part] > model.context for part in parts),
            parts,
            tuple(pieces[text]) if sentence_scores else (),
        )
    return found
