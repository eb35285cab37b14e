"""What is said in a video: windows of sound, lines and words with times, invented repetition."""

from __future__ import annotations

import re
import unicodedata
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

import numpy as np

from clipmill.stages.media.read.samples import RATE

# A longer pause begins a new window: silence makes models invent words.
_LONGEST_PAUSE_SECONDS = 3.0
# Speech is read a little earlier and longer than it was found.
_MARGIN_SECONDS = 0.1
# A window that is cut ends at its quietest moment of this last part.
_CUT_WITHIN = 1 / 3
_QUIET_SECONDS = 0.1
# A pause of this length, or the end of a sentence, ends a line.
_LINE_PAUSE_SECONDS = 1.0
_SENTENCE_END = re.compile(r"[.!?…。！？।؟]['\"”’»)\]]*\s*$")
# Whisper's own: text that compresses better than this repeats itself.
_COMPRESSION = 2.4
_LEAST_REPEATS, _LONGEST_PHRASE = 4, 12
_REPEATED_LINES = 3

Span = tuple[float, float]


@dataclass(frozen=True)
class Word:
    """A word with the white space before it, and when it is said."""

    start_seconds: float
    end_seconds: float
    text: str


@dataclass(frozen=True)
class Line:
    """A sentence, or what a model takes for one. `repeats` marks invented repetition."""

    start_seconds: float
    end_seconds: float
    text: str
    words: tuple[Word, ...]
    no_speech_probability: float | None = None
    repeats: bool = False

    def later(self, seconds: float) -> Line:
        """The same with times that count from another zero, this much earlier."""
        return replace(
            self,
            start_seconds=self.start_seconds + seconds,
            end_seconds=self.end_seconds + seconds,
            words=tuple(
                Word(word.start_seconds + seconds, word.end_seconds + seconds, word.text)
                for word in self.words
            ),
        )


@dataclass(frozen=True)
class Window:
    """Sound that a model hears at once: samples, and when they begin in the video."""

    start_seconds: float
    samples: np.ndarray

    @property
    def seconds(self) -> float:
        return len(self.samples) / RATE


@dataclass(frozen=True)
class Transcript:
    """What is said in a video; the language's probability is None where no model tells it."""

    lines: tuple[Line, ...]
    language: str | None = None
    language_probability: float | None = None


def parts_to_read(speech: Iterable[Span]) -> list[Span]:
    """Spans of speech with a margin, joined over short pauses."""
    found: list[Span] = []
    for span in speech:
        start, end = span[0] - _MARGIN_SECONDS, span[1] + _MARGIN_SECONDS
        if found and start - found[-1][1] <= _LONGEST_PAUSE_SECONDS:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def windows(start_seconds: float, samples: np.ndarray, longest_seconds: float) -> Iterator[Window]:
    """Uninterrupted sound in windows that a model can hear, cut where it is quietest; none for what
    is too short for a word."""
    if len(samples) < _QUIET_SECONDS * RATE:
        return
    longest = round(longest_seconds * RATE)
    at = 0
    while len(samples) - at > longest:
        first = at + round(longest * (1 - _CUT_WITHIN))
        cut = first + _quietest(samples[first : at + longest])
        yield Window(start_seconds + at / RATE, samples[at:cut])
        at = cut
    yield Window(start_seconds + at / RATE, samples[at:])


def _quietest(samples: np.ndarray) -> int:
    """The middle of the quietest moment."""
    size = round(_QUIET_SECONDS * RATE)
    blocks = samples[: len(samples) // size * size].reshape(-1, size).astype(np.float32)
    return int((blocks**2).mean(axis=1).argmin()) * size + size // 2


def words_of_tokens(
    tokens: Sequence[int],
    ends: Sequence[float],
    decode: Callable[[Sequence[int]], str],
    *,
    spaced: bool,
) -> list[Word]:
    """Words from tokens, of which each ends at a time, and begins where the one before ends.

    Tokens may be parts of characters. Where a language has no spaces between words, each whole
    group of characters is one.
    """
    found: list[Word] = []
    held: list[int] = []
    begins = 0.0
    for number, token in enumerate(tokens):
        held.append(token)
        text = decode(held)
        is_last = number + 1 == len(tokens)
        if "\ufffd" in text and not is_last:
            continue
        starts_word = not found or (text[:1].isspace() or not spaced)
        if not starts_word or _is_mark(text):
            before = found.pop() if found else Word(begins, begins, "")
            found.append(Word(before.start_seconds, ends[number], before.text + text))
        else:
            found.append(Word(begins, ends[number], text))
        held = []
        begins = ends[number]
    return [word for word in found if word.text.strip()]


def _is_mark(text: str) -> bool:
    """Whether it is only punctuation that belongs to the word before."""
    bare = text.strip()
    return bool(bare) and all(unicodedata.category(one) in ("Po", "Pe", "Pf") for one in bare)


def spread(text: str, start_seconds: float, end_seconds: float) -> list[Word]:
    """Words whose times aren't known, evenly by their length."""
    parts = re.findall(r"\s*\S+", text)
    if len(parts) == 1 and not text.isascii():
        parts = list(text)
    length = sum(map(len, parts)) or 1
    found, at = [], 0
    for part in parts:
        first, last = (
            start_seconds + (end_seconds - start_seconds) * place / length
            for place in (at, at + len(part))
        )
        found.append(Word(first, last, part))
        at += len(part)
    return found


def lines_of_words(words: Sequence[Word], no_speech_probability: float | None) -> list[Line]:
    """Lines that end with a sentence or at a pause."""
    lines: list[list[Word]] = []
    for word in words:
        before = lines[-1][-1] if lines else None
        if (
            before is None
            or _SENTENCE_END.search(before.text)
            or word.start_seconds - before.end_seconds > _LINE_PAUSE_SECONDS
        ):
            lines.append([])
        lines[-1].append(word)
    return [line_of(one, no_speech_probability) for one in lines]


def line_of(words: Sequence[Word], no_speech_probability: float | None) -> Line:
    text = "".join(word.text for word in words).strip()
    return Line(
        words[0].start_seconds, words[-1].end_seconds, text, tuple(words), no_speech_probability
    )


def with_repeats(lines: Sequence[Line], windows_of: Sequence[int]) -> list[Line]:
    """The lines, with those marked in which a model repeats itself.

    `windows_of` says which window each is from: a model that loops does so within one, or says the
    same in several in a row.
    """
    looping = {
        window for window in set(windows_of) if repeats(" ".join(_said(lines, windows_of, window)))
    }
    in_a_row: list[int] = []
    for text, run in groupby(_plain(line.text) for line in lines):
        count = len(list(run))
        in_a_row += [count if text else 0] * count
    return [
        replace(line, repeats=window in looping or count >= _REPEATED_LINES)
        for line, window, count in zip(lines, windows_of, in_a_row, strict=True)
    ]


def _said(lines: Sequence[Line], windows_of: Sequence[int], window: int) -> Iterator[str]:
    for line, own in zip(lines, windows_of, strict=True):
        if own == window:
            yield line.text


def repeats(text: str) -> bool:
    """Whether a text repeats itself more than people do.

    By Whisper's own rule, or since a phrase comes again at once, several times, and is most of it.
    """
    data = text.encode()
    if data and len(data) / len(zlib.compress(data)) > _COMPRESSION:
        return True
    words = _plain(text).split()
    for size in range(1, min(_LONGEST_PHRASE, len(words) // _LEAST_REPEATS) + 1):
        same = 0
        for at in range(len(words) - size):
            same = same + 1 if words[at] == words[at + size] else 0
            if same >= size * (_LEAST_REPEATS - 1) and 2 * (same + size) >= len(words):
                return True
    return False


def _plain(text: str) -> str:
    return " ".join(re.findall(r"\w+", text.casefold()))
