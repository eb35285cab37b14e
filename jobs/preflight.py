"""What a recipe needs and this machine may lack: said before a run starts, not hours into it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from pipeline.plan import Step
from schemas.errors import ClipmillError, UsageError
from stages.models.references import ModelReference

SERVER_TIMEOUT_SECONDS = 5.0


def check_models(steps: Iterable[Step]) -> None:
    """Fetches what the hub has and raises ClipmillError with everything that can't be had."""
    problems = [problem for _, problem in examine_models(steps) if problem]
    if problems:
        raise ClipmillError("\n".join(problems))


def examine_models(steps: Iterable[Step]) -> Iterator[tuple[str, str | None]]:
    """Every model and data file that steps name, as `setting: reference`, with its problem."""
    for step in steps:
        for name, value in step.stage.references().items():
            setting = f"{step.stage_label}.{name}"
            if isinstance(value, ModelReference):
                yield f"{setting}: {value}", _problem_of_model(value, setting)
            else:
                found = Path(value.path).is_file()
                yield f"{setting}: {value.path}", None if found else (
                    f"{setting}: there is no file {value.path}; set it with "
                    f"--set {setting}=/path/to/file")


def _problem_of_model(reference: ModelReference, setting: str) -> str | None:
    from stages.models.loading import hub_folder, local_folder, repository_of

    try:
        if reference.server:
            _ask_server(reference.server, setting)
        elif reference.hub:
            hub_folder(repository_of(reference.hub), reference.revision, setting=setting)
        else:
            local_folder(reference, setting=setting)
    except (ClipmillError, UsageError) as error:
        return str(error)
    return None


def _ask_server(url: str, setting: str) -> None:
    import httpx

    from stages.media.proxies import proxies_of_environment

    try:
        # Any answer will do, also one that asks for a key: somebody is there.
        with proxies_of_environment():
            client = httpx.Client(timeout=SERVER_TIMEOUT_SECONDS)
        with client:
            client.get(f"{url.rstrip('/')}/models")
    except httpx.HTTPError as error:
        raise ClipmillError(f"{setting}: no server answers at {url}: {error}; start it, or point "
                            f"--set {setting}= to another") from error
