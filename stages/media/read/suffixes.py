"""File names, and first bytes, that are treated as videos."""

from __future__ import annotations

import os
import re

MEDIA_SUFFIXES = frozenset(
    (
        ".mp4",
        ".m4v",
        ".mov",
        ".webm",
        ".mkv",
        ".avi",
        ".flv",
        ".wmv",
        ".mpg",
        ".mpeg",
        ".ts",
        ".m2ts",
        ".mts",
        ".3gp",
        ".ogv",
        # older ones, and those of cameras and broadcasters
        ".qt",
        ".mp4v",
        ".mpg4",
        ".f4v",
        ".3g2",
        ".3gpp",
        ".3gp2",
        ".ismv",
        ".mj2",
        ".mk3d",
        ".divx",
        ".xvid",
        ".asf",
        ".wm",
        ".dvr-ms",
        ".wtv",
        ".vob",
        ".evo",
        ".mpe",
        ".m1v",
        ".m2v",
        ".mpv",
        ".m2p",
        ".m2t",
        ".tp",
        ".trp",
        ".tod",
        ".vro",
        ".ogg",
        ".ogm",
        ".ogx",
        ".rm",
        ".rmvb",
        ".mxf",
        ".gxf",
        ".lxf",
        ".dv",
        ".dif",
        ".nut",
        ".nsv",
        ".nuv",
        ".amv",
        ".roq",
        ".bik",
        ".smk",
        ".flc",
        ".fli",
        ".viv",
        ".swf",
        ".cine",
        ".insv",
        ".lrv",
        ".360",
        # streams without a container
        ".h261",
        ".h263",
        ".h264",
        ".264",
        ".avc",
        ".h265",
        ".265",
        ".hevc",
        ".h266",
        ".266",
        ".vvc",
        ".vc1",
        ".obu",
        ".ivf",
        ".y4m",
        ".mjpg",
        ".mjpeg",
        ".drc",
        ".cavs",
        ".avs2",
        ".avs3",
        ".dnxhd",
    )
)
# The form of a suffix: `Film No. 5` and `2019.07.14` have none.
_SUFFIX = re.compile(r"\.(?=[a-z0-9-]*[a-z])[a-z0-9][a-z0-9_~-]{0,9}")
_HEAD_BYTES = 600
_TS_PACKETS = (188, 192, 204)


def suffix_of(path: str) -> str:
    """A file name's extension in lower case; empty if there is none."""
    suffix = os.path.splitext(path)[1].lower()  # noqa: PTH122  a path object costs more
    return suffix if suffix in MEDIA_SUFFIXES or _SUFFIX.fullmatch(suffix) else ""


def has_media_head(path: str) -> bool:
    """Whether a file begins like a video; True if it can't be read, so that it fails later by
    itself."""
    if not os.path.isfile(path):  # noqa: PTH113  opening a pipe would block
        return True
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return True
    return (
        head[4:8] in (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip", b"styp", b"moof")
        or head.startswith(
            (
                b"\x1a\x45\xdf\xa3",
                b"FLV\x01",
                b"OggS",
                b".RMF",
                b"DKIF",
                b"YUV4MPEG",
                b"\x00\x00\x01\xba",
                b"\x00\x00\x01\xb3",
                b"nut/multimedia",
                bytes.fromhex("3026b2758e66cf11"),
                bytes.fromhex("060e2b3402050101"),
            )
        )
        or (head[:4] in (b"RIFF", b"RIFX") and head[8:12] in (b"AVI ", b"AMV "))
        or any(_repeats_sync(head, size, skip) for size in _TS_PACKETS for skip in (0, 4))
    )


def _repeats_sync(head: bytes, size: int, skip: int) -> bool:
    """Packets of a transport stream begin with `G`, some after 4 bytes."""
    return len(head) > skip + 2 * size and all(head[skip + n * size] == 0x47 for n in range(3))
