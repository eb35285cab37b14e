"""Finds the class for a stage's name, built in or custom.

A custom stage is named `file.py:Class` or `package.module:Class`.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

from clipmill import stages
from clipmill.schemas.errors import UsageError
from clipmill.schemas.pandas_import import allow_pandas
from clipmill.schemas.words import did_you_mean
from clipmill.stages.built_in import built_in_stage, built_in_stage_names
from clipmill.stages.protocol import Stage

# The module paths of built-in stages in run records of releases before 0.2.
_BUILT_IN_BEFORE = re.compile(r"stages\.(\w+):\w+")
# The top-level names of those releases, which custom stages imported.
_MODULES_BEFORE = ("stages", "schemas", "pipeline", "jobs")


def stage_class(name: str, folder: Path) -> type[Stage]:
    """The class for a recipe's `stage:` word; files are looked up from the recipe's folder.

    Raises UsageError with similar names if there is none.
    """
    if (before := _BUILT_IN_BEFORE.fullmatch(name)) is not None:
        name = before[1]
    if ":" in name or name.endswith(".py"):
        return _own_stage(name, folder)
    if name not in built_in_stage_names():
        hint = did_you_mean(name, built_in_stage_names())
        raise UsageError(
            f"unknown stage {name!r}; {hint}built-in stages: "
            f"{', '.join(built_in_stage_names())}; name your own stage "
            "`file.py:Class` or `package.module:Class`"
        )
    return built_in_stage(name)


def _own_stage(name: str, folder: Path) -> type[Stage]:
    allow_pandas()  # it may use them in this process
    place, _, class_name = name.partition(":")
    if place.endswith(".py"):
        try:
            path = (folder / place).resolve()
            is_there = path.is_file()
        except (OSError, ValueError) as error:
            raise UsageError(f"stage {name!r}: not a file name: {error}") from error
        if not is_there:
            raise UsageError(f"stage {name!r}: no file {path}")
        module = _module_from_file(path)
    else:
        try:
            module = importlib.import_module(place)
        except Exception as error:
            raise UsageError(
                f"stage {name!r}: cannot import {place}: {error}{_import_line_now(error)}"
            ) from error
    return _class_in(module, class_name or None, name)


def _module_from_file(path: Path) -> ModuleType:
    # One module per file, even if files have the same name.
    module_name = "clipmill_own_" + hashlib.sha256(str(path).encode()).hexdigest()[:12]
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None  # a .py file always has a spec and a loader
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[module_name]
        raise UsageError(
            f"{path} cannot be imported: {type(error).__name__}: {error}{_import_line_now(error)}"
        ) from error
    return module


def _import_line_now(error: Exception) -> str:
    """A hint for a stage that imports from where earlier releases had these names."""
    missing = error.name if isinstance(error, ModuleNotFoundError) else None
    if missing is None or missing.partition(".")[0] not in _MODULES_BEFORE:
        return ""
    if missing in ("stages", "stages.protocol"):
        return "; since 0.2 the line is: from clipmill import Stage"
    return f"; since 0.2 it is clipmill.{missing}, and clipmill itself has the public names"


def _class_in(module: ModuleType, class_name: str | None, where: str) -> type[Stage]:
    found = [
        value
        for value in vars(module).values()
        if isinstance(value, type)
        and issubclass(value, Stage)
        and value is not Stage
        and value.__module__ == module.__name__
    ]
    if class_name is not None:
        found = [value for value in found if value.__name__ == class_name]
    if len(found) != 1:
        have = ", ".join(value.__name__ for value in found) or "none"
        place = getattr(module, "__file__", module.__name__)
        raise UsageError(
            f"stage {where!r}: expected one Stage class in {place}, found: "
            f"{have}; name it as `file.py:Class`"
        )
    return found[0]


def class_reference(stage: Stage) -> str:
    """A string by which another process finds this stage's class again."""
    cls = type(stage)
    if cls.__module__ == f"{stages.__name__}.{cls.name}":
        return cls.name
    module = sys.modules[cls.__module__]
    if cls.__module__.startswith("clipmill_own_"):
        return f"{module.__file__}:{cls.__name__}"
    return f"{cls.__module__}:{cls.__name__}"
