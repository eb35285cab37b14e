"""Checks before a run starts that what a recipe names is here, or can be fetched, and fits.

Models are checked without loading their weights (`stages/models/checks/`). A check that passed is
remembered in the user's cache until a file, a setting or an installed package changes.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.pipeline.engine.named_cluster import has_cluster
from clipmill.pipeline.engine.passed_checks import has_passed, note_passed
from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.words import counted
from clipmill.stages.media.fetch.data_files import Unreachable, how_to_fetch, local_file
from clipmill.stages.protocol import ModelCheck, Stage
from clipmill.stages.references import DataFile, ModelReference
from clipmill.stages.usage import REQUESTS, TOKENS_IN, TOKENS_OUT, used

if TYPE_CHECKING:
    from clipmill.stages.models.loading import NotFetched

SERVER_TIMEOUT_SECONDS = 5.0
_NOT_HERE = "not on this machine, and its download site does not answer"
_USED = (REQUESTS, TOKENS_IN, TOKENS_OUT)


@dataclass(frozen=True)
class CheckedReference:
    """A model or data file that a step names, and what is wrong with it (None if nothing is).

    `reason` is set if its download site did not answer, `note` says what its check found, and
    `is_here` whether it was there to be checked. With `said_for`, the problem is that of another
    setting, which names the same and whose message names both.
    """

    setting: str
    reference: ModelReference | DataFile
    problem: str | None = None
    reason: str | None = None
    note: str | None = None
    is_here: bool = True
    said_for: str | None = None

    def __str__(self) -> str:
        return f"{self.setting}: {self.reference}"


def check_models(
    steps: Iterable[PlannedStep], whole: Sequence[PlannedStep] = ()
) -> tuple[list[str], Counter[str]]:
    """Fetches what is missing and checks what steps name; ClipmillError lists all problems.

    `whole` are all steps of the recipe. Returns what is worth telling, and what servers charge.
    """
    before = used()
    findings = examine_models(steps, whole, remembers=True)
    if problems := problems_of(findings):
        raise ClipmillError("\n".join(problems))
    now = used()
    spent = Counter({name: now[name] - before[name] for name in _USED if now[name] > before[name]})
    said = []
    if spent:
        asked = ", ".join(one.setting for one in findings if _is_server(one.reference))
        told = f"Checked the server of {asked} with {counted(int(spent[REQUESTS]), 'request')}"
        if len(spent) > 1:
            told += f": {int(spent[TOKENS_IN]):,} tokens in, {int(spent[TOKENS_OUT]):,} out"
        said.append(f"{told}.")
    said += [f"{one.setting}: {one.note}" for one in findings if (one.note or "").startswith("not")]
    return said, spent


def _is_server(value: ModelReference | DataFile) -> bool:
    return isinstance(value, ModelReference) and value.server is not None


def problems_of(findings: list[CheckedReference]) -> list[str]:
    """Messages about findings; everything on unreachable servers shares one message."""
    said = [
        one.problem
        for one in findings
        if one.problem and one.reason is None and one.said_for is None
    ]
    unreachable = [one for one in findings if one.reason is not None]
    return said if not unreachable else [*said, _without_network(unreachable)]


def examine_models(
    steps: Iterable[PlannedStep], whole: Sequence[PlannedStep] = (), *, remembers: bool = False
) -> list[CheckedReference]:
    """Every model and data file that steps name, fetched if possible, and checked.

    A model that the hub refuses is explained once, for all settings that name it. Once the hub has
    not answered it is not contacted again: each attempt would take seconds. A server is asked once
    for the same. With `remembers`, checks that passed before are left out.
    """
    refused: dict[str, NotFetched] = {}
    findings = list(_examined(list(steps), whole, refused, remembers=remembers))
    for name, error in refused.items():
        first, *others = (i for i, one in enumerate(findings) if str(one.reference) == name)
        same = findings[first].setting
        said = error.explain([findings[i].setting for i in (first, *others)])
        findings[first] = replace(findings[first], problem=said)
        for i in others:
            findings[i] = replace(findings[i], problem=f"see {same}", said_for=same)
    return findings


def _examined(
    steps: Sequence[PlannedStep],
    whole: Sequence[PlannedStep],
    refused: dict[str, NotFetched],
    *,
    remembers: bool,
) -> Iterator[CheckedReference]:
    """The findings one by one; the hub is asked once for what it `refused`."""
    from clipmill.stages.models.loading import NotFetched

    away: dict[str, str] = {}  # reasons, by place
    asked: dict[tuple[object, ...], str | ClipmillError] = {}
    # The first of a stage's steps that names a model is the one that loads it.
    loaded_by: dict[str, str] = {}
    for step in whole or steps:
        for name in step.stage.references():
            loaded_by.setdefault(f"{step.stage_label}.{name}", step.label)
    for step in steps:
        before = _before(step, whole or steps)
        checks = {one.setting: one for one in step.stage.model_checks(step.stage_label, before)}
        for name, value in step.stage.references().items():
            setting = f"{step.stage_label}.{name}"
            if loaded_by.get(setting, step.label) != step.label:
                continue
            note, is_here = None, False
            try:
                if (again := refused.get(str(value))) is not None:
                    raise again
                _get(value, setting, away)
                is_here = True
                if (check := checks.get(name)) is not None:
                    with _folder_explained(value, setting):
                        note = _checked(step, check, value, asked, remembers)
                elif isinstance(value, ModelReference) and value.server:
                    for address in value.servers:
                        _ask_server(address, setting)
            except Unreachable as error:
                away.setdefault(_place(value), error.reason)
                said = f"{setting}: {_NOT_HERE}"
                yield CheckedReference(setting, value, said, error.reason, is_here=False)
            except NotFetched as error:
                refused[str(value)] = error
                yield CheckedReference(setting, value, str(error), is_here=False)
            except (ClipmillError, UsageError) as error:
                yield CheckedReference(setting, value, str(error), is_here=is_here)
            else:
                yield CheckedReference(setting, value, note=note)


def _before(step: PlannedStep, whole: Sequence[PlannedStep]) -> dict[str, Stage]:
    labels = [one.label for one in whole]
    end = labels.index(step.label) if step.label in labels else len(whole)
    return {one.label: one.stage for one in whole[:end]}


def _checked(
    step: PlannedStep,
    check: ModelCheck,
    value: ModelReference | DataFile,
    asked: dict[tuple[object, ...], str | ClipmillError],
    remembers: bool,
) -> str:
    """What a check found, or says why it isn't made here; ClipmillError with the problem."""
    if lost := [name for name in check.needs if importlib.util.find_spec(name) is None]:
        return f"not checked here: {' and '.join(lost)} not installed on this machine"
    if not check.asks:
        if not check.lasts:
            return _of_workers(check)
        if remembers and (note := has_passed(step, check, value)) is not None:
            return note
        note = check.run()
        note_passed(step, check, value, note)
        return note
    key = (str(value), step.stage.name, *check.depends_on)
    if key not in asked:
        try:
            asked[key] = check.run()
        except ClipmillError as error:
            asked[key] = error
    found = asked[key]
    if isinstance(found, ClipmillError):
        raise found
    return found


def _of_workers(check: ModelCheck) -> str:
    """What a check found of what the workers' nodes need; on a cluster these may be others."""
    from clipmill.stages.models.checks.programs import NotOnThisMachine

    try:
        return check.run()
    except NotOnThisMachine as error:
        if not has_cluster():
            raise
        return f"not checked on this machine: {error}"


@contextmanager
def _folder_explained(value: ModelReference | DataFile, setting: str) -> Iterator[None]:
    """Says of a model's folder what is wrong with it, if its files tell that, instead of what
    reading it led to."""
    from clipmill.stages.models.folder_faults import fault_of
    from clipmill.stages.models.loading import cached_folder, repository_of

    try:
        yield
    except Exception as error:
        folder = None
        if isinstance(value, ModelReference) and value.folder:
            folder = Path(value.folder)
        elif isinstance(value, ModelReference) and value.hub:
            folder = cached_folder(repository_of(value.hub), value.revision)
        if folder is None or (fault := fault_of(folder, setting, str(error))) is None:
            raise
        raise ClipmillError(f"{setting}: {folder} {fault}") from error


def _get(value: ModelReference | DataFile, setting: str, away: dict[str, str]) -> None:
    """Fetches a model or file. A server is only asked by its own check."""
    from clipmill.stages.models.loading import (
        cached_folder,
        hub_folder,
        local_folder,
        repository_of,
    )

    if isinstance(value, DataFile):
        if not local_file(value, setting=setting).is_file():
            raise UsageError(
                f"{setting}: no file {value.path}; set it with --set {setting}=/path/to/file"
            )
    elif value.server:
        return
    elif value.hub:
        repository = repository_of(value.hub)
        if (reason := away.get(_place(value))) is None:
            hub_folder(repository, value.revision, setting=setting)
        elif cached_folder(repository, value.revision) is None:
            raise Unreachable(f"{setting}: {_NOT_HERE}", reason)
    else:
        local_folder(value, setting=setting)


def _place(value: ModelReference | DataFile) -> str:
    return str(value) if isinstance(value, DataFile) else "the Hugging Face hub"


def _without_network(findings: list[CheckedReference]) -> str:
    """One message for everything to fetch: what, how, and which recipes need no downloads."""
    from clipmill.pipeline.recipes.ready_made import names_without_downloads
    from clipmill.stages.models.loading import as_folder, repository_of

    commands: dict[str, None] = {}
    overrides = []
    for one in findings:
        if isinstance(one.reference, DataFile):
            command, override = how_to_fetch(one.reference, one.setting)
        else:
            repository = repository_of(str(one.reference.hub))
            folder = shell_word(f"./models/{Path(repository).name}")
            revision = (
                f" --revision {shell_word(one.reference.revision)}"
                if one.reference.revision
                else ""
            )
            command = f"hf download {shell_word(repository)}{revision} --local-dir {folder}"
            override = f"--set {one.setting}={folder}"
        commands[command] = None
        overrides.append(override)
    places = dict.fromkeys(
        f"{_place(one.reference)} does not answer ({one.reason})" for one in findings
    )
    return "\n".join(
        [
            f"files for {', '.join(one.setting for one in findings)} are not on this machine, and "
            "can't be downloaded now:",
            *(f"  {place}" for place in places),
            "On a network, these commands download them:",
            *(f"  {command}" for command in commands),
            "Then add this to the command:",
            f"  {' '.join(overrides)}",
            *dict.fromkeys(
                f"{said}." for one in findings if (said := as_folder(one.reference)) is not None
            ),
            f"Recipes that download no models: {', '.join(names_without_downloads())}.",
        ]
    )


def _ask_server(url: str, setting: str) -> None:
    """ClipmillError if nothing answers there; any answer will do, even a request for a key."""
    import httpx

    from clipmill.stages.media.fetch.proxies import proxies_of_environment

    try:
        with proxies_of_environment():
            client = httpx.Client(timeout=SERVER_TIMEOUT_SECONDS)
        with client:
            client.get(f"{url.rstrip('/')}/models")
    except httpx.HTTPError as error:
        raise ClipmillError(
            f"{setting}: no server answers at {url}: {error}; start it, or point "
            f"--set {setting}= to another"
        ) from error
