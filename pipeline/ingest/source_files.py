"""Selects the files of a folder or a pattern that are sources; counts the others by kind."""

# A folder may hold a million files, and path objects would take most of the time.
# ruff: noqa: PTH100, PTH111, PTH112, PTH113, PTH114, PTH118, PTH207
from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from clipmill.pipeline.ingest.source_lists import LIST_SUFFIXES
from clipmill.schemas.words import counted
from clipmill.stages.media.read.suffixes import MEDIA_SUFFIXES, has_media_head, suffix_of

ALL_SUFFIXES = "all"
"""In place of suffixes: accepts every file, whatever its name."""
WITHOUT_SUFFIX = "without a suffix"
FOLDER = "folder"
LINK = "link to a folder"
ARCHIVES = frozenset((".tar", ".tgz", ".zip", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar"))
_KINDS_SHOWN = 6


class Finder:
    """Lists accepted files; counts the others in `passed_over`.

    Files are accepted by their suffix, those without one by their first bytes. `more_suffixes` are
    accepted, too. Hidden files and folders are ignored. `unreadable` has the folders that can't be
    read, with the reasons.
    """

    def __init__(self, more_suffixes: Collection[str] = ()) -> None:
        self.passed_over: Counter[str] = Counter()
        self.unreadable: list[tuple[str, str]] = []
        self._takes_all = ALL_SUFFIXES in more_suffixes
        self._suffixes = MEDIA_SUFFIXES | frozenset(more_suffixes)

    def in_folder(self, folder: Path) -> Iterator[str]:
        """Files below a folder, in the order of their paths."""
        for parent, folders, files in os.walk(folder, onerror=self._note_unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            self.passed_over[LINK] += sum(
                os.path.islink(os.path.join(parent, name)) for name in folders
            )
            for name in sorted(files):
                if not name.startswith(".") and self.takes(os.path.join(parent, name)):
                    yield os.path.join(parent, name)

    def lists_of_pattern(self, base: Path, pattern: str) -> list[str]:
        return [path for path in _matches(base, pattern) if os.path.isfile(path)]

    def of_pattern(self, base: Path, pattern: str) -> Iterator[str]:
        """Files that match a pattern; a suffix that it spells out is accepted.

        The pattern is relative to the folder `base`, whose own name is never treated as a pattern.
        """
        spelt_out = suffix_of(pattern)
        for path in _matches(base, pattern):
            if os.path.isdir(path):
                # `**` also matches folders and everything in them.
                self.passed_over[FOLDER] += "**" not in pattern
            elif spelt_out == (suffix_of(path) or None) or self.takes(path):
                yield path

    def takes(self, path: str) -> bool:
        """Whether a file is a source; otherwise it is counted."""
        suffix = suffix_of(path)
        if self._takes_all or suffix in self._suffixes:
            return True
        if not suffix and ("" in self._suffixes or has_media_head(path)):
            return True
        self.passed_over[suffix or WITHOUT_SUFFIX] += 1
        return False

    def _note_unreadable(self, error: OSError) -> None:
        self.unreadable.append((str(error.filename), error.strerror or str(error)))


def _matches(base: Path, pattern: str) -> list[str]:
    whole = os.path.join(glob.escape(str(base)), os.path.expanduser(pattern))
    return [os.path.abspath(name) for name in sorted(glob.glob(whole, recursive=True))]


def describe_passed_over(passed_over: Mapping[str, int]) -> str:
    """`3 files passed over: 2 .jpg, 1 .txt; …takes them`, or nothing."""
    counts = Counter({kind: count for kind, count in passed_over.items() if count})
    links, folders = counts.pop(LINK, 0), counts.pop(FOLDER, 0)
    parts = []
    if total := counts.total():
        common = counts.most_common()
        shown = [f"{count:,} {kind}" for kind, count in common[:_KINDS_SHOWN]]
        if len(common) > _KINDS_SHOWN:
            shown.append(f"{sum(count for _, count in common[_KINDS_SHOWN:]):,} others")
        parts.append(f"{counted(total, 'file')} passed over: {', '.join(shown)}")
        parts += _ways_to_use(counts)
    if links:
        parts.append(f"{counted(links, 'link')} to folders not followed")
    if folders:
        parts.append(
            f"{counted(folders, 'folder')} not searched; use `**` in a pattern for everything below"
        )
    return "; ".join(parts)


def _ways_to_use(counts: Counter[str]) -> Iterator[str]:
    """How to use files of these kinds, if they are not what usually lies next to videos."""
    lists, archives = (
        [kind for kind, _ in counts.most_common() if kind in kinds]
        for kinds in (LIST_SUFFIXES, ARCHIVES)
    )
    others = counts.keys() - set(lists) - set(archives)
    if others:
        shown = [kind for kind, _ in counts.most_common() if kind in others][:_KINDS_SHOWN]
        value = ALL_SUFFIXES if WITHOUT_SUFFIX in others else ",".join(shown)
        takes_all = value == ALL_SUFFIXES or len(shown) == len(counts)
        them = ("it" if counts.total() == 1 else "them") if takes_all else "such files"
        yield f"`--set take_suffixes={value}` takes {them}"
    elif lists:
        yield f"lists are read if you name them: --sources 'FOLDER/*{lists[0]}'"
    if archives:
        yield "archives are not opened: unpack them"
