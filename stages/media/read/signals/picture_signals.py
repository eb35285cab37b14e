"""Takes the pictures of a video and keeps, for each, what the signals of clips are made from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from clipmill.stages.media.read.picture import Picture
from clipmill.stages.media.read.planes import StoredLuma
from clipmill.stages.media.read.signals import bars, detail, light, movement, overlay
from clipmill.stages.media.read.signals.movement import Freezes, Planes

SAMPLE_SECONDS = 1.0
"""Between pictures whose light, colours, spatial information and bars are measured."""
OVERLAY_SECONDS = 0.5
"""Between pictures that are compared for what stays the same."""
DETAIL_SECONDS = 3.0
"""Between pictures that are looked at in full size for blocks, blur and noise."""
SOON_SECONDS = 0.25
"""The shortest wait, for a picture that may begin a shot."""
SETTLED_SECONDS = 1.0, 0.6
"""After that picture another is sampled, because a shot may begin with a transition that is no part
of its clip; detail, which costs most, is looked at only then, and sooner."""
DARK_LEVEL = 8.0
"""A shot may begin, too, where a picture is brighter than this and the one before isn't."""
JUMP = 8.0
"""A picture may begin a shot if its colours change by this many levels more than those before."""

EVERY_PICTURE = ("mean", "vmaf_motion", "temporal_information", "black", "white", "frozen", "flash")
SAMPLED = (
    "still",
    "low",
    "high",
    "shadows_clipped",
    "highlights_clipped",
    "saturation",
    "hue",
    "luminance",
    "colorfulness",
    "spatial_information",
)
FULL_SIZE = ("left", "top", "right", "bottom", "blockiness", "blur", "noise", "laplacian_variance")
"""The names in `scan_videos.signals`, whose lists run parallel to the pictures; docs/signals.md
says what they are."""


@dataclass
class _Seen:
    """What of a picture is compared with the next one."""

    planes: Planes
    blurred: np.ndarray
    mean: float
    grid: np.ndarray
    change: float = math.inf


class _Due:
    """Says of which pictures more is measured: after some seconds, and in each new shot."""

    def __init__(self, seconds: float, *, only_settled: bool = False) -> None:
        self._usual = seconds
        self._only_settled = only_settled
        self._last = self._next = -math.inf
        self._again = False

    def begin_part(self) -> None:
        """The next picture is the first after a gap."""
        self._last = self._next = -math.inf

    def begin_shot(self, seconds: float) -> None:
        wait = SETTLED_SECONDS[1] if self._only_settled else 0.0
        self._next = min(self._next, max(seconds + wait, self._last + SOON_SECONDS))
        self._again = not self._only_settled

    def __call__(self, seconds: float) -> bool:
        # Half a millisecond: times of pictures are rounded.
        if seconds < self._next - 0.0005:
            return False
        wait = min(self._usual, SETTLED_SECONDS[0]) if self._again else self._usual
        self._last, self._next, self._again = seconds, seconds + wait, False
        return True


class PictureSignals:
    """Observes the pictures of one video.

    Cheap numbers are kept of every picture; the others of some a second, and soon after each cut.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float | None]] = {name: [] for name in EVERY_PICTURE}
        self._samples: list[tuple[int, dict[str, float | None]]] = []
        self._overlays: list[dict[str, Any]] = []
        self._count = 0
        self._before: _Seen | None = None
        self._overlay: tuple[int, np.ndarray] | None = None
        self._frozen = Freezes(movement.FROZEN)
        self._still = Freezes(movement.STILL)
        self._still_part = 0.0
        self._sample = _Due(SAMPLE_SECONDS)
        self._sample_overlay = _Due(OVERLAY_SECONDS)
        self._look_at_detail = _Due(DETAIL_SECONDS, only_settled=True)
        self._dues = (self._sample, self._sample_overlay, self._look_at_detail)

    def interrupt(self) -> None:
        self._before = self._overlay = None
        self._frozen.reference = self._still.reference = None
        for due in self._dues:
            due.begin_part()

    def add(self, picture: Picture) -> None:
        planes = Planes(picture.luma, *picture.chroma)
        blurred = movement.blurred(planes.luma)
        grid = light.flash_grid(picture.tiny)
        now = _Seen(planes, blurred, cv2.mean(planes.luma)[0], grid)
        values = self._values
        values["mean"].append(now.mean)
        values["black"].append(light.black_share(planes.luma, now.mean))
        values["white"].append(light.white_share(planes.luma, now.mean))
        values["frozen"].append(self._frozen.add(planes))
        self._compare(now, picture.seconds)
        self._look_closer(picture, planes)
        self._before = now
        self._count += 1

    def finish(self) -> dict[str, Any]:
        for name in (*SAMPLED, *FULL_SIZE):
            self._values[name] = [None] * self._count
        for place, found in self._samples:
            for name, value in found.items():
                self._values[name][place] = value
        return {"signals": list(self._values.items()), "overlays": self._overlays}

    def _compare(self, now: _Seen, seconds: float) -> None:
        before, motion, change, flash = self._before, None, None, None
        if before is not None:
            motion = movement.vmaf_motion(now.blurred, before.blurred)
            change = movement.temporal_information(
                now.planes.luma, before.planes.luma, now.mean, before.mean
            )
            now.change, flash = light.flash(now.grid, before.grid)
            if now.change > before.change + JUMP or before.mean < DARK_LEVEL <= now.mean:
                for due in self._dues:
                    due.begin_shot(seconds)
        self._values["vmaf_motion"].append(motion)
        self._values["temporal_information"].append(change)
        self._values["flash"].append(flash)

    def _look_closer(self, picture: Picture, planes: Planes) -> None:
        found: dict[str, float | None] = {}
        if self._sample(picture.seconds):
            _add_sample(planes, picture.tiny, found)
            _add_bars(picture.full_luma, found)
        if self._sample_overlay(picture.seconds):
            part = picture.seconds // movement.STILL_PART_SECONDS
            if part != self._still_part:
                self._still.reference, self._still_part = None, part
            found["still"] = self._still.add(planes)
            self._add_overlay(planes.luma)
        if self._look_at_detail(picture.seconds):
            _add_detail(picture.full_luma, found)
        if found:
            self._samples.append((self._count, found))

    def _add_overlay(self, luma: np.ndarray) -> None:
        if self._overlay is not None:
            number, before = self._overlay
            bits = overlay.cells(luma, before)
            self._overlays.append({"first": number, "last": self._count, **bits})
        self._overlay = (self._count, luma)


def _add_sample(planes: Planes, tiny: np.ndarray, found: dict[str, float | None]) -> None:
    found |= vars(light.levels(planes.luma))
    found |= vars(light.colors(planes.blue, planes.red))
    found["luminance"] = light.luminance(tiny)
    found["colorfulness"] = light.colorfulness(tiny)
    found["spatial_information"] = detail.spatial_information(planes.luma)


def _add_bars(stored: StoredLuma | None, found: dict[str, float | None]) -> None:
    inside = stored and bars.edges(stored.plane, stored.code_of(bars.LIMIT))
    if inside:
        found |= inside._asdict()


def _add_detail(stored: StoredLuma | None, found: dict[str, float | None]) -> None:
    """Adds what is measured in full size; nothing of a picture that has no luma plane."""
    if stored is None:
        return
    part = detail.middle(stored.plane)
    found["blockiness"] = detail.blockiness(stored.plane)
    found["blur"] = detail.blur(part)
    noise = detail.noise(part)
    found["noise"] = None if noise is None else noise * stored.levels_per_code
    found["laplacian_variance"] = (
        detail.laplacian_variance(stored.plane) * stored.levels_per_code**2
    )
