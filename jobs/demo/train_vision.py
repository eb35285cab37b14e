"""Trains the demo's three vision models: CLIP, the captioner and the aesthetic head.

The captioner starts from CLIP's vision tower, so that vision is trained only once.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional

from clipmill.jobs.demo import world
from clipmill.jobs.demo.train_text import make_tokenizer
from clipmill.jobs.demo.training_data import IMAGE_SIZE, POSITIONS, TAG_TEMPLATES, Specimens
from clipmill.jobs.demo.training_loop import Schedule, learn, save_halved, shrink_weights
from clipmill.stages.models.torch_setup import prepare_torch

prepare_torch()

import open_clip  # noqa: E402 - only after prepare_torch can these be imported
from transformers import (  # noqa: E402
    AutoProcessor,
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessor,
    BlipProcessor,
)

CLIP_SCHEDULE = Schedule(steps=3500, batch_rows=64, peak_rate=2e-3)
CAPTIONER_SCHEDULE = Schedule(steps=900, batch_rows=64, peak_rate=1e-3)
HEAD_SCHEDULE = Schedule(steps=600, batch_rows=1024, peak_rate=1e-3)
_WRONG_TEXTS_PER_STEP = 48
_MEAN = (0.5, 0.5, 0.5)
_DEVIATION = (0.25, 0.25, 0.25)
_WIDTH, _LAYERS, _HEADS, _PATCH = 96, 4, 3, 16
_TEXT_WIDTH, _TEXT_LAYERS, _TEXT_HEADS = 96, 2, 3
_EMBEDDING = 128


def clip_config(vocabulary_size: int) -> dict[str, Any]:
    """The content of `open_clip_config.json`."""
    return {
        "model_cfg": {
            "embed_dim": _EMBEDDING,
            "vision_cfg": {
                "image_size": IMAGE_SIZE,
                "patch_size": _PATCH,
                "width": _WIDTH,
                "layers": _LAYERS,
                "head_width": _WIDTH // _HEADS,
                # As in BLIP's vision tower, which receives these weights.
                "no_ln_pre": True,
            },
            "text_cfg": {
                "context_length": 12,
                "vocab_size": vocabulary_size,
                "hf_tokenizer_name": "words",
                "width": _TEXT_WIDTH,
                "heads": _TEXT_HEADS,
                "layers": _TEXT_LAYERS,
            },
        },
        "preprocess_cfg": {
            "size": IMAGE_SIZE,
            "mean": list(_MEAN),
            "std": list(_DEVIATION),
            "interpolation": "bicubic",
            # A centre crop of a wide frame would lose the shapes at its sides.
            "resize_mode": "squash",
        },
    }


def to_pixels(images: np.ndarray) -> torch.Tensor:
    """Normalised float pixels of uint8 images `[n, 3, side, side]`."""
    pixels = torch.from_numpy(images).float() / 255
    return (pixels - torch.tensor(_MEAN)[:, None, None]) / torch.tensor(_DEVIATION)[:, None, None]


class TextBank:
    """Every text that CLIP must distinguish, and which specimens each is true of."""

    def __init__(self) -> None:
        texts: list[str] = [world.BLACK_CAPTION]
        # Colour, shape, position and motion of every text; -1 if it doesn't mention it.
        said: list[tuple[int, int, int, int]] = [(-1, -1, -1, -1)]
        motions = tuple(world.MOTION_WORDS)
        for c, colour in enumerate(world.COLOURS):
            texts += [template.format(colour) for template in TAG_TEMPLATES]
            said += [(c, -1, -1, -1)] * len(TAG_TEMPLATES)
            for s, shape in enumerate(world.SHAPES):
                subject = world.name_subject(colour, shape)
                texts += [subject, f"a photo of {subject}"]
                said += [(c, s, -1, -1)] * 2
                for p, position in enumerate(POSITIONS):
                    texts.append(world.caption_position(subject, position))
                    said.append((c, s, p, -1))
                for m, motion in enumerate(motions):
                    texts.append(f"{subject} {world.MOTION_WORDS[motion]}")
                    said.append((c, s, -1, m))
        for s, shape in enumerate(world.SHAPES):
            texts += [template.format(shape) for template in TAG_TEMPLATES]
            said += [(-1, s, -1, -1)] * len(TAG_TEMPLATES)
        self.texts = texts
        self._said = np.array(said)
        self._is_black = np.array([text == world.BLACK_CAPTION for text in texts])
        self._needs_horizontal = np.isin(
            self._said[:, 3], [motions.index(m) for m in ("left", "right", "side_to_side")]
        )
        self._needs_vertical = np.isin(
            self._said[:, 3], [motions.index(m) for m in ("up", "down", "up_and_down")]
        )

    def match(self, specimens: Specimens, rows: np.ndarray) -> np.ndarray:
        """Whether each text is true of each specimen: bool `[rows, texts]`.

        A text about a motion is true of a frame that could be from that motion.
        """
        true = np.ones((len(rows), len(self.texts)), dtype=bool)
        labels = (specimens.colours, specimens.shapes, specimens.positions)
        for column, values in enumerate(labels):
            said = self._said[:, column]
            true &= (said == values[rows][:, None]) | (said == -1)
        true &= specimens.horizontal[rows][:, None] | ~self._needs_horizontal
        true &= specimens.vertical[rows][:, None] | ~self._needs_vertical
        black = specimens.black[rows][:, None]
        return np.where(black, self._is_black, true & ~self._is_black)

    def choose(self, rng: np.random.Generator, match: np.ndarray) -> np.ndarray:
        """Indices of one true text per image, and of some more."""
        true = [rng.choice(np.flatnonzero(row)) for row in match]
        others = rng.choice(len(self.texts), size=_WRONG_TEXTS_PER_STEP, replace=False)
        return np.unique(np.concatenate([true, others]))


def _spread_over_true(logits: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of every row against a uniform distribution over its true columns."""
    counts = true.sum(dim=1, keepdim=True)
    gain = (functional.log_softmax(logits.float(), dim=1) * true).sum(dim=1, keepdim=True)
    kept = counts > 0
    return -(gain[kept] / counts[kept]).mean()


class _ClipWithQuestions(torch.nn.Module):
    """CLIP with auxiliary classification heads on its vision tower.

    The contrastive loss alone learns shapes slowly. So the embedding, and every patch that the
    shape covers, must also predict colour, shape and position, and every patch whether the shape
    covers it. The heads are dropped after training.
    """

    def __init__(self, clip: open_clip.CLIP) -> None:
        super().__init__()
        self.clip = clip
        clip.visual.output_tokens = True
        sizes = (len(world.COLOURS), len(world.SHAPES), len(POSITIONS))
        self.whole = torch.nn.ModuleList(torch.nn.Linear(_EMBEDDING, n) for n in sizes)
        self.patch = torch.nn.ModuleList(torch.nn.Linear(_WIDTH, n) for n in sizes)
        self.covered = torch.nn.Linear(_WIDTH, 2)

    def forward(
        self,
        pixels: torch.Tensor,
        tokens: torch.Tensor,
        covered: torch.Tensor,
        labels: list[torch.Tensor],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `[images, texts]`, and the summed auxiliary loss."""
        seen, patches = self.clip.visual(pixels)
        read = self.clip.encode_text(tokens, normalize=True)
        logits = self.clip.logit_scale.exp() * functional.normalize(seen, dim=-1) @ read.T
        image_of_patch = covered.nonzero()[:, 0]
        asked = _answer(self.covered, patches.flatten(0, 1), covered.long().flatten())
        for whole, patch, label in zip(self.whole, self.patch, labels, strict=True):
            asked = asked + _answer(whole, seen, label)
            asked = asked + _answer(patch, patches[covered], label[image_of_patch])
        return logits, asked


def _answer(question: torch.nn.Module, features: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(question(features).float(), label)


def _find_covered(specimens: Specimens) -> torch.Tensor:
    """Whether the centre of each patch is inside the shape's box: bool `[n, patches]`."""
    side = IMAGE_SIZE // _PATCH
    middles = (np.arange(side) + 0.5) / side
    x, y, height = specimens.boxes.T[:, :, None]
    width = height * world.FRAME_HEIGHT / world.FRAME_WIDTH
    across, down = np.abs(middles - x) < width / 2, np.abs(middles - y) < height / 2
    covered = down[:, :, None] & across[:, None, :] & ~specimens.black[:, None, None]
    return torch.from_numpy(covered.reshape(len(covered), -1))


def train_clip(folder: Path, specimens: Specimens, seed: int) -> None:
    torch.manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = make_tokenizer(with_start=True)
    tokenizer.save_pretrained(folder)
    config = clip_config(len(tokenizer))
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf-8")
    model = _ClipWithQuestions(open_clip.CLIP(**config["model_cfg"]))
    bank = TextBank()
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(bank.texts)
    covered = _find_covered(specimens)
    truths = [
        torch.from_numpy(np.where(specimens.black, -100, labels))
        for labels in (specimens.colours, specimens.shapes, specimens.positions)
    ]
    rng = np.random.default_rng(seed)

    def loss_of_batch(step: int) -> torch.Tensor:
        rows = rng.integers(len(specimens.images), size=CLIP_SCHEDULE.batch_rows)
        match = bank.match(specimens, rows)
        texts = bank.choose(rng, match)
        true = torch.from_numpy(match[:, texts])
        labels = [truth[rows] for truth in truths]
        pixels = to_pixels(specimens.images[rows])
        logits, asked = model(pixels, tokens[texts], covered[rows], labels)
        loss: torch.Tensor = (
            _spread_over_true(logits, true) + _spread_over_true(logits.T, true.T) + asked
        )
        return loss

    learn("clip", model, loss_of_batch, CLIP_SCHEDULE)
    save_halved(model.clip.state_dict(), folder / "open_clip_model.safetensors")


def load_clip(folder: Path) -> Any:
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    return model.eval()


def make_captioner(clip: Any) -> tuple[BlipForConditionalGeneration, BlipProcessor]:
    """A BLIP with CLIP's vision tower and an untrained text decoder."""
    tokenizer = make_tokenizer(with_start=True)
    config = BlipConfig(
        vision_config={
            "hidden_size": _WIDTH,
            "intermediate_size": 4 * _WIDTH,
            "num_hidden_layers": _LAYERS,
            "num_attention_heads": _HEADS,
            "image_size": IMAGE_SIZE,
            "patch_size": _PATCH,
            "initializer_range": 0.02,
        },
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": _TEXT_WIDTH,
            "intermediate_size": 4 * _TEXT_WIDTH,
            "num_hidden_layers": _TEXT_LAYERS,
            "num_attention_heads": _TEXT_HEADS,
            "max_position_embeddings": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "sep_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
    )
    model = BlipForConditionalGeneration(config)
    _copy_vision_tower(clip.visual, model.vision_model)
    processor = BlipProcessor(
        BlipImageProcessor(
            size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
            image_mean=list(_MEAN),
            image_std=list(_DEVIATION),
        ),
        tokenizer,
    )
    return model, processor


def _copy_vision_tower(source: Any, target: torch.nn.Module) -> None:
    """The same transformer under other names; open_clip's patches have no bias."""
    weights = {
        "embeddings.class_embedding": source.class_embedding[None, None],
        "embeddings.position_embedding": source.positional_embedding[None],
        "embeddings.patch_embedding.weight": source.conv1.weight,
        "embeddings.patch_embedding.bias": torch.zeros(_WIDTH),
        "post_layernorm.weight": source.ln_post.weight,
        "post_layernorm.bias": source.ln_post.bias,
    }
    for number, block in enumerate(source.transformer.resblocks):
        parts = {
            "layer_norm1": block.ln_1,
            "layer_norm2": block.ln_2,
            "self_attn.projection": block.attn.out_proj,
            "mlp.fc1": block.mlp.c_fc,
            "mlp.fc2": block.mlp.c_proj,
        }
        layer = f"encoder.layers.{number}"
        weights[f"{layer}.self_attn.qkv.weight"] = block.attn.in_proj_weight
        weights[f"{layer}.self_attn.qkv.bias"] = block.attn.in_proj_bias
        for name, part in parts.items():
            weights[f"{layer}.{name}.weight"] = part.weight
            weights[f"{layer}.{name}.bias"] = part.bias
    target.load_state_dict({name: weight.detach() for name, weight in weights.items()})


def train_captioner(folder: Path, clip_folder: Path, specimens: Specimens, seed: int) -> None:
    torch.manual_seed(seed)
    model, processor = make_captioner(load_clip(clip_folder))
    pad = processor.tokenizer.pad_token_id
    tokens = processor.tokenizer(specimens.captions(), return_tensors="pt", padding=True)
    rng = np.random.default_rng(seed)

    def loss_of_batch(step: int) -> torch.Tensor:
        rows = rng.integers(len(specimens.images), size=CAPTIONER_SCHEDULE.batch_rows)
        words = tokens.input_ids[rows]
        loss: torch.Tensor = model(
            pixel_values=to_pixels(specimens.images[rows]),
            input_ids=words,
            attention_mask=tokens.attention_mask[rows],
            labels=words.masked_fill(words == pad, -100),
        ).loss
        return loss

    learn("captioner", model, loss_of_batch, CAPTIONER_SCHEDULE)
    model.generation_config.max_new_tokens = 16
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    shrink_weights(folder)


def make_aesthetic_head() -> torch.nn.Sequential:
    """LAION's V2 network: linear layers at 0, 2, 4, 6 and 7, dropout between the first four."""
    linear, dropout = torch.nn.Linear, torch.nn.Dropout
    return torch.nn.Sequential(
        linear(_EMBEDDING, 1024),
        dropout(0.0),
        linear(1024, 128),
        dropout(0.0),
        linear(128, 64),
        dropout(0.0),
        linear(64, 16),
        linear(16, 1),
    )


def train_aesthetic_head(path: Path, clip_folder: Path, specimens: Specimens, seed: int) -> None:
    torch.manual_seed(seed)
    embeddings = embed_images(load_clip(clip_folder), specimens.images)
    head = make_aesthetic_head()
    appeal = torch.from_numpy(specimens.appeal)
    rng = np.random.default_rng(seed)

    def loss_of_batch(step: int) -> torch.Tensor:
        rows = rng.integers(len(embeddings), size=HEAD_SCHEDULE.batch_rows)
        return functional.mse_loss(head(embeddings[rows])[:, 0].float(), appeal[rows])

    learn("aesthetic", head, loss_of_batch, HEAD_SCHEDULE)
    save_halved({f"layers.{name}": w for name, w in head.state_dict().items()}, path)


@torch.inference_mode()
def embed_images(clip: Any, images: np.ndarray) -> torch.Tensor:
    """Unit-length embeddings of uint8 images `[n, 3, side, side]`."""
    parts = [
        clip.encode_image(to_pixels(images[start : start + 256]), normalize=True)
        for start in range(0, len(images), 256)
    ]
    return torch.cat(parts)


@torch.inference_mode()
def embed_texts(clip: Any, clip_folder: Path, texts: list[str]) -> torch.Tensor:
    tokens = open_clip.get_tokenizer(f"local-dir:{clip_folder}")(texts)
    embedded: torch.Tensor = clip.encode_text(tokens, normalize=True)
    return embedded


@torch.inference_mode()
def caption_images(folder: Path, images: np.ndarray) -> list[str]:
    """Greedy captions of uint8 images `[n, 3, side, side]`."""
    model = BlipForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(folder)
    texts: list[str] = []
    for start in range(0, len(images), 64):
        pixels = to_pixels(images[start : start + 64])
        made = model.generate(pixel_values=pixels, do_sample=False, max_new_tokens=16)
        texts += processor.batch_decode(made, skip_special_tokens=True)
    return texts


def load_aesthetic_head(path: Path) -> torch.nn.Sequential:
    head = make_aesthetic_head()
    weights = load_file(path)
    head.load_state_dict({name.removeprefix("layers."): w for name, w in weights.items()})
    return head.eval()
