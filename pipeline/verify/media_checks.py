"""Checks media files against the rows of the videos table: bytes, length, spans of clips."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.pipeline.dataset.shards import shard_order
from clipmill.pipeline.dataset.steps import Step
from clipmill.pipeline.verify.findings import Book, Remake, SetAside
from clipmill.pipeline.verify.layout import Survey
from clipmill.pipeline.verify.shard_checks import ShardRows
from clipmill.schemas.clocks import CLOCK_COLUMNS, file_zero_seconds
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.damage import what_is_there
from clipmill.schemas.errors import RowFailed
from clipmill.schemas.folders import MEDIA
from clipmill.stages.media.fetch.media_store import note_of
from clipmill.stages.media.isolation.isolated import Limits, run_isolated
from clipmill.stages.media.read.probe import probe

# As in the probe, the length of a complete file may be off by this much.
_LENGTH_SECONDS = 1.0
_LENGTH_SHARE = 0.02
# The longest display time of the last frame in a file without durations.
_SPAN_SECONDS = 0.5
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True)
class _Place:
    """A shard of a step."""

    step: Step
    shard: str

    @property
    def file(self) -> str:
        return self.step.file(self.shard)

    @property
    def remake(self) -> Remake:
        return Remake(self.step.label, self.step.fingerprint, self.shard)


@dataclass(frozen=True)
class _VideoRow:
    """A kept row of a videos table, and the end of the last clip of each set of its clips."""

    place: _Place
    row: dict[str, Any]
    clips: dict[_Place, float]


@dataclass
class MediaChecks:
    """Checks the files of a base shard's videos; `say` is called with what is read."""

    survey: Survey
    book: Book
    say: Callable[[str], None] = lambda said: None

    def __post_init__(self) -> None:
        # A media folder that Clipmill has used is never empty: it holds notes, too.
        media = self.survey.dataset / MEDIA
        self._is_empty = media.is_dir() and not any(media.iterdir())
        self._told = False

    def check(self, found: dict[Step, dict[str, ShardRows]]) -> None:
        by_path: dict[str, list[_VideoRow]] = {}
        for video in _videos(found):
            by_path.setdefault(video.row["path"], []).append(video)
        for path, videos in by_path.items():
            if self._is_empty and not Path(path).is_absolute():
                if not self._told:
                    self._told = True
                    self.book.fault(
                        "media_missing",
                        MEDIA,
                        "the folder is empty, as if its disk is not mounted",
                        "mount its disk; if its files are lost for good, delete the "
                        "empty folder and verify again",
                        at_rest=True,
                    )
                continue
            self.say(f"reading {path}")
            self._check_file(path, videos)

    def _check_file(self, stored: str, videos: list[_VideoRow]) -> None:
        is_outside = Path(stored).is_absolute()
        whole = Path(stored) if is_outside else self.survey.dataset / stored
        book, video_id = self.book, videos[0].row["video_id"]
        book.report.checked["media"] += 1
        try:
            if there := what_is_there(whole):
                # Not opened: a named pipe would block forever.
                self._bad_file("media_size", stored, f"the file of {video_id} is {there}", videos)
                return
            size = whole.stat().st_size
            known = {id(v): self._said_of(v, videos) for v in videos}
            wrong = [v for v in videos if size not in dict(known[id(v)])]
            digest = None if len(wrong) == len(videos) else _sha256(whole)
        except OSError as error:
            what = f"the file of {video_id} can't be read ({error.strerror})"
            if is_outside:
                book.fault(
                    "media_missing",
                    stored,
                    what,
                    "it is outside the dataset: put it "
                    "back there or mount its disk, or `clipmill remove "
                    f"{shell_word(book.dataset)} --video {shell_word(video_id)}`",
                    at_rest=True,
                )
            else:
                self._bad_file("media_missing", stored, what, videos)
            return
        book.report.checked["media_bytes"] += size
        if digest is None:
            said = videos[0].row["size_bytes"]
            self._bad_file(
                "media_size",
                stored,
                f"the file of {video_id} has {size:,} bytes, "
                f"its row says {said if said is None else format(said, ',')}",
                videos,
            )
            return
        wrong += [v for v in videos if v not in wrong and (size, digest) not in known[id(v)]]
        if len(wrong) == len(videos):
            self._bad_file(
                "media_sha256",
                stored,
                f"the file of {video_id} has the SHA-256 "
                f"{digest[:16]}…, its row says {str(videos[0].row['sha256'])[:16]}…",
                videos,
            )
            return
        for video in wrong:  # another row describes the same file correctly
            self._bad_row("media_sha256", video, "has another size or SHA-256 than the row says")
        self._check_length(whole, [v for v in videos if v not in wrong])

    def _said_of(self, video: _VideoRow, all_of_file: list[_VideoRow]) -> list[tuple[int, str]]:
        """Sizes and SHA-256s that a row's file may have.

        Adding sound later changes a file but not its name: a newer row describes it, or the note
        of its source if that row is still to be written or belongs to other rules.
        """
        said = [(video.row["size_bytes"], video.row["sha256"])]
        key = video.row.get("source_key")
        said += [
            (other.row["size_bytes"], other.row["sha256"])
            for other in all_of_file
            if other.row.get("source_key") == key
            and other.place.step is video.place.step
            and shard_order(other.place.shard) > shard_order(video.place.shard)
        ]
        note = note_of(self.survey.dataset, key) if key else {}
        if video.row["sha256"] in note.get("former", ()):
            said.append((note.get("size_bytes"), note.get("sha256")))
        return said

    def _check_length(self, whole: Path, videos: list[_VideoRow]) -> None:
        try:
            facts = run_isolated(probe, whole, limits=Limits())
        except RowFailed as error:
            if error.kind == "crash":
                # The helper was killed or exceeded its limits, which says nothing about the
                # file, whose bytes are unchanged.
                self.book.note(
                    "media_duration",
                    videos[0].row["path"],
                    f"its length could not be checked: {error.message}",
                    "verify again when the machine has more memory or space",
                )
                return
            # Its bytes are unchanged, so the row was wrong from the start.
            for video in videos:
                self._bad_row("media_duration", video, f"is not a complete video: {error.message}")
            return
        found = facts.duration_seconds
        for video in videos:
            said, begins = video.row["duration_seconds"], video.row.get("starts_at_seconds")
            slack = max(_LENGTH_SECONDS, _LENGTH_SHARE * max(said or 0.0, found))
            # The row of a section has the length of the whole video.
            if said is None or found - said > slack or (begins is None and said - found > slack):
                self._bad_row(
                    "media_duration",
                    video,
                    f"lasts {found:.2f} s, the row says "
                    f"{said if said is None else format(said, '.2f')} s",
                )
                continue
            last = file_zero_seconds(video.row) + (facts.first_seconds or 0.0) + found
            for place, end in video.clips.items():
                if end > last + _SPAN_SECONDS:
                    self._remake(
                        "span",
                        place,
                        f"a clip of {video.row['video_id']} ends at "
                        f"{end:.2f} s, its file {video.row['path']} at {last:.2f} s",
                    )

    def _bad_file(self, check: str, stored: str, what: str, videos: list[_VideoRow]) -> None:
        """Sets a file aside that changed since the download, with the rows that name it."""
        is_outside = Path(stored).is_absolute()
        first, *rest = videos
        step = first.place.step
        is_gone = check == "media_missing"  # a removal may be running
        aside = [] if is_outside or is_gone else [SetAside((stored,))]
        self.book.remake(
            check,
            stored,
            what,
            step.label,
            step.fingerprint,
            first.place.shard,
            *aside,
            *(video.place.remake for video in rest),
            at_rest=is_gone,
        )

    def _bad_row(self, check: str, video: _VideoRow, what: str) -> None:
        self._remake(check, video.place, f"{video.row['path']} of {video.row['video_id']} {what}")

    def _remake(self, check: str, place: _Place, what: str) -> None:
        step = place.step
        self.book.remake(check, place.file, what, step.label, step.fingerprint, place.shard)


def _videos(found: dict[Step, dict[str, ShardRows]]) -> list[_VideoRow]:
    """The videos of a base shard, from every table that has paths of their files."""
    clips: dict[str, dict[_Place, float]] = {}
    videos = []
    for step, shards in found.items():
        for shard, rows in shards.items():
            names, place = set(rows.kept.column_names), _Place(step, shard)
            if {"video_id", "clip_id", "end_seconds"} <= names:
                for row in rows.kept.select(["video_id", "end_seconds"]).to_pylist():
                    ends = clips.setdefault(row["video_id"], {})
                    ends[place] = max(ends.get(place, 0.0), row["end_seconds"] or 0.0)
    for step, shards in found.items():
        for shard, rows in shards.items():
            if {"video_id", "path", "size_bytes", "sha256", "duration_seconds"} <= set(
                rows.kept.column_names
            ):
                place = _Place(step, shard)
                columns = [
                    name
                    for name in (
                        "source_key",
                        "video_id",
                        "path",
                        "size_bytes",
                        "sha256",
                        "duration_seconds",
                        *CLOCK_COLUMNS,
                    )
                    if name in rows.kept.column_names
                ]
                videos += [
                    _VideoRow(place, row, clips.get(row["video_id"], {}))
                    for row in rows.kept.select(columns).to_pylist()
                    if row["path"]
                ]
    return videos


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()
