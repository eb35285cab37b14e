"""Records of removals from a dataset: `removed/<time>-<hex>.json`, one file per removal.

A tombstone is in force from the moment it is written: views, ingest and runs leave out what it
names, even before the shards have been rewritten. `purged_at` says when they were.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

from clipmill.pipeline.dataset.shards import write_json
from clipmill.schemas.damage import DamagedFile, read_json, reading
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.folders import REMOVED, json_files


@dataclass(frozen=True)
class Tombstone:
    """One removal: videos by id, each with the keys of its sources."""

    name: str
    at: datetime
    reason: str | None
    videos: dict[str, tuple[str, ...]]
    purged_at: datetime | None = None

    @cached_property
    def source_keys(self) -> set[str]:
        return {key for keys in self.videos.values() for key in keys}


def new_tombstone(
    dataset: Path, videos: Mapping[str, Iterable[str]], reason: str | None
) -> Tombstone:
    """Writes a tombstone; from then on nothing shows these videos."""
    now = datetime.now(UTC)
    stone = Tombstone(
        f"{now:%Y%m%dT%H%M%S%f}-{uuid.uuid4().hex[:6]}",
        now,
        reason,
        {video: tuple(sorted(keys)) for video, keys in sorted(videos.items())},
    )
    write_tombstone(dataset, stone)
    return stone


def write_tombstone(dataset: Path, stone: Tombstone) -> None:
    write_json(
        dataset / REMOVED / f"{stone.name}.json",
        {
            "at": stone.at.isoformat(),
            "reason": stone.reason,
            "purged_at": stone.purged_at.isoformat() if stone.purged_at else None,
            "videos": [
                {"video_id": video, "source_keys": list(keys)}
                for video, keys in stone.videos.items()
            ],
        },
    )


def tombstones(dataset: Path) -> list[Tombstone]:
    """All removals, oldest first.

    Raises ClipmillError for an unreadable file: skipping it would show removed videos.
    """
    return [_read(path) for path in json_files(dataset / REMOVED)]


def _read(path: Path) -> Tombstone:
    try:
        value = read_json(path)
        with reading(path):
            purged = value["purged_at"]
            return Tombstone(
                path.stem,
                datetime.fromisoformat(value["at"]),
                value["reason"],
                {video["video_id"]: tuple(video["source_keys"]) for video in value["videos"]},
                datetime.fromisoformat(purged) if purged else None,
            )
    except DamagedFile as error:
        raise ClipmillError(
            f"{path} records what was removed from the dataset, and can't be read "
            f"({error.reason}); fix it, or delete it and remove those "
            "videos again"
        ) from error


def removed_videos(dataset: Path) -> dict[str, str]:
    """Ids of the removed videos, each with the text of its (last) removal time."""
    return {
        video: f"{stone.at:%Y-%m-%d %H:%M:%S} UTC"
        for stone in tombstones(dataset)
        for video in stone.videos
    }


def removed_sources(dataset: Path) -> dict[str, str]:
    """Keys of the removed sources, each with the text of its (last) removal time."""
    return {
        key: f"{stone.at:%Y-%m-%d %H:%M:%S} UTC"
        for stone in tombstones(dataset)
        for key in stone.source_keys
    }
