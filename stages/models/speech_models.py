"""Models of transformers that write what is said: Whisper's family, and others that take sound.

Others give texts without times: their words are spread over the window by length.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.read.samples import RATE
from clipmill.stages.models.engines.processors import Copies, load_processor
from clipmill.stages.models.generation import ModelPlacement, load_weights
from clipmill.stages.models.transcripts import (
    Line,
    line_of,
    lines_of_words,
    spread,
    words_of_tokens,
)

# Whisper's codes of languages that are written without spaces between words.
_UNSPACED = frozenset({"zh", "ja", "th", "lo", "my", "yue"})
# The start, the language, the task and whether there are times come before the text.
_PROMPT_TOKENS = 5
_LONGEST_SECONDS = 30.0


@dataclass(frozen=True)
class Task:
    """A window to be heard: in a language, or, without lines, for which language it is."""

    samples: np.ndarray
    language: str | None
    detects: bool = False


Languages = dict[str, float]
"""The probability of each language, by code."""

Heard = list[Line] | Languages
"""Lines with times from the window's start, or the probabilities of languages."""


def speech_model(
    folder: Path,
    config: Any,
    setting: str,
    place: ModelPlacement,
    *,
    threads: int,
    longest_text: int | None,
    load: Callable[..., Any] = load_weights,
) -> SpeechModel:
    """The model in a folder; ClipmillError if it isn't one that writes what is said."""
    import transformers

    known: Any = transformers.AutoModelForSpeechSeq2Seq
    if type(config) not in known._model_mapping:
        raise ClipmillError(
            f"{setting}: {folder} is a {config.model_type}, which doesn't write what is said; the "
            "stage needs a model such as openai/whisper-small"
        )
    kind = WhisperModel if config.model_type == "whisper" else SpeechModel
    return kind(folder, config, setting, place, threads, longest_text, load)


class SpeechModel:
    """A sequence-to-sequence model that takes sound."""

    longest_seconds = _LONGEST_SECONDS
    tells_language = False
    only_language: str | None = None
    """The language of a model that is known to write only one."""

    def __init__(
        self,
        folder: Path,
        config: Any,
        setting: str,
        place: ModelPlacement,
        threads: int,
        longest_text: int | None,
        load: Callable[..., Any],
    ) -> None:
        import transformers

        self._setting, self._place, self._longest_text = setting, place, longest_text
        processor = load_processor("AutoProcessor", folder, setting, False)
        extractor = getattr(processor, "feature_extractor", None)
        rate = getattr(extractor, "sampling_rate", None)
        if rate != RATE:
            raise ClipmillError(
                f"{setting}: {folder} takes "
                + (f"{rate:,} samples per second" if rate else "no sound")
                + f"; the stage gives {RATE:,}"
            )
        self.model = load(
            transformers.AutoModelForSpeechSeq2Seq, folder, setting, place, trust_remote_code=False
        )
        self.processors = Copies(processor, threads + 1)

    def group(self, task: Task) -> bool:
        return task.detects

    def prepare(self, tasks: Sequence[Task]) -> tuple[Sequence[Task], Mapping[str, Any]]:
        with self.processors.borrowed() as processor:
            inputs = processor(
                [task.samples for task in tasks],
                sampling_rate=RATE,
                return_tensors="pt",
                padding=True,
            )
        return tasks, dict(inputs)

    def compute(
        self, prepared: tuple[Sequence[Task], Mapping[str, Any]], is_unwanted: Callable[[], bool]
    ) -> list[Heard]:
        import torch

        tasks, inputs = prepared
        with torch.inference_mode():
            output = self.model.generate(
                **{name: self._moved(value) for name, value in inputs.items()},
                **({} if self._longest_text is None else {"max_new_tokens": self._longest_text}),
                **stopping(is_unwanted),
            )
        with self.processors.borrowed() as processor:
            texts = processor.batch_decode(output, skip_special_tokens=True)
        return [
            lines_of_words(spread(text.strip(), 0.0, len(task.samples) / RATE), None)
            for text, task in zip(texts, tasks, strict=True)
        ]

    def _moved(self, value: Any) -> Any:
        moved = value.to(self._place.device)
        return moved.to(self._place.dtype) if value.is_floating_point() else moved


def _generation_config(folder: Path, model: Any) -> Any:
    """What the model's files say about generating; a model without weights doesn't know it."""
    import transformers

    try:
        return transformers.GenerationConfig.from_pretrained(folder, local_files_only=True)
    except OSError:
        return model.generation_config


def stopping(is_unwanted: Callable[[], bool]) -> dict[str, Any]:
    """Ends a generation that nobody waits for, and reports each token as progress."""
    from clipmill.stages.media.isolation.progress import beat

    def stops(*_: Any, **__: Any) -> bool:
        beat()
        return is_unwanted()

    return {"stopping_criteria": [stops]}


class WhisperModel(SpeechModel):
    """Whisper, and what was distilled or fine-tuned from it.

    A model whose configuration names its alignment heads gives words their times by them; any other
    gives times of segments, over which its words are spread.
    """

    def __init__(
        self,
        folder: Path,
        config: Any,
        setting: str,
        place: ModelPlacement,
        threads: int,
        longest_text: int | None,
        load: Callable[..., Any],
    ) -> None:
        super().__init__(folder, config, setting, place, threads, longest_text, load)
        told = _generation_config(folder, self.model)
        with self.processors.borrowed() as processor:
            extractor, tokenizer = processor.feature_extractor, processor.tokenizer
            self.longest_seconds = float(extractor.chunk_length)
            self._special = frozenset(tokenizer.all_special_ids)
            no_times = tokenizer.convert_tokens_to_ids("<|notimestamps|>")
        self._no_times = getattr(told, "no_timestamps_token_id", None) or no_times
        self._aligns = bool(getattr(told, "alignment_heads", None))
        codes: Mapping[str, int] = getattr(told, "lang_to_id", None) or {}
        self._languages = {name.strip("<|>"): token for name, token in codes.items()}
        self.tells_language = bool(self._languages) and getattr(told, "is_multilingual", True)
        self.only_language = None if self.tells_language else "en"
        most = config.max_target_positions - _PROMPT_TOKENS
        self._longest_text = min(longest_text or most, most)

    @property
    def languages(self) -> Sequence[str]:
        """The codes of those that it writes."""
        return list(self._languages) if self.tells_language else ["en"]

    def prepare(self, tasks: Sequence[Task]) -> tuple[Sequence[Task], Mapping[str, Any]]:
        with self.processors.borrowed() as processor:
            inputs = processor.feature_extractor(
                [task.samples for task in tasks],
                sampling_rate=RATE,
                return_tensors="pt",
                return_attention_mask=True,
            )
        return tasks, dict(inputs)

    def compute(
        self, prepared: tuple[Sequence[Task], Mapping[str, Any]], is_unwanted: Callable[[], bool]
    ) -> list[Heard]:
        import torch

        tasks, inputs = prepared
        with torch.inference_mode():
            encoded = self.model.get_encoder()(self._moved(inputs["input_features"]))
            first = self._first_probabilities(encoded)
            if tasks[0].detects:
                return [self._languages_of(one) for one in first]
            output = self.model.generate(
                encoder_outputs=encoded,
                attention_mask=inputs["attention_mask"].to(self._place.device),
                max_new_tokens=self._longest_text,
                **self._spoken_in([task.language for task in tasks]),
                **self._timed(),
                force_unique_generate_call=True,  # a window is as long as the model can hear
                **stopping(is_unwanted),
            )
        return [
            self._lines(task, tokens, ends, float(one[self._no_times - 1]))
            for task, (tokens, ends), one in zip(tasks, self._tokens(output), first, strict=True)
        ]

    def _first_probabilities(self, encoded: Any) -> Any:
        """Of the token after the start: that of each language, and that nobody speaks."""
        import torch

        start = self.model.generation_config.decoder_start_token_id
        count = encoded[0].shape[0]
        ids = torch.full((count, 1), start, device=self._place.device)
        logits = self.model(encoder_outputs=encoded, decoder_input_ids=ids, use_cache=False).logits
        return logits[:, 0].float().softmax(-1).cpu()

    def _languages_of(self, probabilities: Any) -> Languages:
        found = {code: float(probabilities[token]) for code, token in self._languages.items()}
        whole = sum(found.values()) or 1.0
        return {code: probability / whole for code, probability in found.items()}

    def _spoken_in(self, languages: Sequence[str | None]) -> dict[str, Any]:
        if not self.tells_language:
            return {}
        return {"language": [one or "en" for one in languages], "task": "transcribe"}

    def _timed(self) -> dict[str, Any]:
        if self._aligns:
            return {"return_timestamps": False, "return_token_timestamps": True}
        return {"return_timestamps": True}

    def _tokens(self, output: Any) -> list[tuple[list[int], list[float]]]:
        """Each window's tokens, with those of the prompt, and when each ends if that is known."""
        if not self._aligns:
            return [(row.tolist(), []) for row in output]
        return [
            (row.tolist(), times.tolist())
            for row, times in zip(output["sequences"], output["token_timestamps"], strict=True)
        ]

    def _lines(
        self, task: Task, tokens: Sequence[int], ends: Sequence[float], no_speech: float
    ) -> list[Line]:
        length = len(task.samples) / RATE
        with self.processors.borrowed() as processor:
            tokenizer = processor.tokenizer

            def decode(ids: Sequence[int]) -> str:
                return str(tokenizer.decode(ids))

            if not ends:
                return self._segments(tokens, length, no_speech, decode)
            kept = [number for number, token in enumerate(tokens) if self._is_text(token)]
            words = words_of_tokens(
                [tokens[number] for number in kept],
                [min(ends[number], length) for number in kept],
                decode,
                spaced=task.language not in _UNSPACED,
            )
        return lines_of_words(words, no_speech)

    def _is_text(self, token: int) -> bool:
        return token not in self._special and token <= self._no_times

    def _segments(
        self,
        tokens: Sequence[int],
        length: float,
        no_speech: float,
        decode: Callable[[Sequence[int]], str],
    ) -> list[Line]:
        """Lines between tokens that are times, each 0.02 s more than the one before."""
        lines: list[Line] = []
        held: list[int] = []
        start = 0.0

        def finish(end: float) -> None:
            text = decode(held).strip() if held else ""
            if text:
                lines.append(line_of(spread(text, start, max(start, end)), no_speech))

        for token in tokens:
            if token > self._no_times:
                time = min((token - self._no_times - 1) * 0.02, length)
                finish(time)
                held, start = [], time
            elif self._is_text(token):
                held.append(token)
        finish(length)
        return lines
