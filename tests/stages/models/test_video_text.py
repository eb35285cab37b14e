"""Video–text models equal straightforward code over the same weights, in every published layout."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.media.read.images import decode_jpeg
from clipmill.stages.models.checks.embedders import check_video_text
from clipmill.stages.models.video_text.base import TwoTowers, VideoTextModel
from clipmill.stages.models.video_text.choose import load_video_text_model
from clipmill.stages.models.video_text.umt import plain_text
from clipmill.stages.models.video_text.viclip import ViCLIP
from clipmill.stages.references import ModelReference
from tests.tiny_clip import frame_jpeg
from tests.video_text_models import (
    BERT_TOKENS,
    TINY_UMT,
    TINY_VICLIP,
    UMT_L,
    VICLIP_B,
    VICLIP_L,
    random_state,
    save_umt,
    save_viclip,
    save_videoprism,
    torch,
)

F = torch.nn.functional
MEAN, DEVIATION = np.array((0.485, 0.456, 0.406)), np.array((0.229, 0.224, 0.225))
CLIPS = [[frame_jpeg(10 * clip + i) for i in range(4)] for clip in range(3)]
TEXTS = ["a red circle moves left", "the dog", "a dog runs in the snow " * 12]


def load(folder: Path, **options) -> VideoTextModel:
    options.setdefault("dtype", "float32")
    return load_video_text_model(
        ModelReference(folder=str(folder)), setting="score_video_similarity.model", **options
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    save_viclip(root / "viclip")
    save_umt(root / "umt")
    save_videoprism(root / "videoprism")
    return {name: root / name for name in ("viclip", "umt", "videoprism")}


# --- straightforward versions, from the weights' names alone ---


def norm(state, name: str, x, epsilon: float):
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], epsilon)


def dense(state, name: str, x):
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def attention(q, k, v, heads: int, mask=None):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    return (
        ((scores if mask is None else scores + mask).softmax(-1) @ v).transpose(-3, -2).flatten(-2)
    )


def clip_blocks(state, tower: str, x, mask=None):
    count = len({n.split(".")[3] for n in state if n.startswith(f"{tower}.transformer.")})
    for i in range(count):
        at = f"{tower}.transformer.resblocks.{i}."
        y = norm(state, f"{at}ln_1", x, 1e-5)
        parts = y @ state[f"{at}attn.in_proj_weight"].T + state[f"{at}attn.in_proj_bias"]
        x = x + dense(
            state,
            f"{at}attn.out_proj",
            attention(*parts.chunk(3, -1), max(1, x.shape[-1] // 64), mask),
        )
        y = dense(state, f"{at}mlp.c_fc", norm(state, f"{at}ln_2", x, 1e-5))
        x = x + dense(state, f"{at}mlp.c_proj", y * torch.sigmoid(1.702 * y))
    return x


def viclip_video(state, pixels):
    """One clip of shape (frames, 3, side, side)."""
    v = "vision_encoder"
    maps = F.conv2d(
        pixels, state[f"{v}.conv1.weight"][:, :, 0], stride=state[f"{v}.conv1.weight"].shape[-1]
    )
    x = maps.flatten(2).transpose(1, 2)  # frame, patch, width
    first = state[f"{v}.class_embedding"] + state[f"{v}.positional_embedding"][0]
    x = x + state[f"{v}.positional_embedding"][None, 1:]
    # As published: all moments of the first patch, then all of the second; order doesn't matter.
    x = (x + state[f"{v}.temporal_positional_embedding"][0][:, None]).transpose(0, 1).flatten(0, 1)
    x = norm(state, f"{v}.ln_pre", torch.cat((first[None], x)), 1e-5)
    x = clip_blocks(state, v, x)
    return norm(state, f"{v}.ln_post", x[0], 1e-5) @ state[f"{v}.proj"]


def viclip_text(state, text: str):
    from open_clip.tokenizer import SimpleTokenizer

    tokenizer = SimpleTokenizer()
    ids = [49406, *tokenizer.encode(text), 49407]
    ids = ids if len(ids) <= 32 else [*ids[:31], 49407]
    t = "text_encoder"
    x = state[f"{t}.token_embedding.weight"][ids] + state[f"{t}.positional_embedding"][: len(ids)]
    mask = torch.full((len(ids), len(ids)), -torch.inf).triu(1)
    x = norm(state, f"{t}.ln_final", clip_blocks(state, t, x, mask), 1e-5)
    return x[-1] @ state[f"{t}.text_projection"]


def umt_video(state, pixels):
    e = "vision_encoder.encoder."
    weight, bias = state[f"{e}patch_embed.proj.weight"][:, :, 0], state[f"{e}patch_embed.proj.bias"]
    x = F.conv2d(pixels, weight, bias, stride=weight.shape[-1]).flatten(2).transpose(1, 2)
    frames = len(x)
    x = x.flatten(0, 1)
    width = x.shape[-1]
    angles = [
        [place / 10000 ** (2 * (i // 2) / width) for i in range(width)] for place in range(len(x))
    ]
    table = [
        [math.sin(a) if i % 2 == 0 else math.cos(a) for i, a in enumerate(row)] for row in angles
    ]
    x = x + torch.tensor(table)
    for i in range(len({n.split(".")[3] for n in state if n.startswith(f"{e}blocks.")})):
        at = f"{e}blocks.{i}."
        y = norm(state, f"{at}norm1", x, 1e-6)
        q, k, v = (y @ state[f"{at}attn.qkv.weight"].T).chunk(3, -1)
        y = attention(q + state[f"{at}attn.q_bias"], k, v + state[f"{at}attn.v_bias"], width // 64)
        x = x + dense(state, f"{at}attn.proj", y)
        y = F.gelu(dense(state, f"{at}mlp.fc1", norm(state, f"{at}norm2", x, 1e-6)))
        x = x + dense(state, f"{at}mlp.fc2", y)
    x = norm(state, f"{e}norm", x, 1e-6).unflatten(0, (frames, -1)).mean(1)
    return dense(state, "vision_proj", norm(state, "vision_encoder.pool_norm", x, 1e-6))


def umt_text(state, text: str):
    """Only the layers before the first one with crossattention: those with it fuse."""
    words = [BERT_TOKENS.index(word) for word in text.split()]
    ids = [2, *words[:30], 3]
    b = "text_encoder.bert."
    x = state[f"{b}embeddings.word_embeddings.weight"][ids]
    x = x + state[f"{b}embeddings.position_embeddings.weight"][: len(ids)]
    x = x + state[f"{b}embeddings.token_type_embeddings.weight"][0]
    x = norm(state, f"{b}embeddings.LayerNorm", x, 1e-12)
    for i in range(2):
        at = f"{b}encoder.layer.{i}."
        parts = [dense(state, f"{at}attention.self.{p}", x) for p in ("query", "key", "value")]
        y = dense(state, f"{at}attention.output.dense", attention(*parts, x.shape[-1] // 64))
        x = norm(state, f"{at}attention.output.LayerNorm", x + y, 1e-12)
        y = dense(state, f"{at}output.dense", F.gelu(dense(state, f"{at}intermediate.dense", x)))
        x = norm(state, f"{at}output.LayerNorm", x + y, 1e-12)
    return dense(state, "text_proj", x[0])


def pixels_of(clip: list[bytes], side: int, kernel: int):
    images = [cv2.resize(decode_jpeg(data), (side, side), interpolation=kernel) for data in clip]
    values = (np.stack(images) / 255.0 - MEAN) / DEVIATION
    return torch.from_numpy(values.transpose(0, 3, 1, 2)).float()


def expected(videos, texts) -> np.ndarray:
    """The mean over a clip's embeddings of their cosines with each text."""
    videos = F.normalize(torch.stack([v.reshape(-1, v.shape[-1]) for v in videos]), dim=-1)
    return (videos @ F.normalize(torch.stack(texts), dim=-1).T).mean(1).numpy()


# --- tests ---


@pytest.mark.parametrize("layout", ["pth", "hub"])
def test_viclip_equals_straightforward_code(tmp_path, layout) -> None:
    state = save_viclip(tmp_path, layout=layout)
    model = load(tmp_path, batch_clips=2)
    assert isinstance(model, ViCLIP)
    assert (model.frames, model.context) == (4, 32)
    found = np.stack(model.cosines(CLIPS, [TEXTS] * 3))
    videos = [viclip_video(state, pixels_of(clip, 16, cv2.INTER_LINEAR)) for clip in CLIPS]
    wanted = expected(videos, [viclip_text(state, text) for text in TEXTS])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.ptp(found) > 0.05
    # The text that is cut still ends in the end token, without which its score would differ.
    assert model.token_counts(TEXTS) == [7, 4, 74]


def test_umt_equals_straightforward_code(folders) -> None:
    model = load(folders["umt"], batch_clips=2)
    assert isinstance(model, TwoTowers)
    assert (model.frames, model.context) == (None, 32)
    state = random_state(TINY_UMT)
    texts = ["A red circle, moves left!", *TEXTS[1:]]
    found = np.stack(model.cosines(CLIPS, [texts] * 3))
    videos = [umt_video(state, pixels_of(clip, 224, cv2.INTER_CUBIC)) for clip in CLIPS]
    assert videos[0].shape == (4, 24)  # an embedding per frame
    wanted = expected(videos, [umt_text(state, text) for text in TEXTS])
    np.testing.assert_allclose(found, wanted, atol=1e-5)
    assert np.ptp(found) > 0.02
    assert model.token_counts(texts) == [7, 4, 74]
    # The number of frames is free; it isn't part of the weights.
    alone = model.cosines([CLIPS[0][:1]], [texts[:1]])[0]
    videos = [umt_video(state, pixels_of(CLIPS[0][:1], 224, cv2.INTER_CUBIC))]
    np.testing.assert_allclose(alone, expected(videos, [umt_text(state, TEXTS[0])])[0], atol=1e-5)


def test_number_of_frames_of_one_clip_changes_no_other_clips_score(folders) -> None:
    """UMT takes any number, so each clip keeps its own in a batch."""
    model = load(folders["umt"], batch_clips=3)
    clips = [CLIPS[0], CLIPS[1][:2], CLIPS[2][:1], CLIPS[1]]
    together = model.cosines(clips, [TEXTS[:1]] * 4)
    alone = [model.cosines([clip], [TEXTS[:1]])[0] for clip in clips]
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_umt_reads_texts_without_punctuation_and_capitals() -> None:
    assert plain_text('  A man-made "lake", (blue)  at 5/6: <person> isn\'t in it!\n') == (
        "a man made lake blue at 5 6 person isnt in it"
    )


def test_videoprism_equals_transformers(folders) -> None:
    from transformers import AutoTokenizer, VideoPrismClipModel

    model = load(folders["videoprism"])
    assert (model.frames, model.context) == (4, 8)
    own = VideoPrismClipModel.from_pretrained(folders["videoprism"]).eval()
    tokenizer = AutoTokenizer.from_pretrained(folders["videoprism"])
    tokens = tokenizer(
        TEXTS, padding="max_length", truncation=True, max_length=8, return_tensors="pt"
    )
    frames = [[decode_jpeg(data) for data in clip] for clip in CLIPS]
    pixels = torch.from_numpy(np.stack([model._prepare(clip) for clip in frames]))
    assert pixels.shape == (3, 4, 3, 32, 32)
    assert pixels.min() >= 0  # not normalised: 0 to 1
    assert pixels.max() <= 1
    with torch.inference_mode():
        out = own(
            pixel_values_videos=pixels,
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
        )
    wanted = (out.video_embeds @ out.text_embeds.T).numpy()
    np.testing.assert_allclose(np.stack(model.cosines(CLIPS, [TEXTS] * 3)), wanted, atol=1e-5)
    assert np.ptp(wanted) > 0.01


def test_published_preprocessings_are_chosen_by_name(folders) -> None:
    """OpenCV's bilinear resize, bicubic without antialiasing, and the middle square."""
    image = decode_jpeg(frame_jpeg(5))

    def prepared(name: str) -> np.ndarray:
        return replace(ViCLIP.preparations[name], size=(16, 16))([image])[0]

    def by_hand(part: np.ndarray, kernel: int, mean=MEAN, deviation=DEVIATION) -> np.ndarray:
        resized = cv2.resize(part, (16, 16), interpolation=kernel)
        return ((resized / 255.0 - mean) / deviation).transpose(2, 0, 1)

    np.testing.assert_allclose(prepared("demo"), by_hand(image, cv2.INTER_LINEAR), atol=1e-5)
    chosen = load(folders["viclip"], preparation="evaluation")._prepare([image])[0]
    np.testing.assert_array_equal(chosen, prepared("evaluation"))
    np.testing.assert_allclose(prepared("evaluation"), by_hand(image, cv2.INTER_CUBIC), atol=1e-5)
    whole = cv2.resize(image, (28, 16), interpolation=cv2.INTER_CUBIC)[:, 6:22]
    mean, deviation = (
        np.array((0.48145466, 0.4578275, 0.40821073)),
        np.array((0.26862954, 0.26130258, 0.27577711)),
    )
    np.testing.assert_allclose(
        prepared("vbench"), ((whole / 255.0 - mean) / deviation).transpose(2, 0, 1), atol=1e-5
    )
    with pytest.raises(UsageError, match="evaluation, not 'demo'"):
        load(folders["umt"], preparation="demo")
    with pytest.raises(UsageError, match="brings its own preprocessing"):
        load(folders["videoprism"], preparation="demo")


@pytest.mark.parametrize(
    ("shapes", "width", "parameters"),
    [(VICLIP_L, 224, 427_590_145), (VICLIP_B, 224, 149_603_841)],
    ids=["L/14", "B/16"],
)
def test_true_sizes_of_viclip_fit_its_network(shapes, width, parameters) -> None:
    from clipmill.stages.models.video_text.viclip_network import ViCLIPNetwork

    with torch.device("meta"):
        state = {name: torch.empty(shape) for name, shape in shapes.items()}
        network = ViCLIPNetwork(state)
    network.load_state_dict(state, assign=True)
    assert (network.frames, network.context, network.image_size) == (8, 32, width)
    heads = [
        tower.transformer.resblocks[0].attn.num_heads
        for tower in (network.vision_encoder, network.text_encoder)
    ]
    assert heads == ([16, 12] if shapes is VICLIP_L else [12, 8])
    assert sum(p.numel() for p in network.parameters()) == parameters


def test_true_sizes_of_umt_fit_its_network() -> None:
    """UMT-L/16 with BERT-large: 24 layers see, 19 of BERT's 24 read texts."""
    from clipmill.stages.models.video_text.umt import _Networks

    with torch.device("meta"):
        networks = _Networks.of({name: torch.empty(shape) for name, shape in UMT_L.items()})
    assert len(networks.video.encoder.blocks) == 24
    assert networks.video.encoder.blocks[0].attn._heads == 16
    config = networks.text.config
    assert (config.num_hidden_layers, config.num_attention_heads) == (19, 16)


def test_text_without_direction_has_no_cosine(folders) -> None:
    model = load(folders["viclip"])
    with torch.no_grad():
        model._network.text_encoder.text_projection.zero_()
    assert np.isnan(model.cosines(CLIPS[:1], [TEXTS[:1]])[0]).all()


def test_checks_before_a_run_know_these_models(folders, tmp_path) -> None:
    def said(folder: Path, preparation: str | None = None) -> str:
        return check_video_text(ModelReference(folder=str(folder)), "viclip.model", preparation)

    assert said(folders["viclip"], "vbench") == "ViCLIP"
    assert said(folders["umt"]) == "UMT"
    assert said(folders["videoprism"]) == "VideoPrism for 4 frames"
    with pytest.raises(UsageError, match=r"^viclip\.model: for this model preprocessing can be"):
        said(folders["umt"], "demo")
    state = random_state(TINY_VICLIP)
    del state["text_encoder.ln_final.weight"]
    torch.save({"model": state}, tmp_path / "ViCLIP.pth")
    with pytest.raises(ClipmillError, match=r"(?s)^viclip\.model: .*ln_final\.weight"):
        said(tmp_path)


def test_folders_of_other_models_are_refused_with_a_reason(folders, tmp_path) -> None:
    def reason(change) -> str:
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folders["umt"], folder)
        change(folder)
        with pytest.raises(
            ClipmillError, match=r"^score_video_similarity\.model: .* video–text"
        ) as e:
            load(folder)
        return str(e.value)

    assert "several files of weights" in reason(
        lambda f: shutil.copy(f / "l16_25m.pth", f / "copy.pth")
    )
    assert "contains no weights" in reason(lambda f: (f / "l16_25m.pth").unlink())
    assert "hf download google-bert/bert-large-uncased" in reason(
        lambda f: (f / "vocab.txt").unlink()
    )
    assert "names of no model" in reason(
        lambda f: torch.save({"x": torch.ones(1)}, f / "l16_25m.pth")
    )
    missing = {k: v for k, v in random_state(TINY_UMT).items() if "blocks.0.attn.proj" not in k}
    assert "encoder.blocks.0.attn.proj.weight" in reason(
        lambda f: torch.save(missing, f / "l16_25m.pth")
    )
    assert TINY_VICLIP.keys() & TINY_UMT.keys() == {"temp"}
