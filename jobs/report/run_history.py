"""How the dataset was made: the newest run's stages, and the runs before it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from clipmill.jobs.report.sample_clips import shortened
from clipmill.pipeline.catalog.layout import Layout
from clipmill.pipeline.dataset.run_records import run_records

SHOWN_RUNS = 10
_LONGEST_PROMPT = 2000
_LONGEST_SETTING = 300
# Reports are shared: settings that may hold an account's secrets are named, not shown.
_PRIVATE = {"cookies_file", "proxy", "yt_dlp", "user_agent"}
_ACCOUNT = re.compile(r"(?<=://)[^/\s@]+@")
_HOW_FAST = {
    "cpus",
    "gpus",
    "workers",
    "batch_rows",
    "batch_images",
    "scan_cpus",
    "scan_workers",
    "concurrency",
}


@dataclass(frozen=True)
class StageMade:
    """A stage in the newest run's record."""

    label: str
    name: str
    fingerprints: list[tuple[str, str]]
    score: str | None
    models: list[tuple[str, str, str | None]]
    """(setting, reference with revision, identity of the weights)."""
    prompts: list[tuple[str, str]]
    settings: list[tuple[str, str]]
    """Settings with a value, except those that only affect a stage's speed."""


@dataclass(frozen=True)
class RunMade:
    """One run."""

    run_id: str
    recipe: str
    started: str
    finished: str
    state: str
    engine: str
    code_version: str


def stages_made(layout: Layout) -> list[StageMade]:
    """The stages of the newest run; none if there was no run."""
    record = layout.record
    if record is None:
        return []
    return [
        StageMade(
            stage["stage"],
            stage["name"],
            [(step["step"], step["fingerprint"]) for step in stage["steps"]],
            stage.get("score"),
            [
                (setting, _reference(model), model.get("identity"))
                for setting, model in stage["models"].items()
            ],
            [(name, _text(text)[:_LONGEST_PROMPT]) for name, text in stage["prompts"].items()],
            _settings(stage),
        )
        for stage in record["stages"]
    ]


def runs_made(layout: Layout) -> tuple[list[RunMade], int]:
    """The newest runs, newest first, and how many there were."""
    records = run_records(layout.dataset)
    shown = [
        RunMade(
            record["run_id"],
            shortened(record["recipe_name"], 80) or "?",
            _minute(record["started_at"]),
            _minute(record["finished_at"]),
            record["state"],
            record["engine"],
            record["code_version"],
        )
        for record in reversed(records[-SHOWN_RUNS:])
    ]
    return shown, len(records)


def _reference(model: Mapping[str, Any]) -> str:
    revision = model.get("revision")
    return _text(f"{model.get('reference') or '?'}{f' @ {revision}' if revision else ''}")


def _settings(stage: Mapping[str, Any]) -> list[tuple[str, str]]:
    left_out = {*_HOW_FAST, *stage["models"], *stage["prompts"]}
    return [
        (
            str(name),
            "(set, but not shown here)"
            if name in _PRIVATE
            else shortened(_text(value), _LONGEST_SETTING) or "(empty)",
        )
        for name, value in stage["settings"].items()
        if name not in left_out and value not in (None, [], {})
    ]


def _text(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return _ACCOUNT.sub("", text)


def _minute(text: str | None) -> str:
    if text is None:
        return "–"
    return datetime.fromisoformat(text).strftime("%Y-%m-%d %H:%M UTC")
