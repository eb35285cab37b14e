"""Determines from a key packet's own bytes whether decoding can start there.

A container's key flag is unreliable: files without a key frame table flag every packet, and H.264
recovery points are flagged although pictures only become correct frames later.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

from av import Packet
from av.container import InputContainer
from av.video.stream import VideoStream

# Intra-only codecs.
_INTRA = frozenset(("mjpeg", "prores", "dnxhd"))
_LEADING_SKIPPED = (8, 9)  # HEVC's RASL pictures, which need pictures from before the key frame
# HEVC's pictures that their own layer doesn't need have even numbers up to this one.
_HEVC_LAST_UNNEEDED = 14
_HEVC_MESSAGES = (35, 39, 40)  # delimiters and messages
_RECOVERY_POINT = 6
_MOST_REFERENCES, _MOST_MODELS = 255, 32  # H.264's limits


class Kind(Enum):
    """What a packet is to a decoder that starts with it."""

    NONE = "the packet needs others"
    UNPROVEN = "the container says that it is a key frame"
    GRADUAL = "pictures are right from some later one on"
    OPEN = "it is right, and what is shown after it"
    CLOSED = "nothing that follows in the file needs what came before"


@dataclass(frozen=True)
class Start:
    """The result of starting to decode at a packet.

    `after_references` and `after_shown` are for GRADUAL: the number of following reference
    pictures in the file, or of pictures in display order, until they are correct.
    """

    kind: Kind
    after_references: int = 0
    after_shown: int = 0


@dataclass(frozen=True)
class Use:
    """Who may need a packet: pictures of higher temporal layers, and of its own with `is_needed`.

    A packet in the highest layer that its own layer doesn't need can be left out.
    """

    layer: int
    is_needed: bool


NEEDED, UNNEEDED = Use(0, True), Use(0, False)
_use = functools.cache(Use)
NONE, UNPROVEN = Start(Kind.NONE), Start(Kind.UNPROVEN)
OPEN, CLOSED = Start(Kind.OPEN), Start(Kind.CLOSED)


class PacketReader(Protocol):
    """Reads packets of one codec.

    `has_whole_frames`: every packet is known to give a whole frame, not a field. `says_order`: the
    stream declares how far frames are reordered, which decoders otherwise guess.
    """

    has_whole_frames: bool
    says_order: bool

    def start(self, packet: bytes) -> Start:
        """What a packet flagged as a key frame really is."""

    def is_reference(self, packet: bytes) -> bool:
        """Whether other pictures may reference this one."""

    def use(self, packet: bytes) -> Use:
        """Who may need the packet to be decoded."""

    def is_shown(self, packet: Packet[Any]) -> bool:
        """Whether the packet gives a displayed picture."""

    def needs_earlier(self, packet: bytes) -> bool:
        """Whether a picture shown before the key frame needs data stored before it."""


def packet_reader(codec: str, extradata: bytes | None) -> PacketReader:
    """The reader for a codec, by FFmpeg's name."""
    if codec == "h264":
        return _H264(extradata or b"")
    if codec == "hevc":
        return _Hevc(extradata or b"")
    return {"vp8": _Vp8, "vp9": _Vp9}.get(codec, _Intra if codec in _INTRA else _Other)()


def tells_no_order(container: InputContainer, stream: VideoStream) -> bool:
    """Whether timestamps only number the packets, although pictures are reordered.

    AVI has no timestamps. FFmpeg derives them for codecs whose picture types it can parse, but not
    for these. So pictures, which the decoder returns in order, are counted.
    """
    codec = stream.codec_context
    return (
        container.format.name == "avi"
        and codec.has_b_frames
        and codec.codec.canonical_name in ("h264", "hevc")
    )


class _Other:
    """A codec that is not parsed here: the decoder itself must confirm each key frame."""

    has_whole_frames = False
    says_order = True

    def start(self, packet: bytes) -> Start:
        return UNPROVEN

    def is_reference(self, packet: bytes) -> bool:
        return True

    def use(self, packet: bytes) -> Use:
        return NEEDED

    def is_shown(self, packet: Packet[Any]) -> bool:
        return True

    def needs_earlier(self, packet: bytes) -> bool:
        return False


class _Intra(_Other):
    has_whole_frames = True

    def start(self, packet: bytes) -> Start:
        return CLOSED


class _Vp8(_Other):
    has_whole_frames = True

    def start(self, packet: bytes) -> Start:
        return NONE if packet[0] & 1 else CLOSED

    def is_shown(self, packet: Packet[Any]) -> bool:
        return bool(memoryview(packet)[0] >> 4 & 1)


class _Vp9(_Other):
    has_whole_frames = True

    def start(self, packet: bytes) -> Start:
        bits = _Bits(packet[:2])
        if not self._reaches_type(bits) or bits.read(1):
            return NONE
        return CLOSED if bits.read(1) else UNPROVEN

    def is_shown(self, packet: Packet[Any]) -> bool:
        content = memoryview(packet)
        if content[-1] & 0xE0 == 0xC0:
            return True  # several frames in one packet: the last one is shown
        bits = _Bits(bytes(content[:2]))
        return not self._reaches_type(bits) or bool(bits.read(2) & 1)

    @staticmethod
    def _reaches_type(bits: _Bits) -> bool:
        """Reads up to the frame's type; False if the packet only shows an earlier frame."""
        bits.read(2)
        profile = bits.read(1) | bits.read(1) << 1
        if profile == 3:
            bits.read(1)
        return not bits.read(1)


class _Nal:
    """Common parts of H.264 and HEVC: packets consist of typed units."""

    has_whole_frames = True
    says_order = True

    def __init__(self, length_bytes: int) -> None:
        self._length_bytes = length_bytes

    def _units(self, packet: bytes) -> Iterator[tuple[int, int]]:
        """Start and end of each unit, without its length or start code."""
        if self._length_bytes and (units := self._with_lengths(packet)) is not None:
            return iter(units)
        return self._with_start_codes(packet)

    def _with_lengths(self, packet: bytes) -> list[tuple[int, int]] | None:
        at, units, size = 0, [], self._length_bytes
        while at + size <= len(packet):
            end = at + size + int.from_bytes(packet[at : at + size], "big")
            if end > len(packet) or end == at + size:
                return None
            units.append((at + size, end))
            at = end
        return units

    @staticmethod
    def _with_start_codes(packet: bytes) -> Iterator[tuple[int, int]]:
        at = packet.find(b"\0\0\1")
        while at >= 0:
            following = packet.find(b"\0\0\1", at + 3)
            end = following if following >= 0 else len(packet)
            if end > at + 3:
                yield at + 3, end
            at = following

    def is_shown(self, packet: Packet[Any]) -> bool:
        return True


class _H264(_Nal):
    _SLICES = (1, 2, 5)
    _SETTINGS, _MESSAGE = 7, 6

    def __init__(self, extradata: bytes) -> None:
        is_boxed = extradata[:1] == b"\1" and len(extradata) > 6
        super().__init__((extradata[4] & 3) + 1 if is_boxed else 0)
        settings = _boxed_settings(extradata) if is_boxed else None
        if not is_boxed:
            settings = next(
                (
                    extradata[begin:end]
                    for begin, end in self._units(extradata)
                    if extradata[begin] & 31 == self._SETTINGS
                ),
                None,
            )
        self.has_whole_frames, self.says_order = (
            _frames_and_order(settings) if settings is not None else (False, False)
        )

    def start(self, packet: bytes) -> Start:
        recovery: tuple[int, bool] | None = None
        for begin, end in self._units(packet):
            kind = packet[begin] & 31
            if kind == self._MESSAGE:
                recovery = recovery or self._recovery(packet[begin + 1 : end])
            elif kind == 5:
                return CLOSED
            elif kind in self._SLICES:
                if recovery is None or not recovery[1]:
                    return NONE
                if recovery[0]:
                    return Start(Kind.GRADUAL, after_references=recovery[0])
                bits = _Bits(_unescaped(packet[begin + 1 : min(end, begin + 16)]))
                bits.golomb()
                return OPEN if bits.golomb() % 5 in (2, 4) else NONE
        return NONE

    @staticmethod
    def _recovery(messages: bytes) -> tuple[int, bool] | None:
        """The number of reference pictures until all is correct, and whether it is exact."""
        for content in _messages(messages):
            bits = _Bits(content)
            return bits.golomb(), bool(bits.read(1))
        return None

    def is_reference(self, packet: bytes) -> bool:
        return any(
            packet[begin] & 0x60
            for begin, _ in self._units(packet)
            if packet[begin] & 31 in self._SLICES
        )

    def use(self, packet: bytes) -> Use:
        units = [packet[begin] for begin, _ in self._units(packet)]
        # Parameter sets count as references, too.
        if any(unit & 0x60 for unit in units):
            return NEEDED
        return UNNEEDED if any(unit & 31 in self._SLICES for unit in units) else NEEDED

    def needs_earlier(self, packet: bytes) -> bool:
        return True


class _Hevc(_Nal):
    _MESSAGE = 39

    def __init__(self, extradata: bytes) -> None:
        is_boxed = len(extradata) > 22 and extradata[:3] not in (b"\0\0\0", b"\0\0\1")
        super().__init__((extradata[21] & 3) + 1 if is_boxed else 0)

    def start(self, packet: bytes) -> Start:
        recovery: tuple[int, bool] | None = None
        for begin, end in self._units(packet):
            kind = packet[begin] >> 1 & 63
            if kind == self._MESSAGE:
                recovery = recovery or self._recovery(packet[begin + 2 : end])
            elif kind in (19, 20):
                return CLOSED
            elif kind in (16, 17, 18, 21):
                return OPEN
            elif kind < 32:
                if recovery is None or recovery[0] < 0 or not recovery[1]:
                    return NONE
                return Start(Kind.GRADUAL, after_shown=recovery[0])
        return NONE

    @staticmethod
    def _recovery(messages: bytes) -> tuple[int, bool] | None:
        for content in _messages(messages):
            bits = _Bits(content)
            code = bits.golomb()
            return (code + 1) // 2 if code % 2 else -(code // 2), bool(bits.read(1))
        return None

    def is_reference(self, packet: bytes) -> bool:
        return True

    def use(self, packet: bytes) -> Use:
        layer, slices = 0, 0
        for begin, end in self._units(packet):
            kind = packet[begin] >> 1 & 63
            if kind in _HEVC_MESSAGES:
                continue
            if end - begin < 2:
                return NEEDED  # broken
            layer = (packet[begin + 1] & 7) - 1
            if kind % 2 or kind > _HEVC_LAST_UNNEEDED:
                return _use(layer, True)
            slices += 1
        return _use(layer, not slices)

    def needs_earlier(self, packet: bytes) -> bool:
        return any(packet[begin] >> 1 & 63 in _LEADING_SKIPPED for begin, _ in self._units(packet))


def _boxed_settings(extradata: bytes) -> bytes | None:
    """The first sequence parameter set of an avcC box."""
    if not extradata[5] & 31:
        return None
    size = int.from_bytes(extradata[6:8], "big")
    return extradata[8 : 8 + size]


def _messages(content: bytes) -> Iterator[bytes]:
    """The recovery points among a unit's messages."""
    content = _unescaped(content)
    at = 0
    while at + 2 <= len(content) and content[at:] != b"\x80":
        values = []
        for _ in range(2):
            value = 0
            while at < len(content) and content[at] == 255:
                value, at = value + 255, at + 1
            if at >= len(content):
                return
            values.append(value + content[at])
            at += 1
        kind, size = values
        if kind == _RECOVERY_POINT:
            yield content[at : at + size]
        at += size


def _unescaped(content: bytes) -> bytes:
    """Removes emulation prevention bytes."""
    return content.replace(b"\0\0\3", b"\0\0")


def _frames_and_order(settings: bytes) -> tuple[bool, bool]:
    """Whether an H.264 stream has only whole frames, and whether it declares its reordering."""
    bits = _Bits(_unescaped(settings[1:]))
    profile = bits.read(8)
    bits.read(16)
    bits.golomb()
    if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
        chroma = bits.golomb()
        if chroma == 3:
            bits.read(1)
        bits.golomb()
        bits.golomb()
        bits.read(1)
        if bits.read(1):
            for number in range(12 if chroma == 3 else 8):
                if bits.read(1):
                    _skip_scaling_list(bits, 16 if number < 6 else 64)
    bits.golomb()
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.read(1)
        bits.golomb()
        bits.golomb()
        for _ in range(min(_MOST_REFERENCES, bits.golomb())):
            bits.golomb()
    bits.golomb()
    bits.read(1)
    bits.golomb()
    bits.golomb()
    is_whole = bool(bits.read(1))
    if not is_whole:
        bits.read(1)
    # Order type 2: pictures are shown in file order.
    return is_whole, order == 2 or _says_order(bits)


def _says_order(bits: _Bits) -> bool:
    """Whether the rest of the parameters declares how far pictures are reordered."""
    bits.read(1)
    if bits.read(1):
        for _ in range(4):
            bits.golomb()
    if not bits.read(1):
        return False
    if bits.read(1) and bits.read(8) == 255:
        bits.read(32)
    if bits.read(1):
        bits.read(1)
    if bits.read(1):
        bits.read(4)
        if bits.read(1):
            bits.read(24)
    if bits.read(1):
        bits.golomb()
        bits.golomb()
    if bits.read(1):
        bits.read(65)
    models = 0
    for _ in range(2):
        if bits.read(1):
            models += 1
            count = min(_MOST_MODELS, bits.golomb() + 1)
            bits.read(8)
            for _ in range(count):
                bits.golomb()
                bits.golomb()
                bits.read(1)
            bits.read(20)
    if models:
        bits.read(1)
    bits.read(1)
    return bool(bits.read(1))


def _skip_scaling_list(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            code = bits.golomb()
            change = (code + 1) // 2 if code % 2 else -(code // 2)
            following = (last + change) % 256
        last = following or last


class _Bits:
    """Bits of a header; 0 beyond its end."""

    def __init__(self, content: bytes) -> None:
        self._value = int.from_bytes(content, "big")
        self._left = len(content) * 8

    def read(self, count: int) -> int:
        self._left -= count
        if self._left < 0:
            return 0
        return self._value >> self._left & (1 << count) - 1

    def golomb(self) -> int:
        """An exponential Golomb code."""
        zeros = 0
        while self._left > 0 and not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros) if self._left > 0 else 0
