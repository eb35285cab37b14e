"""Records the devices and dtypes that a run's models use."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class ModelPlace:
    """`device` and `dtype` of the model named by a stage's setting `setting`."""

    setting: str
    device: str
    dtype: str


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
