"""Captioners: turn a picture and a prompt into a text, whatever kind of model is behind them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.opening import open_engine
from clipmill.stages.models.engines.requests import (
    CHAT_PROMPT,
    Engine,
    Generation,
    Picture,
    Request,
    answers,
)
from clipmill.stages.models.generation import GeneratingStage
from clipmill.stages.references import ModelReference


@dataclass(frozen=True)
class PictureToCaption:
    """One picture to caption. `ticket` identifies it and is returned with the text."""

    ticket: Hashable
    jpeg: bytes
    prompt: str | None = None
    schema: Mapping[str, Any] | None = None


class Captioner(Protocol):
    """Returns an answer or a failure for each ticket."""

    takes_instructions: bool
    """Whether it is asked in words, as chat models are, and may therefore answer with anything."""

    def check_prompt(self, prompt: str | None, *, fills_in: bool = False) -> None:
        """Raises ClipmillError if the model can't use the prompt, or can't fill in a form."""

    def describe(
        self, pictures: Sequence[PictureToCaption], generation: Generation
    ) -> dict[Hashable, Completion | RowFailed]: ...


def check_fills_in(default_prompt: str | None, setting: str) -> None:
    """ClipmillError if a model with this default prompt is not asked in words."""
    if default_prompt != CHAT_PROMPT:
        raise ClipmillError(
            f"{setting}: this model takes no instructions, so it can't fill in fields or answer "
            "questions; use one with a chat template, such as Qwen2.5-VL or SmolVLM, or a server"
        )


@contextmanager
def open_captioner(
    reference: ModelReference, stage: GeneratingStage, setting: str, batch_images: int
) -> Iterator[Captioner]:
    """The captioner for a reference; errors name `setting`."""
    with open_engine(reference, stage, setting, takes="pictures", batch=batch_images) as engine:
        yield EngineCaptioner(engine, setting)


class EngineCaptioner:
    """Asks an engine about each picture."""

    def __init__(self, engine: Engine, setting: str) -> None:
        self.engine, self._setting = engine, setting
        self.takes_instructions = engine.default_prompt == CHAT_PROMPT

    def check_prompt(self, prompt: str | None, *, fills_in: bool = False) -> None:
        self.engine.check_prompt(prompt)
        if fills_in:
            check_fills_in(self.engine.default_prompt, self._setting)

    def describe(
        self, pictures: Sequence[PictureToCaption], generation: Generation
    ) -> dict[Hashable, Completion | RowFailed]:
        asked = [
            Request.of(
                picture.prompt or self.engine.default_prompt or "",
                Picture(picture.jpeg),
                generation=generation,
                schema=picture.schema,
            )
            for picture in pictures
        ]
        found = answers(self.engine, asked)
        return {picture.ticket: answer for picture, answer in zip(pictures, found, strict=True)}
