"""Finds a video encoder that works here, by encoding a few frames with it.

A listed encoder may not work: hardware encoders are compiled in even if there is no such hardware,
and data-centre GPUs (A100, H100) have none. `H264_ENCODERS` starts with x264, because it runs on
every processor and gives the same pictures on every node; then OpenH264, for the same reason,
although it only supports bit rates; then hardware, whose pictures differ between manufacturers.
VAAPI is left out: it only takes frames in GPU memory. Encoders of other codecs are used only if
requested by name.
"""

from __future__ import annotations

import contextlib
import functools
import io
import os
from dataclasses import dataclass, field
from fractions import Fraction

import av
import av.codec
import av.logging
import numpy as np

from clipmill.schemas.errors import ClipmillError, UsageError

H264_ENCODERS = (
    "libx264",
    "libopenh264",
    "h264_nvenc",
    "h264_videotoolbox",
    "h264_qsv",
    "h264_amf",
    "h264_mf",
)
MAX_CRF = 51
_BITS_PER_PIXEL = 0.15  # for encoders without a constant-quality mode
_PROBE_FRAMES = 8
_PROBE_SIZE = (640, 360)  # above every hardware encoder's minimum


@dataclass(frozen=True)
class _Knobs:
    """How an encoder's quality is set: `quality` is the option that receives `crf`."""

    quality: str | None = None
    usual: int | None = None
    preset: str | None = None
    further: dict[str, str] = field(default_factory=dict)


_KNOBS = {
    "libx264": _Knobs("crf", 22, "veryfast"),
    "libx265": _Knobs("crf", 22, "veryfast", {"x265-params": "log-level=error"}),
    "libsvtav1": _Knobs("crf", 30, "8"),
    "libvpx-vp9": _Knobs("crf", 31, None, {"b": "0", "deadline": "good", "cpu-used": "5"}),
    "h264_nvenc": _Knobs("cq", 22, "p4", {"rc": "vbr", "b": "0"}),
    "hevc_nvenc": _Knobs("cq", 24, "p4", {"rc": "vbr", "b": "0"}),
    "h264_qsv": _Knobs("global_quality", 22, "veryfast"),
    "hevc_qsv": _Knobs("global_quality", 24, "veryfast"),
}


@dataclass(frozen=True)
class VideoEncoder:
    """An encoder and the options that it is opened with."""

    name: str
    options: tuple[tuple[str, str], ...]
    pixels: str
    by_bit_rate: bool

    def add_stream(
        self,
        output: av.container.OutputContainer,
        size: tuple[int, int],
        rate: Fraction,
        time_base: Fraction,
        threads: int,
    ) -> av.VideoStream:
        """Adds a stream with this encoder to `output`; `rate` is only a hint."""
        stream = output.add_stream(self.name, rate=rate, options=dict(self.options))
        assert isinstance(stream, av.VideoStream)  # true of all encoders named here
        stream.width, stream.height = size
        stream.pix_fmt = self.pixels
        stream.time_base = time_base
        context = stream.codec_context
        context.time_base = time_base
        context.thread_count = threads
        # PyAV's default divides every picture into slices, which costs time and bytes.
        context.thread_type = "AUTO"
        # Decoding order equals display order: the file needs no edit list for its first frame to
        # be at zero, and its duration is right at variable frame rates.
        context.max_b_frames = 0
        if self.by_bit_rate:
            context.bit_rate = round(size[0] * size[1] * float(rate) * _BITS_PER_PIXEL)
        return stream


def open_encoder(stream: av.VideoStream) -> None:
    """Opens the encoder of a configured stream, keeping the process's own priority.

    SVT-AV1 gives its threads real-time priority if permitted, as it is for root: they, and every
    process that they start, would then starve all others on the machine.
    """
    stream.codec_context.open()
    if not hasattr(os, "sched_setscheduler"):  # macOS, Windows
        return
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(ProcessLookupError):  # it has ended
            if os.sched_getscheduler(thread) in (os.SCHED_FIFO, os.SCHED_RR):
                os.sched_setscheduler(thread, os.SCHED_OTHER, os.sched_param(0))


def find_encoder(name: str | None, crf: int | None, preset: str | None) -> VideoEncoder:
    """The encoder `name`, or the first H.264 encoder that works here.

    Raises UsageError for an impossible name, quality or preset, and ClipmillError if no encoder
    works.
    """
    return _find(name, crf, preset)


@functools.cache
def _find(name: str | None, crf: int | None, preset: str | None) -> VideoEncoder:
    encoder = _configured(name or _first_that_works(), crf, preset)
    problem = try_encoder(encoder)
    if problem is None:
        return encoder
    given = ", ".join(f"{key}={value}" for key, value in encoder.options) or "no options"
    step = (
        "omit --crf and --preset"
        if crf is not None or preset
        else ("omit --encoder to use the first H.264 encoder that works, or use --media copy")
    )
    raise ClipmillError(
        f"the encoder {encoder.name} does not work on this machine with {given}: {problem}; {step}"
    )


@functools.cache
def _first_that_works() -> str:
    problems = []
    for name in H264_ENCODERS:
        problem: str | None = "not in PyAV's FFmpeg"
        if name in av.codec.codecs_available:
            problem = try_encoder(_configured(name, None, None))
        if problem is None:
            return name
        problems.append(f"{name}: {problem}")
    raise ClipmillError(
        "no H.264 encoder works on this machine:\n  " + "\n  ".join(problems) + "\nPyAV's wheels "
        "from PyPI include libx264 (pip install --force-reinstall --only-binary :all: av); you can "
        "name another codec, e.g. --encoder libvpx-vp9 or --encoder mpeg4; --media copy needs none"
    )


def _configured(name: str, crf: int | None, preset: str | None) -> VideoEncoder:
    try:
        context = av.CodecContext.create(name, "w")
    except (av.codec.codec.UnknownCodecError, ValueError) as error:
        known = ", ".join(n for n in H264_ENCODERS if n in av.codec.codecs_available)
        raise UsageError(
            f"--encoder: FFmpeg in PyAV has no encoder {name!r}; its H.264 encoders: "
            f"{known or 'none'}"
        ) from error
    if context.type != "video":
        raise UsageError(f"--encoder: {name} encodes {context.type}, not video")
    knobs = _KNOBS.get(name, _Knobs())
    if crf is not None and not 0 <= crf <= MAX_CRF:
        raise UsageError(f"--crf: {crf} is not between 0 (best) and {MAX_CRF}")
    options = dict(knobs.further)
    if crf is not None and knobs.quality is None:
        raise UsageError(
            f"--crf: {name} has no constant quality; omit --crf, or choose one "
            f"of {', '.join(known for known, k in _KNOBS.items() if k.quality)}"
        )
    if knobs.quality:
        options[knobs.quality] = str(knobs.usual if crf is None else crf)
    known_options = {option.name for option in context.supported_options.private}
    if preset is not None and "preset" not in known_options:
        raise UsageError(f"--preset: {name} has no presets; omit it")
    if preset or knobs.preset:
        options["preset"] = preset or str(knobs.preset)
    taken = {form.name for form in context.codec.video_formats or ()}
    pixels = "nv12" if taken and "yuv420p" not in taken else "yuv420p"
    return VideoEncoder(name, tuple(options.items()), pixels, knobs.quality is None)


def try_encoder(encoder: VideoEncoder) -> str | None:
    """Why `encoder` does not work here; None if it does. Encodes and decodes a few frames."""
    before = av.logging.get_level()
    av.logging.set_level(av.logging.ERROR)
    try:
        # FFmpeg's log is clearer than its error codes.
        with av.logging.Capture() as said:
            problem = _try(encoder)
        return problem and (said[-1][2].strip() if said else problem)
    finally:
        av.logging.set_level(before)


def _try(encoder: VideoEncoder) -> str | None:
    memory = io.BytesIO()
    try:
        with av.open(memory, "w", format="mp4") as output:
            if encoder.name not in output.supported_codecs:
                return "mp4 can't hold what it makes"
            stream = encoder.add_stream(output, _PROBE_SIZE, Fraction(25), Fraction(1, 25), 1)
            open_encoder(stream)
            for number in range(_PROBE_FRAMES):
                frame = av.VideoFrame.from_ndarray(_picture(number), "rgb24")
                frame = frame.reformat(format=encoder.pixels)
                frame.pts, frame.time_base = number, Fraction(1, 25)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
        memory.seek(0)
        with av.open(memory, "r") as container:
            count = sum(1 for _ in container.decode(video=0))
    except (av.FFmpegError, ValueError, RuntimeError) as error:
        return str(getattr(error, "strerror", None) or error)
    if count != _PROBE_FRAMES:
        return f"of {_PROBE_FRAMES} frames {count} came back"
    return None


def _picture(number: int) -> np.ndarray:
    width, height = _PROBE_SIZE
    image = np.full((height, width, 3), 60, np.uint8)
    image[40:120, number * 20 : number * 20 + 80] = 230
    return image
