"""The loudness, peaks, silence and zero crossings of clips, against tones and FFmpeg's filters."""

from __future__ import annotations

import functools
from pathlib import Path

import av
import av.filter
import numpy as np
import pytest

from clipmill.stages.clip_sound import SOUND_SIGNALS, sound_signals
from clipmill.stages.media.read.signals.sound_levels import measure_sound
from tests.media import SHARED_VIDEOS, cached
from tests.scanning import run
from tests.sounds import tone, write


def signals_of(
    path: Path, start: float = 0.0, end: float = 1e9
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Values and reasons of a clip."""
    found = measure_sound(path, None, 0.0)
    values, reasons = {}, {}
    for name, value, reason in sound_signals(found["sound"], found["sound_problem"], start, end):
        values[name] = value
        if value is None:
            reasons[name] = reason
    assert set(values) == set(SOUND_SIGNALS.names)
    return values, reasons


@functools.cache
def by_ffmpeg(path: Path) -> dict[str, float]:
    """What FFmpeg's own filters print for a whole file."""
    with av.open(str(path)) as container:
        stream = container.streams.best("audio")
        graph = av.filter.Graph()
        filters = [
            graph.add_abuffer(template=stream),
            graph.add("astats", "metadata=1"),
            graph.add("ebur128", "metadata=1:framelog=quiet"),
            graph.add("abuffersink"),
        ]
        graph.link_nodes(*filters).configure()
        told: dict[str, str] = {}

        def pull() -> None:
            while True:
                try:
                    told.update(filters[-1].pull().metadata)
                except (BlockingIOError, EOFError):
                    return

        seconds = 0.0
        for frame in container.decode(stream):
            seconds += frame.samples / frame.sample_rate
            filters[0].push(frame)
            pull()
        filters[0].push(None)
        pull()
        crossings = [
            float(told[f"lavfi.astats.{channel}.Zero_crossings"])
            for channel in range(1, stream.layout.nb_channels + 1)
        ]
        return {
            "loudness": float(told["lavfi.r128.I"]),
            "sound_peak": float(told["lavfi.astats.Overall.Peak_level"]),
            "zero_crossings": sum(crossings) / len(crossings) / seconds,
        }


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
@pytest.mark.parametrize(
    ("decibels", "loudness"),
    [
        ((-23, -23), -23.0),
        ((-33, -33), -33.0),
        ((-20,), -23.0),
        # Of 5.1 the low-frequency channel doesn't count, and the surround channels do more.
        ((-28, -28, -24, -10, -30, -30), -23.0),
    ],
)
def test_the_test_tones_of_tech_3341(decibels, loudness, rate, tmp_path):
    path = write(tmp_path / "tone.mkv", (0.0, tone(decibels, 2.0, rate)), rate=rate)
    values, _ = signals_of(path)
    assert values["loudness"] == pytest.approx(loudness, abs=0.1)
    assert values["sound_peak"] == pytest.approx(max(decibels), abs=0.1)
    assert values["zero_crossings"] == pytest.approx(2000, rel=0.01)
    assert values["silence_share"] == 0


def test_quiet_parts_are_gated_and_each_clip_has_its_own_loudness(tmp_path):
    quiet, loud = tone((-36, -36), 2.0), tone((-23, -23), 12.0)
    path = write(tmp_path / "parts.mkv", (0.0, np.hstack((quiet, loud, quiet))))
    assert signals_of(path)[0]["loudness"] == pytest.approx(-23.0, abs=0.15)
    assert signals_of(path, 2.0, 14.0)[0]["loudness"] == pytest.approx(-23.0, abs=0.1)
    assert signals_of(path, 0.0, 2.0)[0]["loudness"] == pytest.approx(-36.0, abs=0.1)
    assert signals_of(path, 14.3, 16.0)[0]["sound_peak"] == pytest.approx(-36.0, abs=0.1)


def test_silence_has_a_share_and_no_loudness(tmp_path):
    nothing = np.zeros((2, 96000))
    path = write(tmp_path / "silent.mkv", (0.0, np.hstack((tone((-20, -20), 2.0), nothing))))
    assert signals_of(path)[0]["silence_share"] == pytest.approx(0.5, abs=0.001)
    assert signals_of(path, 1.0, 3.5)[0]["silence_share"] == pytest.approx(0.6, abs=0.001)
    values, reasons = signals_of(path, 2.5, 4.0)
    assert values == {
        "loudness": None,
        "sound_peak": None,
        "silence_share": 1.0,
        "zero_crossings": 0.0,
    }
    assert set(reasons.values()) == {"it is silent"}


def test_sound_that_starts_late_and_has_a_gap(tmp_path):
    path = write(tmp_path / "gap.mkv", (1.0, tone((-23, -23), 2.0)), (5.0, tone((-33, -33), 2.0)))
    found = measure_sound(path, None, 10.0)["sound"]
    assert [(s["start_seconds"], s["end_seconds"]) for s in found] == [
        (pytest.approx(11.0, abs=0.002), pytest.approx(13.0, abs=0.002)),
        (pytest.approx(15.0, abs=0.002), pytest.approx(17.0, abs=0.002)),
    ]
    assert signals_of(path, 0.0, 3.0)[0]["loudness"] == pytest.approx(-23.0, abs=0.1)
    assert signals_of(path, 4.0, 9.0)[0]["loudness"] == pytest.approx(-33.0, abs=0.1)
    for start, end in ((0.0, 1.0), (3.1, 4.9), (8.0, 9.0)):
        values, reasons = signals_of(path, start, end)
        assert set(values.values()) == {None}
        assert "nothing at that time" in reasons["loudness"]
    values, reasons = signals_of(path, 2.8, 4.0)
    assert values["loudness"] is None
    assert "less than 0.4 s" in reasons["loudness"]
    assert values["sound_peak"] == pytest.approx(-23.0, abs=0.1)


def test_only_given_spans_are_read(tmp_path):
    path = write(tmp_path / "spans.mkv", (0.0, tone((-23, -23), 6.0)))
    found = measure_sound(path, [(4.0, None), (1.0, 2.0), (1.5, 2.5)], 0.0)["sound"]
    assert [(s["start_seconds"], s["end_seconds"]) for s in found] == [
        (pytest.approx(1.0, abs=0.05), pytest.approx(2.5, abs=0.05)),
        (pytest.approx(4.0, abs=0.05), pytest.approx(6.0, abs=0.05)),
    ]


def test_broken_sound_costs_its_own_time_only(tmp_path):
    path = write(tmp_path / "broken.mp4", (0.0, tone((-23, -23), 6.0)), codec="aac")
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size, float(p.pts * p.time_base)) for p in container.demux() if p.size]
    data = bytearray(path.read_bytes())
    for pos, size, seconds in packets:
        if 2.0 <= seconds < 3.0:
            data[pos : pos + size] = b"\xff" * size
    path.write_bytes(data)
    first, *others = measure_sound(path, None, 0.0)["sound"]
    assert first["end_seconds"] == pytest.approx(2.0, abs=0.1)
    assert others[-1]["start_seconds"] == pytest.approx(3.0, abs=0.1)
    assert signals_of(path, 3.2, 6.0)[0]["loudness"] == pytest.approx(-23.0, abs=0.2)
    for pos, size, _ in packets:
        data[pos : pos + size] = b"\xff" * size
    path.write_bytes(data)
    values, reasons = signals_of(path)
    assert set(values.values()) == {None}
    assert "cannot be decoded" in reasons["loudness"]


def test_a_file_without_sound_says_so():
    values, reasons = signals_of(cached()[0])
    assert set(values.values()) == {None}
    assert "no sound track" in reasons["loudness"]


def test_clips_of_a_file_have_their_sound(tmp_path):
    path = cached(audio=True)[0]
    clips = run(path, tmp_path, signals=True)["split_clips"]
    assert len(clips) == 3
    for clip in clips:
        # A sine of full scale in one channel.
        assert clip["loudness"] == pytest.approx(-3.9, abs=0.5)
        assert clip["sound_peak"] == pytest.approx(-1.5, abs=2)
        assert clip["zero_crossings"] == pytest.approx(2 * 16000 / (2 * np.pi * 8), rel=0.02)
        assert clip["silence_share"] == 0
    (spanned,) = run(path, tmp_path, [(2.5, 3.5)], signals=True)["split_clips"]
    assert spanned["loudness"] == pytest.approx(clips[1]["loudness"], abs=0.1)


@pytest.mark.skipif(not SHARED_VIDEOS.is_dir(), reason="the real footage is not here")
@pytest.mark.parametrize("name", ["bbb_trailer_33s.webm", "nasa_13013_17s.mp4"])
def test_whole_files_have_what_ffmpeg_measures(name):
    values, _ = signals_of(SHARED_VIDEOS / name, -1.0)
    expected = by_ffmpeg(SHARED_VIDEOS / name)
    assert values["loudness"] == pytest.approx(expected["loudness"], abs=0.1)
    assert values["sound_peak"] == pytest.approx(expected["sound_peak"], abs=0.01)
    assert values["zero_crossings"] == pytest.approx(expected["zero_crossings"], rel=0.002)
