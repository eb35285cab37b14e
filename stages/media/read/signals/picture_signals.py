"""Takes the pictures of a video and keeps, for each, what the signals of clips are made from."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from clipmill.stages.media.read.picture import Picture
from clipmill.stages.media.read.planes import StoredLuma
from clipmill.stages.media.read.signals import bars, detail, light, movement, overlay
from clipmill.stages.media.read.signals.movement import Freezes, Planes

SAMPLE_SECONDS = 0.25
"""Between pictures whose light, colours and spatial information are measured."""
OVERLAY_SECONDS = 0.5
FULL_SIZE_SECONDS = 2.0
"""Between pictures that are looked at in full size."""
SOON_SECONDS = 0.25
"""The wait after a picture that may begin a shot."""
JUMP = 8.0
"""The rise of VMAF motion with which a picture may begin a shot."""

EVERY_PICTURE = (
    "vmaf_motion",
    "temporal_information",
    "mean",
    "black",
    "white",
    "frozen",
    "still",
    "flash",
)
SAMPLED = (
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
NAMES = (*EVERY_PICTURE, *SAMPLED, *FULL_SIZE)
"""What `scan_videos.signals` maps to lists that run parallel to `seconds`; docs/signals.md."""


@dataclass
class _Seen:
    """What of a picture is compared with the next one."""

    planes: Planes
    blurred: np.ndarray
    mean: float
    grid: np.ndarray
    motion: float = math.inf


class _Due:
    """Whether another picture should be looked at: after some seconds, and soon in a new shot."""

    def __init__(self, seconds: float) -> None:
        self._usual = self._wait = seconds
        self._last: float | None = None

    def begin_shot(self) -> None:
        self._wait = min(self._usual, SOON_SECONDS)

    def __call__(self, seconds: float) -> bool:
        # Half a millisecond: times of pictures are rounded.
        if self._last is not None and 0 <= seconds - self._last < self._wait - 0.0005:
            return False
        self._last, self._wait = seconds, self._usual
        return True


class PictureSignals:
    """Observes the pictures of one video.

    Cheap numbers are kept of every picture; the others of some a second, and soon after each cut.
    """

    def __init__(self) -> None:
        self._values: dict[str, list[float | None]] = {name: [] for name in NAMES}
        self._overlays: list[dict[str, Any]] = []
        self._count = 0
        self._before: _Seen | None = None
        self._overlay: tuple[int, np.ndarray] | None = None
        self._frozen = Freezes(movement.FROZEN)
        self._still = Freezes(movement.STILL)
        self._still_part = 0.0
        self._sample = _Due(SAMPLE_SECONDS)
        self._sample_overlay = _Due(OVERLAY_SECONDS)
        self._sample_full_size = _Due(FULL_SIZE_SECONDS)

    def interrupt(self) -> None:
        self._before = self._overlay = None
        self._frozen.reference = self._still.reference = None
        self._begin_shot()

    def add(self, picture: Picture) -> None:
        planes = Planes(picture.luma, *picture.chroma)
        now = _Seen(
            planes,
            movement.blurred(planes.luma),
            cv2.mean(planes.luma)[0],
            light.flash_grid(picture.tiny),
        )
        found: dict[str, float | None] = {
            "mean": now.mean,
            "black": light.black_share(planes.luma, now.mean),
            "white": light.white_share(planes.luma, now.mean),
        }
        self._compare(now, found)
        self._freeze(picture.seconds, planes, found)
        if self._sample(picture.seconds):
            _add_sample(planes, picture.tiny, found)
        if self._sample_overlay(picture.seconds):
            self._add_overlay(planes.luma)
        if self._sample_full_size(picture.seconds):
            _add_full_size(picture.full_luma, found)
        for name, values in self._values.items():
            values.append(found.get(name))
        self._before = now
        self._count += 1

    def finish(self) -> dict[str, Any]:
        return {"signals": list(self._values.items()), "overlays": self._overlays}

    def _begin_shot(self) -> None:
        for due in (self._sample, self._sample_overlay, self._sample_full_size):
            due.begin_shot()

    def _compare(self, now: _Seen, found: dict[str, float | None]) -> None:
        before = self._before
        if before is None:
            return
        motion = movement.vmaf_motion(now.blurred, before.blurred)
        found["vmaf_motion"] = now.motion = motion
        found["temporal_information"] = movement.temporal_information(
            now.planes.luma, before.planes.luma, now.mean, before.mean
        )
        found["flash"] = light.flash(now.grid, before.grid)
        if motion > before.motion + JUMP:
            self._begin_shot()

    def _freeze(self, seconds: float, planes: Planes, found: dict[str, float | None]) -> None:
        found["frozen"] = self._frozen.add(planes)
        part = seconds // movement.STILL_PART_SECONDS
        if part != self._still_part:
            self._still.reference, self._still_part = None, part
        found["still"] = self._still.add(planes)

    def _add_overlay(self, luma: np.ndarray) -> None:
        if self._overlay is not None:
            number, before = self._overlay
            bits = overlay.cells(luma, before)
            self._overlays.append({"first": number, "last": self._count, **bits})
        self._overlay = (self._count, luma)


def _add_sample(planes: Planes, tiny: np.ndarray, found: dict[str, float | None]) -> None:
    found |= dataclasses.asdict(light.levels(planes.luma))
    found |= dataclasses.asdict(light.colors(planes.blue, planes.red))
    found["luminance"] = light.luminance(tiny)
    found["colorfulness"] = light.colorfulness(tiny)
    found["spatial_information"] = detail.spatial_information(planes.luma)


def _add_full_size(stored: StoredLuma | None, found: dict[str, float | None]) -> None:
    """Adds what is measured in full size; nothing of a picture that has no luma plane."""
    if stored is None:
        return
    plane = stored.plane
    inside = bars.edges(plane, stored.code_of(bars.LIMIT))
    if inside is not None:
        found |= inside._asdict()
    part = detail.middle(plane)
    found["blockiness"] = detail.blockiness(part)
    found["blur"] = detail.blur(part)
    noise = detail.noise(part)
    found["noise"] = None if noise is None else noise * stored.levels_per_code
    found["laplacian_variance"] = detail.laplacian_variance(plane) * stored.levels_per_code**2
