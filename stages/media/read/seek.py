"""Reads only parts of a video: given spans, and kept frames that are gone.

decord does the work for files in which it is known to count correctly: it treats every packet
flagged as a key frame as one, and counts from there. `PacketIndex.is_plain` says where that is
valid, and decord's own index must equal the container's. PyAV reads everything else (`forward`):
also codecs that decord was built without (AV1), and rotated or high dynamic range pictures, which
decord returns as stored. Frame numbers and times always come from the container, so they agree
with those of a full scan. Frames are always upright.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.media.read.decode import (
    DecodedVideo,
    VideoFacts,
    bad_media,
    open_container,
    read_facts,
    video_stream,
)
from clipmill.stages.media.read.forward import Forward
from clipmill.stages.media.read.images import encode_jpeg
from clipmill.stages.media.read.opening import frames
from clipmill.stages.media.read.packets import PacketIndex, read_packets
from clipmill.stages.media.read.picture import Picture
from clipmill.stages.media.read.planes import ImageParts
from clipmill.stages.media.read.sampling import FramePick, pick_frames
from clipmill.stages.media.read.scaling import KeptImages, SmallImages, small_size

# decord returns times in single precision.
_SINGLE_PRECISION = 2.0**-23
# The decoder may return a frame this many frames after one that is shown later.
_ASTRAY_FRAMES = 16


class FrameReader:
    """Returns frames of one video by number, ascending, and counts decoded frames.

    `corrupt_numbers` are those that are lost, or that PyAV decoded with errors.

    Opening decodes one frame, because only frames know their rotation. All times are the video's;
    `starts_at_seconds` is the video time of the file's time 0. `threads` is how many decord may
    use (0: all). decord's reader stays open, because it reads the whole file when it is opened.
    """

    def __init__(
        self, path: Path, starts_at_seconds: float | None = None, *, threads: int = 0
    ) -> None:
        self.path = path
        self._threads = threads
        self._reader: Any = None
        self._at = -1
        self.index = read_packets(path, starts_at_seconds)
        self.decoded_frames = 0
        self.corrupt_numbers: set[int] = set()
        self.facts = self._read_facts(starts_at_seconds)
        self._trusts_decord = self.index.is_plain and self.facts.is_shown_as_decoded

    def _read_facts(self, starts_at_seconds: float | None) -> VideoFacts:
        with open_container(self.path) as container:
            stream = video_stream(container, self.path)
            try:
                first = next(frames(container, stream), None)
            except av.FFmpegError as error:
                raise bad_media(self.path, f"cannot be decoded ({error})") from error
            if first is None:
                raise bad_media(self.path, "gives no frame")
            self.decoded_frames += 1
            return read_facts(container, self.path, first, starts_at_seconds)

    def images(
        self, numbers: Sequence[int], size: tuple[int, int]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """`(number, BGR image)` of each number, upright and of `size` (width, height).

        Frames that cannot be decoded are left out.
        """
        given = 0
        for number, image in self._decord(numbers):
            given += 1
            yield number, _resized(image, size)
        kept_image = self._kept_images(size)
        for number, frame in self._pyav(numbers[given:]):
            yield number, kept_image(frame)

    def measured(
        self, numbers: Sequence[int], size: tuple[int, int]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Like `images`, with the small image that a scan of the whole file measures.

        The small image has the stored pixel values: not rotated, cropped or tone-mapped.
        """
        given, small = 0, small_size(*size)
        for number, decoded in self._decord(numbers):
            given += 1
            image = _resized(decoded, size)
            yield number, image, image if small == size else cv2.resize(image, small)
        kept_image, small_image = self._kept_images(size), None
        for number, frame in self._pyav(numbers[given:]):
            small_image = small_image or SmallImages(frame)
            yield number, kept_image(frame), small_image(frame)

    def _kept_images(self, size: tuple[int, int]) -> KeptImages:
        facts = self.facts
        return KeptImages(size, facts.orientation, facts.tone_map, facts.framing)

    def _decord(self, numbers: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
        """As many as decord can decode, from the first on."""
        if not self._trusts_decord:
            return
        # decord loads its own FFmpeg libraries, so only import it to read spans.
        import decord

        decord.logging.set_level(decord.logging.QUIET)
        try:
            if self._reader is None:
                self._reader = decord.VideoReader(
                    str(self.path), ctx=decord.cpu(0), num_threads=self._threads
                )
                self._trusts_decord = self._agrees()
            if not self._trusts_decord:
                self._reader = None
                return
            for number in numbers:
                image = self._reader[number].asnumpy()
                if image.ndim != 3 or image.shape[2] != 3:
                    return  # it misreads pictures a few pixels wide
                key = self.index.entry_before(number).first_number
                # decord continues from its position, unless a later key frame is nearer.
                at = self._at
                self.decoded_frames += number - (at if key <= at < number else key - 1)
                self._at = number
                beat(self.decoded_frames)
                yield number, cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        except (decord.DECORDError, RuntimeError, IndexError, AssertionError):
            # A damaged packet, for example: after it, decord would count wrong.
            self._reader, self._trusts_decord = None, False

    def _agrees(self) -> bool:
        """Whether decord finds the same frames and key frames as the container."""
        index = self.index
        if len(self._reader) != index.n_frames:
            return False
        if self._reader.get_key_indices() != [entry.place for entry in index.entries]:
            return False
        seen = self._reader.get_frame_timestamp(np.arange(index.n_frames))[:, 0]
        # decord counts from the first frame.
        times = (np.asarray(index.pts, np.float64) - index.pts[0]) * float(index.time_base)
        end = float((index.end_pts - index.pts[0]) * index.time_base)
        steps = np.diff(times, append=end)
        allowed = np.maximum(steps / 4, 2 * _SINGLE_PRECISION * np.abs(times))
        return bool((np.abs(seen - seen[0] - times) <= allowed).all())

    def _pyav(self, numbers: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        for _, group in itertools.groupby(numbers, key=self.index.entry_before):
            wanted = set(group)
            first, last = min(wanted), max(wanted)
            before = self.decoded_frames
            forward = Forward(self.path, self.index, _with_one_thread)
            for number, frame in forward.frames(first):
                self.decoded_frames = before + forward.decoded_frames
                beat(self.decoded_frames)
                if number in wanted:
                    wanted.remove(number)
                    if frame.is_corrupt:
                        self.corrupt_numbers.add(number)
                    yield number, frame
                if not wanted or number > last + _ASTRAY_FRAMES:
                    break
            self.decoded_frames = before + forward.decoded_frames
            if forward.first_error:
                self.corrupt_numbers |= wanted  # these are lost


def _with_one_thread(stream: av.VideoStream) -> None:
    # More of them decode beyond the request. AV1's decoder has its own threads.
    if stream.codec_context.name != "libdav1d":
        stream.codec_context.thread_count = 1


class SpannedVideo(DecodedVideo):
    """Decodes only the frames inside `spans` (pairs of seconds)."""

    def __init__(
        self,
        path: Path,
        spans: Sequence[tuple[float | None, float | None]],
        starts_at_seconds: float | None = None,
        *,
        parts: bool = False,
    ) -> None:
        super().__init__(path, starts_at_seconds)
        self._has_parts = parts
        self._spans = spans
        self._index: PacketIndex | None = None

    @property
    def end_seconds(self) -> float:
        return self._index.end_seconds if self._index else 0.0

    @property
    def source_frames(self) -> int:
        return self._index.n_frames if self._index else 0

    def _frames(self) -> Generator[Picture, None, None]:
        reader = FrameReader(self.path, self.starts_at_seconds)
        self._index = reader.index
        self.facts = reader.facts
        self.decoded_frames = reader.decoded_frames
        numbers = sorted(
            {
                number
                for start, end in self._spans
                for number in reader.index.within(
                    float("-inf") if start is None else start, float("inf") if end is None else end
                )
            }
        )
        size = (self.facts.width, self.facts.height)
        for number, image, small in reader.measured(numbers, size):
            self.decoded_frames = reader.decoded_frames
            pts = reader.index.pts[number]
            yield Picture(
                number=number,
                seconds=self.facts.seconds(pts),
                position_microseconds=self.facts.position_microseconds(pts),
                duration_seconds=0.0,
                small=small,
                full=functools.partial(_resized, image),
                held_bytes=image.nbytes,
                parts=ImageParts(image) if self._has_parts else None,
            )
        self.decoded_frames = reader.decoded_frames
        self.corrupt_seconds = [
            self.facts.seconds(reader.index.pts[number])
            for number in sorted(reader.corrupt_numbers)
        ]

    def _check_end(self) -> None:
        """Spans may lie outside the video: what they contain is all there is."""


def _resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    if image.shape[1::-1] == size:
        return image
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def read_frames(
    path: Path,
    spans: Sequence[tuple[float, float, Sequence[FramePick]]],
    short_side: int,
    quality: int,
    starts_at_seconds: float | None = None,
) -> Generator[dict[str, Any], None, tuple[list[list[int]], int]]:
    """Decodes again the frames that `picks` request in any span, with the columns of FRAME.

    Returns the numbers of each span's frames, in time order (`by_span` groups the frames), and how
    many frames were decoded. A span is `(start_seconds, end_seconds, picks)`; only frames inside
    `[start, end)` are returned. Spans may overlap and be in any order; like the frames' times they
    are the video's, and `starts_at_seconds` is the video time of the file's time 0. Raises
    RowFailed (`bad_media`) if the file cannot be decoded.
    """
    reader = FrameReader(path, starts_at_seconds)
    beat(reader.decoded_frames)
    times = [reader.index.seconds(number) for number in range(reader.index.n_frames)]
    wanted = [pick_frames(times, start, end, picks) for start, end, picks in spans]
    numbers = sorted(set(itertools.chain.from_iterable(wanted)))
    size = reader.facts.frame_size(short_side)
    for number, image in reader.images(numbers, size):
        yield {
            "frame_number": number,
            "seconds": times[number],
            "jpeg": encode_jpeg(image, quality),
        }
    beat(reader.decoded_frames)
    return wanted, reader.decoded_frames


def by_span(
    frames: Iterable[dict[str, Any]], wanted: Sequence[Sequence[int]]
) -> list[list[dict[str, Any]]]:
    """The frames of each span; those that could not be decoded are left out."""
    found = {frame["frame_number"]: frame for frame in frames}
    return [[found[number] for number in picked if number in found] for picked in wanted]
