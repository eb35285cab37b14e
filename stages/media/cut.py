"""Cuts clips out of a video file, each into a file of its own that is whole or not there.

`copy` takes the compressed pictures as they are, so a clip can only begin at a key frame: it
begins early, and the true span is recorded. `exact` encodes anew: the clip holds the frames whose
presentation time lies inside the span, and no others.

Every file is written under a temporary name beside its target, opened and checked, and renamed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from schemas.errors import ClipmillError, RowFailed
from stages.media.clip_files import CutOptions, CutRequest, CutResult
from stages.media.encoders import find_encoder
from stages.media.reencode import encode_clips
from stages.media.remux import copy_clips

__all__ = ["CutOptions", "CutRequest", "CutResult", "check_encoder", "cut_clips"]


def check_encoder(options: CutOptions) -> str:
    """The encoder that `exact` will use, tried out on a few frames.

    Raises UsageError where the options don't fit it, ClipmillError where none works here.
    """
    return find_encoder(options.encoder, options.crf, options.preset).name


def cut_clips(
    source: Path, requests: Sequence[CutRequest], options: CutOptions, *,
    starts_at_seconds: float = 0.0,
) -> Iterator[CutResult]:
    """Cuts clips of one file; gives one result a request, as they are ready.

    Times are the source video's; `starts_at_seconds` is the file's time 0 in it. A clip that
    can't be cut is a result with a problem; so are all clips of a file that can't be read.
    Raises ClipmillError where no clip could be written at all (full disk, no encoder).
    """
    shifted = [replace(request, start_seconds=request.start_seconds - starts_at_seconds,
                       end_seconds=request.end_seconds - starts_at_seconds)
               for request in requests]
    left = {request.clip_id: None for request in requests}
    if len(left) < len(requests):
        raise ValueError("clip_id of the requests must be distinct")
    cut = copy_clips if options.media == "copy" else encode_clips
    try:
        for result in cut(source.absolute(), shifted, options):
            del left[result.clip_id]
            if result.start_seconds is None or result.end_seconds is None:
                yield result
            else:
                yield replace(result, start_seconds=result.start_seconds + starts_at_seconds,
                              end_seconds=result.end_seconds + starts_at_seconds)
    except ClipmillError:
        raise
    except RowFailed as problem:
        # The file as a whole can't be read: that is every clip's problem.
        for clip_id in left:
            yield CutResult(clip_id, problem=problem)
