"""Shared by stages that ask a language model one prompt per clip."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pyarrow as pa
from pydantic import Field

from clipmill.schemas.errors import RowFailed, ServerRefused
from clipmill.stages.models.generation import AnsweringStage
from clipmill.stages.models.outputs.wording import is_request
from clipmill.stages.models.prompts import fixed_opening, render
from clipmill.stages.protocol import ModelCheck, Rows, Stage, Transform, Workspace, resource
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.completions import Completion
    from clipmill.stages.models.text_models import TextModel


class PromptedStage(AnsweringStage):
    """Asks `model` the prompt of each clip; subclasses make the prompts, and read the answers."""

    model: ModelReference = Field(description="language model: hub id, folder, or server")
    batch_texts: int = resource(
        16, ge=1, description="prompts per model call; halved when memory runs out"
    )

    @property
    @abstractmethod
    def template(self) -> str:
        """The template of the prompts."""

    @property
    @abstractmethod
    def is_named(self) -> bool:
        """Whether the template is one that comes with Clipmill."""

    def system_message(self) -> str | None:
        """What the model is told before each prompt."""
        return None

    def answer_schema(self) -> dict[str, Any] | None:
        """The JSON schema of an answer, if that is to be JSON."""
        return None

    @abstractmethod
    def prompt_for(self, row: Mapping[str, Any], model: TextModel) -> str:
        """The prompt of a clip; RowFailed if it can't be asked."""

    @abstractmethod
    def columns_for(
        self, answer: Completion | RowFailed, row: Mapping[str, Any], prompt: str
    ) -> dict[str, Any]:
        """The columns of a clip; RowFailed if the answer can't be used."""

    def model_checks(self, label: str, before: Mapping[str, Stage]) -> Iterator[ModelCheck]:
        yield self.writer_check(label, "model", self.model, self._check_model, pictures=0)

    def _check_model(self, setting: str) -> str:
        from clipmill.stages.models.checks.generators import check_text_model

        return check_text_model(self.model, self, setting)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        from clipmill.stages.models.text_models import open_text_model

        with open_text_model(
            self.model,
            self,
            f"{self.name}.model",
            self.generation,
            self.batch_texts,
            system=self.system_message(),
            schema=self.answer_schema(),
        ) as model:
            yield lambda table: self.transform(table, model)

    def transform(self, table: pa.Table, model: TextModel) -> pa.Table:
        """One row per clip."""
        rows = Rows(self)
        asked: list[tuple[Mapping[str, Any], str]] = []
        for row in table.to_pylist():
            try:
                asked.append((row, self.prompt_for(row, model)))
            except RowFailed as failure:
                rows.record(row["clip_id"], failure)
        answers = model.complete([prompt for _, prompt in asked])
        for (row, prompt), answer in zip(asked, answers, strict=True):
            try:
                rows.keep(row["clip_id"], **self.columns_for(answer, row, prompt))
            except ServerRefused:
                raise  # it concerns all clips
            except RowFailed as failure:
                rows.record(row["clip_id"], failure)
        return rows.table()

    def rendered(self, values: Mapping[str, Any]) -> str:
        """The template with these values; RowFailed if that can't be made."""
        try:
            return render(self.template, values)
        except ValueError as error:
            raise RowFailed("model", f"{self.name}.prompt: {error}") from error

    def echoes(self, prompt: str) -> Sequence[str]:
        """What an answer may repeat of a prompt without being a caption.

        A prompt without a request of its own is captions, and an answer may be one of them.
        """
        # A named prompt ends with its request.
        request = prompt.splitlines()[-1] if self.is_named else fixed_opening(self.template)
        return (prompt, request) if is_request(request) else ()
