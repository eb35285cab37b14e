"""Sounds for tests: tones, and a voice that speech detectors take for speech."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1"}
# The first three formants of a few vowels, Hz.
_VOWELS = ((730, 1090, 2440), (270, 2290, 3010), (300, 870, 2240), (530, 1840, 2480))
_WIDTHS = (80, 90, 120)
_SYLLABLE_SECONDS = 0.22


def tone(
    decibels: Sequence[float], seconds: float, rate: int = 48000, hertz: float = 1000.0
) -> np.ndarray:
    """A sine with these peak levels, one per channel."""
    times = np.arange(round(seconds * rate)) / rate
    wave = np.sin(2 * np.pi * hertz * times)
    return np.stack([10 ** (level / 20) * wave for level in decibels])


def write(path: Path, *parts: tuple[float, np.ndarray], rate: int = 48000, codec: str = "") -> Path:
    """A file with these samples at these seconds, [channel, sample]."""
    channels = parts[0][1].shape[0]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec or "pcm_f32le", rate=rate, layout=LAYOUTS[channels])
        for seconds, samples in parts:
            for at in range(0, samples.shape[1], 1024):
                piece = np.ascontiguousarray(samples[:, at : at + 1024], np.float32)
                frame = av.AudioFrame.from_ndarray(piece, "fltp", LAYOUTS[channels])
                frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
                frame.pts = round(seconds * rate) + at
                if not codec:
                    frame = _packed(frame)
                container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def _packed(frame: av.AudioFrame) -> av.AudioFrame:
    samples = np.ascontiguousarray(frame.to_ndarray().T.reshape(1, -1))
    packed = av.AudioFrame.from_ndarray(samples, "flt", frame.layout.name)
    packed.sample_rate, packed.time_base, packed.pts = frame.sample_rate, frame.time_base, frame.pts
    return packed


def voice(seconds: float, rate: int = 16000, *, seed: int = 0) -> np.ndarray:
    """Babble: a syllable of a vowel after another, each after a little noise."""
    random = np.random.default_rng(seed)
    whole = round(seconds * rate)
    parts = [np.zeros(0)]
    while (left := whole - sum(map(len, parts))) > 0:
        length = round(_SYLLABLE_SECONDS * random.uniform(0.8, 1.3) * rate)
        parts.append(_syllable(min(left, length), rate, random))
    sound = np.concatenate(parts)
    return (0.5 * sound / np.abs(sound).max()).astype(np.float32)


def _syllable(samples: int, rate: int, random: np.random.Generator) -> np.ndarray:
    times = np.arange(samples) / rate
    pitch = random.uniform(100, 140) * (1 - 0.15 * times / max(times[-1], 1e-3))
    phase = np.cumsum(pitch) / rate
    pulses = np.diff(np.floor(phase), prepend=0.0)
    formants = _VOWELS[random.integers(len(_VOWELS))]
    sound = sum(
        (0.6**n) * _resonance(pulses, f, w, rate)
        for n, (f, w) in enumerate(zip(formants, _WIDTHS, strict=True))
    )
    consonant = samples // 6
    envelope = np.sin(np.pi * np.linspace(0, 1, samples)) ** 0.5
    sound = np.asarray(sound) * envelope
    sound[:consonant] = 0.1 * np.abs(sound).max() * random.standard_normal(consonant)
    return sound


def _resonance(source: np.ndarray, hertz: float, width: float, rate: int) -> np.ndarray:
    """The source through a resonance: a sum of decaying waves."""
    length = round(0.05 * rate)
    times = np.arange(length) / rate
    wave = np.exp(-np.pi * width * times) * np.sin(2 * np.pi * hertz * times)
    return np.convolve(source, wave)[: len(source)]
