"""Writes a clip's file, so that it is either complete or absent."""

from __future__ import annotations

import contextlib
import errno
import glob
import uuid
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.schemas.words import counted
from clipmill.stages.media.cutting.requests import CutRequest
from clipmill.stages.media.isolation.out_of_memory import raise_if_out
from clipmill.stages.media.read.framing import framing_of
from clipmill.stages.media.read.opening import packets, time_base_of
from clipmill.stages.media.read.orientation import orientation_of

ROUNDING_SECONDS = 0.0006
"""Published spans are rounded to milliseconds, so a frame that begins this little before a span's
start belongs to it, and one that begins this little before its end belongs to the next shot."""

# Spans lie within what was seen of a video: a clip that extends further beyond its end than this
# means that the file has changed.
_BEYOND_SECONDS = 0.2

_WRITING_FAILS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EIO,
    errno.EFBIG,
    errno.ENOTDIR,
}
_FORMAT_OF_SUFFIX = {".mp4": "mp4", ".webm": "webm", ".mkv": "matroska"}


class ClipFile:
    """A clip's file while it is being written, under a temporary name next to its target."""

    def __init__(self, target: Path, suffix: str) -> None:
        self.target = target.with_suffix(suffix).absolute()
        folder = self.target.parent
        # Left by a killed process that was writing the same clip.
        for old in folder.glob(f".{glob.escape(self.target.name)}.*.part"):
            old.unlink(missing_ok=True)
        self._part = folder / f".{self.target.name}.{uuid.uuid4().hex[:8]}.part"
        options = {"movflags": "+faststart"} if suffix == ".mp4" else {}
        with self.writing():
            # With an explicit protocol, no file name is treated as a URL or option. Tracks are
            # interleaved however long one of them has to wait.
            self.output = av.open(
                f"file:{self._part}",
                "w",
                format=_FORMAT_OF_SUFFIX[suffix],
                options={**options, "max_interleave_delta": "0"},
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Maps write errors: a full disk ends the command, any other error fails only this clip."""
        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise_if_out(error)
            if error.errno in _WRITING_FAILS:
                raise ClipmillError(
                    f"{self.target.parent}: clips can't be written here: {error.strerror or error}"
                ) from error
            raise RowFailed("crash", f"{self.target.name} could not be written: {error}") from error
        except ValueError as error:
            raise RowFailed("crash", f"{self.target.name} could not be written: {error}") from error

    @contextlib.contextmanager
    def holding(self, codec: str) -> Iterator[None]:
        """Like `writing`, for errors that mean the format can't hold the codec."""
        try:
            with self.writing():
                yield
        except RowFailed as problem:
            raise RowFailed(
                "permanent",
                f"{codec} can't be copied into mp4, webm or mkv; export with --media exact",
            ) from problem

    def discard(self) -> None:
        """Deletes the unfinished file; has no effect after `publish`."""
        with contextlib.suppress(av.FFmpegError, OSError, ValueError):
            self.output.close()
        self._part.unlink(missing_ok=True)

    def publish(
        self,
        expected_seconds: Sequence[float],
        end_seconds: float,
        *,
        decode: bool = False,
        threads: int = 1,
    ) -> dict[str, Any]:
        """Finishes the file, reopens it, checks its contents, and renames it.

        `expected_seconds` are the frames' times relative to the first one, in any order, and
        `end_seconds` is the end of the last one. With `decode` they are compared with the decoded
        pictures instead of the packets. Returns width, height, has_audio, size_bytes and
        decoded_frames.
        """
        with self.writing():
            self.output.close()
        found = self._facts(sorted(expected_seconds), end_seconds, decode, threads)
        with self.writing():
            self._part.rename(self.target)
            return {**found, "path": self.target, "size_bytes": self.target.stat().st_size}

    def _facts(
        self, expected: list[float], end_seconds: float, decode: bool, threads: int
    ) -> dict[str, Any]:
        try:
            with av.open(f"file:{self._part}") as container:
                stream = container.streams.video[0]
                context = stream.codec_context
                context.thread_count = threads if decode else 1
                if decode:
                    context.options = {"skip_loop_filter": "all"}  # only times are checked
                first, times, tick = None, [], float(time_base_of(stream))
                n_decoded = 0
                for packet in packets(container, stream):
                    decoded = packet.decode() if decode or first is None else ()
                    n_decoded += len(decoded)
                    first = first or next(iter(decoded), None)
                    if decode:
                        times += [
                            float(frame.pts * frame.time_base)
                            for frame in decoded
                            if frame.pts is not None and frame.time_base is not None
                        ]
                    elif packet.size and packet.pts is not None:
                        times.append(float(packet.pts * packet.time_base))
                length = stream.duration and float(stream.duration * time_base_of(stream))
                has_audio = bool(container.streams.audio)
                framing = framing_of(stream)
        except (av.FFmpegError, IndexError) as error:
            raise_if_out(error)
            raise self._wrong(f"can't be read again: {error}") from error
        if first is None:
            raise self._wrong("gives no frame when it is read again")
        if decode and not first.key_frame:
            raise self._wrong("begins with a picture that needs others")
        times.sort()
        if len(times) != len(expected):
            raise self._wrong(f"holds {counted(len(times), 'frame')}, not {len(expected):,}")
        # A key frame may be a little late, if a reader cuts off what precedes it.
        frame = min(
            (b - a for a, b in zip(expected, [*expected[1:], end_seconds], strict=True)),
            default=0.0,
        )
        slack = max(2 * tick, 0.002, frame / 4)
        off = max(abs(a - b) for a, b in zip(times, expected, strict=True))
        if off > slack:
            raise self._wrong(f"has frames {off:.3f} s from where they belong")
        longest = max(b - a for a, b in zip(expected, [*expected[1:], end_seconds], strict=True))
        if length and abs(length - end_seconds) > max(longest, 0.05) + slack:
            raise self._wrong(f"lasts {length:.3f} s, not {end_seconds:.3f} s")
        size = orientation_of(first).shown(*framing.size(first.width, first.height))
        return {
            "width": size[0],
            "height": size[1],
            "has_audio": has_audio,
            "decoded_frames": n_decoded,
        }

    def _wrong(self, what: str) -> RowFailed:
        return RowFailed("crash", f"{self.target.name} was cut, but it {what}")


def exact_seconds(stamp: int, time_base: Fraction) -> float:
    """A timestamp in seconds, rounded once."""
    return stamp * time_base.numerator / time_base.denominator


def nothing_inside(
    start_seconds: float, end_seconds: float, first_seconds: float, last_seconds: float
) -> RowFailed:
    """The failure of a span without a new video frame."""
    return RowFailed(
        "bad_media",
        f"no frame of the video begins in {start_seconds:.3f}–"
        f"{end_seconds:.3f} s; it has frames from {first_seconds:.3f} to "
        f"{last_seconds:.3f} s",
    )


def check_reach(request: CutRequest, video_end_seconds: float) -> None:
    """RowFailed if the video ends before the clip does."""
    if request.end_seconds > video_end_seconds + _BEYOND_SECONDS:
        raise RowFailed(
            "bad_media",
            f"the video ends at {video_end_seconds:.3f} s, before the "
            f"clip's end at {request.end_seconds:.3f} s: the file is truncated, or "
            "not the one that was split",
        )
