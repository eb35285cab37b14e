"""Files with wrong headers, files without video, and files that are not media at all."""

from __future__ import annotations

import io
import random
import struct
import wave
import zipfile
from collections.abc import Iterator
from pathlib import Path

import av
import cv2
import numpy as np

from tests.faults.corpus import (
    BAD,
    CORRUPT,
    CRASH,
    KEPT,
    TOO_LONG,
    TOO_SHORT,
    Facts,
    Family,
    film,
    remuxed,
    rendered,
)
from tests.faults.corpus_bytes import (
    box,
    mp4_of_declared_size,
    put,
    put_after,
    vp9_of_declared_size,
    with_box,
    without_box,
)
from tests.faults.corpus_odd import in_file

_HOURS_12 = 12 * 3600


def families() -> Iterator[Family]:
    yield declared_sizes()
    yield declared_lengths()
    yield one_frame()
    yield stills()
    yield sound_only()
    yield no_media()
    yield fuzzed()


def declared_sizes() -> Family:
    """The pictures' own number of lines and columns counts, not the headers around them.

    The container's aspect ratio counts, as in players: the longer side grows to it.
    """
    family = Family("declared sizes")
    tkhd, stsd = "moov/trak/tkhd", "moov/trak/mdia/minf/stbl/stsd"
    # The effect of the track's and the sample entry's size on 160 by 96 pixels.
    shown = {
        7680: ((171, 96), (160, 102)),
        16384: ((160, 160), (267, 96)),
        65535: ((160, 160), (267, 96)),
    }
    for number, (width, height) in enumerate(((7680, 4320), (16384, 16384), (65535, 65535))):
        of_track, of_entry = shown[width]
        word = f"{width}x{height}"
        data = film("mp4", 210 + number)
        family.add(
            f"mp4 track of {word}",
            put(data, box(data, tkhd).content + 76, struct.pack(">II", width << 16, height << 16)),
            KEPT,
            facts=Facts(size=of_track),
        )
        data = film("mp4", 213 + number)
        family.add(
            f"mp4 sample entry of {word}",
            put(data, box(data, stsd).content + 8 + 32, struct.pack(">HH", width, height)),
            KEPT,
            facts=Facts(size=of_entry),
        )
        both = struct.pack(">HH", width, height)
        data = rendered(".mkv", 216 + number, size=(320, 300))  # two bytes each
        data = put_after(data, b"\xb0\x82", both[:2])
        family.add(
            f"mkv of {word}",
            put_after(data, b"\xba\x82", both[2:]),
            KEPT,
            suffix=".mkv",
            facts=Facts(size=(320, 300)),
        )
        data = rendered(".mkv", 219 + number, size=(320, 300), codec="ffv1", seconds=0.4)
        data = put_after(data, b"\xb0\x82", both[:2])
        # This codec takes its size only from the container.
        family.add(
            f"ffv1 in mkv of {word}",
            put_after(data, b"\xba\x82", both[2:]),
            BAD,
            CRASH,
            suffix=".mkv",
        )
        # The pictures themselves declare this size, without the data for it.
        family.add(
            f"vp9 pictures of {word}",
            vp9_of_declared_size(film("webm", 222 + number), width, height),
            BAD,
            CRASH,
            suffix=".webm",
        )
        family.add(
            f"jpeg pictures of {word}",
            put_after(
                film("avi", 225 + number),
                b"\xff\xc0\x00\x11\x08",
                struct.pack(">HH", min(height, 65500), min(width, 65500)),
                every=True,
            ),
            BAD,
            CRASH,
            KEPT,
            suffix=".avi",
        )
        family.add(
            f"avi of {word}",
            put_after(
                film("avi", 228 + number), b"strf", struct.pack("<ii", width, height), skip=8
            ),
            KEPT,
            BAD,
            CORRUPT,
            suffix=".avi",
            # Two pictures may be mistaken for a frame's fields.
            facts=Facts(frames=None, size=None, shots=None, corner=None),
        )
        data = rendered(
            ".avi", 231 + number, codec="rawvideo", pixels="bgr24", ticks=1, seconds=0.4
        )
        family.add(
            f"raw avi of {word}",
            put_after(data, b"strf", struct.pack("<ii", width, height), skip=8),
            BAD,
            CRASH,
            suffix=".avi",
        )
    for width, height in ((7680, 4320), (8192, 8192), (16384, 8704), (65520, 65520)):
        family.add(
            f"h264 pictures of {width}x{height}",
            mp4_of_declared_size(film("mp4", 234), width, height),
            BAD,
            CRASH,
            facts=Facts(),
        )
    family.add(
        "mpeg2 pictures of 4080x4080",
        put_after(film("ts", 235), b"\0\0\1\xb3", bytes.fromhex("ff0ff0"), every=True),
        KEPT,
        BAD,
        CRASH,
        suffix=".ts",
    )
    data = film("mp4", 236)
    family.add(
        "mp4 track of 0x0", put(data, box(data, tkhd).content + 76, bytes(8)), KEPT, facts=Facts()
    )
    family.add(
        "mkv of 0x0",
        put_after(
            put_after(rendered(".mkv", 237, size=(320, 300)), b"\xb0\x82", b"\0\0"),
            b"\xba\x82",
            b"\0\0",
        ),
        KEPT,
        BAD,
        suffix=".mkv",
    )
    return family


def declared_lengths() -> Family:
    """A header that declares hours, followed by a second or two."""
    family = Family("declared lengths")
    salts = iter(range(240, 300))
    mdhd, mvhd, tkhd = "moov/trak/mdia/mdhd", "moov/mvhd", "moov/trak/tkhd"

    def long(data: bytes, *paths: str) -> bytes:
        for path in paths:
            at, scale = box(data, path).content, 12_800 if path == mdhd else 1000
            skip = 20 if path == tkhd else 16
            data = put(data, at + skip, struct.pack(">I", _HOURS_12 * scale))
        return data

    family.add(
        "mp4 movie of 12 hours", long(film("mp4", next(salts)), mvhd), KEPT, BAD, facts=Facts()
    )
    family.add(
        "mp4 of 12 hours in all headers",
        long(film("mp4", next(salts)), mvhd, tkhd, mdhd),
        KEPT,
        BAD,
        facts=Facts(),
    )  # its index is intact and correct
    data = long(rendered(".mp4", next(salts), codec_options={"bf": "0"}), mvhd, tkhd, mdhd)
    family.add(
        "mp4 of 12 hours by its edit list, too",
        with_box(
            data, "moov/trak/edts/elst", struct.pack(">IIIiI", 0, 1, _HOURS_12 * 1000, 0, 0x10000)
        ),
        KEPT,
        BAD,
        facts=Facts(),
    )
    stbl = "moov/trak/mdia/minf/stbl/"
    for name, times in (
        ("mp4 whose frames last 864 s", (1, 50, 864 * 12_800)),
        ("mp4 whose last frame lasts 12 hours", (2, 49, 512, 1, _HOURS_12 * 12_800)),
    ):
        data = without_box(
            rendered(".mp4", next(salts), codec_options={"bf": "0"}), "moov/trak/edts"
        )
        family.add(
            name,
            with_box(data, stbl + "stts", struct.pack(f">{len(times) + 1}I", 0, *times)),
            TOO_LONG,
        )
    for count in (5_000, 2**31 - 1, 2**32 - 1):
        data = film("mp4", next(salts))
        family.add(
            f"mp4 of {count} frames by stsz",
            put(data, box(data, stbl + "stsz").content + 8, struct.pack(">I", count)),
            BAD,
        )
        data = film("mp4", next(salts))
        # Zero padding, all of one size.
        family.add(
            f"mp4 of {count} frames of one size",
            with_box(data, stbl + "stsz", struct.pack(">III", 0, 64, count)),
            BAD,
        )
        data = film("mp4", next(salts))
        family.add(
            f"mp4 with {count} times by stts",
            put(data, box(data, stbl + "stts").content + 4, struct.pack(">I", count)),
            BAD,
            CRASH,
            KEPT,
            TOO_SHORT,
            TOO_LONG,
        )
    data = film("mp4", next(salts))
    family.add(
        "mp4 of a frame of 2 GB",
        put(data, box(data, stbl + "stsz").content + 12, struct.pack(">I", 2**31 - 64)),
        BAD,
        CRASH,
    )
    data = film("mp4", next(salts))
    family.add(
        "mp4 with a box of 2^62 bytes",
        data + struct.pack(">I4sQ", 1, b"free", 2**62),
        KEPT,
        facts=Facts(),
    )
    duration = b"\x44\x89\x88"
    family.add(
        "mkv of 12 hours",
        put_after(film("mkv", next(salts)), duration, struct.pack(">d", _HOURS_12 * 1000.0)),
        KEPT,
        suffix=".mkv",
        facts=Facts(),
    )  # no byte is missing
    for number in (float("nan"), float("inf"), -1.0, 1e300):
        family.add(
            f"mkv of {number} s",
            put_after(film("mkv", next(salts)), duration, struct.pack(">d", number)),
            KEPT,
            BAD,
            suffix=".mkv",
        )
    data = film("flv h264", next(salts))
    family.add(
        "flv of 12 hours",
        put_after(data, b"\0\x08duration\0", struct.pack(">d", float(_HOURS_12))),
        KEPT,
        suffix=".flv",
        facts=Facts(),
    )
    data = film("avi", next(salts))
    family.add(
        "avi of 12 hours",
        put(data, data.index(b"strh") + 8 + 32, struct.pack("<I", _HOURS_12 * 25)),
        KEPT,
        suffix=".avi",
        facts=Facts(),
    )
    data = film("mkv", next(salts))
    family.add(
        "mkv with a cluster of 2^40 bytes",
        put_after(data, b"\x1f\x43\xb6\x75", b"\x01\x00\x01\x00\x00\x00\x00\x00"),
        *(KEPT, BAD),
        suffix=".mkv",
    )
    family.add(
        "mkv with a frame of 1 GB",
        put_after(data, b"\xa3", b"\x10\x40\x00\x00"),
        KEPT,
        BAD,
        CRASH,
        suffix=".mkv",
    )
    return family


def one_frame() -> Family:
    """One picture is a video with the duration of one frame, which is not a clip."""
    family = Family("one frame")
    for number, (suffix, settings) in enumerate(
        (
            (".mp4", {}),
            (".mkv", {}),
            (".webm", {"codec": "libvpx-vp9"}),
            (".avi", {"codec": "mjpeg", "pixels": "yuvj420p", "ticks": 1}),
            (".ts", {"codec": "mpeg2video", "ticks": 1}),
        )
    ):
        data = rendered(suffix, 300 + number, frames=1, **settings)
        # MPEG-2's decoder is unsure about a last frame.
        family.add(
            f"one frame in {suffix}",
            data,
            TOO_SHORT,
            *((BAD,) if suffix == ".ts" else ()),
            suffix=suffix,
            facts=Facts(frames=1, seconds=0.04, shots=None),
        )
    family.add(
        "one frame for 5 s",
        with_box(
            rendered(".mp4", 306, frames=1),
            "moov/trak/mdia/minf/stbl/stts",
            struct.pack(">4I", 0, 1, 1, 5 * 12_800),
        ),
        KEPT,
        TOO_SHORT,
    )
    return family


def _picture(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (120, 160, 3), np.uint8)


def stills() -> Family:
    family = Family("still pictures")
    for number, suffix in enumerate((".jpg", ".png", ".bmp", ".webp", ".tiff", ".ppm", ".jp2")):
        done, data = cv2.imencode(suffix, _picture(number))
        assert done
        family.add(f"{suffix[1:]} called mp4", data.tobytes(), BAD)
        if suffix in (".jpg", ".png"):
            family.add(f"{suffix[1:]} called mkv", data.tobytes() + b" ", BAD, suffix=".mkv")
    still = rendered(".gif", 310, codec="gif", pixels="bgr8", ticks=1, frames=1)
    family.add("gif called mp4", still, BAD, TOO_SHORT)
    family.add(
        "avif called mp4", rendered(".avif", 311, codec="libsvtav1", frames=1), BAD, TOO_SHORT
    )
    family.add(
        "many jpegs in one file",
        b"".join(cv2.imencode(".jpg", _picture(n))[1].tobytes() for n in range(30)),
        BAD,
        KEPT,
    )
    family.add(
        "jpeg of declared 65500x65500",
        put_after(
            cv2.imencode(".jpg", _picture(9))[1].tobytes(),
            b"\xff\xc0\x00\x11\x08",
            struct.pack(">HH", 65500, 65500),
        ),
        BAD,
    )
    return family


def sound_only() -> Family:
    family = Family("sound only")
    tone = io.BytesIO()
    with wave.open(tone, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(random.Random("tone").randbytes(32_000))
    family.add("wav called mp4", tone.getvalue(), BAD)
    for codec, suffix, name in (
        ("aac", ".m4a", "m4a"),
        ("aac", ".aac", "raw aac"),
        ("libmp3lame", ".mp3", "mp3"),
        ("libopus", ".ogg", "ogg"),
        ("flac", ".flac", "flac"),
        ("aac", ".mkv", "mkv"),
        ("aac", ".ts", "ts"),
    ):
        family.add(
            f"{name} of sound called mp4",
            in_file(suffix, lambda path, codec=codec: _tone(path, codec)),
            BAD,
        )
    family.add(
        "sound with a cover picture",
        in_file(".mp4", lambda path: _tone(path, "aac", cover=True)),
        BAD,
    )
    family.add(
        "sound cut off its video",
        remuxed(
            film("mp4 with sound", 320), ".mp4", lambda packet, _: packet.stream.type == "audio"
        ),
        BAD,
    )
    return family


def _tone(path: Path, codec: str, *, cover: bool = False) -> None:
    with av.open(str(path), "w") as output:
        stream = output.add_stream(codec, rate=48000)
        stream.layout = "mono"
        picture = None
        if cover:
            picture = output.add_stream("mjpeg", rate=25)
            picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            image = av.VideoFrame.from_ndarray(_picture(5)[:64, :64], "rgb24")
            image = image.reformat(format="yuvj420p")
            image.pts = 0
            output.mux(picture.encode(image))
            output.mux(picture.encode())
        resampler = av.AudioResampler(format=stream.format, layout="mono", rate=48000)
        samples = (np.sin(np.arange(96_000) / 20) * 9000).astype(np.int16)
        frame = av.AudioFrame.from_ndarray(samples[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts = 48000, 0
        fifo = av.AudioFifo()
        for part in resampler.resample(frame):
            fifo.write(part)
        while (some := fifo.read(stream.frame_size or 1024)) is not None:
            output.mux(stream.encode(some))
        output.mux(stream.encode())


def no_media() -> Family:
    """Other files named .mp4; lists of files must not make readers open what they name."""
    family = Family("no media")
    texts = {
        "html": "<!DOCTYPE html><html><body>404 not found</body></html>\n",
        "text": "just a text\n" * 100,
        "svg": '<svg xmlns="http://www.w3.org/2000/svg" width="99999" height="99999"><rect '
        'width="9" height="9"/></svg>',
        "ffconcat": "ffconcat version 1.0\nfile other-film.mp4\n",
        "m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:2.0,\nother-film.mp4\n#EXT-X-ENDLIST\n",
        "m3u8 of an address": "#EXTM3U\n#EXT-X-TARGETDURATION:4\n#EXTINF:2.0,\n"
        "http://127.0.0.1:9/a.ts\n#EXT-X-ENDLIST\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 50000 RTP/AVP 96\na=rtpmap:96 H264/90000\n",
        "dash": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
        'mediaPresentationDuration="PT2S" profiles="urn:mpeg:dash:profile:isoff-live:2011">'
        '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1" '
        'bandwidth="1"><BaseURL>other-film.mp4</BaseURL></Representation></AdaptationSet>'
        "</Period></MPD>",
        "rtsp text": "rtsptextRTSP://127.0.0.1:9/x\n",
        "subtitles": "1\n00:00:00,000 --> 00:00:02,000\nHello\n\n",
        "webvtt": "WEBVTT\n\n00:00.000 --> 00:02.000\nHello\n",
        "ass": "[Script Info]\nScriptType: v4.00+\n\n[Events]\nFormat: Start, End, Text\n"
        "Dialogue: 0:00:00.00,0:00:02.00,Hello\n",
        "json": '{"error": "not found"}\n',
        "ffmetadata": ";FFMETADATA1\ntitle=x\n[CHAPTER]\nSTART=0\nEND=10\n",
        "shell script": "#!/bin/sh\ntouch /tmp/clipmill-was-here\n",
    }
    for name, text in texts.items():
        family.add(f"{name} called mp4", text.encode(), BAD)
    family.add("other film", film("mp4", 330), KEPT, facts=Facts(), file="other-film.mp4")
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("film.mp4"), film("mp4", 331))
    family.add("zip called mp4", packed.getvalue(), BAD)
    family.add("noise", random.Random("noise").randbytes(300_000), BAD)
    family.add("pdf called mp4", b"%PDF-1.7\n1 0 obj << >> endobj\n%%EOF\n", BAD)
    family.add("elf called mp4", b"\x7fELF" + bytes(60) + random.Random("elf").randbytes(9000), BAD)
    family.add("ogg header alone", b"OggS" + bytes(200), BAD)
    family.add("ebml header alone", film("mkv", 332)[:60], BAD, suffix=".mkv")
    family.add("riff header alone", film("avi", 332)[:60], BAD, suffix=".avi")
    family.add(
        "ts sync bytes alone", b"\x47" + bytes(187) + b"\x47\x1f\xff\x10" * 1000, BAD, suffix=".ts"
    )
    return family


def fuzzed() -> Family:
    """Files for which fuzzing found different faults in the reader."""
    family = Family("found by fuzzing")
    for path in sorted((Path(__file__).parent / "files").iterdir()):
        if not path.name.startswith("decord"):  # those need spans
            family.add(
                path.stem.replace("_", " "),
                path.read_bytes(),
                BAD,
                KEPT,
                TOO_LONG,
                TOO_SHORT,
                suffix=path.suffix,
            )
    return family
