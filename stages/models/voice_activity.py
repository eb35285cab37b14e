"""Where somebody speaks, by Silero's voice activity detector, run by ONNX Runtime.

The spans are those of the package's own Python code over the same samples. Its ONNX file for
sequences is used, which takes many windows per call.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.read.samples import RATE, SampleReader
from clipmill.stages.models.onnx_sessions import OnnxModel

WINDOW = 512
"""Samples that get one probability."""

_CONTEXT = 64  # of the window before
_STATE = 128
_OUTPUTS = ("speech_probs", "hn", "cn")
# About 16 s of sound per call.
_WINDOWS_PER_CALL = 512

SampleSpan = tuple[int, int]
Seconds = tuple[float, float]


@dataclass(frozen=True)
class VoiceSettings:
    """When speech begins and ends; see the settings of detect_speech."""

    threshold: float = 0.5
    end_threshold: float | None = None
    min_speech_seconds: float = 0.25
    min_silence_seconds: float = 0.1
    pad_seconds: float = 0.03


def speech_in_file(
    path: Path, weights: Path, setting: str, settings: VoiceSettings, file_zero_seconds: float
) -> dict[str, Any]:
    """The columns of find_speech, from a file's sound. Runs in a helper process."""
    reader = SampleReader(path, file_zero_seconds)
    speech: list[Seconds] = []
    sound: list[Seconds] = []
    voice = Voice(loaded(weights, setting))
    began = 0.0

    def finish() -> None:
        probabilities, length = voice.end()
        if length:
            sound.append((began, began + length / RATE))
        for start, end in spoken(probabilities, length, settings):
            speech.append((began + start / RATE, began + end / RATE))

    for piece in reader.pieces():
        if piece.begins:
            finish()
            began = piece.seconds
        voice.add(piece.values)
    finish()
    if reader.problem is not None:
        return {"speech_reason": reader.problem}
    spans = merged(speech)
    return {
        "speech_spans": [_span(*one) for one in spans],
        "sound_spans": [_span(*one) for one in merged(sound)],
        "speech_seconds": sum(end - start for start, end in spans),
    }


@functools.lru_cache(maxsize=1)
def loaded(weights: Path, setting: str) -> OnnxModel:
    """The model, which a helper process keeps for its next file."""
    # One window follows from the one before, so a second thread has nothing to do.
    return OnnxModel(weights, threads=1, setting=setting, on_gpu=False)


def check_voice(weights: Path, setting: str) -> str:
    """What the weights are, for a run's checks; ClipmillError if they are another model's."""
    model = loaded(weights, setting)
    if not {"input", "h", "c"} <= model.inputs.keys() or not {*_OUTPUTS} <= {*model.outputs}:
        raise ClipmillError(
            f"{setting}: {weights} is not Silero's detector for sequences; its package has it as "
            "silero_vad_16k_sequence.onnx"
        )
    return "Silero's voice activity detector"


class Voice:
    """The probability of speech in each window of uninterrupted sound, as that comes in."""

    def __init__(self, model: OnnxModel) -> None:
        self._model = model
        self._restart()

    def _restart(self) -> None:
        self._hidden = np.zeros((1, 1, _STATE), np.float32)
        self._cell = np.zeros((1, 1, _STATE), np.float32)
        self._before = np.zeros(_CONTEXT, np.float32)
        self._waiting: list[np.ndarray] = []
        self._n_waiting = self._length = 0
        self._found: list[np.ndarray] = []

    def add(self, samples: np.ndarray) -> None:
        self._waiting.append(samples)
        self._n_waiting += len(samples)
        self._length += len(samples)
        size = _WINDOWS_PER_CALL * WINDOW
        if self._n_waiting < size:
            return
        every = np.concatenate(self._waiting)
        whole = len(every) // size * size
        for at in range(0, whole, size):
            self._run(every[at : at + size])
        self._waiting, self._n_waiting = [every[whole:]], len(every) - whole

    def end(self) -> tuple[np.ndarray, int]:
        """The probabilities, and the number of samples; what comes next is other sound."""
        if self._n_waiting:
            rest = np.concatenate(self._waiting)
            self._run(np.pad(rest, (0, -len(rest) % WINDOW)))
        found = np.concatenate(self._found) if self._found else np.zeros(0, np.float32)
        length = self._length
        self._restart()
        return found, length

    def _run(self, samples: np.ndarray) -> None:
        windows = samples.reshape(-1, WINDOW)
        given = np.empty((len(windows), _CONTEXT + WINDOW), np.float32)
        given[:, _CONTEXT:] = windows
        given[0, :_CONTEXT] = self._before
        given[1:, :_CONTEXT] = windows[:-1, -_CONTEXT:]
        self._before = windows[-1, -_CONTEXT:].copy()
        inputs = {"input": given, "h": self._hidden, "c": self._cell}
        probabilities, self._hidden, self._cell = self._model.run(inputs, _OUTPUTS)
        self._found.append(probabilities.reshape(-1))


def spoken(probabilities: np.ndarray, length: int, settings: VoiceSettings) -> list[SampleSpan]:
    """The spans of speech in so many samples, from the windows' probabilities."""
    return _padded(list(_unpadded(probabilities, length, settings)), length, settings)


def _unpadded(
    probabilities: np.ndarray, length: int, settings: VoiceSettings
) -> Iterator[SampleSpan]:
    """Begins at the threshold, ends where it stays below the lower one for long enough."""
    above = settings.threshold
    below = settings.end_threshold
    if below is None:
        below = max(above - 0.15, 0.01)
    shortest = _samples(settings.min_speech_seconds)
    least_silence = _samples(settings.min_silence_seconds)
    start: int | None = None
    silent_from: int | None = None
    for number, probability in enumerate(probabilities.tolist()):
        at = number * WINDOW
        if probability >= above:
            silent_from = None
            if start is None:
                start = at
                continue
        if start is None or probability >= below:
            continue
        if silent_from is None:
            silent_from = at
        if at - silent_from >= least_silence:
            if silent_from - start > shortest:
                yield start, silent_from
            start = silent_from = None
    if start is not None and length - start > shortest:
        yield start, length


def _padded(spans: list[SampleSpan], length: int, settings: VoiceSettings) -> list[SampleSpan]:
    """Longer at both ends, but neighbours share a short pause between them."""
    padding = _samples(settings.pad_seconds)
    found = []
    before = padding
    for number, (start, end) in enumerate(spans):
        after, next_before = padding, padding
        if number + 1 < len(spans):
            pause = spans[number + 1][0] - end
            if pause < 2 * padding:
                after = next_before = pause // 2
        found.append((max(0, start - before), min(length, end + after)))
        before = next_before
    return found


def _samples(seconds: float) -> int:
    """To the millisecond."""
    return round(seconds * 1000) * RATE // 1000


def merged(spans: Iterable[Seconds]) -> list[Seconds]:
    """In time order and without overlaps: a file's times may go back."""
    found: list[Seconds] = []
    for start, end in sorted(spans):
        if found and start < found[-1][1]:
            found[-1] = (found[-1][0], max(end, found[-1][1]))
        else:
            found.append((start, end))
    return found


def _span(start_seconds: float, end_seconds: float) -> dict[str, float]:
    return {"start_seconds": start_seconds, "end_seconds": end_seconds}
