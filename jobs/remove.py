"""`clipmill remove`: removes videos from a dataset, for good."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from clipmill.pipeline.dataset.locks import dataset_lock
from clipmill.pipeline.dataset.run_records import check_links, require_dataset
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
from clipmill.schemas.folders import QUARANTINE
from clipmill.schemas.storage import StorageError, writing_to
from clipmill.schemas.words import counted


def remove(
    dataset: Path,
    *,
    videos: Sequence[str] = (),
    uploaders: Sequence[str] = (),
    reason: str | None = None,
    dry_run: bool = False,
    wait: bool = False,
) -> None:
    """Removes videos by id or uploader and reports it; a dry run only lists them.

    Raises UsageError if the dataset has no such video or uploader, before anything is changed;
    ClipmillError if something could not be deleted.
    """
    from datetime import UTC, datetime

    dataset = require_dataset(dataset).absolute()
    check_links(dataset)
    if not videos and not uploaders:
        raise UsageError(
            "say what to remove: --video ID or --uploader NAME, as the view `videos` has them"
        )
    left: dict[Path, str] = {}
    with writing_to(dataset), dataset_lock(dataset, "remove", wait=wait):
        if not dry_run:
            begun = unfinished(dataset)
            if begun:
                print(f"Finishing {counted(len(begun), 'removal')} interrupted earlier:")
                left |= _finish(dataset)
        found = find(dataset, videos, uploaders)
        for video in sorted(found.removed_before):
            print(f"{video} was already removed.")
        if dry_run and found.videos:
            print("Nothing is changed (--dry-run). This would be removed:")
            planned = purge(dataset, found.videos, when=datetime.now(UTC), dry_run=True)
            _describe(planned)
            tell_left(planned)
            return
        if found.videos:
            new_tombstone(dataset, found.videos, reason)
            left |= _finish(dataset)
            if (dataset / QUARANTINE).is_dir():
                print(
                    f"Files that `verify --repair` set aside in {dataset / QUARANTINE} are not "
                    "checked; delete that folder if it may contain these videos."
                )
    if left:
        files = counted(len(left), "file")
        raise ClipmillError(
            f"the videos are out of the dataset, but {files} of theirs outside "
            "media/, named above, could not be deleted; check them yourself"
        )


def _finish(dataset: Path) -> dict[Path, str]:
    """Carries out pending removals and reports them; returns what could not be removed."""
    with _held_all_the_same(dataset):
        purged = finish_removals(dataset)
    _describe(purged)
    tell_left(purged)
    return {} if purged is None else purged.left


@contextlib.contextmanager
def _held_all_the_same(dataset: Path) -> Iterator[None]:
    """Adds the state of the removal to a write error."""
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


def tell_left(purged: Purged | None) -> None:
    """Lists the files that a removal must not delete, on standard error."""
    for note in left_notes(purged):
        print(note, file=sys.stderr)


def _describe(purged: Purged | None) -> None:
    """What was removed, in readable lines."""
    if purged is None:
        return
    print(
        f"{counted(purged.videos, 'video')} from {counted(purged.sources, 'source')}, with "
        f"{counted(purged.clips, 'clip')}: {counted(purged.rows, 'row')} of "
        f"{counted(purged.shards, 'shard')}."
    )
    print(f"{counted(purged.files, 'file')} of media and notes, {_size(purged.bytes)}.")
    if purged.referenced:
        print(
            f"{counted(purged.referenced, 'local file')} outside the dataset "
            f"{'is' if purged.referenced == 1 else 'are'} only referenced, and left alone."
        )
    for name, clips in purged.subsets.items():
        print(
            f"Frozen subset {name} contains {counted(clips, 'clip')} of them: its list of ids "
            "stays the same, and anything shown or exported from now on leaves them out. Make "
            "earlier exports again."
        )


def _size(n_bytes: int) -> str:
    value = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError
