"""Functions that tests run in helper processes: all the harm that a decoder could do."""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.schemas.errors import ClipmillError, RowFailed, RowRejected
from clipmill.stages.media.isolation.progress import beat

if TYPE_CHECKING:  # otherwise every helper of a test would import the decoders
    from clipmill.stages.media.cutting.requests import CutOptions, CutRequest, CutResult


def whose(path: Path) -> int:
    return os.getpid()


def modules(path: Path) -> list[str]:
    return sorted({name.partition(".")[0] for name in sys.modules} | set(sys.modules))


def load(path: Path, module: str) -> None:
    importlib.import_module(module)


def echo(path: Path, *arguments: object) -> tuple[object, ...]:
    return (path, *arguments)


def segfault(path: Path) -> None:
    ctypes.string_at(0)


def segfault_once(path: Path, marker: Path) -> str:
    """The first process that calls this dies."""
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGSEGV)
    return "done"


def parts_and_then_segfault_once(path: Path, marker: Path) -> Iterator[int]:
    yield 1
    yield 2
    time.sleep(1.1)  # progress is forwarded once a second
    beat(7)
    segfault_once(path, marker)
    yield 3
    beat(11)


def leave(path: Path, status: int) -> None:
    os._exit(status)


def complain_and_abort(path: Path) -> None:
    os.write(2, b"[h264 @ 0x1] much noise\n" * 100_000 + b"Assertion x > 0 failed\n")
    os.abort()


def hang_with_the_interpreter_lock(path: Path, pid_file: Path | None = None) -> None:
    """Like C code that never returns and holds the GIL: no Python thread runs meanwhile."""
    if pid_file is not None:
        pid_file.write_text(str(os.getpid()))
    ctypes.PyDLL(None).sleep(1000)


def stop_itself(path: Path, pid_file: Path | None = None) -> None:
    if pid_file is not None:
        pid_file.write_text(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)


def work_on(path: Path, seconds: float) -> str:
    """Slow, but reports progress."""
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        time.sleep(0.01)
        beat()
    return "done"


def take_memory(path: Path, more_bytes: int) -> int:
    return len(bytearray(more_bytes))


def take_opencv_memory(path: Path, side: int) -> None:
    import cv2
    import numpy as np

    cv2.copyMakeBorder(np.zeros((8, 8, 3), np.uint8), side, side, side, side, cv2.BORDER_CONSTANT)


def convert_with_many_threads(path: Path, frames: int, threads: int) -> int:
    """Like a decoder's last frames on a machine with many cores: each starts its own threads."""
    import av

    held = [av.VideoFrame(320, 180, "yuv420p") for _ in range(frames)]
    for frame in held:
        frame.reformat(format="bgr24", threads=threads)
    return len(os.listdir("/proc/self/task"))


_held: list[bytearray] = []


def hold_memory(path: Path, more_bytes: int) -> int:
    """Leaves the process with more memory than before."""
    _held.append(bytearray(more_bytes))
    return os.getpid()


def print_rubbish(path: Path) -> str:
    os.write(1, bytes(range(256)) * 4000)
    print("hello")
    return "done"


def write_rubbish_to_every_file(path: Path) -> None:
    """Like a stray pointer: the socket gets an invalid message."""
    for number in range(3, 64):
        try:
            os.write(number, b"\0\0\0\0\0\0\0\5hello")
        except OSError:
            continue
    time.sleep(1000)


def refuse(path: Path, how: str) -> None:
    beat(3)
    raise {
        "failed": RowFailed("bad_media", "not good"),
        "rejected": RowRejected("split_clips.boundaries", "no"),
        "ends": ClipmillError("the disk is full"),
        "other": KeyError("x"),
        "unpicklable": _Unpicklable(1, 2),
        "exit": SystemExit(3),
    }[how]


class _Unpicklable(Exception):
    def __init__(self, one: int, two: int) -> None:
        super().__init__(f"{one} and {two}")


def many_parts(path: Path, count: int, size: int) -> Iterator[bytes]:
    for _ in range(count):
        yield os.urandom(16) * (size // 16)


def cut_and_die(
    path: Path,
    requests: Sequence[CutRequest],
    options: CutOptions,
    starts_at_seconds: float,
    is_sound: bool,
) -> Iterator[CutResult]:
    """Cuts normally and dies at `c2`, in the middle of its file; only once if `once` exists.

    Records the requested clips in a file next to them.
    """
    from clipmill.stages.media.cutting.cut import cut_clips

    folder = requests[0].target.parent
    with open(folder / "asked", "a") as asked:
        asked.write(" ".join(request.clip_id for request in requests) + "\n")
    for result in cut_clips(
        path, requests, options, starts_at_seconds=starts_at_seconds, is_sound=is_sound
    ):
        if result.clip_id == "c2" and (
            not (folder / "once").exists() or len((folder / "asked").read_text().split("\n")) == 2
        ):
            (folder / ".c2.mp4.12345678.part").write_bytes(b"half a clip")
            os.kill(os.getpid(), signal.SIGSEGV)
        yield result
