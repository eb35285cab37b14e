"""Servers that transcribe sound by OpenAI's protocol (speaches, vLLM, whisper.cpp, …).

Each window goes out as a WAV file; what comes back is JSON with segments and words.
"""

from __future__ import annotations

import io
import json
import math
import re
import wave
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.read.samples import RATE
from clipmill.stages.models.engines.chat_protocol import NotUnderstood
from clipmill.stages.models.engines.server_client import ServerClient
from clipmill.stages.models.transcripts import Line, Word, line_of, lines_of_words, spread
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.transcribing import TranscribingStage

# Marks after a word, then white space and marks before the next one.
_BETWEEN = re.compile(r"([^\s\w]*)(\s*[^\s\w]*)")
_BOUNDARY = "clipmill-3d7f0a5e9c1b4826"
# How servers name languages where they don't give codes: OpenAI's own does.
_CODES = {
    "arabic": "ar",
    "chinese": "zh",
    "czech": "cs",
    "danish": "da",
    "dutch": "nl",
    "english": "en",
    "finnish": "fi",
    "french": "fr",
    "german": "de",
    "greek": "el",
    "hebrew": "he",
    "hindi": "hi",
    "hungarian": "hu",
    "indonesian": "id",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "norwegian": "no",
    "persian": "fa",
    "polish": "pl",
    "portuguese": "pt",
    "romanian": "ro",
    "russian": "ru",
    "spanish": "es",
    "swedish": "sv",
    "thai": "th",
    "turkish": "tr",
    "ukrainian": "uk",
    "vietnamese": "vi",
}


@dataclass(frozen=True)
class Asked:
    """A window's samples, and the language spoken in it if that is known."""

    samples: np.ndarray
    language: str | None


@dataclass(frozen=True)
class Answered:
    """Lines with times from the window's start, and the language that the server heard."""

    lines: tuple[Line, ...]
    language: str | None


class TranscriptionServers(ServerClient[Asked, Answered]):
    """Transcriptions; times of words are asked for, if the server takes that."""

    refused_part = (
        "the server takes no timestamp_granularities ({}); words are spread over its segments"
    )

    @property
    def more_headers(self) -> dict[str, str]:
        return {"Content-Type": f"multipart/form-data; boundary={_BOUNDARY}"}

    def has_more(self, request: Asked) -> bool:
        return True

    def message(
        self, request: Asked, model: str, options: Mapping[str, Any], *, in_full: bool
    ) -> tuple[str, bytes]:
        fields: dict[str, Any] = {
            "model": model,
            "response_format": "verbose_json",
            "temperature": 0,
            "language": request.language,
            "timestamp_granularities[]": ["word", "segment"] if in_full else None,
            **options,
        }
        parts = [
            _part(name, one)
            for name, value in fields.items()
            if value is not None
            for one in (value if isinstance(value, list | tuple) else [value])
        ]
        sound = (
            f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="file"; '
            'filename="sound.wav"\r\nContent-Type: audio/wav\r\n\r\n'
        )
        end = f"\r\n--{_BOUNDARY}--\r\n"
        body = b"".join([*parts, sound.encode(), wav(request.samples), end.encode()])
        return "audio/transcriptions", body

    def understood(self, url: str, content: bytes) -> tuple[Answered, str]:
        try:
            answer = json.loads(content)
            lines = _lines(answer)
            language = answer.get("language")
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            said = content[:200].decode("utf-8", "replace")
            raise NotUnderstood(
                f"{url} answered with something that is not a transcription: {said!r}"
            ) from error
        if not isinstance(language, str | None):
            raise RowFailed("model", f"{url} answered with a language that is not text")
        name = (language or "").strip().lower()
        return Answered(tuple(lines), _CODES.get(name, name) or None), ""


def transcription_servers(
    reference: ModelReference, stage: TranscribingStage, setting: str
) -> TranscriptionServers:
    """The client for a reference to servers; errors name `setting`."""
    return TranscriptionServers(
        reference, setting=setting, concurrency=stage.requests_at_once, **stage.client_settings
    )


def _part(name: str, value: Any) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n'
    return f"{head}{text}\r\n".encode()


def wav(samples: np.ndarray) -> bytes:
    """One channel of 16-bit samples."""
    data = np.clip(np.round(samples * 32767), -32768, 32767).astype("<i2").tobytes()
    file = io.BytesIO()
    with wave.open(file, "wb") as written:
        written.setnchannels(1)
        written.setsampwidth(2)
        written.setframerate(RATE)
        written.writeframes(data)
    return file.getvalue()


def _lines(answer: Mapping[str, Any]) -> list[Line]:
    """From words with times, else segments, else the text as a whole."""
    segments: Sequence[Mapping[str, Any]] = answer.get("segments") or []
    words = [_word(one) for one in answer.get("words") or []]
    if not words:
        words = [_word(one) for segment in segments for one in segment.get("words") or []]
    words = [word for word in words if word.text.strip()]
    if words and not segments:
        return lines_of_words(_spaced(words, str(answer.get("text") or "")), None)
    if not segments:
        text = str(answer["text"]).strip()
        end = _number(answer.get("duration"))
        return lines_of_words(spread(text, 0.0, end), None)
    found: list[Line] = []
    for number, segment in enumerate(segments):
        start, end = _number(segment["start"]), _number(segment["end"])
        is_last = number + 1 == len(segments)
        until = math.inf if is_last else _number(segments[number + 1]["start"])
        text = str(segment["text"]).strip()
        own: Sequence[Word] = [word for word in words if word.start_seconds < until]
        words = words[len(own) :]
        own = _spaced(own, text) if own else spread(text, start, end)
        if text:
            quiet = segment.get("no_speech_prob")
            line = line_of(own, None if quiet is None else _number(quiet))
            found.append(Line(start, end, text, line.words, line.no_speech_probability))
    return found


def _spaced(words: Sequence[Word], text: str) -> list[Word]:
    """The words with the white space and the marks around them that they have in the text: some
    servers strip these."""
    found: list[Word] = []
    at = 0
    for word in words:
        bare = word.text.strip()
        place = text.find(bare, at)
        between = _BETWEEN.fullmatch(text[at:place]) if place >= 0 else None
        if between is None:
            found.append(replace(word, text=(" " if found else "") + bare))
            continue
        at = place + len(bare)
        if found:
            found[-1] = replace(found[-1], text=found[-1].text + between[1])
        found.append(replace(word, text=(between[2] if found else text[:place]) + bare))
    if found and _BETWEEN.fullmatch(rest := text[at:].rstrip()):
        found[-1] = replace(found[-1], text=found[-1].text + rest)
    return found


def _word(one: Mapping[str, Any]) -> Word:
    start, end = _number(one["start"]), _number(one["end"])
    return Word(start, max(start, end), str(one["word"]))


def _number(value: Any) -> float:
    number = float(value or 0.0)
    if not math.isfinite(number):
        raise ValueError(f"{value} is no time")
    return number
