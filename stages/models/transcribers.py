"""What writes down what is said: a model of transformers in this process, or servers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.models.transcripts import Line, Transcript, Window, with_repeats
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from pathlib import Path

    from clipmill.stages.models.engines.transcription_servers import Answered, TranscriptionServers
    from clipmill.stages.models.generation import ModelPlacement
    from clipmill.stages.models.speech_models import Heard, SpeechModel, Task
    from clipmill.stages.models.transcribing import TranscribingStage

# How much of a video decides about its language.
_WINDOWS_FOR_LANGUAGE = 3
_BEAT_SECONDS = 1.0


class Transcriber(Protocol):
    """Hears windows of at most `longest_seconds`; its method may run in several threads."""

    longest_seconds: float

    def transcribe(self, videos: Sequence[Sequence[Window]]) -> list[Transcript | RowFailed]:
        """What is said in each video, of which each has at least one window."""


@contextmanager
def open_transcriber(
    reference: ModelReference, stage: TranscribingStage, setting: str
) -> Iterator[Transcriber]:
    """The transcriber for a reference; errors name `setting`."""
    if reference.server:
        from clipmill.stages.models.engines.transcription_servers import transcription_servers

        with transcription_servers(reference, stage, setting) as servers:
            servers.check()
            yield ServedTranscriber(servers, stage.language)
        return
    model = local_model(reference, stage, setting)
    with LocalTranscriber(model, stage.language, stage.batch_windows, setting) as transcriber:
        yield transcriber


def local_model(
    reference: ModelReference, stage: TranscribingStage, setting: str, **more: Any
) -> SpeechModel:
    """The model of transformers for a reference; `more` says how it is loaded."""
    from clipmill.stages.models.generation import load_config
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.speech_models import WhisperModel, speech_model
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    folder = local_folder(reference, setting=setting)
    config = load_config(folder, setting, trust_remote_code=False)
    place = more.pop("place", None) or _place(stage, setting, folder)
    model = speech_model(
        folder,
        config,
        setting,
        place,
        threads=max(1, int(stage.cpus)),
        longest_text=stage.max_new_tokens,
        **more,
    )
    if isinstance(model, WhisperModel) and stage.language not in (None, *model.languages):
        raise ClipmillError(
            f"{setting.rpartition('.')[0]}.language: {folder} writes "
            f"{', '.join(sorted(model.languages))}, not {stage.language!r}; leave it out or name "
            "another model"
        )
    return model


def _place(stage: TranscribingStage, setting: str, folder: Path) -> ModelPlacement:
    """Where it computes. Attention is computed in the plain way: words' times come from it."""
    import torch

    from clipmill.stages.models import torch_setup
    from clipmill.stages.models.generation import ModelPlacement

    device = torch_setup.best_device() if stage.device == "auto" else torch.device(stage.device)
    dtype = (
        torch_setup.default_dtype(device) if stage.dtype == "auto" else getattr(torch, stage.dtype)
    )
    torch_setup.say_place(setting, folder, device, dtype)
    return ModelPlacement(device, dtype, attention="eager")


class LocalTranscriber:
    """Hears the windows of several videos, and of several threads, in batches."""

    def __init__(
        self, model: SpeechModel, language: str | None, batch_windows: int, setting: str
    ) -> None:
        from clipmill.stages.models.engines.gathering import Gathered

        self.longest_seconds = model.longest_seconds
        self._model, self._language = model, language or model.only_language
        self._gathered: Gathered[Task, tuple[Sequence[Task], Mapping[str, Any]], Heard] = Gathered(
            batch_windows,
            model.prepare,
            lambda prepared: model.compute(prepared, lambda: self._gathered.is_closing),
            name=setting,
        )

    def __enter__(self) -> LocalTranscriber:
        return self

    def __exit__(self, *exception: object) -> None:
        self._gathered.close()

    def transcribe(self, videos: Sequence[Sequence[Window]]) -> list[Transcript | RowFailed]:
        spoken = [_Spoken(self._language, None)] * len(videos)
        if self._language is None and self._model.tells_language:
            spoken = self._languages(videos)
        heard = self._hear(
            [
                [(window, one.language, False) for window in windows]
                for windows, one in zip(videos, spoken, strict=True)
            ]
        )
        return [
            transcript(windows, lines, one.language, one.probability)
            for windows, lines, one in zip(videos, heard, spoken, strict=True)
        ]

    def _languages(self, videos: Sequence[Sequence[Window]]) -> list[_Spoken]:
        """The most probable language of each, by the mean over some windows."""
        some = [
            [windows[len(windows) * n // count] for n in range(count)]
            for windows in videos
            for count in [min(_WINDOWS_FOR_LANGUAGE, len(windows))]
        ]
        heard = self._hear([[(window, None, True) for window in windows] for windows in some])
        return [_Spoken.of(one) for one in heard]

    def _hear(
        self, videos: Sequence[Sequence[tuple[Window, str | None, bool]]]
    ) -> list[list[Heard | RowFailed]]:
        from clipmill.stages.models.speech_models import Task

        tasks = [
            Task(window.samples, language, detects)
            for windows in videos
            for window, language, detects in windows
        ]
        futures = self._gathered.submit_all(
            [(task, self._model.group(task), number) for number, task in enumerate(tasks)]
        )
        results = iter(results_of(futures))
        return [[next(results) for _ in windows] for windows in videos]


@dataclass(frozen=True)
class _Spoken:
    language: str | None
    probability: float | None

    @classmethod
    def of(cls, heard: Sequence[Heard | RowFailed]) -> _Spoken:
        """The most probable one, by the mean; of none if hearing failed."""
        told = [one for one in heard if isinstance(one, dict)]
        if not told:
            return cls(None, None)
        mean = {code: sum(one[code] for one in told) / len(told) for code in told[0]}
        best = max(mean, key=lambda code: mean[code])
        return cls(best, mean[best])


class ServedTranscriber:
    """Asks servers for each window."""

    longest_seconds = 30.0

    def __init__(self, servers: TranscriptionServers, language: str | None) -> None:
        self._servers, self._language = servers, language

    def transcribe(self, videos: Sequence[Sequence[Window]]) -> list[Transcript | RowFailed]:
        from clipmill.stages.models.engines.transcription_servers import Asked

        futures = self._servers.submit_all(
            [Asked(window.samples, self._language) for windows in videos for window in windows]
        )
        results = iter(results_of(futures, beats=True))
        found = []
        for windows in videos:
            answers = [next(results) for _ in windows]
            lines = [one if isinstance(one, RowFailed) else list(one.lines) for one in answers]
            found.append(transcript(windows, lines, self._language or _usual(answers), None))
        return found


def _usual(answers: Sequence[Answered | RowFailed]) -> str | None:
    """The language of most of the text."""
    said: dict[str, int] = {}
    for one in answers:
        if not isinstance(one, RowFailed) and one.language:
            length = sum(len(line.text) for line in one.lines)
            said[one.language] = said.get(one.language, 0) + length
    return max(said, key=lambda language: said[language], default=None)


def transcript(
    windows: Sequence[Window], heard: Sequence[Any], language: str | None, probability: float | None
) -> Transcript | RowFailed:
    """A video's transcript from its windows' lines; the first failure if one has failed."""
    failures = [one for one in heard if isinstance(one, RowFailed)]
    if failures:
        return failures[0]
    lines: list[Line] = []
    windows_of: list[int] = []
    for number, (window, found) in enumerate(zip(windows, heard, strict=True)):
        lines += [line.later(window.start_seconds) for line in found]
        windows_of += [number] * len(found)
    return Transcript(tuple(with_repeats(lines, windows_of)), language, probability)


def results_of(futures: Sequence[Future[Any]], *, beats: bool = False) -> list[Any]:
    """The results of futures, or the failures of their windows; waits for them.

    With `beats`, waiting counts as progress: something else bounds it.
    """
    try:
        waiting = set(futures)
        while waiting:
            if beats:
                beat()
            wait(waiting, _BEAT_SECONDS)
            # `wait` alone would wait for ever for what was cancelled.
            waiting = {one for one in waiting if not one.done()}
        return [_result(one) for one in futures]
    finally:
        for one in futures:
            one.cancel()


def _result(future: Future[Any]) -> Any:
    try:
        return future.result()
    except RowFailed as failure:
        return failure
    except CancelledError:
        return RowFailed("transient", "no longer waited for: the run was stopped")
