"""Models that don't fit their stage are refused before a run, without loading their weights."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from clipmill.jobs.doctor import examine
from clipmill.pipeline.engine.preflight import check_models, examine_models
from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.checks.packages import missing_packages
from tests import wrong_models as wrong
from tests.models_factory import tiny_model
from tests.openai_stand_in import openai_server
from tests.stages.models.test_transformers_clip import save as save_of_transformers
from tests.tiny_clip import save_tiny_clip
from tests.video_text_models import save_umt, save_viclip, save_videoprism


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def recipe(folder: Path, **stages: Any) -> Path:
    """A recipe of stages on clips; each setting is written as it is."""
    import yaml

    path = folder / "mine.yaml"
    before: dict[str, Any] = {"download_videos": {}, "split_clips": {}}
    if "summarize_captions" in stages:
        stages = {"caption_frames": {"model": str(tiny_model("blip"))}, **stages}
    path.write_text(yaml.safe_dump({"stages": {**before, **stages}}, sort_keys=False))
    return path


def problem(folder: Path, **stages: Any) -> str:
    with pytest.raises(ClipmillError) as caught:
        check_models(build_plan(load_recipe(recipe(folder, **stages))).steps)
    return str(caught.value)


def found(folder: Path, **stages: Any) -> None:
    check_models(build_plan(load_recipe(recipe(folder, **stages))).steps)


@pytest.mark.parametrize(
    "name",
    ["blip", "blip2", "florence2", "git", "llava_onevision", "qwen_vl", "vision_encoder_decoder"],
)
def test_captioners_fit(tmp_path, name):
    found(tmp_path, caption_frames={"model": str(tiny_model(name))})


@pytest.mark.parametrize("kind", ["clip", "siglip", "naflex"])
def test_embedders_of_transformers_fit(tmp_path, kind):
    found(tmp_path, tag_clips={"model": str(save_of_transformers(tmp_path / "model", kind))})


@pytest.mark.parametrize("save", [save_videoprism, save_viclip, save_umt])
def test_video_text_models_fit(tmp_path, save):
    (tmp_path / "model").mkdir()
    save(tmp_path / "model")
    found(tmp_path, score_video_similarity={"model": str(tmp_path / "model")})


@pytest.mark.parametrize("name", ["t5", "chat", "qwen_vl"])
def test_language_models_fit(tmp_path, name):
    found(tmp_path, summarize_captions={"model": str(tiny_model(name))})


@pytest.mark.parametrize(
    ("stage", "make", "words"),
    [
        ("caption_frames", wrong.clip_of_transformers, "is a CLIP model (CLIPModel), which writes"),
        ("caption_frames", lambda _: tiny_model("chat"), "Qwen2 model, which sees no pictures"),
        ("caption_frames", lambda _: tiny_model("t5"), "is a T5 model; the stage needs an image"),
        ("caption_frames", wrong.instruct_blip_video, "takes videos and no single pictures"),
        ("caption_frames", save_tiny_clip, "cannot be read as a model of transformers"),
        ("caption_frames", wrong.without_weights, "contains no weights that transformers loads"),
        ("caption_frames", wrong.without_processor, "AutoProcessor"),
        ("caption_frames", wrong.without_picture_in_template, "cannot prepare a picture: "),
        ("caption_frames", wrong.with_pictures_too_large, "doesn't take what its processor makes"),
        ("summarize_captions", wrong.clip_of_transformers, "the stage needs a language model"),
        ("summarize_captions", wrong.masked_bert, "(BertForMaskedLM), which writes no texts"),
        ("summarize_captions", wrong.encoder_of_t5, "(T5EncoderModel), which writes no texts"),
        ("summarize_captions", lambda _: tiny_model("blip"), "writes about pictures and answers"),
        ("summarize_captions", lambda _: tiny_model("florence2"), "writes about pictures"),
        ("summarize_captions", wrong.cut_off, "is damaged or not complete, fetch it again"),
        ("summarize_captions", wrong.without_layers, "weights that T5ForConditionalGeneration"),
        (
            "summarize_captions",
            wrong.of_another_size,
            "is 32 × 64 and Qwen2ForCausalLM takes 32 × 48",
        ),
        ("summarize_captions", wrong.with_another_tokenizer, "tokenizer's files are another"),
        ("summarize_captions", wrong.with_broken_template, "chat template fails on a prompt"),
        ("caption_frames", wrong.pointers, "holds pointers of Git LFS instead of 3 files: config"),
        ("embed_clips", wrong.pointer_of_an_embedder, "instead of 1 file: open_clip_model.safe"),
        ("caption_frames", wrong.index_as_pointer, "1 file: model.safetensors.index.json; `git"),
        ("caption_frames", wrong.with_damaged_index, "index.json is damaged, fetch it again"),
        ("caption_frames", wrong.adapter, "is an adapter (LoRA) for Qwen/Qwen2.5-VL, not a whole"),
        ("caption_frames", wrong.gguf, "has weights as GGUF only. GGUF files are for llama.cpp"),
        ("caption_frames", wrong.gguf_file, "is a file, and a model is a folder. GGUF files are"),
        ("embed_clips", wrong.weights_file, "is a file, and a model is a folder: name "),
        ("caption_frames", wrong.hubs_cache, "a folder in it has (snapshots/0123): --set caption"),
        ("embed_clips", wrong.parent, "but a folder in it has (the-model): --set embed_clips.mod"),
        ("caption_frames", wrong.empty, "is empty; fetch the model again"),
        ("caption_frames", wrong.without_tokenizer, "has no files of a tokenizer"),
        ("summarize_captions", wrong.without_tokenizer, "has no files of a tokenizer"),
        ("embed_clips", wrong.embedder_without_configuration, "no open_clip_config.json"),
        ("embed_clips", wrong.embedder_without_a_layer, "lacks 12 weights that CLIP needs"),
        ("embed_clips", wrong.embedder_of_another_width, "and CLIP takes"),
        ("embed_clips", wrong.clip_of_transformers, "can't be used as an embedder"),
        ("tag_clips", lambda _: tiny_model("blip"), "its model_type is 'blip'"),
        (
            "score_video_similarity",
            wrong.clip_of_transformers,
            "cannot be used as a video–text model: its model_type is",
        ),
    ],
)
def test_wrong_model_is_refused_with_its_setting(tmp_path, stage, make, words):
    folder = make(tmp_path / "model")
    said = problem(tmp_path, **{stage: {"model": str(folder)}})
    assert said.startswith(f"{stage}.model: ")
    assert words in said


def test_pointer_beside_the_weights_that_are_read_is_no_fault(tmp_path):
    """`git lfs pull --include` fetches one set of weights among several."""
    folder = wrong.without_layers(tmp_path / "model")
    (folder / "pytorch_model.bin").write_bytes(wrong.POINTER)
    assert "weights that T5" in problem(tmp_path, summarize_captions={"model": str(folder)})


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("127.0.0.1:8000/v1#m", "a server's address begins with http://"),
        ("gpu1:8000/v1#m", "a server's address begins with http://"),
        ("models/qwen/7b", "expected a hub id (OWNER/NAME), a folder (which begins with ./ or /)"),
        ("Qwen/Qwen2.5 VL", "expected a hub id"),
        ("hf.co/Qwen/Qwen2.5", "expected a hub id"),
    ],
)
def test_model_that_no_hub_can_have_is_refused_as_it_is_read(tmp_path, model, words):
    said = problem(tmp_path, caption_frames={"model": model})
    assert "caption_frames: model: " in said
    assert words in said


def test_check_of_an_embedder_leaves_logging_as_it_was(tmp_path, monkeypatch):
    """open_clip logs through the root logger, which then prints everything from then on."""
    save_tiny_clip(tmp_path / "model")
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    found(tmp_path, embed_clips={"model": str(tmp_path / "model")})
    assert logging.getLogger().handlers == []


def test_head_for_other_embeddings_is_refused(tmp_path):
    clip = save_tiny_clip(tmp_path / "clip")
    head = tmp_path / "head.safetensors"
    save_file({"weight": np.zeros((1, 768), np.float32), "bias": np.zeros(1, np.float32)}, head)
    stages = {"embed_clips": {"model": str(clip)}, "score_aesthetic": {"head": str(head)}}
    assert "scores embeddings of 768 numbers, those of embed_clips" in problem(tmp_path, **stages)


def test_vocabulary_without_tags_is_refused(tmp_path):
    (tmp_path / "tags.txt").write_text("# none\n")
    clip = save_tiny_clip(tmp_path / "clip")
    said = problem(tmp_path, tag_clips={"model": str(clip), "vocabulary": "tags.txt"})
    assert "contains no tags" in said


def test_doctor_says_what_each_model_is(tmp_path, capsys):
    """And everything that is wrong, in one go."""
    clip, bad = save_tiny_clip(tmp_path / "clip"), wrong.masked_bert(tmp_path / "bad")
    path = recipe(
        tmp_path, embed_clips={"model": str(clip)}, summarize_captions={"model": str(bad)}
    )
    assert examine(str(path)) == 1
    out = capsys.readouterr().out
    assert f"ok      embed_clips.model: {clip} (CLIP, embeddings of 24 numbers;" in out
    assert f"wrong   summarize_captions.model: {bad}\n        {bad} is a Bert model" in out
    assert "which writes no texts; the stage needs a language model such as" in out


def test_passed_checks_are_made_again_when_a_file_changes(tmp_path):
    folder = wrong.copy_of("t5", tmp_path / "model")
    stages = {"summarize_captions": {"model": str(folder)}}
    found(tmp_path, **stages)
    (folder / "tokenizer.json").write_text("{}")
    assert "summarize_captions.model: " in problem(tmp_path, **stages)


@pytest.mark.parametrize(
    ("error", "packages"),
    [
        (
            ImportError(
                "Package `num2words` is required to run SmolVLM processor. Install it with "
                "`pip install num2words`."
            ),
            ["num2words"],
        ),
        (
            ImportError(
                "This modeling file requires the following packages that were not found in your "
                "environment: einops, flash_attn. Run `pip install einops flash_attn`"
            ),
            ["einops", "flash-attn"],
        ),
        (
            ImportError(
                "\nT5Tokenizer requires the SentencePiece library but it was not found in your "
                "environment. Check out the instructions on the\ninstallation page"
            ),
            ["sentencepiece"],
        ),
        (
            ValueError(
                "You need to have sentencepiece or tiktoken installed to convert a slow tokenizer "
                "to a fast one."
            ),
            ["sentencepiece", "tiktoken"],
        ),
        (
            ModuleNotFoundError("No module named 'qwen_vl_utils'", name="qwen_vl_utils"),
            ["qwen-vl-utils"],
        ),
        (ModuleNotFoundError("No module named 'google'", name="google.protobuf"), ["protobuf"]),
        (ImportError("cannot import name 'x' from 'y'"), []),
        (ValueError("some other"), []),
    ],
)
def test_missing_packages_are_recognised(error, packages):
    assert missing_packages(error) == packages


def test_missing_package_is_a_sentence(tmp_path, monkeypatch):
    """SmolVLM's processor, for one, raises a plain ImportError."""
    from clipmill.stages.models.engines import families

    def lacking(*_):
        raise ImportError(
            "Package `num2words` is required. Install it with `pip install num2words`."
        )

    monkeypatch.setattr(families, "load_processor", lacking)
    said = problem(tmp_path, caption_frames={"model": str(tiny_model("blip"))})
    assert said == (
        "caption_frames.model: the model needs the Python package num2words, which is not "
        "installed: pip install num2words"
    )


# --- servers ---


def test_server_is_asked_once_with_a_picture_and_counted(tmp_path):
    with openai_server(lambda _: "a dog") as stand_in:
        path = recipe(
            tmp_path,
            caption_frames={"model": f"{stand_in.url}#m", "fine_model": f"{stand_in.url}#m"},
        )
        said, spent = check_models(build_plan(load_recipe(path)).steps)
    [request] = stand_in.requests
    kinds = [part["type"] for part in request["messages"][0]["content"]]
    assert kinds == ["image_url", "text"]
    assert spent["requests"] == 1
    assert said[0].startswith("Checked the server of caption_frames.model")
    assert "with 1 request" in said[0]


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "$OPENAI_API_KEY, which is not set; set it to a key that the server accepts"),
        (402, "add credit to the key's account"),
        (403, "the key is read from $OPENAI_API_KEY"),
        (404, "check the address (usually http://HOST:PORT/v1) and the model's name"),
        (400, "the server fails on a request with a picture"),
    ],
)
def test_server_that_refuses_ends_the_run_before_it_starts(tmp_path, status, words, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with openai_server(lambda _: "a dog") as stand_in:
        stand_in.always = status
        said = problem(tmp_path, caption_frames={"model": f"{stand_in.url}#m"})
    assert said.startswith("caption_frames.model: ")
    assert words in said
    assert "cookies" not in said


@pytest.mark.parametrize(
    ("listed", "words"),
    [
        (["other"], "answers a request with a picture, though it lists no model m (it serves: oth"),
        (["m", "other"], "answers a request with a picture"),
        (["models/m"], "answers a request with a picture"),
        ([], "answers a request with a picture"),
    ],
)
def test_server_that_answers_for_a_model_it_does_not_list_is_told(tmp_path, listed, words):
    with openai_server(lambda _: "a dog") as stand_in:
        stand_in.models = {"data": [{"id": name} for name in listed]}
        path = recipe(tmp_path, caption_frames={"model": f"{stand_in.url}#m"})
        [one] = examine_models(build_plan(load_recipe(path)).steps)
    assert one.problem is None
    assert one.note.startswith(words)
    assert ("though" in one.note) == ("though" in words)


def test_busy_server_is_left_to_the_run(tmp_path):
    """Its own requests are tried again."""
    with openai_server(lambda _: "a dog") as stand_in:
        stand_in.always = 503
        stages = {"model": f"{stand_in.url}#m", "server_first_wait_seconds": 0}
        path = recipe(tmp_path, caption_frames=stages)
        said, _ = check_models(build_plan(load_recipe(path)).steps)
    assert "caption_frames.model: not checked further: " in said[-1]


@pytest.mark.parametrize("program", ["vllm", "sglang"])
def test_environment_of_a_server_that_the_run_starts_is_checked(tmp_path, monkeypatch, program):
    """On a cluster it is only told of: the workers' nodes may have it."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    python = tmp_path / "python"
    settings = {"model": str(tiny_model("blip")), "engine": {program: {"python": str(python)}}}

    def write(script: str, mode: int = 0o755) -> None:
        python.write_text(script)
        python.chmod(mode)

    assert f".engine: no Python at {python}; install {program}" in problem(
        tmp_path, caption_frames=settings
    )
    write("#!/bin/sh\nexit 3\n")
    assert f"{program} is not installed for {python}" in problem(tmp_path, caption_frames=settings)
    write("#!/nowhere/sh\n")
    assert f"{python} can't be started" in problem(tmp_path, caption_frames=settings)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    [said] = check_models(build_plan(load_recipe(recipe(tmp_path, caption_frames=settings))).steps)[
        0
    ]
    assert "not checked on this machine: caption_frames.engine: " in said
    monkeypatch.delenv("RAY_ADDRESS")
    write(f'#!/bin/sh\n[ "$1" = -c ] && exec {sys.executable} -c "exit(0)"\n')
    found(tmp_path, caption_frames=settings)


def test_nothing_is_written_before_the_checks(tmp_path):
    from clipmill.pipeline.run import run

    (tmp_path / "list.txt").write_text("https://films.test/a.mp4\n")
    path = recipe(tmp_path, caption_frames={"model": str(tiny_model("chat"))})
    loaded = load_recipe(path, sources=[str(tmp_path / "list.txt")], engine="local")
    with pytest.raises(ClipmillError, match="sees no pictures"):
        run(loaded, tmp_path / "dataset")
    assert not (tmp_path / "dataset").exists()
