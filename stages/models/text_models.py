"""Language models that answer prompts, whatever kind of model is behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from clipmill.schemas.errors import RowFailed
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.opening import open_engine
from clipmill.stages.models.engines.requests import Engine, Generation, Request, answers
from clipmill.stages.models.generation import GeneratingStage
from clipmill.stages.references import ModelReference


class TextModel(Protocol):
    """Answers prompts; `longest_prompt` is in tokens, None if no limit is known."""

    longest_prompt: int | None

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, including those that the model's template and the system add."""

    def complete(self, prompts: Sequence[str]) -> list[Completion | RowFailed]:
        """One answer per prompt, in the order of the prompts."""


@contextmanager
def open_text_model(
    reference: ModelReference,
    stage: GeneratingStage,
    setting: str,
    generation: Generation,
    batch_texts: int,
    *,
    system: str | None = None,
    schema: Mapping[str, Any] | None = None,
) -> Iterator[TextModel]:
    """The language model for a reference, told `system` before each prompt and asked for JSON that
    fits a `schema`; errors name `setting`."""
    with open_engine(
        reference,
        stage,
        setting,
        takes="text",
        batch=batch_texts,
        longest_answer=generation.max_new_tokens,
    ) as engine:
        yield EngineTextModel(engine, generation, system, schema)


class EngineTextModel:
    """Asks an engine for an answer to each prompt."""

    def __init__(
        self,
        engine: Engine,
        generation: Generation,
        system: str | None = None,
        schema: Mapping[str, Any] | None = None,
    ) -> None:
        self.engine = engine
        self.longest_prompt = engine.longest_prompt
        self._generation, self._system, self._schema = generation, system, schema

    def _request(self, prompt: str) -> Request:
        return Request.of(
            prompt, generation=self._generation, system=self._system, schema=self._schema
        )

    def count_tokens(self, prompt: str) -> int:
        return self.engine.count_tokens(self._request(prompt))

    def complete(self, prompts: Sequence[str]) -> list[Completion | RowFailed]:
        return answers(self.engine, [self._request(prompt) for prompt in prompts])
