"""Recipes: the YAML that a run executes, read as plain data and validated at the start."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from clipmill.pipeline.ingest.list_text import check_encoding
from clipmill.pipeline.ingest.source_files import ALL_SUFFIXES
from clipmill.pipeline.ingest.sources import SourceSpec, source_from_argument
from clipmill.pipeline.recipes.gates import SETTING, Gate, is_condition
from clipmill.pipeline.recipes.prices import Prices
from clipmill.pipeline.recipes.stage_classes import class_reference, stage_class
from clipmill.pipeline.recipes.strict_yaml import parse_yaml
from clipmill.schemas.errors import UsageError
from clipmill.schemas.words import near_or_known
from clipmill.stages.protocol import Stage
from clipmill.stages.references import DataFile, ModelReference

_LARGEST_NUMBER = 2**63 - 1
MOST_SHARD_VIDEOS = 1_000_000
"""A shard is held in memory, and done again when a worker dies."""


class RaySettings(BaseModel):
    """How the Ray engine uses the cluster; none of this changes results."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    address: str | None = Field(None, description="cluster to join; by default a local one")
    num_cpus: int | None = Field(
        None, ge=1, le=100_000, description="CPUs of a local cluster; all by default"
    )
    object_store_megabytes: int = Field(
        256,
        ge=80,
        le=100_000_000,
        description="object store of a local cluster (only shard names pass through)",
    )


class Recipe(BaseModel):
    """The top level of a recipe file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str = Field("", description="the purpose of this recipe")
    dataset: str | None = Field(None, description="the dataset's folder; --dataset overrides it")
    sources: list[SourceSpec] = Field(default_factory=list, description="where videos come from")
    shard_videos: int | None = Field(
        None,
        ge=1,
        le=MOST_SHARD_VIDEOS,
        description="videos per shard, fixed at the first ingest; by default 16, or fewer "
        "where only a few come in and are decoded",
    )
    take_suffixes: tuple[str, ...] = Field(
        (),
        description="more file endings (`.dat`) to treat as videos in folders and "
        "patterns, optionally as one string (`.dat,.bin`); `all` takes every file",
    )
    encoding: str | None = Field(
        None, description="encoding of lists whose source sets no `encoding`"
    )
    platform: Literal["youtube"] | None = Field(
        None,
        description="platform whose ids lists hold instead of URLs, if a source sets no `platform`",
    )
    url_column: str | None = Field(
        None, description="column of lists that names the videos, if a source sets no `url_column`"
    )
    caption_column: str | None = Field(
        None,
        description="column of lists that holds the caption, if a source sets no `caption_column`",
    )
    span_columns: tuple[str, ...] | None = Field(
        None,
        max_length=2,
        description="columns of lists that give a part of the video, if a source sets no "
        "`span_columns`",
    )
    columns: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="column names of lists whose first line is a row, if a source sets no "
        "`columns`",
    )
    exclude_ids: DataFile | None = Field(
        None, description="a file of known video ids, one per line, which are rejected at ingest"
    )
    engine: Literal["auto", "ray", "local"] = Field(
        "auto",
        description="where the stages run; auto: in this process if the run is small and no stage "
        "needs processes of its own, otherwise on Ray. The rows are the same",
    )
    drop_frames: bool = Field(
        False,
        description="delete a shard's kept frames once all stages that need them are committed",
    )
    log_megabytes: int = Field(
        256,
        ge=0,
        le=100_000_000,
        description="size of all logs of a run; the oldest are deleted first, 0 keeps none",
    )
    log_file_megabytes: int = Field(
        8, ge=1, le=100_000_000, description="size of a worker's log at which it is rotated"
    )
    stall_seconds: float = Field(
        600.0,
        ge=0,
        description="a worker that reports no progress for this long is named, and "
        "killed after the same time again; 0 waits for ever",
    )
    stop_after_alike_failures: int = Field(
        64,
        ge=0,
        description="end the run if the first rows of a stage, this many, all fail alike, as with "
        "a broken model or server; 0 goes on",
    )
    progress_seconds: float = Field(
        30.0,
        ge=0,
        description="how often a run reports its progress when standard error is "
        "a pipe or a file; 0 for never",
    )
    prices: Prices | None = Field(
        None, description="what a CPU hour and the like cost, for `--dry-run` and `--budget`"
    )
    without_gpus: Literal["refuse", "use_cpus"] = Field(
        "refuse",
        description="where there is no GPU, refuse stages that ask for some with `gpus`, or run "
        "them on CPUs",
    )
    ray: RaySettings = Field(default_factory=RaySettings, description="the cluster")
    stages: dict[str, dict[str, Any]] = Field(description="label: settings, in order")

    @field_validator("sources", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, Mapping | str) else value

    @field_validator("take_suffixes", mode="before")
    @classmethod
    def _with_dots(cls, value: Any) -> Any:
        given = value.split(",") if isinstance(value, str) else value
        if not isinstance(given, list | tuple) or not all(isinstance(one, str) for one in given):
            raise ValueError("expected file endings, such as .dat,.bin, or `all`")
        words = [one.strip().lower() for one in given if one.strip()]
        return tuple(one if one == ALL_SUFFIXES else f".{one.lstrip('*.')}" for one in words)

    @field_validator("span_columns", "columns", mode="before")
    @classmethod
    def _names(cls, value: Any) -> Any:
        return [name.strip() for name in value.split(",")] if isinstance(value, str) else value

    @property
    def for_lists(self) -> dict[str, Any]:
        """Settings of lists whose sources don't set them."""
        names = ("url_column", "caption_column", "span_columns", "columns")
        given = {name: getattr(self, name) for name in (*names, "encoding", "platform")}
        return {name: value for name, value in given.items() if value is not None}

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return None if value is None else check_encoding(value)

    @field_validator("stages", mode="before")
    @classmethod
    def _null_means_defaults(cls, value: Any) -> Any:
        if isinstance(value, Mapping):
            return {label: {} if given is None else given for label, given in value.items()}
        return value


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe: its name, the folder its paths are relative to, and its stages built.

    `gates` are those of the stages that have one, by label.
    """

    name: str
    folder: Path
    recipe: Recipe
    stages: dict[str, Stage]
    gates: dict[str, Gate] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """Everything needed to run this again: plain data with absolute paths."""
        stages = {
            label: {"stage": class_reference(stage), **stage.model_dump(mode="json")}
            for label, stage in self.stages.items()
        }
        for label, gate in self.gates.items():
            stages[label][SETTING] = gate.plain()
        top = self.recipe.model_dump(mode="json", exclude={"stages"})
        return {"name": self.name, "folder": str(self.folder), **top, "stages": stages}

    @classmethod
    def from_record(
        cls, record: dict[str, Any], overrides: Sequence[str] = (), **top_level: Any
    ) -> LoadedRecipe:
        """The recipe in a run's record, overridden as `load_recipe` overrides a file's."""
        config = {key: value for key, value in record.items() if key not in ("name", "folder")}
        where = f"the recipe of the run of {record['name']}"
        folder = Path(record["folder"])
        return cls(record["name"], folder, *_checked(config, overrides, folder, where, **top_level))


def read_yaml(path: Path, expected: str = "stages") -> dict[str, Any]:
    """A YAML file as a dict; UsageError with file and line if it is invalid.

    `expected` is the key that such a file has at its top level, for the error.
    """
    try:
        text = path.read_text("utf-8")
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text: {error}") from error
    value = parse_yaml(text, str(path))
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected a mapping with `{expected}:` at the top level")
    return value


def load_recipe(
    path: Path, *, overrides: Sequence[str] = (), sources: Sequence[Any] = (), **top_level: Any
) -> LoadedRecipe:
    """Reads, overrides and checks a recipe.

    `overrides` are `label.setting=value` or `key=value` with YAML values; a label that the recipe
    lacks is added as its last stage if they name its `stage`. Paths in them are relative to the
    working directory, those in the file to the file. `sources`, if given, replace the file's.
    Values of `top_level` that are not None override the file's.
    """
    folder = path.resolve().parent
    parts = _checked(read_yaml(path), overrides, folder, str(path), sources=sources, **top_level)
    return LoadedRecipe(path.stem, folder, *parts)


def _checked(
    config: dict[str, Any],
    overrides: Sequence[str],
    folder: Path,
    where: str,
    *,
    sources: Sequence[Any] = (),
    **top_level: Any,
) -> tuple[Recipe, dict[str, Stage], dict[str, Gate]]:
    """The recipe of plain data, with its stages built and its gates; `where` names it in errors."""
    config.update({key: value for key, value in top_level.items() if value is not None})
    overridden = _apply(config, overrides, where)
    _check_numbers(config, "", where)
    if sources:
        config["sources"] = [
            source_from_argument(given) if isinstance(given, str) else given for given in sources
        ]
    try:
        recipe = Recipe.model_validate(config)
    except ValidationError as error:
        raise UsageError(explain(error, Recipe, where)) from error
    if recipe.exclude_ids is not None:
        base = Path.cwd() if ("exclude_ids",) in overridden else folder
        recipe = recipe.model_copy(update={"exclude_ids": recipe.exclude_ids.relative_to(base)})
    if not recipe.stages:
        raise UsageError(f"{where}: `stages` is empty; see `clipmill recipe show small-cpu`")
    stages, gates = {}, {}
    for label, settings in recipe.stages.items():
        stages[label], gate = _build(label, settings, folder, where, overridden)
        if gate is not None:
            gates[label] = gate
    return recipe, stages, gates


def _apply(config: dict[str, Any], overrides: Sequence[str], where: str) -> set[tuple[str, ...]]:
    done = set()
    stages = config.get("stages")
    if isinstance(stages, dict):
        config["stages"] = stages = copy.deepcopy(stages)
        for label in _new_labels(overrides):
            if label not in Recipe.model_fields:
                stages.setdefault(label, {})
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {override!r}: expected label.setting=value")
        keys = tuple(name.split("."))
        is_gate = keys[1:] == (SETTING,) and is_condition(text)
        value = text if is_gate else parse_yaml(text, f"--set {override!r}: the value")
        if len(keys) == 1 or keys[0] not in (stages or {}):
            if keys[0] not in Recipe.model_fields or keys[0] == "stages":
                known = [*(stages or {}), *(k for k in Recipe.model_fields if k != "stages")]
                add = (
                    ""
                    if len(keys) == 1
                    else f"; to add a stage under this label, give --set {keys[0]}.stage=NAME, too"
                )
                raise UsageError(
                    f"--set {override!r}: {where} has no stage or key "
                    f"{keys[0]!r}; {near_or_known(keys[0], known)}{add}"
                )
            target = config
        else:
            assert stages is not None  # the label is among them
            target = stages
        for key in keys[:-1]:
            if target.get(key) is None:
                target[key] = {}
            target = target[key]
            if not isinstance(target, dict):
                raise UsageError(f"--set {override!r}: {key!r} is a value, it has no parts")
        target[keys[-1]] = value
        done.add(keys)
    return done


def _check_numbers(value: Any, place: str, where: str) -> None:
    """UsageError for a whole number too large for any table or system, in any setting."""
    if isinstance(value, int) and abs(value) > _LARGEST_NUMBER:
        raise UsageError(f"{where}: {place}: whole numbers may be at most {_LARGEST_NUMBER:,}")
    items = (
        value.items()
        if isinstance(value, Mapping)
        else (enumerate(value) if isinstance(value, list) else ())
    )
    for name, item in items:
        _check_numbers(item, f"{place}.{name}".removeprefix("."), where)


def _new_labels(overrides: Sequence[str]) -> list[str]:
    """Labels whose stage the overrides name, in order."""
    names = (override.partition("=")[0].split(".") for override in overrides)
    return [keys[0] for keys in names if len(keys) == 2 and keys[1] == "stage"]


def _build(
    label: str, settings: dict[str, Any], folder: Path, where: str, overridden: set[tuple[str, ...]]
) -> tuple[Stage, Gate | None]:
    settings = dict(settings)
    word = settings.pop("stage", label)
    if not isinstance(word, str) or not label.isidentifier():
        raise UsageError(f"{where}: stages.{label}: a label is a word of letters, digits and _")
    cls = stage_class(word, Path.cwd() if (label, "stage") in overridden else folder)
    gate = None
    if SETTING not in cls.model_fields:  # a custom stage may have a setting of that name
        gate = Gate.parse(settings.pop(SETTING, None), f"{where}: stages.{label}.{SETTING}")
    try:
        stage = cls.model_validate(settings)
    except ValidationError as error:
        raise UsageError(explain(error, cls, f"{where}: stages.{label}")) from error
    # Paths in the file are relative to the file's folder, those of --set to the working folder.
    changed: dict[str, Any] = {}
    for name in cls.model_fields:
        value = getattr(stage, name)
        if isinstance(value, ModelReference | DataFile) and name in settings:
            base = Path.cwd() if (label, name) in overridden else folder
            changed[name] = value.relative_to(base)
        elif isinstance(value, list) and value and all(isinstance(one, Path) for one in value):
            base = Path.cwd() if (label, name) in overridden else folder
            changed[name] = [(base / one.expanduser()).absolute() for one in value]
    return (stage.model_copy(update=changed) if changed else stage), gate


def explain(error: ValidationError, model: type[BaseModel], where: str) -> str:
    """A pydantic error, one line per problem: place, what is wrong, what is allowed."""
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden":
            known = list(model.model_fields) if len(problem["loc"]) == 1 else []
            message = "unknown setting" + (
                f"; {near_or_known(str(problem['loc'][0]), known)}" if known else ""
            )
        elif problem["type"] != "missing":
            message += f" (given: {problem['input']!r})"
        lines.append(f"{where}: {place}: {message}" if place else f"{where}: {message}")
    return "\n".join(lines)
