"""The dataset's `media/` folder: complete files only, one per video, each claimed by one source.

media/<video_id>.<ext>                 videos
media/.work/<source_key>/              an unfinished download
media/.hosts/                          turns at hosts, see stages/media/fetch/host_throttle.py
media/.ready/<source_key>.<ext>        complete and checked, not yet claimed
media/.found/<source_key>.json         what is known about a source's file
media/.claims/<settings>/<video_id>    key and URL of the source that has this video
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import RowRejected
from clipmill.schemas.file_locks import is_still_at, try_lock
from clipmill.schemas.folders import LOCK, MEDIA, MEDIA_CLAIMS, MEDIA_FOUND, MEDIA_READY, MEDIA_WORK
from clipmill.stages.media.isolation.progress import LargeFile
from clipmill.stages.media.read.probe import Probe


@dataclass(frozen=True)
class Media:
    """One complete video file and all that is known about it.

    `origin` identifies the requested bytes: a file found under another origin is not reused, unless
    it holds the requested part of the same video, whose whole file is `video_origin`.
    `referenced` is the absolute path of a local file that stays in its place. A file that holds a
    section of the video has the time at which it begins, and the length of the whole video.

    `tracks` are the fetched subtitles, requested as `tracks_origin` says; `failed_parts` gives by
    name the missing parts and why they are missing. `former` are the earlier SHA-256s of the file,
    oldest first, from before sound was added to it.
    """

    origin: str
    video_id: str
    sha256: str
    size_bytes: int
    probe: Probe
    extractor: str | None = None
    platform_id: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    subtitles: list[dict[str, Any]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    downloaded_at: datetime | None = None
    referenced: str | None = None
    decoded_frames: int = 0
    starts_at_seconds: float | None = None
    video_seconds: float | None = None
    tracks: list[str] = field(default_factory=list)
    tracks_origin: str | None = None
    failed_parts: dict[str, dict[str, Any]] = field(default_factory=dict)
    former: list[str] = field(default_factory=list)
    video_origin: str | None = None

    @property
    def clock_starts_at_seconds(self) -> float | None:
        """The file's first timestamp; that of a section was set to 0."""
        return self.probe.clock_starts_at_seconds if self.starts_at_seconds is None else 0.0

    @property
    def duration_seconds(self) -> float:
        """The length of the whole video."""
        return self.video_seconds or self.probe.duration_seconds


@dataclass(frozen=True)
class PartOfVideo:
    """A requested part of a video, and the origin of the video's whole file."""

    video_origin: str
    first_seconds: float
    last_seconds: float

    def is_in(self, note: Mapping[str, Any]) -> bool:
        """Whether a file that was fetched earlier, by its note, holds the part."""
        if self.video_origin not in (note["origin"], note.get("video_origin")):
            return False
        if (start := note.get("starts_at_seconds")) is None:
            return True  # the whole video
        end = start + note["probe"]["duration_seconds"]
        return bool(start <= self.first_seconds and self.last_seconds <= end)


class MediaStore:
    """Files and notes of one dataset; `settings` are those that decide which videos are kept."""

    def __init__(self, dataset: Path, settings: Mapping[str, Any]) -> None:
        self._dataset = dataset
        self.folder = dataset / MEDIA
        # Other rules keep other videos, so another of two equal files may come first.
        rules = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
        self._claims = dataset / MEDIA_CLAIMS / rules.hexdigest()[:12]
        self._ready = dataset / MEDIA_READY
        self._found = dataset / MEDIA_FOUND
        for folder in (self._claims, self._ready, self._found):
            folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def work_folder(self, source_key: str, *, go_on: bool = False) -> Iterator[Path]:
        """A folder for one download, used by nobody else and deleted afterwards.

        What a killed run left there is deleted, or kept if `go_on` is set.
        """
        folder = self._dataset / MEDIA_WORK / source_key
        try:
            lock = _hold(folder)
        except BlockingIOError:
            # Another worker that was presumed dead still works on this source.
            folder, lock = folder.with_name(f"{source_key}.{uuid.uuid4().hex[:8]}"), None
        if lock is None or not go_on:
            _empty(folder)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            if lock is not None:
                os.close(lock)

    def found(
        self, source_key: str, origin: str, *former: str, part: PartOfVideo | None = None
    ) -> Media | None:
        """What an earlier run recorded about a source, if it requested the same bytes.

        `former` are the names that earlier releases had for the same origin. A file that was
        requested for another part of the video, but holds this `part`, will do, too.
        """
        try:
            value = json.loads((self._found / f"{source_key}.json").read_text("utf-8"))
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        is_same = value["origin"] in (origin, *former)
        if not is_same and (part is None or not part.is_in(value)):
            return None
        del value["origin"]
        at = value.pop("downloaded_at")
        media = Media(
            origin,
            probe=Probe(**value.pop("probe")),
            downloaded_at=datetime.fromisoformat(at) if at else None,
            **value,
        )
        if media.starts_at_seconds is not None and media.probe.clock_starts_at_seconds is None:
            # older versions measured a section's times from the time 0 of the whole file
            return None
        return media

    def file_of(self, source_key: str, media: Media) -> Path | None:
        """The path of a source's file that was fetched earlier; None if it is missing."""
        return self._place(source_key, media)

    def add(self, source_key: str, file: Path, media: Media) -> None:
        """Stores a complete file from this dataset's file system, with what is known about it.

        A file that was made from a `former` one replaces that one in `keep`.
        """
        _sync(file)
        os.replace(file, self._ready_path(source_key, media))
        self.note(source_key, media)

    def note(self, source_key: str, media: Media) -> None:
        """Records what is known about a source's file."""
        value = asdict(media)
        value.update(decoded_frames=0, referenced=None)
        value["downloaded_at"] = media.downloaded_at.isoformat() if media.downloaded_at else None
        path = self._found / f"{source_key}.json"
        temporary = path.with_suffix(f".{uuid.uuid4().hex[:8]}.tmp")
        try:
            temporary.write_text(json.dumps(value), "utf-8")
            _sync(temporary)
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise

    def check_claim(self, source_key: str, video_id: str) -> None:
        """Raises RowRejected if another source already has this video."""
        with contextlib.suppress(FileNotFoundError):
            self._compare(source_key, self._claims / video_id, video_id)

    def keep(self, source_key: str, url: str, media: Media) -> str:
        """The path to store the video at; RowRejected if another source already has it.

        Safe across threads, processes and runs: the first to create the claim file has the video.
        """
        claim = self._claims / media.video_id
        # The complete claim file is linked to its name, so that nobody reads an incomplete one.
        own = claim.with_name(f".{source_key}.{uuid.uuid4().hex[:8]}")
        try:
            own.write_text(f"{source_key}\n{url}", "utf-8")
            os.link(own, claim)
        except FileExistsError:
            try:
                self._compare(source_key, claim, media.video_id)
            except RowRejected:
                self._ready_path(source_key, media).unlink(missing_ok=True)
                raise
        finally:
            with contextlib.suppress(OSError):  # if it has become read-only, another error says so
                own.unlink()
        if media.referenced is not None:
            return media.referenced
        return self._settled(source_key, media).relative_to(self._dataset).as_posix()

    def _settled(self, source_key: str, media: Media) -> Path:
        """The video's file under its final name.

        Another worker on the same source (presumed dead, but alive) may have moved the file there
        at any time.
        """
        ready = self._ready_path(source_key, media)
        for name in self._names(media):
            if ready.is_file() and _is_same_file(name, media):
                ready.unlink(missing_ok=True)
        place = self._place(source_key, media)
        if place == ready:
            final = self._name_of_former(media) or self._free_name(media)
            try:
                os.replace(ready, final)
            except FileNotFoundError:
                place = self._place(source_key, media)
            else:
                return final
        if place is None:
            raise FileNotFoundError(f"{MEDIA}/{media.video_id} vanished while in use")
        return place

    def _compare(self, source_key: str, claim: Path, video_id: str) -> None:
        holder, _, url = claim.read_text("utf-8").partition("\n")
        if holder != source_key:
            raise RowRejected(
                "download_videos.duplicate",
                f"{video_id} is there already, from {url} (source {holder})",
            )

    def _ready_path(self, source_key: str, media: Media) -> Path:
        return self._ready / f"{source_key}{media.probe.suffix}"

    def _names(self, media: Media) -> list[Path]:
        """Possible paths of the video: another rendition of it may have the plain name.

        A file that was changed keeps its name.
        """
        hashes = [media.sha256, *reversed(media.former)]
        return [
            self.folder / f"{media.video_id}{media.probe.suffix}",
            *(self.folder / f"{media.video_id}.{one[:12]}{media.probe.suffix}" for one in hashes),
        ]

    def _free_name(self, media: Media) -> Path:
        plain, with_hash, *_ = self._names(media)
        return with_hash if plain.exists() else plain

    def _name_of_former(self, media: Media) -> Path | None:
        """The path of the former file that this one is to replace."""
        if not media.former:
            return None
        return next(
            (
                name
                for name in self._names(media)
                if name.is_file() and sha256_of(name) in media.former
            ),
            None,
        )

    def _place(self, source_key: str, media: Media) -> Path | None:
        plain, *with_hash = self._names(media)
        for path in (self._ready_path(source_key, media), *with_hash, plain):
            if path.is_file() and path.stat().st_size == media.size_bytes:
                return path
        return None


def note_of(dataset: Path, source_key: str) -> Mapping[str, Any]:
    """The stored note about a source's file; empty if there is none."""
    with contextlib.suppress(OSError, ValueError):
        found = json.loads((dataset / MEDIA_FOUND / f"{source_key}.json").read_text("utf-8"))
        if isinstance(found, dict):
            return found
    return {}


def origin_of(*parts: Any) -> str:
    """A short name for what was requested."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:20]


def sha256_of(path: Path) -> str:
    with LargeFile(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_same_file(path: Path, media: Media) -> bool:
    try:
        if path.stat().st_size != media.size_bytes:
            return False
        return sha256_of(path) == media.sha256
    except FileNotFoundError:
        return False


def _hold(folder: Path) -> int | None:
    """An exclusive lock on a folder until the descriptor is closed; None if locks aren't supported.

    Raises BlockingIOError if someone else has it.
    """
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
        except FileNotFoundError:
            continue  # its last user has just removed it
        try:
            is_ours = try_lock(descriptor)
        except OSError:
            os.close(descriptor)
            return None
        if is_ours and is_still_at(folder / LOCK, descriptor):
            return descriptor
        os.close(descriptor)
        if not is_ours:
            raise BlockingIOError(f"{folder} is in use")


def _empty(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        elif entry.name != LOCK:
            entry.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
