"""Language models without pictures: how requests become tokens."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.models.completions import Completion, completions, ending_tokens
from clipmill.stages.models.engines.processors import (
    Copies,
    chat_options,
    has_chat_template,
    load_processor,
    prompt_lengths,
    takes_system,
    without_prompt,
)
from clipmill.stages.models.engines.requests import Generation, Request, Sees
from clipmill.stages.models.generation import ModelPlacement, arguments_of, load_weights
from clipmill.stages.models.outputs.decoding import Decoder

_PROMPTS_KEPT = 1024
# A tokenizer without a known limit reports a number like 10**30.
_NO_LIMIT = 10**6


class LanguageModel:
    """An encoder–decoder, chat or plain causal model of transformers.

    `longest_prompt` leaves room for an answer of `longest_answer` tokens.
    """

    default_prompt: str | None = None
    sees: Sees = "nothing"

    def __init__(
        self,
        folder: Path,
        config: Any,
        setting: str,
        place: ModelPlacement,
        trust: bool,
        *,
        threads: int = 1,
        load: Callable[..., Any] = load_weights,
        longest_answer: int = 0,
    ) -> None:
        self._setting, self._place = setting, place
        self._encoder_decoder = bool(config.is_encoder_decoder)
        tokenizer = load_processor("AutoTokenizer", folder, setting, trust)
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token
        tokenizer.padding_side = "right" if self._encoder_decoder else "left"
        self._chat = not self._encoder_decoder and has_chat_template(folder)
        if self._chat and not tokenizer.chat_template:
            # Some models that also take pictures store their template with the processor.
            processor = load_processor("AutoProcessor", folder, setting, trust)
            tokenizer.chat_template = processor.chat_template
        self._takes_system = self._chat and takes_system(tokenizer, in_parts=False)
        self.model = load(
            _auto_class(config, folder, setting), folder, setting, place, trust_remote_code=trust
        )
        self._ends = ending_tokens(self.model) or {tokenizer.eos_token_id}
        self._padding = tokenizer.pad_token_id
        self._decoder = Decoder(tokenizer)
        self.longest_prompt = self._longest_prompt(config, tokenizer, longest_answer)
        # Of every caller's thread, for prompts; of the threads that prepare batches and decode.
        self.tokenizers = Copies(tokenizer, threads + 1)
        # A prompt that was counted is asked next.
        self.tokens_of = functools.lru_cache(maxsize=_PROMPTS_KEPT)(self._ids)

    def _longest_prompt(self, config: Any, tokenizer: Any, longest_answer: int) -> int | None:
        text = config.get_text_config()
        found = [
            limit
            for limit in (
                getattr(text, "max_position_embeddings", None),
                getattr(text, "n_positions", None),
                tokenizer.model_max_length,
            )
            if limit is not None and limit < _NO_LIMIT
        ]
        if not found:
            return None
        # A decoder has prompt and answer in the same context.
        return int(min(found)) - (0 if self._encoder_decoder else longest_answer)

    def check_prompt(self, prompt: str | None) -> None:
        """Any text is a prompt."""

    def count_tokens(self, request: Request) -> int:
        return len(self.accepted(request))

    def accepted(self, request: Request) -> tuple[int, ...]:
        """The prompt's tokens; RowFailed if there is more than text."""
        if not all(isinstance(part, str) for part in request.parts):
            raise RowFailed("model", f"{self._setting}: this model takes only text")
        request = request.with_schema_in_words()
        if not self._takes_system:
            request = request.without_system()
        return self.tokens_of(
            tuple((message.role, "".join(map(str, message.parts))) for message in request.messages)
        )

    def group(self, ids: tuple[int, ...]) -> Hashable:
        return 0

    def order(self, ids: tuple[int, ...]) -> Any:
        """Texts of similar length share a batch, so there is little padding."""
        return len(ids), ids

    def _ids(self, said: tuple[tuple[str, str], ...]) -> tuple[int, ...]:
        """The tokens of messages, each a role and a text. Control tokens that are spelled out in a
        title or subtitle stay text."""
        conversation = [{"role": role, "content": text} for role, text in said]
        with self.tokenizers.borrowed() as tokenizer:
            if self._chat:
                return tuple(
                    tokenizer.apply_chat_template(
                        conversation,
                        tokenize=True,
                        add_generation_prompt=True,
                        return_dict=True,
                        sanitize_control_tokens=True,
                        **chat_options(tokenizer.chat_template),
                    )["input_ids"]
                )
            prompt = "".join(message["content"] for message in conversation)
            return tuple(tokenizer(prompt, split_special_tokens=True)["input_ids"])

    def prepare(self, batch: Sequence[tuple[int, ...]]) -> dict[str, Any]:
        with self.tokenizers.borrowed() as tokenizer:
            ids = {"input_ids": [list(one) for one in batch]}
            return dict(tokenizer.pad(ids, return_tensors="pt"))

    def generate(
        self,
        inputs: Mapping[str, Any],
        generation: Generation,
        is_unwanted: Callable[[], bool] = lambda: False,
    ) -> list[Completion]:
        import torch

        with torch.inference_mode():
            moved = {
                name: value.to(self._place.device)
                for name, value in inputs.items()
                if name in ("input_ids", "attention_mask")
            }
            output = self.model.generate(
                **moved, pad_token_id=self._padding, **arguments_of(generation, is_unwanted)
            )
        # An encoder–decoder's first token starts the decoder; in some models it also ends the
        # output.
        new = output[:, 1:] if self._encoder_decoder else without_prompt(output, moved["input_ids"])
        with self.tokenizers.borrowed() as tokenizer:
            texts = self._decoder.texts(tokenizer, new, moved["input_ids"] if self._chat else None)
        return completions(
            texts,
            new,
            ends=self._ends,
            padding=self._padding,
            limit=generation.max_new_tokens,
            prompt_tokens=prompt_lengths(moved),
        )


def _auto_class(config: Any, folder: Path, setting: str) -> Any:
    import transformers

    classes = [transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText]
    if config.is_encoder_decoder:
        classes = [transformers.AutoModelForSeq2SeqLM]
    remote = getattr(config, "auto_map", None) or {}
    for auto_class in classes:
        known: Any = auto_class._model_mapping  # every class but the common base has it
        if type(config) in known or auto_class.__name__ in remote:
            return auto_class
    raise ClipmillError(
        f"{setting}: {folder} is a {type(config).__name__.removesuffix('Config')}, which is not a "
        "language model that transformers can generate with"
    )
