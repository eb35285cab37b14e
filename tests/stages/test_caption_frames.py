"""caption_frames: each caption on its own clip and time, and rejected captions."""

from __future__ import annotations

import json
import pickle
import random

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.schemas.tables import FRAME, TAG
from clipmill.stages.caption_frames import CAPTIONS, CaptionFrames, leaders
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.requests import CHAT_PROMPT
from clipmill.stages.protocol import Middle, PerSecond, Workspace
from tests.models_factory import tiny_model
from tests.openai_stand_in import openai_server, picture_of, text_of

BITS = 12


def numbered(number: int) -> bytes:
    """A picture whose dark and light bars encode a number."""
    bars = np.array([[255 * (number >> bit & 1) for bit in range(BITS)]], np.uint8)
    picture = cv2.resize(bars, (BITS * 16, 96), interpolation=cv2.INTER_NEAREST)
    return cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR))[1].tobytes()


def number_in(jpeg: bytes) -> int:
    bars = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_GRAYSCALE)[48, 8::16]
    return sum(int(bar > 127) << bit for bit, bar in enumerate(bars))


class Reader:
    """A captioner that reads the number in the picture; `say` may change its answer."""

    def __init__(self, say=lambda number, picture: f"number {number}", takes_instructions=True):
        self.say = say
        self.takes_instructions = takes_instructions
        self.asked = []

    def check_prompt(self, prompt):
        pass

    def describe(self, pictures, generation):
        self.asked += pictures
        shuffled = random.Random(0).sample(pictures, len(pictures))
        return {picture.ticket: self.answer(picture) for picture in shuffled}

    def answer(self, picture):
        said = self.say(number_in(picture.jpeg), picture)
        return Completion(said) if isinstance(said, str) else said


def clip(name: str, first_number: int, seconds=(0.5, 1.5, 2.5), start=0.0, end=3.0, **columns):
    """A clip whose frames have first_number, first_number + 1, …"""
    frames = [
        {"frame_number": i, "seconds": at, "jpeg": numbered(first_number + i)}
        for i, at in enumerate(seconds)
    ]
    return {
        "clip_id": name,
        "start_seconds": start,
        "end_seconds": end,
        "frames": frames,
        **columns,
    }


def table(clips) -> pa.Table:
    schema = pa.schema(
        [
            ("clip_id", pa.string()),
            ("start_seconds", pa.float64()),
            ("end_seconds", pa.float64()),
            ("frames", pa.list_(FRAME)),
            ("tags", pa.list_(TAG)),
        ]
    )
    return pa.Table.from_pylist([{"tags": None, **row} for row in clips], schema=schema)


def stage(**fields) -> CaptionFrames:
    return CaptionFrames(**{"model": "./anywhere", "skip_similar": 0} | fields)


def captioned(stage: CaptionFrames, clips, reader=None) -> dict[str, dict]:
    reader = reader or Reader()
    made = stage.transform(table(clips), {"coarse": reader, "fine": reader})
    assert made.schema == stage.table_schema
    assert made.num_rows == len(clips)
    return {row["clip_id"]: row for row in made.to_pylist()}


@settings(max_examples=25)
@given(counts=st.lists(st.integers(1, 12), min_size=1, max_size=8), order=st.randoms())
def test_every_caption_belongs_to_its_clip_and_time(counts, order):
    """Whatever the clips' lengths and order, text, clip and timestamp belong together."""
    clips, first = [], 0
    for i, count in enumerate(counts):
        times = [10 * i + j + 0.5 for j in range(count)]
        clips.append(clip(f"clip{i}", first, times, 10.0 * i, 10.0 * i + count))
        first += count
    truth = {
        (row["clip_id"], frame["seconds"]): f"number {number_in(frame['jpeg'])}"
        for row in clips
        for frame in row["frames"]
    }
    order.shuffle(clips)
    for name, row in captioned(stage(), clips).items():
        assert row["error"] is None
        assert row["caption_coarse"] == truth[name, row["coarse_seconds"]]
        assert {(name, fine["seconds"]): fine["text"] for fine in row["captions_fine"]} == {
            key: text for key, text in truth.items() if key[0] == name
        }
        times = [fine["seconds"] for fine in row["captions_fine"]]
        assert times == sorted(times)


def test_each_scale_gets_its_own_frames():
    """Coarse is the middle frame; fine are those nearest to the middles of equal parts."""
    row = clip("a", 0, [0.1 + 0.2 * i for i in range(30)], 0.0, 6.0)
    found = captioned(stage(fine_frames_per_second=0.5, fine_at_least=1), [row])["a"]
    assert found["caption_coarse"] == "number 14"
    assert [fine["text"] for fine in found["captions_fine"]] == [
        "number 4",
        "number 14",
        "number 24",
    ]
    assert stage().frames_picked() == (Middle(), PerSecond(1.0, 8))
    assert stage(coarse=False).frames_picked() == (PerSecond(1.0, 8),)
    assert stage(fine=False).frames_picked() == (Middle(),)


@pytest.mark.parametrize(
    ("scale", "empty"), [("coarse", "captions_fine"), ("fine", "caption_coarse")]
)
def test_scale_can_be_left_out(scale, empty):
    off = {"coarse": "fine", "fine": "coarse"}[scale]
    row = captioned(stage(**{off: False}), [clip("a", 0)])["a"]
    assert (row["error"], row[empty]) == (None, None)


@pytest.mark.parametrize(
    ("said", "kind", "words"),
    [
        ("", "model", "the text is empty"),
        (" ...! ", "model", "no word"),
        ("a dog a dog a dog a dog", "model", "repeats"),
        ("<think>I wonder", "model", "reasoning without an answer"),
        (RowFailed("transient", "answered 503"), "transient", "answered 503"),
        (RowFailed("bad_media", "no image"), "bad_media", "no image"),
    ],
)
def test_unusable_text_fails_only_its_clip(said, kind, words):
    reader = Reader(lambda number, picture: said if number == 101 else f"number {number}")
    rows = captioned(stage(), [clip("a", 0), clip("bad", 100), clip("b", 200)], reader)
    assert [name for name, row in rows.items() if row["error"]] == ["bad"]
    error = rows["bad"]["error"]
    assert error["kind"] == kind
    assert words in error["message"]
    assert "at 1.500 s" in error["message"]
    assert rows["bad"]["caption_coarse"] is None


@pytest.mark.parametrize("frames", [None, []])
def test_clip_without_frames_is_bad_media(frames):
    rows = captioned(stage(), [clip("a", 0), clip("b", 50) | {"frames": frames}])
    assert rows["a"]["error"] is None
    assert rows["b"]["error"]["kind"] == "bad_media"
    assert "no frame" in rows["b"]["error"]["message"]


def test_frames_of_a_neighbour_are_not_used():
    rows = captioned(stage(), [clip("a", 0, seconds=(9.0,))])
    assert rows["a"]["error"]["kind"] == "bad_media"


def test_identical_frames_are_captioned_once_with_all_times():
    """Numbers 5, 5, 5, 6, 6, 5: three pictures are captioned."""
    row = clip("a", 0, [i + 0.5 for i in range(6)], 0.0, 6.0)
    for frame, number in zip(row["frames"], [5, 5, 5, 6, 6, 5], strict=True):
        frame["jpeg"] = numbered(number)
    reader = Reader()
    found = captioned(stage(coarse=False, skip_similar=4.0), [row], reader)["a"]
    assert [number_in(picture.jpeg) for picture in reader.asked] == [5, 6, 5]
    assert [(fine["seconds"], fine["text"]) for fine in found["captions_fine"]] == [
        (0.5, "number 5"),
        (1.5, "number 5"),
        (2.5, "number 5"),
        (3.5, "number 6"),
        (4.5, "number 6"),
        (5.5, "number 5"),
    ]
    everything = Reader()
    captioned(stage(coarse=False, skip_similar=0), [row], everything)
    assert len(everything.asked) == 6


def test_slow_changes_and_small_moving_objects_are_noticed():
    def grey(level):
        picture = np.full((90, 160, 3), level, np.uint8)
        return {"jpeg": cv2.imencode(".jpg", picture)[1].tobytes()}

    def ball(x):
        picture = np.full((360, 640, 3), 90, np.uint8)
        cv2.circle(picture, (x, 180), 12, (90, 90, 220), -1)
        return {"jpeg": cv2.imencode(".jpg", picture)[1].tobytes()}

    assert leaders([grey(100 + i) for i in range(10)], 4.0) == [0] * 5 + [5] * 5
    assert leaders([ball(100), ball(100), ball(130), ball(400)], 4.0) == [0, 0, 2, 3]


def test_undecodable_frame_is_bad_media():
    broken = clip("broken", 0)
    broken["frames"][1]["jpeg"] = b"no jpeg"
    rows = captioned(stage(skip_similar=4.0, coarse=False), [broken, clip("b", 20)])
    assert rows["broken"]["error"]["kind"] == "bad_media"
    assert rows["b"]["error"] is None


def test_tags_guide_the_fine_captions_of_their_own_clip():
    template = "seen: {{ tags|join(', ') }}{% if not tags %}nothing{% endif %}"
    guided = stage(guide_with_tags=True, fine_prompt=template, prompt="coarse")
    assert "tag_clips.tags?" in guided.columns_read()
    reader = Reader()
    captioned(
        guided,
        [
            clip("a", 0, tags=[{"tag": "dog", "score": 0.5}, {"tag": "beach", "score": 0.4}]),
            clip("b", 20),
        ],
        reader,
    )
    asked = {
        (ticket.clip_id, ticket.scale): prompt
        for ticket, prompt in ((picture.ticket, picture.prompt) for picture in reader.asked)
    }
    assert asked == {
        ("a", "coarse"): "coarse",
        ("a", "fine"): "seen: dog, beach",
        ("b", "coarse"): "coarse",
        ("b", "fine"): "seen: nothing",
    }
    assert "tag_clips.tags?" not in stage().columns_read()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"coarse": False, "fine": False}, "both off"),
        ({"guide_with_tags": True}, "fine_prompt that uses tags"),
        ({"guide_with_tags": True, "fine_prompt": "a picture"}, "fine_prompt that uses tags"),
        ({"guide_with_tags": True, "fine_prompt": "{{ tag }}"}, "allowed variables: tags"),
        ({"guide_with_tags": True, "fine_prompt": "{{ tags }}", "fine": False}, "fine is off"),
        ({"model": "http://127.0.0.1:1/v1#x", "num_beams": 5}, "server_options"),
        ({"skip_similar": -1}, "greater than or equal to 0"),
        ({"no_such_setting": 1}, "no_such_setting"),
    ],
)
def test_nonsensical_settings_are_refused(fields, words):
    with pytest.raises(ValidationError, match=words):
        stage(**fields)


def test_scales_may_differ_in_model_and_generation():
    """InternVid's: BLIP-2's usual settings for coarse, the tagger's for fine."""
    both = stage(
        num_beams=5,
        max_new_tokens=30,
        prompt="",
        fine_num_beams=3,
        fine_prompt="a {} ",
        fine_max_new_tokens=50,
        fine_min_new_tokens=10,
    )
    coarse, fine = both.generation.arguments(), both._fine_generation.arguments()
    assert (coarse["num_beams"], coarse["max_new_tokens"]) == (5, 30)
    assert (fine["num_beams"], fine["max_new_tokens"], fine["min_new_tokens"]) == (3, 50, 10)
    assert not coarse["do_sample"]
    assert both.prompts() == {"prompt": "", "fine_prompt": "a {} "}
    assert pickle.loads(pickle.dumps(both)) == both


def test_stage_with_a_tiny_model_is_deterministic(tmp_path):
    """Same rows whether clips come together or alone, and the second time."""
    from tests.models_factory import tiny_model

    whole = stage(
        model=str(tiny_model("blip")),
        dtype="float32",
        max_new_tokens=6,
        no_repeat_ngram_size=1,
        batch_images=3,
    )
    clips = [clip("a", 1), clip("b", 700), clip("c", 2900)]
    with whole.open(Workspace(tmp_path, tmp_path)) as transform:
        together = transform(table(clips))
        alone = pa.concat_tables([transform(table([row])) for row in clips])
    with whole.open(Workspace(tmp_path, tmp_path)) as transform:
        assert transform(table(clips)) == together == alone
    rows = together.to_pylist()
    assert all(row["error"] is None and len(row["captions_fine"]) == 3 for row in rows)
    assert len({row["caption_coarse"] for row in rows}) == 3


def test_frames_are_sent_to_a_server_unchanged(tmp_path):
    """The server reads the numbers in the pictures; a refusal fails only its clip."""

    def answer(request):
        return f"number {number_in(picture_of(request))} for {text_of(request)}"

    with openai_server(answer, 400) as stand_in:
        served = stage(model=f"{stand_in.url}#vlm", prompt="look", server_concurrency=1)
        with served.open(Workspace(tmp_path, tmp_path)) as transform:
            rows = transform(table([clip("a", 0), clip("b", 20)])).to_pylist()
    assert rows[0]["error"]["kind"] == "model"
    assert rows[1]["caption_coarse"] == "number 21 for look"
    assert [fine["text"] for fine in rows[1]["captions_fine"]] == [
        f"number {number} for look" for number in (20, 21, 22)
    ]


def test_columns_say_how_each_text_ended_and_what_cleaned_it():
    """Frames that share a caption share its values; a rule counts once per caption."""

    def say(number, picture):
        texts = {1: "**one**", 2: "Sure! Here's a caption: **two**"}
        return Completion(texts.get(number, "number"), new_tokens=10 + number)

    row = captioned(stage(), [clip("a", 0)], Reader(say))["a"]
    assert (row["caption_coarse"], row["coarse_finish_reason"]) == ("one", "stop")
    assert (row["coarse_new_tokens"], row["coarse_cleaned_by"]) == (11, ["markdown"])
    assert [fine["text"] for fine in row["captions_fine"]] == ["number", "one", "two"]
    assert row["fine_finish_reasons"] == ["stop"] * 3
    assert row["fine_new_tokens"] == [10, 11, 12]
    assert sorted(row["fine_cleaned_by"]) == ["markdown", "markdown", "preamble"]
    assert captioned(stage(fine=False), [clip("a", 0)])["a"]["fine_finish_reasons"] is None


CUT = "A dog runs. Then it sits on a"


@pytest.mark.parametrize(
    ("when_cut_off", "takes_instructions", "kept", "words"),
    [
        (None, True, None, "cut off at 60 tokens (max_new_tokens): 'A dog runs."),
        (None, False, CUT, None),
        ("fail", False, None, "cut off at 60 tokens"),
        ("keep", True, CUT, None),
        ("sentence", True, "A dog runs.", None),
    ],
)
def test_text_that_was_cut_off_is_never_kept_silently(
    when_cut_off, takes_instructions, kept, words
):
    reader = Reader(lambda number, picture: Completion(CUT, complete=False), takes_instructions)
    row = captioned(stage(fine=False, when_cut_off=when_cut_off), [clip("a", 0)], reader)["a"]
    assert row["caption_coarse"] == kept
    if words:
        assert words in row["error"]["message"]
        return
    assert row["coarse_finish_reason"] == "length"
    assert row["coarse_cleaned_by"] == (["cut_to_sentences"] if kept != CUT else [])


def test_text_without_a_whole_sentence_can_not_be_cut_back_to_one():
    reader = Reader(lambda number, picture: Completion("a man in a red", complete=False))
    asked = stage(coarse=False, when_cut_off="sentence", fine_max_new_tokens=5)
    row = captioned(asked, [clip("a", 0)], reader)["a"]
    assert (
        "cut off at 5 tokens (fine_max_new_tokens) before its first sentence"
        in (row["error"]["message"])
    )


def test_new_settings_leave_the_identity_of_a_recipe_as_it_was():
    assert set(stage().identity()) == {"model", "skip_similar"}
    assert stage().table_schema == CAPTIONS
    assert "when_cut_off" in stage(when_cut_off="keep").identity()


FORM = {"fields": ["short", "subjects"], "questions": {"watermark": "Is there a watermark?"}}


def test_form_is_asked_about_the_frame_in_the_middle(tmp_path):
    """And the fine captions stay free."""

    def answer(request):
        number = number_in(picture_of(request))
        if "response_format" not in request:
            return f"number {number}"
        return json.dumps({"short": f"number {number}", "subjects": [], "watermark": "no"})

    with openai_server(answer) as stand_in:
        asked = stage(model=f"{stand_in.url}#tiny", server_retries=0, **FORM)
        with asked.open(Workspace(tmp_path, tmp_path)) as transform:
            made = transform(table([clip("a", 4), clip("b", 9)]))
    assert made.schema == asked.table_schema
    for row, first in zip(made.to_pylist(), (4, 9), strict=True):
        middle = f"number {first + 1}"
        assert (row["caption_coarse"], row["short"], row["subjects"]) == (middle, middle, [])
        assert (row["watermark"], row["watermark_answer"]) == (False, "no")
        assert row["coarse_fields_reason"] is row["error"] is None
        assert [fine["text"] for fine in row["captions_fine"]] == [
            f"number {first + i}" for i in range(3)
        ]
    asked_for = [text_of(request) for request in stand_in.requests]
    assert sum(text == CHAT_PROMPT for text in asked_for) == 6
    assert sum('- "watermark": "yes", "no" or "unsure"' in text for text in asked_for) == 2
    assert asked.prompts()["prompt"].startswith(f"{CHAT_PROMPT}\n\nAnswer with one JSON object")
    assert "fine_prompt" not in asked.prompts()


def test_form_that_is_not_filled_in_costs_its_clip():
    reader = Reader(lambda number, picture: "a dog" if picture.schema else "fine")
    row = captioned(stage(fields={"short": "text"}), [clip("a", 0)], reader)["a"]
    assert row["error"]["message"].startswith("coarse caption at 1.500 s: the answer has no JSON")


def test_model_without_instructions_can_not_fill_in_a_form(tmp_path):
    asked = CaptionFrames(model=str(tiny_model("blip")), questions={"watermark": "Is there one?"})
    (check,) = asked.model_checks("blip", {})
    with pytest.raises(ClipmillError, match=r"blip\.model: this model takes no instructions"):
        check.run()
    with (
        pytest.raises(ClipmillError, match="takes no instructions"),
        asked.open(Workspace(tmp_path, tmp_path)),
    ):
        pass
    with pytest.raises(ValidationError, match="but coarse is off"):
        stage(coarse=False, fields=["short"])
    with pytest.raises(ValidationError, match="already the name of a column"):
        stage(fields={"caption_coarse": "text"})
