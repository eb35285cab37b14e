"""Footage with misleading key frames: numbered frames, by codec, option, container.

`render_odd(name, folder)` writes one of `FILES`. Some are made from others by copying packets with
changed flags or edit lists.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imageio_ffmpeg

from tests.numbered import render_numbered

COUNT = 150
_X264_OPEN = {"x264-params": "open-gop=1:keyint=30:min-keyint=10:bframes=3:scenecut=0"}
_REFRESH = {"bf": "0", "x264-params": "intra-refresh=1:keyint=30:bframes=0"}
_X265 = "log-level=none:keyint=30:min-keyint=5"
_ALT_REF = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "cpu-used": "5"}
_B_FRAMES = {"bf": "2", "b_strategy": "0"}


def _rendered(codec: str, options: dict[str, str] | None = None, **more: Any) -> Callable:
    def make(path: Path) -> None:
        render_numbered(path, COUNT, codec=codec, options=options, **more)

    return make


def _copied(of: str, *options: str, before: tuple[str, ...] = ()) -> Callable:
    """Copies another file's packets with ffmpeg and these output and input options."""

    def make(path: Path) -> None:
        source = render_odd(of, path.parent)
        subprocess.run(
            [
                imageio_ffmpeg.get_ffmpeg_exe(),
                "-v",
                "error",
                "-y",
                *before,
                "-i",
                str(source),
                "-c",
                "copy",
                *options,
                str(path),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
        )

    return make


def _without_key_table(of: str) -> Callable:
    """An mp4 file in which all packets count as key frames."""

    def make(path: Path) -> None:
        content = bytearray(render_odd(of, path.parent).read_bytes())
        at = content.index(b"stss")
        content[at : at + 4] = b"free"
        path.write_bytes(content)

    return make


FILES: dict[str, Callable[[Path], None]] = {
    "x264.mp4": _rendered("libx264"),
    "x264_uneven.mkv": _rendered("libx264", uneven=True),
    "x264_interlaced.mp4": _rendered("libx264", {"x264-params": "tff=1:keyint=30:bframes=2"}),
    "x264_open.mp4": _rendered("libx264", _X264_OPEN),
    "x264_open.mkv": _rendered("libx264", _X264_OPEN),
    "x264_open.ts": _rendered("libx264", _X264_OPEN),
    "x264_open_fragments.mp4": _copied("x264_open.mp4", "-movflags", "frag_keyframe+empty_moov"),
    "x264_open_late.mp4": _copied("x264_open.mp4", before=("-itsoffset", "4.5")),
    "x264_open_edited.mp4": _copied("x264_open.mp4", before=("-ss", "1.5")),
    "x264_open_part.ts": _copied("x264_open.ts", before=("-ss", "1.5")),
    "x264_refresh.mp4": _rendered("libx264", _REFRESH),
    "x264_refresh.mkv": _rendered("libx264", _REFRESH),
    "x264_refresh.ts": _rendered("libx264", _REFRESH),
    "x264_refresh_part.ts": _copied("x264_refresh.ts", before=("-ss", "2.5")),
    "x264_refresh_b.mp4": _rendered(
        "libx264", {"x264-params": "intra-refresh=1:keyint=60:bframes=2"}
    ),
    "x264_no_key_table.mp4": _without_key_table("x264.mp4"),
    "x264.flv": _rendered("libx264"),
    "x264.avi": _copied("x264.mp4"),
    "x264_open.avi": _copied("x264_open.mp4"),
    "x265_open.avi": _copied("x265_open.mp4"),
    "x265.mp4": _rendered("libx265", {"x265-params": f"{_X265}:open-gop=0"}),
    "x265_open.mp4": _rendered("libx265", {"x265-params": _X265}),
    "x265_open.mkv": _copied("x265_open.mp4"),
    "x265_open.ts": _copied("x265_open.mp4"),
    "x265_open_edited.mp4": _copied("x265_open.mp4", before=("-ss", "1.5")),
    "x265_leading.mp4": _rendered(
        "libx265",
        {"x265-params": "log-level=none:keyint=30:min-keyint=30:open-gop=0:radl=2:bframes=3"},
    ),
    "x265_refresh.mp4": _rendered("libx265", {"x265-params": f"{_X265}:intra-refresh=1:bframes=0"}),
    "x265_no_key_table.mp4": _without_key_table("x265.mp4"),
    "vp8.webm": _rendered("libvpx", _ALT_REF),
    "vp9.webm": _rendered("libvpx-vp9", _ALT_REF),
    "vp9.mp4": _rendered("libvpx-vp9", _ALT_REF),
    "mjpeg.avi": _rendered("mjpeg", pixels="yuvj420p"),
    "flv1.flv": _rendered("flv"),
    "wmv2.asf": _rendered("wmv2"),
    "msmpeg4.avi": _rendered("msmpeg4"),
    **{
        f"{codec}.{suffix}": _rendered(codec, _B_FRAMES, keyframes=12)
        for codec in ("mpeg2video", "mpeg4")
        for suffix in ("mp4", "mkv", "ts", "avi")
    },
    "mpeg2video.mpg": _rendered("mpeg2video", _B_FRAMES, keyframes=12),
}
READ_BY_DECORD = frozenset(
    (
        "x264.mp4",
        "x264_uneven.mkv",
        "x265.mp4",
        "x265_refresh.mp4",
        "vp8.webm",
        "vp9.webm",
        "vp9.mp4",
    )
)
"""The files in which decord counts correctly; all others must be read another way."""


def render_odd(name: str, folder: Path) -> Path:
    """Writes one of FILES to the folder if it isn't there yet."""
    path = folder / name
    if not path.exists():
        FILES[name](path)
    return path
