"""Language models that answer prompts, run by transformers or a server."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.models.captioners import (
    has_chat_template,
    load_processor,
    prompt_lengths,
    without_prompt,
)
from clipmill.stages.models.completions import Completion, completions, ending_tokens
from clipmill.stages.models.generation import (
    Batches,
    GeneratingStage,
    Generation,
    ModelPlacement,
    chat_options,
    load_config,
    load_weights,
)
from clipmill.stages.models.openai_server import Message, OpenAIServer
from clipmill.stages.references import ModelReference

# A tokenizer without a known limit reports a number like 10**30.
_NO_LIMIT = 10**6
# A server's tokenizer is unknown; four characters per token is typical.
_CHARACTERS_PER_TOKEN = 4


class TextModel(Protocol):
    """Answers prompts; `longest_prompt` is in tokens, None if no limit is known."""

    longest_prompt: int | None

    def count_tokens(self, prompt: str) -> int:
        """Tokens of a prompt, including those that the model's template adds."""

    def complete(self, prompts: Sequence[str]) -> list[Completion | RowFailed]:
        """One answer per prompt, in the order of the prompts."""


@contextmanager
def open_text_model(
    reference: ModelReference,
    stage: GeneratingStage,
    setting: str,
    generation: Generation,
    batch_texts: int,
) -> Iterator[TextModel]:
    """The language model for a reference; errors name `setting`."""
    if reference.server:
        with stage.server(reference, setting) as server:
            server.check()
            yield ServerTextModel(server, generation)
        return
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    folder = local_folder(reference, setting=setting)
    config = load_config(folder, setting, trust_remote_code=stage.trust_remote_code)
    yield LocalTextModel(folder, config, setting, stage, generation, batch_texts)


class ServerTextModel:
    """A chat model behind a server."""

    longest_prompt: int | None = None

    def __init__(self, server: OpenAIServer, generation: Generation) -> None:
        self._server = server
        self._generation = generation

    def count_tokens(self, prompt: str) -> int:
        return -(-len(prompt) // _CHARACTERS_PER_TOKEN)

    def complete(self, prompts: Sequence[str]) -> list[Completion | RowFailed]:
        return self._server.ask(
            [Message(prompt) for prompt in prompts], max_new_tokens=self._generation.max_new_tokens
        )


class LocalTextModel:
    """An encoder–decoder, chat or plain causal model of transformers."""

    def __init__(
        self,
        folder: Path,
        config: Any,
        setting: str,
        stage: GeneratingStage,
        generation: Generation,
        batch_texts: int,
    ) -> None:
        trust = stage.trust_remote_code
        self._encoder_decoder = bool(config.is_encoder_decoder)
        self._generation = generation
        self._place = ModelPlacement.of(stage, setting, folder)
        self._tokenizer = load_processor("AutoTokenizer", folder, setting, trust)
        if self._tokenizer.pad_token_id is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._tokenizer.padding_side = "right" if self._encoder_decoder else "left"
        self._chat = not self._encoder_decoder and has_chat_template(folder)
        if self._chat and not self._tokenizer.chat_template:
            # Some models that also take pictures store their template with the processor.
            processor = load_processor("AutoProcessor", folder, setting, trust)
            self._tokenizer.chat_template = processor.chat_template
        self._model = load_weights(
            _auto_class(config, folder, setting),
            folder,
            setting,
            self._place,
            trust_remote_code=trust,
        )
        self._ends = ending_tokens(self._model) or {self._tokenizer.eos_token_id}
        self.longest_prompt = self._longest_prompt(config)
        self._batches = Batches[list[int], dict[str, Any], Completion](
            batch_texts, self._prepare, self._compute
        )

    def _longest_prompt(self, config: Any) -> int | None:
        text = config.get_text_config()
        found = [
            limit
            for limit in (
                getattr(text, "max_position_embeddings", None),
                getattr(text, "n_positions", None),
                self._tokenizer.model_max_length,
            )
            if limit is not None and limit < _NO_LIMIT
        ]
        if not found:
            return None
        # A decoder has prompt and answer in the same context.
        return int(min(found)) - (0 if self._encoder_decoder else self._generation.max_new_tokens)

    def count_tokens(self, prompt: str) -> int:
        return len(self._ids(prompt))

    def complete(self, prompts: Sequence[str]) -> list[Completion | RowFailed]:
        ids = [self._ids(prompt) for prompt in prompts]
        # Texts of similar length share a batch, so there is little padding.
        order = sorted(range(len(ids)), key=lambda i: (len(ids[i]), ids[i]))
        answers = self._batches.run([[ids[i] for i in order]])
        by_index = dict(zip(order, answers, strict=True))
        return [by_index[i] for i in range(len(ids))]

    def _ids(self, prompt: str) -> list[int]:
        """The prompt's tokens. Control tokens that are spelled out in a title or subtitle stay
        text."""
        tokenizer = self._tokenizer
        if self._chat:
            return list(
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": prompt}],
                    tokenize=True,
                    add_generation_prompt=True,
                    return_dict=True,
                    sanitize_control_tokens=True,
                    **chat_options(tokenizer.chat_template),
                )["input_ids"]
            )
        return list(tokenizer(prompt, split_special_tokens=True)["input_ids"])

    def _prepare(self, batch: Sequence[list[int]]) -> dict[str, Any]:
        return dict(self._tokenizer.pad({"input_ids": list(batch)}, return_tensors="pt"))

    def _compute(self, inputs: dict[str, Any]) -> list[Completion]:
        import torch

        with torch.inference_mode():
            moved = {
                name: value.to(self._place.device)
                for name, value in inputs.items()
                if name in ("input_ids", "attention_mask")
            }
            output = self._model.generate(
                **moved, pad_token_id=self._tokenizer.pad_token_id, **self._generation.arguments()
            )
        # An encoder–decoder's first token starts the decoder; in some models it also ends the
        # output.
        new = output[:, 1:] if self._encoder_decoder else without_prompt(output, moved["input_ids"])
        return completions(
            self._tokenizer.batch_decode(new, skip_special_tokens=True),
            new,
            ends=self._ends,
            padding=self._tokenizer.pad_token_id,
            limit=self._generation.max_new_tokens,
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
