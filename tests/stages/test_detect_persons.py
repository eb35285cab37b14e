"""detect_persons: the boxes of transformers' own detectors, of the class that counts."""

from __future__ import annotations

import io

import numpy as np
import pytest

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.detect_persons import DetectPersons
from clipmill.stages.models.torch_setup import prepare_torch
from tests.film_frames import clips_of
from tests.tiny_clip import frame_jpeg, transformed

pytest.importorskip("transformers", reason="needs clipmill[models]")

CLIPS = clips_of(
    one=[frame_jpeg(1), frame_jpeg(2, 120, 67), frame_jpeg(3)],
    two=[frame_jpeg(4, 64, 64), frame_jpeg(5)],
    none=[],
)
# What to call sure: random weights aren't of anything.
LEAST = {"rt_detr_v2": 0.06, "yolos": 0.6}
KINDS = tuple(LEAST)
SIDES = ("left", "top", "right", "bottom")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    prepare_torch()
    import torch

    from tests import picture_models

    torch.manual_seed(1)
    return {name: getattr(picture_models, name)(tmp_path_factory.mktemp(name)) for name in KINDS}


def published(folder, least: float) -> list[list[list[tuple[str, float, list[float]]]]]:
    """Of each frame the class, confidence and sides (as shares), by the published steps."""
    import torch
    import transformers
    from PIL import Image

    model = transformers.AutoModelForObjectDetection.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)

    def found(jpeg: bytes):
        picture = Image.open(io.BytesIO(jpeg))
        with torch.inference_mode():
            outputs = model(**processor(images=picture, return_tensors="pt"))
        [boxes] = processor.post_process_object_detection(
            outputs, threshold=least, target_sizes=[picture.size[::-1]]
        )
        shares = (boxes["boxes"] / torch.tensor([*picture.size] * 2)).clip(0, 1)
        names = [model.config.id2label[number.item()] for number in boxes["labels"]]
        return list(zip(names, boxes["scores"].tolist(), shares.tolist(), strict=True))

    return [[found(frame["jpeg"]) for frame in clip] for clip in CLIPS["frames"].to_pylist()]


@pytest.mark.parametrize("kind", KINDS)
def test_boxes_are_those_of_the_published_steps(models, tmp_path, kind):
    expected = published(models[kind], LEAST[kind])
    for label, names, size in (("Person", {"person"}, 1), (["person", 1], {"person", "dog"}, 16)):
        stage = DetectPersons(
            model=str(models[kind]), label=label, min_confidence=LEAST[kind], batch_images=size
        )
        rows = transformed(stage, tmp_path, CLIPS)
        for row, clip in zip(rows[:2], expected[:2], strict=True):
            wanted = [[box for box in frame if box[0] in names] for frame in clip]
            counts = [len(frame) for frame in wanted]
            assert (row["persons"], row["persons_mean"]) == (
                max(counts),
                pytest.approx(np.mean(counts)),
            )
            flat = [box for frame in wanted for box in frame]
            assert flat
            for box, (_, confidence, sides) in zip(row["person_boxes"], flat, strict=True):
                assert box["confidence"] == pytest.approx(confidence, abs=1e-4)
                np.testing.assert_allclose([box[side] for side in SIDES], sides, atol=1e-4)
            areas = [(right - left) * (bottom - top) for _, _, (left, top, right, bottom) in flat]
            assert row["person_area"] == pytest.approx(max(areas), abs=1e-4)
        assert rows[2]["error"]["kind"] == "bad_media"


def test_a_check_says_what_the_model_finds(models):
    [check] = DetectPersons(model=str(models["rt_detr_v2"])).model_checks("persons", {})
    assert check.run() == "RTDetrV2ForObjectDetection, finds person; pictures of 64 × 64"
    [check] = DetectPersons(model=str(models["yolos"]), label="cat").model_checks("persons", {})
    with pytest.raises(UsageError, match=r"^persons\.label: .* no class 'cat'.* person \(0\)"):
        check.run()


def test_a_classifier_is_refused(tmp_path):
    from tests.picture_models import vit

    [check] = DetectPersons(model=str(vit(tmp_path))).model_checks("persons", {})
    with pytest.raises(ClipmillError, match=r"is a vit; the stage needs an object detector"):
        check.run()


def test_without_the_hub_the_error_says_how_to_get_the_model(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    [check] = DetectPersons().model_checks("persons", {})
    with pytest.raises(ClipmillError, match=r"persons\.model: the model PekingU/rtdetr_v2_r18vd"):
        check.run()
