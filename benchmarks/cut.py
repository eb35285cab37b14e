"""Measures how fast and how exactly clips are cut, compared with one ffmpeg command per clip.

    python -m benchmarks.cut [FILE ...] [--repeats 3] [--clips 12]

Clips of 2.5 s that begin between key frames are cut from each file in five ways, in turn:

copy          ours, without encoding, from a file that the decode pass found to be intact
unknown       the same from an unchecked file: each clip is decoded
ffmpeg copy   `ffmpeg -ss START -i FILE -t SECONDS -c copy OUT`, once per clip
exact         ours, re-encoded (libx264 veryfast, crf 22, all cores)
ffmpeg        `ffmpeg -ss START -i FILE -t SECONDS -c:v libx264 …`, the same settings

Prints median seconds and the ratios of wall time. Then cuts footage with numbered frames, and
prints each way's error in frames: of the first frame, and of the frame count.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.split import FOOTAGE, ffmpeg_binary
from clipmill.stages.media.cutting.cut import check_encoder, cut_clips
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest
from clipmill.stages.media.read.packets import read_packets
from tests.numbered import numbers_of, render_numbered

DEFAULT_FILES = ("sam2_dog_catch.mp4", "sintel_trailer_52s.mp4", "slides_talk_123s.mp4")
CLIP_SECONDS = 2.5
ENCODING = ("-c:v", "libx264", "-preset", "veryfast", "-crf", "22", "-c:a", "aac")
WAYS = ("copy", "unknown", "ffmpeg copy", "exact", "ffmpeg")
PAIRS = (("copy", "ffmpeg copy"), ("unknown", "ffmpeg copy"), ("exact", "ffmpeg"))
NUMBERED = {
    "25 frames/s": {"audio": "aac"},
    "uneven": {"uneven": True, "audio": "aac"},
    "starts at 2.3 s": {"start_seconds": 2.3, "audio": "aac"},
}


def requests_for(path: Path, folder: Path, clips: int) -> list[CutRequest]:
    """Clips that begin and end on frame boundaries, spread over the file."""
    index = read_packets(path)
    starts = np.linspace(0.02, 0.9, clips) * index.n_frames
    found = []
    for number, start in enumerate(starts.astype(int)):
        begin = index.seconds(int(start))
        last = index.within(begin, begin + CLIP_SECONDS).stop
        end = index.seconds(last) if last < index.n_frames else index.end_seconds
        found.append(CutRequest(str(number), begin, end, folder / f"{number}.mp4"))
    return found


def ours(media: str, *, is_sound: bool = False) -> Callable[[Path, list[CutRequest]], list[Path]]:
    def cut(path: Path, requests: list[CutRequest]) -> list[Path]:
        found = {
            r.clip_id: r
            for r in cut_clips(path, requests, CutOptions(media, threads=0), is_sound=is_sound)
        }
        if problems := [r.problem for r in found.values() if r.problem]:
            raise problems[0]
        return [found[request.clip_id].path for request in requests]

    return cut


def ffmpeg(*codecs: str) -> Callable[[Path, list[CutRequest]], list[Path]]:
    def cut(path: Path, requests: list[CutRequest]) -> list[Path]:
        # ffmpeg counts from the file's first timestamp.
        zero = _start_of(path)
        for request in requests:
            seconds = request.end_seconds - request.start_seconds
            subprocess.run(
                [
                    ffmpeg_binary(),
                    "-y",
                    "-ss",
                    f"{request.start_seconds - zero:.6f}",
                    "-i",
                    str(path),
                    "-t",
                    f"{seconds:.6f}",
                    *codecs,
                    str(request.target),
                ],
                check=True,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        return [request.target for request in requests]

    return cut


def _start_of(path: Path) -> float:
    import av

    with av.open(str(path)) as container:
        return (container.start_time or 0) / av.time_base


CUTS = {
    "copy": ours("copy", is_sound=True),
    "unknown": ours("copy"),
    "ffmpeg copy": ffmpeg("-c", "copy"),
    "exact": ours("exact"),
    "ffmpeg": ffmpeg(*ENCODING),
}


def measure(path: Path, clips: int, repeats: int) -> dict[str, float]:
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(repeats):
        for way in WAYS:
            with tempfile.TemporaryDirectory() as folder:
                requests = requests_for(path, Path(folder), clips)
                began = time.perf_counter()
                CUTS[way](path, requests)
                taken[way].append(time.perf_counter() - began)
    return {way: float(np.median(spent)) for way, spent in taken.items()}


def frames_off(path: Path, clips: int, way: str) -> tuple[int, int]:
    """Maximum error in frames of a clip's first frame, and of its frame count."""
    index = read_packets(path)
    with tempfile.TemporaryDirectory() as folder:
        requests = requests_for(path, Path(folder), clips)
        first = count = 0
        for request, made in zip(requests, CUTS[way](path, requests), strict=True):
            wanted = index.within(request.start_seconds - 1e-6, request.end_seconds - 1e-6)
            numbers = numbers_of(made)
            first = max(first, abs(numbers[0] - wanted.start))
            count = max(count, abs(len(numbers) - len(wanted)))
    return first, count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way")
    parser.add_argument("--clips", type=int, default=12, help="clips to cut out of a file")
    options = parser.parse_args()
    files = options.files or [FOOTAGE / name for name in DEFAULT_FILES]
    if missing := [str(path) for path in files if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}; name video files to measure")
    check_encoder(CutOptions("exact"))  # runs once per process, so it is not measured
    heads = [*WAYS, *(f"{a} / {b}" for a, b in PAIRS)]
    print(f"{'seconds':26}" + "".join(f"{head:>20}" for head in heads))
    for path in files:
        seconds = measure(path, options.clips, options.repeats)
        print(
            f"{path.name:26}"
            + "".join(f"{seconds[way]:20.2f}" for way in WAYS)
            + "".join(f"{seconds[a] / seconds[b]:20.2f}" for a, b in PAIRS),
            flush=True,
        )
    print(f"\n{'frames off (first, in all)':26}" + "".join(f"{way:>20}" for way in WAYS))
    with tempfile.TemporaryDirectory() as folder:
        for name, settings in NUMBERED.items():
            path = Path(folder) / f"{name.replace('/', ' a ')}.mp4"
            render_numbered(path, 400, **settings)
            off = [frames_off(path, options.clips, way) for way in WAYS]
            print(f"{name:26}" + "".join(f"{f'{a}, {b}':>20}" for a, b in off), flush=True)


if __name__ == "__main__":
    main()
