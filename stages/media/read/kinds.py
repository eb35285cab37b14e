"""Describes files that are not videos, so that users need no other tools to identify them."""

from __future__ import annotations

import os
import re
import struct
from collections import Counter
from pathlib import Path

import av
from av.container import InputContainer

READ_FORMATS = (
    "MP4/MOV/3GP, Matroska/WebM, MPEG-TS, MPEG-PS/VOB, AVI, FLV, ASF/WMV, Ogg, MXF, "
    "RealMedia, DV, NUT and streams without a container"
)
_HEAD_BYTES = 4096
_TEXTS = (  # by how the text begins, ignoring case
    (
        r"#EXTM3U",
        "an HLS playlist (M3U8), which names other files: give its URL, and yt-dlp fetches them",
    ),
    (
        r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?<MPD\b",
        "a DASH manifest (MPD), which names other files: give its URL, and yt-dlp fetches them",
    ),
    (
        r"(<\?xml[^>]*>\s*)?<SmoothStreamingMedia\b",
        "a Smooth Streaming manifest, which names other files",
    ),
    (r"ffconcat version", "an ffconcat list, which names other files: give those"),
    (r"(<\?xml[^>]*>\s*)?(<!--.*?-->\s*)?(<!doctype html|<html|<head|<body)", "a web page (HTML)"),
    (
        r"version https://git-lfs",
        "a pointer of Git LFS, not the file itself: `git lfs pull` gets it",
    ),
    (
        r"/annex/objects/|(\.\./)*\.git/annex",
        "a pointer of git-annex: `git annex get` gets the file",
    ),
    (r"WEBVTT", "subtitles (WebVTT)"),
    (r"\d+\s*\n\d\d:\d\d:\d\d[,.]\d\d\d --> ", "subtitles (SubRip)"),
    (r"\[Script Info\]", "subtitles (SSA/ASS)"),
    (r"v=0\s*\no=", "the description of a session (SDP), which names where a stream is"),
    (r"<\?xml", "an XML document"),
    (r"[\[{]\s*[\"\]}\[{]", "a JSON document"),
)
_HEADS = (
    (b"\xff\xd8\xff", "a picture (JPEG)"),
    (b"\x89PNG", "a picture (PNG)"),
    (b"BM", "a picture (BMP)"),
    (b"GIF8", "a picture (GIF)"),
    (b"II*\0", "a picture (TIFF)"),
    (b"MM\0*", "a picture (TIFF)"),
    (b"8BPS", "a picture (PSD)"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive: unpack it"),
    (b"\x1f\x8b", "compressed (gzip): unpack it"),
    (b"BZh", "compressed (bzip2): unpack it"),
    (b"\xfd7zXZ", "compressed (xz): unpack it"),
    (b"(\xb5/\xfd", "compressed (zstd): unpack it"),
    (b"7z\xbc\xaf", "a 7-Zip archive: unpack it"),
    (b"Rar!", "a RAR archive: unpack it"),
    (b"\x7fELF", "a program"),
    (b"MZ", "a program"),
    (b"SQLite format 3", "a database (SQLite)"),
    (b"PAR1", "a Parquet file"),
    (b"MThd", "music notes (MIDI)"),
    (b"ID3", "sound (MP3)"),
)
_CONTAINERS = (
    (b"\x1aE\xdf\xa3", "Matroska or WebM"),
    (b"FLV\x01", "FLV"),
    (b"OggS", "Ogg"),
    (b".RMF", "RealMedia"),
    (bytes.fromhex("3026b2758e66cf11"), "ASF or WMV"),
    (bytes.fromhex("060e2b3402050101"), "MXF"),
    (b"\0\0\1\xba", "MPEG-PS"),
    (b"DKIF", "IVF"),
)
_BOXES = frozenset(
    (
        b"ftyp",
        b"moov",
        b"mdat",
        b"free",
        b"skip",
        b"wide",
        b"moof",
        b"styp",
        b"sidx",
        b"uuid",
        b"meta",
        b"pnot",
        b"emsg",
        b"prft",
        b"mfra",
        b"udta",
        b"pdin",
    )
)
_WORDS = {"audio": "sound", "subtitle": "subtitles", "data": "data", "attachment": "attachments"}
_MOST_INDEX_BYTES = 1 << 26
_SCHEMES = (b"cenc", b"cbcs", b"cens", b"cbc1", b"piff")


def what_it_is(path: Path) -> str | None:
    """A short description of a file by its first bytes; None if unknown."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        return error.strerror
    if not size:
        return "an empty file"
    if head[:4] == b"RIFF":
        return {b"WEBP": "a picture (WebP)", b"AVI ": "AVI, but broken or truncated"}.get(
            head[8:12]
        )
    found = next((what for mark, what in _HEADS if head.startswith(mark)), None)
    if container := next((n for mark, n in _CONTAINERS if head.startswith(mark)), None):
        return f"{container}, but broken or truncated"
    if found is None and head[4:8] in _BOXES:
        found = _of_boxes(path, size)
    if found is None and not head.strip(b"\0") and _is_zeros(path):
        found = "nothing but zeros, like a download that was never finished"
    if found is None and (text := _text(head)) is not None:
        found = next(
            (
                what
                for pattern, what in _TEXTS
                if re.match(pattern, text, re.IGNORECASE | re.DOTALL)
            ),
            "a text",
        )
    return found


def _is_zeros(path: Path) -> bool:
    with open(path, "rb") as file:
        return not any(chunk.strip(b"\0") for chunk in iter(lambda: file.read(1 << 20), b""))


def _text(head: bytes) -> str | None:
    for encoding in ("utf-8-sig", "utf-16"):
        if encoding == "utf-16" and head[:2] not in (b"\xff\xfe", b"\xfe\xff"):
            continue
        # The bytes read may end within a character.
        text = head.decode(encoding, "ignore").lstrip()
        is_whole = len(text.encode(encoding, "ignore")) > 0.9 * len(head.strip())
        if is_whole and all(one.isprintable() or one in "\r\n\t\f\x1b" for one in text):
            return text
    return None


def _of_boxes(path: Path, size: int) -> str | None:
    """What is missing from an MP4 file that can't be opened."""
    names, at = [], 0
    with open(path, "rb") as file:
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, name = struct.unpack(">I4s", head[:8])
            if name not in _BOXES:
                break
            names.append(name)
            if length == 1 and len(head) == 16:
                length = struct.unpack(">Q", head[8:])[0]
            if length < 8:
                break
            at += length
    if b"moov" in names:
        return "an MP4 whose index (moov) is broken"
    if b"moof" in names:
        return (
            "pieces of a fragmented MP4 without their header: put the initialization segment "
            "before them (`cat init.mp4 piece.m4s > whole.mp4`)"
        )
    cut = "it is truncated before its index (moov)" if at > size else "its index (moov) is missing"
    return f"an MP4 that can't be read, because {cut}: its recording or download was not finished"


def encryption_of(path: Path) -> str | None:
    """The scheme by which an MP4's video is encrypted; None if it isn't."""
    with open(path, "rb") as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at + 8 <= size:
            file.seek(at)
            head = file.read(16)
            length, name = struct.unpack(">I4s", head[:8])
            if length == 1 and len(head) == 16:
                length = struct.unpack(">Q", head[8:])[0]
            if name == b"moov":
                return _scheme(file.read(min(length, _MOST_INDEX_BYTES)))
            if length < 8:
                return None
            at += length
    return None


def _scheme(index: bytes) -> str | None:
    at = index.find(b"encv")
    if at < 0:
        return None
    mark = index.find(b"schm", at)
    scheme = index[mark + 8 : mark + 12] if mark > 0 else b""
    return scheme.decode("ascii") if scheme in _SCHEMES else "an unknown scheme"


def what_it_holds(container: InputContainer) -> str:
    """The kinds of streams in a file without a video, in words."""
    counts: Counter[str] = Counter()
    for stream in container.streams:
        if stream.type == "video":
            counts[
                "a cover picture"
                if stream.disposition & av.stream.Disposition.attached_pic
                else "video"
            ] += 1
        else:
            counts[_WORDS.get(stream.type, stream.type)] += 1
    return " and ".join(sorted(counts, reverse=True)) or "no stream"
