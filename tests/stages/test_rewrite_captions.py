"""rewrite_captions: variants of a caption, without those that say the same."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest
from pydantic import ValidationError

from clipmill.schemas.tables import TAG, TEXT_AT
from clipmill.stages.caption_frames import CaptionFrames
from clipmill.stages.models.completions import Completion
from clipmill.stages.protocol import Workspace
from clipmill.stages.rewrite_captions import RewriteCaptions
from tests.openai_stand_in import completion, openai_server, text_of

INPUT = pa.schema([("clip_id", pa.string()), ("caption", pa.string()), ("tags", pa.list_(TAG))])


def rewritten(answer, tmp_path, caption="A dog runs.", **settings) -> dict:
    """The row of a clip to whose request a server answers this: a text, a list, or bytes."""
    text = json.dumps({"captions": answer}) if isinstance(answer, list) else answer
    misdeeds = [text] if isinstance(text, bytes) else []
    rows = [{"clip_id": "a", "caption": caption, "tags": [{"tag": "park", "score": 0.5}]}]
    with openai_server(lambda request: text, *misdeeds) as stand_in:
        stage = RewriteCaptions(model=f"{stand_in.url}#tiny", server_retries=0, **settings)
        with stage.open(Workspace(tmp_path, tmp_path)) as transform:
            made = transform(pa.Table.from_pylist(rows, schema=INPUT))
    assert made.schema == stage.table_schema
    return made.to_pylist()[0] | {"requests": stand_in.requests}


def test_one_variant_is_asked_for_in_plain_text(tmp_path):
    row = rewritten("A hound is running.", tmp_path)
    assert row["captions_rewritten"] == ["A hound is running."]
    assert (row["rewritten_reason"], row["rewritten_finish_reason"]) == (None, "stop")
    (request,) = row["requests"]
    assert "response_format" not in request
    assert request["messages"][0]["content"].startswith("You rewrite captions of video clips.")
    assert text_of(request) == "Caption: A dog runs.\nWrite it once in other words."


def test_several_variants_are_one_request(tmp_path):
    row = rewritten(["A hound is running.", "There runs a dog."], tmp_path, variants=2)
    assert row["captions_rewritten"] == ["A hound is running.", "There runs a dog."]
    (request,) = row["requests"]
    schema = request["response_format"]["json_schema"]["schema"]
    assert schema["properties"]["captions"]["maxItems"] == 2
    assert 'whose field "captions" is a list of 2 texts' in text_of(request)


@pytest.mark.parametrize(
    ("answer", "kept", "reason"),
    [
        (["a dog RUNS", "A hound.", "a hound!"], ["A hound."], "1 of 3 texts; 2 say what others"),
        (["A hound.", "", 7], ["A hound."], "1 of 3 texts; the text is empty"),
        (["A.", "B.", "C.", "D."], ["A.", "B.", "C."], None),
        (["A dog runs."], [], "0 of 3 texts; 1 say what others say"),
    ],
)
def test_texts_that_say_the_same_or_nothing_are_left_out(tmp_path, answer, kept, reason):
    row = rewritten(answer, tmp_path, variants=3)
    assert row["error"] is None
    assert row["captions_rewritten"] == kept
    assert (reason or "") in (row["rewritten_reason"] or "")
    assert (reason is None) == (row["rewritten_reason"] is None)


@pytest.mark.parametrize(
    ("answer", "settings"),
    [
        ('```json\n["A hound.", "A pup."]\n```', {}),
        ('{"captions": [{"caption": "A hound."}, {"caption": "A pup."}]}', {}),
        ('{"Captions": ["A hound.", null, "A pup."]}', {}),
        (
            completion('{"captions": ["A hound.", "A pup.", "A d', "length"),
            {"when_cut_off": "keep"},
        ),
    ],
)
def test_list_is_found_in_whatever_form_it_comes(tmp_path, answer, settings):
    row = rewritten(answer, tmp_path, variants=3, **settings)
    assert (row["error"], row["captions_rewritten"]) == (None, ["A hound.", "A pup."])


def test_single_text_instead_of_a_list_is_one_variant(tmp_path):
    row = rewritten('{"captions": "A hound."}', tmp_path, variants=2)
    assert (row["captions_rewritten"], row["error"]) == (["A hound."], None)


def test_caption_that_comes_back_is_no_echo_of_a_prompt_that_is_nothing_else(tmp_path):
    """Nor is its beginning, of which more is said."""
    same = rewritten(
        "A dog runs far away.", tmp_path, "A dog runs far away.", prompt="{{ caption }}"
    )
    assert (same["error"], same["captions_rewritten"]) == (None, [])
    more = rewritten(
        "A dog runs far away. It barks.", tmp_path, "A dog runs far away.", prompt="{{ caption }}"
    )
    assert more["captions_rewritten"] == ["A dog runs far away. It barks."]
    request = "Caption: {{ caption }}\nWrite this in other words."
    echo = rewritten(
        "Caption: A dog runs. Write this in other words.", tmp_path, "A dog runs.", prompt=request
    )
    assert "only repeats the prompt" in echo["error"]["message"]


@pytest.mark.parametrize(
    ("answer", "settings", "said"),
    [
        ("I'm sorry, I can't help with that.", {}, "the model refuses"),
        ([], {"variants": 2}, "the answer has no texts"),
        ("A hound.", {"variants": 2}, "no JSON object"),
        ('{"texts": []}', {"variants": 2}, "no list captions"),
        (completion("A hound and", "length"), {}, "cut off at 256 tokens"),
        (completion('{"captions": ["A', "length"), {"variants": 2}, "cut off at 256 tokens"),
        ("x", {"caption": None}, "the clip has no summarize_captions.caption"),
        ("x", {"caption": " "}, "the clip has no summarize_captions.caption"),
    ],
)
def test_answer_without_any_text_is_a_failure(tmp_path, answer, settings, said):
    if "caption" in settings:
        row = rewritten(answer, tmp_path, **settings)
    else:
        row = rewritten(answer, tmp_path, **settings)
    assert row["error"]["kind"] == "model"
    assert said in row["error"]["message"]


def test_correction_has_what_else_is_known(tmp_path):
    row = rewritten("A dog runs in a park.", tmp_path, prompt="correct")
    (request,) = row["requests"]
    assert "Tags: park\nWrite the corrected caption." in text_of(request)
    assert "Change as little as possible" in request["messages"][0]["content"]
    reads = RewriteCaptions(prompt="correct").columns_read()
    assert reads[0] == "summarize_captions.caption as caption"
    assert set(reads[1:]) == {
        "tag_clips.tags?",
        "caption_frames.caption_coarse?",
        "caption_frames.captions_fine?",
        "caption_clip.caption_clip as clip?",
    }
    assert len(RewriteCaptions().columns_read()) == 1


def test_settings_that_make_no_sense_are_refused():
    with pytest.raises(ValidationError, match="no prompt of that name; there are paraphrase, corr"):
        RewriteCaptions(prompt="rephrase")
    with pytest.raises(ValidationError, match="allowed variables: caption, tags"):
        RewriteCaptions(prompt="{{ caption }} {{ title }}")
    with pytest.raises(ValidationError, match=r"expected LABEL\.COLUMN"):
        RewriteCaptions(caption="caption")
    with pytest.raises(ValidationError, match="the prompt doesn't use clip"):
        RewriteCaptions(clip_caption="qwen.caption_clip")
    other = RewriteCaptions(clip_caption="qwen.caption_clip", prompt="correct")
    assert "qwen.caption_clip as clip?" in other.columns_read()
    with pytest.raises(ValueError, match="no stage 'qwen' comes before it"):
        other.check_upstream({})
    fine = RewriteCaptions(caption="caption_frames.captions_fine")
    with pytest.raises(ValueError, match=r"which is list<.*>, not one text"):
        fine.check_upstream({"caption_frames": CaptionFrames()})


class Counting:
    """A model for which a word is a token, and that answers with its prompt."""

    longest_prompt = 12

    def __init__(self) -> None:
        self.prompts: list[str] = []

    def count_tokens(self, prompt: str) -> int:
        return len(prompt.split())

    def complete(self, prompts: list[str]) -> list[Completion]:
        self.prompts += prompts
        return [Completion("A hound.") for _ in prompts]


def test_long_prompts_get_fewer_fine_captions():
    stage = RewriteCaptions(prompt="{{ caption }} {{ fine|join(' ') }}")
    fine = [{"seconds": float(i), "text": f"thing {i}"} for i in range(40)]
    schema = INPUT.append(pa.field("captions_fine", pa.list_(TEXT_AT)))
    rows = [
        {"clip_id": "a", "caption": "A dog runs.", "tags": None, "captions_fine": fine},
        {"clip_id": "b", "caption": "word " * 20, "tags": None, "captions_fine": fine},
    ]
    model = Counting()
    made = stage.transform(pa.Table.from_pylist(rows, schema=schema), model).to_pylist()
    first, second = sorted(made, key=lambda row: row["clip_id"])
    assert first["captions_rewritten"] == ["A hound."]
    (prompt,) = model.prompts
    assert [int(word) for word in prompt.split() if word.isdigit()] == [5, 15, 25, 35]
    assert "more than the 12 allowed" in second["error"]["message"]
