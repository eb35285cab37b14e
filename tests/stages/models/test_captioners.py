"""Every kind of captioner, as a tiny model of its real architecture."""

from __future__ import annotations

import json
import shutil
from contextlib import contextmanager

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.models.captioners import PictureToCaption, open_captioner
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.gathering import Gathered
from clipmill.stages.models.engines.requests import Generation, Picture, Request
from clipmill.stages.models.generation import GeneratingStage, arguments_of
from clipmill.stages.models.outputs.decoding import Decoder
from clipmill.stages.models.pixels import PlainPixels
from clipmill.stages.references import ModelReference
from tests.models_factory import hf, tiny_model

FAMILIES = {
    "blip": "Blip",
    "blip2": "Blip2",
    "florence2": "Florence2",
    "git": "Git",
    "qwen_vl": "Chat",
    "vision_encoder_decoder": "VisionEncoderDecoder",
}
# Without the rule, random weights would repeat one word for ever.
GREEDY = Generation(max_new_tokens=8, no_repeat_ngram_size=1)
BEAMS = Generation(max_new_tokens=8, num_beams=3, no_repeat_ngram_size=1)


class Settings(GeneratingStage):
    """Only the settings."""


def jpeg(seed: int, height: int = 90, width: int = 160) -> bytes:
    """A picture of 4 × 4 coloured tiles."""
    tiles = np.random.default_rng(seed).integers(0, 255, (4, 4, 3), dtype=np.uint8)
    picture = cv2.resize(tiles, (width, height), interpolation=cv2.INTER_NEAREST)
    return cv2.imencode(".jpg", picture)[1].tobytes()


@contextmanager
def captioner(folder, batch_images=4, dtype="float32", **settings):
    with open_captioner(
        ModelReference(folder=str(folder)),
        Settings(dtype=dtype, **settings),
        "caption_frames.model",
        batch_images,
    ) as opened:
        yield opened


def pictures(count: int, prompts=(None,)) -> list[PictureToCaption]:
    """Pictures of two shapes; their tickets are their number and prompt."""
    return [
        PictureToCaption((i, prompt), jpeg(i, 90 if i % 2 else 120), prompt)
        for i in range(count)
        for prompt in prompts
    ]


@pytest.mark.parametrize("generation", [GREEDY, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", FAMILIES)
def test_text_depends_only_on_its_picture(name, generation):
    """Alone, batched or in another order, a picture gets the same text; others get others."""
    prompts = (None, "a red") if name in ("blip", "blip2", "git", "qwen_vl") else (None,)
    asked = pictures(5, prompts)
    with captioner(tiny_model(name)) as opened:
        assert type(opened.engine.model).__name__ == FAMILIES[name]
        together = opened.describe(asked, generation)
        turned = opened.describe(asked[::-1], generation)
        alone = {}
        for picture in asked:
            alone |= opened.describe([picture], generation)
    assert together == turned == alone
    assert set(together) == {picture.ticket for picture in asked}
    assert all(isinstance(answer, Completion) and answer.text for answer in together.values())
    assert len({answer.text for answer in together.values()}) == len(asked)


@pytest.mark.parametrize("generation", [GREEDY, BEAMS], ids=["greedy", "beams"])
@pytest.mark.parametrize("name", FAMILIES)
def test_answer_that_ends_is_told_from_one_that_was_cut_off(name, generation):
    """The third token of the first answer becomes one more token that ends the model's answers."""
    asked = pictures(4)
    with captioner(tiny_model(name), batch_images=1) as opened:
        made = recorded(opened.engine.model)
        cut = opened.describe(asked, generation)
        third = made[0][2]
        made.clear()
        end_at(opened.engine.model.model, third)
        ended = opened.describe(asked, generation)
    with captioner(tiny_model(name)) as opened:
        end_at(opened.engine.model.model, third)
        together = opened.describe(asked, generation)
    # Not the texts: beam search may pad with this token, which is no special one.
    assert how_ended(together) == how_ended(ended)
    assert {(answer.complete, answer.new_tokens) for answer in cut.values()} == {(False, 8)}
    assert [(answer.complete, answer.new_tokens) for answer in ended.values()] == [
        (third in tokens, tokens.index(third) + 1 if third in tokens else 8) for tokens in made
    ]
    assert any(answer.complete for answer in ended.values())
    no_prompt = name == "vision_encoder_decoder"
    assert all((answer.prompt_tokens is None) == no_prompt for answer in cut.values())


def how_ended(answers):
    return {ticket: (one.complete, one.new_tokens) for ticket, one in answers.items()}


def recorded(family):
    """The new tokens of each answer, as they come."""
    made = []
    new_tokens = family.new_tokens

    def recording(output, inputs):
        new = new_tokens(output, inputs)
        made.extend(new.tolist())
        return new

    family.new_tokens = recording
    return made


def end_at(model, token):
    if type(model) is hf.BlipForConditionalGeneration:
        model.config.text_config.sep_token_id = token
    for module in model.modules():
        settings = getattr(module, "generation_config", None)
        if settings is not None:
            declared = settings.eos_token_id
            settings.eos_token_id = [token, *([] if declared is None else [declared])]


@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_gives_texts_too(name):
    with captioner(tiny_model(name), dtype="bfloat16") as opened:
        texts = opened.describe(pictures(3), GREEDY)
    assert all(isinstance(answer, Completion) and answer.text for answer in texts.values())


@pytest.mark.parametrize("prompt", [None, "a red dog", "the"])
@pytest.mark.parametrize("name", ["git", "git_of_videos"])
def test_git_gives_the_tokens_of_bare_transformers(name, prompt):
    """Published use: a prompt stands after [CLS], without [SEP]; a caption begins with nothing.

    A model for videos is given as many frames as it was trained with.
    """
    folder = tiny_model(name)
    processor = hf.AutoProcessor.from_pretrained(folder)
    bare = hf.AutoModelForCausalLM.from_pretrained(folder).eval()
    asked = [PictureToCaption(i, jpeg(i), prompt) for i in range(5)]
    settings = arguments_of(GREEDY, lambda: False)
    expected = []
    with captioner(folder, batch_images=2) as opened:
        found = opened.describe(asked, GREEDY)
        for picture in asked:
            model = opened.engine.model
            request = Request.of("", Picture(picture.jpeg), generation=GREEDY)
            with model.tools.borrowed() as tools:
                pixels = model.pixels([request], tools)
            shown = (1, 6, 3, 32, 32) if name == "git_of_videos" else (1, 3, 32, 32)
            assert pixels.shape == shown
            given = {}
            if prompt:
                words = processor(text=prompt, add_special_tokens=False).input_ids
                given["input_ids"] = torch.tensor([[processor.tokenizer.cls_token_id, *words]])
            made = bare.generate(pixel_values=pixels, **given, **settings)[0]
            new = made[len(given["input_ids"][0]) if given else 1 :]
            expected.append(processor.decode(new, skip_special_tokens=True))
    assert [answer.text for answer in found.values()] == expected
    assert all(expected)
    assert len(set(expected)) > 1


def test_prompts_of_the_same_length_share_a_batch(monkeypatch):
    """Tags give each clip its own prompt; eight pictures with two lengths take two batches."""
    with captioner(tiny_model("blip")) as opened:
        generate, sizes = opened.engine.model.generate, []

        def counted(inputs, *settings):
            sizes.append(len(inputs["pixel_values"]))
            return generate(inputs, *settings)

        monkeypatch.setattr(opened.engine.model, "generate", counted)
        opened.describe(pictures(4, ("a red dog", "a cat")), GREEDY)
    assert sizes == [4, 4]


def test_special_tokens_that_mark_reasoning_stay_in_the_text():
    """Others are left out: decoded without the marks, reasoning and answer would be one text."""
    words = {word: i for i, word in enumerate(["<unk>", "[THINK]", "[/THINK]", "</s>", "a", "dog"])}
    raw = Tokenizer(WordLevel(words, unk_token="<unk>"))
    raw.add_special_tokens(["[THINK]", "[/THINK]", "</s>"])
    tokenizer = hf.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>")
    rows = torch.tensor([[1, 4, 2, 5, 3], [4, 5, 3, 3, 3]])
    assert Decoder(tokenizer).texts(tokenizer, rows) == ["[THINK]a[/THINK]dog", "a dog"]


@pytest.mark.parametrize("opened_by", ["<think>\n", ""])
def test_reasoning_that_the_template_opens_is_known_as_such(opened_by, tmp_path):
    """Cut off before its end, it would otherwise look like a caption."""
    folder = copied("qwen_vl", tmp_path)
    template = folder / "chat_template.jinja"
    start = "<|im_start|>assistant\n"
    template.write_text(template.read_text().replace(start, start + opened_by))
    with captioner(folder) as opened:
        answers = opened.describe(pictures(2), GREEDY).values()
    assert [answer.text.startswith("<think>") for answer in answers] == [bool(opened_by)] * 2


def test_prompt_is_not_part_of_the_caption():
    """BLIP's output begins with its prompt, which the model did not generate."""
    with captioner(tiny_model("blip")) as opened:
        found = opened.describe([PictureToCaption(0, jpeg(0), "a picture of")], GREEDY)
    assert not found[0].text.startswith("a picture of")
    assert len(found[0].text.split()) == GREEDY.max_new_tokens


def test_generation_settings_reach_the_model():
    with captioner(tiny_model("blip")) as opened:
        short, long = (
            opened.describe([PictureToCaption(0, jpeg(0))], Generation(count, count, 1, 1))[0].text
            for count in (3, 9)
        )
    assert (len(short.split()), len(long.split())) == (3, 9)


@pytest.mark.parametrize(
    ("name", "prompt"), [("vision_encoder_decoder", "a picture of"), ("florence2", "<OD>")]
)
def test_unsupported_prompt_is_refused_at_the_start(name, prompt):
    with captioner(tiny_model(name)) as opened:
        opened.check_prompt(None)
        with pytest.raises(ClipmillError, match="prompt"):
            opened.check_prompt(prompt)


def test_broken_picture_fails_alone():
    good = pictures(4)
    with captioner(tiny_model("blip")) as opened:
        texts = opened.describe([*good[:2], PictureToCaption("bad", b"no jpeg"), *good[2:]], GREEDY)
        expected = opened.describe(good, GREEDY)
    failure = texts.pop("bad")
    assert isinstance(failure, RowFailed)
    assert failure.kind == "bad_media"
    assert texts == expected


def run(size, compute, *groups):
    """The results for groups of items, handed in together."""
    gathered = Gathered(size, list, compute)
    items = [(item, name, item) for name, group in enumerate(groups) for item in group]
    futures = gathered.submit_all(items)
    results = [future.exception(60) or future.result() for future in futures]
    gathered.close()
    return results, gathered.size


def test_batch_is_halved_permanently_if_memory_runs_out():
    """Sizes tried: 8 fails, then 4 fails, then 2, and 2 from then on."""
    sizes = []

    def compute(batch):
        sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [item * 10 for item in batch]

    results, size = run(8, compute, range(10), range(10, 13))
    assert results == [item * 10 for item in range(13)]
    assert (sizes, size) == ([8, 4, 2, 2, 2, 2, 2, 2, 1], 2)
    ((failure,), _) = run(4, lambda batch: bytearray(1 << 62), [1])
    assert (failure.kind, "out of memory" in failure.message) == ("model", True)


def test_exception_fails_only_the_item_that_causes_it():
    def compute(batch):
        if 3 in batch:
            raise IndexError("three")
        return batch

    results, _ = run(4, compute, range(6))
    assert [result for result in results if not isinstance(result, RowFailed)] == [0, 1, 2, 4, 5]
    assert results[3].message == "IndexError: three"
    results, _ = run(2, lambda batch: [1], [1, 2])
    assert [type(result) for result in results] == [int, int]


def copied(name, tmp_path):
    return shutil.copytree(tiny_model(name), tmp_path / name)


def test_missing_weights_are_an_error_not_random_numbers(tmp_path):
    folder = copied("blip", tmp_path)
    weights = load_file(folder / "model.safetensors")
    name = "text_decoder.cls.predictions.transform.dense.weight"
    del weights[name]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ClipmillError, match=f"lacks 1 weights.*{name}"), captioner(folder):
        pass


def test_code_in_a_pickle_is_not_run(tmp_path):
    folder = copied("blip", tmp_path)
    (folder / "model.safetensors").unlink()
    mark = tmp_path / "was_run"

    class Hostile:
        def __reduce__(self):
            return open, (str(mark), "w")

    torch.save({"weight": Hostile()}, folder / "pytorch_model.bin")
    with pytest.raises(ClipmillError, match="more than weights"), captioner(folder):
        pass
    assert not mark.exists()


def test_code_in_the_folder_is_run_only_if_the_setting_allows_it(tmp_path):
    folder = copied("blip", tmp_path)
    mark = tmp_path / "was_run"
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w')")
    with pytest.raises(ClipmillError, match="trust_remote_code: true"), captioner(folder):
        pass
    assert not mark.exists()


def test_folder_without_a_model_is_an_error_that_names_the_setting(tmp_path):
    with pytest.raises(ClipmillError, match=r"caption_frames\.model"), captioner(tmp_path):
        pass
    nowhere = captioner(tmp_path / "nowhere")
    with pytest.raises(ClipmillError, match=r"caption_frames\.model.*nowhere"), nowhere:
        pass


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("Blip", {"size": {"height": 48, "width": 48}}),
        ("ViT", {"size": {"height": 32, "width": 40}}),
        ("CLIP", {"size": {"height": 32, "width": 32}, "do_center_crop": False}),
        ("CLIP", {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}),
    ],
)
def test_plain_pixels_equal_the_models_own_processor(name, settings):
    """For a smooth picture, apart from rounding."""
    processor = getattr(hf, f"{name}ImageProcessor")(**settings)
    smooth = cv2.resize(
        np.random.default_rng(0).integers(0, 255, (5, 5, 3), dtype=np.uint8),
        (320, 180),
        interpolation=cv2.INTER_CUBIC,
    )
    plain = PlainPixels.of(processor)
    expected = processor([smooth], return_tensors="pt")["pixel_values"]
    assert plain.batch([smooth]).shape == expected.shape
    assert float((plain.batch([smooth]) - expected).abs().mean()) < 0.02
    assert float((plain.batch([smooth[:, ::-1]]) - expected).abs().mean()) > 0.2


@pytest.mark.parametrize(
    "processor",
    [
        hf.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}),
        hf.ViTImageProcessor(do_resize=False),
        hf.Qwen2VLImageProcessor(),
    ],
    ids=lambda processor: type(processor).__name__,
)
def test_processor_that_does_more_is_used_itself(processor):
    assert PlainPixels.of(processor) is None
