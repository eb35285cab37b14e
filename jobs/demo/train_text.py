"""Trains the demo's summariser, and makes the small tokenizer that all its models share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from clipmill.jobs.demo import world
from clipmill.jobs.demo.training_data import TAG_TEMPLATES, make_summary_pair
from clipmill.jobs.demo.training_loop import Schedule, learn, shrink_weights
from clipmill.stages.models.torch_setup import prepare_torch

prepare_torch()

from transformers import (  # noqa: E402 - only after prepare_torch can these be imported
    AutoTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

SCHEDULE = Schedule(steps=1800, batch_rows=32, peak_rate=2e-3)
_BATCHES_SORTED_AT_ONCE = 16
_PAD, _UNKNOWN, _START, _END = "<pad>", "<unk>", "<s>", "</s>"


def list_words() -> list[str]:
    """Every word and punctuation mark of the world's captions, tags and prompts, in fixed order."""
    texts = [
        *(world.name_subject(colour, shape) for colour in world.COLOURS for shape in world.SHAPES),
        *world.MOTION_WORDS.values(),
        *world.POSITION_WORDS.values(),
        *(template.replace("{}", "") for template in TAG_TEMPLATES),
        world.BLACK_CAPTION,
        "coarse : fine . tags ,",
    ]
    return sorted({word for text in texts for word in text.split()})


def make_tokenizer(with_start: bool) -> PreTrainedTokenizerFast:
    """Whole words, lower case; unknown ones become `<unk>`. Texts end in `</s>`."""
    # open_clip's text tower reads its result at the highest token id, which is the end token.
    words = [_PAD, _UNKNOWN, *list_words(), _START, _END]
    ids = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=_UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{_START} $A {_END}" if with_start else f"$A {_END}",
        special_tokens=[(_START, ids[_START]), (_END, ids[_END])],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=_PAD,
        unk_token=_UNKNOWN,
        bos_token=_START,
        eos_token=_END,
        model_max_length=256,
    )


def train_summarizer(folder: Path, seed: int) -> None:
    torch.manual_seed(seed)
    tokenizer = make_tokenizer(with_start=False)
    end = tokenizer.eos_token_id
    make: Any = T5Config  # its types lack the arguments that all configurations accept
    config = make(
        vocab_size=len(tokenizer),
        d_model=96,
        d_kv=24,
        d_ff=256,
        num_layers=2,
        num_decoder_layers=2,
        num_heads=4,
        relative_attention_num_buckets=64,
        relative_attention_max_distance=192,
        dropout_rate=0.0,
        pad_token_id=tokenizer.pad_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        eos_token_id=end,
    )
    model = T5ForConditionalGeneration(config)
    batches = _make_batches(seed)

    def loss_of_batch(step: int) -> torch.Tensor:
        pairs = next(batches)
        prompts = tokenizer([prompt for prompt, _ in pairs], return_tensors="pt", padding=True)
        labels = tokenizer([text for _, text in pairs], return_tensors="pt", padding=True).input_ids
        labels[labels == tokenizer.pad_token_id] = -100
        loss: torch.Tensor = model(
            input_ids=prompts.input_ids, attention_mask=prompts.attention_mask, labels=labels
        ).loss
        return loss

    learn("summarizer", model, loss_of_batch, SCHEDULE)
    model.generation_config.max_new_tokens = 24
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    shrink_weights(folder)


def _make_batches(seed: int) -> Iterator[list[tuple[str, str]]]:
    """Endless batches, each of prompts of similar length, so that there is little padding."""
    rng = np.random.default_rng(seed)
    rows = SCHEDULE.batch_rows
    while True:
        pairs = [make_summary_pair(rng) for _ in range(rows * _BATCHES_SORTED_AT_ONCE)]
        pairs.sort(key=lambda pair: len(pair[0]))
        for number in rng.permutation(_BATCHES_SORTED_AT_ONCE):
            yield pairs[number * rows : (number + 1) * rows]


def load_summarizer(folder: Path) -> tuple[Any, Any]:
    """The model and its tokenizer; transformers' types for both are too narrow."""
    model = T5ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def summarize(folder: Path, prompts: list[str]) -> list[str]:
    model, tokenizer = load_summarizer(folder)
    texts: list[str] = []
    for start in range(0, len(prompts), 64):
        batch = tokenizer(prompts[start : start + 64], return_tensors="pt", padding=True)
        made = model.generate(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask, do_sample=False
        )
        texts += tokenizer.batch_decode(made, skip_special_tokens=True)
    return texts
