"""Tables for docs/reliability.md, from the log of the fault tests.

    CLIPMILL_FAULT_LOG=faults.jsonl make test-faults
    python -m tests.faults.summary faults.jsonl

A line of the log is one case: its `part` (`media`, `kills`), what was done, how it ended.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

LOG_VARIABLE = "CLIPMILL_FAULT_LOG"
Line = dict[str, Any]


def log_path() -> Path:
    """The log file of the fault tests: what the environment names, else a temporary file."""
    return Path(
        os.environ.get(LOG_VARIABLE)
        or Path(tempfile.gettempdir()) / f"clipmill-faults-{os.getpid()}.jsonl"
    )


def log_cases(part: str, cases: Iterable[Line]) -> None:
    """Adds lines of one part to the log."""
    with open(log_path(), "a", encoding="utf-8") as log:
        for case in cases:
            log.write(json.dumps({"part": part, **case}) + "\n")


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)


MEDIA_ENDINGS = (
    "kept",
    "rejected",
    "failed bad_media",
    "failed permanent",
    "failed crash",
    "no source",
)
_FIRST_WAY = "default"


def media_tables(lines: Sequence[Line]) -> str:
    """The outcome of each file in the corpus: by family with default settings, then by mode."""
    parts = []
    first = [line for line in lines if line["way"] == _FIRST_WAY]
    if first:
        rows = [
            _row(family, [line for line in first if line["family"] == family])
            for family in dict.fromkeys(line["family"] for line in first)
        ]
        parts.append(table(["family", "cases", *MEDIA_ENDINGS], [*rows, _row("all", first)]))
    ways = dict.fromkeys(line["way"] for line in lines)
    parts.append(
        table(
            ["read how", "cases", *MEDIA_ENDINGS],
            (_row(way, [line for line in lines if line["way"] == way]) for way in ways),
        )
    )
    return "\n\n".join(parts)


def _row(name: str, lines: Sequence[Line]) -> list[object]:
    counts = Counter(
        "rejected" if line["ended"].startswith("rejected") else line["ended"] for line in lines
    )
    unnamed = set(counts) - set(MEDIA_ENDINGS)
    if unnamed:
        raise ValueError(f"{name}: endings without a column: {', '.join(sorted(unnamed))}")
    return [name, len(lines), *(counts[ending] or "" for ending in MEDIA_ENDINGS)]


_ENGINES = {"local": "one process", "ray": "its own Ray cluster", "cluster": "two nodes, joined"}
_TARGETS = {
    "driver": "SIGKILL: driver",
    "sigterm": "SIGTERM: driver",
    "worker": "SIGKILL: worker",
    "helper": "SIGKILL: child process",
    "head": "SIGKILL: head (raylet or GCS)",
    "node": "SIGKILL: raylet of the second node",
    "full": "disk full",
    "readonly": "read-only for 1 to 5 s",
}


def kill_tables(lines: Sequence[Line]) -> str:
    """Harms by target and engine, and how many runs each plan took."""
    seeds = [line for line in lines if line["case"].startswith("seed")]
    engines = [name for name in _ENGINES if any(line["family"] == name for line in seeds)]
    rows = []
    for target, words in _TARGETS.items():
        counts = [
            sum(
                harm["what"] == target
                for line in seeds
                if line["family"] == name
                for harm in line["harmed"]
            )
            for name in engines
        ]
        if sum(counts):
            rows.append([words, *(count or "" for count in counts), sum(counts)])
    rows.append(
        [
            "all harms",
            *(
                sum(len(line["harmed"]) for line in seeds if line["family"] == name)
                for name in engines
            ),
            sum(len(line["harmed"]) for line in seeds),
        ]
    )
    harms = table(["harm", *(_ENGINES[name] for name in engines), "all"], rows)
    plans = table(
        ["", *(_ENGINES[name] for name in engines), "all"],
        [
            _plans("seeds", seeds, engines, len),
            _plans(
                "tables equal in the end",
                seeds,
                engines,
                lambda found: sum(line["ended"] == "equal" for line in found),
            ),
            _plans("runs until done (median, most)", seeds, engines, _runs),
            _plans(
                "rows put right by `retry`",
                seeds,
                engines,
                lambda found: sum(line["retried"] for line in found),
            ),
            _plans(
                "longest end of a run that couldn't go on",
                seeds,
                engines,
                lambda found: f"{max(line['longest_end_seconds'] for line in found):.0f} s",
            ),
        ],
    )
    return f"{harms}\n\n{plans}"


def _plans(
    name: str,
    seeds: Sequence[Line],
    engines: Sequence[str],
    count: Callable[[Sequence[Line]], object],
) -> list[object]:
    return [
        name,
        *(count([line for line in seeds if line["family"] == engine]) for engine in engines),
        count(seeds),
    ]


def _runs(lines: Sequence[Line]) -> str:
    counts = sorted(len(line["runs"]) for line in lines)
    return f"{counts[len(counts) // 2]}, {counts[-1]}"


PARTS: dict[str, Callable[[Sequence[Line]], str]] = {"kills": kill_tables, "media": media_tables}


def summary(lines: Sequence[Line]) -> str:
    """All parts that are in the log."""
    parts = []
    for part, make in PARTS.items():
        of_part = [line for line in lines if line["part"] == part]
        if of_part:
            parts.append(make(of_part))
    return "\n\n".join(parts)


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as log:
        print(summary([json.loads(line) for line in log]))
