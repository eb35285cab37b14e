"""Checks before a run starts that this machine has, or can fetch, what a recipe needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.media.fetch.data_files import Unreachable, how_to_fetch, local_file
from clipmill.stages.references import DataFile, ModelReference

SERVER_TIMEOUT_SECONDS = 5.0
_NOT_HERE = "not on this machine, and its download site does not answer"


@dataclass(frozen=True)
class CheckedReference:
    """A model or data file that a step names, and why it is unavailable (None if it is available).

    `reason` is set if its server did not answer.
    """

    setting: str
    reference: ModelReference | DataFile
    problem: str | None = None
    reason: str | None = None

    def __str__(self) -> str:
        return f"{self.setting}: {self.reference}"


def check_models(steps: Iterable[PlannedStep]) -> None:
    """Fetches what is missing and raises ClipmillError listing everything that can't be fetched."""
    if problems := problems_of(list(examine_models(steps))):
        raise ClipmillError("\n".join(problems))


def problems_of(findings: list[CheckedReference]) -> list[str]:
    """Messages about findings; everything on unreachable servers shares one message."""
    said = [one.problem for one in findings if one.problem and one.reason is None]
    unreachable = [one for one in findings if one.reason is not None]
    return said if not unreachable else [*said, _without_network(unreachable)]


def examine_models(steps: Iterable[PlannedStep]) -> Iterator[CheckedReference]:
    """Every model and data file that steps name, fetched if possible.

    Once the hub has not answered it is not contacted again: each attempt would take seconds.
    """
    away: dict[str, str] = {}  # reasons, by place
    for step in steps:
        for name, value in step.stage.references().items():
            setting = f"{step.stage_label}.{name}"
            try:
                _get(value, setting, away)
            except Unreachable as error:
                away.setdefault(_place(value), error.reason)
                yield CheckedReference(setting, value, f"{setting}: {_NOT_HERE}", error.reason)
            except (ClipmillError, UsageError) as error:
                yield CheckedReference(setting, value, str(error))
            else:
                yield CheckedReference(setting, value)


def _get(value: ModelReference | DataFile, setting: str, away: dict[str, str]) -> None:
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
        for address in value.servers:
            _ask_server(address, setting)
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
    from clipmill.stages.models.loading import repository_of

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
            f"Recipes that download no models: {', '.join(names_without_downloads())}.",
        ]
    )


def _ask_server(url: str, setting: str) -> None:
    import httpx

    from clipmill.stages.media.fetch.proxies import proxies_of_environment

    try:
        # Any answer will do, even a request for a key: the server exists.
        with proxies_of_environment():
            client = httpx.Client(timeout=SERVER_TIMEOUT_SECONDS)
        with client:
            client.get(f"{url.rstrip('/')}/models")
    except httpx.HTTPError as error:
        raise ClipmillError(
            f"{setting}: no server answers at {url}: {error}; start it, or point "
            f"--set {setting}= to another"
        ) from error
