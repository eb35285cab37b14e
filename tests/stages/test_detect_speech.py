"""Speech in clips: the spans of the published detector, in any sound, at the video's times."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import av
import numpy as np
import pyarrow as pa
import pytest

import clipmill
from clipmill.pipeline.verify import verify
from clipmill.schemas.errors import ClipmillError
from clipmill.stages.detect_speech import DetectSpeech
from clipmill.stages.find_speech import SPEECH, FindSpeech
from clipmill.stages.protocol import Workspace
from tests.media import SHARED_VIDEOS, Scene, cached, render
from tests.sounds import tone, voice, write

pytest.importorskip("onnxruntime", reason="needs clipmill[signals]")
pytest.importorskip("silero_vad", reason="needs clipmill[signals]")

RATE = 16000
# Where the model hears a voice begin and end, seconds.
NEAR = 0.12


def silence(seconds: float, rate: int = RATE) -> np.ndarray:
    return np.zeros((1, round(seconds * rate)))


def spoken(rate: int = RATE) -> np.ndarray:
    """Two seconds of nothing, three of a voice, two of nothing, one of a voice, one of nothing."""
    parts = [silence(2), voice(3)[None], silence(2), voice(1, seed=1)[None], silence(1)]
    sound = np.hstack(parts)
    at = np.arange(round(sound.shape[1] / RATE * rate)) / rate
    return np.interp(at, np.arange(sound.shape[1]) / RATE, sound[0])[None]


def found(path: Path, tmp_path: Path, **columns: Any) -> dict[str, Any]:
    """The row of find_speech for a file."""
    row = {"video_id": "video", "path": str(path), **columns}
    with FindSpeech().open(Workspace(tmp_path, tmp_path / "scratch")) as transform:
        (row,) = transform(pa.Table.from_pylist([row])).to_pylist()
    return row


def times(spans: list[dict[str, float]]) -> list[tuple[float, float]]:
    return [(span["start_seconds"], span["end_seconds"]) for span in spans]


def share(row: dict[str, Any], start: float, end: float) -> dict[str, Any]:
    """The columns of a clip of a video with these spans."""
    clip = {"clip_id": "clip", "start_seconds": start, "end_seconds": end}
    shown = [field for field in SPEECH if field.name in ("speech_spans", "sound_spans")]
    schema = pa.schema([*shown, ("speech_reason", pa.string())])
    table = pa.Table.from_pylist([row], schema=schema)
    for name, value in clip.items():
        table = table.append_column(name, pa.array([value]))
    with DetectSpeech().open(Workspace(Path(), Path())) as transform:
        (columns,) = transform(table).to_pylist()
    return columns


@pytest.mark.parametrize("kind", ["onnx", "jit"])
def test_spans_are_those_of_the_published_package(kind, tmp_path):
    import silero_vad
    import torch

    from clipmill.stages.media.read.samples import SampleReader

    sound = spoken() + 0.02 * np.random.default_rng(0).standard_normal(spoken().shape)
    path = write(tmp_path / "voice.mkv", (0.0, sound), rate=RATE)
    samples = np.concatenate([piece.values for piece in SampleReader(path, 0.0).pieces()])
    model = silero_vad.load_silero_vad(onnx=kind == "onnx")
    for mine, theirs in (
        ({}, {}),
        ({"threshold": 0.9, "end_threshold": 0.8}, {"threshold": 0.9, "neg_threshold": 0.8}),
        (
            {"pad_seconds": 0.4, "min_silence_seconds": 0.03},
            {"speech_pad_ms": 400, "min_silence_duration_ms": 30},
        ),
        ({"min_speech_seconds": 2.0}, {"min_speech_duration_ms": 2000}),
    ):
        spans = silero_vad.get_speech_timestamps(torch.from_numpy(samples), model, **theirs)
        stage = FindSpeech(**mine)
        workspace = Workspace(tmp_path, tmp_path)
        with stage.open(workspace) as transform:
            (row,) = transform(pa.table({"video_id": ["v"], "path": [str(path)]})).to_pylist()
        assert spans, theirs
        assert times(row["speech_spans"]) == [
            (span["start"] / RATE, span["end"] / RATE) for span in spans
        ], theirs


def _stereo(sound: np.ndarray) -> np.ndarray:
    return np.vstack([sound, 0.3 * sound])


def _surround(sound: np.ndarray) -> np.ndarray:
    """Dialogue in the centre, a loud rumble for the low-frequency channel."""
    rumble = 0.8 * np.sin(np.arange(sound.shape[1]) / 48000 * 2 * np.pi * 40)[None]
    nothing = np.zeros_like(sound)
    return np.vstack([nothing, nothing, sound, rumble, nothing, nothing])


@pytest.mark.parametrize(
    ("name", "sound", "rate", "codec"),
    [
        ("telephone", spoken(8000), 8000, ""),
        ("studio.mkv", spoken(96000), 96000, "flac"),
        ("stereo.mp4", _stereo(spoken(48000)), 48000, "aac"),
        ("surround", _surround(spoken(48000)), 48000, ""),
    ],
)
def test_speech_is_found_in_sound_of_any_kind(name, sound, rate, codec, tmp_path):
    path = tmp_path / (name if "." in name else f"{name}.mkv")
    if codec == "flac":
        path = _flac(path, sound, rate)
    else:
        write(path, (0.0, sound), rate=rate, codec=codec)
    spans = times(found(path, tmp_path)["speech_spans"])
    assert spans == [
        (pytest.approx(2.0, abs=NEAR), pytest.approx(5.0, abs=NEAR)),
        (pytest.approx(7.0, abs=NEAR), pytest.approx(8.0, abs=NEAR)),
    ]


def _flac(path: Path, sound: np.ndarray, rate: int) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("flac", rate=rate, layout="mono", format="s16")
        values = np.ascontiguousarray(np.round(sound * 32767), np.int16)
        for at in range(0, values.shape[1], 4096):
            frame = av.AudioFrame.from_ndarray(values[:, at : at + 4096], "s16", "mono")
            frame.sample_rate, frame.pts = rate, at
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_times_are_those_of_the_video(tmp_path):
    """Sound that begins late, has a pause that was not encoded, and a long hole."""
    parts = [(3.0, spoken()), (12.5, voice(2, seed=2)[None]), (30.0, voice(2, seed=3)[None])]
    path = write(tmp_path / "late.mkv", *parts, rate=RATE)
    # The file's own clock shows 3 s where the video begins.
    row = found(path, tmp_path, clock_starts_at_seconds=3.0)
    spans = [(2, 5), (7, 8), (9.5, 11.5), (27, 29)]
    assert times(row["speech_spans"]) == [
        (pytest.approx(a, abs=NEAR), pytest.approx(b, abs=NEAR)) for a, b in spans
    ]
    assert times(row["sound_spans"]) == [
        (pytest.approx(0, abs=0.01), pytest.approx(11.5, abs=0.1)),
        (pytest.approx(27, abs=0.01), pytest.approx(29, abs=0.1)),
    ]
    assert row["speech_seconds"] == pytest.approx(8, abs=0.5)
    # Of its length, also where a part of it has no sound.
    assert share(row, 2.5, 4.5)["speech_share"] == 1.0
    assert share(row, 4.0, 8.0)["speech_share"] == pytest.approx(0.5, abs=0.06)
    assert share(row, 26.0, 28.0)["speech_share"] == pytest.approx(0.5, abs=0.06)
    (inside,) = times(share(row, 4.0, 6.5)["speech_spans"])
    assert inside == (4.0, pytest.approx(5.0, abs=NEAR))
    quiet = share(row, 5.5, 6.5)
    assert (quiet["speech_share"], quiet["speech_spans"]) == (0.0, [])
    outside = share(row, 15.0, 20.0)
    assert outside["speech_share"] is None
    assert "nothing at that time" in outside["speech_share_reason"]


def test_a_tone_and_noise_are_no_speech(tmp_path):
    noise = 0.1 * np.random.default_rng(0).standard_normal((1, 2 * RATE))
    sound = np.hstack([tone((-10,), 2.0, RATE, 440.0), noise])
    row = found(write(tmp_path / "tone.mkv", (0.0, sound), rate=RATE), tmp_path)
    assert (row["speech_spans"], row["speech_seconds"], row["speech_reason"]) == ([], 0.0, None)


def test_sound_that_is_not_there_or_broken_is_null_with_a_reason(tmp_path):
    row = found(cached()[0], tmp_path)
    assert "no sound track" in row["speech_reason"]
    assert (row["speech_spans"], row["speech_seconds"], row["error"]) == (None, None, None)
    clip = share(row, 0.0, 1.0)
    assert (clip["speech_share"], clip["speech_spans"]) == (None, None)
    assert clip["speech_share_reason"] == row["speech_reason"]

    path = write(tmp_path / "broken.mp4", (0.0, spoken(48000)), codec="aac")
    with av.open(str(path)) as container:
        packets = [(p.pos, p.size) for p in container.demux() if p.size]
    data = bytearray(path.read_bytes())
    for pos, size in packets:
        data[pos : pos + size] = b"\xff" * size
    path.write_bytes(data)
    assert "cannot be decoded" in found(path, tmp_path)["speech_reason"]

    gone = found(tmp_path / "gone.mp4", tmp_path)["error"]
    assert gone["kind"] == "transient"
    assert "mount its disk" in gone["message"]
    text = tmp_path / "text.mp4"
    text.write_text("no film")
    assert found(text, tmp_path)["error"]["kind"] == "bad_media"


def test_weights_of_another_model_are_refused(tmp_path):
    from clipmill.stages.media.fetch.data_files import local_file
    from clipmill.stages.references import DataFile

    other = DataFile.model_validate("package:silero_vad/data/silero_vad_16k_op15.onnx")
    with (
        pytest.raises(ClipmillError, match=r"detect_speech\.weights: .* is not Silero's"),
        FindSpeech(weights=local_file(other, setting="x")).open(Workspace(tmp_path, tmp_path)),
    ):
        pass
    stage = DetectSpeech(weights="package:silero_vad/data/silero_vad.onnx#sha256=" + "0" * 64)
    (check,) = stage.steps()[0].model_checks("detect_speech", {})
    with pytest.raises(ClipmillError, match=r"detect_speech\.weights: .*SHA-256"):
        check.run()
    assert FindSpeech().identity()["weights"].startswith("sha256:9ccdacc4")
    with pytest.raises(ValueError, match="end_threshold must not be above threshold"):
        DetectSpeech(threshold=0.3, end_threshold=0.4)


def film(path: Path) -> Path:
    """Nine seconds in three shots, with speech from 2 to 5 and from 7 to 8."""
    scenes = (Scene("red", 3.0), Scene("blue", 3.0), Scene("yellow", 3.0))
    render(path, scenes, rate=10, audio=spoken()[0])
    return path


RECIPE = """
sources: [films.csv]
engine: local
stages:
  download_videos: {min_duration_seconds: 1, min_height: 100}
  split_clips: {keep_frames: false}
  detect_speech: {}
  say: {stage: check_captions, caption: split_clips.caption_given, frames_for_colors: 0,
        voice: detect_speech.speech_share}
"""


@pytest.mark.slow
def test_a_run_has_speech_by_clip_and_splits_again_without_the_video(tmp_path):
    media = film(tmp_path / "talk.mp4")
    silent = Path(shutil.copy(cached()[0], tmp_path / "silent.mp4"))
    (tmp_path / "films.csv").write_text(f"path\n{media}\n{silent}\n")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    data = tmp_path / "data"

    def status() -> dict[str, Any]:
        return {one["stage"]: one for one in clipmill.open(data).status()["stages"]}

    clipmill.run(recipe, dataset=data)
    rows = clipmill.open(data).sql(
        "SELECT video_id, start_seconds, speech_share, speech_share_reason, speech_spans, "
        "say_speech_unheard FROM clips JOIN (SELECT video_id, path FROM videos) USING (video_id) "
        "ORDER BY path DESC, start_seconds"
    )
    talk = [row for row in rows.fetchall() if row[2] is not None]
    assert [row[2] for row in talk] == [pytest.approx(x, abs=0.05) for x in (1 / 3, 2 / 3, 1 / 3)]
    counted = status()
    assert counted["detect_speech"]["accounted"]
    assert (counted["detect_speech"]["kept"], counted["detect_speech"]["failed"]) == (6, 0)
    reasons = clipmill.open(data).sql("SELECT DISTINCT speech_share_reason FROM clips").fetchall()
    assert any("no sound track" in (reason or "") for (reason,) in reasons)
    ((seconds,),) = (
        clipmill.open(data)
        .sql("SELECT speech_seconds FROM videos WHERE speech_seconds IS NOT NULL")
        .fetchall()
    )
    assert seconds == pytest.approx(4, abs=0.3)
    assert verify(data).faults == []

    # Other clips need no film.
    media.rename(tmp_path / "elsewhere.mp4")
    silent.unlink()
    clipmill.run(recipe, dataset=data, settings={"split_clips.max_clip_seconds": 1.6})
    shares = clipmill.open(data).sql(
        "SELECT speech_share FROM clips WHERE speech_share IS NOT NULL ORDER BY start_seconds"
    )
    assert [share for (share,) in shares.fetchall()] == [
        pytest.approx(x, abs=0.08) for x in (0, 2 / 3, 1, 1 / 3, 1 / 3, 1 / 3)
    ]
    assert status()["detect_speech"]["accounted"]

    # Other spans do. A film that isn't there is a failure for each video, and can be retried.
    clipmill.run(recipe, dataset=data, settings={"detect_speech.threshold": 0.4})
    counted = status()["detect_speech"]
    assert (counted["inputs"], counted["failed"], counted["accounted"]) == (2, 2, True)
    assert {fault.check for fault in verify(data).faults} == {"media_missing"}
    (tmp_path / "elsewhere.mp4").rename(media)
    clipmill.retry(data)
    counted = status()["detect_speech"]
    assert (counted["kept"], counted["failed"], counted["accounted"]) == (3, 1, True)
    assert {fault.check for fault in verify(data).faults} == {"media_missing"}


@pytest.mark.skipif(not SHARED_VIDEOS.is_dir(), reason="the real footage is not here")
@pytest.mark.parametrize(
    ("name", "seconds", "expected"),
    [("slides_talk_123s.mp4", 123.0, 0.87), ("bbb_opening_720p_45s.ts", 45.0, 0.0)],
)
def test_real_films(name, seconds, expected, tmp_path):
    row = found(SHARED_VIDEOS / name, tmp_path)
    assert row["speech_seconds"] / seconds == pytest.approx(expected, abs=0.02)


@pytest.mark.skipif(not shutil.which("espeak-ng"), reason="espeak-ng is not installed")
def test_a_synthesised_voice(tmp_path):
    import subprocess

    text = "The quick brown fox jumps over the lazy dog, and nobody has ever asked it why."
    words = ["espeak-ng", "-w", str(tmp_path / "said.wav"), text]
    subprocess.run(words, stdin=subprocess.DEVNULL, check=True)
    with av.open(str(tmp_path / "said.wav")) as container:
        said = np.hstack([frame.to_ndarray() for frame in container.decode(audio=0)]) / 32768
        rate = container.streams.audio[0].rate
    sound = np.hstack([silence(2, rate), said, silence(2, rate)])
    row = found(write(tmp_path / "film.mkv", (0.0, sound), rate=rate), tmp_path)
    spans = times(row["speech_spans"])
    assert spans[0][0] == pytest.approx(2.0, abs=0.2)
    assert spans[-1][1] == pytest.approx(2.0 + said.shape[1] / rate, abs=0.3)
