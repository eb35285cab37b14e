"""The export's folder: who owns it, what has been done, and what it finally contains.

export.json     the request and its source, written first; with counts and files at the end
.work/          rows, units and notes of an unfinished export; deleted when it is finished
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from clipmill.pipeline.dataset.shards import write_json
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.file_locks import is_still_at, try_lock

MANIFEST = "export.json"
WORK = ".work"
VERSION = 1
_LOCK = "lock"
_OURS = frozenset((_LOCK, "token", "rows", ".rows.tmp", "units", "cut", "shards"))
"""Everything that an export writes into its `.work/`."""
_TRIES = 5


class ExportFolder:
    """One export's folder, held by this process alone while it is open."""

    def __init__(self, path: Path, manifest: dict[str, Any] | None) -> None:
        self.path = path
        self.manifest = manifest

    @property
    def work(self) -> Path:
        return self.path / WORK

    @property
    def is_finished(self) -> bool:
        return self.manifest is not None and self.manifest["state"] == "finished"

    def begin(self, asked: Mapping[str, Any], clips_of: Mapping[str, Any]) -> None:
        """Claims the folder for this export, which may be a resumed one.

        `clips_of` identifies the source of the clips, by hash. Raises UsageError if the folder
        holds another export.
        """
        wanted = {"asked": dict(asked), "clips_of": dict(clips_of)}
        if self.manifest is not None:
            self._compare(wanted)
            return
        self.manifest = {"clipmill_export": VERSION, "state": "in progress", **wanted}
        write_json(self.path / MANIFEST, self.manifest)

    def finish(self, found: Mapping[str, Any], *, removed: str) -> None:
        """Writes the final manifest and deletes the work files.

        `removed` is the hash of what has been removed from the dataset so far, if that matters.
        """
        assert self.manifest is not None  # begin() made it
        clips_of = dict(self.manifest["clips_of"])
        if "removed" in clips_of:
            clips_of["removed"] = removed
        done = {**self.manifest, "state": "finished", "clips_of": clips_of, **found}
        write_json(self.path / MANIFEST, done)
        self.manifest = done
        self.clean()

    def abandon(self) -> None:
        """Gives up the folder, as if the export had never started."""
        (self.path / MANIFEST).unlink(missing_ok=True)
        self.manifest = None

    def clean(self) -> None:
        """Deletes the work files, but nothing that somebody else put there."""
        for name in sorted(_OURS - {_LOCK}):
            path = self.work / name
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)
        # Last: a process that has the lock file open sees that it is gone.
        (self.work / _LOCK).unlink(missing_ok=True)
        with contextlib.suppress(OSError):
            self.work.rmdir()

    def _compare(self, wanted: Mapping[str, Any]) -> None:
        assert self.manifest is not None  # only called if there is a manifest
        there = self.manifest
        different = []
        for name, value in wanted["asked"].items():
            if there["asked"].get(name) != value:
                different.append(
                    f"--{name.replace('_', '-')} was "
                    f"{there['asked'].get(name)!r} and is now {value!r}"
                )
        if not different and there["asked"] != wanted["asked"]:
            different.append("different options were given")
        if different:
            raise UsageError(
                f"{self.path} contains a different export: {'; '.join(different)}. "
                "Give another --output, or delete that folder"
            )
        now, then = dict(wanted["clips_of"]), dict(there["clips_of"])
        if not self.is_finished:
            # Clips that were removed since are left out of the rest.
            now.pop("removed", None)
            then.pop("removed", None)
        if then != now:
            begun = "was finished" if self.is_finished else "began"
            raise UsageError(
                f"{self.path} contains an export of the dataset or subset in the state when that "
                f"export {begun}, and it has changed since. Give another --output, or delete that "
                "folder; a frozen subset (`clipmill subset create`) stays the same while the "
                "dataset grows"
            )


@contextlib.contextmanager
def open_folder(path: Path) -> Iterator[ExportFolder]:
    """Opens the folder to export into: a new one, or that of an unfinished export.

    Raises UsageError for a folder with other contents, ClipmillError while another process exports
    into it.
    """
    _check_free(path, read_manifest(path))
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    with _locked(path):
        # Another export may have started and ended meanwhile: the current contents count.
        manifest = read_manifest(path)
        folder = ExportFolder(path, manifest)
        try:
            _check_free(path, manifest)
            yield folder
        finally:
            if folder.manifest is None or folder.is_finished:
                folder.clean()
            if folder.manifest is None:
                with contextlib.suppress(OSError):
                    for empty in made:
                        empty.rmdir()  # nothing was started


def _check_free(path: Path, manifest: Mapping[str, Any] | None) -> None:
    """UsageError if it has anything but an export, or the leftovers of a killed start."""
    if path.exists() and not path.is_dir():
        raise UsageError(f"--output {path}: this is a file; give a folder")
    if manifest is not None or not path.is_dir():
        return
    others = sorted(
        name
        for name in os.listdir(path)
        if not name.startswith(f".{Path(MANIFEST).stem}~")
        and not (name == WORK and _is_ours(path / WORK))
    )
    if others:
        raise UsageError(
            f"--output {path}: the folder is not empty ({_some(others)}) and contains "
            "no export to resume; give a new or empty folder"
        )


def _is_ours(work: Path) -> bool:
    """Whether a `.work/` without a manifest belongs to an export that was just started."""
    if not work.is_dir():
        return False
    names = set(os.listdir(work))
    return not names or (_LOCK in names and names <= _OURS)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[IO[str]]:
    """Creates the folder if it doesn't exist, and holds its lock."""
    lock = path / WORK / _LOCK
    for _ in range(_TRIES):
        try:
            lock.parent.mkdir(parents=True, exist_ok=True)
            file = os.fdopen(os.open(lock, os.O_WRONLY | os.O_CREAT, 0o666), "w")
        except FileNotFoundError:
            continue  # an export that ended has just deleted its `.work/`
        except OSError as error:
            raise UsageError(f"--output {path}: cannot be written to: {error.strerror}") from error
        with file:
            try:
                is_ours = try_lock(file)
            except OSError as error:
                raise ClipmillError(
                    f"{lock} cannot be locked ({error.strerror}): the file system "
                    "must support flock"
                ) from error
            if not is_ours:
                raise _in_use(path)
            if is_still_at(lock, file):
                yield file
                return
    raise _in_use(path)


def _in_use(path: Path) -> ClipmillError:
    return ClipmillError(
        f"another process is exporting into {path}; wait until it is done, or "
        "stop it and run this again"
    )


def read_manifest(path: Path) -> dict[str, Any] | None:
    """An export's own record; None if there is none."""
    try:
        found = json.loads((path / MANIFEST).read_text("utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise UsageError(
            f"{path / MANIFEST} is not the manifest of an export: {error}; give another --output"
        ) from error
    if not isinstance(found, dict) or found.get("clipmill_export") != VERSION:
        raise UsageError(
            f"{path / MANIFEST} belongs to an export of another version; give another --output"
        )
    return found
