"""`clipmill remove`: takes videos out of a dataset, for good."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from jobs.locking import dataset_lock
from pipeline.records import require_dataset
from pipeline.removal import Purged, find, finish_removals, purge, unfinished
from pipeline.tombstones import new_tombstone
from pipeline.verify.layout import QUARANTINE
from schemas.errors import UsageError


def remove(
    dataset: Path,
    *,
    videos: Sequence[str] = (),
    uploaders: Sequence[str] = (),
    reason: str | None = None,
    dry_run: bool = False,
    wait: bool = False,
) -> None:
    """Removes videos by id or by uploader and says what went; a dry run only says what would.

    Raises UsageError where the dataset has no such video or uploader, before anything is done.
    """
    from datetime import UTC, datetime

    dataset = require_dataset(dataset).absolute()
    if not videos and not uploaders:
        raise UsageError("say what to remove: --video ID or --uploader NAME, as the view `videos` "
                         "has them")
    with dataset_lock(dataset, "remove", wait=wait):
        if not dry_run:
            begun = unfinished(dataset)
            if begun:
                print(f"Finishing {len(begun)} removal{'s' if len(begun) > 1 else ''} that had "
                      "been stopped:")
                _describe(finish_removals(dataset))
        found = find(dataset, videos, uploaders)
        for video in sorted(found.removed_before):
            print(f"{video} was removed before.")
        if not found.videos:
            return
        if dry_run:
            print("Nothing is changed (--dry-run). This would go:")
            _describe(purge(dataset, found.videos, when=datetime.now(UTC), dry_run=True))
            return
        new_tombstone(dataset, found.videos, reason)
        _describe(finish_removals(dataset))
        if (dataset / QUARANTINE).is_dir():
            print(f"What `verify --repair` set aside in {dataset / QUARANTINE} is not looked into; "
                  "delete it where it may hold these videos.")


def _describe(purged: Purged | None) -> None:
    """What went, in lines for people."""
    if purged is None:
        return
    print(f"{_count(purged.videos, 'video')} from {_count(purged.sources, 'source')}, with "
          f"{_count(purged.clips, 'clip')}: {_count(purged.rows, 'row')} of "
          f"{_count(purged.shards, 'shard')}.")
    print(f"{_count(purged.files, 'file')} of media and notes, {_size(purged.bytes)}.")
    if purged.referenced:
        print(f"{_count(purged.referenced, 'local file')} outside the dataset "
              f"{'is' if purged.referenced == 1 else 'are'} referenced only, and left alone.")
    for name, clips in purged.subsets.items():
        print(f"Frozen subset {name} holds {_count(clips, 'clip')} of them: its list of ids stays "
              "as it is, and what is shown or exported from now on leaves them out. Exports made "
              "before have to be made again.")


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'' if number == 1 else 's'}"


def _size(n_bytes: int) -> str:
    value = float(n_bytes)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            return f"{value:.0f} {unit}" if unit == "bytes" else f"{value:.1f} {unit}"
        value /= 1000
    raise AssertionError
