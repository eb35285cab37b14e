"""Measures how far the signals of clips agree with FFmpeg's filters, and what they cost.

    python -m benchmarks.signals [FILE ...] [--seconds 12]

Signals are measured on pictures of 256 pixels, and some on a part of the picture. For the clips of
real footage this compares them with the filters run over every picture in its full size (for blocks
and blur: over three pictures of each clip): Spearman's rank correlation over clips, and the
median of the ratio, ours / FFmpeg's. It also prints the processor time that the parts of signals
add to a lean scan. Without files, it uses the real footage next to the checkout.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from clipmill.stages.media.read import scan
from clipmill.stages.media.read.measures import WantedMeasures
from clipmill.stages.media.read.scan import ScanSettings
from clipmill.stages.media.read.signals.camera import CameraMotion
from clipmill.stages.media.read.signals.picture_signals import PictureSignals
from tests import ffmpeg_filters
from tests.scanning import run

ROOT = Path(__file__).resolve().parent.parent
FOOTAGE = ROOT.parent / "shared" / "videos"
KINDS = (".mp4", ".webm", ".mov", ".ts")
# Cheap filters first: photosensitivity converts pictures to RGB.
FILTERS = (
    "vmafmotion,siti,signalstats,blackframe=amount=0,cropdetect=round=2:reset=1,"
    "freezedetect=n=0.001:d=0.5,photosensitivity=bypass=1"
)


@dataclasses.dataclass(frozen=True)
class Compared:
    """A signal, and how the frames' values by FFmpeg become that of a clip."""

    signal: str
    theirs: str
    how: str = "mean"


COMPARED = (
    Compared("vmaf_motion", "vmafmotion.score"),
    Compared("vmaf_motion_max", "vmafmotion.score", "max"),
    Compared("temporal_information", "siti.ti"),
    Compared("spatial_information", "siti.si"),
    Compared("contrast", "contrast"),
    Compared("saturation", "saturation"),
    Compared("hue", "signalstats.HUEMED", "angle"),
    Compared("photosensitivity", "photosensitivity.frame-badness", "flashes"),
    Compared("black_share", "black"),
    Compared("still_share", "still"),
    Compared("blockiness", "block", "few"),
    Compared("blur", "blur", "few"),
    *(Compared(f"safe_{side}", side, "edge") for side in ("left", "top", "right", "bottom")),
)


_FEW = (0.2, 0.5, 0.8)
_OF_TWO = ("vmaf_motion", "vmaf_motion_max", "temporal_information", "photosensitivity")


def clips_of(path: Path, seconds: float) -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        tables = run(path, Path(folder), signals=True, keep_frames=False)
    return [clip for clip in tables["split_clips"] if clip["end_seconds"] <= seconds]


def told_of(path: Path, seconds: float) -> ffmpeg_filters.Told:
    frames = ffmpeg_filters.of_file(path, FILTERS, seconds=seconds)
    for frame in frames:
        low, high = (frame.get(f"signalstats.{name}") for name in ("YLOW", "YHIGH"))
        if low is not None and high is not None:
            # In levels of full range, as ours.
            frame["contrast"] = (high - low) * 255 / 219
            frame["saturation"] = frame["signalstats.SATAVG"] * 255 / 224
        frame["black"] = float(frame.get("blackframe.pblack", 0) >= 98)
    # A freeze is told of later than it begins.
    for frame in frames:
        start = frame.get("freezedetect.freeze_start")
        for other in frames:
            if start is not None and other["seconds"] >= start - 1e-3:
                other["still"] = 1.0
        if frame.get("freezedetect.freeze_end") is not None:
            for other in frames:
                if other["seconds"] >= frame["seconds"] - 1e-3:
                    other.pop("still", None)
    for frame in frames:
        frame.setdefault("still", 0.0)
    return frames


def theirs(
    one: Compared, path: Path, clip: dict[str, Any], frames: Sequence[dict[str, float]]
) -> float | None:
    if one.how == "few":
        # One run each: blockdetect's sums go on from picture to picture.
        found = []
        for share in _FEW:
            at = clip["start_seconds"] + share * clip["duration_seconds"]
            told = ffmpeg_filters.of_file(path, f"{one.theirs}detect", start=at, frames=1)
            found += [frame[one.theirs] for frame in told if one.theirs in frame]
        return float(np.mean(found)) if found else None
    inside = [
        frame
        for frame in frames
        if clip["start_seconds"] <= frame["seconds"] + 0.0005 < clip["end_seconds"]
    ]
    if one.signal in _OF_TWO:
        inside = inside[1:]  # the first picture is compared with one before the clip
    if one.how == "edge":
        return _edge(one.theirs, inside, clip)
    values = np.array([frame[one.theirs] for frame in inside if one.theirs in frame])
    if not values.size:
        return None
    if one.how == "flashes":
        # The filter's own sum includes what was before the clip.
        weights = np.arange(30, 0, -1) / 30
        return float(np.convolve(values, weights)[: len(values)].max())
    if one.how == "angle":
        turned = np.exp(1j * np.radians(values)).mean()
        return float(np.degrees(np.angle(turned)) % 360)
    return float(values.max() if one.how == "max" else values.mean())


def _edge(side: str, frames: Sequence[dict[str, float]], clip: dict[str, Any]) -> float | None:
    name = {"left": "x1", "top": "y1", "right": "x2", "bottom": "y2"}[side]
    size = clip["width"] if name[0] == "x" else clip["height"]
    values = [
        frame[f"cropdetect.{name}"]
        for frame in frames
        # A black picture has its edges the wrong way round.
        if frame.get("cropdetect.x2", 0) > frame.get("cropdetect.x1", 1)
    ]
    if not values:
        return None
    return min(values) / size if name[1] == "1" else (max(values) + 1) / size


def spearman(pairs: Sequence[tuple[float, float]]) -> float:
    one, other = (np.argsort(np.argsort(values)) for values in np.array(pairs).T)
    return float(np.corrcoef(one, other)[0, 1])


def compared(paths: Sequence[Path], seconds: float) -> Iterator[str]:
    pairs: dict[str, list[tuple[float, float]]] = {one.signal: [] for one in COMPARED}
    for path in paths:
        frames = told_of(path, seconds)
        for clip in clips_of(path, seconds):
            for one in COMPARED:
                ours, other = clip[one.signal], theirs(one, path, clip, frames)
                if ours is not None and other is not None:
                    pairs[one.signal].append((ours, other))
    yield "| signal | clips | rank correlation | ratio, median | difference, median |"
    yield "|---|---|---|---|---|"
    for name, found in pairs.items():
        if len(found) < 3:
            continue
        ours, other = np.array(found).T
        difference = np.abs(ours - other)
        if name == "hue":
            difference = np.minimum(difference, 360 - difference)
        big = np.abs(other) > 1e-3
        ratio = f"{np.median(ours[big] / other[big]):.2f}" if big.any() else ""
        both = min(len(set(ours)), len(set(other))) > 1
        rank = f"{spearman(found):.2f}" if both and name != "hue" else ""
        yield f"| `{name}` | {len(found)} | {rank} | {ratio} | {np.median(difference):.3g} |"


def cost(paths: Sequence[Path]) -> Iterator[str]:
    """The processor time of each part of a lean scan, as a share of that without signals."""
    settings = ScanSettings(
        exact=False,
        spans=None,
        starts_at_seconds=None,
        keep_frames=False,
        frame_short_side=384,
        frame_quality=90,
        frames_per_second=2.0,
        wanted=WantedMeasures(),
        lean=True,
        signals=True,
    )
    spent = _Spent()
    parts = {
        "pictures": spent.on(PictureSignals, "add"),
        "camera": spent.on(CameraMotion, "add"),
        "sound": spent.on(scan, "measure_sound"),
    }
    yield f"| file | {' | '.join(parts)} |"
    yield "|---|" + "---|" * len(parts)
    total, without = dict.fromkeys(parts, 0.0), 0.0
    for path in paths:
        spent.seconds.clear()
        began = time.process_time()
        for _frame in scan.scan_video(path, settings):
            pass
        rest = time.process_time() - began - sum(spent.seconds.values())
        without += rest
        for part, name in parts.items():
            total[part] += spent.seconds.get(name, 0.0)
        shares = (f"{spent.seconds.get(name, 0.0) / rest:.0%}" for name in parts.values())
        yield f"| {path.name} | {' | '.join(shares)} |"
    yield f"| all | {' | '.join(f'{seconds / without:.0%}' for seconds in total.values())} |"


class _Spent:
    """Counts the processor time of functions, in the thread that calls them."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    def on(self, owner: Any, name: str) -> str:
        call, label = getattr(owner, name), f"{owner.__name__}.{name}"

        def timed(*given: Any, **named: Any) -> Any:
            began = time.thread_time()
            try:
                return call(*given, **named)
            finally:
                spent = time.thread_time() - began
                self.seconds[label] = self.seconds.get(label, 0.0) + spent

        setattr(owner, name, timed)
        return label


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--seconds", type=float, default=12, help="of each file")
    parser.add_argument("--only", choices=["agreement", "cost"])
    given = parser.parse_args()
    paths = given.files or sorted(p for p in FOOTAGE.iterdir() if p.suffix in KINDS)
    if given.only != "cost":
        print(*compared(paths, given.seconds), sep="\n", flush=True)
    if given.only != "agreement":
        for line in cost(paths):
            print(line, flush=True)


if __name__ == "__main__":
    main()
