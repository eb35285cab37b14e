"""Measures how fast split_clips is, compared with PySceneDetect's command and bare decoding.

    python -m benchmarks.split [FILE ...] [--repeats 5] [--seconds 120]

Each file is first lengthened by joining it to itself (packets are copied, not re-encoded).
Then these processes take turns on it:

ours         scan and split: cuts, kept frames and statistics, committed as Parquet
bare         the same, decoded in the process itself instead of a helper process
scenedetect  `scenedetect -q -i FILE detect-content`: cuts only
ffmpeg       `ffmpeg -i FILE -f null -`: decoding only

The time that the same command takes for a file of four packets is subtracted: a run starts one
worker for many videos, so Python's start-up time doesn't matter.

Prints ratios, where more than 1 means that the first is faster: of the median wall times, and of
the median processor times, which a busy machine disturbs less. Without files, it uses the real
footage next to the checkout.
"""

from __future__ import annotations

import argparse
import itertools
import math
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import av
import numpy as np

from clipmill.stages.media.isolation.ffmpeg_program import ffmpeg_program

ROOT = Path(__file__).resolve().parent.parent
FOOTAGE = ROOT.parent / "shared" / "videos"
PAIRS = (("ours", "scenedetect"), ("ours", "ffmpeg"), ("scenedetect", "ffmpeg"), ("ours", "bare"))
DEFAULT_FILES = (
    "bbb_opening_720p_45s.ts",
    "sam2_dog_catch.mp4",
    "sintel_trailer_52s.mp4",
    "bbb_trailer_33s.webm",
    "tears_of_steel_room_17s_vp9.webm",
    "slides_talk_123s.mp4",
)


def lengthen(source: Path, target: Path, seconds: float) -> None:
    """Writes the first video stream of `source` repeatedly, for at least `seconds`."""
    with av.open(str(source)) as container:
        loops = math.ceil(seconds * av.time_base / container.duration)
    _join(source, target, loops, packets=None)


def shorten(source: Path, target: Path) -> None:
    """Writes only the first few packets: a process then spends all its time on starting."""
    _join(source, target, 1, packets=4)


def _join(source: Path, target: Path, loops: int, packets: int | None) -> None:
    with av.open(str(target), "w", format="matroska") as output:
        stream = None
        shift = 0
        for _ in range(loops):
            with av.open(str(source)) as container:
                video = container.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(video)
                end = 0
                for packet in itertools.islice(container.demux(video), packets):
                    if packet.dts is None:
                        continue
                    end = max(end, packet.pts + (packet.duration or 1))
                    packet.pts += shift
                    packet.dts += shift
                    packet.stream = stream
                    output.mux(packet)
                shift += end


def scan_and_split(path: Path) -> None:
    """What a worker does with one video, from the file to committed Parquet."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clipmill.schemas.tables import SPAN
    from clipmill.stages.protocol import Workspace
    from clipmill.stages.split_clips import SplitClips

    scan, split = SplitClips().steps()
    source = pa.table(
        {
            "video_id": ["video"],
            "path": [str(path)],
            "spans": pa.array([None], pa.list_(SPAN)),
            "caption_given": pa.array([None], pa.string()),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), Path(folder))
        with scan.open(workspace) as transform:
            scanned = transform(source)
        for name, table in scanned.items():
            pq.write_table(table, Path(folder) / f"{name}.parquet")
        joined = scanned["scan_videos"].drop(["rejection", "error"])
        for name in ("spans", "caption_given"):
            joined = joined.append_column(name, source[name])
        with split.open(workspace) as transform:
            tables = transform(joined)
        for name, table in tables.items():
            pq.write_table(table, Path(folder) / f"{name}.parquet")


def decode_here() -> None:
    """Runs the decode pass in this process instead of a helper."""
    from clipmill.stages import scan_videos

    def collect(function, path, *args, limits, counted):
        parts, stream = [], function(path, *args)
        while True:
            try:
                parts.append(next(stream))
            except StopIteration as end:
                counted(end.value["decoded_frames"])
                return parts, end.value

    scan_videos.collect_isolated = collect


def ffmpeg_binary() -> str:
    """The ffmpeg that `make setup` installs, so that ratios compare the same program everywhere."""
    program = ffmpeg_program()
    if program is None:
        raise SystemExit("no ffmpeg: see `clipmill doctor`")
    return program


def commands(path: Path) -> dict[str, list[str]]:
    return {
        "ours": [sys.executable, "-m", "benchmarks.split", "--scan", str(path)],
        "bare": [sys.executable, "-m", "benchmarks.split", "--in-process", "--scan", str(path)],
        "scenedetect": [
            sys.executable,
            "-m",
            "scenedetect",
            "-q",
            "-i",
            str(path),
            "detect-content",
        ],
        "ffmpeg": [ffmpeg_binary(), "-v", "error", "-i", str(path), "-f", "null", "-"],
    }


def measure(path: Path, repeats: int) -> dict[str, np.ndarray]:
    """Median (wall, processor) seconds of each command. They take turns, so that other work on the
    machine affects all of them alike."""
    taken: dict[str, list[tuple[float, float]]] = {}
    for _ in range(repeats):
        for name, command in commands(path).items():
            began, used = time.perf_counter(), processor_seconds()
            subprocess.run(
                command, stdin=subprocess.DEVNULL, check=True, cwd=ROOT, stdout=subprocess.DEVNULL
            )
            spent = time.perf_counter() - began, processor_seconds() - used
            taken.setdefault(name, []).append(spent)
    return {name: np.median(spent, axis=0) for name, spent in taken.items()}


def processor_seconds() -> float:
    """Processor seconds of all child processes that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=5, help="turns of each command")
    parser.add_argument("--seconds", type=float, default=120, help="footage to make of a file")
    parser.add_argument("--scan", type=Path, help="only scan and split this file, once")
    parser.add_argument(
        "--in-process",
        action="store_true",
        help="with --scan: decode in this process, not in one of its own",
    )
    options = parser.parse_args()
    if options.scan:
        if options.in_process:
            decode_here()
        scan_and_split(options.scan)
        return
    files = options.files or [FOOTAGE / name for name in DEFAULT_FILES]
    if missing := [str(path) for path in files if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}; name video files to measure")
    totals: dict[str, np.ndarray] = {}
    print(f"{'speed, wall (processor)':36}" + "".join(f"{a + ' / ' + b:>22}" for a, b in PAIRS))
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            longer = Path(folder) / f"{path.stem}.mkv"
            lengthen(path, longer, options.seconds)
            few = Path(folder) / f"{path.stem}.start.mkv"
            shorten(path, few)
            start = measure(few, max(3, options.repeats))
            seconds = measure(longer, options.repeats)
            seconds = {name: spent - start[name] for name, spent in seconds.items()}
            longer.unlink()
            for name, value in seconds.items():
                totals[name] = totals.get(name, 0.0) + value
            _print_row(path.name, seconds)
    _print_row("all", totals)


def _print_row(name: str, seconds: dict[str, np.ndarray]) -> None:
    ratios = (seconds[other] / seconds[one] for one, other in PAIRS)
    print(f"{name:36}" + "".join(f"{f'{w:.2f} ({p:.2f})':>22}" for w, p in ratios), flush=True)


if __name__ == "__main__":
    main()
