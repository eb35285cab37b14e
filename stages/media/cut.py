"""Cuts clips out of a video file, each into a file of its own that is whole or not there.

`copy` takes the compressed pictures as they are, so a clip can only begin at a key frame: it
begins early, and the true span is recorded. `exact` encodes anew: the clip holds the frames whose
presentation time lies inside the span, and no others.

Every file is written under a temporary name beside its target, opened and checked, and renamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from schemas.errors import RowFailed

Media = Literal["copy", "exact"]


@dataclass(frozen=True)
class CutRequest:
    """One clip to cut; `target` ends in `.mp4`, and its folder exists."""

    clip_id: str
    start_seconds: float
    end_seconds: float
    target: Path


@dataclass(frozen=True)
class CutOptions:
    """How clips are cut.

    `start` is for `copy`: the key frame at or before the clip's start, or the nearest one, which
    may leave out the clip's beginning. The rest but `audio` is for `exact`: `encoder`, `crf` and
    `preset` are FFmpeg's (None: what `check_encoder` finds, and its usual quality), `short_side`
    scales down to so many pixels at most, `threads` is how many decoding and encoding may use
    (0: all).
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
    """What became of a request: `path` is the file that is there now, or `problem` says why not.

    `path` is the target; with `copy`, where mp4 can't hold the codecs, its suffix is `.webm` or
    `.mkv`. `start_seconds` and `end_seconds` are what the file truly shows, in the source's time.
    Width and height are as displayed.
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
    problem: RowFailed | None = None


def check_encoder(options: CutOptions) -> str:
    """The encoder that `exact` will use, tried out on a few frames.

    Raises UsageError where the options don't fit it, ClipmillError where none works here.
    """
    raise NotImplementedError


def cut_clips(
    source: Path, requests: Sequence[CutRequest], options: CutOptions, *,
    starts_at_seconds: float = 0.0,
) -> Iterator[CutResult]:
    """Cuts clips of one file; gives one result a request, in the order of their ends.

    Times are the source video's; `starts_at_seconds` is the file's time 0 in it. Raises
    ClipmillError where no clip could be written at all (full disk, no encoder).
    """
    raise NotImplementedError
