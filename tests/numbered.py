"""Footage with frame numbers in the pixels, so that every frame of a cut is known.

The number is encoded as black and white blocks in two rows at the top and two at the bottom,
readable after any lossy encoding. `render_numbered` writes a file; `numbers_of` reads one.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

BITS = 10
# The sound is silent except for bursts of a tone, one in the middle of every second.
BURST_AT, BURST_SECONDS, SOUND_RATE = 0.5, 0.1, 48000


def picture(number: int, size: tuple[int, int]) -> np.ndarray:
    """Frame `number`, RGB: two rows of blocks, the lower one inverted."""
    width, height = size
    image = np.full((height, width, 3), (90, 120, 60), np.uint8)
    image[height // 2 :, width // 2 :] = (150, 60, 40)
    block = width // BITS
    for bit in range(BITS):
        on = number >> bit & 1
        columns = slice(bit * block, (bit + 1) * block)
        image[: height // 4, columns] = 235 if on else 20
        image[height - height // 4 :, columns] = 20 if on else 235
    return image


def number_in(image: np.ndarray) -> int:
    """The number in an upright grey or RGB image."""
    grey = image if image.ndim == 2 else image.mean(axis=2)
    height, width = grey.shape
    block = width / BITS
    number = 0
    for bit in range(BITS):
        middle = slice(int(bit * block + block * 0.3), int(bit * block + block * 0.7))
        upper = grey[int(height * 0.05) : int(height * 0.2), middle].mean()
        lower = grey[int(height * 0.8) : int(height * 0.95), middle].mean()
        assert abs(upper - lower) > 60, "this picture carries no number"
        number |= int(upper > lower) << bit
    return number


def render_numbered(
    path: Path,
    count: int,
    *,
    rate: int = 25,
    size: tuple[int, int] = (200, 120),
    codec: str = "libx264",
    pixels: str = "yuv420p",
    uneven: bool = False,
    rotation: int = 0,
    audio: str | None = None,
    keyframes: int = 30,
    start_seconds: float = 0.0,
    options: dict[str, str] | None = None,
) -> list[float]:
    """Writes the file and returns the time of every frame.

    `uneven` makes every third frame last three times as long. With `rotation` pictures are stored
    rotated, and the header says how to rotate them back, in degrees counter-clockwise. `size` is
    as displayed.
    """
    time_base = Fraction(1, rate * 512)
    times: list[float] = []
    given = {
        "libx264": {"preset": "veryfast", "bf": "3"},
        "libvpx": {"deadline": "realtime", "cpu-used": "8"},
        "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8"},
    }.get(codec, {})
    with av.open(f"file:{path}", "w") as output:
        stream = output.add_stream(
            codec, rate=rate, options={"g": str(keyframes), **given, **(options or {})}
        )
        turns = rotation // 90
        stream.width, stream.height = size[::-1] if turns % 2 else size
        stream.pix_fmt = pixels
        # Some containers and codecs only support whole frames.
        plain = codec in ("mpeg4", "mpeg2video", "libsvtav1")
        stream.codec_context.time_base = Fraction(1, rate) if plain else time_base
        if "j" in pixels:
            stream.codec_context.color_range = 2
        stream.codec_context.bit_rate = 2_000_000 if codec != "libx264" else 0
        if rotation:
            stream.set_display_rotation(rotation)
        sound = output.add_stream(audio, rate=SOUND_RATE, layout="mono") if audio else None
        stamp = round(start_seconds / time_base)
        for number in range(count):
            image = np.ascontiguousarray(np.rot90(picture(number, size), -turns))
            frame = av.VideoFrame.from_ndarray(image, "rgb24")
            frame = frame.reformat(format=pixels)
            frame.pts, frame.time_base = (
                stamp // 512 if plain else stamp,
                (Fraction(1, rate) if plain else time_base),
            )
            times.append(float(stamp * time_base))
            stamp += 512 * (3 if uneven and number % 3 == 2 else 1)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
        if sound is not None:
            _add_bursts(output, sound, start_seconds, float(stamp * time_base))
    return times


def _add_bursts(output, sound, start_seconds: float, end_seconds: float) -> None:
    at = np.arange(round(start_seconds * SOUND_RATE), round(end_seconds * SOUND_RATE))
    within = (at / SOUND_RATE) % 1.0
    loud = (within >= BURST_AT) & (within < BURST_AT + BURST_SECONDS)
    samples = (np.sin(at / SOUND_RATE * 2 * np.pi * 1000) * 0.5 * loud).astype(np.float32)
    resampler = av.AudioResampler(
        format=sound.codec_context.format,
        layout="mono",
        rate=SOUND_RATE,
        frame_size=sound.codec_context.frame_size,
    )
    for begin in range(0, len(samples), 1024):
        part = samples[None, begin : begin + 1024]
        frame = av.AudioFrame.from_ndarray(part, format="fltp", layout="mono")
        frame.sample_rate = SOUND_RATE
        frame.pts, frame.time_base = int(at[0]) + begin, Fraction(1, SOUND_RATE)
        for made in resampler.resample(frame):
            output.mux(sound.encode(made))
    output.mux(sound.encode())


def frames_of(path: Path) -> list[tuple[float, np.ndarray]]:
    """Every frame's time and its upright grey picture."""
    found = []
    with av.open(f"file:{path}") as container:
        for frame in container.decode(video=0):
            grey = frame.reformat(format="gray").to_ndarray()
            found.append((frame.time, np.rot90(grey, round(frame.rotation / 90))))
    return found


def numbers_of(path: Path) -> list[int]:
    return [number_in(image) for _, image in frames_of(path)]


def bursts_of(path: Path) -> list[float]:
    """Start of each burst of sound, in seconds of the file."""
    samples, times = [], []
    with av.open(f"file:{path}") as container:
        for frame in container.decode(audio=0):
            values = frame.to_ndarray().astype(np.float32)
            if frame.format.name.startswith("s16"):
                values /= 32768
            mono = values.mean(axis=0)
            samples.append(mono)
            times.append(frame.time + np.arange(len(mono)) / frame.sample_rate)
    if not samples:
        return []
    level, time = np.abs(np.concatenate(samples)), np.concatenate(times)
    loud = time[level > 0.2]
    return loud[np.diff(loud, prepend=-1.0) > 0.3].tolist()
