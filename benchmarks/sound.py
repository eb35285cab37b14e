"""Compares split_clips' signals of sound with FFmpeg's filters, and with the cost of decoding.

    python -m benchmarks.sound [FILE ...] [--repeats 3]

Whole files are measured (by default the real footage next to the checkout), as one clip, and by
`ffmpeg` with ebur128, astats and silencedetect. Prints both and, per file, the processor time of
measuring the sound as a share of that of `ffmpeg -map 0:v:0 -f null -`, which decodes the pictures.
"""

from __future__ import annotations

import argparse
import re
import resource
import statistics
import subprocess
import time
from pathlib import Path

from benchmarks.split import FOOTAGE
from clipmill.stages.clip_sound import sound_signals
from clipmill.stages.media.isolation.ffmpeg_program import ffmpeg_program
from clipmill.stages.media.read.signals.sound_levels import measure_sound
from clipmill.stages.media.read.sound import Sound

FILTERS = "ebur128=metadata=1:framelog=quiet,astats,silencedetect=n=-60dB:d=0.1"
LOUDNESS = "ametadata=mode=print:key=lavfi.r128.I:file=-"


def ours(path: Path) -> dict[str, float | None]:
    found = measure_sound(path, None, 0.0)
    stretches = found["sound"]
    if not stretches:
        return {}
    start, end = stretches[0]["start_seconds"], stretches[-1]["end_seconds"]
    signals = sound_signals(stretches, None, start, end)
    values = {name: value for name, value, _ in signals}
    return {
        **values,
        "silent_seconds": (values["silence_share"] or 0.0) * (end - start),
        "crossings": (values["zero_crossings"] or 0.0) * (end - start),
    }


def theirs(path: Path) -> dict[str, float]:
    with Sound(path) as sound:
        assert sound.stream is not None
        track = sound.stream.index
    words = [*ffmpeg(path), "-map", f"0:{track}", "-af", f"{FILTERS},{LOUDNESS}", "-f", "null", "-"]
    done = subprocess.run(
        words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=True
    )
    crossings = [float(word) for word in re.findall(r"Zero crossings: (\d+)", done.stderr)]
    silences = re.findall(r"silence_duration: ([\d.]+)", done.stderr)
    return {
        "loudness": float(done.stdout.rsplit("lavfi.r128.I=", 1)[1].split()[0]),
        "sound_peak": float(re.findall(r"Peak level dB: (\S+)", done.stderr)[-1]),
        "silent_seconds": sum(map(float, silences)),
        "crossings": statistics.mean(crossings),
    }


def ffmpeg(path: Path) -> list[str]:
    return [str(ffmpeg_program()), "-hide_banner", "-nostats", "-i", str(path)]


def decoding_seconds(path: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    words = [*ffmpeg(path), "-map", "0:v:0", "-f", "null", "-"]
    subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def measuring_seconds(path: Path) -> float:
    before = time.process_time()
    measure_sound(path, None, 0.0)
    return time.process_time() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    suffixes = (".mp4", ".webm", ".mov", ".ts")
    files = options.files or sorted(p for p in FOOTAGE.iterdir() if p.suffix in suffixes)
    print("ours / FFmpeg: loudness, peak, seconds of silence, zero crossings; cost of decoding")
    for path in files:
        mine = ours(path)
        if not mine:
            continue
        told = theirs(path)
        pairs = (
            f"{'silent' if mine[name] is None else format(mine[name], '.2f')} / {told[name]:.2f}"
            for name in ("loudness", "sound_peak", "silent_seconds", "crossings")
        )
        costs = [measuring_seconds(path) / decoding_seconds(path) for _ in range(options.repeats)]
        print(f"{path.name}: {', '.join(pairs)}; {statistics.median(costs):.3f}")


if __name__ == "__main__":
    main()
