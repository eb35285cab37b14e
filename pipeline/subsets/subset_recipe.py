"""Subset recipes: YAML with SQL inside, read as plain data and checked before any clip is read."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from clipmill.pipeline.recipes.recipe import explain, read_yaml
from clipmill.pipeline.recipes.strict_yaml import parse_yaml
from clipmill.pipeline.subsets.published import PublishedFunnel, unknown_rule
from clipmill.pipeline.subsets.rules import VERBS, Rule, Where
from clipmill.pipeline.subsets.scorer_specs import ScorerSpec
from clipmill.schemas.errors import UsageError
from clipmill.schemas.sql_text import literal
from clipmill.schemas.words import near_or_known

DEFAULT_SEED = 42
_SEEDS = (0, 2**63 - 1)
_WHOLE = re.compile(r"\$(\w+)\Z")
_NUMBER_WITH_EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+\Z")
# A parameter in SQL, and before it text that may contain other dollar signs.
_IN_SQL = re.compile(
    r"[eE]'(?:[^'\\]|\\.|'')*'|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|--[^\n]*|/\*.*?\*/"
    r"|\$(?P<tag>\w*)\$.*?\$(?P=tag)\$|\$(?P<name>\w+)",
    re.S,
)


class SubsetFile(BaseModel):
    """The top level of a subset recipe's file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    description: str | None = Field(None, description="what the subset is, in one line")
    source: str | None = Field(None, description="where the recipe was published, in words")
    verified: bool | None = Field(
        None, description="false if the publication itself doesn't state all of it"
    )
    published: PublishedFunnel | None = Field(
        None, description="which share of its clips the publication kept, to compare with"
    )
    extends: str | None = Field(
        None,
        description="a ready-made recipe, or a file relative to this one; keys given here "
        "override it",
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict,
        description="values that rules use as $name; --set name=value overrides them",
    )
    seed: int | None = Field(
        None,
        ge=_SEEDS[0],
        le=_SEEDS[1],
        strict=True,
        description="random seed; --seed overrides it",
    )
    scorers: dict[str, ScorerSpec | Literal["any"]] = Field(
        default_factory=dict, description="column name used in the rules: what must have made it"
    )
    rules_before: list[dict[str, Any]] = Field(
        default_factory=list, description="rules before the inherited ones"
    )
    rules: list[dict[str, Any]] = Field(default_factory=list, description="rules, in order")


@dataclass(frozen=True)
class SubsetRecipe:
    """A checked recipe with all parameters filled in."""

    name: str
    path: Path
    description: str
    source: str | None
    verified: bool
    seed: int
    parameters: Mapping[str, Any]
    scorers: Mapping[str, ScorerSpec | Literal["any"]]
    rules: tuple[Rule, ...]
    overrides: tuple[str, ...] = ()
    texts: tuple[tuple[str, str], ...] = field(repr=False, default=())
    """(file name, YAML as written) of the recipe and of what it extends."""
    where: str | None = None
    """The predicate given instead of a file."""
    published: PublishedFunnel | None = None
    """The publication's own funnel. A recipe does not inherit it: with other rules it says
    nothing."""

    @property
    def extends(self) -> list[str]:
        return [Path(name).stem for name, _ in self.texts[1:]]


def load_subset_recipe(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    seed: int | None = None,
    ready_made: Path | None = None,
) -> SubsetRecipe:
    """Reads a recipe and the recipes that it extends, fills in parameters, and checks it.

    `overrides` are `name=value` for a parameter and `scorers.<column>=any` to waive the check of a
    scorer. `ready_made` is the folder in which `extends: NAME` looks for `NAME.yaml`.
    """
    chain = _read_chain(path, ready_made)
    parameters: dict[str, Any] = {}
    scorers: dict[str, ScorerSpec | Literal["any"]] = {}
    rules: list[tuple[str, dict[str, Any]]] = []
    top: dict[str, Any] = {}
    for file, given in reversed(chain):
        parameters.update(
            {
                name: _parameter(value, f"{file.name}: parameters.{name}")
                for name, value in given.parameters.items()
            }
        )
        scorers.update(given.scorers)
        rules = [
            *((file.name, rule) for rule in given.rules_before),
            *rules,
            *((file.name, rule) for rule in given.rules),
        ]
        top.update(
            given.model_dump(
                include={"description", "source", "verified", "seed"}, exclude_none=True
            )
        )
    if not rules:
        raise UsageError(
            f"{path}: the recipe has no rules; give some in `rules:`, for example "
            '`- where: "aesthetic >= 5"`'
        )
    _apply(overrides, parameters, scorers, path)
    resolver = _Parameters(parameters)
    checked = tuple(
        _rule(number, file, rule, resolver) for number, (file, rule) in enumerate(rules, 1)
    )
    if unused := [name for name in parameters if name not in resolver.used]:
        raise UsageError(f"{path}: parameters.{unused[0]}: no rule uses ${unused[0]}")
    _check_seed(seed)
    published = chain[0][1].published
    if published and (unknown := unknown_rule(published, [rule.name for rule in checked])):
        raise UsageError(
            f"{path}: published: no rule is called {unknown!r}; "
            f"{near_or_known(unknown, [rule.name for rule in checked if rule.name])}"
        )
    return SubsetRecipe(
        name=path.stem,
        path=path,
        description=top.get("description", ""),
        source=top.get("source"),
        verified=top.get("verified", True),
        seed=seed if seed is not None else top.get("seed", DEFAULT_SEED),
        parameters=parameters,
        scorers=scorers,
        rules=checked,
        overrides=tuple(overrides),
        texts=tuple((file.name, file.read_text("utf-8")) for file, _ in chain),
        published=published,
    )


def predicate_recipe(where: str, *, seed: int | None = None) -> SubsetRecipe:
    """A recipe with one rule, which keeps the clips for which the SQL predicate is true.

    Its name is derived from the predicate, so that different predicates have different names.
    """
    if not where.strip():
        raise UsageError('--where is empty; give a predicate, e.g. --where "aesthetic > 5"')
    _check_seed(seed)
    said = re.sub(r"[^A-Za-z0-9.]+", "-", where).strip("-.")[:40].strip("-.")
    digest = hashlib.sha256(where.encode("utf-8", "backslashreplace")).hexdigest()[:6]
    given: dict[str, Any] = {"where": where}
    text = yaml.safe_dump({"rules": [given]}, sort_keys=False, allow_unicode=True, width=90)
    name = f"{said}-{digest}" if said else f"where-{digest}"
    return SubsetRecipe(
        name=name,
        path=Path(f"{name}.yaml"),
        description="",
        source=None,
        verified=True,
        seed=DEFAULT_SEED if seed is None else seed,
        parameters={},
        scorers={},
        rules=(_rule(1, "--where", given, _Parameters({})),),
        texts=((f"{name}.yaml", text),),
        where=where,
    )


def given_rules(rules: Sequence[dict[str, Any]], file: str) -> tuple[Rule, ...]:
    """Rules as a record has them, with all parameters filled in."""
    return tuple(_rule(number, file, rule, _Parameters({})) for number, rule in enumerate(rules, 1))


def _check_seed(seed: int | None) -> None:
    if seed is not None and not _SEEDS[0] <= seed <= _SEEDS[1]:
        raise UsageError(f"--seed {seed}: give a whole number from 0 to 2^63 - 1")


def _read_chain(path: Path, ready_made: Path | None) -> list[tuple[Path, SubsetFile]]:
    """The recipe and those that it extends, itself first."""
    chain: list[tuple[Path, SubsetFile]] = []
    seen: list[Path] = []
    while True:
        if path.resolve() in seen:
            names = [file.name for file in seen[seen.index(path.resolve()) :]]
            raise UsageError(f"{path}: `extends` is circular: {' → '.join([*names, path.name])}")
        seen.append(path.resolve())
        given = _read(path)
        chain.append((path, given))
        if given.extends is None:
            return chain
        path = _extended(path, given.extends, ready_made)


def _read(path: Path) -> SubsetFile:
    config = read_yaml(path, expected="rules")
    if "stages" in config:
        raise UsageError(
            f"{path} is a recipe for `clipmill run`; a subset recipe has `rules:`, "
            "see `clipmill subset --help`"
        )
    try:
        # A key without a value keeps its default.
        return SubsetFile.model_validate({k: v for k, v in config.items() if v is not None})
    except ValidationError as error:
        raise UsageError(explain(error, SubsetFile, str(path))) from error


def _extended(path: Path, word: str, ready_made: Path | None) -> Path:
    names = [] if ready_made is None else sorted(p.stem for p in ready_made.glob("*.yaml"))
    if word in names:
        assert ready_made is not None
        return ready_made / f"{word}.yaml"
    file = path.parent / Path(word).expanduser()
    if file.is_file():
        return file
    raise UsageError(
        f"{path}: extends: {word!r} is neither a file next to it nor a ready-made "
        f"recipe; {near_or_known(word, names)}"
    )


def _parameter(value: Any, place: str) -> Any:
    """A parameter's value as plain data."""
    if isinstance(value, date):  # includes datetime
        return value.isoformat()
    if isinstance(value, str) and _NUMBER_WITH_EXPONENT.match(value):
        value = float(value)  # YAML 1.1 reads 1e-6 as text
    if isinstance(value, float) and not math.isfinite(value):
        raise UsageError(f"{place}: {value} is not a number that a rule can use")
    if isinstance(value, list):
        value = [_parameter(item, place) for item in value]
        kinds = {_kind(item) for item in value}
        if len(kinds) > 1 or kinds & {"a list", "a mapping", "nothing"}:
            hint = (
                ": YAML reads yes, no, on and off as true and false; put them in quotes"
                if "true or false" in kinds
                else ""
            )
            raise UsageError(
                f"{place}: a list must hold values of one kind, not "
                f"{' and '.join(sorted(kinds))}{hint}"
            )
    return value


def _kind(value: Any) -> str:
    if value is None:
        return "nothing"
    for kind, name in (
        (bool, "true or false"),
        (int | float, "a number"),
        (str, "text"),
        (list, "a list"),
        (dict, "a mapping"),
    ):
        if isinstance(value, kind):
            return name
    raise TypeError(type(value).__name__)


def _apply(
    overrides: Sequence[str],
    parameters: dict[str, Any],
    scorers: dict[str, ScorerSpec | Literal["any"]],
    path: Path,
) -> None:
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals or not name:
            raise UsageError(f"--set {override!r}: expected name=value, or scorers.COLUMN=any")
        role = name.removeprefix("scorers.")
        if role != name:
            if role not in scorers:
                raise UsageError(
                    f"--set {override!r}: {path.name} requires no scorer for "
                    f"{role!r}; {near_or_known(role, list(scorers))}"
                )
            if text != "any":
                raise UsageError(
                    f"--set {override!r}: expected scorers.{role}=any, which accepts "
                    "the column whatever made it"
                )
            scorers[role] = "any"
            continue
        if name not in parameters:
            hint = "; use --seed for the seed" if name == "seed" else ""
            raise UsageError(
                f"--set {override!r}: {path.name} has no parameter {name!r}; "
                f"{near_or_known(name, list(parameters))}{hint}"
            )
        value = _parameter(
            parse_yaml(text, f"--set {override!r}: the value"), f"--set {override!r}"
        )
        expected = parameters[name]
        if isinstance(expected, str) and _kind(value) in ("a number", "true or false", "nothing"):
            value = text  # what looks like a number is text if text is expected
        if expected is not None and _kind(value) != _kind(expected):
            raise UsageError(
                f"--set {override!r}: {name} is {_kind(expected)} "
                f"({expected!r} by default), not {_kind(value)}"
            )
        parameters[name] = value


class _Parameters:
    """Replaces `$name` by values, and records which were used."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = values
        self.used: set[str] = set()

    def _value(self, name: str, place: str) -> Any:
        if name not in self._values:
            raise UsageError(
                f"{place}: ${name} is not a parameter of the recipe; "
                f"{near_or_known(name, list(self._values))}"
            )
        self.used.add(name)
        return self._values[name]

    def fill(self, value: Any, place: str) -> Any:
        """A value that is only `$name` becomes the parameter's value; within SQL, its literal."""
        if isinstance(value, dict):
            return {key: self.fill(item, place) for key, item in value.items()}
        if isinstance(value, list):
            return [self.fill(item, place) for item in value]
        if not isinstance(value, str):
            return value
        if match := _WHOLE.match(value.strip()):
            return self._value(match[1], place)

        def replaced(match: re.Match[str]) -> str:
            if match["name"] is None:
                return match[0]
            return sql_value(self._value(match["name"], place), f"{place}: ${match['name']}")

        return _IN_SQL.sub(replaced, value)

    def fill_text(self, text: str, place: str) -> str:
        return re.sub(r"\$(\w+)", lambda match: str(self._value(match[1], place)), text)


def sql_value(value: Any, place: str = "") -> str:
    """A plain value as SQL."""
    if value is None:
        return "NULL"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"({value!r})" if value < 0 else repr(value)
    if isinstance(value, str):
        return literal(value)
    if isinstance(value, list):
        return f"[{', '.join(map(sql_value, value))}]"
    raise UsageError(f"{place} is {_kind(value)}, which SQL can't represent")


def _rule(number: int, file: str, given: dict[str, Any], parameters: _Parameters) -> Rule:
    place = f"{file}: rule {number}"
    verbs = [key for key in given if key not in ("name", "crop")]
    if len(verbs) != 1 or verbs[0] not in VERBS:
        unknown = next((verb for verb in verbs if verb not in VERBS), None)
        if unknown is not None:
            raise UsageError(
                f"{place}: unknown rule {unknown!r}; {near_or_known(str(unknown), list(VERBS))}"
            )
        said = f"has {' and '.join(verbs)}" if verbs else "has none"
        raise UsageError(
            f"{place}: a rule is one mapping with one verb, but this one {said}; "
            f"verbs: {', '.join(VERBS)}"
        )
    verb = verbs[0]
    name = given.get("name")
    if name is not None:
        name = parameters.fill_text(str(name), place)
        place += f" {name!r}"
    place += f" ({verb})"
    value = parameters.fill(given[verb], place)
    model = VERBS[verb]
    if model is Where:
        value = {"expression": value}
    if not isinstance(value, dict):
        known = ", ".join(model.model_fields)
        raise UsageError(f"{place}: expected a mapping with some of {known}; given: {value!r}")
    try:
        body = model.model_validate(value)
    except ValidationError as error:
        raise UsageError(explain(error, model, place)) from error
    return Rule(number, verb, body, name, file, _crop(given, verb, place))


def _crop(given: dict[str, Any], verb: str, place: str) -> Literal["safe"] | None:
    crop = given.get("crop")
    if crop is None:
        return None
    if verb != "where":
        raise UsageError(f"{place}: crop: only a `where` rule can let clips pass to be cropped")
    if crop != "safe":
        raise UsageError(f"{place}: crop: {crop!r}; allowed: safe")
    return "safe"
