"""Remembers in the user's cache which checks of models have passed, so that runs start at once.

A check is made again when a file of the model, the stage, a setting that matters or the installed
packages have changed. The notes are small, and may be deleted.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import sysconfig
from importlib import metadata
from pathlib import Path

from clipmill.pipeline.dataset.shards import write_json
from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.stages.media.fetch.data_files import cache_folder, local_file
from clipmill.stages.models.loading import cached_folder, local_folder, repository_of
from clipmill.stages.protocol import ModelCheck
from clipmill.stages.references import DataFile, ModelReference

_LIBRARIES = ("clipmill", "torch", "transformers", "tokenizers", "open_clip_torch")


def has_passed(
    step: PlannedStep, check: ModelCheck, value: ModelReference | DataFile
) -> str | None:
    """What the check found, if it has passed before on the same files; else None."""
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
        found = json.loads(_place(step, check, value).read_text("utf-8"))["found"]
        return found if isinstance(found, str) else None
    return None


def note_passed(
    step: PlannedStep, check: ModelCheck, value: ModelReference | DataFile, note: str
) -> None:
    """Remembers it; a cache that can't be written to costs only the next check."""
    with contextlib.suppress(OSError, ValueError):
        write_json(_place(step, check, value), {"found": note})


def _place(step: PlannedStep, check: ModelCheck, value: ModelReference | DataFile) -> Path:
    told = [
        _environment(),
        step.stage.name,
        step.stage.version,
        check.setting,
        [str(one) for one in check.depends_on],
        str(value),
        _files(value),
    ]
    digest = hashlib.sha256(json.dumps(told).encode()).hexdigest()[:32]
    return cache_folder().parent / "checks" / f"{digest}.json"


def _files(value: ModelReference | DataFile) -> list[tuple[str, int, int]]:
    """Names, sizes and times of a model's files."""
    if isinstance(value, DataFile):
        folder = local_file(value, setting="").parent
        paths = [local_file(value, setting="")]
    else:
        found = (
            local_folder(value, setting="")
            if value.folder or value.package
            else cached_folder(repository_of(str(value.hub)), value.revision)
        )
        if found is None:
            raise ValueError(f"{value} is not here")
        folder, paths = found, [path for path in found.rglob("*") if path.is_file()]
    return [
        (path.relative_to(folder).as_posix(), status.st_size, status.st_mtime_ns)
        for path in sorted(paths)
        if (status := path.stat())
    ]


@functools.cache
def _environment() -> list[str]:
    """Versions of what checks use, and when packages were last installed or removed."""
    found = []
    for name in _LIBRARIES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    place = Path(sysconfig.get_path("purelib"))
    with contextlib.suppress(OSError):
        found.append(f"{place} {place.stat().st_mtime_ns}")
    return found
