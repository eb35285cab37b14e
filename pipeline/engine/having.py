"""Videos that are already on disk: `run --have FOLDER`, checked and described before a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path

from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.pipeline.recipes.recipe import LoadedRecipe
from clipmill.schemas.errors import UsageError
from clipmill.schemas.words import counted
from clipmill.stages.download_videos import DownloadVideos
from clipmill.stages.media.fetch.files_on_disk import FilesOnDisk, check_folders


def with_folders(loaded: LoadedRecipe, folders: Sequence[Path]) -> LoadedRecipe:
    """The recipe whose downloads also look into these folders."""
    if not folders:
        return loaded
    stages = dict(loaded.stages)
    label = next((n for n, stage in stages.items() if isinstance(stage, DownloadVideos)), None)
    if label is None:
        raise UsageError(
            f"--have: recipe {loaded.name} has no stage download_videos, which would use the files"
        )
    stage = stages[label]
    assert isinstance(stage, DownloadVideos)
    given = [folder.expanduser().absolute() for folder in folders]
    stages[label] = stage.model_copy(
        update={"have": list(dict.fromkeys([*given, *stage.have]))}  # the caller's come first
    )
    return dataclasses.replace(loaded, stages=stages)


def describe_folders(steps: Iterable[PlannedStep]) -> str | None:
    """What the folders of `have` hold; UsageError for one that can't be listed."""
    folders = [
        folder
        for step in steps
        if isinstance(step.stage, DownloadVideos)
        for folder in step.stage.have
    ]
    if not folders:
        return None
    check_folders(folders)
    found = FilesOnDisk(folders)
    parts, doubled = found.parts(), found.doubled()
    said = [
        f"{', '.join(map(str, folders))}: {counted(len(found) - parts, 'video')} to look for "
        "published ids in."
    ]
    if parts:
        said.append(
            f"{counted(parts, 'more file')} named as parts of videos (ID_10_20.mp4) "
            f"{'is' if parts == 1 else 'are'} not used."
        )
    if doubled:
        first, second, *_ = doubled[0]
        said.append(
            f"{counted(len(doubled), 'name')} {'is' if len(doubled) == 1 else 'are'} there more "
            f"than once: {first} is used, and not {second}."
        )
    if found.unreadable:
        said.append(f"Not readable: {'; '.join(found.unreadable[:5])}.")
    return " ".join(said)
