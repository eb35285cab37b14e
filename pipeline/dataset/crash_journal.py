"""Crash journals: the rows of a shard that a worker had started when it died, and how often."""

from __future__ import annotations

from pathlib import Path

from clipmill.schemas.damage import read_json, reading


def read_journal(path: Path) -> tuple[str, dict[str, int]]:
    """The run that wrote a journal, and by key how often a row was started but not finished.

    DamagedFile if it is not a journal.
    """
    value = read_json(path)
    with reading(path):
        run_id, started = value["run_id"], value["started"]
        if not isinstance(run_id, str) or not all(
            type(times) is int and times >= 0 for times in started.values()
        ):
            raise TypeError("it does not say how often its rows were begun")
    return run_id, started
