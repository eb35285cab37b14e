"""Finds videos that are already on disk by the published ids in their files' names.

A name must be that of a whole video: `ID.mp4`, `v_ID.mp4` (ActivityNet), `youtube-ID.mp4` (this
program), `Title [ID].mp4` (yt-dlp) or `Title-ID.mp4` (youtube-dl, for ids of YouTube's length). A
part of a video, such as `ID_10_20.mp4`, or one of a download's separate streams, `ID.f137.mp4`, is
never taken.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import UsageError
from clipmill.schemas.ids import platform_video_id
from clipmill.stages.media.read.suffixes import MEDIA_SUFFIXES

_IN_BRACKETS = re.compile(r".*\[(?P<id>[^\[\]]+)\]\Z", re.S)
_YOUTUBE = 11  # characters of an id
_AFTER_A_DASH = re.compile(rf".+-(?P<id>[A-Za-z0-9_-]{{{_YOUTUBE}}})\Z", re.S)
_PART = re.compile(r"(?P<id>.+?)[_-]\d+(\.\d+)?([_-]\d+(\.\d+)?)?\Z", re.S)


@dataclass(frozen=True)
class FoundFile:
    """A file whose name says that it is a video, and how it says that."""

    path: Path
    matched_by: str
    others: tuple[Path, ...] = ()
    """Further files with the same id, which are not used."""


@dataclass
class FilesOnDisk:
    """The videos in some folders and in those below, by the ids in their names."""

    folders: Sequence[Path]
    unreadable: list[str] = field(default_factory=list)
    """Folders below that could not be listed."""
    _by_stem: dict[str, list[Path]] = field(default_factory=dict)
    _by_bracket: dict[str, list[Path]] = field(default_factory=dict)
    _by_dash: dict[str, list[Path]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for folder in self.folders:
            for path in self._files(folder):
                stem = path.stem
                self._by_stem.setdefault(stem, []).append(path)
                if (found := _IN_BRACKETS.match(stem)) is not None:
                    self._by_bracket.setdefault(found["id"], []).append(path)
                elif (found := _AFTER_A_DASH.match(stem)) is not None:
                    self._by_dash.setdefault(found["id"], []).append(path)

    def _files(self, folder: Path) -> Iterator[Path]:
        def note(error: OSError) -> None:
            self.unreadable.append(f"{error.filename}: {error.strerror}")

        for place, folders, names in os.walk(folder, onerror=note):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in sorted(names):
                if not name.startswith(".") and Path(name).suffix.lower() in MEDIA_SUFFIXES:
                    yield Path(place, name)

    def __len__(self) -> int:
        return sum(map(len, self._by_stem.values()))

    def find(self, extractor: str | None, platform_id: str | None) -> FoundFile | None:
        """The file of a platform's video: in the first folder that has one, the largest."""
        if not extractor or not platform_id:
            return None
        stems = (platform_id, f"v_{platform_id}", platform_video_id(extractor, platform_id))
        found = {
            **dict.fromkeys(self._by_dash.get(platform_id, ()), "Title-ID"),
            **dict.fromkeys(self._by_bracket.get(platform_id, ()), "Title [ID]"),
            **{
                path: stem.replace(platform_id, "ID")
                for stem in stems
                for path in self._by_stem.get(stem, ())
            },
        }
        if not found:
            return None
        best, *others = sorted(found, key=self._rank)
        return FoundFile(best, found[best] + best.suffix, tuple(others))

    def _rank(self, path: Path) -> tuple[int, int, str]:
        number = next(
            (n for n, folder in enumerate(self.folders) if path.is_relative_to(folder)),
            len(self.folders),
        )
        try:
            size = path.stat().st_size
        except OSError:
            size = 0
        return number, -size, str(path)

    def doubled(self) -> list[list[Path]]:
        """Files of the same name, but for folder and ending; of each, the first is used."""
        return [sorted(paths, key=self._rank) for paths in self._by_stem.values() if len(paths) > 1]

    def parts(self) -> int:
        """How many files have the name of a part of a video, such as `ID_10_20.mp4`."""
        return sum(
            len(paths)
            for stem, paths in self._by_stem.items()
            if len(stem) > _YOUTUBE and _PART.match(stem) and not _AFTER_A_DASH.match(stem)
        )


def check_folders(folders: Sequence[Path]) -> None:
    """UsageError for one that is not a folder that can be listed."""
    for folder in folders:
        try:
            with os.scandir(folder):
                pass
        except NotADirectoryError as error:
            raise UsageError(f"--have {folder}: a file; give the folder that it is in") from error
        except FileNotFoundError as error:
            raise UsageError(
                f"--have {folder}: no such folder; mount its disk, or leave --have out to download "
                "those videos"
            ) from error
        except OSError as error:
            raise UsageError(f"--have {folder}: {error.strerror}") from error


def covers(spans: Sequence[dict[str, Any]] | None, duration_seconds: float) -> bool:
    """Whether a file of this length can hold the given spans; one that can't is only a part."""
    ends = [span["end_seconds"] or span["start_seconds"] or 0.0 for span in spans or ()]
    return max(ends, default=0.0) <= duration_seconds + _LEEWAY_SECONDS


_LEEWAY_SECONDS = 2.0
"""Published ends are rounded up, and renditions differ by a frame or an audio packet."""
