"""Transcripts: those of a bare loop over the model or of a server, laid onto clips by words."""

from __future__ import annotations

import io
import json
import pickle
import wave
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import clipmill
from clipmill.pipeline.recipes.plan import PlannedStep, build_plan
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.verify import verify
from clipmill.schemas.errors import ClipmillError, ServerRefused, UsageError
from clipmill.schemas.tables import HOLE
from clipmill.stages.protocol import Workspace
from clipmill.stages.transcribe_clips import TranscribeClips
from clipmill.stages.transcribe_videos import TRANSCRIPTS, TranscribeVideos
from tests.media import Scene, cached, render
from tests.models_factory import tiny_model
from tests.openai_stand_in import openai_server
from tests.sounds import voice, write
from tests.speech_model_factory import tiny_speech_model

RATE = 16000
SPANS = [(1.0, 5.0), (40.0, 44.0)]


RECIPE = """
sources: [films.csv]
engine: local
stages:
  download_videos: {{min_duration_seconds: 1, min_height: 100}}
  split_clips: {{keep_frames: false}}
  detect_speech: {{}}
  transcribe_clips: {{model: "{url}#whisper", where: speech_seconds > 1}}
"""


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    """Four seconds of a voice at 1 s, and others at 40 s, in silence."""
    sound = np.zeros((1, 50 * RATE))
    for (start, _), seed in zip(SPANS, (0, 1), strict=True):
        sound[0, round(start * RATE) :][: 4 * RATE] = voice(4, seed=seed)
    return write(tmp_path_factory.mktemp("film") / "film.mkv", (0.0, sound), rate=RATE)


def inputs(*paths: Path, spans: Any = SPANS, reason: str | None = None) -> pa.Table:
    found = spans and [{"start_seconds": a, "end_seconds": b} for a, b in spans]
    count = len(paths)
    return pa.table(
        {
            "video_id": [f"v{number}" for number in range(count)],
            "path": [str(path) for path in paths],
            "clock_starts_at_seconds": pa.array([0.0] * count),
            "speech_spans": pa.array([found] * count, pa.list_(HOLE)),
            "speech_reason": pa.array([reason] * count, pa.string()),
        }
    )


def transcribed(table: pa.Table, folder: Path, batches: int = 1, **settings: Any) -> list[dict]:
    stage = TranscribeClips(**({"dtype": "float32", "max_new_tokens": 12} | settings)).steps()[0]
    assert isinstance(stage, TranscribeVideos)
    workspace = Workspace(folder, folder)
    with stage.open(workspace) as transform:
        size = -(-table.num_rows // batches)
        parts = [transform(table.slice(at, size)) for at in range(0, table.num_rows, size)]
    return pa.concat_tables(parts).to_pylist()


def served(server: Any, table: pa.Table, folder: Path, **settings: Any) -> list[dict]:
    patience = {"server_retries": 1, "server_first_wait_seconds": 0.01}
    stage = TranscribeClips(**({"model": f"{server.url}#whisper"} | patience | settings)).steps()[0]
    with stage.open(Workspace(folder, folder)) as transform:
        return transform(table).to_pylist()


def bare(folder: Path, sounds: list[np.ndarray], language: str) -> list[tuple[str, list[float]]]:
    """Texts, and the times of their tokens, by transformers alone."""
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    import transformers

    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForSpeechSeq2Seq.from_pretrained(
        folder, attn_implementation="eager"
    )
    found = []
    for sound in sounds:
        heard = processor.feature_extractor(
            sound, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True
        )
        output = model.generate(
            heard["input_features"],
            attention_mask=heard["attention_mask"],
            language=language,
            task="transcribe",
            return_token_timestamps=True,
            max_new_tokens=12,
        )
        text = processor.tokenizer.decode(output["sequences"][0], skip_special_tokens=True)
        found.append((text, output["token_timestamps"][0].tolist()))
    return found


def without_probabilities(row: dict[str, Any]) -> list[Any]:
    """What doesn't depend on how sums are rounded."""
    lines = [
        {name: value for name, value in one.items() if "probability" not in name}
        for one in row["transcript_lines"]
    ]
    return [row["spoken_language"], lines]


def test_whisper_writes_what_a_bare_loop_does(film, tmp_path):
    from clipmill.stages.media.read.samples import SampleReader

    folder = tiny_speech_model("whisper")
    table = inputs(film, film)
    rows = transcribed(table, tmp_path, model=folder)
    singly = transcribed(table, tmp_path, batches=2, batch_windows=1, model=folder)
    assert [without_probabilities(one) for one in singly] == list(map(without_probabilities, rows))
    (row, again) = rows
    assert {**again, "video_id": row["video_id"]} == row
    assert row["spoken_language"] in ("en", "de", "ja")
    assert 0 < row["spoken_language_probability"] <= 1

    parts = [(a - 0.1, b + 0.1) for a, b in SPANS]
    sounds: list[list[np.ndarray]] = []
    starts = []
    for piece in SampleReader(film, 0.0, parts).pieces():
        if piece.begins:
            sounds.append([])
            starts.append(piece.seconds)
        sounds[-1].append(piece.values)
    whole = [np.concatenate(sound) for sound in sounds]
    expected = bare(folder, whole, row["spoken_language"])
    for start, (text, times), sound in zip(starts, expected, whole, strict=True):
        own = [one for one in row["transcript_lines"] if start <= one["start_seconds"] < start + 5]
        words = [word for one in own for word in one["words"]]
        assert "".join(word["text"] for word in words) == text
        ends = [start + min(time, len(sound) / RATE) for time in times]
        assert all(min(abs(word["end_seconds"] - end) for end in ends) < 0.06 for word in words)
        assert all(0 <= one["no_speech_probability"] <= 1 for one in own)

    named = transcribed(table.slice(0, 1), tmp_path, model=folder, language="de")[0]
    assert (named["spoken_language"], named["spoken_language_probability"]) == ("de", None)


@pytest.mark.parametrize(
    ("name", "language"), [("whisper-plain", None), ("whisper-english", "en"), ("moonshine", None)]
)
def test_models_that_tell_less(name, language, film, tmp_path):
    (row,) = transcribed(inputs(film), tmp_path, model=tiny_speech_model(name))
    if language:
        assert row["spoken_language"] == language
    lines = row["transcript_lines"]
    assert lines
    assert all(any(a - 0.2 <= one["start_seconds"] <= b + 0.2 for a, b in SPANS) for one in lines)
    for one in lines:
        assert "".join(word["text"] for word in one["words"]).strip() == one["text"]


def test_videos_without_speech_need_no_model(tmp_path):
    silent, _ = cached()
    rows = transcribed(
        inputs(silent, spans=None, reason="it has no sound track"),
        tmp_path,
        model=tiny_speech_model("whisper"),
    )
    assert rows[0]["transcript_reason"] == "it has no sound track"
    assert rows[0]["transcript_lines"] is None
    (row,) = transcribed(inputs(silent, spans=[]), tmp_path, model=tiny_speech_model("whisper"))
    assert (row["transcript_lines"], row["transcript_reason"]) == ([], None)
    # Its sound was lost since speech was found.
    (row,) = transcribed(inputs(silent), tmp_path, model=tiny_speech_model("whisper"))
    assert "no sound track" in row["transcript_reason"]
    (row,) = transcribed(
        inputs(tmp_path / "gone.mp4"), tmp_path, model=tiny_speech_model("whisper")
    )
    assert row["error"]["kind"] == "transient"


def clip(lines: list[dict] | None, start: float, end: float, reason: str | None = None) -> dict:
    columns = {
        "transcript_lines": lines,
        "spoken_language": "en",
        "spoken_language_probability": 0.75,
        "transcript_reason": reason,
    }
    schema = pa.schema([field for field in TRANSCRIPTS if field.name in columns])
    table = pa.Table.from_pylist([columns], schema=schema)
    for name, value in {"clip_id": "c", "start_seconds": start, "end_seconds": end}.items():
        table = table.append_column(name, pa.array([value]))
    with TranscribeClips().open(Workspace(Path(), Path())) as transform:
        (row,) = transform(table).to_pylist()
    return row


def said(start: float, text: str, **columns: Any) -> dict:
    """A line with a second per word."""
    words = [
        {"start_seconds": start + n, "end_seconds": start + n + 1, "text": f"{' ' * (n > 0)}{one}"}
        for n, one in enumerate(text.split())
    ]
    end = start + len(words)
    return {
        "start_seconds": start,
        "end_seconds": end,
        "text": text,
        "words": words,
        "no_speech_probability": 0.1,
        "repeats": False,
        **columns,
    }


def test_each_word_is_in_the_clip_in_which_it_begins():
    lines = [
        said(0.0, "Over the hill."),
        said(3.0, "Far away", repeats=True, no_speech_probability=0.6),
    ]
    first, second = clip(lines, 0.0, 1.5), clip(lines, 1.5, 4.5)
    assert (first["transcript"], second["transcript"]) == ("Over the", "hill. Far away")
    assert [word["start_seconds"] for word in second["transcript_words"]] == [2.0, 3.0, 4.0]
    assert (first["transcript_repeats"], second["transcript_repeats"]) == (False, True)
    assert second["no_speech_probability"] == pytest.approx(0.6)
    assert (second["spoken_language"], second["spoken_language_probability"]) == ("en", 0.75)
    after = clip(lines, 4.5, 9.0)
    assert (after["transcript"], after["transcript_reason"]) == (None, "nobody speaks")
    assert clip(None, 0.0, 9.0, "it has no sound track")["transcript_reason"] == (
        "it has no sound track"
    )


def answer(**columns: Any) -> bytes:
    return json.dumps(
        {"task": "transcribe", "language": "english", "duration": 4.2} | columns
    ).encode()


def verbose(request: dict) -> bytes:
    """Two segments; words as OpenAI's own server has them, without punctuation or white space."""
    return answer(
        text="Good morning, all. Thanks.",
        words=[
            {"word": "Good", "start": 0.1, "end": 0.4},
            {"word": "morning", "start": 0.4, "end": 0.9},
            {"word": "all", "start": 1.0, "end": 1.3},
            {"word": "Thanks", "start": 2.0, "end": 2.5},
        ],
        segments=[
            {"start": 0.0, "end": 1.5, "text": " Good morning, all.", "no_speech_prob": 0.01},
            {"start": 1.9, "end": 2.6, "text": " Thanks.", "no_speech_prob": 0.7},
        ],
    )


def test_a_server_is_asked_for_each_window_and_words_get_their_times(film, tmp_path):
    with openai_server(verbose) as server:
        (row,) = served(server, inputs(film), tmp_path)
    assert row["spoken_language"] == "en"
    assert row["spoken_language_probability"] is None
    lines = row["transcript_lines"]
    assert [one["text"] for one in lines] == ["Good morning, all.", "Thanks."] * 2
    assert [word["text"] for word in lines[0]["words"]] == ["Good", " morning,", " all."]
    starts = [lines[at]["words"][0]["start_seconds"] for at in (0, 1, 2)]
    assert starts == [pytest.approx(x, abs=0.05) for x in (1.0, 2.9, 40.0)]
    assert lines[1]["no_speech_probability"] == pytest.approx(0.7)
    assert len(server.requests) == 2
    asked = server.requests[0]
    assert asked["path"] == "/v1/audio/transcriptions"
    assert (asked["model"], asked["response_format"]) == (["whisper"], ["verbose_json"])
    assert asked["timestamp_granularities[]"] == ["word", "segment"]
    assert "language" not in asked
    with wave.open(io.BytesIO(asked["file"])) as sound:
        assert (sound.getframerate(), sound.getnchannels()) == (RATE, 1)
        assert sound.getnframes() == pytest.approx(4.2 * RATE, abs=0.1 * RATE)

    options = {"language": "de", "server_options": {"prompt": "Ünï", "temperature": None}}
    with openai_server(lambda _: answer(text="Guten Tag", language="de")) as server:
        (row,) = served(server, inputs(film), tmp_path, **options)
    asked = server.requests[0]
    assert (asked["language"], asked["prompt"]) == (["de"], ["Ünï"])
    assert "temperature" not in asked
    # Without segments, the words are spread over the window.
    words = row["transcript_lines"][0]["words"]
    assert [word["text"] for word in words] == ["Guten", " Tag"]
    assert words[-1]["end_seconds"] == pytest.approx(0.9 + 4.2, abs=0.05)


def test_a_server_that_takes_no_granularities_is_asked_without(film, tmp_path):
    def fussy(request: dict) -> bytes:
        return answer(segments=[{"start": 0.0, "end": 2.0, "text": "ab cdef"}])

    with openai_server(fussy, 400) as server:
        (row,) = served(server, inputs(film), tmp_path, server_concurrency=1)
        assert "timestamp_granularities[]" in server.requests[0]
        assert all("timestamp_granularities[]" not in one for one in server.requests[1:])
    words = row["transcript_lines"][0]["words"]
    assert [word["end_seconds"] - word["start_seconds"] for word in words] == [
        pytest.approx(4 / 7),
        pytest.approx(10 / 7),
    ]


def test_servers_that_fail(film, tmp_path):
    table = inputs(film)
    with openai_server(verbose, 503, "reset") as server:  # passes
        (row,) = served(server, table, tmp_path)
        assert row["error"] is None
    with openai_server(verbose) as server:
        server.always = b"<html>"
        (row,) = served(server, table, tmp_path)
        assert row["error"]["kind"] == "model"
        assert "not a transcription" in row["error"]["message"]
        server.always = 401
        with pytest.raises(ServerRefused, match="OPENAI_API_KEY"):
            served(server, table, tmp_path)
        server.always = "hang"
        (row,) = served(server, table, tmp_path, server_timeout_seconds=0.1)
        assert row["error"]["kind"] == "transient"
        url = server.url
    with pytest.raises(ClipmillError, match="no server answers"):
        served(server, table, tmp_path)
    # One of two is gone: the other one answers.
    with openai_server(verbose) as other:
        (row,) = served(other, table, tmp_path, model=f"{url}#whisper,{other.url}#whisper")
        assert len(row["transcript_lines"]) == 4


def test_the_start_of_a_run_checks_the_model():
    def check(**settings: Any) -> str:
        stage = TranscribeClips(**settings).steps()[0]
        (one,) = stage.model_checks("transcribe_clips", {})
        return one.run()

    folder = tiny_speech_model("whisper")
    assert "WhisperForConditionalGeneration" in check(model=folder, language="de")
    assert "Moonshine" in check(model=tiny_speech_model("moonshine"))
    with pytest.raises(ClipmillError, match=r"transcribe_clips\.language: .*de, en, ja, not 'fr'"):
        check(model=folder, language="fr")
    with pytest.raises(ClipmillError, match=r"is a t5, which doesn't write what is said"):
        check(model=tiny_model("t5"))
    with openai_server(verbose) as server:
        assert check(model=f"{server.url}#whisper") == "transcribes"
        server.always = 404
        with pytest.raises(ClipmillError, match=r"--set transcribe_clips\.model="):
            check(model=f"{server.url}#whisper")


def test_settings_that_would_be_ignored_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"put `detect_speech: \{\}` before"):
        TranscribeClips().check_upstream({})
    with pytest.raises(ValueError, match="dtype is for models in the worker's process"):
        TranscribeClips(model="http://127.0.0.1:9/v1#m", dtype="float32")
    with pytest.raises(ValueError, match="server_options are for servers"):
        TranscribeClips(server_options={"prompt": "x"})
    with pytest.raises(ValueError, match="expected the code of a language"):
        TranscribeClips(language="English")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE.format(url="http://127.0.0.1:9/v1"))
    plan = build_plan(load_recipe(recipe))
    labels = [step.label for step in plan.steps]
    assert labels[-3:] == ["detect_speech", "transcribe_videos", "transcribe_clips"]
    for step in plan.steps:
        assert PlannedStep.from_spec(pickle.loads(pickle.dumps(step.spec()))) == step
    of_clips = ["transcribe_clips.where=speech_share > 0.3"]
    with pytest.raises(UsageError, match="which videos has not, and this gate chooses videos"):
        build_plan(load_recipe(recipe, overrides=of_clips))
    on_gpu = TranscribeClips(gpus=0.5)
    assert [step.resources.gpus for step in on_gpu.steps()] == [0.5, 0.0]


@pytest.mark.slow
def test_a_run_transcribes_once_and_lays_words_onto_other_clips(tmp_path):
    pytest.importorskip("silero_vad", reason="needs clipmill[signals]")
    sound = np.zeros(9 * RATE)
    sound[2 * RATE : 5 * RATE] = voice(3)
    scenes = (Scene("red", 3.0), Scene("blue", 3.0), Scene("yellow", 3.0))
    render(tmp_path / "talk.mp4", scenes, rate=10, audio=sound)
    silent, _ = cached()
    (tmp_path / "films.csv").write_text(f"path\n{tmp_path / 'talk.mp4'}\n{silent}\n")
    recipe, data = tmp_path / "recipe.yaml", tmp_path / "data"

    def transcripts() -> list[tuple]:
        query = (
            "SELECT transcript, transcript_reason, spoken_language FROM clips SEMI JOIN (SELECT "
            "video_id FROM videos WHERE speech_seconds > 1) USING (video_id) ORDER BY start_seconds"
        )
        return clipmill.open(data).sql(query).fetchall()

    with openai_server(verbose) as server:
        recipe.write_text(RECIPE.format(url=server.url))
        clipmill.run(recipe, dataset=data)
        assert transcripts() == [
            ("Good morning, all.", None, "en"),
            ("Thanks.", None, "en"),
            (None, "nobody speaks", None),
        ]
        counted = {one["stage"]: one for one in clipmill.open(data).status()["stages"]}
        own = counted["transcribe_clips"]
        assert (own["kept"], own["skipped"], own["accounted"]) == (3, 1, True)
        assert verify(data).faults == []
        (lines,) = (
            clipmill.open(data)
            .sql("SELECT transcript_lines FROM videos WHERE transcript_lines IS NOT NULL")
            .fetchall()
        )
        assert [line["text"] for line in lines[0]] == ["Good morning, all.", "Thanks."]
        asked = len(server.requests)
    # Other clips need neither the server nor the films.
    (tmp_path / "talk.mp4").unlink()
    clipmill.run(recipe, dataset=data, settings={"split_clips.threshold": 255})
    assert transcripts() == [("Good morning, all. Thanks.", None, "en")]
    assert len(server.requests) == asked
