"""Embeddings equal open_clip's own for any batching, and belong to their image or text."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.models import embedders
from clipmill.stages.models.embedders import ClipEmbedder
from clipmill.stages.models.loading import repository_of
from clipmill.stages.models.published_weights import published_weights
from clipmill.stages.references import ModelReference
from tests.tiny_clip import frame_jpeg as frame
from tests.tiny_clip import save_tiny_clip

TEXTS = ["a red circle", "a dog runs over the grass", "x " * 200, "", "a red circle"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


def load(folder: Path, **options) -> ClipEmbedder:
    options.setdefault("dtype", "float32")
    return ClipEmbedder(ModelReference(folder=str(folder)), setting="embed_clips.model", **options)


def by_open_clip(folder: Path, jpegs: list[bytes], texts: list[str]):
    import open_clip
    import torch

    model, _, transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
    with torch.inference_mode():
        pixels = torch.stack([transform(Image.open(io.BytesIO(data))) for data in jpegs])
        images = model.eval().encode_image(pixels, normalize=True)
        return (
            pixels.numpy(),
            images.numpy(),
            model.encode_text(tokenize(texts), normalize=True).numpy(),
        )


@pytest.mark.parametrize(
    "preprocessing",
    [
        {},
        {"resize_mode": "squash", "interpolation": "bilinear"},
        {"resize_mode": "longest", "fill_color": 90, "mean": [0.5] * 3, "std": [0.5] * 3},
    ],
    ids=["crop", "squash", "pad"],
)
def test_images_and_texts_equal_those_of_open_clip(tmp_path, preprocessing) -> None:
    """Pixels to about a grey level (PIL's filter has other edges), embeddings accordingly."""
    folder = save_tiny_clip(tmp_path, preprocessing=preprocessing)
    shapes = [(90, 160), (160, 90), (64, 64), (33, 47), (20, 20), (101, 33)]
    jpegs = [frame(i, *shape) for i, shape in enumerate(shapes)]
    pixels, images, texts = by_open_clip(folder, jpegs, TEXTS)
    embedder = load(folder)
    prepared = embedder.prepare(jpegs)
    std = np.reshape(embedder.prepare.std, (3, 1, 1))
    assert np.abs((prepared - pixels) * std * 255).mean(axis=(1, 2, 3)).max() < 2.0
    assert (embedder.embed_images(jpegs) * images).sum(axis=1).min() > 0.999
    np.testing.assert_allclose(embedder.embed_texts(TEXTS), texts, atol=1e-5)


@pytest.mark.parametrize("batch_images", [1, 3, 32])
def test_embeddings_do_not_depend_on_batching_or_order(folder, batch_images) -> None:
    jpegs = [frame(i) for i in range(17)]
    alone = np.concatenate([load(folder).embed_images([data]) for data in jpegs[:3]])
    embedder = load(folder, batch_images=batch_images)
    together = embedder.embed_images(jpegs)
    np.testing.assert_allclose(together[:3], alone, atol=1e-5)
    order = np.random.default_rng(1).permutation(17)
    shuffled = embedder.embed_images([jpegs[i] for i in order])
    np.testing.assert_allclose(shuffled, together[order], atol=1e-5)
    similar = together @ together.T
    assert (similar.argmax(axis=1) == np.arange(17)).all()
    assert embedder.embed_images([]).shape[0] == 0


def test_embeddings_have_length_one_in_bfloat16_too(folder) -> None:
    exact, rough = load(folder), load(folder, dtype="bfloat16")
    jpegs = [frame(i) for i in range(4)]
    for one, other in [
        (exact.embed_images(jpegs), rough.embed_images(jpegs)),
        (exact.embed_texts(TEXTS), rough.embed_texts(TEXTS)),
    ]:
        assert other.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(other, axis=1), 1, atol=1e-5)
        assert (one * other).sum(axis=1).min() > 0.995
    assert rough.logit_scale == pytest.approx(exact.logit_scale)


def test_repeated_text_is_embedded_once(folder, monkeypatch) -> None:
    embedder = load(folder, towers=("text",))
    asked: list[str] = []
    original = embedder._embed_fresh
    monkeypatch.setattr(
        embedder,
        "_embed_fresh",
        lambda texts, size: (asked.extend(texts), original(texts, size))[1],
    )
    first = embedder.embed_texts(["a", "b", "a"])
    second = embedder.embed_texts(["b", "c"])
    assert asked == ["a", "b", "c"]
    np.testing.assert_array_equal(first[1], second[0])
    np.testing.assert_array_equal(first[0], first[2])
    assert embedder.embed_texts([]).shape[0] == 0


def test_cache_of_texts_is_bounded(folder, monkeypatch) -> None:
    monkeypatch.setattr(embedders, "_REMEMBERED_TEXTS", 3)
    monkeypatch.setattr(embedders, "_TEXT_BATCH", 2)
    embedder = load(folder, towers=("text",))
    texts = [f"text {i}" for i in range(5)]
    assert embedder.embed_texts(texts).shape == (5, 24)
    assert list(embedder._texts) == texts[2:]


@pytest.mark.parametrize(("towers", "other"), [(("text",), "image"), (("image",), "text")])
def test_only_the_requested_towers_are_kept(folder, towers, other) -> None:
    both, one = load(folder), load(folder, towers=towers)

    def count(embedder: ClipEmbedder) -> int:
        return sum(p.numel() for p in embedder._model.parameters())

    assert count(one) < count(both)
    if other == "text":
        np.testing.assert_array_equal(one.embed_images([frame(1)]), both.embed_images([frame(1)]))
    else:
        np.testing.assert_array_equal(one.embed_texts(["a"]), both.embed_texts(["a"]))


def test_pair_of_architecture_and_weights_is_found_on_the_hub() -> None:
    """OpenAI's weights were trained with QuickGELU, which isn't part of the architecture's name."""
    found = published_weights("open_clip:ViT-L-14/openai")
    assert found.repository == repository_of("open_clip:ViT-L-14/openai")
    assert found.repository == "timm/vit_large_patch14_clip_224.openai"
    assert found.quick_gelu
    assert not published_weights("open_clip:ViT-B-32/laion2b_s34b_b79k").quick_gelu


@pytest.mark.parametrize(
    ("hub", "message"),
    [("open_clip:ViT-L-14/opneai", "its weights: openai"), ("open_clip:ViT-Q", "no such")],
)
def test_unknown_pair_lists_the_known_ones(hub: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        published_weights(hub)


def test_published_pair_is_loaded_with_its_own_activation(folder, tmp_path, monkeypatch) -> None:
    """A pair's file is loaded into the architecture, with QuickGELU as required by its tag."""
    import open_clip
    import torch

    architecture = tmp_path / "tiny-test.json"
    configuration = json.loads((folder / "open_clip_config.json").read_text())["model_cfg"]
    architecture.write_text(json.dumps(configuration))
    open_clip.add_model_config(architecture)
    monkeypatch.setitem(
        open_clip.pretrained._PRETRAINED,
        "tiny-test",
        {"quick": {"hf_hub": "org/tiny/", "quick_gelu": True, "mean": (0.5, 0.5, 0.5)}},
    )
    monkeypatch.setattr(embedders, "local_folder", lambda reference, *, setting: folder)
    embedder = ClipEmbedder(
        ModelReference(hub="open_clip:tiny-test/quick"), setting="s.model", dtype="float32"
    )
    assert embedder.prepare.mean == (0.5, 0.5, 0.5)
    made = open_clip.create_model(
        "tiny-test", str(folder / "open_clip_model.safetensors"), force_quick_gelu=True
    ).eval()
    with torch.inference_mode():
        pixels = torch.from_numpy(embedder.prepare([frame(2)]))
        expected = made.encode_image(pixels, normalize=True).numpy()
    np.testing.assert_allclose(embedder.embed_images([frame(2)]), expected, atol=1e-5)
    assert (
        np.abs(embedder.embed_images([frame(2)]) - load(folder).embed_batch(pixels.numpy())).max()
        > 1e-4
    )


def test_folder_without_weights_is_refused(folder, tmp_path) -> None:
    """open_clip would continue with random weights."""
    (tmp_path / "open_clip_config.json").write_text((folder / "open_clip_config.json").read_text())
    with pytest.raises(ClipmillError, match=r"embed_clips\.model.*cannot be loaded"):
        load(tmp_path)


def test_model_in_another_format_is_recognised(tmp_path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UsageError, match=r"contains no open_clip_config\.json"):
        load(tmp_path)
