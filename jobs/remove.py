"""`clipmill remove`: removes videos from a dataset, for good."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import clipmill
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.folders import QUARANTINE
from clipmill.schemas.words import counted, plain_size

if TYPE_CHECKING:
    from clipmill import Purged


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

    Raises ClipmillError if something could not be deleted.
    """
    with clipmill.open(dataset) as opened:
        done = opened.remove(
            videos=videos, uploaders=uploaders, reason=reason, dry_run=dry_run, wait=wait
        )
    if done.earlier is not None:
        print(f"Finishing {counted(done.finished, 'removal')} interrupted earlier:")
        _describe(done.earlier)
    for video in done.removed_before:
        print(f"{video} was already removed.")
    if done.removed is not None:
        if dry_run:
            print("Nothing is changed (--dry-run). This would be removed:")
        _describe(done.removed)
        if not dry_run and (opened.path / QUARANTINE).is_dir():
            print(
                f"Files that `verify --repair` set aside in {opened.path / QUARANTINE} are not "
                "checked; delete that folder if it may contain these videos."
            )
    for note in done.notes:
        print(note, file=sys.stderr)
    if done.left and not dry_run:
        raise ClipmillError(
            f"the videos are out of the dataset, but {counted(len(done.left), 'file')} of theirs "
            "outside media/, named above, could not be deleted; check them yourself"
        )


def _describe(purged: Purged) -> None:
    """What was removed, in readable lines."""
    print(
        f"{counted(purged.videos, 'video')} from {counted(purged.sources, 'source')}, with "
        f"{counted(purged.clips, 'clip')}: {counted(purged.rows, 'row')} of "
        f"{counted(purged.shards, 'shard')}."
    )
    print(f"{counted(purged.files, 'file')} of media and notes, {plain_size(purged.bytes)}.")
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
