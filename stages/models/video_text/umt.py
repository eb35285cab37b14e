"""UMT-SIM: the retrieval model of the Unmasked Teacher, a ViT over space and time and BERT."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.video_text.base import FromWeights, Loading, counted
from clipmill.stages.models.video_text.frame_preparation import IMAGENET, FramePreparation
from clipmill.stages.models.video_text.weights import read_state, weights_file

if TYPE_CHECKING:
    import torch

SIGN = "vision_encoder.encoder.patch_embed.proj.weight"
"""A tensor that only UMT's weights have."""

_CONTEXT = 32
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(crossattention\b)?")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_HEAD_WIDTH = 64


class UMT(FromWeights):
    """Any number of frames (UMT-SIM: 4), the mean of their cosines; BERT, 32 tokens."""

    preparations: ClassVar[Mapping[str, FramePreparation]] = {
        "evaluation": FramePreparation((224, 224), *IMAGENET, antialias=False)
    }

    @classmethod
    def check(cls, folder: Path) -> None:
        import torch

        _tokenizer(folder)
        with torch.device("meta"):
            _Networks.of(read_state(weights_file(folder), only_shapes=True))

    def _load(self, loading: Loading) -> None:
        self.frames, self.context = None, _CONTEXT
        named = loading.preparation
        self._prepare = self.preparation(loading.setting, named)
        self._tokenizer = _tokenizer(loading.folder)
        self._networks = _Networks.of(read_state(weights_file(loading.folder)))
        for network in self._networks.all:
            network.to(self.device, self.dtype).eval()

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return counted(self._tokenizer, [plain_text(text) for text in texts])

    def _embedded_clips(self, clips: Sequence[Sequence[bytes]]) -> torch.Tensor:
        pixels = self._pixels(clips, self._prepare)
        networks = self._networks
        found: torch.Tensor = networks.video_projection(networks.video(pixels))
        return found

    def _embedded_texts(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self._tokenizer(
            [plain_text(text) for text in texts],
            padding=True,
            truncation=True,
            max_length=_CONTEXT,
            return_tensors="pt",
        ).to(self.device)
        networks = self._networks
        states = networks.text(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        found: torch.Tensor = networks.text_projection(states.last_hidden_state[:, 0])
        return found


@dataclass(frozen=True)
class _Networks:
    video: torch.nn.Module
    video_projection: torch.nn.Module
    text: torch.nn.Module
    text_projection: torch.nn.Module

    @property
    def all(self) -> tuple[torch.nn.Module, ...]:
        return self.video, self.video_projection, self.text, self.text_projection

    @classmethod
    def of(cls, state: Mapping[str, torch.Tensor]) -> _Networks:
        """From a checkpoint, without its teacher and the heads that only training needs."""
        import torch

        from clipmill.stages.models.video_text.umt_network import UMTVision

        vision = _below(state, "vision_encoder.")
        with torch.device("meta"):
            video = UMTVision(vision)
        _fill(video, vision)
        projections = []
        for prefix in ("vision_proj.", "text_proj."):
            own = _below(state, prefix)
            out, width = own["weight"].shape
            with torch.device("meta"):
                projection = torch.nn.Linear(width, out)
            _fill(projection, own)
            projections.append(projection)
        return cls(video, projections[0], _bert(_below(state, "text_encoder.")), projections[1])


def _tokenizer(folder: Path) -> Any:
    from transformers import BertTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise ClipmillError(
            f"{folder} lacks BERT's tokenizer ({' or '.join(_TOKENIZER_FILES)}); for UMT-L/16: hf "
            "download google-bert/bert-large-uncased tokenizer.json vocab.txt "
            f"tokenizer_config.json --local-dir {folder}"
        )
    return BertTokenizer.from_pretrained(folder, local_files_only=True, do_lower_case=True)


def plain_text(text: str) -> str:
    """A caption as UMT was trained on them: lower case, without most punctuation."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")


def _below(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def _fill(module: torch.nn.Module, state: Mapping[str, torch.Tensor]) -> None:
    wanted = module.state_dict().keys()
    module.load_state_dict({k: v for k, v in state.items() if k in wanted}, assign=True)


def _bert(state: Mapping[str, torch.Tensor]) -> torch.nn.Module:
    """The layers of BERT before the first one that also looks at a video: they read texts.

    Pretraining checkpoints have BERT under `bert.`.
    """
    from transformers import BertConfig, BertModel

    state = {name.removeprefix("bert."): value for name, value in state.items()}
    found = [match for name in state if (match := _LAYER.match(name))]
    layers = 1 + max(int(match[1]) for match in found)
    fused = [int(match[1]) for match in found if match[2]]
    words, width = state["embeddings.word_embeddings.weight"].shape
    config = BertConfig(
        vocab_size=words,
        hidden_size=width,
        num_hidden_layers=min(fused, default=layers),
        num_attention_heads=width // _HEAD_WIDTH or 1,
        intermediate_size=state["encoder.layer.0.intermediate.dense.weight"].shape[0],
        max_position_embeddings=state["embeddings.position_embeddings.weight"].shape[0],
        type_vocab_size=state["embeddings.token_type_embeddings.weight"].shape[0],
    )
    model: torch.nn.Module = BertModel(config, add_pooling_layer=False)
    _fill(model, state)
    return model
