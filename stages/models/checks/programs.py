"""Checks of models for servers that the run starts: their files, and the environment for them."""

from __future__ import annotations

import subprocess
from pathlib import Path

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.checks.skeleton import check_files
from clipmill.stages.models.engines.programs import ServerPrograms
from clipmill.stages.references import ModelReference

_FIND = "import importlib.util, sys; sys.exit(3 * (importlib.util.find_spec({!r}) is None))"
_NOT_FOUND = 3
# Of an interpreter that only looks for a module.
_PATIENCE_SECONDS = 60.0


class NotOnThisMachine(ClipmillError):
    """Something is missing here that only the nodes of the workers need."""


def check_program(reference: ModelReference, programs: ServerPrograms, setting: str) -> str:
    """What is known of a model that a server of the run loads; ClipmillError if none can start."""
    said = check_files(reference, setting)
    python, module = Path(programs.program.python), programs.name
    label = setting.rpartition(".")[0]
    if not python.is_file():
        raise NotOnThisMachine(
            f"{label}.engine: no Python at {python}; install {module} in an environment of its "
            "own, and name that environment's bin/python"
        )
    try:
        looked = subprocess.run(
            [str(python), "-c", _FIND.format(module)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except OSError as error:
        raise NotOnThisMachine(
            f"{label}.engine: {python} can't be started: {error.strerror}; name the bin/python of "
            f"an environment with {module}"
        ) from error
    except subprocess.TimeoutExpired:
        return said
    if looked.returncode == _NOT_FOUND:
        raise NotOnThisMachine(
            f"{label}.engine: {module} is not installed for {python}; install it there, or name "
            "the Python of another environment"
        )
    return said
