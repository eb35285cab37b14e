"""Settings, loading and batching shared by caption_frames and summarize_captions."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

from pydantic import Field

from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.models.batch_size import free_memory, is_out_of_memory, out_of_memory
from clipmill.stages.models.device_errors import raise_if_broken
from clipmill.stages.protocol import Stage, resource
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    import torch

    from clipmill.stages.models.openai_server import OpenAIServer

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
Result = TypeVar("Result")

DType = Literal["auto", "float32", "bfloat16", "float16"]


@dataclass(frozen=True)
class Generation:
    """How a text is generated. There is no sampling, so the same input gives the same text."""

    max_new_tokens: int
    min_new_tokens: int = 0
    num_beams: int = 1
    no_repeat_ngram_size: int = 0

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments of transformers' `generate`."""
        wanted: dict[str, Any] = {
            "max_new_tokens": self.max_new_tokens,
            "num_beams": self.num_beams,
            "do_sample": False,
            "stopping_criteria": [_report],
        }
        if self.min_new_tokens:
            wanted["min_new_tokens"] = self.min_new_tokens
        if self.no_repeat_ngram_size:
            wanted["no_repeat_ngram_size"] = self.no_repeat_ngram_size
        return wanted


def _report(*_: Any, **__: Any) -> bool:
    """Reports progress after each token; never stops generation."""
    beat()
    return False


class GeneratingStage(Stage):
    """Settings of a stage whose texts come from a transformers model or a server."""

    dtype: DType = Field(
        "auto",
        description="number format of the weights; auto is bfloat16 if the CPU or GPU has "
        "instructions for it, otherwise float32",
    )
    device: str = resource("auto", description="auto, cpu, cuda or cuda:N")
    trust_remote_code: bool = Field(
        False,
        description="run the Python code in the model's folder; only for authors whom "
        "you trust (no code is fetched from the hub)",
    )
    server_concurrency: int = resource(
        8, ge=1, description="parallel requests when the model is a server"
    )
    server_timeout_seconds: float = resource(
        120.0, gt=0, description="maximum time to wait for one answer of a server"
    )
    server_retries: int = resource(
        4, ge=0, description="retries after 429, 5xx, a timeout or a lost connection"
    )
    server_first_wait_seconds: float = resource(
        1.0, ge=0, description="wait before the first retry; doubled for each further one"
    )
    server_key_variable: str = resource(
        "OPENAI_API_KEY", description="environment variable that holds the server's API key"
    )
    server_options: dict[str, Any] = Field(
        default_factory=dict,
        description="additional fields of each request; null removes a default (temperature: null)",
    )

    @staticmethod
    def check_server(reference: ModelReference, generation: Generation) -> None:
        """ValueError if a server would silently ignore settings."""
        if reference.server and generation != Generation(generation.max_new_tokens):
            raise ValueError(
                f"{reference} is a server, and OpenAI's protocol has no num_beams, min_new_tokens "
                "or no_repeat_ngram_size; use server_options for what the server supports"
            )

    def server(self, reference: ModelReference, setting: str) -> OpenAIServer:
        """The client for a reference to a server; errors name `setting`."""
        # Here, because httpx takes a tenth of a second to import.
        from clipmill.stages.models.openai_server import OpenAIServer

        return OpenAIServer(
            reference,
            concurrency=self.server_concurrency,
            timeout_seconds=self.server_timeout_seconds,
            retries=self.server_retries,
            first_wait_seconds=self.server_first_wait_seconds,
            key_variable=self.server_key_variable,
            options=self.server_options,
            setting=setting,
        )


@dataclass(frozen=True)
class ModelPlacement:
    """The device and dtype of a model."""

    device: torch.device
    dtype: torch.dtype

    @classmethod
    def of(cls, stage: GeneratingStage, setting: str, folder: Path) -> ModelPlacement:
        import torch

        from clipmill.stages.models import torch_setup

        automatic = stage.device == "auto"
        device = torch_setup.best_device() if automatic else torch.device(stage.device)
        dtype = (
            torch_setup.default_dtype(device)
            if stage.dtype == "auto"
            else getattr(torch, stage.dtype)
        )
        torch_setup.say_place(setting, folder, device, dtype)
        return cls(device, dtype)


def load_config(folder: Path, what: str, *, trust_remote_code: bool) -> Any:
    """The model's configuration; ClipmillError if the folder has no readable one."""
    import transformers

    # Its warnings are for model authors; what matters here is raised.
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return transformers.AutoConfig.from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        hint = ""
        if "trust_remote_code" in str(error):
            hint = "; it includes its own code, which runs only with trust_remote_code: true"
        raise ClipmillError(
            f"{what}: {folder} cannot be read as a model of transformers{hint}: {error}"
        ) from error


def load_weights(
    auto_class: Any, folder: Path, what: str, place: ModelPlacement, *, trust_remote_code: bool
) -> Any:
    """The model on its device, set up to generate without sampling.

    Loads only safetensors, or pickles with weights_only. Raises ClipmillError if weights are
    missing: transformers would initialise them randomly and continue.
    """
    try:
        model, loaded = auto_class.from_pretrained(
            folder,
            dtype=place.dtype,
            local_files_only=True,
            weights_only=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
        model.to(place.device).eval()
    except pickle.UnpicklingError as error:
        raise ClipmillError(
            f"{what}: {folder} contains a pickle with more than weights, which may run code "
            "when it is loaded; use the model's safetensors"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            raise ClipmillError(
                f"{what}: there is not enough memory to load {folder} on {place.device} as "
                f"{place.dtype}; use a smaller model or fewer workers: {error}"
            ) from error
        raise ClipmillError(f"{what}: {folder} cannot be loaded: {error}") from error
    # Poolers are for classification: published captioners often lack theirs.
    missing = sorted(name for name in loaded["missing_keys"] if "pooler" not in name)
    if missing:
        raise ClipmillError(
            f"{what}: {folder} lacks {len(missing)} weights that {type(model).__name__} needs, "
            f"the first of them {missing[0]}"
        )
    for module in model.modules():
        config = getattr(module, "generation_config", None)
        if config is not None:
            # Left-over sampling settings do nothing without sampling but warn at every call.
            config.update(
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                num_return_sequences=1,
                max_length=None,
            )
    return model


def chat_options(template: Any) -> dict[str, bool]:
    """Variables for a chat template: captions need no thinking."""
    return {"enable_thinking": False} if "enable_thinking" in str(template) else {}


class Batches(Generic[Item, Prepared, Result]):
    """Runs items through a model in batches, and prepares one while computing the previous one.

    If memory is short, the size is halved permanently. Any other exception fails only the item
    that causes it: its batch is processed again one by one. DeviceBroken is raised.
    """

    def __init__(
        self,
        size: int,
        prepare: Callable[[Sequence[Item]], Prepared],
        compute: Callable[[Prepared], Sequence[Result]],
    ) -> None:
        self.size = size
        self._prepare = prepare
        self._compute = compute

    def run(self, groups: Iterable[Sequence[Item]]) -> list[Result | RowFailed]:
        """Results in the order of the items; a batch never mixes two groups."""
        batches = [
            group[i : i + self.size] for group in groups for i in range(0, len(group), self.size)
        ]
        results: list[Result | RowFailed] = []
        with ThreadPoolExecutor(1, thread_name_prefix="prepare") as pool:
            ahead = [pool.submit(self._prepare, batch) for batch in batches[:1]]
            for i, batch in enumerate(batches):
                prepared = ahead.pop()
                if i + 1 < len(batches):
                    ahead.append(pool.submit(self._prepare, batches[i + 1]))
                if len(batch) > self.size:
                    prepared.cancel()
                    results += self._pieces(batch)
                else:
                    results += self._attempt(batch, prepared.result)
        return results

    def _pieces(self, batch: Sequence[Item]) -> list[Result | RowFailed]:
        results: list[Result | RowFailed] = []
        while len(results) < len(batch):
            piece = batch[len(results) : len(results) + self.size]
            results += self._attempt(piece, partial(self._prepare, piece))
        return results

    def _attempt(
        self, batch: Sequence[Item], prepared: Callable[[], Prepared]
    ) -> list[Result | RowFailed]:
        beat()
        try:
            found: list[Result | RowFailed] = [*self._compute(prepared())]
            if len(found) != len(batch):
                raise RuntimeError(f"{len(batch)} inputs gave {len(found)} outputs")
            return found
        except Exception as error:  # noqa: BLE001 - whatever a model raises fails only its item
            raise_if_broken(error)
            memory = is_out_of_memory(error)
            failure = (
                error
                if isinstance(error, RowFailed)
                else out_of_memory(error)
                if memory
                else RowFailed("model", f"{type(error).__name__}: {error}")
            )
        # Outside the handler, so that the traceback no longer references the batch's tensors.
        if memory:
            free_memory()
        if len(batch) == 1:
            return [failure]
        if memory:
            self.size = max(1, len(batch) // 2)
            return self._pieces(batch)
        return [
            result
            for item in batch
            for result in self._attempt([item], partial(self._prepare, [item]))
        ]
