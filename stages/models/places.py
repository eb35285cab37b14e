"""Records the devices and dtypes that a run's models use."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

_MOST_CHARACTERS = 4000


@dataclass(frozen=True, order=True)
class ModelPlace:
    """`device` and `dtype` of the model named by a stage's setting `setting`.

    For a served model, `device` is the server's address, `dtype` is empty, and `served` is JSON
    text: what the server says about the model.
    """

    setting: str
    device: str
    dtype: str
    served: str = ""


_noting: ContextVar[list[ModelPlace] | None] = ContextVar("noting", default=None)


@contextmanager
def noted_places() -> Iterator[list[ModelPlace]]:
    """Collects the places of all models opened inside."""
    found: list[ModelPlace] = []
    token = _noting.set(found)
    try:
        yield found
    finally:
        _noting.reset(token)


def note_place(setting: str, device: str, dtype: str) -> None:
    """Records a model's device and dtype; `setting` is `<stage>.<setting>`."""
    found = _noting.get()
    if found is not None:
        found.append(ModelPlace(setting.rpartition(".")[2], device, dtype))


def note_served(setting: str, address: str, facts: Mapping[str, Any]) -> None:
    """Records where a model is served, and what its server says about it."""
    found = _noting.get()
    if found is not None:
        said = json.dumps(facts, sort_keys=True, default=str)[:_MOST_CHARACTERS]
        name = setting.rpartition(".")[2]
        found.append(ModelPlace(name, address, "", said))
