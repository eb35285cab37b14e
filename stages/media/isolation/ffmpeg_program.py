"""Finds the ffmpeg that is installed with Clipmill, for code that runs it as a program.

It comes with imageio-ffmpeg, without ffprobe. An ffmpeg on PATH is ignored, so that runs behave
the same on every machine; set `IMAGEIO_FFMPEG_EXE` to use another one.
"""

from __future__ import annotations

import contextvars
import functools
import subprocess


@functools.cache
def ffmpeg_program() -> str | None:
    """Its path; None if the package has none for this kind of machine and PATH has none."""
    import imageio_ffmpeg

    try:
        return str(imageio_ffmpeg.get_ffmpeg_exe())
    except RuntimeError:
        return None


def ffmpeg_problem() -> str | None:
    """Why no ffmpeg can be started; None if one can."""
    program = ffmpeg_program()
    if program is None:
        return (
            "imageio-ffmpeg has no ffmpeg for this kind of machine; install ffmpeg, or set "
            "IMAGEIO_FFMPEG_EXE to its path"
        )
    try:
        subprocess.run(
            [program, "-version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=True,
            timeout=60,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{program} can't be started ({error}); set IMAGEIO_FFMPEG_EXE to one that works"
    return None


def give_ffmpeg_to_yt_dlp() -> None:
    """Makes all of yt-dlp find the installed ffmpeg.

    The option `ffmpeg_location` only affects merging: its downloaders read a context variable that
    only yt-dlp's command line sets, and each thread has a separate context. So this sets the
    variable's default.
    """
    from yt_dlp.postprocessor.ffmpeg import FFmpegPostProcessor

    program = ffmpeg_program()
    if FFmpegPostProcessor._ffmpeg_location.get() != program:
        FFmpegPostProcessor._ffmpeg_location = contextvars.ContextVar(
            "ffmpeg_location", default=program
        )
