"""UMT-SIM: the retrieval model of the Unmasked Teacher, a ViT over space and time and BERT."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.video_text.base import Loading, TwoTowers, chosen_preparation, counted
from clipmill.stages.models.video_text.frame_preparation import IMAGENET, FramePreparation
from clipmill.stages.models.video_text.weights import read_state, weights_file

if TYPE_CHECKING:
    import torch

SIGN = "vision_encoder.encoder.patch_embed.proj.weight"
"""A tensor that only UMT's weights have."""

_CONTEXT = 32
_VISION, _TEXT = "vision_encoder.", "text_encoder."
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(crossattention\b)?")
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
_HEAD_WIDTH = 64


class UMT(TwoTowers):
    """Any number of frames (UMT-SIM: 4), the mean of their cosines; BERT, 32 tokens."""

    preparations: ClassVar[Mapping[str, FramePreparation]] = {
        "evaluation": FramePreparation((224, 224), *IMAGENET, antialias=False)
    }

    def _load(self, loading: Loading) -> None:
        import torch
        from transformers import BertTokenizer

        from clipmill.stages.models.video_text.umt_network import UMTVision

        if not any((loading.folder / name).is_file() for name in _TOKENIZER_FILES):
            raise ClipmillError(
                f"{loading.folder} lacks BERT's tokenizer ({' or '.join(_TOKENIZER_FILES)}); for "
                "UMT-L/16: hf download google-bert/bert-large-uncased tokenizer.json vocab.txt "
                f"tokenizer_config.json --local-dir {loading.folder}"
            )
        self.frames, self.context = None, _CONTEXT
        self._prepare = chosen_preparation(type(self), loading)
        self._tokenizer: Any = BertTokenizer.from_pretrained(
            loading.folder, local_files_only=True, do_lower_case=True
        )
        state = read_state(weights_file(loading.folder))
        vision = _below(state, _VISION)
        with torch.device("meta"):
            network = UMTVision(vision)
            self._video_projection = _projection(state["vision_proj.weight"])
            self._text_projection = _projection(state["text_proj.weight"])
        # The teacher and the heads that training needs are left out.
        _fill(network, vision)
        self._network = network.to(self.device, self.dtype).eval()
        for projection, name in (
            (self._video_projection, "vision_proj."),
            (self._text_projection, "text_proj."),
        ):
            _fill(projection, _below(state, name))
            projection.to(self.device, self.dtype)
        self._bert = _bert(_below(state, _TEXT)).to(self.device, self.dtype).eval()

    def token_counts(self, texts: Sequence[str]) -> list[int]:
        return counted(self._tokenizer, [plain_text(text) for text in texts])

    def _embedded_clips(self, clips: Sequence[Sequence[bytes]]) -> torch.Tensor:
        pixels = self._pixels(clips, self._prepare)
        found: torch.Tensor = self._video_projection(self._network(pixels))
        return found

    def _embedded_texts(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self._tokenizer(
            [plain_text(text) for text in texts],
            padding=True,
            truncation=True,
            max_length=_CONTEXT,
            return_tensors="pt",
        ).to(self.device)
        states = self._bert(tokens["input_ids"], attention_mask=tokens["attention_mask"])
        found: torch.Tensor = self._text_projection(states.last_hidden_state[:, 0])
        return found


def plain_text(text: str) -> str:
    """A caption as UMT was trained on them: lower case, without most punctuation."""
    text = re.sub(r"[,.'!?\"()*#:;~]", "", text.lower())
    text = text.replace("-", " ").replace("/", " ").replace("<person>", "person")
    return re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")


def _below(state: Mapping[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {
        name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)
    }


def _projection(weight: torch.Tensor) -> torch.nn.Linear:
    import torch

    outputs, inputs = weight.shape
    return torch.nn.Linear(inputs, outputs)


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
