"""Settings and loading shared by the stages whose models make text."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, model_validator

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.isolation.progress import beat
from clipmill.stages.models.batch_size import is_out_of_memory
from clipmill.stages.models.engines.loading_options import loading_options
from clipmill.stages.models.engines.programs import ServerPrograms
from clipmill.stages.models.engines.requests import Generation as Generation
from clipmill.stages.models.outputs.cleaning import TextRule
from clipmill.stages.models.outputs.stored import WhenCutOff
from clipmill.stages.models.serving import ServedStage
from clipmill.stages.protocol import ModelCheck, resource
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    import torch

Attention = Literal[
    "auto", "eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention"
]
Quantization = Literal[
    "none", "bitsandbytes_8bit", "bitsandbytes_4bit", "torchao_int8", "torchao_int4"
]
DeviceMap = Literal["none", "auto", "balanced", "balanced_low_0", "sequential"]
DType = Literal["auto", "float32", "bfloat16", "float16"]


# At so many requests in flight, a call to ask a server has so many rows.
_MANY_REQUESTS = 32
_ROWS_OF_A_CALL = 4


def arguments_of(generation: Generation, is_unwanted: Callable[[], bool]) -> dict[str, Any]:
    """Keyword arguments of transformers' `generate`; once it `is_unwanted`, it ends early."""

    def stops(*_: Any, **__: Any) -> bool:
        """After each token."""
        beat()
        return is_unwanted()

    return {**generation.arguments(), "stopping_criteria": [stops]}


class GeneratingStage(ServedStage):
    """Settings of a stage whose texts come from a transformers model or a server."""

    dtype: DType = Field(
        "auto",
        description="number format of the weights; auto is bfloat16 if the CPU or GPU has "
        "instructions for it, otherwise float32",
    )
    when_cut_off: WhenCutOff | None = Field(
        None,
        description="what becomes of a text that was cut off at the token limit: fail, keep, or "
        "sentence (keep its whole sentences). By default fail, and keep for a captioner that "
        "follows no instructions, such as BLIP",
    )
    text_rules_off: tuple[TextRule, ...] = Field(
        (),
        description="rules for cleaning the model's texts that are not applied (see "
        "docs/captioning.md)",
    )
    device: str = resource("auto", description="auto, cpu, cuda or cuda:N")
    attention: Attention = Field(
        "auto",
        description="implementation of attention; auto is transformers' choice for the model",
    )
    quantization: Quantization = Field(
        "none",
        description="stores weights in fewer bits, by the package that comes first in the name",
    )
    device_map: DeviceMap = resource(
        "none",
        description="how a model that is larger than a GPU is spread over the worker's GPUs, and "
        "what doesn't fit over its memory; needs the package accelerate",
    )
    engine: ServerPrograms | None = Field(
        None,
        description="a server that the run starts for the model, by vllm or sglang: python (of an "
        "environment with it), tensor_parallel, options, environment, start_seconds; by default "
        "transformers runs the model in the worker's process",
    )
    trust_remote_code: bool = Field(
        False,
        description="run the Python code in the model's folder; only for authors whom "
        "you trust (no code is fetched from the hub)",
    )
    server_concurrency: int | None = resource(
        None,
        ge=1,
        description="requests in flight at a time when the model is a server, for each worker: one "
        "unless workers is set; by default 8, and 64 for a server that the run starts",
    )

    @model_validator(mode="after")
    def _check_engine(self) -> GeneratingStage:
        ignored = ("attention", "quantization", "device_map", "device")
        for name in ignored if self.engine is not None else ():
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name} is for models in the worker's process, and engine starts a server; "
                    "use the server's own options: engine: {vllm: {options: […]}}"
                )
        return self

    def check_server(self, reference: ModelReference, generation: Generation) -> None:
        """ValueError if a server would silently ignore settings."""
        if reference.server and self.engine is not None:
            raise ValueError(
                f"engine starts a server for a model, but {reference} is a server already; name "
                "the model's folder or hub id, or leave engine out"
            )
        is_served = reference.server or self.engine is not None
        if is_served and generation != Generation(generation.max_new_tokens):
            raise ValueError(
                f"{reference} is served, and OpenAI's protocol has no num_beams, min_new_tokens "
                "or no_repeat_ngram_size; use server_options for what the server supports"
            )

    def writer_check(
        self,
        label: str,
        setting: str,
        reference: ModelReference,
        local: Callable[[str], str],
        *,
        pictures: int,
        depends_on: tuple[Any, ...] = (),
    ) -> ModelCheck:
        """The check of a model that writes texts about so many pictures at a time; `local` checks
        one that transformers runs."""
        name = f"{label}.{setting}"
        if reference.server:
            from clipmill.stages.models.checks.servers import check_server

            served = partial(check_server, reference, self, name, pictures=pictures)
            return ModelCheck(setting, served, (pictures,), asks=True)
        if self.engine is not None:
            from clipmill.stages.models.checks.programs import check_program

            started = partial(check_program, reference, self.engine, name)
            return ModelCheck(setting, started, (self.engine.program.python,), lasts=False)
        loading = (self.trust_remote_code, self.quantization, self.device_map)
        needs = ("torch", "transformers")
        return ModelCheck(setting, partial(local, name), (*loading, *depends_on), needs)

    def models_used(self) -> tuple[ModelReference, ...]:
        """The models that answer, with these settings."""
        found = self.references().values()
        return tuple(model for model in found if isinstance(model, ModelReference))

    @property
    def is_served(self) -> bool:
        """Whether all answers come from servers: this process only waits for them."""
        models = self.models_used()
        return bool(models) and (self.engine is not None or all(model.server for model in models))

    @property
    def uses_gpus(self) -> bool:
        """Not if all of its models are behind servers elsewhere."""
        return not self.is_served or self.engine is not None

    @property
    def most_gpus(self) -> float | None:
        """Any number if the model is spread over them, or if a server of its own has them."""
        return 1.0 if self.device_map == "none" and self.engine is None else None

    @property
    def requests_at_once(self) -> int:
        """Requests to a server that are in flight at a time."""
        return self.server_concurrency or (8 if self.engine is None else 64)

    @property
    def calls_at_once(self) -> int:
        # More requests are ready, so that servers always have their number, and a model in this
        # process its next batch. A call of several rows waits for its slowest.
        if not self.is_served:
            return 2
        rows = self.rows_at_once
        return -(-(2 if rows == 1 else 3) * self.requests_at_once // rows)

    @property
    def rows_at_once(self) -> int:
        if not self.is_served:
            return self.batch_rows
        # Where a call has one row, what is done for each call takes longer than for its row, which
        # counts where many are answered per second.
        many = self.requests_at_once >= _MANY_REQUESTS
        return min(self.batch_rows, _ROWS_OF_A_CALL) if many else 1

    @property
    def most_workers(self) -> int | None:
        # Servers elsewhere get no more from several processes, and one process bounds the requests.
        alone = self.is_served and self.engine is None
        return 1 if alone and self.workers is None else self.workers


class AnsweringStage(GeneratingStage):
    """Settings of a stage whose texts are all generated in the same way."""

    max_new_tokens: int = Field(256, ge=1, description="longest text, in tokens")
    min_new_tokens: int = Field(0, ge=0, description="shortest text, in tokens")
    num_beams: int = Field(1, ge=1, description="beams of the beam search; 1 is greedy")
    no_repeat_ngram_size: int = Field(
        0, ge=0, description="no run of this many tokens occurs twice in a text; 0 turns this off"
    )

    @property
    def generation(self) -> Generation:
        return Generation(
            self.max_new_tokens, self.min_new_tokens, self.num_beams, self.no_repeat_ngram_size
        )


@dataclass(frozen=True)
class ModelPlacement:
    """The device and dtype of a model, and how it is put there."""

    device: torch.device
    dtype: torch.dtype
    attention: Attention = "auto"
    quantization: Quantization = "none"
    device_map: DeviceMap = "none"

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
        return cls(device, dtype, stage.attention, stage.quantization, stage.device_map)


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
            **loading_options(place, what),
        )
        # A model that transformers has spread or quantised is where it belongs.
        if getattr(model, "hf_device_map", None) is None:
            model.to(place.device)
        model.eval()
    except pickle.UnpicklingError as error:
        raise ClipmillError(
            f"{what}: {folder} contains a pickle with more than weights, which may run code "
            "when it is loaded; use the model's safetensors"
        ) from error
    except (OSError, ValueError, KeyError, RuntimeError, MemoryError, ImportError) as error:
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
