"""The demo's models load like any others, offline, and work on its world."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file

from clipmill.jobs.demo import world
from clipmill.jobs.demo.render import draw_background, draw_shape
from clipmill.stages.models.torch_setup import prepare_torch

MODELS = Path(world.__file__).parent / "models"


@pytest.fixture(autouse=True)
def can_import_libraries() -> None:
    """The libraries of models take seconds to import, so the tests that use them do it."""
    prepare_torch()


def test_all_models_together_are_under_12_megabytes() -> None:
    files = [path for path in MODELS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 12_000_000
    weights = {path.suffix for path in files if path.stat().st_size > 100_000}
    assert weights == {".safetensors"}


def test_tag_vocabulary_is_the_worlds() -> None:
    assert (MODELS / "tags.txt").read_text().split() == list(world.TAGS)


@pytest.mark.slow
def test_models_generalise_to_new_films() -> None:
    from clipmill.jobs.demo import evaluate_models

    scores = evaluate_models.evaluate_models(MODELS, world.make_world(90_210, 3))
    assert scores.n_shots >= 12
    assert scores.frame_subject >= 0.96
    assert scores.frame_position >= 0.9
    assert scores.summary_subject >= 0.95
    assert scores.summary_motion >= 0.85
    assert scores.similarity_auc >= 0.97
    assert scores.caption_auc >= 0.97
    assert scores.tags >= 0.95
    assert scores.aesthetic_correlation >= 0.65


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    """A red circle on the left."""
    drawn = draw_background("sky", "plain", 0, world.FRAME_WIDTH, world.FRAME_HEIGHT)
    draw_shape(drawn, "circle", "red", world.POSITION_CENTRES["left"], 0.4)
    return Image.fromarray(drawn)


def test_clip_loads_with_open_clips_own_functions(picture: Image.Image) -> None:
    import open_clip

    name = f"local-dir:{MODELS / 'clip'}"
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    tokens = open_clip.get_tokenizer(name)(["a red circle on the left", "a blue star at the top"])
    with torch.inference_mode():
        seen = model.eval().encode_image(preprocess(picture)[None], normalize=True)
        right, wrong = (seen @ model.encode_text(tokens, normalize=True).T)[0].tolist()
    assert right > wrong + 0.2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_captioner_loads_with_transformers_own_functions(
    picture: Image.Image, dtype: torch.dtype
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model = AutoModelForImageTextToText.from_pretrained(MODELS / "captioner", dtype=dtype)
    processor = AutoProcessor.from_pretrained(MODELS / "captioner")
    pixels = processor(images=picture, return_tensors="pt").pixel_values.to(dtype)
    made = model.eval().generate(pixel_values=pixels, do_sample=False, max_new_tokens=16)
    text = processor.batch_decode(made, skip_special_tokens=True)[0]
    assert text == "a red circle on the left"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_summarizer_loads_with_transformers_own_functions(dtype: torch.dtype) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(MODELS / "summarizer", dtype=dtype)
    tokenizer = AutoTokenizer.from_pretrained(MODELS / "summarizer")
    prompt = (
        "coarse: a red circle in the middle. fine: a red circle on the left. "
        "a red circle in the middle. a red circle on the right. tags: red, circle."
    )
    made = model.eval().generate(**tokenizer(prompt, return_tensors="pt"), do_sample=False)
    text = tokenizer.batch_decode(made, skip_special_tokens=True)[0]
    assert text == "a red circle moves to the right"


def test_aesthetic_head_has_the_shape_of_laions_v2() -> None:
    weights = load_file(MODELS / "aesthetic.safetensors")
    numbers = (0, 2, 4, 6, 7)
    assert set(weights) == {f"layers.{n}.{part}" for n in numbers for part in ("weight", "bias")}
    product = np.eye(weights["layers.0.weight"].shape[1])
    for number in numbers:
        product = weights[f"layers.{number}.weight"].astype(np.float64) @ product
    assert product.shape == (1, 128)
