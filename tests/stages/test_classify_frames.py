"""classify_frames: the probabilities of transformers' own pipeline, of the class that is named."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.classify_frames import ClassifyFrames
from clipmill.stages.models.torch_setup import prepare_torch
from tests.film_frames import clips_of
from tests.tiny_clip import frame_jpeg, transformed

pytest.importorskip("transformers", reason="needs clipmill[models]")

CLIPS = clips_of(
    one=[frame_jpeg(1), frame_jpeg(2, 120, 67), frame_jpeg(3)],
    two=[frame_jpeg(4, 64, 64), frame_jpeg(5)],
    none=[],
)
KINDS = ("vit", "convnext", "siglip")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    prepare_torch()
    import torch

    from tests import picture_models

    torch.manual_seed(0)
    return {name: getattr(picture_models, name)(tmp_path_factory.mktemp(name)) for name in KINDS}


def published(folder, **options) -> list[list[dict[str, float]]]:
    """What transformers' pipeline says of each frame, by class."""
    import transformers
    from PIL import Image

    pipeline = transformers.pipeline("image-classification", str(folder), device="cpu", top_k=None)
    return [
        [
            {
                one["label"]: one["score"]
                for one in pipeline(Image.open(io.BytesIO(frame["jpeg"])), **options)
            }
            for frame in clip
        ]
        for clip in CLIPS["frames"].to_pylist()
    ]


def scored(folder, path, label, **settings):
    stage = ClassifyFrames(model=str(folder), label=label, **settings)
    return transformed(stage, path, CLIPS)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_are_those_of_the_published_pipeline(models, tmp_path, kind):
    expected = published(models[kind])
    for size in (1, 16):
        rows = scored(models[kind], tmp_path, "nsfw", batch_images=size)
        for row, clip in zip(rows[:2], expected[:2], strict=True):
            found = [one["score"] for one in row["class_frames"]]
            np.testing.assert_allclose(found, [one["nsfw"] for one in clip], rtol=1e-5)
            assert row["class_score"] == max(found)
            assert row["class_score_reason"] is None
        assert rows[2]["error"]["kind"] == "bad_media"
    assert np.ptp([one["nsfw"] for clip in expected for one in clip]) > 0.001


def test_the_class_and_the_direction_are_named(models, tmp_path):
    expected = [[one["nsfw"] for one in clip] for clip in published(models["vit"])[:2]]
    for over, take in (("min", min), ("mean", np.mean), ("max", max)):
        rows = scored(models["vit"], tmp_path, 1, over_frames=over)
        found = [row["class_score"] for row in rows[:2]]
        np.testing.assert_allclose(found, [take(clip) for clip in expected], rtol=1e-5)


def test_probabilities_of_several_classes_are_added(models, tmp_path):
    expected = [one["nsfw"] + one["Drawing"] for one in published(models["vit"])[0]]
    [row, *_] = scored(models["vit"], tmp_path, ["nsfw", "drawing"])
    np.testing.assert_allclose([one["score"] for one in row["class_frames"]], expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("problem", "activation"), [("multi_label_classification", "sigmoid"), ("regression", "none")]
)
def test_outputs_become_scores_as_the_configuration_says(models, tmp_path, problem, activation):
    folder = shutil.copytree(models["vit"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "problem_type": problem}))
    rows = scored(folder, tmp_path, ["nsfw", "Drawing"])
    said = scored(models["vit"], tmp_path, ["nsfw", "Drawing"], activation=activation)
    for row, other, clip in zip(rows[:2], said[:2], published(folder)[:2], strict=True):
        expected = [max(one["nsfw"], one["Drawing"]) for one in clip]
        for made in (row, other):
            found = [one["score"] for one in made["class_frames"]]
            np.testing.assert_allclose(found, expected, rtol=1e-5)


def check(folder, label):
    [found] = ClassifyFrames(model=str(folder), label=label).model_checks("watermark", {})
    return found.run()


def test_a_check_says_what_the_model_is(models):
    assert check(models["siglip"], ["nsfw", 2]) == (
        "SiglipForImageClassification, softmax of nsfw, Drawing; pictures of 32 × 32"
    )


def test_an_unknown_class_is_answered_with_those_of_the_model(models):
    for label in ("watermark", 3):
        with pytest.raises(
            UsageError,
            match=rf"^watermark\.label: the model has no class {label!r}; its classes are "
            r"normal \(0\), nsfw \(1\), Drawing \(2\)",
        ):
            check(models["vit"], label)


def test_models_of_another_kind_are_refused(models, tmp_path):
    """One without a head would get a random one from transformers."""
    import transformers
    from safetensors.torch import load_file, save_file

    from tests.wrong_models import masked_bert

    masked_bert(tmp_path / "text")
    with pytest.raises(ClipmillError, match=r"is a bert; the stage needs an image classifier"):
        check(tmp_path / "text", 0)
    folder = shutil.copytree(models["vit"], tmp_path / "headless")
    weights = load_file(folder / "model.safetensors")
    kept = {name: value for name, value in weights.items() if "classifier" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ClipmillError, match=r"^watermark\.model: .* lacks 2 weights"):
        check(folder, "nsfw")
    with pytest.raises(ClipmillError, match=r"^classify_frames\.model: .* lacks 2 weights"):
        scored(folder, tmp_path, "nsfw")
    folder = shutil.copytree(models["vit"], tmp_path / "other-size")
    transformers.ViTImageProcessor(size={"height": 48, "width": 48}).save_pretrained(folder)
    with pytest.raises(ClipmillError, match=r"pictures of 48 × 48 pixels, the model takes 32"):
        check(folder, "nsfw")


def test_a_score_that_is_not_finite_is_null_with_a_reason(models, tmp_path):
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models["vit"], tmp_path / "broken")
    weights = load_file(folder / "model.safetensors")
    weights["classifier.bias"][1] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    [row, *_] = scored(folder, tmp_path, "nsfw")
    assert row["class_score"] is None
    assert "gave a score that is not finite" in row["class_score_reason"]
