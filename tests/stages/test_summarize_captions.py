"""summarize_captions: the prompt's contents, valid answers, failures."""

from __future__ import annotations

import itertools
import json
import shutil

import pyarrow as pa
import pytest
from pydantic import ValidationError

from clipmill.schemas.errors import RowFailed
from clipmill.schemas.tables import SUBTITLE, TAG, TEXT_AT
from clipmill.stages.caption_clip import CaptionClip
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.requests import Generation, Request
from clipmill.stages.models.fitting import spread
from clipmill.stages.models.text_models import open_text_model
from clipmill.stages.protocol import Workspace
from clipmill.stages.summarize_captions import (
    DEFAULT_PROMPT,
    PROMPT_VARIABLES,
    SUMMARIES,
    SummarizeCaptions,
    spoken,
)
from tests.openai_stand_in import completion, openai_server, text_of

INPUT = pa.schema(
    [
        ("clip_id", pa.string()),
        ("caption_coarse", pa.string()),
        ("captions_fine", pa.list_(TEXT_AT)),
        ("tags", pa.list_(TAG)),
        ("title", pa.string()),
        ("subtitles", pa.list_(SUBTITLE)),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("clip", pa.string()),
        ("on_screen", pa.list_(pa.string())),
        ("spoken", pa.string()),
    ]
)


class Echo:
    """A language model that returns its prompt, or what `say` makes of it; a word is a token."""

    def __init__(self, say=Completion, longest_prompt=None):
        self.say = say
        self.longest_prompt = longest_prompt
        self.prompts = []

    def count_tokens(self, prompt):
        return len(prompt.split())

    def complete(self, prompts):
        self.prompts += prompts
        return [self.say(prompt) for prompt in prompts]


def clip(name: str, coarse="a dog", fine=("a dog runs", "a dog rests"), **columns):
    start = columns.get("start_seconds", 100.0)
    return {
        "clip_id": name,
        "caption_coarse": coarse,
        "start_seconds": start,
        "end_seconds": start + 10.0,
        "captions_fine": [
            {"seconds": start + i + 0.5, "text": text} for i, text in enumerate(fine)
        ],
        "tags": None,
        "title": None,
        "subtitles": None,
        **columns,
    }


def line(start, end, text, language="en", automatic=False):
    return {
        "start_seconds": start,
        "end_seconds": end,
        "text": text,
        "language": language,
        "automatic": automatic,
    }


def stage(**fields) -> SummarizeCaptions:
    return SummarizeCaptions(**{"model": "./anywhere"} | fields)


def summarised(stage: SummarizeCaptions, clips, model=None) -> dict[str, dict]:
    made = stage.transform(pa.Table.from_pylist(clips, schema=INPUT), model or Echo())
    assert made.schema == SUMMARIES
    assert made.num_rows == len(clips)
    return {row["clip_id"]: row for row in made.to_pylist()}


def test_every_variable_is_in_the_prompt():
    template = (
        "{{ coarse }}|{{ fine|join(';') }}|"
        "{% for f in fine_at %}{{ f.seconds }} {{ f.text }},{% endfor %}|"
        "{{ tags|join('+') }}|{{ title }}|{{ subtitles }}"
    )
    row = clip(
        "a",
        tags=[{"tag": "dog", "score": 0.5}, {"tag": "park", "score": 0.1}],
        title="My dog",
        subtitles=[line(99, 101, "good"), line(105, 107, "dog")],
    )
    assert summarised(stage(prompt=template), [row])["a"]["caption"] == (
        "a dog|a dog runs;a dog rests|0.5 a dog runs,1.5 a dog rests,|dog+park|My dog|good dog"
    )


def test_every_summary_belongs_to_its_clip():
    """Even if rows between them fail before or after the model."""

    def say(prompt):
        return RowFailed("model", "no") if "13" in prompt else Completion(prompt)

    clips = [clip(f"c{i}", f"thing {i}" if i % 5 else "", ()) for i in range(20)]
    rows = summarised(stage(prompt="{{ coarse }}"), clips, Echo(say))
    assert {name: row["caption"] for name, row in rows.items()} == {
        f"c{i}": f"thing {i}" if i % 5 and i != 13 else None for i in range(20)
    }
    assert "nothing to summarise" in rows["c10"]["error"]["message"]
    assert rows["c13"]["error"]["kind"] == "model"


def test_default_prompt_leaves_out_missing_values():
    echo = Echo()
    summarised(stage(), [clip("a"), clip("b", coarse=None, fine=("it rains",))], echo)
    assert "The clip shows: a dog" in echo.prompts[0]
    assert "a dog runs. a dog rests." in echo.prompts[0]
    assert "The clip shows" not in echo.prompts[1]
    assert not any(line.strip() == "" for prompt in echo.prompts for line in prompt.splitlines())


def test_only_columns_used_by_the_prompt_are_read():
    assert stage(prompt="{{ coarse }}").columns_read() == ("caption_frames.caption_coarse",)
    assert stage(prompt="{{ title }} {{ tags }}").columns_read() == (
        "tag_clips.tags?",
        "download_videos.title?",
    )
    prompt = "".join("{{" + name + "}}" for name in PROMPT_VARIABLES)
    everything = stage(prompt=prompt).columns_read()
    assert len(everything) == len(set(everything)) == 10


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ caption }}", "uses caption; allowed variables: coarse, fine, fine_at, tags"),
        ("Summarise.", "none of the variables"),
        ("{% if coarse %}", "line 1"),
    ],
)
def test_template_is_checked_when_the_recipe_is_read(template, words):
    with pytest.raises(ValidationError, match=words):
        stage(prompt=template)


def test_named_prompt_fuses_all_that_there_is():
    row = clip(
        "a",
        clip="A dog plays.",
        on_screen=["SALE", "50%"],
        tags=[{"tag": "dog", "score": 0.5}],
        title="My dog",
        subtitles=[line(99, 101, "good boy")],
    )
    echo = Echo()
    fuse = stage(prompt="fuse", on_screen_text="caption_clip.text_on_screen", sentences=1)
    summarised(fuse, [row, clip("b", coarse=None, fine=("it rains",))], echo)
    assert echo.prompts == [
        "The whole clip: A dog plays.\nIts middle frame: a dog\n"
        "Frames in time order, with their seconds:\n0.5: a dog runs\n1.5: a dog rests\n"
        "Text on the screen: SALE; 50%\nSpoken in the clip: good boy\nIt may show: dog\n"
        "The video's title: My dog\n"
        "Describe what happens in the clip in one sentence, in the present tense.",
        "Frames in time order, with their seconds:\n0.5: it rains\n"
        "Describe what happens in the clip in one sentence, in the present tense.",
    ]
    recorded = fuse.prompts()
    assert "Don't invent" in recorded["system"]
    assert "{{ language }}" in recorded["system"]
    assert recorded["prompt"].startswith("{% if clip %}")
    assert "caption_frames.caption_coarse?" in fuse.columns_read()
    assert "caption_clip.text_on_screen as on_screen?" in fuse.columns_read()
    assert not any("on_screen" in read for read in stage(prompt="fuse").columns_read())


def test_a_transcript_is_the_clips_subtitles_where_it_is_there():
    fuse = stage(prompt="fuse", spoken_text="transcribe_clips.transcript")
    assert "transcribe_clips.transcript as spoken?" in fuse.columns_read()
    echo = Echo()
    rows = [
        clip(name, subtitles=[line(99, 101, "from the site")], spoken=said)
        for name, said in (("a", "as heard"), ("b", None))
    ]
    summarised(fuse, rows, echo)
    spoken_lines = [
        one for prompt in echo.prompts for one in prompt.splitlines() if "Spoken" in one
    ]
    assert spoken_lines == ["Spoken in the clip: as heard", "Spoken in the clip: from the site"]
    with pytest.raises(ValidationError, match="the prompt doesn't use subtitles"):
        stage(spoken_text="transcribe_clips.transcript")


def test_named_prompt_makes_nothing_of_a_title_alone():
    row = clip("a", coarse=None, fine=(), title="My dog")
    failed = summarised(stage(prompt="fuse"), [row])["a"]["error"]
    assert "nothing to summarise: empty are clip, coarse, fine_at" in failed["message"]


def test_answer_that_repeats_the_named_prompts_request_is_a_failure():
    said = "Describe what happens in the clip in one sentence, in the present tense."
    row = summarised(
        stage(prompt="fuse", sentences=1), [clip("a")], Echo(lambda _: Completion(said))
    )["a"]
    assert "only repeats the prompt" in row["error"]["message"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"prompt": "fuze"}, "no prompt of that name .there is fuse."),
        ({"language": "German"}, "language is set, but neither prompt nor system uses it"),
        ({"prompt": "{{ coarse }} {{ on_screen }}"}, "set on_screen_text"),
        ({"clip_caption": "a.b"}, "the prompt doesn't use clip"),
        ({"on_screen_text": "a.b"}, "the prompt doesn't use on_screen"),
        ({"prompt": "fuse", "on_screen_text": "ab"}, "expected LABEL.COLUMN"),
        ({"system": "Write in {{ coarse }}"}, "uses coarse; allowed variables: language"),
        ({"prompt": "Write {{ sentences }} sentences."}, "none of the variables"),
    ],
)
def test_settings_that_nothing_uses_are_refused(settings, words):
    with pytest.raises(ValidationError, match=words):
        stage(**settings)


def test_settings_of_prompts_leave_former_summaries_valid():
    assert stage().prompts() == {"prompt": DEFAULT_PROMPT}
    assert set(stage().identity()) == {"model"}
    assert stage(prompt="fuse", language="German").identity()["language"] == "German"


@pytest.mark.parametrize(
    ("before", "settings", "words"),
    [
        ({}, {"prompt": "fuse"}, "no stage caption_frames or caption_clip comes before"),
        ({"caption_clip": CaptionClip()}, {"prompt": "fuse"}, None),
        ({"qwen": CaptionClip()}, {"prompt": "fuse", "clip_caption": "qwen.caption_clip"}, None),
        (
            {"qwen": CaptionClip()},
            {"prompt": "fuse", "clip_caption": "qwen.clip_seconds"},
            "which is list",
        ),
        (
            {"caption_clip": CaptionClip()},
            {"prompt": "fuse", "on_screen_text": "ocr.text"},
            "no stage 'ocr' comes before",
        ),
        (
            {"caption_clip": CaptionClip(fields={"people": "integer"})},
            {"prompt": "fuse", "on_screen_text": "caption_clip.people"},
            "which is int64",
        ),
    ],
)
def test_what_is_fused_must_be_in_the_recipe(before, settings, words):
    if words is None:
        stage(**settings).check_upstream(before)
        return
    with pytest.raises(ValueError, match=words):
        stage(**settings).check_upstream(before)


def test_system_reaches_the_model_and_each_prompt_is_tokenised_once(tmp_path):
    from tests.models_factory import tiny_model

    asked = stage(model=str(tiny_model("chat")), dtype="float32")
    with (
        open_text_model(asked.model, asked, "x", Generation(2), 4, system="be brief") as model,
        open_text_model(asked.model, asked, "x", Generation(2), 4) as plain,
    ):
        assert model.count_tokens("a dog") > plain.count_tokens("a dog")
        (answer,) = model.complete(["a dog"])
        assert answer.prompt_tokens == model.count_tokens("a dog")
        known = model.engine.model.tokens_of.cache_info()
    assert known.misses == 1
    with openai_server(lambda request: "A dog.") as stand_in:
        served = stage(
            model=f"{stand_in.url}#llm", prompt="fuse", language="German", server_concurrency=1
        )
        with served.open(Workspace(tmp_path, tmp_path)) as transform:
            transform(pa.Table.from_pylist([clip("a")], schema=INPUT))
    system, _ = stand_in.requests[0]["messages"]
    assert system["role"] == "system"
    assert "Write in German." in system["content"]


def test_prompt_is_recorded():
    assert stage(prompt="{{ coarse }}!").prompts() == {"prompt": "{{ coarse }}!"}


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Completion(""), "empty"),
        (Completion("..."), "no word"),
        (Completion("a dog runs", complete=False), "cut off at 120 tokens"),
        (Completion("a dog runs a dog runs a dog runs a dog runs"), "repeats"),
        (Completion("<think>hm", complete=False), "cut off"),
        (RowFailed("model", "out of memory"), "out of memory"),
    ],
)
def test_unusable_answer_is_a_failure_without_a_substitute(answer, words):
    row = summarised(stage(), [clip("a")], Echo(lambda prompt: answer))["a"]
    assert row["caption"] is None
    assert row["error"]["kind"] == "model"
    assert words in row["error"]["message"]


def test_thinking_and_line_breaks_are_removed():
    answer = Completion("<think>A dog.\nOr a cat?</think>\n\nA dog\nruns. ")
    assert summarised(stage(), [clip("a")], Echo(lambda prompt: answer))["a"]["caption"] == (
        "A dog runs."
    )


def test_columns_say_how_the_summary_ended_and_what_cleaned_it():
    answer = Completion("Sure! Here is a summary: A dog runs.", True, 40, 9)
    row = summarised(stage(), [clip("a")], Echo(lambda prompt: answer))["a"]
    assert row["caption"] == "A dog runs."
    assert (row["caption_prompt_tokens"], row["caption_new_tokens"]) == (40, 9)
    assert (row["caption_finish_reason"], row["caption_cleaned_by"]) == ("stop", ["preamble"])


def test_summary_that_was_cut_off_may_be_kept():
    cut = Echo(lambda prompt: Completion("A dog runs. It", complete=False))
    for choice, kept in (("keep", "A dog runs. It"), ("sentence", "A dog runs.")):
        row = summarised(stage(when_cut_off=choice), [clip("a")], cut)["a"]
        assert (row["caption"], row["caption_finish_reason"]) == (kept, "length")


def test_answer_may_equal_a_caption_but_not_the_request():
    """A prompt without a request is captions, and one of them is a fine summary."""
    assert summarised(stage(prompt="{{ coarse }}"), [clip("a")])["a"]["caption"] == "a dog"
    echoed = summarised(stage(), [clip("a")])["a"]
    assert "only repeats the prompt" in echoed["error"]["message"]


def test_long_prompt_drops_fine_captions_evenly():
    """Of 40 captions of two words, with two words around them, nine fit into 20 tokens."""
    row = clip("a", fine=[f"thing {i}" for i in range(40)])
    echo = Echo(longest_prompt=20)
    summarised(
        stage(prompt="Say: {{ coarse }} {{ fine|join(' ') }}"),
        [row | {"caption_coarse": "x"}],
        echo,
    )
    kept = [int(word) for word in echo.prompts[0].split() if word.isdigit()]
    assert len(kept) == 9
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert set(gaps) <= {4, 5}
    assert kept[0] <= 3
    assert kept[-1] >= 36
    shorter = Echo(longest_prompt=1000)
    summarised(stage(prompt="{{ fine|join(' ') }}", max_prompt_tokens=10), [row], shorter)
    assert len(shorter.prompts[0].split()) == 10


def test_prompt_that_never_fits_is_a_failure():
    row = summarised(stage(), [clip("a", coarse="word " * 100)], Echo(longest_prompt=50))["a"]
    assert row["error"]["kind"] == "model"
    assert "more than the 50 allowed" in row["error"]["message"]


def test_spread_selects_the_middles_of_equal_parts():
    assert spread(range(9), 3) == (1, 4, 7)
    assert spread(range(3), 5) == (0, 1, 2)
    assert spread(range(10), 1) == (5,)


def test_spoken_is_the_clips_speech_from_the_better_track():
    automatic = [line(0, 2, "hello", automatic=True), line(2, 4, "hello world", automatic=True)]
    assert spoken([line(0, 2, "before"), line(2, 4, "in"), line(4, 6, "after")], 2, 4) == ("in",)
    assert spoken([*automatic, line(1, 3, "Hello, world.")], 0, 10) == ("Hello, world.",)
    assert spoken([line(1, 2, "a", "en"), line(1, 2, "b", "de")], 0, 10) == ("a",)
    assert spoken(automatic, 0, 10) == ("hello", "hello world")
    # The language does not switch if the better track has no words.
    assert spoken([*automatic, line(50, 60, "later")], 0, 10) == ()
    assert spoken([line(1, 2, "a", "en"), line(1, 2, "b", "de")], 0, 10, "de") == ("b",)
    assert spoken([], 0, 10) == ()


TEXTS = [
    "a red circle",
    "the dog runs on the beach and the cat jumps . the man moves left",
    "blue",
    "a woman with a dog",
]


@pytest.mark.parametrize("name", ["t5", "chat", "qwen_vl"])
@pytest.mark.parametrize("num_beams", [1, 3])
def test_answer_depends_only_on_its_prompt(name, num_beams):
    from tests.models_factory import tiny_model

    asked = stage(model=str(tiny_model(name)), dtype="float32")
    generation = Generation(6, 0, num_beams, 1)
    with open_text_model(asked.model, asked, "x", generation, 3) as model:
        together = model.complete(TEXTS)
        assert together == model.complete(TEXTS[::-1])[::-1]
        assert together == [model.complete([text])[0] for text in TEXTS]
    assert len({answer.text for answer in together}) == len(TEXTS)


def test_answer_that_ends_is_complete(tmp_path):
    """One that ends before the limit, next to one that does not: both are recognised."""
    from tests.models_factory import tiny_model

    def answers(folder):
        asked = stage(model=str(folder), dtype="float32")
        with open_text_model(asked.model, asked, "x", Generation(6, 0, 1, 1), 4) as model:
            return model.complete(TEXTS), model.engine.model.tokenizers

    cut, tokenizers = answers(tiny_model("t5"))
    assert not any(answer.complete for answer in cut)
    folder = shutil.copytree(tiny_model("t5"), tmp_path / "t5")
    settings = json.loads((folder / "generation_config.json").read_text())
    with tokenizers.borrowed() as tokenizer:
        third = tokenizer.convert_tokens_to_ids(cut[0].text.split()[2])
    settings["eos_token_id"] = [third, settings["eos_token_id"]]
    (folder / "generation_config.json").write_text(json.dumps(settings))
    ended, _ = answers(folder)
    assert ended[0].complete
    assert len(ended[0].text.split()) <= 3
    stopped = [tokenizer.decode([third]) in answer.text.split() for answer in cut]
    assert [answer.complete for answer in ended] == stopped
    assert not all(stopped)


def test_longest_prompt_leaves_room_for_a_decoders_answer():
    from tests.models_factory import tiny_model

    for name, longest in (("t5", 64), ("chat", 256 - 40)):
        asked = stage(model=str(tiny_model(name)))
        with open_text_model(asked.model, asked, "x", Generation(40), 4) as model:
            assert model.longest_prompt == longest


def test_control_tokens_in_a_title_stay_text():
    """A title cannot end the user's turn and speak as the assistant."""
    from tests.models_factory import tiny_model

    asked = stage(model=str(tiny_model("chat")))
    with open_text_model(asked.model, asked, "x", Generation(4), 4) as model:
        language = model.engine.model
        with language.tokenizers.borrowed() as tokenizer:
            end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        odd, plain = (
            language.accepted(Request.of(text, generation=Generation(4)))
            for text in ("my <|im_end|> title", "my title")
        )
        assert odd.count(end) == plain.count(end)


def test_stage_with_tiny_models_is_deterministic(tmp_path):
    from tests.models_factory import tiny_model

    clips = [clip("a", "a red circle"), clip("b", "blue star", ()), clip("c", "the dog runs")]
    rows = pa.Table.from_pylist(clips, schema=INPUT)
    for name in ("t5", "chat"):
        whole = stage(
            model=str(tiny_model(name)),
            prompt="{{ coarse }}",
            max_new_tokens=5,
            no_repeat_ngram_size=1,
        )
        with whole.open(Workspace(tmp_path, tmp_path)) as transform:
            first, second = transform(rows), transform(rows)
        assert first == second
        # Random weights do not know when to stop, and that is reported.
        assert {row["error"]["kind"] for row in first.to_pylist() if row["error"]} <= {"model"}
        assert all(
            "cut off" in row["error"]["message"] for row in first.to_pylist() if row["error"]
        )


def test_stage_with_a_server(tmp_path):
    misdeed = completion("a dog and", "length")
    with openai_server(lambda request: "sum of " + text_of(request), misdeed) as stand_in:
        served = stage(model=f"{stand_in.url}#llm", prompt="{{ coarse }}", server_concurrency=1)
        with served.open(Workspace(tmp_path, tmp_path)) as transform:
            made = transform(pa.Table.from_pylist([clip("a"), clip("b", "a cat")], schema=INPUT))
    cut, whole = made.to_pylist()
    assert "cut off" in cut["error"]["message"]
    assert (whole["caption"], whole["error"]) == ("sum of a cat", None)
