"""Cuts clips from a video file, each into a separate file that is either complete or absent.

`copy` copies the compressed pictures, so a clip can only begin at a key frame: it begins early,
and the actual span is recorded. `exact` re-encodes: the clip holds exactly the frames whose
presentation time is inside the span.

Every file is written under a temporary name in the same folder, reopened and checked, then
renamed.
"""

from __future__ import annotations

import functools
import glob
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.media.cutting.encoders import find_encoder
from clipmill.stages.media.cutting.reencode import encode_clips
from clipmill.stages.media.cutting.remux import copy_clips
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest, CutResult
from clipmill.stages.media.isolation.isolated import Limits, stream_isolated
from clipmill.stages.media.read.decode import offset_pts, open_container, video_stream
from clipmill.stages.media.read.opening import time_base_of

# Precision of a time in seconds after hours have been added to it.
_DIGITS = 9

CUT_LIMITS = Limits(memory_limit_bytes=8 << 30)
"""Twice the measured memory of eight open encoders of 4K clips with one thread each."""


def check_encoder(options: CutOptions) -> str:
    """Finds the encoder that `exact` will use and tries it on a few frames.

    Raises UsageError if the options don't fit it, ClipmillError if none works here.
    """
    return find_encoder(options.encoder, options.crf, options.preset).name


def cut_clips(
    source: Path,
    requests: Sequence[CutRequest],
    options: CutOptions,
    *,
    starts_at_seconds: float = 0.0,
    is_sound: bool = False,
) -> Iterator[CutResult]:
    """Cuts clips from one file; yields one result per request, as each is ready.

    Times are the source video's; `starts_at_seconds` is the video time of the file's time 0, and
    may be negative. `is_sound` means that the whole file was decoded before, without an error. A
    clip that can't be cut is a result with a problem; if the file can't be read, so are all its
    clips. Raises ClipmillError if no clip could be written at all (full disk, no encoder).
    """
    left = {request.clip_id: None for request in requests}
    if len(left) < len(requests):
        raise ValueError("clip_id of the requests must be distinct")
    cut = (
        functools.partial(copy_clips, is_sound=is_sound)
        if options.media == "copy"
        else encode_clips
    )
    try:
        zero = _in_ticks(source, starts_at_seconds) if starts_at_seconds else 0.0
        shifted = [
            replace(
                request,
                start_seconds=request.start_seconds - zero,
                end_seconds=request.end_seconds - zero,
            )
            for request in requests
        ]
        for result in cut(source.absolute(), shifted, options):
            del left[result.clip_id]
            if not zero or result.start_seconds is None or result.end_seconds is None:
                yield result
            else:
                yield replace(
                    result,
                    start_seconds=round(result.start_seconds + zero, _DIGITS),
                    end_seconds=round(result.end_seconds + zero, _DIGITS),
                )
    except ClipmillError:
        raise
    except RowFailed as problem:
        # The file as a whole can't be read, so every clip fails.
        for clip_id in left:
            yield CutResult(clip_id, problem=problem)


def _in_ticks(source: Path, seconds: float) -> float:
    """`seconds` in whole units of the time base, rounded as by the other readers."""
    with open_container(source) as container:
        time_base = time_base_of(video_stream(container, source))
        return float(offset_pts(seconds, time_base) * time_base)


def cut_clips_isolated(
    source: Path,
    requests: Sequence[CutRequest],
    options: CutOptions,
    *,
    starts_at_seconds: float = 0.0,
    is_sound: bool = False,
) -> Iterator[CutResult]:
    """Like `cut_clips`, in a helper process: a crash affects only this file's clips.

    Clips that were cut before a crash are kept; the others are tried once more.
    """
    left = {request.clip_id: request for request in requests}

    def arguments() -> tuple[Any, ...]:
        return list(left.values()), options, starts_at_seconds, is_sound

    try:
        for result in stream_isolated(_cut_in_helper, source, arguments, limits=CUT_LIMITS):
            del left[result.clip_id]
            yield result
    except RowFailed as problem:
        for clip_id, request in left.items():
            _discard_parts(request.target)
            yield CutResult(clip_id, problem=problem)


def _cut_in_helper(
    source: Path,
    requests: Sequence[CutRequest],
    options: CutOptions,
    starts_at_seconds: float,
    is_sound: bool,
) -> Generator[CutResult, None, None]:
    yield from cut_clips(
        source, requests, options, starts_at_seconds=starts_at_seconds, is_sound=is_sound
    )


def _discard_parts(target: Path) -> None:
    """Removes a killed process's unfinished clip."""
    for part in target.parent.glob(f".{glob.escape(target.stem)}.*.part"):
        part.unlink(missing_ok=True)
