"""Finds files of removed videos: which of them belong to the dataset, even behind symlinks.

`media/` may be a link to another disk, and so may folders in it: files there with a video's name
belong to the dataset. A symlinked file belongs to it only if its target is within `media/`; other
targets may be anybody's, and are left and reported.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from clipmill.pipeline.removal.rewriting import RemovalTargets
from clipmill.schemas.folders import MEDIA, MEDIA_CLAIMS, MEDIA_FOUND, MEDIA_READY, MEDIA_WORK


@dataclass
class OwnFiles:
    """The files to delete, each once, and those to leave, with the place that named them."""

    delete: list[Path] = field(default_factory=list)
    left: dict[Path, str] = field(default_factory=dict)
    referenced: int = 0
    """Local files outside the dataset that tables name by path."""


def own_files(dataset: Path, named: set[str], selection: RemovalTargets) -> OwnFiles:
    """Finds all files of the removed videos; `named` are the paths in the tables."""
    found = OwnFiles()
    media = dataset / MEDIA
    places = set()
    for path in named:
        # Only the name counts: the target of a link doesn't decide ownership.
        inner = Path(os.path.normpath(path))
        if inner.is_absolute():
            found.referenced += 1
        elif len(inner.parts) > 1 and inner.parts[0] == MEDIA:
            places.add(dataset / inner)
        elif os.path.lexists(dataset / inner):
            found.left[dataset / inner] = path
    # Also by name: after a killed removal the tables no longer have their paths.
    places.update(_by_name(dataset, selection))
    there = sorted(place for place in places if os.path.lexists(place))
    found.delete += there
    for link in [place for place in there if place.is_symlink()]:
        target = Path(os.path.realpath(link))
        if not os.path.lexists(target) or target in found.delete:
            continue
        if _is_theirs(media, target, places):
            found.delete.append(target)
        else:
            found.left[target] = link.relative_to(dataset).as_posix()
    return found


def _by_name(dataset: Path, selection: RemovalTargets) -> Iterator[Path]:
    if not (dataset / MEDIA).is_dir():
        return
    for path in (dataset / MEDIA).iterdir():
        if path.name.partition(".")[0] in selection.videos:
            yield path
    for key in selection.source_keys:
        yield dataset / MEDIA_WORK / key
        yield dataset / MEDIA_FOUND / f"{key}.json"
        yield from (dataset / MEDIA_READY).glob(f"{key}.*")
    for rules in (dataset / MEDIA_CLAIMS).glob("*"):
        yield from (rules / video for video in selection.videos)


def _is_theirs(media: Path, target: Path, places: set[Path]) -> bool:
    """Whether a link's target is inside `media/` and belongs to no other video."""
    real = Path(os.path.realpath(media))
    if real not in target.parents:
        return False
    inside = media / target.relative_to(real)
    if inside in places:
        return True
    if inside.parent == media or inside.relative_to(media).parts[0].startswith("."):
        return False  # another video's file, or a note
    with os.scandir(media) as entries:
        return not any(
            entry.is_symlink()
            and media / entry.name not in places
            and Path(os.path.realpath(entry.path)) == target
            for entry in entries
        )


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files in a folder; a link counts only itself."""
    if path.is_dir() and not path.is_symlink():
        return sum(file.lstat().st_size for file in path.rglob("*") if not file.is_dir())
    return path.lstat().st_size


def delete(path: Path) -> None:
    """Deletes a file, a folder, or a link but not its target."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
