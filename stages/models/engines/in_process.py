"""An engine of a transformers model in this process."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any, Protocol

from clipmill.schemas.errors import RowFailed
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.gathering import Gathered
from clipmill.stages.models.engines.requests import Generation, Request, Sees


class Model(Protocol):
    """How a kind of model takes requests; see `families` and `language`."""

    longest_prompt: int | None
    default_prompt: Any  # of a class or an object
    sees: Sees

    def check_prompt(self, prompt: str | None) -> None: ...

    def count_tokens(self, request: Request) -> int: ...

    def accepted(self, request: Request) -> Any:
        """The request as this model takes it; RowFailed if it can't be asked that."""

    def group(self, accepted: Any) -> Hashable: ...

    def order(self, accepted: Any) -> Any: ...

    def prepare(self, batch: Sequence[Any]) -> Mapping[str, Any]: ...

    def generate(
        self, inputs: Mapping[str, Any], generation: Generation, is_unwanted: Any = ...
    ) -> list[Completion]: ...


class TransformersEngine:
    """Answers requests in batches, with those of other threads that fit."""

    bounds_time = False

    def __init__(self, model: Model, batch: int, *, threads: int, name: str) -> None:
        self.model = model
        self.longest_prompt = model.longest_prompt
        self.default_prompt: str | None = model.default_prompt
        self.sees: Sees = model.sees
        self._gathered = Gathered[
            tuple[Any, Generation], tuple[Mapping[str, Any], Generation], Completion
        ](batch, self._prepare, self._compute, threads=threads, name=name)

    def __enter__(self) -> TransformersEngine:
        return self

    def __exit__(self, *exception: object) -> None:
        self._gathered.close()

    def check_prompt(self, prompt: str | None) -> None:
        self.model.check_prompt(prompt)

    def count_tokens(self, request: Request) -> int:
        return self.model.count_tokens(request)

    def submit(self, request: Request) -> Future[Completion]:
        return self.submit_all([request])[0]

    def submit_all(self, requests: Sequence[Request]) -> list[Future[Completion]]:
        futures: list[Future[Completion]] = []
        items, places = [], []
        for request in requests:
            futures.append(Future())
            try:
                accepted = self.model.accepted(request)
                group = (request.generation, self.model.group(accepted))
            except RowFailed as failure:
                futures[-1].set_exception(failure)
                continue
            items.append(((accepted, request.generation), group, self.model.order(accepted)))
            places.append(len(futures) - 1)
        for place, future in zip(places, self._gathered.submit_all(items), strict=True):
            futures[place] = future
        return futures

    def _prepare(
        self, batch: Sequence[tuple[Any, Generation]]
    ) -> tuple[Mapping[str, Any], Generation]:
        # A batch is of one group, so of one way to generate.
        return self.model.prepare([accepted for accepted, _ in batch]), batch[0][1]

    def _compute(self, prepared: tuple[Mapping[str, Any], Generation]) -> list[Completion]:
        inputs, generation = prepared
        return self.model.generate(inputs, generation, lambda: self._gathered.is_closing)
