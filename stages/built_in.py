"""Finds the built-in stages: `verb_noun` is the class with that name in `stages/verb_noun.py`.

What else is known of them by name (their tables, their order) comes from the classes.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipmill import stages
from clipmill.stages.protocol import Stage


@functools.cache
def built_in_stage_names() -> tuple[str, ...]:
    """Names of the modules in `stages/` that contain a stage of that name."""
    return tuple(
        sorted(
            module.name
            for module in pkgutil.iter_modules(stages.__path__)
            if not module.ispkg
            and f'"{module.name}"'
            in (Path(stages.__path__[0]) / f"{module.name}.py").read_text("utf-8")
        )
    )


@functools.cache
def built_in_stage(name: str) -> type[Stage]:
    """The class of one of `built_in_stage_names`."""
    module = importlib.import_module(f"{stages.__name__}.{name}")
    (found,) = (
        value
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Stage) and vars(value).get("name") == name
    )
    return found


def built_in_stages() -> list[type[Stage]]:
    """All of them, each after those that it reads from."""
    ordered: list[type[Stage]] = []

    def add(name: str) -> None:
        stage = built_in_stage(name)
        for read in stage.model_construct().columns_read():
            if (label := read.partition(".")[0]) in built_in_stage_names():
                add(label)
        if stage not in ordered:
            ordered.append(stage)

    for name in built_in_stage_names():
        add(name)
    return ordered


def built_in_table(name: str, settings: Mapping[str, Any]) -> pa.Schema | None:
    """The schema of a built-in stage's own table, made with these settings; None for the name of a
    custom one."""
    if name not in built_in_stage_names():
        return None
    return built_in_stage(name).table_of(settings)


@functools.cache
def further_tables() -> dict[str, pa.Schema]:
    """The schemas of the tables that built-in stages write next to their own, by name."""
    return {name: table for stage in built_in_stages() for name, table in stage.more_tables.items()}
