"""Races whole commands over a folder of films, from the shell prompt to the result.

    python -m benchmarks.race [--videos FOLDER] [--films 20] [--repeats 3] [--cut]

Makes films of 65 to 70 s out of the folder's H.264, VP8 and VP9 videos, by joining each to itself
without re-encoding. Then these commands take turns on all of them, and on one film alone:

ffmpeg       `ffmpeg -i FILM -f null -`, as many at a time as there are CPUs: decoding only
scenedetect  `scenedetect -i FILM detect-content list-scenes`, likewise: a shell loop
clipmill     `clipmill run timestamps-only`, with its defaults
local, ray   the same with `--engine local` and `--engine ray`

With `--cut`, clips are also cut out, re-encoded with the same encoder settings: `scenedetect …
split-video` in the loop, and `clipmill run` and `clipmill export --media exact`.

Prints median wall and processor seconds of each, and their ratio to scenedetect's. Processor time
is that of all processes that a command has started, whoever they belonged to in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import math
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import av
import numpy as np

from benchmarks.split import FOOTAGE, ffmpeg_binary
from clipmill.schemas.processors import usable_cpus

_CODECS = {"h264": ".mp4", "vp8": ".webm", "vp9": ".webm"}
_LEAST_SIDE = 360  # download_videos rejects smaller ones
_SECONDS, _SPREAD = 65.0, 6
_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER
_CRF, _PRESET = 22, "veryfast"

Command = Callable[[Sequence[Path], Path], None]
"""Processes films; the folder is new and empty."""


def usable(path: Path) -> str | None:
    """The ending for films of a video; None if it is not one to race on.

    Joined to itself, a transport stream has pictures that refer to missing ones: such a film is
    damaged, and measures something else.
    """
    if path.suffix.lower() in (".ts", ".mts", ".m2ts"):
        return None
    try:
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            small = min(stream.width, stream.height) < _LEAST_SIDE
            return None if small else _CODECS.get(stream.codec_context.name)
    except (av.error.FFmpegError, IndexError, OSError):
        return None


def make_films(videos: Path, folder: Path, count: int) -> list[Path]:
    """Films of 65 to 70 s, none of them equal to another."""
    endings = {path: usable(path) for path in sorted(videos.iterdir()) if path.is_file()}
    sources = [(path, ending) for path, ending in endings.items() if ending is not None]
    if not sources:
        raise SystemExit(f"{videos} has no H.264, VP8 or VP9 video of at least {_LEAST_SIDE} lines")
    films = []
    for number in range(count):
        source, ending = sources[number % len(sources)]
        film = folder / f"film{number:02d}{ending}"
        seconds = _SECONDS + number % _SPREAD
        turn = number // len(sources)  # a further film of a video begins elsewhere in it
        subprocess.run(
            [
                *(ffmpeg_binary(), "-v", "error", "-stream_loop", "-1"),
                *("-ss", f"{3.7 * turn:.1f}", "-i", str(source)),
                *("-map", "0:v:0", "-map", "0:a:0?", "-c", "copy", "-t", f"{seconds:g}"),
                *("-metadata", f"title=film {number}", str(film)),
            ],
            check=True,
            stdin=subprocess.DEVNULL,
        )
        films.append(film)
    return films


def adopt_orphans() -> None:
    """Makes processes whose parent has ended children of this one, so that their time counts."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_SUBREAPER, 1, 0, 0, 0)


def environment(**more: str) -> dict[str, str]:
    """A user's: modules are compiled once, and no cluster is named."""
    left_out = ("PYTHONDONTWRITEBYTECODE", "RAY_ADDRESS")
    return {**{k: v for k, v in os.environ.items() if k not in left_out}, **more}


def run(command: Sequence[str], **more: str) -> None:
    done = subprocess.run(
        command,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=environment(**more),
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:6])} … failed:\n{done.stderr[-2000:]}")


def loop(make: Callable[[Path, Path], list[str]], **more: str) -> Command:
    """A shell loop: one command per film, as many at a time as there are CPUs."""

    def all_films(films: Sequence[Path], folder: Path) -> None:
        with ThreadPoolExecutor(usable_cpus()) as pool:
            list(pool.map(lambda film: run(make(film, folder), **more), films))

    return all_films


def clipmill(*options: str) -> Command:
    def whole(films: Sequence[Path], folder: Path) -> None:
        listing = folder / "films.txt"
        listing.write_text("".join(f"{film}\n" for film in films), "utf-8")
        words = ["run", "timestamps-only", "--sources", str(listing), *options]
        run([*_CLIPMILL, *words, "--dataset", str(folder / "dataset")])

    return whole


def clipmill_cut(films: Sequence[Path], folder: Path) -> None:
    clipmill()(films, folder)
    words = ["--format", "csv", "--media", "exact", "--crf", str(_CRF), "--preset", _PRESET]
    words += ["--encoder", "libx264", "--output", str(folder / "clips")]
    run([*_CLIPMILL, "export", str(folder / "dataset"), *words])


_CLIPMILL = (sys.executable, "-m", "clipmill.jobs.cli")


def _scenedetect(*words: str) -> Callable[[Path, Path], list[str]]:
    return lambda film, folder: [
        *(sys.executable, "-m", "scenedetect", "-q", "-i", str(film), "-o", str(folder)),
        *("detect-content", *words),
    ]


def _ffmpeg(film: Path, folder: Path) -> list[str]:
    return [ffmpeg_binary(), "-v", "error", "-i", str(film), "-f", "null", "-"]


def commands(folder: Path, *, cut: bool) -> dict[str, Command]:
    found: dict[str, Command] = {
        "ffmpeg": loop(_ffmpeg),
        "scenedetect": loop(_scenedetect("list-scenes", "-q")),
        "clipmill": clipmill(),
        "local": clipmill("--engine", "local"),
        "ray": clipmill("--engine", "ray"),
    }
    if cut:
        # PySceneDetect runs the ffmpeg on PATH.
        programs = folder / "programs"
        programs.mkdir()
        (programs / "ffmpeg").symlink_to(ffmpeg_binary())
        split = _scenedetect("split-video", "-q", "-crf", str(_CRF), "-p", _PRESET)
        found["scenedetect, cut"] = loop(split, PATH=f"{programs}:{os.environ['PATH']}")
        found["clipmill, cut"] = clipmill_cut
    return found


def take_turns(
    contenders: dict[str, Command], films: Sequence[Path], folder: Path, repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """(Wall, processor) seconds of each command's turns."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
    for number in range(repeats):
        # In other order each time, since a machine slows down and speeds up.
        names = list(contenders)[:: 1 if number % 2 == 0 else -1]
        for name in names:
            place = Path(tempfile.mkdtemp(dir=folder))
            began, used = time.perf_counter(), processor_seconds()
            contenders[name](films, place)
            wall = time.perf_counter() - began
            reap_orphans()
            taken[name].append((wall, processor_seconds() - used))
            shutil.rmtree(place)
            print(f"  {name}: {wall:.1f} s, {taken[name][-1][1]:.1f} s of CPU", file=sys.stderr)
    return taken


def processor_seconds() -> float:
    """Processor seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def reap_orphans() -> None:
    """Waits for the processes that a command has left behind to end."""
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-1, 0)


def show(title: str, taken: dict[str, list[tuple[float, float]]]) -> None:
    medians = {name: np.median(turns, axis=0) for name, turns in taken.items()}
    print(f"\n{title}\n\n| | wall, s | CPU, s | wall | CPU |\n|---|---|---|---|---|")
    for name, (wall, cpu) in medians.items():
        rival = medians["scenedetect, cut" if name.endswith("cut") else "scenedetect"]
        ratios = [f"{value / other:.2f}" for value, other in zip((wall, cpu), rival, strict=True)]
        print(f"| {name} | {wall:.1f} | {cpu:.1f} | {' | '.join(ratios)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--videos", type=Path, default=FOOTAGE, help="folder of videos")
    parser.add_argument("--films", type=int, default=20, help="how many films to make")
    parser.add_argument("--repeats", type=int, default=3, help="turns of each command")
    parser.add_argument("--cut", action="store_true", help="also cut the clips out, re-encoded")
    parser.add_argument("--only", nargs="*", help="names of commands, besides scenedetect")
    options = parser.parse_args()
    if not options.videos.is_dir():
        parser.error(f"no folder {options.videos}; name one with videos")
    adopt_orphans()
    with tempfile.TemporaryDirectory(prefix="clipmill-race-") as temporary:
        folder = Path(temporary)
        made = folder / "films"
        made.mkdir()
        films = make_films(options.videos, made, options.films)
        minutes = options.films * (_SECONDS + (_SPREAD - 1) / 2) / 60
        contenders = commands(folder, cut=options.cut)
        if options.only is not None:
            wanted = {"scenedetect", *options.only}
            contenders = {name: one for name, one in contenders.items() if name in wanted}
        warm_up(films[0], folder)
        one = take_turns(contenders, films[:1], folder, options.repeats)
        every = take_turns(contenders, films, folder, options.repeats)
    show(f"One film of {_SECONDS:g} s", one)
    count = f"{len(films)} films, {math.floor(minutes)} minutes"
    show(f"{count}, {usable_cpus()} CPUs, {options.repeats} turns each", every)


def warm_up(film: Path, folder: Path) -> None:
    """Compiles the modules of both, and reads them from the disk."""
    for name in ("scenedetect", "clipmill"):
        place = Path(tempfile.mkdtemp(dir=folder))
        commands(place, cut=False)[name]([film], place)


if __name__ == "__main__":
    main()
