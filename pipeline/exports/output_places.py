"""Refuses outputs of commands among a dataset's own files."""

from __future__ import annotations

import os
from pathlib import Path

from clipmill.schemas.errors import UsageError
from clipmill.schemas.folders import COMMITS, LOCK, MEDIA, OWN_FOLDERS, SCRATCH


def check_output(dataset: Path, output: Path | None, option: str = "--output") -> None:
    """UsageError if an output is a place where the dataset keeps, or will keep, its own files."""
    if output is None:
        return

    # Both as written and resolved: `media/` may be a link to another disk.
    for place in (Path(os.path.normpath(output.absolute())), Path(os.path.realpath(output))):
        for root in (dataset.absolute(), Path(os.path.realpath(dataset))):
            inner = _inside(place, Path(os.path.normpath(root)))
            if inner is not None and (not inner or _is_own(root, inner[0])):
                what = f"{inner[0]} there" if inner else "the folder itself"
                raise UsageError(
                    f"{option} {output}: this is inside the dataset {dataset}, which "
                    f"keeps its own files in {what}; give a place outside it"
                )
        if _inside(place, Path(os.path.realpath(dataset / MEDIA))) is not None:
            raise UsageError(
                f"{option} {output}: the dataset {dataset} keeps its media there; "
                "give another place"
            )


def _inside(place: Path, folder: Path) -> tuple[str, ...] | None:
    return place.relative_to(folder).parts if place.is_relative_to(folder) else None


def _is_own(dataset: Path, name: str) -> bool:
    # Imported here: most commands have no output and should not wait for these imports.
    from clipmill.pipeline.dataset.shards import committed_shards
    from clipmill.stages.built_in import built_in_stage_names

    own = (*OWN_FOLDERS, LOCK, COMMITS, SCRATCH, *built_in_stage_names())
    if name in own:
        return True
    folder = dataset / name
    # The tables of a custom stage, or further ones of a stage.
    return folder.is_dir() and any(
        inner.is_dir() and committed_shards(inner) for inner in folder.iterdir()
    )
