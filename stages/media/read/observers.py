"""What looks at the pictures of a scan."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

from clipmill.stages.media.read.picture import Picture


class Observer(Protocol):
    """Takes the pictures of one video in order, and then gives columns of SCANS.

    Pictures may be at uneven distances: rates are over `picture.seconds`.
    """

    def interrupt(self) -> None:
        """Says that the next picture does not follow the last one."""

    def add(self, picture: Picture) -> None:
        """Takes the next picture."""

    def finish(self) -> dict[str, Any]:
        """Columns of SCANS. In `statistics`, a mapping, each list has one entry per picture."""


def finished(observers: Iterable[Observer]) -> dict[str, Any]:
    """The columns of all observers, with their statistics in one mapping."""
    columns: dict[str, Any] = {}
    statistics: dict[str, list[float]] = {}
    for observer in observers:
        found = observer.finish()
        statistics.update(found.pop("statistics", {}))
        columns.update(found)
    return {**columns, "statistics": statistics}
