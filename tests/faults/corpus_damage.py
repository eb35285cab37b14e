"""Files that were intact: truncated, with flipped bits, zeroed, misnamed, concatenated."""

from __future__ import annotations

import random
from collections.abc import Iterator

from tests.faults.corpus import (
    BAD,
    DAMAGED,
    FOUR_SHOTS,
    KEPT,
    KINDS,
    TOO_SHORT,
    TWICE,
    Facts,
    Family,
    film,
    remuxed,
)
from tests.faults.corpus_bytes import box, flipped, regions, zeroed

SEEDS = 5
_NOT_ALL = Facts(frames=None, seconds=None, shots=None, corner=None)


def families() -> Iterator[Family]:
    yield truncated()
    yield from bits_flipped()
    yield zeros()
    yield wrong_extension()
    yield put_together()


def truncated() -> Family:
    """If a file declares its length, truncation is detected; MPEG streams and fragments don't."""
    family = Family("truncated")
    for kind in (
        "mp4",
        "mp4 moov first",
        "mp4 fragmented",
        "mp4 hevc",
        "mkv",
        "webm",
        "ts",
        "ts h264",
        "avi",
        "flv h264",
        "mpg",
        "wmv",
    ):
        data = film(kind)
        for tenth in range(1, 10):
            if kind in ("mp4", "mp4 moov first", "mp4 hevc", "avi"):
                allowed = {BAD}  # their index has the number of frames
            elif kind in ("mkv", "webm", "flv h264", "wmv"):
                # Their header has the duration: a tenth of that may be missing.
                allowed = {BAD} if tenth <= 8 else {BAD, KEPT}
            else:
                allowed = {BAD, KEPT, TOO_SHORT} if tenth <= 3 else {BAD, KEPT}
            family.add(
                f"{kind} cut off at {tenth}/10",
                data[: len(data) * tenth // 10],
                *allowed,
                facts=_NOT_ALL,
                suffix=KINDS[kind][0],
            )
    return family


FLIPPED = {
    "mp4": "mp4",
    "mp4 moov first": "mp4",
    "mp4 hevc": "mp4",
    "mp4 av1": "mp4",
    "mkv": "matroska",
    "webm": "matroska",
    "ts": "mpegts",
    "avi": "avi",
}


def bits_flipped() -> Iterator[Family]:
    for region in ("header", "index", "payload"):
        family = Family(f"bits flipped in the {region}")
        for kind, container in FLIPPED.items():
            data = film(kind)
            start, end = regions(data, container)[region]
            for seed in range(SEEDS):
                count = (1, 2, 4, 16, 64)[seed % 5]
                name = f"{kind} {region} {count} bits seed {seed}"
                family.add(
                    name, flipped(data, start, end, count, name), *DAMAGED, suffix=KINDS[kind][0]
                )
        yield family


def zeros() -> Family:
    family = Family("zeros")
    family.add("no bytes", b"", BAD)
    family.add("one byte", b"\0", BAD)
    family.add("zeros only", bytes(100_000), BAD)
    for kind, container in FLIPPED.items():
        data = film(kind, 1)
        for region, (start, end) in regions(data, container).items():
            middle = (start + end) // 2
            name = f"{kind} {region} half zeroed"
            # Without its header nothing can be read; the rest is like other damage.
            family.add(
                name,
                zeroed(
                    data,
                    start if region == "header" else middle,
                    end if region != "header" else middle,
                ),
                *DAMAGED,
                suffix=KINDS[kind][0],
            )
    data = film("mp4 moov first", 2)
    mdat = box(data, "mdat")
    family.add("mp4 payload all zeroed", zeroed(data, mdat.content, mdat.end), BAD)
    # Sent in segments, one of which was never written: left by another tool's broken download.
    page = 4096
    data = film("avi", 2)
    family.add("avi with a lost page", zeroed(data, 8 * page, 9 * page), KEPT, BAD, suffix=".avi")
    return family


def wrong_extension() -> Family:
    """A file's type is determined by its bytes."""
    family = Family("wrong extension")
    for number, (kind, suffix) in enumerate(
        (
            ("mp4", ".avi"),
            ("mp4", ".mkv"),
            ("mp4", ".ts"),
            ("mp4 moov first", ".webm"),
            ("mkv", ".mp4"),
            ("webm", ".mov"),
            ("ts", ".mp4"),
            ("avi", ".mp4"),
            ("flv h264", ".mp4"),
            ("wmv", ".mpg"),
            ("mpg", ".flv"),
            ("mp4", ".MP4"),
        )
    ):
        seconds = None if kind == "mpg" else 2.0  # its declared duration is a guess
        family.add(
            f"{kind} called {suffix}",
            film(kind, 10 + number),
            KEPT,
            facts=Facts(seconds=seconds),
            suffix=suffix,
        )
    return family


def put_together() -> Family:
    family = Family("appended and concatenated")
    noise = random.Random("noise").randbytes(64 * 1024)
    for kind in ("mp4", "mp4 moov first", "mkv", "webm", "avi"):
        family.add(
            f"{kind} with noise behind it",
            film(kind, 30) + noise,
            KEPT,
            BAD,
            suffix=KINDS[kind][0],
            facts=Facts(),
        )
    family.add("ts with noise behind it", film("ts", 30) + noise, KEPT, BAD, suffix=".ts")
    family.add(
        "mp4 with text behind it", film("mp4", 31) + b"\n<!-- end -->\n", KEPT, facts=Facts()
    )
    family.add(
        "mkv with zeros behind it",
        film("mkv", 31) + bytes(5000),
        KEPT,
        facts=Facts(),
        suffix=".mkv",
    )
    family.add(
        "ts with noise before it", noise[:1000] + film("ts", 32), KEPT, suffix=".ts", facts=Facts()
    )
    family.add("mp4 with noise before it", noise[:1000] + film("mp4", 32), BAD)
    for kind in ("mp4", "mkv", "webm", "avi", "flv h264"):
        # Readers use the first one; some continue into the second.
        family.add(
            f"{kind} twice", film(kind, 33) + film(kind, 34), KEPT, BAD, suffix=KINDS[kind][0]
        )
    # A stream without a header: both parts are the video. If its timestamps restart, a time no
    # longer identifies a frame, and clips are times.
    family.add("ts twice", film("ts", 33) + film("ts", 34), BAD, suffix=".ts")
    family.add(
        "ts and the same again, later",
        film("ts", 35) + remuxed(film("ts", 36), ".ts", _later),
        KEPT,
        suffix=".ts",
        facts=Facts(frames=100, seconds=4.0, shots=FOUR_SHOTS),
    )
    same = film("mp4", 37)
    family.add("the same bytes, first", same, KEPT, facts=Facts(), file="same-1.mp4")
    family.add("the same bytes, again", same, TWICE, file="same-2.mp4")
    return family


def _later(packet, number: int) -> bool:
    for name in ("pts", "dts"):
        stamp = getattr(packet, name)
        if stamp is not None:
            setattr(packet, name, stamp + round(2 / packet.time_base))
    return True
