"""Removes videos under the dataset's lock, and finishes removals that were interrupted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from clipmill.pipeline.dataset.locks import dataset_lock
from clipmill.pipeline.dataset.run_records import check_links
from clipmill.pipeline.dataset.tombstones import new_tombstone
from clipmill.pipeline.removal.purge import (
    Purged,
    find,
    finish_removals,
    left_notes,
    purge,
    unfinished,
)
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.storage import StorageError, writing_to


@dataclass(frozen=True)
class Removal:
    """What `remove` did, or would do if `is_dry_run`."""

    removed: Purged | None
    """None if all videos had been removed before."""
    removed_before: tuple[str, ...] = ()
    finished: int = 0
    """How many earlier, interrupted removals were finished."""
    earlier: Purged | None = None
    """What those removed."""
    is_dry_run: bool = False

    @property
    def left(self) -> dict[Path, str]:
        """Files of the videos that could not be deleted, with the links that lead to them."""
        parts = (self.earlier, self.removed)
        return {path: place for part in parts if part for path, place in part.left.items()}

    @property
    def notes(self) -> list[str]:
        """The same, one sentence per file."""
        return [*left_notes(self.earlier), *left_notes(self.removed)]


def remove_videos(
    dataset: Path,
    videos: Sequence[str] = (),
    uploaders: Sequence[str] = (),
    *,
    reason: str | None = None,
    dry_run: bool = False,
    wait: bool = False,
) -> Removal:
    """Removes videos by id or uploader; a dry run only counts.

    Raises UsageError if the dataset has no such video or uploader, before anything is done.
    """
    check_links(dataset)
    if not videos and not uploaders:
        raise UsageError(
            "say what to remove: --video ID or --uploader NAME, as the view `videos` has them"
        )
    with writing_to(dataset), dataset_lock(dataset, "remove", wait=wait):
        found = find(dataset, videos, uploaders)
        if dry_run:
            planned = purge(dataset, found.videos, when=datetime.now(UTC), dry_run=True)
            return Removal(
                planned if found.videos else None,
                tuple(sorted(found.removed_before)),
                is_dry_run=True,
            )
        begun = unfinished(dataset)
        earlier = _finish(dataset) if begun else None
        before = found.removed_before | {
            video for stone in begun for video in stone.videos if video in found.videos
        }
        new = {video: keys for video, keys in found.videos.items() if video not in before}
        removed = None
        if new:
            new_tombstone(dataset, new, reason)
            removed = _finish(dataset)
        return Removal(removed, tuple(sorted(before)), len(begun), earlier)


def _finish(dataset: Path) -> Purged | None:
    with _in_force_anyway(dataset):
        return finish_removals(dataset)


@contextlib.contextmanager
def _in_force_anyway(dataset: Path) -> Iterator[None]:
    """Adds to a write error what this means for the removal."""
    holds = (
        "The removal is in force anyway: nothing shows these videos; the next `clipmill "
        "remove` or `clipmill run` deletes the rest"
    )
    try:
        with writing_to(dataset):
            yield
    except StorageError as error:
        raise StorageError(f"{error}. {holds}") from error
    except OSError as error:
        where = error.filename2 or error.filename or "the dataset"
        raise ClipmillError(f"{where}: {error.strerror or error}. {holds}") from error
