"""Requests with several pictures, videos, system messages and schemas, through every engine."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import wait

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.media.read.images import decode_jpeg
from clipmill.stages.models.device_errors import DeviceBroken
from clipmill.stages.models.engines.gathering import Gathered
from clipmill.stages.models.engines.opening import open_engine
from clipmill.stages.models.engines.requests import (
    Generation,
    Picture,
    Request,
    Video,
    answers,
    outcome_of,
)
from clipmill.stages.models.engines.servers import ServerEngine
from clipmill.stages.models.generation import GeneratingStage
from clipmill.stages.references import ModelReference
from tests.models_factory import hf, tiny_model
from tests.openai_stand_in import openai_server
from tests.stages.models.test_captioners import jpeg

GREEDY = Generation(max_new_tokens=8, no_repeat_ngram_size=1)
SCHEMA = {"type": "object", "properties": {"short": {"type": "string"}}}


class Settings(GeneratingStage):
    """Only the settings."""


def engine(name: str, takes="pictures", batch=4, **settings):
    folder = tiny_model(name)
    return open_engine(
        ModelReference(folder=str(folder)),
        Settings(**{"dtype": "float32"} | settings),
        "caption_clip.model",
        takes=takes,
        batch=batch,
        longest_answer=8,
    )


def video(first: int, count: int) -> Video:
    return Video(tuple((0.5 * i, jpeg(first + i)) for i in range(count)))


def bare(name: str, *content, system: str | None = None) -> str:
    """The model's answer by transformers alone, for one user's message."""
    folder = tiny_model(name)
    processor = hf.AutoProcessor.from_pretrained(folder)
    model = hf.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    conversation = [{"role": "user", "content": list(content)}]
    if system:
        conversation.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    metadata = [
        {
            "total_num_frames": 500 * len(part["video"]),
            "fps": 1000.0,
            "frames_indices": [500 * i for i in range(len(part["video"]))],
        }
        for part in content
        if part["type"] == "video"
    ]
    options = {"do_sample_frames": False, "video_metadata": [metadata]} if metadata else {}
    inputs = processor.apply_chat_template(
        conversation,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        processor_kwargs=options,
    )
    output = model.generate(
        **inputs, do_sample=False, temperature=None, max_new_tokens=8, no_repeat_ngram_size=1
    )
    new = output[:, inputs["input_ids"].shape[1] :]
    return processor.tokenizer.decode(new[0], skip_special_tokens=True)


def shown(seed: int) -> dict:
    return {"type": "image", "image": Image.fromarray(decode_jpeg(jpeg(seed)))}


def played(first: int, count: int) -> dict:
    frames = [decode_jpeg(jpeg(first + i)) for i in range(count)]
    return {"type": "video", "video": np.stack(frames)}


def said(text: str) -> dict:
    return {"type": "text", "text": text}


@pytest.mark.parametrize("name", ["qwen_vl", "llava_onevision"])
def test_pictures_videos_and_system_reach_the_model(name):
    """Alone and in batches of mixed requests, answers are those of transformers alone."""
    asked = [
        Request.of("what moves", Picture(jpeg(1)), Picture(jpeg(2)), generation=GREEDY),
        Request.of("what moves", video(3, 4), generation=GREEDY),
        Request.of("and", Picture(jpeg(9)), generation=GREEDY, system="write one sentence"),
        Request.of("what stands still", video(5, 6), generation=GREEDY),
        Request.of("a dog", generation=GREEDY),
    ]
    expected = [
        bare(name, shown(1), shown(2), said("what moves")),
        bare(name, played(3, 4), said("what moves")),
        bare(name, shown(9), said("and"), system="write one sentence"),
        bare(name, played(5, 6), said("what stands still")),
        bare(name, said("a dog")),
    ]
    with engine(name) as opened:
        together = [answer.text for answer in answers(opened, asked)]
        alone = [answers(opened, [request])[0].text for request in asked]
    assert together == alone == expected
    assert len(set(expected)) == len(expected)


def test_video_becomes_pictures_with_times_where_there_are_no_videos():
    request = Request.of("what moves", video(3, 2), generation=GREEDY)
    first, second = (Picture(jpeg(seed)) for seed in (3, 4))
    (message,) = request.without_videos().messages
    assert message.parts == ("0.0 s:", first, "0.5 s:", second, "what moves")


def test_schema_is_put_into_words_for_a_model_in_the_process():
    request = Request.of("describe", Picture(jpeg(1)), generation=GREEDY, schema=SCHEMA)
    with engine("qwen_vl") as opened:
        accepted = opened.model.accepted(request)
    assert accepted.schema is None
    assert json.dumps(SCHEMA) in accepted.text
    assert accepted.text.startswith("describe")


@pytest.mark.parametrize(
    "request_",
    [
        Request.of("x", Picture(b"1"), Picture(b"2"), generation=GREEDY),
        Request.of("x", video(1, 2), generation=GREEDY),
        Request.of("x", Picture(b"1"), generation=GREEDY, system="be brief"),
        Request.of("x", generation=GREEDY),
    ],
    ids=["pictures", "video", "system", "text"],
)
def test_model_of_one_picture_refuses_what_it_would_ignore(request_):
    with engine("blip") as opened:
        (failure,) = answers(opened, [request_])
    assert isinstance(failure, RowFailed)
    assert "caption_clip.model: this model (Blip) takes" in failure.message


def test_language_model_gets_system_and_schema_and_refuses_pictures():
    request = Request.of("a dog", generation=GREEDY, system="be brief", schema=SCHEMA)
    with engine("chat", takes="text") as opened:
        with opened.model.tokenizers.borrowed() as tokenizer:
            prompt = tokenizer.decode(opened.model.accepted(request))
        (failure,) = answers(opened, [Request.of("x", Picture(b"1"), generation=GREEDY)])
    assert prompt.startswith("<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\na dog")
    assert '"short"' in prompt
    assert "takes only text" in failure.message


def test_attention_gives_the_same_text_and_missing_packages_are_named():
    asked = [Request.of("what", Picture(jpeg(i)), generation=GREEDY) for i in range(3)]
    with engine("qwen_vl") as opened, engine("qwen_vl", attention="eager") as eager:
        assert eager.model.model.config._attn_implementation == "eager"
        assert answers(opened, asked) == answers(eager, asked)
    for settings, package, how in (
        ({"attention": "flash_attention_2"}, "flash-attn", "`pip install flash-attn`"),
        ({"attention": "flash_attention_3"}, "flash-attn-3", "build it from the folder hopper"),
        ({"quantization": "bitsandbytes_4bit"}, "bitsandbytes", "`pip install bitsandbytes`"),
        ({"quantization": "torchao_int8"}, "torchao", "`pip install torchao`"),
        ({"device_map": "auto"}, "accelerate", "`pip install accelerate`"),
    ):
        (name,) = settings
        needs = (
            rf"caption_clip\.{name}: .* needs the package {package}, which is not installed; {how}"
        )
        with pytest.raises(ClipmillError, match=needs), engine("qwen_vl", **settings):
            pass


def test_settings_that_a_started_server_would_ignore_are_refused():
    with pytest.raises(ValidationError, match="use the server's own options"):
        Settings(engine={"vllm": {"python": "/x"}}, quantization="torchao_int8")
    with pytest.raises(ValidationError, match="exactly one of: vllm, sglang"):
        Settings(engine={})
    with pytest.raises(ValidationError, match=r"bin/python is no absolute path"):
        Settings(engine={"vllm": {"python": "env/bin/python"}})
    one = Settings(engine={"vllm": {"python": "/x"}})
    assert one.identity() == {"engine": {"vllm": []}}
    other = {"vllm": {"python": "/y", "tensor_parallel": 2, "start_seconds": 5}}
    assert Settings(engine=other).identity() == one.identity()
    assert Settings(engine={"sglang": {"python": "/x"}}).identity() != one.identity()


# --- gathering ---


def test_requests_of_several_threads_share_batches():
    """While the model computes one batch, what arrives is gathered for the next."""
    go, sizes = threading.Event(), []

    def compute(batch):
        sizes.append(len(batch))
        assert go.wait(60)
        return [item + 1 for item in batch]

    gathered = Gathered(4, list, compute)
    first = gathered.submit_all([(0, 0, 0)])
    while not sizes:
        time.sleep(0.01)
    # One is prepared next, since nothing else is; the others wait until a batch is full.
    others = [gathered.submit_all([(i, 0, i)])[0] for i in range(1, 10)]
    time.sleep(0.1)
    go.set()
    assert [future.result(60) for future in (*first, *others)] == list(range(1, 11))
    assert max(sizes) == 4
    assert len(sizes) <= 5
    gathered.close()


def test_what_is_handed_in_together_is_cut_by_group_and_order():
    batches = []
    with_lock = threading.Lock()

    def prepare(batch):
        with with_lock:
            batches.append(batch)
        return batch

    gathered = Gathered(3, prepare, list, threads=2)
    items = [(f"{group}{i}", group, i) for i in (4, 1, 3, 0, 2) for group in "ab"]
    futures = gathered.submit_all(items)
    assert [future.result(60) for future in futures] == [item for item, _, _ in items]
    gathered.close()
    assert sorted(batches) == [["a0", "a1", "a2"], ["a3", "a4"], ["b0", "b1", "b2"], ["b3", "b4"]]


def test_next_batches_are_prepared_while_the_model_computes():
    go, prepared = threading.Event(), []

    def prepare(batch):
        prepared.extend(batch)
        return batch

    def compute(batch):
        assert go.wait(60)
        return batch

    gathered = Gathered(2, prepare, compute, threads=2)
    futures = gathered.submit_all([(i, 0, i) for i in range(10)])
    end = time.monotonic() + 60
    while len(prepared) < 8 and time.monotonic() < end:
        time.sleep(0.01)
    time.sleep(0.05)
    assert sorted(prepared) == list(range(8))  # one batch is computed, three are ahead
    go.set()
    assert [future.result(60) for future in futures] == list(range(10))
    gathered.close()


def test_broken_device_fails_all_requests_now_and_later():
    def compute(batch):
        raise RuntimeError("CUDA error: device-side assert triggered")

    gathered = Gathered(1, list, compute)
    futures = gathered.submit_all([(i, 0, i) for i in range(3)])
    wait(futures, 60)
    later = gathered.submit_all([(9, 0, 9)])
    for future in (*futures, *later):
        with pytest.raises(DeviceBroken):
            future.result(60)
    gathered.close()


def test_closing_cancels_what_waits_and_ends_what_is_computed():
    begun = threading.Event()
    gathered: Gathered

    def compute(batch):
        begun.set()
        while not gathered.is_closing:
            time.sleep(0.01)
        return batch

    gathered = Gathered(1, list, compute)
    futures = gathered.submit_all([(i, 0, i) for i in range(5)])
    assert begun.wait(60)
    gathered.close()
    assert futures[0].result(1) == 0
    assert all(future.cancelled() for future in futures[1:])


# --- servers ---


def served(*urls: str, **settings) -> ServerEngine:
    settings = {"retries": 2, "timeout_seconds": 60.0, "first_wait_seconds": 0.0} | settings
    reference = ModelReference(server=urls[0], more_servers=urls[1:], model="tiny")
    return ServerEngine(reference, setting="caption_clip.model", **settings)


def test_server_gets_pictures_times_and_system_in_their_order():
    request = Request.of(
        "what", Picture(b"\xff1"), video(1, 2), generation=GREEDY, system="be brief"
    )
    with openai_server(lambda request: "x") as stand_in, served(stand_in.url) as opened:
        answers(opened, [request])
    system, user = stand_in.requests[0]["messages"]
    assert system == {"role": "system", "content": "be brief"}
    kinds = [part.get("text", part["type"]) for part in user["content"]]
    assert kinds == ["image_url", "0.0 s:", "image_url", "0.5 s:", "image_url", "what"]


def test_schema_is_asked_for_as_a_field_or_else_in_words():
    """A server that doesn't know the field says 400; one request finds out what it takes."""
    asked = [Request.of(text, generation=GREEDY, schema=SCHEMA) for text in "abc"]
    with openai_server(lambda request: "{}") as stand_in, served(stand_in.url) as opened:
        assert [answer.text for answer in answers(opened, asked)] == ["{}"] * 3
    for request in stand_in.requests:
        assert request["response_format"]["json_schema"]["schema"] == SCHEMA
        assert "JSON" not in request["messages"][0]["content"]
    with openai_server(lambda request: "{}", 400) as old, served(old.url, concurrency=1) as opened:
        assert [answer.text for answer in answers(opened, asked)] == ["{}"] * 3
    assert ["response_format" in request for request in old.requests] == [True, *[False] * 3]
    assert '"short"' in old.requests[-1]["messages"][0]["content"]
    with (
        openai_server(lambda request: "{}", 400, 400) as old,
        served(old.url, concurrency=1) as opened,
    ):
        (failure, *others) = answers(opened, asked)
    assert "answered 400" in failure.message  # it was the request, not the field
    assert ["response_format" in request for request in old.requests] == [True, False, True, True]
    assert not any(isinstance(answer, RowFailed) for answer in others)


def test_requests_go_to_the_servers_with_the_fewest():
    gate = threading.Barrier(6, timeout=60)

    def answer(request):
        gate.wait()  # all are in flight at once
        return "x"

    asked = [Request.of(str(i), generation=GREEDY) for i in range(6)]
    with (
        openai_server(answer) as one,
        openai_server(answer) as two,
        served(one.url, two.url, concurrency=6) as opened,
    ):
        answers(opened, asked)
    assert (len(one.requests), len(two.requests)) == (3, 3)


def test_server_that_is_down_is_left_out():
    asked = [Request.of(str(i), generation=GREEDY) for i in range(8)]
    with openai_server(lambda request: "x") as gone:
        pass
    with (
        openai_server(lambda request: "x") as there,
        served(gone.url, there.url, concurrency=2) as opened,
    ):
        opened.check()
        found = answers(opened, asked)
    assert [answer.text for answer in found] == ["x"] * 8
    with (
        openai_server(lambda request: "x") as there,
        openai_server(lambda request: "x") as ill,
        served(ill.url, there.url, concurrency=1) as opened,
    ):
        ill.always = 503
        assert [answer.text for answer in answers(opened, asked)] == ["x"] * 8
    assert len(ill.requests) <= 4


def test_name_with_an_at_sign_is_used_if_the_server_lists_it():
    listing = {"data": [{"id": "tiny@2", "root": "/models/tiny", "max_model_len": 4096}]}
    with openai_server(lambda request: "x") as stand_in:
        stand_in.models = listing
        reference = ModelReference.model_validate(f"{stand_in.url}#tiny@2")
        with ServerEngine(reference) as opened:
            opened.check()
            assert outcome_of(opened.submit(Request.of("x", generation=GREEDY))).text == "x"
    assert stand_in.requests[0]["model"] == "tiny@2"
