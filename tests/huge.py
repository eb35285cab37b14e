"""A small H.264 film that declares huge pictures in its sequence parameter set."""

from __future__ import annotations

from pathlib import Path

import av

from tests.media import Scene, cached

_SMALL = (Scene("grey", 0.4),)
_BASELINE = (("profile", "baseline"), ("bf", "0"))


class _Bits:
    """Reads and writes the bits of a NAL unit's payload sequentially."""

    def __init__(self, data: bytes = b"") -> None:
        self.text = "".join(f"{byte:08b}" for byte in data.replace(b"\0\0\3", b"\0\0"))
        self.at = 0

    def fixed(self, count: int) -> str:
        self.at += count
        return self.text[self.at - count : self.at]

    def golomb(self) -> int:
        zeros = 0
        while self.fixed(1) == "0":
            zeros += 1
        return int("1" + self.fixed(zeros), 2) - 1


def _golomb(value: int) -> str:
    text = f"{value + 1:b}"
    return "0" * (len(text) - 1) + text


def _bytes(text: str) -> bytes:
    text += "1"
    text += "0" * (-len(text) % 8)
    plain = bytes(int(text[i : i + 8], 2) for i in range(0, len(text), 8))
    data, zeros = bytearray(), 0
    for byte in plain:  # inserts emulation prevention bytes
        if zeros >= 2 and byte <= 3:
            data.append(3)
            zeros = 0
        data.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes(data)


def declared(parameters: bytes, width: int, height: int) -> bytes:
    """An H.264 sequence parameter set (its NAL unit, baseline profile) with another size."""
    bits = _Bits(parameters)
    head = bits.fixed(8 + 8 + 8 + 8)
    assert int(head[8:16], 2) == 66, "only of baseline profile"
    fields = [bits.golomb(), bits.golomb(), order := bits.golomb()]
    assert order in (0, 2)
    fields += [bits.golomb()] if order == 0 else []
    fields.append(bits.golomb())
    gaps = bits.fixed(1)
    bits.golomb(), bits.golomb()
    # Frames only, direct inference unchanged, no cropping, no VUI.
    flags = bits.fixed(2)
    return _bytes(
        head
        + "".join(map(_golomb, fields))
        + gaps
        + _golomb(width // 16 - 1)
        + _golomb(height // 16 - 1)
        + flags
        + "00"
    )


def huge_h264(path: Path, width: int, height: int) -> None:
    """An H.264 film, raw or in MPEG-TS by the suffix, whose every frame declares this size."""
    small, _ = cached(_SMALL, codec_options=_BASELINE)
    with av.open(str(small)) as source:
        stream = source.streams.video[0]
        extra = stream.codec_context.extradata
        length = int.from_bytes(extra[6:8])
        parameters = declared(extra[8 : 8 + length], width, height)
        at = 8 + length + 1
        more = extra[at + 2 : at + 2 + int.from_bytes(extra[at : at + 2])]
        start = b"\0\0\0\1"
        frames = []
        for packet in source.demux(stream):
            data, units = bytes(packet), []
            while data:
                size = int.from_bytes(data[:4])
                units.append(data[4 : 4 + size])
                data = data[4 + size :]
            frames.append(b"".join(start + u for u in units if u[0] & 31 in (1, 5)))
    bare = b"".join(start + parameters + start + more + frame for frame in frames if frame)
    if path.suffix != ".ts":
        path.write_bytes(bare)
        return
    whole = path.with_suffix(".bare")
    whole.write_bytes(bare)
    with av.open(str(whole), format="h264") as source, av.open(str(path), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for number, packet in enumerate(source.demux(stream)):
            if packet.size:
                packet.pts = packet.dts = number * 3600
                packet.time_base = copy.time_base or packet.time_base
                packet.stream = copy
                target.mux(packet)
    whole.unlink()
