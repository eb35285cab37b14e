"""The signals of clips: one number or word per clip from what a scan kept of its pictures.

docs/signals.md defines them. A signal that can't be given is null, and `signal_reasons` says why.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from clipmill.stages.clip_camera import CAMERA_SIGNALS, CAMERA_UNITS, camera_signals
from clipmill.stages.clip_parts import Part
from clipmill.stages.clip_sound import SOUND_SIGNALS, SOUND_UNITS, sound_signals

if TYPE_CHECKING:
    import numpy as np

CLIP_SIGNALS = pa.schema(
    [
        ("vmaf_motion", pa.float32()),
        ("vmaf_motion_max", pa.float32()),
        ("motion_jump", pa.float32()),
        ("still_share", pa.float32()),
        ("static_share", pa.float32()),
        ("shots_per_second", pa.float32()),
        ("temporal_information", pa.float32()),
        ("spatial_information", pa.float32()),
        ("luminance", pa.float32()),
        ("contrast", pa.float32()),
        ("shadows_clipped", pa.float32()),
        ("highlights_clipped", pa.float32()),
        ("black_share", pa.float32()),
        ("white_share", pa.float32()),
        ("flicker", pa.float32()),
        ("photosensitivity", pa.float32()),
        ("saturation", pa.float32()),
        ("colorfulness", pa.float32()),
        ("hue", pa.float32()),
        ("noise", pa.float32()),
        ("blockiness", pa.float32()),
        ("blur", pa.float32()),
        ("laplacian_variance", pa.float32()),
        ("bits_per_pixel", pa.float32()),
        ("bars", pa.string()),
        ("safe_left", pa.float64()),
        ("safe_top", pa.float64()),
        ("safe_right", pa.float64()),
        ("safe_bottom", pa.float64()),
        ("overlay_share", pa.float32()),
        *CAMERA_SIGNALS,
        *SOUND_SIGNALS,
        ("signal_reasons", pa.map_(pa.string(), pa.string())),
    ]
)
"""The columns that `split_clips.signals` adds to `clips`."""

SIGNAL_UNITS = {
    "vmaf_motion": "mean difference of blurred pictures, grey levels per frame",
    "vmaf_motion_max": "largest difference of blurred pictures, grey levels per frame",
    "motion_jump": "largest excess of that over what is near, grey levels per frame",
    "still_share": "share of the time that shows a still picture",
    "static_share": "share of the video's minutes that show a still picture",
    "shots_per_second": "shots within it, per second",
    "temporal_information": "mean deviation of the change between frames, grey levels",
    "spatial_information": "mean deviation of the gradient, grey levels",
    "luminance": "mean of weighted red, green and blue, 0 to 255",
    "contrast": "10th to 90th percentile of luma, grey levels",
    "shadows_clipped": "share of black pixels",
    "highlights_clipped": "share of white pixels",
    "black_share": "share of the time that shows black pictures",
    "white_share": "share of the time that shows white pictures",
    "flicker": "mean deviation of mean luma from its neighbours, grey levels",
    "photosensitivity": "largest change within a second, 1 is FFmpeg's limit",
    "saturation": "mean distance of chroma from grey, levels",
    "colorfulness": "Hasler and Süsstrunk's measure, levels",
    "hue": "median angle of chroma, degrees",
    "noise": "deviation of noise, grey levels",
    "blockiness": "how far steps at the edges of blocks stand out, about 1 without",
    "blur": "mean width of edges, pixels",
    "laplacian_variance": "variance of the Laplacian in full size",
    "bits_per_pixel": "bits of the video's packets per pixel and frame",
    "overlay_share": "share of the picture with edges that never change",
    **CAMERA_UNITS,
    **SOUND_UNITS,
}
"""What the numbers among them are, with their units, in the order of CLIP_SIGNALS."""

KEPT = ("signals", "overlays", "packet_bytes", "camera", "sound", "sound_problem")
"""The columns of scan_videos that they are made from."""

STILL_SECONDS = 0.5
"""freezedetect's `d`: what stays the same for a shorter time isn't still."""
BLACK_PICTURE = 0.98
"""blackframe's `amount`, as a share of the pixels."""

_STATIC_PART_SECONDS, _STATIC_SECONDS = 60.0, 50.0
_FROZEN, _STILL = 0.001, 0.05
# What lies this near is compared with, to find what stands out.
_NEAR_SECONDS = 0.5
# How the differences of two pictures grow with the number of frames between them: the medians over
# real footage, at 2 to 4 frames.
_MOTION_GROWTH, _CHANGE_GROWTH = 0.85, 0.6
_FLASH_PICTURES = 30
_LEAST_NEAR = 0.2
# Bars are of some width on both sides, about equal, and where they are in most pictures.
_LEAST_BAR, _UNEVEN_BARS, _SAME_EDGE, _STEADY_SHARE = 0.01, 0.02, 0.01, 0.5
# An overlay is told from the rest if that much of the rest has changed.
_LEAST_MOVING, _LEAST_OVERLAYS = 0.5, 2

_FEW_PICTURES = "it has too few pictures to compare"
_NOT_SAMPLED = "none of its pictures was sampled"
_NOT_IN_FULL = "none of its pictures was looked at in full size"
_NO_PLANE = "its file does not store luma and chroma as planes"


@dataclass
class _Found:
    """The signals of one clip, and why some are missing."""

    columns: dict[str, Any] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: float | str | None, reason: str) -> None:
        if value is None or (isinstance(value, float) and not math.isfinite(value)):
            self.columns[name] = None
            self.reasons[name] = reason
        else:
            self.columns[name] = value


class VideoSignals:
    """What a scan kept of one video for signals; gives those of its parts."""

    def __init__(
        self,
        row: dict[str, Any],
        kept: dict[str, pa.Scalar],
        cuts: Sequence[int],
        *,
        is_whole: bool,
    ) -> None:
        """`row` has the other columns of the scan, `cuts` are the frames that begin shots;
        `is_whole`: all of the video was read."""
        import numpy as np

        self._row, self._cuts = row, cuts
        values = _arrays(kept["signals"])
        # Of frames that were not decoded nothing is known.
        self._decoded = np.flatnonzero(np.isfinite(values["mean"]))
        self._values = {name: one[self._decoded] for name, one in values.items()}
        self._seconds = np.asarray(row["seconds"], np.float64)[self._decoded]
        self._numbers = np.asarray(row["frame_numbers"], np.int64)[self._decoded]
        self._overlays = kept["overlays"].as_py() or []
        self._camera = kept["camera"].as_py()
        self._sound = kept["sound"].as_py(), kept["sound_problem"].as_py()
        self._bytes = kept["packet_bytes"].as_py()
        self._static_share = self._static() if is_whole else None

    def of(self, part: Part) -> dict[str, Any]:
        """The columns of CLIP_SIGNALS for one clip."""
        import numpy as np

        found = _Found()
        first, last = np.searchsorted(self._decoded, (part.first, part.last)).tolist()
        pictures = slice(first, last)
        self._add_motion(part, pictures, found)
        self._add_light(part, pictures, found)
        self._add_colors(pictures, found)
        self._add_full_size(pictures, found)
        self._add_bits(part, found)
        self._add_bars(pictures, found)
        self._add_overlay(part, found)
        self._add_camera(part, found)
        for signal in sound_signals(*self._sound, part.start_seconds, part.end_seconds):
            found.add(*signal)
        return {**found.columns, "signal_reasons": found.reasons or None}

    def _sampled(self, name: str, pictures: slice) -> float | None:
        return self._over_time(self._values[name], pictures)

    def _over_time(self, values: np.ndarray, pictures: slice) -> float | None:
        """The mean of what was sampled: each value counts for the time until the next."""
        import numpy as np

        inside, seconds = values[pictures], self._seconds[pictures]
        known = np.flatnonzero(np.isfinite(inside))
        if not known.size:
            return None
        times = seconds[known]
        times[0] = seconds[0]
        lengths = np.maximum(np.diff(times, append=seconds[-1]), 1e-3)
        return _mean(inside[known], lengths)

    def _add_motion(self, part: Part, pictures: slice, found: _Found) -> None:
        import numpy as np

        # The difference at the first picture is that across the cut.
        later = slice(pictures.start + 1, pictures.stop)
        frames = np.maximum(np.diff(self._numbers[pictures]), 1).astype(float)
        motion = self._values["vmaf_motion"][later] / frames**_MOTION_GROWTH
        found.add("vmaf_motion", _mean(motion, frames), _FEW_PICTURES)
        found.add("vmaf_motion_max", _most(motion), _FEW_PICTURES)
        found.add("motion_jump", _jump(motion, self._seconds[later]), _FEW_PICTURES)
        change = self._values["temporal_information"][later] / frames**_CHANGE_GROWTH
        found.add("temporal_information", _mean(change, frames), _FEW_PICTURES)
        frozen = self._values["frozen"][pictures] <= _FROZEN
        still = _frozen_seconds(frozen, self._seconds[pictures], part.end_seconds, STILL_SECONDS)
        duration = part.end_seconds - part.start_seconds
        found.add("still_share", min(1.0, still / duration) if duration else None, _FEW_PICTURES)
        shots = 1 + sum(part.first < cut < part.last for cut in self._cuts)
        found.add("shots_per_second", shots / duration if duration else None, _FEW_PICTURES)
        found.add("static_share", self._static_share, "only given spans of its video were read")

    def _add_light(self, part: Part, pictures: slice, found: _Found) -> None:
        import numpy as np

        for name in ("luminance", "shadows_clipped", "highlights_clipped", "spatial_information"):
            found.add(name, self._sampled(name, pictures), _NOT_SAMPLED)
        contrast = self._values["high"] - self._values["low"]
        found.add("contrast", self._over_time(contrast, pictures), _NOT_SAMPLED)
        seconds = self._seconds[pictures]
        shown = np.maximum(np.diff(seconds, append=part.end_seconds), 0)
        for name in ("black", "white"):
            is_so = self._values[name][pictures] >= BLACK_PICTURE
            found.add(f"{name}_share", _mean(is_so.astype(float), shown), _FEW_PICTURES)
        flicker = _flicker(self._values["mean"][pictures], seconds, self._numbers[pictures])
        found.add("flicker", flicker, "too few of its pictures were decoded next to each other")
        later = slice(pictures.start + 1, pictures.stop)
        worst = _worst_flashes(self._values["flash"][later], self._numbers[later])
        found.add("photosensitivity", worst, _FEW_PICTURES)

    def _add_colors(self, pictures: slice, found: _Found) -> None:
        import numpy as np

        saturation = self._values["saturation"][pictures]
        found.add("saturation", self._sampled("saturation", pictures), _NOT_SAMPLED)
        found.add("colorfulness", self._sampled("colorfulness", pictures), _NOT_SAMPLED)
        angles = np.radians(self._values["hue"][pictures])
        known = np.isfinite(angles)
        if known.any():
            turned = (saturation[known] * np.exp(1j * angles[known])).sum()
            found.add("hue", float(np.degrees(np.angle(turned)) % 360), _NOT_SAMPLED)
        else:
            sampled = np.isfinite(saturation).any()
            found.add("hue", None, "it is grey" if sampled else _NOT_SAMPLED)

    def _add_full_size(self, pictures: slice, found: _Found) -> None:
        missing = self._missing_in_full(pictures)
        for name, reason in (
            ("noise", "its pictures are too small"),
            ("blockiness", "its pictures are too small"),
            ("blur", "its pictures have no edges"),
            ("laplacian_variance", _NOT_IN_FULL),
        ):
            found.add(name, self._sampled(name, pictures), missing or reason)

    def _missing_in_full(self, pictures: slice) -> str | None:
        """Why nothing of pictures was measured in full size; None if something was."""
        import numpy as np

        if np.isfinite(self._values["laplacian_variance"][pictures]).any():
            return None
        is_any = np.isfinite(self._values["laplacian_variance"]).any()
        return _NOT_IN_FULL if is_any else _NO_PLANE

    def _add_bits(self, part: Part, found: _Found) -> None:
        pixels = self._row["width"] * self._row["height"]
        numbers = self._row["frame_numbers"]
        frames = numbers[part.last - 1] - numbers[part.first] + 1
        bits = None
        if self._bytes is not None and pixels:
            bits = 8 * sum(self._bytes[part.first : part.last]) / (pixels * frames)
        found.add("bits_per_pixel", bits, "packets were not counted: spans, or exact mode")

    def _add_bars(self, pictures: slice, found: _Found) -> None:
        import numpy as np

        names = ("safe_left", "safe_top", "safe_right", "safe_bottom")
        sides = np.array([self._values[n][pictures] for n in ("left", "top", "right", "bottom")])
        sides = sides[:, np.isfinite(sides[0])]
        if not sides.size:
            reason = self._missing_in_full(pictures) or "its pictures are black"
            for name in ("bars", *names):
                found.add(name, None, reason)
            return
        left, right = _inside(sides[0], sides[2])
        top, bottom = _inside(sides[1], sides[3])
        is_tall, is_wide = right - left < 1, bottom - top < 1
        kind = {
            (False, False): "none",
            (False, True): "letterbox",
            (True, False): "pillarbox",
            (True, True): "window box",
        }[is_tall, is_wide]
        found.add("bars", kind, _NOT_IN_FULL)
        for name, value in zip(names, (left, top, right, bottom), strict=True):
            found.add(name, value, _NOT_IN_FULL)

    def _add_overlay(self, part: Part, found: _Found) -> None:
        inside = [
            one for one in self._overlays if part.first <= one["first"] and one["last"] < part.last
        ]
        if len(inside) < _LEAST_OVERLAYS:
            found.add("overlay_share", None, "it is too short to tell what stays the same")
            return
        box = [found.columns[f"safe_{side}"] for side in ("left", "top", "right", "bottom")]
        share = _overlay_share(inside, None if box[0] is None else box)
        found.add("overlay_share", share, "too little of it moves to tell what stays the same")

    def _add_camera(self, part: Part, found: _Found) -> None:
        size = self._row["width"], self._row["height"]
        for signal in camera_signals(self._camera, part.start_seconds, part.end_seconds, size):
            found.add(*signal)

    def _static(self) -> float:
        """The share of a video's minutes that stay the same, as FineVideo counts them."""
        import numpy as np

        # It is only compared in pictures that are sampled.
        sampled = np.isfinite(self._values["luminance"])
        frozen = self._values["still"][sampled] <= _STILL
        seconds = self._seconds[sampled]
        parts = seconds // _STATIC_PART_SECONDS
        end = self._row["end_seconds"]
        counted = np.unique(parts)
        static = 0
        for number in counted:
            inside = parts == number
            until = min(end, (number + 1) * _STATIC_PART_SECONDS)
            static += _frozen_seconds(frozen[inside], seconds[inside], until, _STATIC_SECONDS) > 0
        return static / len(counted)


def _arrays(kept: pa.Scalar) -> dict[str, np.ndarray]:
    """A map of lists as arrays, with NaN for null."""
    entries = kept.values
    names = entries.field(0).to_pylist()
    return {
        name: entries.field(1)[number].values.to_numpy(zero_copy_only=False)
        for number, name in enumerate(names)
    }


def _mean(values: np.ndarray, weights: np.ndarray | None = None) -> float | None:
    import numpy as np

    known = np.isfinite(values)
    if not known.any():
        return None
    if weights is None:
        return float(values[known].mean())
    total = float(weights[known].sum())
    return float((values[known] * weights[known]).sum()) / total if total > 0 else None


def _most(values: np.ndarray) -> float | None:
    import numpy as np

    known = values[np.isfinite(values)]
    return float(known.max()) if known.size else None


def _jump(motion: np.ndarray, seconds: np.ndarray) -> float | None:
    """The most by which motion exceeds the median of what is near in time."""
    import numpy as np

    known = np.isfinite(motion)
    motion, seconds = motion[known], seconds[known]
    if motion.size < 3:
        return None
    starts = np.searchsorted(seconds, seconds - _NEAR_SECONDS)
    ends = np.searchsorted(seconds, seconds + _NEAR_SECONDS, side="right")
    # Only what exceeds all others by far needs its median: few pictures.
    highest = np.argsort(motion)[-_MOST_JUMPS:]
    return max(
        float(motion[at] - np.median(motion[starts[at] : ends[at]])) for at in highest.tolist()
    )


_MOST_JUMPS = 50


def _frozen_seconds(
    frozen: np.ndarray, seconds: np.ndarray, end_seconds: float, least: float
) -> float:
    """The time in which pictures stay the same for at least so many seconds."""
    import numpy as np

    if not len(seconds):
        return 0.0
    changes = ~frozen
    changes[0] = True
    lengths = np.diff(seconds[changes], append=end_seconds)
    return float(lengths[lengths >= least - 1e-9].sum())


def _flicker(means: np.ndarray, seconds: np.ndarray, numbers: np.ndarray) -> float | None:
    """The mean distance of a picture's mean from the line between its neighbours' means.

    Only frames whose neighbours were decoded count; None if these are few.
    """
    import numpy as np

    if len(means) < 3:
        return None
    are_near = numbers[2:] - numbers[:-2] == 2
    if are_near.mean() < _LEAST_NEAR:
        return None
    before, after = seconds[1:-1] - seconds[:-2], seconds[2:] - seconds[1:-1]
    share = before / np.maximum(before + after, 1e-9)
    line = means[:-2] + (means[2:] - means[:-2]) * share
    return _mean(np.abs(means[1:-1] - line)[are_near])


def _worst_flashes(flashes: np.ndarray, numbers: np.ndarray) -> float | None:
    """The largest sum of differences, of which those of the last 29 frames count less and less."""
    import numpy as np

    known = np.isfinite(flashes)
    if not known.any():
        return None
    numbers = numbers[known] - numbers[known][0]
    dense = np.zeros(int(numbers[-1]) + 1)
    dense[numbers] = flashes[known]
    weights = np.arange(_FLASH_PICTURES, 0, -1) / _FLASH_PICTURES
    return float(np.convolve(dense, weights)[: len(dense)].max())


def _inside(low: np.ndarray, high: np.ndarray) -> tuple[float, float]:
    """The picture's extent along one axis; all of it if its dark edges are not bars."""
    import numpy as np

    first, last = float(low.min()), float(high.max())
    is_even = abs(first - (1 - last)) <= _UNEVEN_BARS
    is_wide = min(first, 1 - last) >= _LEAST_BAR
    steady = np.mean((low <= first + _SAME_EDGE) & (high >= last - _SAME_EDGE))
    return (first, last) if is_even and is_wide and steady >= _STEADY_SHARE else (0.0, 1.0)


def _overlay_share(pairs: Sequence[dict[str, Any]], box: Sequence[float] | None) -> float | None:
    """The share of cells with an edge that never changed; None if too few others changed."""
    import numpy as np

    columns = pairs[0]["columns"]
    pairs = [pair for pair in pairs if pair["columns"] == columns]

    def bits(name: str) -> np.ndarray:
        rows = [np.frombuffer(pair[name], np.uint8) for pair in pairs]
        unpacked = np.unpackbits(np.array(rows), axis=1)
        count = unpacked.shape[1] // columns * columns
        return unpacked[:, :count].reshape(len(pairs), -1, columns).astype(bool)

    changed = np.asarray(bits("changed").any(axis=0))
    edges = np.asarray(bits("edges").all(axis=0))
    if box is not None:
        rows = len(changed)
        top, bottom = round(box[1] * rows), round(box[3] * rows)
        left, right = round(box[0] * columns), round(box[2] * columns)
        changed, edges = changed[top:bottom, left:right], edges[top:bottom, left:right]
    if not changed.size or changed.mean() < _LEAST_MOVING:
        return None
    return float((edges & ~changed).mean())
