"""Files that are odd but sound: they must be kept, with correct facts."""

from __future__ import annotations

import itertools
import struct
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from tests.faults.corpus import (
    BAD,
    COLOURS,
    CORNERS,
    FOUR_SHOTS,
    KEPT,
    KINDS,
    SIZE,
    TOO_LONG,
    TOO_SHORT,
    Facts,
    Family,
    film,
    remuxed,
    rendered,
    two_shots,
    write_film,
)
from tests.faults.corpus_bytes import box, put, with_box, without_box
from tests.media import draw

_WRAP = 2**33 / 90_000
"""Seconds after which a transport stream's timestamps wrap to 0."""


def families() -> Iterator[Family]:
    yield containers()
    yield sizes()
    yield rotated()
    yield rates()
    yield edit_lists()
    yield time_stamps()
    yield indexes()
    yield pixels()
    yield streams()
    yield key_frames()


def containers() -> Family:
    family = Family("codecs and containers")
    for kind, (suffix, settings) in KINDS.items():
        if kind != "mp4":
            # Such a stream declares nothing; H.263 has few sizes, and 12:11 pixels.
            size = (192, 144) if kind == "3gp" else settings.get("size", SIZE)
            family.add(
                kind,
                film(kind, 50),
                KEPT,
                suffix=suffix,
                facts=Facts(seconds=None if kind == "mpg" else 2.0, size=size),
            )
    return family


def sizes() -> Family:
    family = Family("sizes")
    for size in ((16, 16), (8, 8), (2, 2), (64, 512), (512, 64), (1280, 16)):
        family.add(
            f"{size[0]}x{size[1]}",
            rendered(".mp4", 60, size=size),
            KEPT,
            facts=Facts(
                size=size,
                shots=Facts().shots if min(size) >= 16 else None,
                corner="upper left" if min(size) >= 64 else None,
            ),
        )
    for size, suffix, codec, format_ in (
        ((161, 91), ".mp4", "libx264", "yuv444p"),
        ((161, 91), ".webm", "libvpx-vp9", "yuv420p"),
        ((161, 91), ".avi", "mjpeg", "yuvj420p"),
        ((161, 91), ".mkv", "ffv1", "yuv420p"),
        ((95, 161), ".webm", "libvpx", "yuv420p"),
        ((1, 1), ".mkv", "ffv1", "bgra"),
        ((3, 301), ".mov", "png", "rgb24"),
        ((301, 3), ".webm", "libvpx-vp9", "yuv420p"),
    ):
        family.add(
            f"{size[0]}x{size[1]} {codec} {format_}",
            rendered(suffix, 61, size=size, codec=codec, pixels=format_, ticks=1),
            KEPT,
            suffix=suffix,
            facts=Facts(
                size=size,
                shots=Facts().shots if min(size) > 3 else None,
                corner="upper left" if min(size) > 3 else None,
            ),
        )
    family.add(
        "changing size in ts",
        film("ts h264", 62) + remuxed(rendered(".ts", 63, size=(320, 192)), ".ts", moved(2.0)),
        KEPT,
        suffix=".ts",
        facts=Facts(frames=100, seconds=4.0, corner=None, shots=FOUR_SHOTS),
    )
    # Where the size changes, MPEG-2's decoder drops the frame that it held back.
    family.add(
        "changing shape in ts",
        film("ts", 64)
        + remuxed(
            rendered(".ts", 65, size=(96, 160), codec="mpeg2video", ticks=1), ".ts", moved(2.0)
        ),
        KEPT,
        suffix=".ts",
        facts=Facts(frames=None, seconds=4.0, corner=None, shots=FOUR_SHOTS),
    )
    # The first ones are measured by every third or fifth pixel, until the size changes.
    for number, (first, second) in enumerate(
        (
            ((768, 432), (384, 216)),
            ((384, 216), (768, 432)),
            ((1280, 720), (640, 360)),
            ((768, 432), (432, 768)),
            ((768, 432), (764, 434)),
        )
    ):
        joined = rendered(".ts", 166 + 2 * number, size=first) + remuxed(
            rendered(".ts", 167 + 2 * number, size=second), ".ts", moved(2.0)
        )
        for suffix in (".ts", ".mkv"):
            family.add(
                f"{first[0]}x{first[1]} and then {second[0]}x{second[1]} in {suffix}",
                joined if suffix == ".ts" else remuxed(joined, suffix),
                KEPT,
                suffix=suffix,
                facts=Facts(frames=100, seconds=4.0, size=first, corner=None, shots=FOUR_SHOTS),
            )
    return family


def moved(seconds: float):
    """Delays every packet by this much."""

    def change(packet: av.Packet, number: int) -> bool:
        units = round(seconds / packet.time_base)
        packet.pts = None if packet.pts is None else packet.pts + units
        packet.dts = None if packet.dts is None else packet.dts + units
        return True

    return change


def rotated() -> Family:
    """Pictures, width and height are upright everywhere."""
    family = Family("rotated")
    for number, degrees in enumerate((90, 180, 270)):
        size = SIZE if degrees == 180 else SIZE[::-1]
        for suffix in (".mp4", ".mov", ".mkv"):
            family.add(
                f"turned by {degrees} in {suffix}",
                rendered(suffix, 70 + number, rotation=degrees),
                KEPT,
                suffix=suffix,
                facts=Facts(size=size, corner=CORNERS[degrees]),
            )
    data = rendered(".mp4", 74, rotation=90)
    at = box(data, "moov/trak/tkhd").content + 40
    half = round(0.5**0.5 * 65536)
    family.add(
        "turned by 45",
        put(data, at, struct.pack(">4i", half, half, 0, -half)),
        KEPT,
        facts=Facts(size=None, corner=None),
    )
    family.add("turned by a matrix of zeros", put(data, at, bytes(36)), KEPT, BAD)
    return family


def rates() -> Family:
    family = Family("frame rates")
    # The last of every three frames is shown for three: 16 times two more, at 25 per second.
    for suffix in (".mp4", ".mkv", ".mov"):
        family.add(
            f"variable in {suffix}",
            rendered(suffix, 80, uneven=True),
            KEPT,
            suffix=suffix,
            facts=Facts(seconds=3.28, shots=((0.0, COLOURS["red"]), (1.64, COLOURS["blue"]))),
        )
    family.add(
        "1 a second",
        rendered(".mp4", 81, seconds=2.0, rate=1),
        KEPT,
        facts=Facts(frames=4, seconds=4.0, shots=None, slack_seconds=0.1),
    )
    family.add(
        "1 in 5 seconds",
        remuxed(
            rendered(".mp4", 82, seconds=2.0, rate=1, codec_options={"bf": "0"}),
            ".mkv",
            _stretch(5),
        ),
        KEPT,
        suffix=".mkv",
        facts=Facts(frames=4, seconds=None, shots=None),
    )
    family.add(
        "240 a second",
        rendered(".mp4", 83, rate=240, seconds=0.5, size=(64, 64)),
        KEPT,
        facts=Facts(
            frames=240,
            seconds=1.0,
            size=(64, 64),
            corner=None,
            shots=((0.0, COLOURS["red"]), (0.5, COLOURS["blue"])),
        ),
    )
    family.add(
        "1000 a second",
        rendered(".mp4", 84, rate=1000, seconds=0.5, size=(64, 64)),
        KEPT,
        facts=Facts(
            frames=1000,
            seconds=1.0,
            size=(64, 64),
            corner=None,
            shots=((0.0, COLOURS["red"]), (0.5, COLOURS["blue"])),
        ),
    )
    family.add(
        "1000 a second in mkv",
        rendered(".mkv", 85, rate=1000, seconds=0.5, size=(64, 64)),
        KEPT,
        suffix=".mkv",
        facts=Facts(
            frames=1000,
            seconds=1.0,
            size=(64, 64),
            corner=None,
            shots=((0.0, COLOURS["red"]), (0.5, COLOURS["blue"])),
        ),
    )
    # Frame durations depend on the rate in AVI's header, which is 0 here.
    data = film("avi", 86)
    at = data.index(b"strh") + 8 + 20  # scale, rate
    for rate, scale in ((0, 1), (1, 0), (0, 0), (1, 0xFFFFFFFF), (0xFFFFFFFF, 1)):
        allowed = (KEPT, BAD) if rate == 0 or scale == 0 else (KEPT, BAD, TOO_SHORT, TOO_LONG)
        family.add(
            f"avi with rate {rate}/{scale}",
            put(data, at, struct.pack("<II", scale, rate)),
            *allowed,
            suffix=".avi",
        )
    return family


def _stretch(factor: int):
    def change(packet: av.Packet, number: int) -> bool:
        packet.pts, packet.dts = packet.pts * factor, packet.dts * factor
        packet.duration = packet.duration * factor
        return True

    return change


def _elst(*edits: tuple[int, int]) -> bytes:
    """An edit list: each edit's duration in the movie's units, and its first time in the track."""
    return struct.pack(">II", 0, len(edits)) + b"".join(
        struct.pack(">iiI", duration, begin, 0x10000) for duration, begin in edits
    )


def edit_lists() -> Family:
    """Displayed time counts; the movie's units are milliseconds, the track's 1/12800 s."""
    family = Family("edit lists")
    path = "moov/trak/edts/elst"
    salts = itertools.count(90)

    def base() -> bytes:
        return rendered(".mp4", next(salts), codec_options={"bf": "0"})

    family.add(
        "mp4 that begins at 0.4 s",
        with_box(base(), path, _elst((1600, 5120))),
        KEPT,
        facts=Facts(frames=40, seconds=1.6, shots=((0.0, COLOURS["red"]), (0.6, COLOURS["blue"]))),
    )
    family.add(
        "mp4 that begins late",
        with_box(base(), path, _elst((1000, -1), (2000, 0))),
        KEPT,
        facts=Facts(first_seconds=0.0),
    )  # players begin with whatever is there
    family.add(
        "mp4 that begins very late",
        with_box(base(), path, _elst((600_000, -1), (2000, 0))),
        KEPT,
        facts=Facts(first_seconds=0.0),
    )
    family.add(
        "mp4 that ends early",
        with_box(base(), path, _elst((1600, 0))),
        KEPT,
        facts=Facts(frames=40, seconds=1.6),
    )
    family.add(
        "mp4 that shows a part twice",
        with_box(base(), path, _elst((1000, 0), (1000, 0))),
        KEPT,
        BAD,
    )
    family.add(
        "mp4 with an edit that shows nothing",
        with_box(base(), path, _elst((2000, 99_000_000))),
        KEPT,
        BAD,
    )
    family.add("mp4 with a negative edit", with_box(base(), path, _elst((2000, -7))), KEPT, BAD)
    family.add("mp4 with an endless edit", with_box(base(), path, _elst((2**31 - 1, 0))), KEPT, BAD)
    family.add(
        "mp4 with 1000 edits",
        with_box(base(), path, _elst(*[(2, n * 25) for n in range(1000)])),
        KEPT,
        BAD,
    )
    family.add(
        "mp4 with an edit count that lies",
        with_box(
            base(), path, _elst((2000, 0))[:4] + struct.pack(">I", 2**31) + _elst((2000, 0))[8:]
        ),
        KEPT,
        BAD,
    )
    family.add(
        "mp4 without its edit list", without_box(base(), "moov/trak/edts"), KEPT, facts=Facts()
    )
    return family


def time_stamps() -> Family:
    family = Family("time stamps")
    salts = itertools.count(110)
    for suffix in (".mp4", ".mkv", ".ts"):
        family.add(
            f"begins at 1.5 s in {suffix}",
            rendered(suffix, next(salts), start_seconds=1.5),
            KEPT,
            suffix=suffix,
            facts=Facts(first_seconds=0.0),
        )
    family.add(
        "begins at 10 hours in mkv",
        rendered(".mkv", next(salts), start_seconds=36_000),
        KEPT,
        suffix=".mkv",
        facts=Facts(first_seconds=0.0),
    )
    # The timestamps pass the end of their 33-bit counter.
    for name, settings in (("mpeg2", {"codec": "mpeg2video", "ticks": 1}), ("h264", {})):
        family.add(
            f"ts {name} whose clock wraps",
            rendered(
                ".ts",
                next(salts),
                start_seconds=round(_WRAP - 2.4, 2),
                container_options={"mpegts_copyts": "1"},
                **settings,
            ),
            KEPT,
            suffix=".ts",
            facts=Facts(first_seconds=0.0),
        )
    for seconds in (1.0, -1.0, 30.0, -30.0, 3600.0, -3600.0):
        # Part two is this far from its regular start. Its duration is known either way.
        first = remuxed(film("ts", 120), ".ts", moved(7200.0), options={"mpegts_copyts": "1"})
        second = remuxed(
            film("ts", 121), ".ts", moved(7202.0 + seconds), options={"mpegts_copyts": "1"}
        )
        # By its timestamps a video with an hour's gap is longer than an hour; if they go back, a
        # time no longer identifies a frame.
        allowed = (
            (TOO_LONG,)
            if seconds > 1800
            else (KEPT,)
            if seconds > 0
            else (TOO_LONG, BAD)
            if seconds < -1800
            else (BAD,)
        )
        word = "ahead" if seconds > 0 else "back"
        family.add(
            f"ts that jumps {word} by {abs(seconds):g} s",
            first + second,
            *allowed,
            suffix=".ts",
            facts=Facts(frames=100, seconds=None, shots=None),
        )
    family.add(
        "mp4 with negative times",
        rendered(
            ".mp4",
            next(salts),
            start_seconds=-1.0,
            container_options={"avoid_negative_ts": "disabled"},
        ),
        KEPT,
        BAD,
    )
    family.add(
        "mkv with one time for all",
        remuxed(film("mkv", next(salts)), ".mkv", _flat),
        KEPT,
        BAD,
        TOO_SHORT,
        suffix=".mkv",
    )
    data = film("mp4", next(salts))
    stts = "moov/trak/mdia/minf/stbl/stts"
    for delta, allowed in (
        (0, (KEPT, BAD, TOO_SHORT)),
        (1, (KEPT, TOO_SHORT, BAD)),
        (2**31 - 1, (KEPT, BAD, TOO_LONG)),
    ):
        family.add(
            f"mp4 whose frames last {delta} units",
            with_box(data, stts, struct.pack(">4I", 0, 1, 50, delta)),
            *allowed,
        )
    family.add(
        "mp4 whose times go backwards",
        with_box(data, stts, struct.pack(">8I", 0, 3, 20, 512, 10, 2**32 - 512, 20, 512)),
        KEPT,
        BAD,
    )
    family.add(
        "mp4 of one second's times",
        with_box(data, stts, struct.pack(">6I", 0, 2, 25, 512, 25, 0)),
        KEPT,
        BAD,
    )
    # Raw H.264 has no times; frames are stored in another order than displayed.
    raw = remuxed(film("mp4", next(salts)), ".h264")
    family.add("raw h264 called mp4", raw, KEPT, BAD, facts=Facts(seconds=None))
    family.add(
        "h264 with two-way frames in avi",
        rendered(
            ".avi", next(salts), ticks=1, codec_options={"bf": "3", "x264-params": "b-adapt=0"}
        ),
        KEPT,
        suffix=".avi",
        facts=Facts(slack_seconds=0.13),
    )
    return family


def _flat(packet: av.Packet, number: int) -> bool:
    packet.pts = packet.dts = 0
    return True


def indexes() -> Family:
    family = Family("no index")
    data = film("mp4", 150)
    moov = box(data, "moov")
    family.add("mp4 without moov", data[: moov.start] + data[moov.end :], BAD)
    # FFmpeg searches for it in free space, where some tools hide it.
    family.add("mp4 whose moov is called free", without_box(data, "moov"), KEPT, facts=Facts())
    family.add("mp4 with moov alone", data[moov.start :], BAD)
    family.add("mp4 with ftyp alone", data[: box(data, "ftyp").end], BAD)
    for name in ("stsz", "stsc", "stco", "stts", "stsd"):
        family.add(
            f"mp4 without {name}",
            without_box(data, f"moov/trak/mdia/minf/stbl/{name}"),
            BAD,
            *((KEPT,) if name in ("stts",) else ()),
        )
    family.add(
        "mp4 without stss",
        without_box(film("mp4", 151), "moov/trak/mdia/minf/stbl/stss"),
        KEPT,
        facts=Facts(),
    )
    family.add("mkv live, without cues", film("mkv live", 151), KEPT, suffix=".mkv", facts=Facts())
    cues = film("mkv", 152)
    family.add(
        "mkv cut off before its cues",
        cues[: cues.rindex(b"\x1c\x53\xbb\x6b")],
        KEPT,
        suffix=".mkv",
        facts=Facts(),
    )
    avi = film("avi", 153)
    family.add(
        "avi without its index", avi[: avi.rindex(b"idx1")], KEPT, BAD, suffix=".avi", facts=Facts()
    )
    family.add(
        "webm live",
        rendered(".webm", 154, codec="libvpx-vp9", container_options={"live": "1"}),
        KEPT,
        suffix=".webm",
        facts=Facts(),
    )
    return family


def _by(
    matrix: tuple[float, float],
    format_: str,
    *,
    bits: int = 8,
    full_range: bool = False,
    colorspace: int = 2,
):
    """Converts by a matrix's definition (its shares of red and blue), and declares it."""
    red, blue = matrix
    top = 2**bits - 1

    def convert(image: np.ndarray) -> av.VideoFrame:
        r, g, b = (image[..., i].astype(np.float64) / 255 for i in range(3))
        luma = red * r + (1 - red - blue) * g + blue * b
        planes = [luma, (b - luma) / (2 * (1 - blue)), (r - luma) / (2 * (1 - red))]
        scale = 2 ** (bits - 8)
        if full_range:
            planes = [planes[0] * top, *(p * top + 128 * scale for p in planes[1:])]
        else:
            planes = [
                (16 + 219 * planes[0]) * scale,
                *((128 + 224 * p) * scale for p in planes[1:]),
            ]
        whole = [
            np.clip(np.round(p), 0, top).astype(np.uint8 if bits == 8 else np.uint16)
            for p in (planes[0], planes[1][::2, ::2], planes[2][::2, ::2])
        ]
        frame = av.VideoFrame(image.shape[1], image.shape[0], format_)
        for plane, values in zip(frame.planes, whole, strict=True):
            lines = np.zeros((plane.height, plane.line_size), np.uint8)
            lines[:, : values.shape[1] * values.itemsize] = values.view(np.uint8).reshape(
                values.shape[0], -1
            )
            plane.update(lines.tobytes())
        frame.colorspace = colorspace
        frame.color_range = 2 if full_range else 1
        return frame

    return convert


def pixels() -> Family:
    """Colours are those that were recorded, in whatever form."""
    family = Family("pixels")
    for number, (name, suffix, settings) in enumerate(
        (
            ("10 bit h264", ".mp4", {"pixels": "yuv420p10le"}),
            ("10 bit hevc", ".mp4", {"codec": "libx265", "pixels": "yuv420p10le"}),
            ("12 bit hevc", ".mp4", {"codec": "libx265", "pixels": "yuv420p12le"}),
            ("10 bit av1", ".mp4", {"codec": "libsvtav1", "pixels": "yuv420p10le"}),
            ("prores", ".mov", {"codec": "prores_ks", "pixels": "yuv422p10le"}),
            ("4:4:4 h264", ".mp4", {"pixels": "yuv444p"}),
            ("4:2:2 mpeg2", ".ts", {"codec": "mpeg2video", "pixels": "yuv422p", "ticks": 1}),
            ("full range jpeg", ".avi", {"codec": "mjpeg", "pixels": "yuvj444p", "ticks": 1}),
            ("rgb in ffv1", ".mkv", {"codec": "ffv1", "pixels": "bgr0"}),
            ("rgb in h264", ".mkv", {"codec": "libx264rgb", "pixels": "rgb24"}),
            ("16 bit rgb png", ".mov", {"codec": "png", "pixels": "rgb48be"}),
            ("rawvideo", ".avi", {"codec": "rawvideo", "pixels": "bgr24", "ticks": 1}),
            ("alpha in vp9", ".webm", {"codec": "libvpx-vp9", "pixels": "yuva420p"}),
            ("alpha in qtrle", ".mov", {"codec": "qtrle", "pixels": "argb"}),
            ("alpha in prores", ".mov", {"codec": "prores_ks", "pixels": "yuva444p10le"}),
            ("alpha in png", ".mov", {"codec": "png", "pixels": "rgba"}),
            ("alpha in ffv1", ".mkv", {"codec": "ffv1", "pixels": "yuva420p"}),
            ("interlaced h264", ".mp4", {"interlaced": True}),
            (
                "interlaced mpeg2",
                ".ts",
                {"codec": "mpeg2video", "ticks": 1, "codec_options": {"flags": "+ildct+ilme"}},
            ),
        )
    ):
        family.add(
            name,
            rendered(suffix, 160 + number % 20, **settings),
            KEPT,
            suffix=suffix,
            facts=Facts(),
        )
    family.add(
        "grey in ffv1",
        rendered(".mkv", 181, codec="ffv1", pixels="gray"),
        KEPT,
        suffix=".mkv",
        facts=Facts(shots=((0.0, (81, 81, 81)), (1.0, (71, 71, 71)))),
    )
    family.add(
        "palette in gif",
        rendered(".gif", 182, codec="gif", pixels="bgr8", ticks=1, rate=20),
        KEPT,
        facts=Facts(frames=40, slack_colour=40),
    )
    bt709, bt601, bt2020 = (0.2126, 0.0722), (0.299, 0.114), (0.2627, 0.0593)
    for number, (name, matrix, format_, more) in enumerate(
        (
            ("bt709", bt709, "yuv420p", {"colorspace": 1}),
            ("bt601", bt601, "yuv420p", {"colorspace": 5}),
            ("bt709 full range", bt709, "yuv420p", {"colorspace": 1, "full_range": True}),
            ("bt2020 10 bit", bt2020, "yuv420p10le", {"colorspace": 9, "bits": 10}),
        )
    ):
        family.add(
            name,
            _tagged(183 + number, _by(matrix, format_, **more), format_, more),
            KEPT,
            facts=Facts(slack_colour=12),
        )
    # Ordinary colours declared as high dynamic range: tone mapping changes the picture, but its
    # bright corner stays bright.
    family.add(
        "hdr (pq) hevc",
        _tagged(
            188,
            _by(bt2020, "yuv420p10le", bits=10, colorspace=9),
            "yuv420p10le",
            {"colorspace": 9},
            codec="libx265",
            hdr=True,
        ),
        KEPT,
        facts=Facts(shots=None),
    )
    family.add(
        "hdr (pq) h264",
        _tagged(
            189,
            _by(bt2020, "yuv420p10le", bits=10, colorspace=9),
            "yuv420p10le",
            {"colorspace": 9},
            hdr=True,
        ),
        KEPT,
        facts=Facts(shots=None),
    )
    return family


_MATRIX_WORDS = {1: "bt709", 5: "bt470bg", 9: "bt2020nc"}


def _tagged(
    salt: int, convert, format_: str, more: dict, *, codec: str = "libx264", hdr: bool = False
) -> bytes:
    word = _MATRIX_WORDS[more["colorspace"]]
    full = bool(more.get("full_range"))
    if codec == "libx265":
        options = {"x265-params": f"log-level=none:colormatrix={word}:range=limited"}
    else:
        options = {"x264-params": f"colormatrix={word}:fullrange={'on' if full else 'off'}"}
    return rendered(
        ".mp4", salt, pixels=format_, frame_of=convert, codec=codec, hdr=hdr, codec_options=options
    )


def streams() -> Family:
    family = Family("several streams")
    for suffix in (".mkv", ".mp4", ".ts"):
        family.add(
            f"two videos in {suffix}", _two_videos(suffix), KEPT, suffix=suffix, facts=Facts()
        )
    for name, first in (("first", True), ("last", False)):
        family.add(f"cover picture {name}", _with_cover(first), KEPT, facts=Facts())
    family.add(
        "sound that goes on",
        _long_sound(),
        KEPT,
        suffix=".mkv",
        facts=Facts(frames=None, shots=((0.0, COLOURS["red"]),), slack_seconds=0.15),
    )
    return family


def _frames(salt: int, size: tuple[int, int], rate: int = 25) -> Iterator[av.VideoFrame]:
    number = 0
    for scene in two_shots(salt):
        for at in range(rate):
            frame = av.VideoFrame.from_ndarray(draw(scene, at, rate, size), "rgb24")
            frame = frame.reformat(format="yuv420p")
            frame.pts, number = number, number + 1
            yield frame


def in_file(suffix: str, write: Callable[[Path], object]) -> bytes:
    """The bytes of the file that a function writes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"film{suffix}"
        write(path)
        return path.read_bytes()


def _two_videos(suffix: str) -> bytes:
    """The second one is larger: some readers would choose it."""

    def write(path: Path) -> None:
        with av.open(str(path), "w") as output:
            pair = []
            for size in (SIZE, (320, 192)):
                stream = output.add_stream("libx264", rate=25, options={"g": "10"})
                stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
                pair.append((stream, _frames(190, size)))
            for frames in zip(*(f for _, f in pair), strict=True):
                for (stream, _), frame in zip(pair, frames, strict=True):
                    output.mux(stream.encode(frame))
            for stream, _ in pair:
                output.mux(stream.encode())

    return in_file(suffix, write)


def _with_cover(first: bool) -> bytes:
    def write(path: Path) -> None:
        with av.open(str(path), "w") as output:

            def cover():
                stream = output.add_stream("mjpeg", rate=25)
                stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p"
                stream.disposition = av.stream.Disposition.attached_pic
                return stream

            before = cover() if first else None
            stream = output.add_stream("libx264", rate=25, options={"g": "10"})
            stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
            picture = before or cover()
            image = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 200, np.uint8), "rgb24")
            image = image.reformat(format="yuvj420p")
            image.pts = 0
            output.mux(picture.encode(image))
            output.mux(picture.encode())
            for frame in _frames(191 + first, SIZE):
                output.mux(stream.encode(frame))
            output.mux(stream.encode())

    return in_file(".mp4", write)


def _long_sound() -> bytes:
    """Pictures of 2 s, sound of 4."""

    def write(path: Path) -> None:
        whole = path.with_name("whole.mkv")
        write_film(whole, 193, seconds=2.0, audio=True, codec_options={"bf": "0"})
        path.write_bytes(
            remuxed(
                whole.read_bytes(),
                ".mkv",
                lambda packet, _: (
                    packet.stream.type != "video" or packet.pts * packet.time_base < 2.0
                ),
            )
        )

    return in_file(".mkv", write)


def key_frames() -> Family:
    """Streams may begin between key frames: frames that can't be shown are not counted."""
    family = Family("no first key frame")
    for kind in ("mkv one-way", "ts", "ts h264", "avi", "webm"):
        suffix = KINDS[kind][0]
        allowed = (KEPT, BAD)
        family.add(
            f"{kind} without its first packet",
            remuxed(film(kind, 200), suffix, lambda packet, number: number > 0),
            *allowed,
            suffix=suffix,
            facts=Facts(frames=None, seconds=None, shots=None, corner=None),
        )
    family.add(
        "mkv without any key frame",
        remuxed(film("mkv one-way", 201), ".mkv", lambda packet, _: not packet.is_keyframe),
        KEPT,
        BAD,
        suffix=".mkv",
    )
    family.add(
        "mkv with every second packet",
        remuxed(film("mkv one-way", 202), ".mkv", lambda packet, number: number % 2 == 0),
        KEPT,
        BAD,
        suffix=".mkv",
    )
    return family
