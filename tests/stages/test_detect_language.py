"""detect_language and detect_caption_language: right languages, or null with a reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
import yaml
from pydantic import ValidationError

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.detect_caption_language import CAPTION_LANGUAGES, DetectCaptionLanguage
from clipmill.stages.detect_language import VIDEO_LANGUAGES, DetectLanguage
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.models.languages import LanguageDetector, count_letters
from clipmill.stages.protocol import Workspace

TEXTS = yaml.safe_load((Path(__file__).parents[1] / "files" / "texts_by_language.yaml").open())


@pytest.fixture(scope="module")
def detector() -> LanguageDetector:
    return DetectLanguage().detector("detect_language")


@pytest.fixture(scope="module")
def of_video() -> Iterator:
    """The row for a video, given columns of download_videos."""
    stage = DetectLanguage()
    reads = [name.partition(".")[2] for name in stage.columns_read()]
    schema = pa.schema([("video_id", pa.string()), *(VIDEOS.field(name) for name in reads)])
    with stage.open(Workspace(Path(), Path())) as transform:

        def row(**columns) -> dict:
            made = transform(pa.Table.from_pylist([{"video_id": "v", **columns}], schema=schema))
            assert made.schema == VIDEO_LANGUAGES
            return made.to_pylist()[0]

        yield row


@pytest.mark.parametrize(
    ("kind", "least_right"), [("titles", 0.92), ("captions", 0.96), ("descriptions", 1.0)]
)
def test_texts_in_26_languages_are_recognised(detector, kind, least_right):
    """Some are unsure; what is sure and wrong is Malay for Indonesian, which hardly differ."""
    found = [
        (language, detector.detect(text))
        for language, kinds in TEXTS.items()
        for text in kinds[kind]
    ]
    assert len(TEXTS) == 26
    right = sum(one.language == language for language, one in found)
    assert right / len(found) >= least_right
    wrong = {(language, one.language) for language, one in found if one.language} - {
        (language, language) for language in TEXTS
    }
    assert wrong <= {("id", "ms")}
    assert all((one.language is None) == (one.reason is not None) for _, one in found)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no text"),
        ("https://example.org/watch?v=1 www.example.org me@example.org @me #fun", "no text"),
        ("Hola", "too short: 4 letters"),
        ("東京", "too short: 4 letters"),
        ("12:30 – 45 (2024)", "too short: 0 letters"),
        ("\U0001f600 \U0001f525", "too short: 0 letters"),
        ("Big Buck Bunny", "unsure: "),
        ("IMG_20240131_1234.MP4", "too short: 5 letters"),
        ("\ud800 \ud800 \ud800", "too short: 0 letters"),
    ],
)
def test_text_that_does_not_tell_is_null_with_the_reason(detector, text, reason):
    found = detector.detect(text)
    assert found.language is None
    assert found.reason.startswith(reason)


def test_varieties_count_as_the_language_that_platforms_name(detector):
    assert detector.detect("两个孩子在花园里玩球").language == "zh"
    cantonese = DetectLanguage(languages=("yue", "zh")).detector("x")
    assert cantonese.detect("佢哋喺度做緊乜嘢呀,我哋都唔知").language == "yue"


def test_only_the_languages_that_are_named_are_considered():
    chosen = DetectLanguage(languages=("id", "en")).detector("x")
    assert chosen.detect("dua anak sedang bermain bola di kebun").language == "id"


def test_language_that_the_model_lacks_is_refused_before_a_run():
    (check,) = DetectLanguage(languages=("en", "klingon")).model_checks("detect_language", {})
    with pytest.raises(UsageError, match=r"detect_language\.languages: .*'klingon'.* en, "):
        check.run()


def test_file_that_is_no_such_model_is_refused(tmp_path):
    (tmp_path / "model.npz.xz").write_bytes(b"no model")
    stage = DetectLanguage(model=str(tmp_path / "model.npz.xz"))
    with pytest.raises(ClipmillError, match=r"model\.npz\.xz is not a model of py3langid"):
        stage.detector("detect_language")


def test_title_and_description_count_before_given_captions(of_video):
    german, english = TEXTS["de"]["descriptions"][0], TEXTS["en"]["captions"]
    spans = [{"start_seconds": 0.0, "end_seconds": 1.0, "caption": english[0], "captions": english}]
    row = of_video(title="Fahrrad", description=german, spans=spans)
    assert (row["language_detected"], row["language_detected_from"]) == ("de", "text")
    assert row["language_confidence"] > 0.9
    row = of_video(title="IMG_1234", spans=spans)
    assert (row["language_detected"], row["language_detected_from"]) == ("en", "captions")
    row = of_video(caption_given=english[1], captions_given=english)
    assert (row["language_detected"], row["language_detected_from"]) == ("en", "captions")


def test_video_of_which_nothing_is_said_is_null_with_the_reason(of_video):
    row = of_video()
    assert row["language_detected"] is None
    assert row["language_detected_reason"] == "the source says nothing about the video"
    row = of_video(title="Rocky Road", description="0:00 Intro")
    assert row["language_detected"] is row["language_detected_from"] is None
    assert row["language_detected_reason"].startswith("unsure: ")
    assert 0 < row["language_confidence"] < 0.4


def test_only_the_texts_of_the_setting_are_read():
    assert DetectLanguage(texts=("title",)).columns_read() == ("download_videos.title",)
    with pytest.raises(ValidationError, match="twice"):
        DetectLanguage(texts=("title", "title"))


def test_each_caption_has_its_language_or_the_reason():
    stage = DetectCaptionLanguage(caption="split_clips.caption_given")
    captions = [TEXTS["fr"]["captions"][0], None, "ok"]
    batch = pa.table({"clip_id": ["a", "b", "c"], "caption": pa.array(captions, pa.string())})
    with stage.open(Workspace(Path(), Path())) as transform:
        made = transform(batch)
    assert made.schema == CAPTION_LANGUAGES
    assert made["caption_language"].to_pylist() == ["fr", None, None]
    reasons = made["caption_language_reason"].to_pylist()
    assert reasons == [None, "no text", "too short: 2 letters"]


def test_characters_that_are_syllables_count_as_two():
    assert count_letters("包丁の研ぎ方 ab1") == 14
