"""caption_clip: what the model is shown of a clip, and what becomes of its answer."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace

import pyarrow as pa
import pytest
from pydantic import ValidationError

from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.tables import FRAME
from clipmill.stages import caption_clip
from clipmill.stages.caption_clip import AS_IMAGES, CLIP_CAPTIONS, CLIP_PROMPT, CaptionClip
from clipmill.stages.models.engines.families import Chat
from clipmill.stages.models.engines.opening import open_engine
from clipmill.stages.models.engines.requests import Request, Video, answers
from clipmill.stages.protocol import Uniform, Workspace
from tests import wrong_models as wrong
from tests.clip_models import (
    make_internvl,
    make_llava,
    make_llava_next_video,
    make_qwen3_vl,
    make_smolvlm,
)
from tests.further_chat_models import make_gemma3, make_glm4v, make_idefics3
from tests.models_factory import tiny_model
from tests.openai_stand_in import completion, openai_server
from tests.stages.models.test_captioners import jpeg

FORM = {
    "fields": {"short": "text", "subjects": None, "people": "integer", "camera": ["pan", "static"]},
    "questions": {"watermark": "Is there a watermark?"},
}
ANSWER = {
    "short": "A dog runs.",
    "subjects": ["a dog", ""],
    "people": 0,
    "camera": "Static",
    "watermark": "no",
}


def clip(name: str, seconds=(10.5, 11.5, 12.5), start=10.0, end=13.0) -> dict:
    frames = [
        {"frame_number": i, "seconds": at, "jpeg": jpeg(int(at))} for i, at in enumerate(seconds)
    ]
    return {"clip_id": name, "start_seconds": start, "end_seconds": end, "frames": frames}


def table(*clips: dict) -> pa.Table:
    seconds = [("start_seconds", pa.float64()), ("end_seconds", pa.float64())]
    schema = pa.schema([("clip_id", pa.string()), *seconds, ("frames", pa.list_(FRAME))])
    return pa.Table.from_pylist(list(clips), schema=schema)


def captioned(stage: CaptionClip, tmp_path, *clips: dict) -> dict[str, dict]:
    with stage.open(Workspace(tmp_path, tmp_path)) as transform:
        made = transform(table(*clips))
    assert made.schema == stage.table_schema
    return {row["clip_id"]: row for row in made.to_pylist()}


def answered(answer, tmp_path, **settings) -> dict:
    """The row of a clip to whose request a server answers this: a text, an object, or bytes."""
    text = answer if isinstance(answer, str | bytes) else json.dumps(answer)
    misdeeds = [text] if isinstance(text, bytes) else []
    with openai_server(lambda request: text, *misdeeds) as stand_in:
        stage = CaptionClip(model=f"{stand_in.url}#tiny", server_retries=0, **settings)
        (row,) = captioned(stage, tmp_path, clip("a")).values()
    return row | {"request": stand_in.requests[0]}


# --- what the model is shown ---


def test_server_gets_the_clips_frames_as_images_after_their_times(tmp_path):
    row = answered("A dog runs.", tmp_path, clip_frames=2, system="Be brief.")
    system, user = row["request"]["messages"]
    assert system["content"] == "Be brief."
    said = [part.get("text", part["type"]) for part in user["content"]]
    assert said == ["0.5 s:", "image_url", "2.5 s:", "image_url", f"{AS_IMAGES}\n{CLIP_PROMPT}"]
    assert (row["clip_seconds"], row["clip_shown_as"]) == ([10.5, 12.5], "images")
    assert (row["caption_clip"], row["clip_finish_reason"]) == ("A dog runs.", "stop")
    assert (row["error"], row["clip_cleaned_by"], row["clip_new_tokens"]) == (None, [], None)
    assert "response_format" not in row["request"]


@pytest.mark.parametrize(("shown_as", "how"), [("auto", "video"), ("images", "images")])
def test_family_with_videos_gets_a_video_unless_images_are_asked_for(
    tmp_path, monkeypatch, shown_as, how
):
    """The same at any batch size; a clip without frames in its span costs only itself."""
    asked: list[Request] = []

    def in_hex(engine, requests):
        """The model's own answers, as texts that are captions whatever bytes it makes."""
        asked.extend(requests)
        found = answers(engine, requests)
        return [replace(one, text=f"said {one.text.encode().hex()}") for one in found]

    monkeypatch.setattr(caption_clip, "answers", in_hex)
    stage = CaptionClip(
        model=str(tiny_model("qwen_vl")),
        dtype="float32",
        shown_as=shown_as,
        clip_frames=3,
        max_new_tokens=4,
        no_repeat_ngram_size=1,
        when_cut_off="keep",
    )
    clips = [clip("a"), clip("b", (30.5, 31.5, 32.5), 30, 33), clip("c", (1.0,), 5, 6)]
    together = captioned(stage, tmp_path, *clips)
    assert together["c"]["error"]["kind"] == "bad_media"
    assert together["a"]["caption_clip"] != together["b"]["caption_clip"]
    for one in clips:
        name = one["clip_id"]
        assert captioned(stage, tmp_path, one)[name] == together[name]
    assert [together[name]["clip_shown_as"] for name in "ab"] == [how, how]
    seen = [part for part in asked[0].parts if not isinstance(part, str)]
    if how == "video":
        (video,) = seen
        assert [seconds for seconds, _ in video.frames] == [0.5, 1.5, 2.5]
    else:
        assert len(seen) == 3


def test_model_that_would_not_see_the_clip_is_refused(tmp_path):
    blip = CaptionClip(model=str(tiny_model("blip")))
    with (
        pytest.raises(ClipmillError, match="sees one picture at a time"),
        blip.open(Workspace(tmp_path, tmp_path)),
    ):
        pass
    with pytest.raises(ValidationError, match="protocol has no videos"):
        CaptionClip(model="http://a/v1#b", shown_as="video")
    stage = CaptionClip(model=str(tiny_model("blip")), shown_as="video")
    with pytest.raises(ClipmillError, match="takes no videos, only pictures"):
        stage.shown("pictures", "caption_clip.model")


@pytest.mark.parametrize(
    ("make", "how", "prompt"),
    [
        (make_qwen3_vl, "video", "<0.5 seconds>{}<1.5 seconds>"),
        (make_internvl, "video", "Frame1: {}Frame4: "),
        (make_smolvlm, "video", "Frame from 00:00:{}Frame from 00:01:"),
        (make_llava_next_video, "video", "<video><video>{}<video>\nwhat"),
        (make_llava, "images", "0.2 s:{}1.8 s:"),
        (make_gemma3, "images", "0.2 s:{}1.8 s:"),
        (make_idefics3, "images", "0.2 s:{}1.8 s:"),
        (make_glm4v, "video", "<|begin_of_video|>{}<|end_of_video|>"),
    ],
)
def test_further_families_see_every_frame_and_its_time(tmp_path, make, how, prompt):
    """Alone and in batches with clips that have fewer frames."""
    if make is make_smolvlm:
        pytest.importorskip("num2words", reason="SmolVLM's processor needs it")
    model = str(make(tmp_path / "model"))
    stage = CaptionClip(model=model, dtype="float32", max_new_tokens=4, prompt="what")
    (check,) = stage.model_checks("caption_clip", {})
    assert f"4 frames as {how}" in check.run()
    frames = [(0.25 + 0.5 * i, jpeg(i)) for i in range(4)]
    with open_engine(stage.model, stage, "caption_clip.model", takes="pictures", batch=4) as engine:
        assert stage.shown(engine.sees, "caption_clip.model") == how
        asked = [stage.request(frames, how), stage.request(frames[:3], how)]
        inputs = engine.model.prepare([engine.model.accepted(asked[0])])
        text = engine.model._tokenizer.decode(inputs["input_ids"][0])
        together = [answer.text for answer in answers(engine, asked)]
        alone = [answers(engine, [one])[0].text for one in asked]
    first, last = prompt.split("{}")
    assert first in text.partition(last)[0]
    assert last in text
    assert together == alone


def test_model_whose_template_drops_the_clip_is_refused_before_the_run(tmp_path):
    folder = wrong.copy_of("qwen_vl", tmp_path / "model")
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<|video_pad|>", ""))
    (check,) = CaptionClip(model=str(folder)).model_checks("caption_clip", {})
    with pytest.raises(ClipmillError, match=r"caption_clip\.model: .*another model's"):
        check.run()
    (check,) = CaptionClip(model=str(folder), shown_as="images").model_checks("caption_clip", {})
    assert "4 frames as images" in check.run()


def test_model_that_would_not_see_the_last_frame_is_refused(monkeypatch):
    def first_frames(video):
        return Video(video.frames[:2]) if isinstance(video, Video) else video

    def accepted(self, request):
        messages = [
            replace(message, parts=tuple(map(first_frames, message.parts)))
            for message in request.messages
        ]
        return replace(request, messages=tuple(messages))

    monkeypatch.setattr(Chat, "accepted", accepted)
    (check,) = CaptionClip(model=str(tiny_model("qwen_vl"))).model_checks("caption_clip", {})
    with pytest.raises(ClipmillError, match="would not see them all"):
        check.run()


def test_only_kept_frames_at_the_middles_of_equal_parts_are_picked():
    assert CaptionClip(clip_frames=5).frames_picked() == (Uniform(5),)


# --- free captions ---


@pytest.mark.parametrize(
    ("answer", "settings", "expected"),
    [
        ("<think>Hm</think>A dog runs.", {}, "A dog runs."),
        ("I'm sorry, but I can't see the video.", {}, "the model refuses"),
        (completion("A dog runs and", "length"), {}, "cut off at 256 tokens"),
        (completion("A dog runs. It", "length"), {"when_cut_off": "sentence"}, "A dog runs."),
    ],
)
def test_what_is_stored_is_a_caption(tmp_path, answer, settings, expected):
    row = answered(answer, tmp_path, **settings)
    found = row["error"]["message"] if row["error"] else row["caption_clip"]
    assert expected in found


# --- structured captions ---


def test_each_field_and_question_is_a_typed_column(tmp_path):
    row = answered(ANSWER, tmp_path, **FORM)
    assert row["error"] is None
    assert row["clip_fields_reason"] is None
    assert row["short"] == row["caption_clip"] == "A dog runs."
    assert (row["subjects"], row["people"], row["camera"]) == (["a dog"], 0, "static")
    assert (row["watermark"], row["watermark_answer"]) == (False, "no")
    schema = row["request"]["response_format"]["json_schema"]["schema"]
    assert schema["required"] == list(ANSWER) == list(schema["properties"])
    assert schema["properties"]["camera"] == {"type": "string", "enum": ["pan", "static"]}
    asked = row["request"]["messages"][-1]["content"][-1]["text"]
    assert '- "watermark": "yes", "no" or "unsure": Is there a watermark?' in asked
    assert '- "subjects": a list of texts: the main people' in asked


@pytest.mark.parametrize(
    ("changed", "column", "value", "reason"),
    [
        ({"people": "two"}, "people", None, 'people: "two" is no number'),
        ({"people": "2"}, "people", 2, None),
        ({"people": True}, "people", None, "people: true is no number"),
        ({"people": 1.5}, "people", None, "people: 1.5 is no whole number"),
        ({"subjects": "a dog"}, "subjects", ["a dog"], None),
        ({"subjects": [1]}, "subjects", None, "subjects: 1 is no text"),
        ({"camera": "crane"}, "camera", None, 'camera: "crane" is none of the choices'),
        ({"camera": None}, "camera", None, "camera: the model answered null"),
        ({"watermark": True}, "watermark", True, None),
        ({"watermark": "Yes, at the top."}, "watermark_answer", "Yes, at the top.", None),
        ({"watermark": "Yes, at the top."}, "watermark", True, None),
        ({"watermark": "unsure"}, "watermark_answer", "unsure", "watermark: the model is unsure"),
        ({"watermark": "unsure"}, "watermark", None, "watermark: the model is unsure"),
        ({"watermark": "\ud800"}, "watermark_answer", "\\ud800", "is neither yes nor no"),
        ({"watermark": "Unsure."}, "watermark", None, "watermark: the model is unsure"),
        ({"short": "x <|im_end|>"}, "short", "x", None),
        ({"people": 9007199254740993}, "people", 9007199254740993, None),
        ({"subjects": ["***"]}, "subjects", None, "subjects: the text contains no word"),
        (
            {"subjects": ["a dog", None, "***"]},
            "subjects",
            ["a dog"],
            "subjects: left out: the text contains no word: '***'",
        ),
    ],
)
def test_field_of_another_type_is_null_with_a_reason(tmp_path, changed, column, value, reason):
    row = answered({**ANSWER, **changed}, tmp_path, **FORM)
    assert row["error"] is None
    assert row[column] == value
    assert (reason is None) == (row["clip_fields_reason"] is None)
    assert (reason or "") in (row["clip_fields_reason"] or "")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ("A dog runs.", "the answer has no JSON object with fields: 'A dog runs.'"),
        ("", "has no JSON object with fields: it is empty"),
        ({"people": 1}, "the answer has no usable short: missing"),
        ({"short": "yes yes yes yes yes"}, "no usable short: the text repeats 'yes'"),
        ({"short": ""}, "the text is empty"),
        ({"short": "I'm sorry, I can't help with that."}, "the model refuses"),
        ("<think>I should", "reasoning without an answer"),
        ('{"short": "' + "long " * 5000, "more than 20,000"),
        (completion(json.dumps(ANSWER), "length"), "was cut off at 256 tokens"),
        ("{" * 5000, "no JSON object"),
    ],
)
def test_answer_without_a_caption_is_a_failure(tmp_path, answer, said):
    row = answered(answer, tmp_path, **FORM)
    assert row["error"]["kind"] == "model"
    assert said in row["error"]["message"]
    assert row["short"] is None


@pytest.mark.parametrize(
    "text",
    [
        "Sure! Here it is:\n```json\n{}\n```\nAnything else?",
        "<think>{{}}</think>{}",
        "[{}]",
        "I see {{many}} things: {}",
    ],
)
def test_object_is_found_in_whatever_surrounds_it(tmp_path, text):
    row = answered(text.format(json.dumps(ANSWER)), tmp_path, **FORM)
    assert (row["error"], row["clip_fields_reason"], row["people"]) == (None, None, 0)


@pytest.mark.parametrize(
    "answer",
    [
        # A list of things with more fields than the form.
        {**ANSWER, "seen": [dict.fromkeys("abcdefgh", "x")]},
        {"answer": ANSWER, "confidence": 0.9},
        {name.replace("s", "S", 1).title(): value for name, value in ANSWER.items()},
        # The schema, and only then the answer.
        json.dumps(CaptionClip(**FORM).form.schema()) + json.dumps(ANSWER),
    ],
)
def test_object_with_the_forms_fields_is_taken(tmp_path, answer):
    row = answered(answer, tmp_path, **FORM)
    assert (row["error"], row["clip_fields_reason"]) == (None, None)
    assert (row["short"], row["people"], row["watermark"]) == ("A dog runs.", 0, False)


def test_server_that_takes_fewer_pictures_is_refused_before_the_run():
    def answer(request):
        shown = sum(part["type"] == "image_url" for part in request["messages"][-1]["content"])
        return f"{shown} pictures"

    with openai_server(answer) as stand_in:
        stage = CaptionClip(model=f"{stand_in.url}#tiny", clip_frames=3, server_retries=0)
        (check,) = stage.model_checks("caption_clip", {})
        assert check.run() == "answers a request with 3 pictures"
        assert str(stand_in.requests[0]).count("image/jpeg") == 3
        stand_in.always = 400
        with pytest.raises(ClipmillError, match=r"with 3 pictures: .*show it fewer, or raise its"):
            check.run()


def test_whole_fields_of_an_answer_that_was_cut_off_are_kept_by_choice(tmp_path):
    text = '{"short": "A dog runs.", "subjects": ["a dog",], "people'
    row = answered(completion(text, "length"), tmp_path, when_cut_off="keep", **FORM)
    assert (row["caption_clip"], row["clip_finish_reason"]) == ("A dog runs.", "length")
    assert "people: the answer was cut off at 256 tokens" in row["clip_fields_reason"]
    assert row["people"] is None


def test_question_alone_also_asks_for_a_caption(tmp_path):
    row = answered(
        {"caption": "A dog runs.", "slides": "yes"}, tmp_path, questions={"slides": "Are these?"}
    )
    assert (row["caption_clip"], row["slides"], row["error"]) == ("A dog runs.", True, None)
    assert "caption" not in row
    odd = answered(
        {"key": "A dog runs.", "self": 1}, tmp_path, fields={"key": "text", "self": "number"}
    )
    assert (odd["caption_clip"], odd["key"], odd["self"]) == ("A dog runs.", "A dog runs.", 1.0)
    chosen = answered(
        {**ANSWER, "dense": "A dog runs far."}, tmp_path, fields=["short", "dense"],
        caption_field="dense",
    )  # fmt: skip
    assert (chosen["caption_clip"], chosen["short"]) == ("A dog runs far.", "A dog runs.")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fields": {"Short": "text"}}, "can't be the name of a column"),
        ({"fields": {"error": "text"}}, "already the name of a column"),
        ({"fields": {"clip_id": "text"}}, "already the name of a column"),
        ({"fields": {"video_id": "text"}}, "already the name of a column"),
        ({"questions": {"caption": "Is it one?"}}, "already the name of a column"),
        ({"fields": {"caption": "number"}}, "the field caption is not of type text"),
        ({"fields": ["shrt"]}, "shrt: no well-known field"),
        ({"fields": {"a": "txt"}}, "Input should be 'text', 'texts', 'number'"),
        ({"fields": {"a": ["x", "X"]}}, "two of the texts in one_of are the same"),
        ({"fields": {"a": {"type": "number", "one_of": ["1"]}}}, "one_of is for texts"),
        ({"fields": {"a": [True, False]}}, "yes, no, on and off need quotes in YAML"),
        ({"engine": "vllm"}, "engine needs the server's environment, e.g. engine: {vllm: {pyth"),
        ({"fields": {"a": None}, "questions": {"a": "Is it?"}}, "two columns would be named a"),
        ({"fields": {"a_answer": None}, "questions": {"a": "?"}}, "columns would be named a_answ"),
        ({"fields": {"a": "number"}, "caption_field": "a"}, "which is no field of type text"),
        ({"questions": {"a": " "}}, "empty question"),
        ({"prompt": " "}, "prompt is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, said):
    with pytest.raises(ValidationError, match=said):
        CaptionClip(**settings)


def test_numbers_among_the_only_texts_are_read_as_texts():
    assert CaptionClip(fields={"size": [1, 2.5, "more"]}).fields["size"].one_of == (
        "1",
        "2.5",
        "more",
    )


def test_columns_come_from_settings_and_from_what_a_run_recorded():
    stage = CaptionClip(**FORM)
    recorded = json.loads(stage.model_dump_json())
    assert CaptionClip.table_of(recorded) == stage.table_schema
    assert CaptionClip.table_of({}) == CaptionClip().table_schema
    assert CaptionClip().table_schema == CLIP_CAPTIONS
    assert pickle.loads(pickle.dumps(stage)) == stage
    assert CaptionClip.model_validate(stage.model_dump()) == stage
    assert stage.identity()["fields"]["camera"] == {"one_of": ("pan", "static")}
    turned = CaptionClip(fields=dict(reversed(FORM["fields"].items())), **{"questions": {}})
    assert turned.prompts() != CaptionClip(fields=FORM["fields"]).prompts()
