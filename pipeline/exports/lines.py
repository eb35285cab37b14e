"""JSON lines: InternVid's metadata, and interleaved video–text documents as in InternVid-ICL."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.pipeline.exports.columns import SUBTITLE_WORDS, SUBTITLES, TEXT
from clipmill.pipeline.exports.export_shards import Position, ShardFile
from clipmill.pipeline.exports.request import ExportRequest
from clipmill.pipeline.exports.selection import Unit
from clipmill.pipeline.exports.table_files import parts_of
from clipmill.pipeline.exports.units import KIND, read_unit
from clipmill.pipeline.exports.values import json_text, records
from clipmill.stages.media.read.speech import (
    Lines,
    is_by_words,
    speaking_track,
    with_words,
    words_within,
)

AESTHETIC, UMT = "Aesthetic_Score", "UMT_Score"


class LinesFile(ShardFile):
    """One file of JSON lines; a part is a line."""

    suffix = ".jsonl"

    def __init__(self, path: Path, request: ExportRequest) -> None:
        super().__init__(path, request)
        self._file = open(path, "wb")  # noqa: SIM115 - closed with the shard
        self._size = 0

    def room_for(self, part: bytes) -> bool:
        return self._size + len(part) <= self.request.shard_bytes

    def add(self, part: bytes) -> None:
        self._file.write(part)
        self._size += len(part)
        self.items += 1

    def close(self) -> None:
        self._file.close()


def timestamp(seconds: float) -> str:
    """`HH:MM:SS.mmm`."""
    whole, milliseconds = divmod(round(seconds * 1000), 1000)
    minutes, whole = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02d}:{minutes:02d}:{whole:02d}.{milliseconds:03d}"


def internvid_lines(request: ExportRequest, unit: Unit) -> Iterator[bytes]:
    """One line per clip, with InternVid's columns and no others."""
    names = ["source_id", "start_seconds", "end_seconds", TEXT, AESTHETIC, UMT]
    for row in records(read_unit(request, unit, names)):
        line = {
            "YoutubeID": row["source_id"],
            "Start_timestamp": timestamp(row["start_seconds"]),
            "End_timestamp": timestamp(row["end_seconds"]),
            "Caption": row[TEXT],
            AESTHETIC: row[AESTHETIC],
            UMT: row[UMT],
        }
        yield json_text(line).encode() + b"\n"


def row_lines(request: ExportRequest, unit: Unit, columns: Sequence[str]) -> Iterator[bytes]:
    """One line per clip, with all its columns."""
    for table in parts_of(request, unit, columns):
        for row in records(table):
            yield json_text(row).encode() + b"\n"


@dataclass(frozen=True)
class _VideoClips:
    """A video's clips in time order, with what was said in each."""

    facts: dict[str, Any]
    clips: list[dict[str, Any]]
    speech: list[str]


def documents(
    request: ExportRequest, units: Sequence[Unit], report: Callable[[int], None]
) -> Callable[[Position], Iterator[tuple[Position, bytes]]]:
    """The documents from a position on, one per line, as `roll` takes them.

    (a) and (b) make one document per video, (c) one per two consecutive videos; with an odd
    number, the last video is alone.
    """
    together = 2 if request.interleaving.documents == "c" else 1

    def stream(begin: Position) -> Iterator[tuple[Position, bytes]]:
        waiting: list[_VideoClips] = []
        position = begin
        for at, unit in enumerate(units):
            if at >= begin[0]:
                for number, video in enumerate(_videos(request, unit)):
                    if at == begin[0] and number < begin[1]:
                        continue
                    if not waiting:
                        position = (at, number)
                    waiting.append(video)
                    if len(waiting) == together:
                        yield position, _document(request, waiting)
                        waiting = []
            report(unit.clips)
        if waiting:
            yield position, _document(request, waiting)

    return stream


def _videos(request: ExportRequest, unit: Unit) -> Iterator[_VideoClips]:
    rows: list[dict[str, Any]] = []
    # Including failed clips: a video's subtitles are stored with its first clip.
    for row in records(read_unit(request, unit, failed=True)):
        if rows and row["video_id"] != rows[0]["video_id"]:
            yield from _video(rows)
            rows = []
        rows.append(row)
    if rows:
        yield from _video(rows)


def _video(rows: list[dict[str, Any]]) -> Iterator[_VideoClips]:
    clips = [row for row in rows if row.get(KIND) is None]
    if clips:
        lines = with_words(rows[0].get(SUBTITLES), rows[0].get(SUBTITLE_WORDS))
        track = speaking_track(lines, rows[0]["language"])
        yield _VideoClips(rows[0], clips, _spoken(clips, track))


def _spoken(clips: list[dict[str, Any]], track: Lines) -> list[str]:
    """What is said in each clip: the words if their times are known.

    Any other line goes to the clip that contains more of it.
    """
    said: list[list[str]] = [[] for _ in clips]
    first = 0
    for line in track:
        while first < len(clips) and clips[first]["end_seconds"] <= line["start_seconds"]:
            first += 1
        best, longest = None, 0.0
        for at in range(first, len(clips)):
            clip = clips[at]
            if clip["start_seconds"] >= line["end_seconds"]:
                break
            if is_by_words(line):
                if text := words_within(line, clip["start_seconds"], clip["end_seconds"]):
                    said[at].append(text)
                continue
            overlap = min(clip["end_seconds"], line["end_seconds"]) - max(
                clip["start_seconds"], line["start_seconds"]
            )
            if overlap > longest:
                best, longest = at, overlap
        text = (line["text"] or "").strip()
        if best is not None and text:
            said[best].append(text)
    return [" ".join(texts) for texts in said]


def _document(request: ExportRequest, videos: list[_VideoClips]) -> bytes:
    named = ("video_id", "url", "title", "language", "license", "extractor", "source_id")
    items: list[dict[str, Any]] = []
    for video in videos:
        for clip, speech in zip(video.clips, video.speech, strict=True):
            items.append({"type": "video", **_shown(clip)})
            items.append({"type": "text", "role": "caption", "text": clip[TEXT] or ""})
            if request.interleaving.documents != "a" and speech:
                items.append({"type": "text", "role": "speech", "text": speech})
    return (
        json_text(
            {
                "document_id": "+".join(video.facts["video_id"] for video in videos),
                "videos": [
                    {name: video.facts[name] for name in named if name in video.facts}
                    for video in videos
                ],
                "items": items,
            }
        ).encode()
        + b"\n"
    )


def _shown(clip: dict[str, Any]) -> dict[str, Any]:
    names = (
        "clip_id",
        "video_id",
        "start_seconds",
        "end_seconds",
        "media_path",
        "media_start_seconds",
        "media_end_seconds",
    )
    return {name: clip[name] for name in names if name in clip}
