"""Requests and results of cutting."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipmill.schemas.errors import RowFailed

Media = Literal["copy", "exact"]


@dataclass(frozen=True)
class Rectangle:
    """A part of the picture as it is displayed: shares of its width and height, 0 to 1."""

    left: float
    top: float
    right: float
    bottom: float


@dataclass(frozen=True)
class CutRequest:
    """One clip to cut; `target` ends in `.mp4`, and its folder exists.

    `crop` is for `exact`: only this part of the picture is kept.
    """

    clip_id: str
    start_seconds: float
    end_seconds: float
    target: Path
    crop: Rectangle | None = None


@dataclass(frozen=True)
class CutOptions:
    """How clips are cut.

    `start` is for `copy`: the key frame at or before the clip's start, or the nearest one, which
    may cut off the clip's beginning. All others except `audio` are for `exact`: `encoder`, `crf`
    and `preset` are FFmpeg's (None: what `check_encoder` finds, and its usual quality),
    `short_side` is the maximum in pixels, larger pictures are scaled down, and `threads` is the
    number of threads for decoding and encoding (0: all).
    """

    media: Media = "copy"
    audio: bool = True
    start: Literal["before", "nearest"] = "before"
    encoder: str | None = None
    crf: int | None = None
    preset: str | None = None
    short_side: int | None = None
    threads: int = 1


@dataclass(frozen=True)
class CutResult:
    """The result of a request: `path` is the finished file, or `problem` says why there is none.

    `decoded_frames` counts the pictures decoded to check the clip. `path` is the target; with
    `copy`, if MP4 can't hold the codecs, its suffix is `.webm` or `.mkv`. `start_seconds` and
    `end_seconds` are what the file actually shows, in the source's time. Width and height are as
    displayed. `crop` is the requested part in whole pixels, as shares again.
    """

    clip_id: str
    path: Path | None = None
    start_seconds: float | None = None
    end_seconds: float | None = None
    n_frames: int | None = None
    width: int | None = None
    height: int | None = None
    has_audio: bool | None = None
    size_bytes: int | None = None
    crop: Rectangle | None = None
    decoded_frames: int = 0
    problem: RowFailed | None = None
