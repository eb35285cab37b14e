"""What models are asked, and the one interface of whatever answers: an engine.

A caller submits requests and waits for futures. Which other requests share a batch, a connection
or a device with them is the engine's own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, runtime_checkable

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.models.completions import Completion

_BEAT_SECONDS = 1.0


@dataclass(frozen=True)
class Generation:
    """How a text is generated. There is no sampling, so the same input gives the same text."""

    max_new_tokens: int
    min_new_tokens: int = 0
    num_beams: int = 1
    no_repeat_ngram_size: int = 0

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `generate`."""
        wanted: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": False,
        }
        if self.min_new_tokens:
            wanted["min_new_tokens"] = self.min_new_tokens
        if self.no_repeat_ngram_size:
            wanted["no_repeat_ngram_size"] = self.no_repeat_ngram_size
        return wanted


@dataclass(frozen=True)
class Picture:
    """A JPEG."""

    jpeg: bytes


@dataclass(frozen=True)
class Video:
    """Frames in time order, each with its second, as JPEGs of one size."""

    frames: tuple[tuple[float, bytes], ...]


Part = str | Picture | Video
Sees = Literal["nothing", "picture", "pictures", "video"]
"""The most that a request may show a model; frames of a video may be shown as pictures."""


@dataclass(frozen=True)
class Message:
    """A system message has only text."""

    parts: tuple[Part, ...]
    role: Literal["system", "user"] = "user"


@dataclass(frozen=True)
class Request:
    """What a model is asked. An answer to a request with a `schema` should be JSON that fits it:
    where an engine can't make sure of that, the model is asked for it in words."""

    messages: tuple[Message, ...]
    generation: Generation
    schema: Mapping[str, Any] | None = None

    @classmethod
    def of(
        cls,
        text: str,
        *more: Picture | Video,
        generation: Generation,
        system: str | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> Request:
        """One user's message, in which pictures and videos come before the text."""
        messages = [Message((system,), "system")] if system else []
        return cls((*messages, Message((*more, *[text] * bool(text)))), generation, schema)

    @property
    def parts(self) -> list[Part]:
        return [part for message in self.messages for part in message.parts]

    @property
    def text(self) -> str:
        """All text of the users' messages, line by line."""
        texts = [
            part
            for message in self.messages
            if message.role == "user"
            for part in message.parts
            if isinstance(part, str)
        ]
        return "\n".join(texts)

    @property
    def pictures(self) -> list[Picture]:
        return [part for part in self.parts if isinstance(part, Picture)]

    @property
    def system(self) -> str:
        """The text of the system messages."""
        texts = [m.parts for m in self.messages if m.role == "system"]
        return "\n".join(part for parts in texts for part in parts if isinstance(part, str))

    def without_videos(self) -> Request:
        """The same with each video as its frames, which the model gets as pictures with times."""
        return self._with_parts(
            lambda part: _frames_with_times(part) if isinstance(part, Video) else (part,)
        )

    def without_system(self) -> Request:
        """The same with the system's words at the start of the first user's message."""
        said = self.system
        users = [message for message in self.messages if message.role == "user"]
        if not said or not users:
            return self
        first = Message((f"{said}\n\n", *users[0].parts))
        return replace(self, messages=(first, *users[1:]))

    def with_schema_in_words(self) -> Request:
        """The same with the schema at the end of the last message."""
        if self.schema is None:
            return self
        words = (
            "\n\nAnswer with one JSON object and nothing else. It must fit this JSON schema:\n"
            + json.dumps(self.schema, ensure_ascii=False)
        )
        *before, last = self.messages
        return replace(
            self, messages=(*before, replace(last, parts=(*last.parts, words))), schema=None
        )

    def _with_parts(self, change: Any) -> Request:
        return replace(
            self,
            messages=tuple(
                replace(message, parts=tuple(new for part in message.parts for new in change(part)))
                for message in self.messages
            ),
        )


def _frames_with_times(video: Video) -> Iterable[Part]:
    for seconds, jpeg in video.frames:
        yield f"{seconds:.1f} s:"
        yield Picture(jpeg)


CHAT_PROMPT = "Describe this picture in one short sentence."
"""What a model with a chat template, or behind a server, is asked about a picture by default."""


class Engine(Protocol):
    """Answers requests of several threads.

    A future raises RowFailed if its request fails, and ClipmillError if no other would fare better.
    `longest_prompt` is in tokens, None if no limit is known; `default_prompt` is what the model is
    asked about a picture if nothing else is. With `bounds_time`, a request takes no
    longer than a setting allows, so waiting for it is no standstill. One that `sees` only pictures
    gets a video as its frames.
    """

    longest_prompt: int | None
    default_prompt: str | None
    bounds_time: bool
    sees: Sees

    def submit(self, request: Request) -> Future[Completion]:
        """Starts to answer; the future may be cancelled until its turn comes."""

    def submit_all(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        """Requests that are known at once, so that those that fit together share batches."""

    def check_prompt(self, prompt: str | None) -> None:
        """Raises ClipmillError if the model can't use the prompt."""

    def count_tokens(self, request: Request) -> int:
        """Tokens of a request of text, with those that the model's template adds."""


@runtime_checkable
class AnswersAtOnce(Protocol):
    """An engine that can answer a request in the thread that asks."""

    def answer(self, request: Request) -> Completion | RowFailed:
        """Waits for the answer, and reports the thread's progress meanwhile."""


def answers(engine: Engine, requests: Sequence[Request]) -> list[Completion | RowFailed]:
    """One answer or failure per request, in the order of the requests."""
    if len(requests) == 1 and isinstance(engine, AnswersAtOnce):
        return [engine.answer(requests[0])]
    asked = engine.submit_all(requests)
    try:
        waiting = set(asked)
        while waiting:
            if engine.bounds_time:
                beat()
            wait(waiting, _BEAT_SECONDS)
            # `wait` alone would wait for ever for what a closed engine has cancelled.
            waiting = {one for one in waiting if not one.done()}
        return [outcome_of(one) for one in asked]
    finally:
        for one in asked:
            one.cancel()


def outcome_of(asked: Future[Completion]) -> Completion | RowFailed:
    """The result of a future, or the failure of its request; waits for it."""
    try:
        return asked.result()
    except RowFailed as failure:
        return failure
    except CancelledError:
        return RowFailed("transient", "no longer waited for: the run was stopped")
