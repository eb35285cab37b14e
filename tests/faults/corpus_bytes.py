"""Finding and changing bytes of media files: MP4 boxes, Matroska elements, codec headers.

All functions take and return whole files as bytes. The files are rendered by tests and contain
what is searched for; otherwise an assertion fails.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass

_CONTAINERS = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"moof", b"traf"}


@dataclass(frozen=True)
class Box:
    """One box of an MP4 file: its header begins at `start`, its content at `content`."""

    start: int
    content: int
    end: int


def box(data: bytes, path: str) -> Box:
    """The first box at a path such as `moov/trak/mdia/mdhd`."""
    found = Box(0, 0, len(data))
    for name in path.split("/"):
        found = next(b for n, b in _boxes(data, found) if n == name.encode())
    return found


def _boxes(data: bytes, within: Box):
    at = within.content
    while at + 8 <= within.end:
        size, name = struct.unpack(">I4s", data[at : at + 8])
        header = 8
        if size == 1:
            size, header = struct.unpack(">Q", data[at + 8 : at + 16])[0], 16
        assert header <= size <= within.end - at, (name, size)
        yield name, Box(at, at + header, at + size)
        at += size


def with_box(data: bytes, path: str, content: bytes) -> bytes:
    """The file with other content in a box; what follows it moves, so moov must be last."""
    inner = box(data, path)
    grown = len(content) - (inner.end - inner.content)
    changed = bytearray(data[: inner.content] + content + data[inner.end :])
    names = path.split("/")
    for depth in range(1, len(names) + 1):
        at = box(data, "/".join(names[:depth])).start
        changed[at : at + 4] = struct.pack(
            ">I", struct.unpack(">I", changed[at : at + 4])[0] + grown
        )
    return bytes(changed)


def without_box(data: bytes, path: str) -> bytes:
    """The file with a box renamed to an unknown name, so that readers skip it."""
    at = box(data, path).start
    return put(data, at + 4, b"free")


def put(data: bytes, at: int, new: bytes) -> bytes:
    """The file with `new` written over its bytes."""
    assert 0 <= at <= len(data) - len(new), (at, len(new), len(data))
    return data[:at] + new + data[at + len(new) :]


def put_after(data: bytes, mark: bytes, new: bytes, *, skip: int = 0, every: bool = False) -> bytes:
    """`new` written over what follows the first `mark` (or every one) after `skip` bytes."""
    at = data.find(mark)
    assert at >= 0, mark
    while at >= 0:
        data = put(data, at + len(mark) + skip, new)
        at = data.find(mark, at + len(mark)) if every else -1
    return data


def flipped(data: bytes, start: int, end: int, count: int, seed: object) -> bytes:
    """The file with `count` bits in `[start, end)` flipped, chosen by the seed."""
    choice = random.Random(str(seed))
    changed = bytearray(data)
    for _ in range(count):
        changed[choice.randrange(start, end)] ^= 1 << choice.randrange(8)
    return bytes(changed)


def zeroed(data: bytes, start: int, end: int) -> bytes:
    return put(data, start, bytes(end - start))


def regions(data: bytes, container: str) -> dict[str, tuple[int, int]]:
    """Header, index and payload as `[start, end)` each."""
    if container == "mp4":
        moov, mdat = box(data, "moov"), box(data, "mdat")
        stbl = box(data, "moov/trak/mdia/minf/stbl")
        return {
            "header": (moov.start, stbl.start),
            "index": (stbl.start, stbl.end),
            "payload": (mdat.content, mdat.end),
        }
    if container == "matroska":
        first, cues = data.index(b"\x1f\x43\xb6\x75"), data.rindex(b"\x1c\x53\xbb\x6b")
        return {"header": (0, first), "index": (cues, len(data)), "payload": (first, cues)}
    if container == "avi":
        movi, index = data.index(b"movi"), data.rindex(b"idx1")
        return {"header": (0, movi), "index": (index, len(data)), "payload": (movi, index)}
    assert container == "mpegts"
    # It has no index: the stream's tables are repeated, and every packet has a header.
    return {"header": (0, 3 * 188), "index": (3 * 188, 5 * 188), "payload": (5 * 188, len(data))}


# Bits in codec headers.


class Bits:
    """Reads and writes the bits of an H.264 parameter set."""

    def __init__(self, data: bytes) -> None:
        self.bits = "".join(f"{byte:08b}" for byte in data)
        self.at = 0

    def take(self, count: int) -> int:
        self.at += count
        return int(self.bits[self.at - count : self.at], 2)

    def take_ue(self) -> int:
        zeros = self.bits.index("1", self.at) - self.at
        self.at += zeros
        return self.take(zeros + 1) - 1

    @staticmethod
    def ue(value: int) -> str:
        word = f"{value + 1:b}"
        return "0" * (len(word) - 1) + word


def sps_of_size(unit: bytes, width: int, height: int) -> bytes:
    """An H.264 sequence parameter set (without its start code) that declares another size."""
    assert unit[0] & 31 == 7
    bits = Bits(unit.replace(b"\0\0\3", b"\0\0"))
    bits.take(8)
    profile = bits.take(8)
    bits.take(16)
    bits.take_ue()
    if profile in (100, 110, 122, 244):
        assert bits.take_ue() != 3  # chroma_format_idc
        bits.take_ue()
        bits.take_ue()
        assert bits.take(2) == 0  # no bypass, no scaling matrix
    bits.take_ue()
    order = bits.take_ue()
    assert order != 1
    if order == 0:
        bits.take_ue()
    bits.take_ue()
    bits.take(1)
    begin = bits.at
    bits.take_ue()
    bits.take_ue()
    changed = (
        bits.bits[:begin]
        + bits.ue(width // 16 - 1)
        + bits.ue(height // 16 - 1)
        + bits.bits[bits.at :].rstrip("0")[:-1]
        + "1"
    )
    changed += "0" * (-len(changed) % 8)
    plain = int(changed, 2).to_bytes(len(changed) // 8, "big")
    out = bytearray()
    for byte in plain:
        if byte <= 3 and out[-2:] == b"\0\0":
            out.append(3)
        out.append(byte)
    return bytes(out)


def mp4_of_declared_size(data: bytes, width: int, height: int) -> bytes:
    """An H.264 file (moov last) whose parameter set declares a wrong size."""
    path = "moov/trak/mdia/minf/stbl/stsd"
    stsd = data[box(data, path).content : box(data, path).end]
    at = stsd.index(b"avcC") - 4
    size = struct.unpack(">I", stsd[at : at + 4])[0]
    inner = stsd[at + 8 : at + size]
    length = struct.unpack(">H", inner[6:8])[0]
    unit = sps_of_size(inner[8 : 8 + length], width, height)
    inner = inner[:6] + struct.pack(">H", len(unit)) + unit + inner[8 + length :]
    grown = len(inner) + 8 - size
    entry = struct.unpack(">I", stsd[8:12])[0]
    stsd = (
        stsd[:8]
        + struct.pack(">I", entry + grown)
        + stsd[12:at]
        + struct.pack(">I", len(inner) + 8)
        + b"avcC"
        + inner
        + stsd[at + size :]
    )
    return with_box(data, path, stsd)


def vp9_of_declared_size(data: bytes, width: int, height: int) -> bytes:
    """A WebM file whose VP9 key frames (profile 0) declare a wrong size."""
    mark = b"\x49\x83\x42"
    at = data.find(mark)
    assert at >= 0
    while at >= 0:
        word = int.from_bytes(data[at + 3 : at + 8], "big")  # 4 bits of colour, then the sizes
        word = (word >> 36 << 36) | (width - 1) << 20 | (height - 1) << 4 | (word & 15)
        data = put(data, at + 3, word.to_bytes(5, "big"))
        at = data.find(mark, at + 8)
    return data
