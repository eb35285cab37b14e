"""Detects from a container's own sizes whether bytes are missing at the end of a file.

The duration in a header is often wrong, in different ways: an AVI counts frames that were never
shown, a recorder writes the planned length. A file's size in bytes is more reliable, so it decides
where it can be read.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

# The ASF header object with the file's size.
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")
_HEAD_BYTES = 1 << 16
# Matroska's elements: the file's two, a segment's, and padding.
_EBML, _SEGMENT, _VOID = 0x1A45DFA3, 0x18538067, 0xEC
_CLUSTER = 0x1F43B675
_IN_SEGMENT = frozenset(
    (
        0x114D9B74,
        0x1549A966,
        0x1654AE6B,
        _CLUSTER,
        0x1C53BB6B,
        0x1941A469,
        0x1043A770,
        0x1254C367,
        _VOID,
        0xBF,
    )
)
_FLV_TAGS = (8, 9, 18)  # sound, video, metadata


def is_cut_off(path: Path, format_name: str) -> bool | None:
    """Whether a file ends before its container does, or has something else there.

    None if that is unknown. `format_name` is FFmpeg's; MP4 is checked by its index instead.
    """
    read = next((read for word, read in _READERS.items() if format_name.startswith(word)), None)
    if read is None:
        return None
    with open(path, "rb") as file:
        try:
            return read(file, os.fstat(file.fileno()).st_size)
        except (struct.error, IndexError):
            return None  # too short, or no such structure


def missing_share(path: Path) -> float:
    """The share of its bytes that an ASF file lacks; 0 if it doesn't declare its size."""
    with open(path, "rb") as file:
        declared = _asf_bytes(file)
    there = path.stat().st_size
    return 1 - there / declared if declared and there < declared else 0.0


def _matroska(file: BinaryIO, size: int) -> bool | None:
    name, content, length = _element(file, 0)
    if name != _EBML or length is None:
        return None
    at = content + length
    name, content, length = _element(file, at)
    while name == _VOID and length is not None:
        name, content, length = _element(file, content + length)
    if name != _SEGMENT or length is None:
        return None  # recorded live: the length was unknown
    end = content + length
    if end > size:
        return True
    at = content
    while at < end:
        try:
            name, content, length = _element(file, at)
        except IndexError:
            return True
        if name not in _IN_SEGMENT:
            return True  # an unfinished download has zeros there
        if length is None:
            return None
        at = content + length
    return at != end


def _element(file: BinaryIO, at: int) -> tuple[int, int, int | None]:
    """An element's name, and its content's start and length; None if the length is open."""
    file.seek(at)
    head = file.read(12)
    n = _width(head[0])
    length_at = head[n]
    m = _width(length_at)
    if n > 4 or len(head) < n + m:
        raise IndexError
    value = int.from_bytes(head[n : n + m], "big") & ((1 << 7 * m) - 1)
    return (
        int.from_bytes(head[:n], "big"),
        at + n + m,
        None if value == (1 << 7 * m) - 1 else value,
    )


def _width(first: int) -> int:
    """The length in bytes of an EBML number, from its first byte."""
    if not first:
        raise IndexError
    return 9 - first.bit_length()


def _avi(file: BinaryIO, size: int) -> bool | None:
    at, is_known = 0, False
    while at + 12 <= size:
        file.seek(at)
        name, length, kind = struct.unpack("<4sI4s", file.read(12))
        if name != b"RIFF" or kind not in (b"AVI ", b"AVIX"):
            break  # followed by appended data
        if length in (0, 0xFFFFFFFF):
            return None  # never written: the recorder was killed
        end = at + 8 + length
        if end > size:
            return True
        if not _chunks_are_sound(file, at + 12, end):
            return True
        at, is_known = end + length % 2, True
    return False if is_known else None


def _chunks_are_sound(file: BinaryIO, at: int, end: int) -> bool:
    while at + 8 <= end:
        file.seek(at)
        name, length = struct.unpack("<4sI", file.read(8))
        if not name.isascii() or not name.decode("ascii").isprintable():
            return False
        at += 8 + length + length % 2
    return at <= end + 1


def _flv(file: BinaryIO, size: int) -> bool | None:
    """By the size in its metadata, and whether it ends with a complete tag."""
    head = file.read(_HEAD_BYTES)
    mark = b"\x00\x08filesize\x00"
    at = head.find(mark)
    if at >= 0:
        declared = struct.unpack_from(">d", head, at + len(mark))[0]
        if declared > size:
            return True
    file.seek(size - 4)
    length = struct.unpack(">I", file.read(4))[0]
    begin = size - 4 - length
    if length < 11 or begin < 9:
        return True
    file.seek(begin)
    tag = file.read(4)
    is_whole = tag[0] & 0x1F in _FLV_TAGS and int.from_bytes(tag[1:], "big") + 11 == length
    return not is_whole


def _asf(file: BinaryIO, size: int) -> bool | None:
    declared = _asf_bytes(file)
    return True if declared is not None and size < declared else None


def _asf_bytes(file: BinaryIO) -> int | None:
    head = file.read(_HEAD_BYTES)
    at = head.find(_ASF_PROPERTIES)
    if at < 0 or at + 92 > len(head) or head[at + 88] & 1:
        return None  # says nothing, like files recorded from a broadcast
    return int.from_bytes(head[at + 40 : at + 48], "little")


_READERS: dict[str, Callable[[BinaryIO, int], bool | None]] = {
    "matroska": _matroska,
    "avi": _avi,
    "flv": _flv,
    "asf": _asf,
}
