"""Tone-maps high dynamic range to what models and ordinary screens expect: BT.709, 8 bits.

HDR10 (PQ) and HLG pictures look grey and flat if treated as ordinary ones. Here their values are
converted to linear light, in BT.709's primaries. Light below 30 nits is unchanged, 100 nits is
about an ordinary screen's white, and anything brighter is compressed up to the film's peak with a
Möbius curve, as in FFmpeg's `zscale=npl=100` and `tonemap=mobius`.
"""

from __future__ import annotations

import functools
import struct
from dataclasses import dataclass
from typing import Any

import av
import cv2
import numpy as np
from av.sidedata.sidedata import Type

from clipmill.stages.media.read.orientation import side_data

# Numbers of transfers and primaries in H.273 and FFmpeg.
_PQ, _HLG, _BT2020 = 16, 18, 9
_WHITE_NITS = 100.0
_KNEE = 0.3
_SCREEN_GAMMA = 2.4  # BT.1886
_STEPS = 4095
_HLG_PEAK_NITS, _HLG_GAMMA = 1000.0, 1.2
_PQ_PEAK_NITS = 10_000.0
# The peak if a film doesn't declare one: most are graded on such screens.
_USUAL_PEAK_NITS = 1000.0
_BT2020_LUMA = (0.2627, 0.6780, 0.0593)
_TO_BT709 = ((1.6605, -0.5876, -0.0728), (-0.1246, 1.1329, -0.0083), (-0.0182, -0.1006, 1.1187))


@dataclass(frozen=True)
class ToneMap:
    """Converts the pictures of one film; `peak_nits` is its brightest light."""

    is_hlg: bool
    has_wide_primaries: bool
    peak_nits: float

    def __call__(self, image: np.ndarray) -> np.ndarray:
        """Converts a BGR image of 8 or 16 bits, with full-range values, to 8-bit BGR."""
        light = _light(self.is_hlg, np.iinfo(image.dtype).max)[image]
        if self.is_hlg:
            # HLG encodes the camera's light; screens raise it by the brightness of each pixel.
            luma = cv2.transform(light, np.array([_BT2020_LUMA[::-1]], np.float32))
            light *= cv2.pow(luma, _HLG_GAMMA - 1)[..., None] * (_HLG_PEAK_NITS / _WHITE_NITS)
        if self.has_wide_primaries:
            light = cv2.transform(light, np.array(_TO_BT709, np.float32)[::-1, ::-1])
        # All channels of a pixel by the same factor, to preserve its hue.
        blue, green, red = cv2.split(light)
        least: Any = 1e-6  # a number is as good as an image, but OpenCV's types don't say so
        brightest = cv2.max(cv2.max(cv2.max(blue, green), red), least)
        light *= (_rolled_off(brightest, self.peak_nits / _WHITE_NITS) / brightest)[..., None]
        roots = cv2.sqrt(np.clip(light, 0.0, 1.0))
        codes: np.ndarray = _codes()[(roots * _STEPS + 0.5).astype(np.uint16)]
        return codes


# As `ffprobe` prints them; unspecified values have no name.
_TRANSFERS = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "linear",
    9: "log100",
    10: "log316",
    11: "iec61966-2-4",
    12: "bt1361e",
    13: "iec61966-2-1",
    14: "bt2020-10",
    15: "bt2020-12",
    _PQ: "smpte2084",
    17: "smpte428",
    _HLG: "arib-std-b67",
}
_PRIMARIES = {
    1: "bt709",
    4: "bt470m",
    5: "bt470bg",
    6: "smpte170m",
    7: "smpte240m",
    8: "film",
    _BT2020: "bt2020",
    10: "smpte428",
    11: "smpte431",
    12: "smpte432",
    22: "ebu3213",
}


def colours_of(frame: av.VideoFrame) -> dict[str, str | None]:
    """A frame's colour metadata, as columns of `videos`."""
    return {
        "pixel_format": frame.format.name,
        "color_transfer": _TRANSFERS.get(frame.color_trc),
        "color_primaries": _PRIMARIES.get(frame.color_primaries),
    }


def tone_map_of(frame: av.VideoFrame) -> ToneMap | None:
    """The tone mapping for the film that begins with this frame; None if it isn't HDR."""
    if frame.color_trc not in (_PQ, _HLG):
        return None
    is_hlg = frame.color_trc == _HLG
    peak = _HLG_PEAK_NITS if is_hlg else _peak_nits(frame)
    return ToneMap(is_hlg, frame.color_primaries == _BT2020, peak)


def _peak_nits(frame: av.VideoFrame) -> float:
    """The brightest light of the film in its metadata: its own, else its screen's."""
    peak = 0.0
    level = side_data(frame, Type.CONTENT_LIGHT_LEVEL)
    if level is not None:
        (peak,) = struct.unpack_from("=I", level)
    screen = side_data(frame, Type.MASTERING_DISPLAY_METADATA)
    if not peak and screen is not None:
        # After the primaries, the white point and the darkest light; one fraction each.
        *_, above, below, _, has_light = struct.unpack_from("=24i", screen)
        peak = above / below if has_light and below else 0.0
    return min(max(peak or _USUAL_PEAK_NITS, _WHITE_NITS), _PQ_PEAK_NITS)


@functools.cache
def _light(is_hlg: bool, most: int) -> np.ndarray:
    """Light by pixel value: for PQ the screen's, where 1 is an ordinary white; for HLG the
    camera's."""
    code = np.arange(most + 1, dtype=np.float64) / most
    if is_hlg:
        a, b, c = 0.17883277, 0.28466892, 0.55991073
        return np.where(code <= 0.5, code**2 / 3, (np.exp((code - c) / a) + b) / 12).astype(
            np.float32
        )
    root = code ** (32 / 2523)
    light = np.maximum(root - 0.8359375, 0) / (18.8515625 - 18.6875 * root)
    return (light ** (16384 / 2610) * (_PQ_PEAK_NITS / _WHITE_NITS)).astype(np.float32)


@functools.cache
def _codes() -> np.ndarray:
    """Pixel values of an ordinary screen by the square root of light; a table, because powers are
    slow."""
    roots = np.arange(_STEPS + 1) / _STEPS
    return np.rint(255 * roots ** (2 / _SCREEN_GAMMA)).astype(np.uint8)


def _rolled_off(light: np.ndarray, peak: float) -> np.ndarray:
    """Compresses `light` up to `peak` to at most 1."""
    if peak <= 1:
        return np.asarray(np.minimum(light, 1))
    a = -(_KNEE**2) * (peak - 1) / (_KNEE**2 - 2 * _KNEE + peak)
    b = (_KNEE**2 - 2 * _KNEE * peak + peak) / (peak - 1)
    factor = (b**2 + 2 * b * _KNEE + _KNEE**2) / (b - a)
    curve = factor * (light + a) / (light + b)
    return np.minimum(np.where(light <= _KNEE, light, curve), 1)
