"""check_captions: numbers about captions, and their words against measurements."""

from __future__ import annotations

import cv2
import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from clipmill.schemas.tables import FRAME
from clipmill.stages.caption_frames import CaptionFrames
from clipmill.stages.check_captions import CAPTION_CHECKS, CheckCaptions, count_words, repetition
from clipmill.stages.media.read.basic_colors import BASIC_COLORS, color_shares
from clipmill.stages.models.outputs.claims import (
    camera_named,
    colors_named,
    names_speech,
    names_stillness,
    names_text,
)
from clipmill.stages.protocol import Workspace
from clipmill.stages.split_clips import SplitClips

# A typical colour for each name, RGB.
TYPICAL = {
    "black": (10, 10, 12),
    "white": (245, 245, 240),
    "grey": (128, 128, 128),
    "red": (200, 20, 30),
    "orange": (250, 140, 20),
    "brown": (110, 70, 35),
    "yellow": (250, 220, 40),
    "green": (40, 150, 60),
    "blue": (30, 80, 200),
    "purple": (120, 40, 160),
    "pink": (250, 150, 190),
}


def jpeg(*colors: str, width=320, height=180) -> bytes:
    """A picture of vertical stripes."""
    picture = np.zeros((height, width, 3), np.uint8)
    for i, color in enumerate(colors):
        first, last = i * width // len(colors), (i + 1) * width // len(colors)
        picture[:, first:last] = TYPICAL[color][::-1]
    return cv2.imencode(".jpg", picture)[1].tobytes()


def checked(caption: str, *frames: bytes, stage=None, **measured) -> dict:
    stage = stage or CheckCaptions()
    row = {
        "clip_id": "a",
        "caption": caption,
        "frames": [
            {"frame_number": i, "seconds": float(i), "jpeg": frame}
            for i, frame in enumerate(frames)
        ],
        **measured,
    }
    fields = [("clip_id", pa.string()), ("caption", pa.string()), ("frames", pa.list_(FRAME))]
    fields += [
        (name, pa.list_(pa.string()) if isinstance(value, list) else pa.float64())
        for name, value in measured.items()
    ]
    with stage.open(Workspace(None, None)) as transform:
        made = transform(pa.Table.from_pylist([row], schema=pa.schema(fields)))
    assert made.schema == CAPTION_CHECKS
    return made.to_pylist()[0]


@pytest.mark.parametrize("color", BASIC_COLORS)
def test_each_colour_is_found_in_its_own_picture(color):
    """And no more than two others, its neighbours."""
    shares = color_shares(jpeg(color))
    assert shares[color] > 0.95
    assert sum(share > 0.5 for share in shares.values()) <= 3


def test_colour_that_a_caption_names_is_looked_for_in_all_frames():
    row = checked("A red car and a blue bus.", jpeg("green", "grey"), jpeg("red", "grey"))
    assert [(one["color"], one["share"] > 0.4) for one in row["caption_colors"]] == [
        ("red", True),
        ("blue", False),
    ]
    assert row["colors_unseen"] == ["blue"]


def test_small_things_count():
    """A ball of 1% of one frame is enough."""
    picture = cv2.imdecode(np.frombuffer(jpeg("green"), np.uint8), cv2.IMREAD_COLOR)
    picture[80:104, 100:124] = TYPICAL["red"][::-1]
    ball = cv2.imencode(".jpg", picture)[1].tobytes()
    assert checked("A red ball on the grass.", jpeg("green"), ball)["colors_unseen"] == []


def test_without_frames_nothing_is_said_about_colours():
    row = checked("A red car.")
    assert row["caption_colors"] is row["colors_unseen"] is None
    assert checked("A car.", jpeg("red"))["colors_unseen"] == []
    assert CheckCaptions(frames_for_colors=0).frames_picked() == ()


@pytest.mark.parametrize(
    ("caption", "colors"),
    [
        ("A woman in a red dress and a gray hat", ["red", "grey"]),
        ("Reddish leaves, violet flowers", ["purple"]),
        ("A black man drinks white wine in front of the White House", []),
        ("A Red Cross van", []),
        ("Red cars pass. Blue ones follow.", ["red", "blue"]),
        ("a black and white photograph of a red rose", ["red"]),
        ("A hundred people are bored", []),
        ("The blue-eyed girl", []),
    ],
)
def test_colours_are_told_from_names(caption, colors):
    assert colors_named(caption) == colors


@pytest.mark.parametrize(
    ("caption", "claims"),
    [
        ("A sign that reads 'exit'", "text"),
        ("A man is talking to the camera", "speech"),
        ("A still image of a house", "stillness"),
        ("Subtitles appear while she sings", "text speech"),
        ("A dog signs off and walks away still barking", ""),
        ("A lecture hall", ""),
        ("A textbook on a rough, textured wall; she is texting a text message", ""),
        ("Two logos", "text"),
    ],
)
def test_what_a_caption_says_is_found(caption, claims):
    found = {
        "text": names_text(caption),
        "speech": names_speech(caption),
        "stillness": names_stillness(caption),
    }
    assert {name for name, value in found.items() if value} == set(claims.split())


def test_the_cameras_movements_are_found():
    assert camera_named("The camera pans slowly to the left, then zooms in.") == [
        "pan_left",
        "zoom_in",
    ]
    assert camera_named("a static shot of a frying pan, left on the stove") == ["static"]


@pytest.mark.parametrize(
    ("caption", "moves"),
    [
        ("The camera pans from left to right", ["pan_right"]),
        ("The camera pans right to left, then up", ["pan_left"]),
        ("A slow pan-left; the camera pans up to the sky", ["pan_left", "tilt_up"]),
        ("The camera slowly pulls back while it is tilting down", ["tilt_down", "zoom_out"]),
        ("A frying pan on the left, and a pan in the right hand", []),
        ("A man turns left and pushes in the door", []),
        ("He pulls out a phone, pulls back the curtain and tilts his head up", []),
        ("A Zoom meeting in an office", []),
        ("The camera follows a man who pulls out a phone", []),
    ],
)
def test_movements_of_other_things_are_not_the_cameras(caption, moves):
    assert camera_named(caption) == moves


WIRED = {
    "text_area": "find_text.area",
    "voice": "find_speech.share",
    "motion": "split_clips.motion",
    "camera_pan": "track_camera.pan",
    "camera_zoom": "track_camera.zoom",
}


def test_words_are_compared_with_the_columns_that_are_wired():
    stage = CheckCaptions(**WIRED, least_camera_motion=0.1)
    caption = "A static shot: a man talks next to a sign that says stop. The camera pans left."
    against = checked(
        caption, stage=stage, text_area=0.0, voice=0.0, motion=20.0, camera_pan=0.5, camera_zoom=0.0
    )
    assert [against[name] for name in ("text_unseen", "speech_unheard", "stillness_unseen")] == [
        True
    ] * 3
    assert against["camera_unseen"] == ["pan_left", "static"]
    agree = checked(caption, stage=stage, text_area=0.1, voice=0.5, motion=1.0, camera_pan=-0.5)
    assert [agree[name] for name in ("text_unseen", "speech_unheard", "stillness_unseen")] == [
        False
    ] * 3
    assert agree["camera_unseen"] == ["static"]


def test_without_a_measurement_the_answer_is_unknown():
    row = checked("A static shot: a man talks.", motion=float("nan"))
    assert (row["speech_named"], row["speech_unheard"], row["stillness_unseen"]) == (
        True,
        None,
        None,
    )
    assert (row["camera_named"], row["camera_unseen"]) == (["static"], None)


def test_length_and_repetition_in_any_language():
    stage = CheckCaptions(fewest_words=4, most_words=8)
    outliers = {
        words: checked(" ".join(f"word{i}" for i in range(words)), stage=stage)[
            "caption_length_outlier"
        ]
        for words in (1, 2, 4, 8, 16)
    }
    assert outliers == {1: -2, 2: -1, 4: 0, 8: 0, 16: 1}
    assert count_words("A dog – runs!") == 3
    assert count_words("红色的圆向右移动") == 4
    assert repetition("a dog runs on the beach") < 0.1
    assert repetition("the dog and the dog and the dog and the dog") > 0.5
    assert repetition("红色的圆红色的圆红色的圆红色的圆") > 0.5
    assert repetition("dog") == 0


def test_what_a_caption_quotes_is_looked_for_in_what_was_read():
    stage = CheckCaptions(text_read="measure_text.text_read", text_claimed="a.text_on_screen")
    caption = 'A man says "hello" below a sign that reads “Fresh Bread”. The title "Nowhere" shows.'
    row = checked(caption, stage=stage, text_read=["FRESH BREAO!"], text_claimed=["bread", "50%"])
    assert row["texts_named"] == ["Fresh Bread", "Nowhere", "bread", "50%"]
    assert row["texts_unread"] == ["Nowhere", "50%"]
    nothing = checked(caption, stage=stage, text_read=[])
    assert nothing["texts_unread"] == nothing["texts_named"] == ["Fresh Bread", "Nowhere"]
    unknown = checked(caption, stage=stage)
    assert (unknown["texts_named"], unknown["texts_unread"]) == (None, None)
    # PP-OCR doesn't read Cyrillic, so its silence says nothing.
    cyrillic = checked("A sign reads “Привет”.", stage=stage, text_read=["STOP"])
    assert (cyrillic["texts_named"], cyrillic["texts_unread"]) == (["Привет"], [])
    with pytest.raises(ValidationError, match="text_claimed is set, but text_read"):
        CheckCaptions(text_claimed="a.text_on_screen")


def test_missing_caption_is_a_failure():
    assert checked(None)["error"]["kind"] == "model"
    assert checked(" ")["error"]["kind"] == "model"
    assert checked("a red dog", b"no jpeg")["error"]["kind"] == "bad_media"


def test_settings_name_columns_of_stages_before_it():
    assert CheckCaptions(motion="split_clips.motion").columns_read() == (
        "summarize_captions.caption as caption",
        "split_clips.motion as motion?",
    )
    with pytest.raises(ValidationError, match="expected LABEL"):
        CheckCaptions(voice="voice")
    with pytest.raises(ValidationError, match="more than most_words"):
        CheckCaptions(fewest_words=9, most_words=8)
    with pytest.raises(ValidationError, match="least_voice is set, but voice is not"):
        CheckCaptions(least_voice=0.1)
    with pytest.raises(ValidationError, match="but camera_pan or camera_tilt or camera_zoom is"):
        CheckCaptions(least_camera_motion=0.1, motion="split_clips.motion")
    before = {"caption_frames": CaptionFrames(model="./x")}
    with pytest.raises(ValueError, match=r"voice is .*, which is string, not a number"):
        CheckCaptions(voice="caption_frames.caption_coarse").check_upstream(before)
    with pytest.raises(ValueError, match="no stage 'hear' comes before"):
        CheckCaptions(voice="hear.share").check_upstream({})
    with pytest.raises(ValueError, match="not one text"):
        CheckCaptions(caption="caption_frames.captions_fine").check_upstream(
            {"caption_frames": CaptionFrames(model="./x")}
        )


def test_signals_of_the_camera_are_compared_where_they_are_measured():
    stage = CheckCaptions(camera_pan="split_clips.camera_pan", least_camera_motion=1.0)
    stage.check_upstream({"split_clips": SplitClips(signals=True)})
    with pytest.raises(ValueError, match=r"with split_clips\.signals: true"):
        stage.check_upstream({"split_clips": SplitClips()})
    for caption, unseen in (("pans right", []), ("pans left", ["pan_left"])):
        row = checked(f"The camera {caption} over a field.", stage=stage, camera_pan=12.0)
        assert row["camera_unseen"] == unseen
