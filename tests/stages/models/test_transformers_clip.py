"""Contrastive models in transformers' format equal bare transformers, images and texts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.media.read.images import decode_jpeg
from clipmill.stages.models.embedders import ClipEmbedder
from clipmill.stages.models.torch_setup import prepare_torch
from clipmill.stages.references import ModelReference
from clipmill.stages.tag_clips import TagClips
from tests.tiny_clip import clips_with_frames, frame_jpeg, transformed

prepare_torch()
import torch  # noqa: E402 - torch must be made ready before it is imported

WORDS = ["a", "photo", "of", "red", "circle", "dog", "cat", "runs"]
TEXTS = ["a red circle", "dog", "a photo of a dog " * 6]
# Square pictures of the models' own size need no resizing, about which libraries differ slightly.
SIDE = 32
SMALL = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}


def _tokenizer(last: str | None, limit: int):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {name: i for i, name in enumerate(["<pad>", "<unk>", *WORDS, "<end>"])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if last:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"$A {last}", special_tokens=[(last, vocabulary[last])]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        model_max_length=limit,
    )


def save(folder: Path, kind: str) -> Path:
    """CLIP with a context of 12, like Long-CLIP only the number differs; or SigLIP with 8, of one
    resolution or NaFlex."""
    import transformers as hf

    torch.manual_seed(0)
    end = len(WORDS) + 2
    text = {**SMALL, "vocab_size": end + 1, "pad_token_id": 0, "eos_token_id": end}
    vision = {**SMALL, "image_size": SIDE, "patch_size": 8}
    if kind == "clip":
        text |= {"max_position_embeddings": 12, "bos_token_id": end}
        model = hf.CLIPModel(
            hf.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        )
        images = hf.CLIPImageProcessor(
            size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}
        )
    else:
        text |= {"max_position_embeddings": 8}
        if kind == "siglip":
            model = hf.SiglipModel(hf.SiglipConfig(text_config=text, vision_config=vision))
            images = hf.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
        else:
            vision = {**SMALL, "patch_size": 8, "num_patches": 16}
            model = hf.Siglip2Model(hf.Siglip2Config(text_config=text, vision_config=vision))
            images = hf.Siglip2ImageProcessor(patch_size=8, max_num_patches=20)
        with torch.no_grad():
            model.logit_scale.fill_(1.5)
            model.logit_bias.fill_(-2.0)
    model.save_pretrained(folder)
    images.save_pretrained(folder)
    _tokenizer("<end>", 1000).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {kind: save(root / kind, kind) for kind in ("clip", "siglip", "naflex")}


def load(folder: Path, **options) -> ClipEmbedder:
    reference = ModelReference(folder=str(folder))
    return ClipEmbedder(reference, setting="embed_clips.model", dtype="float32", **options)


def bare(folder: Path, jpegs: list[bytes], texts: list[str], padding: str, length: int):
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    images = [Image.fromarray(decode_jpeg(data)) for data in jpegs]
    pixels = AutoImageProcessor.from_pretrained(folder)(images=images, return_tensors="pt")
    tokens = AutoTokenizer.from_pretrained(folder)(
        texts, padding=padding, truncation=True, max_length=length, return_tensors="pt"
    )
    with torch.inference_mode():
        seen = model.get_image_features(**pixels).pooler_output
        read = model.get_text_features(**tokens).pooler_output
    normalize = torch.nn.functional.normalize
    return normalize(seen, dim=-1).numpy(), normalize(read, dim=-1).numpy()


@pytest.mark.parametrize(
    ("kind", "padding", "context"), [("clip", "longest", 12), ("siglip", "max_length", 8)]
)
def test_embeddings_equal_those_of_transformers(folders, kind, padding, context) -> None:
    jpegs = [frame_jpeg(i, SIDE, SIDE) for i in range(4)]
    embedder = load(folders[kind])
    images, texts = bare(folders[kind], jpegs, TEXTS, padding, context)
    np.testing.assert_allclose(embedder.embed_images(jpegs), images, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_texts(TEXTS), texts, atol=1e-5)
    assert embedder.context == context
    assert embedder.token_counts(TEXTS) == [4, 2, 31]
    only = load(folders[kind], towers=("text",))
    np.testing.assert_allclose(only.embed_texts(TEXTS), texts, atol=1e-5)
    assert sum(p.numel() for p in only._model.parameters()) < sum(
        p.numel() for p in embedder._model.parameters()
    )


# Of any proportions, which all have to be resized; the third one can't be cut at its height.
SHAPES = [(96, 170), (170, 96), (37, 300), (64, 64), (21, 40)]


def test_pictures_in_patches_equal_those_of_transformers(folders) -> None:
    from transformers import AutoImageProcessor

    jpegs = [frame_jpeg(i, *shape) for i, shape in enumerate(SHAPES)]
    embedder = load(folders["naflex"], batch_images=3)
    right = AutoImageProcessor.from_pretrained(folders["naflex"])(
        images=[Image.fromarray(decode_jpeg(data)) for data in jpegs], return_tensors="pt"
    )
    prepared = torch.from_numpy(embedder.prepare(jpegs))
    values, mask, shapes = embedder.prepare.inputs(prepared, embedder.device, torch.float32)
    assert torch.equal(shapes, right["spatial_shapes"])
    assert len(set(map(tuple, shapes.tolist()))) > 3
    assert torch.equal(mask, right["pixel_attention_mask"])
    seen = mask.bool()
    np.testing.assert_allclose(values[seen], right["pixel_values"][seen], atol=1e-6)
    images, texts = bare(folders["naflex"], jpegs, TEXTS, "max_length", 8)
    np.testing.assert_allclose(embedder.embed_images(jpegs), images, atol=1e-5)
    alone = np.concatenate([embedder.embed_images([data]) for data in jpegs])
    np.testing.assert_allclose(alone, images, atol=1e-5)
    np.testing.assert_allclose(embedder.embed_texts(TEXTS), texts, atol=1e-5)
    assert np.abs(images[0] - images[1]).max() > 1e-2


def test_patches_are_counted_in_more_than_a_byte() -> None:
    from clipmill.stages.models.naflex import Patches

    wide = Patches(2, 400, "bilinear", (0.5,) * 3, (0.5,) * 3)
    prepared = torch.from_numpy(wide([frame_jpeg(1, 2, 600)]))
    _, mask, shapes = wide.inputs(prepared, torch.device("cpu"), torch.float32)
    assert shapes.tolist() == [[1, 300]]
    assert int(mask.sum()) == 300


def test_an_unreadable_picture_leaves_the_others_of_its_batch(folders) -> None:
    embedder = load(folders["naflex"])
    prepared = embedder.prepare([frame_jpeg(1, 96, 170)])
    unread = np.zeros_like(prepared)  # as the queue leaves it
    found = embedder.embed_batch(np.concatenate([unread, prepared]))
    np.testing.assert_allclose(found[1:], embedder.embed_batch(prepared), atol=1e-6)


def test_siglip_tags_are_probabilities_of_their_own(folders, tmp_path) -> None:
    (tmp_path / "tags.txt").write_text("dog\ncat\nred circle\n")
    settings = {
        "model": folders["siglip"],
        "dtype": "float32",
        "vocabulary": str(tmp_path / "tags.txt"),
        "min_score": -1,
    }
    table = clips_with_frames({"x": [1]})
    (row,) = transformed(TagClips(scores="sigmoid", **settings), tmp_path, table)
    (plain,) = transformed(TagClips(scores="cosine", **settings), tmp_path, table)
    cosines = {tag["tag"]: tag["score"] for tag in plain["tags"]}
    assert len(row["tags"]) == 3
    for tag in row["tags"]:
        logit = np.exp(1.5) * cosines[tag["tag"]] - 2.0
        assert tag["score"] == pytest.approx(1 / (1 + np.exp(-logit)), abs=1e-4)
    settings["model"] = folders["clip"]
    with pytest.raises(UsageError, match=r"tag_clips\.scores: .* no bias .*softmax or cosine"):
        transformed(TagClips(scores="sigmoid", **settings), tmp_path, table)


def test_softmax_over_siglip_says_what_fits_better(folders, tmp_path, caplog) -> None:
    (tmp_path / "tags.txt").write_text("dog\ncat\n")
    stage = TagClips(model=folders["siglip"], vocabulary=str(tmp_path / "tags.txt"))
    transformed(stage, tmp_path, clips_with_frames({"x": [1]}))
    assert "tag_clips.scores=sigmoid" in caplog.text


OWN_CODE = """
import torch
from transformers import CLIPModel

class Own(CLIPModel):
    def get_image_features(self, pixel_values):
        return super().get_image_features(pixel_values=pixel_values).pooler_output * 2
"""


def test_code_in_a_folder_runs_only_if_it_is_trusted(folders, tmp_path) -> None:
    folder = save(tmp_path / "own", "clip")
    (folder / "own.py").write_text(OWN_CODE)
    config = json.loads((folder / "config.json").read_text())
    # As in jina-clip: a type of its own, images described in open_clip's words.
    config |= {"auto_map": {"AutoConfig": "own.OwnConfig", "AutoModel": "own.Own"}}
    config["model_type"] = "own_clip"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        OWN_CODE + "\nfrom transformers import CLIPConfig\n\nclass OwnConfig(CLIPConfig):\n"
        '    model_type = "own_clip"\n\nOwn.config_class = OwnConfig\n'
    )
    prepared = {"size": SIDE, "resize_mode": "shortest", "interpolation": "bicubic"}
    prepared |= {"mean": [0.5] * 3, "std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    with pytest.raises(ClipmillError, match="trust_remote_code: true"):
        load(folder)
    embedder = load(folder, trust_remote_code=True)
    assert embedder.prepare.mean == (0.5, 0.5, 0.5)
    found = embedder.embed_images([frame_jpeg(1, SIDE, SIDE)])
    assert np.linalg.norm(found) == pytest.approx(1, abs=1e-5)
    assert "trust_remote_code" not in EmbedClips(model=folder).identity()


@pytest.mark.parametrize(
    ("config", "reason"),
    [({"model_type": "llava"}, "model_type is 'llava'; of transformers' models")],
)
def test_models_of_other_kinds_are_refused(tmp_path, config, reason) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ClipmillError, match=rf"^embed_clips\.model: .*{reason}"):
        load(tmp_path)
