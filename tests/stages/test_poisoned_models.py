"""Harmful models and servers: rows of kind `model` or `transient`, or a smaller batch."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.schemas.tables import FRAME, TEXT_AT
from clipmill.stages.caption_frames import CaptionFrames
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.embedders import ClipEmbedder
from clipmill.stages.models.engines.families import Blip
from clipmill.stages.models.engines.language import LanguageModel
from clipmill.stages.models.engines.requests import Generation, Request, answers
from clipmill.stages.models.engines.servers import ServerEngine
from clipmill.stages.models.generated_text import LONGEST_CHARACTERS
from clipmill.stages.models.vectors import as_column, unit
from clipmill.stages.references import DataFile, ModelReference
from clipmill.stages.score_aesthetic import ScoreAesthetic
from clipmill.stages.score_similarity import ScoreSimilarity
from clipmill.stages.summarize_captions import SummarizeCaptions
from clipmill.stages.tag_clips import TagClips
from tests.models_factory import tiny_model
from tests.openai_stand_in import StandIn, completion, openai_server, text_of
from tests.tiny_clip import clips_with_frames, frame_jpeg, save_tiny_clip, transformed


@pytest.fixture(scope="module")
def tiny_clip(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


SERVED: dict[str, Any] = {"server_first_wait_seconds": 0, "server_retries": 1}


def reference(stand_in: StandIn) -> str:
    return f"{stand_in.url}#tiny"


def to_caption(names: list[str]) -> pa.Table:
    """Clips of one frame each, every frame a different picture."""
    frames = [
        [{"frame_number": 0, "seconds": 0.5, "jpeg": frame_jpeg(i)}] for i in range(len(names))
    ]
    return pa.table(
        {
            "clip_id": names,
            "start_seconds": [0.0] * len(names),
            "end_seconds": [1.0] * len(names),
            "frames": pa.array(frames, pa.list_(FRAME)),
        }
    )


def to_summarise(names: list[str]) -> pa.Table:
    return pa.table(
        {
            "clip_id": names,
            "caption_coarse": names,
            "captions_fine": pa.array([[] for _ in names], pa.list_(TEXT_AT)),
            "start_seconds": [0.0] * len(names),
        }
    )


def by_clip(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    assert len({row["clip_id"] for row in rows}) == len(rows)
    return {row["clip_id"]: row for row in rows}


# --- texts ---

NOISE = np.random.default_rng(1)
BOOK = " ".join(f"{word:x}" for word in NOISE.integers(0, 2**40, 100_000))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the text is empty"),
        (" \n\t\x00\x1b", "the text is empty"),
        ("…!?", "contains no word"),
        ("a dog \ud800 runs", "not characters"),
        ("a dog \ufffd\ufffd runs", "not characters"),
        ("dog " * 50_000, "characters, more than 20,000"),
        (BOOK, "characters, more than 20,000"),
        ("<think>" * 150_000, "reasoning without an answer"),
        ("a dog runs and a cat sits " * 30, "the text repeats"),
        ("犬が走る" * 40, "the text repeats"),
    ],
    ids=[
        "empty",
        "unseen",
        "signs",
        "half a pair",
        "not UTF-8",
        "one word",
        "a book",
        "opening tags",
        "circles",
        "circles without spaces",
    ],
)
def test_unusable_text_fails_only_its_clip_quickly(text, words, tmp_path):
    """From a captioner and from a language model; neighbours are unaffected."""

    def answer(request):
        return text if text_of(request).endswith("poison") else "a dog runs"

    names = ["one", "poison", "two"]
    with openai_server(answer) as stand_in:
        started = time.monotonic()
        summaries = by_clip(
            transformed(
                SummarizeCaptions(model=reference(stand_in), prompt="{{ coarse }}", **SERVED),
                tmp_path,
                to_summarise(names),
            )
        )
        assert len(stand_in.requests) == 3
        stand_in.misdeeds = [completion(text)]
        captions = by_clip(
            transformed(
                CaptionFrames(
                    model=reference(stand_in), fine=False, server_concurrency=1, **SERVED
                ),
                tmp_path,
                to_caption(["poison", "one", "two"]),
            )
        )
        assert len(stand_in.requests) == 6
        assert time.monotonic() - started < 60
    for found in (summaries, captions):
        assert found["poison"]["error"]["kind"] == "model"
        assert words in found["poison"]["error"]["message"]
        assert len(found["poison"]["error"]["message"]) < 1000
    assert [summaries[name]["caption"] for name in ("one", "two")] == ["a dog runs"] * 2
    assert [captions[name]["caption_coarse"] for name in ("one", "two")] == ["a dog runs"] * 2
    assert summaries["poison"]["caption"] is captions["poison"]["caption_coarse"] is None


def test_invisible_characters_are_removed_from_a_good_text(tmp_path):
    """Control characters, bidi marks and a truncated last character."""
    said = "\ufeffa\x00 dog\x1b[2J \u202eruns\u2069 \x9bhome\ufffd"
    with openai_server(lambda request: said) as stand_in:
        (row,) = transformed(
            SummarizeCaptions(model=reference(stand_in), **SERVED), tmp_path, to_summarise(["x"])
        )
    assert row["caption"] == "a dog[2J runs home"


def test_text_of_maximum_length_is_checked_quickly():
    """No piece of it is repeated, so every length of a piece is tried."""
    from clipmill.stages.models.generated_text import fault_of

    started = time.monotonic()
    assert fault_of(BOOK[:LONGEST_CHARACTERS]) is None
    letters = [chr(0x4E00 + i) for i in range(LONGEST_CHARACTERS // 2)]
    assert fault_of(" ".join(letters)) is None
    assert "repeats" in str(fault_of(" ".join(letters[:400] * 2)))
    assert time.monotonic() - started < 30


# --- exceptions and memory ---

TOO_LARGE: dict[str, Callable[[], BaseException]] = {
    "cuda": lambda: __import__("torch").cuda.OutOfMemoryError("CUDA out of memory. Tried to …"),
    "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling …"),
    "cpu": lambda: RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"),
    "python": MemoryError,
}


def limited(
    original: Callable,
    largest: int,
    size_of: Callable,
    sizes: list[int],
    make: Callable[[], BaseException],
) -> Callable:
    """`original` with memory for `largest` items, recording its inputs."""

    def run(self, inputs, *arguments):
        sizes.append(size_of(inputs))
        if sizes[-1] > largest:
            raise make()
        return original(self, inputs, *arguments)

    return run


@pytest.mark.parametrize("make", TOO_LARGE.values(), ids=TOO_LARGE)
def test_embedding_halves_its_batch_permanently(make, tiny_clip, tmp_path, monkeypatch):
    """Ten images at 8, then 4, then 2; the next batch begins with 2. Vectors are the same."""
    model = tiny_clip
    batches = [clips_with_frames({f"{k}-{i}": [10 * k + i] for i in range(10)}) for k in range(2)]
    stage = EmbedClips(model=model, batch_images=8, dtype="float32")
    expected = transformed(stage, tmp_path, *batches)
    sizes: list[int] = []
    monkeypatch.setattr(
        ClipEmbedder, "embed_batch", limited(ClipEmbedder.embed_batch, 2, len, sizes, make)
    )
    found = transformed(stage, tmp_path, *batches)
    assert sizes == [8, 4] + [2] * 10
    np.testing.assert_allclose(
        [row["embeddings"] for row in found], [row["embeddings"] for row in expected], atol=2e-3
    )


def test_batches_of_texts_are_halved_too(tiny_clip, monkeypatch):
    embedder = EmbedClips(model=tiny_clip, dtype="float32").load("text")
    texts = [f"text {i}" for i in range(6)]
    expected = embedder.embed_texts(texts)
    embedder._texts.clear()
    original, sizes = embedder._model.encode_text, []

    def encode(tokens):
        sizes.append(len(tokens))
        if len(tokens) > 3:
            raise MemoryError
        return original(tokens)

    monkeypatch.setattr(embedder._model, "encode_text", encode)
    np.testing.assert_allclose(embedder.embed_texts(texts), expected, atol=1e-6)
    assert sizes == [6, 3, 3]


def test_item_too_large_alone_is_a_failure_of_the_model(tiny_clip, tmp_path, monkeypatch):
    """Raised as such, so that the runner processes the batch's clips one by one."""
    model = tiny_clip
    monkeypatch.setattr(
        ClipEmbedder, "embed_batch", limited(ClipEmbedder.embed_batch, 0, len, [], MemoryError)
    )
    with pytest.raises(RowFailed, match="out of memory") as caught:
        transformed(EmbedClips(model=model), tmp_path, clips_with_frames({"a": [1], "b": [2]}))
    assert caught.value.kind == "model"


def test_too_few_rows_assign_no_vector_to_another_clip(tiny_clip, tmp_path, monkeypatch):
    original = ClipEmbedder.embed_batch
    monkeypatch.setattr(ClipEmbedder, "embed_batch", lambda self, batch: original(self, batch)[1:])
    with pytest.raises(RuntimeError, match="4 inputs gave 3 outputs"):
        transformed(
            EmbedClips(model=tiny_clip), tmp_path, clips_with_frames({"a": [1, 2], "b": [3, 4]})
        )


@pytest.mark.parametrize("make", [TOO_LARGE["cuda"], MemoryError], ids=["cuda", "python"])
def test_captioning_halves_its_batch_permanently(make, tmp_path, monkeypatch):
    """Across all batches of rows that a worker processes."""
    sizes: list[int] = []
    monkeypatch.setattr(
        Blip,
        "generate",
        limited(Blip.generate, 2, lambda inputs: len(inputs["pixel_values"]), sizes, make),
    )
    stage = CaptionFrames(
        model=str(tiny_model("blip")), fine=False, batch_images=8, dtype="float32", max_new_tokens=3
    )
    names = [f"clip-{i}" for i in range(6)]
    rows = transformed(
        stage, tmp_path, to_caption(names), to_caption([f"later-{i}" for i in range(4)])
    )
    assert sizes == [6, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1]
    assert len(rows) == 10
    assert not [row for row in rows if row["error"] and "memory" in row["error"]["message"]]


def test_picture_that_makes_the_model_raise_fails_only_its_clip(tmp_path, monkeypatch):
    """A hook inside the network raises for one picture, whatever batch it is in."""
    import torch

    original = Blip.generate
    bad = None

    def generate(self, inputs, *settings):
        nonlocal bad
        pixels = inputs["pixel_values"]
        bad = pixels[1].clone() if bad is None else bad

        def look(module, arguments):
            if any(torch.equal(picture.float(), bad) for picture in arguments[0]):
                raise IndexError("index out of range in self")

        with_hook = self.model.vision_model.embeddings.patch_embedding
        handle = with_hook.register_forward_pre_hook(look)
        try:
            return original(self, inputs, *settings)
        finally:
            handle.remove()

    monkeypatch.setattr(Blip, "generate", generate)
    stage = CaptionFrames(
        model=str(tiny_model("blip")), fine=False, dtype="float32", max_new_tokens=3
    )
    rows = by_clip(transformed(stage, tmp_path, to_caption(["a", "b", "c", "d"])))
    assert rows["b"]["error"]["kind"] == "model"
    assert "index out of range" in rows["b"]["error"]["message"]
    assert not [
        row
        for name, row in rows.items()
        if name != "b" and row["error"] and "index" in row["error"]["message"]
    ]


def test_language_model_halves_its_batch_and_fails_what_never_fits(tmp_path, monkeypatch):
    sizes: list[int] = []
    monkeypatch.setattr(
        LanguageModel,
        "generate",
        limited(
            LanguageModel.generate,
            1,
            lambda inputs: len(inputs["input_ids"]),
            sizes,
            TOO_LARGE["cuda"],
        ),
    )
    stage = SummarizeCaptions(
        model=str(tiny_model("t5")),
        prompt="{{ coarse }}",
        max_new_tokens=3,
        dtype="float32",
        batch_texts=4,
    )
    rows = transformed(stage, tmp_path, to_summarise(["a dog", "a cat", "a cow"]))
    assert sizes == [3, 1, 1, 1]
    assert len(rows) == 3
    monkeypatch.setattr(
        LanguageModel, "generate", limited(LanguageModel.generate, 0, len, [], MemoryError)
    )
    rows = transformed(stage, tmp_path, to_summarise(["a dog", "a cat"]))
    assert {row["error"]["kind"] for row in rows} == {"model"}
    assert all("out of memory" in row["error"]["message"] for row in rows)


def test_too_little_memory_for_the_weights_ends_the_run_with_a_reason(tmp_path, monkeypatch):
    import transformers

    def no_room(*arguments, **settings):
        raise MemoryError("weights")

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", no_room)
    stage = CaptionFrames(model=str(tiny_model("blip")), fine=False, dtype="float32")
    with pytest.raises(ClipmillError, match=r"caption_frames\.model: there is not enough memory"):
        transformed(stage, tmp_path, to_caption(["a"]))


# --- weights that are not numbers ---


def planted(folder: Path, weight: str, value: float) -> Path:
    """A tiny CLIP with `value` everywhere in one weight."""
    from safetensors.torch import load_file, save_file

    state = load_file(folder / "open_clip_model.safetensors")
    state[weight].fill_(value)
    save_file(state, folder / "open_clip_model.safetensors")
    return folder


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 0.0], ids=["nan", "inf", "zero"])
def test_images_without_a_direction_are_failures_of_the_model(value, tmp_path):
    """Also a zero vector: its cosine with anything would be 0, which looks like a score."""
    model = planted(save_tiny_clip(tmp_path / "clip"), "visual.proj", value)
    clips = clips_with_frames({"a": [1, 2], "b": [3]})
    for stage in (EmbedClips(model=model), TagClips(model=model)):
        rows = transformed(stage, tmp_path, clips)
        assert [row["error"]["kind"] for row in rows] == ["model", "model"]
        assert "not finite" in rows[0]["error"]["message"]


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), 0.0], ids=["nan", "inf", "zero"])
def test_texts_without_a_direction_leave_null_scores_with_a_reason(value, tmp_path):
    model = planted(save_tiny_clip(tmp_path / "clip"), "text_projection", value)
    vectors = as_column([unit(np.ones((2, 24)))])
    table = pa.table(
        {
            "clip_id": ["a"],
            "embeddings": vectors,
            "text": ["a dog"],
            "caption_coarse": ["a dog"],
            "captions_fine": pa.array([[{"seconds": 0.5, "text": "a dog"}]], pa.list_(TEXT_AT)),
        }
    )
    (row,) = transformed(ScoreSimilarity(model=model), tmp_path, table)
    assert row["similarity"] is row["similarity_coarse"] is row["similarity_fine"] is None
    assert "not finite (similarity, similarity_coarse, similarity_fine)" in row["similarity_reason"]
    (row,) = transformed(TagClips(model=model, embeddings="embed_clips"), tmp_path, table)
    assert (row["tags"], row["error"]["kind"]) == (None, "model")


def test_non_finite_clip_does_not_affect_its_neighbours(tiny_clip, tmp_path):
    """Stored embeddings with NaN, from another dataset: nothing spreads."""
    model = tiny_clip
    good = unit(np.random.default_rng(0).normal(size=(2, 24)))
    bad = good.copy()
    bad[1, 3] = np.nan
    names, vectors = ["a", "bad", "b"], [good, bad, good]
    table = pa.table(
        {
            "clip_id": names,
            "embeddings": as_column(vectors),
            "text": ["a dog"] * 3,
            "caption_coarse": pa.nulls(3, pa.string()),
            "captions_fine": pa.nulls(3, pa.list_(TEXT_AT)),
        }
    )
    rows = by_clip(transformed(ScoreSimilarity(model=model), tmp_path, table))
    assert rows["a"]["similarity"] == rows["b"]["similarity"] is not None
    assert (rows["bad"]["similarity"], bool(rows["bad"]["similarity_reason"])) == (None, True)
    tags = by_clip(transformed(TagClips(model=model, embeddings="embed_clips"), tmp_path, table))
    assert tags["a"]["tags"] == tags["b"]["tags"]
    assert tags["bad"]["error"]["kind"] == "model"


@pytest.mark.parametrize("weight", [np.nan, np.inf, 1e300], ids=["nan", "inf", "past float32"])
def test_non_finite_head_scores_nothing(weight, tmp_path):
    from safetensors.numpy import save_file

    path = tmp_path / "head.safetensors"
    save_file({"weight": np.full((1, 24), weight), "bias": np.zeros(1)}, path)
    table = pa.table({"clip_id": ["a"], "embeddings": as_column([unit(np.ones((2, 24)))])})
    (row,) = transformed(ScoreAesthetic(head=DataFile(path=str(path))), tmp_path, table)
    assert row["aesthetic"] is None
    assert "not finite" in row["aesthetic_reason"]


def test_captioner_with_nan_weights_gives_failures_of_kind_model(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(tiny_model("blip"), tmp_path / "blip")
    state = load_file(folder / "model.safetensors")
    for tensor in state.values():
        if tensor.is_floating_point():
            tensor.fill_(float("nan"))
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    stage = CaptionFrames(model=str(folder), fine=False, dtype="float32", max_new_tokens=30)
    rows = transformed(stage, tmp_path, to_caption(["a", "b"]))
    assert [row["error"]["kind"] for row in rows] == ["model", "model"]


# --- servers ---


def asking(stand_in: StandIn, **settings: Any) -> ServerEngine:
    settings = {"retries": 0, "timeout_seconds": 100.0, "first_wait_seconds": 0.0} | settings
    return ServerEngine(ModelReference(server=stand_in.url, model="tiny"), **settings)


def asked(server: ServerEngine, question: str = "q0") -> Completion | RowFailed:
    (answer,) = answers(server, [Request.of(question, generation=Generation(5))])
    return answer


DEEP = b'{"choices": ' + b"[" * 200_000


@pytest.mark.parametrize(
    ("misdeed", "kind"),
    [
        (500, "transient"),
        (429, "transient"),
        ("reset", "transient"),
        ("hang", "transient"),
        ("headers", "transient"),
        ("drip", "transient"),
        ("stall", "transient"),
        ("cut", "transient"),
        ("stream", "model"),
        (b"", "model"),
        (b"{", "model"),
        (b"<html><h1>502</h1>", "model"),
        (b"null", "model"),
        (b'{"choices": []}', "model"),
        (b'{"choices": [{}]}', "model"),
        (b'{"choices": [{"message": null}]}', "model"),
        (b'{"choices": {"0": 1}}', "model"),
        (b"\xff\xfe\xfa", "model"),
        (DEEP, "model"),
        (b"9" * 10_000, "model"),
        (404, "permanent"),
    ],
    ids=lambda value: str(value)[:24],
)
def test_each_server_fault_has_its_kind_in_bounded_time(misdeed, kind):
    never_ends = misdeed in ("hang", "headers", "drip", "stall")
    with (
        openai_server(text_of, misdeed) as stand_in,
        asking(stand_in, concurrency=1, timeout_seconds=0.5 if never_ends else 100.0) as server,
    ):
        started = time.monotonic()
        failure = asked(server)
        assert time.monotonic() - started < 40
        server._timeout_seconds = 100.0
        assert asked(server, "q1").text == "q1"
    assert failure.kind == kind


def test_retry_after_is_obeyed_within_reason():
    """But not a day, a missing number or an invalid one."""
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=3), usegmt=True)
    for said, least in (
        (soon, 0.5),
        ("0.3", 0.3),
        ("nan", 0.0),
        ("-5", 0.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ):
        with openai_server(text_of, 429) as stand_in, asking(stand_in, retries=1) as server:
            stand_in.retry_after = said
            started = time.monotonic()
            assert asked(server).text == "q0"
            assert least <= time.monotonic() - started < 40


def test_server_that_is_down_costs_few_attempts_and_is_found_again(tmp_path):
    """Of 40 clips 8 are sent, of the next batch one; when that is answered, all are sent again."""
    stage = SummarizeCaptions(
        prompt="{{ coarse }}", server_concurrency=2, **SERVED, model="http://127.0.0.1:1/v1#tiny"
    )
    names = [f"clip {i}" for i in range(40)]
    with openai_server(text_of) as stand_in:
        stand_in.always = 503
        stage = stage.model_copy(
            update={"model": ModelReference(server=stand_in.url, model="tiny")}
        )
        from clipmill.stages.protocol import Workspace

        with stage.open(Workspace(tmp_path, tmp_path)) as transform:
            rows = transform(to_summarise(names)).to_pylist()
            assert {row["error"]["kind"] for row in rows} == {"transient"}
            assert len(rows) == 40
            assert 8 * 2 <= len(stand_in.requests) <= 10 * 2
            before = len(stand_in.requests)
            rows = transform(to_summarise(names)).to_pylist()
            assert {row["error"]["kind"] for row in rows} == {"transient"}
            assert len(stand_in.requests) == before + 1
            stand_in.always = None
            rows = transform(to_summarise(names)).to_pylist()
            assert [row["caption"] for row in rows] == names


def test_key_that_cannot_be_sent_is_reported_at_the_start(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u20ac")
    with openai_server(text_of) as stand_in, pytest.raises(ClipmillError, match="OPENAI_API_KEY"):
        transformed(SummarizeCaptions(model=reference(stand_in)), tmp_path, to_summarise(["x"]))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\n")
    with openai_server(lambda request: "a dog runs") as stand_in:
        transformed(SummarizeCaptions(model=reference(stand_in)), tmp_path, to_summarise(["x"]))
        assert stand_in.headers[-1]["Authorization"] == "Bearer sk-1"


def test_only_known_fields_of_a_completion_are_read():
    """Additional fields of a response, in any form, do no harm."""
    body = json.loads(completion("fine")) | {"usage": [], "choices_": {}, "error": None}
    with openai_server(text_of, json.dumps(body).encode()) as stand_in, asking(stand_in) as server:
        assert asked(server).text == "fine"
