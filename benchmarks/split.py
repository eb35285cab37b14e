"""Measures how fast split_clips is, compared with PySceneDetect's command and bare decoding.

    python -m benchmarks.split [FILE ...] [--repeats 5] [--seconds 120] [--threads 0] [--set …]

Each file is first lengthened by joining it to itself (packets are copied, not re-encoded).
Then these processes take turns on it:

needed       scan and split with `detector: cascade`: cuts, kept frames and statistics, committed as
             Parquet; pictures in which nothing happens are not decoded
all          the same with `decode: all`
content      the same with `detector: content`, PySceneDetect's
scenedetect  `scenedetect -q -i FILE detect-content`: cuts only
ffmpeg       `ffmpeg -i FILE -f null -`: decoding only

The time that the same command takes for a file of four packets (of the first file) is subtracted:
a run starts one worker for many videos, so Python's start-up time doesn't matter.

Prints ratios, where more than 1 means that the first is faster: of the median wall times, and of
the median processor times, which a busy machine disturbs less. `decoded` is the share of a file's
frames that `needed` decodes. Without files, it uses the real footage next to the checkout.
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
PAIRS = (
    ("needed", "ffmpeg"),
    ("all", "ffmpeg"),
    ("content", "ffmpeg"),
    ("scenedetect", "ffmpeg"),
    ("needed", "scenedetect"),
)
SETTINGS: dict[str, dict[str, str]] = {
    "needed": {"detector": "cascade"},
    "all": {"detector": "cascade", "decode": "all"},
    "content": {},
}
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


def scan_and_split(path: Path, settings: dict[str, str], threads: int) -> None:
    """What a worker does with one video, from the file to committed Parquet.

    Prints the number of frames that were decoded, and that the file has.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    from clipmill.schemas.tables import SPAN
    from clipmill.stages.protocol import Workspace
    from clipmill.stages.split_clips import SplitClips

    scan, split = SplitClips.model_validate(settings).steps()
    source = pa.table(
        {
            "video_id": ["video"],
            "path": [str(path)],
            "spans": pa.array([None], pa.list_(SPAN)),
            "caption_given": pa.array([None], pa.string()),
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        workspace = Workspace(Path(folder), Path(folder), decoder_threads=threads)
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
        row = joined.to_pylist()[0]
        print(row["decoded_frames"], row["source_frames"])


def ffmpeg_binary() -> str:
    """The ffmpeg that `make setup` installs, so that ratios compare the same program everywhere."""
    program = ffmpeg_program()
    if program is None:
        raise SystemExit("no ffmpeg: see `clipmill doctor`")
    return program


def commands(path: Path, more: dict[str, str], threads: int) -> dict[str, list[str]]:
    ours = [sys.executable, "-m", "benchmarks.split", "--threads", str(threads)]
    ours += ["--scan", str(path)]
    return {
        **{
            name: [*ours, "--set", *(f"{key}={value}" for key, value in {**chosen, **more}.items())]
            for name, chosen in SETTINGS.items()
        },
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


def measure(
    path: Path, repeats: int, more: dict[str, str], threads: int
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Median (wall, processor) seconds of each command, and what `needed` printed.

    They take turns, so that other work on the machine affects all of them alike.
    """
    taken: dict[str, list[tuple[float, float]]] = {}
    frames = np.zeros(2)
    for _ in range(repeats):
        for name, command in commands(path, more, threads).items():
            began, used = time.perf_counter(), processor_seconds()
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, check=True, cwd=ROOT, stdout=subprocess.PIPE
            )
            spent = time.perf_counter() - began, processor_seconds() - used
            taken.setdefault(name, []).append(spent)
            if name == "needed":
                frames = np.array(done.stdout.split()[-2:], float)
    return {name: np.median(spent, axis=0) for name, spent in taken.items()}, frames


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
        "--threads",
        type=int,
        default=0,
        help="decoding threads of ours: 1 as in a run of more videos than CPUs, 0 for all",
    )
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of split_clips"
    )
    options = parser.parse_args()
    chosen = dict(item.split("=", 1) for item in options.set)
    if options.scan:
        scan_and_split(options.scan, chosen, options.threads)
        return
    files = options.files or [FOOTAGE / name for name in DEFAULT_FILES]
    if missing := [str(path) for path in files if not path.is_file()]:
        parser.error(f"no such file: {', '.join(missing)}; name video files to measure")
    totals: dict[str, np.ndarray] = {}
    start: dict[str, np.ndarray] = {}
    all_frames = np.zeros(2)
    pairs = "".join(f"{a + ' / ' + b:>24}" for a, b in PAIRS)
    print(f"{'speed, wall (processor)':36}{pairs}{'decoded':>10}")
    with tempfile.TemporaryDirectory() as folder:
        for path in files:
            longer = Path(folder) / f"{path.stem}.mkv"
            lengthen(path, longer, options.seconds)
            if not start:
                few = Path(folder) / f"{path.stem}.start.mkv"
                shorten(path, few)
                start, _ = measure(few, max(3, options.repeats), chosen, options.threads)
            seconds, frames = measure(longer, options.repeats, chosen, options.threads)
            seconds = {name: spent - start[name] for name, spent in seconds.items()}
            longer.unlink()
            for name, value in seconds.items():
                totals[name] = totals.get(name, 0.0) + value
            all_frames += frames
            _print_row(path.name, seconds, frames)
    _print_row("all", totals, all_frames)


def _print_row(name: str, seconds: dict[str, np.ndarray], frames: np.ndarray) -> None:
    ratios = (seconds[other] / seconds[one] for one, other in PAIRS)
    cells = "".join(f"{f'{wall:.2f} ({cpu:.2f})':>24}" for wall, cpu in ratios)
    print(f"{name:36}{cells}{frames[0] / frames[1]:>10.2f}", flush=True)


if __name__ == "__main__":
    main()
