"""Settings of model servers that a run starts itself, and their command lines."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class ServerProgram(BaseModel):
    """How to start a server from a Python environment of its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    python: str = Field(description="the Python of an environment in which the server is installed")
    tensor_parallel: int | None = Field(
        None, ge=1, description="GPUs that share the model; by default those of the worker (gpus)"
    )
    options: tuple[str, ...] = Field((), description="further arguments of the server's command")
    environment: dict[str, str] = Field(
        default_factory=dict, description="environment variables for the server"
    )
    start_seconds: float = Field(
        1800.0, gt=0, description="time for the server to load its model until it answers"
    )

    @field_validator("python")
    @classmethod
    def _same_everywhere(cls, value: str) -> str:
        """Workers have another working directory than the command."""
        path = Path(value).expanduser()
        if not path.is_absolute():
            raise ValueError(f"python: {value} is no absolute path; e.g. /opt/vllm/bin/python")
        return str(path)

    @field_validator("options", mode="before")
    @classmethod
    def _as_texts(cls, value: Any) -> Any:
        """YAML reads an option's number as one."""
        if not isinstance(value, list | tuple):
            return value
        return tuple(str(item) if isinstance(item, int | float) else item for item in value)

    @field_validator("environment", mode="before")
    @classmethod
    def _values_as_texts(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: str(v) if isinstance(v, int | float) else v for k, v in value.items()}


class ServerPrograms(BaseModel):
    """Which server a stage starts for its model; exactly one is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    vllm: ServerProgram | None = None
    sglang: ServerProgram | None = None

    @model_validator(mode="before")
    @classmethod
    def _not_a_name(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        raise ValueError(
            "engine needs the server's environment, e.g. "
            "engine: {vllm: {python: /path/to/env/bin/python}}"
        )

    @model_validator(mode="after")
    def _one(self) -> ServerPrograms:
        if (self.vllm is None) == (self.sglang is None):
            raise ValueError(
                "engine needs exactly one of: vllm, sglang; e.g. "
                "engine: {vllm: {python: /path/to/env/bin/python}}"
            )
        return self

    @property
    def name(self) -> str:
        return "vllm" if self.vllm is not None else "sglang"

    @property
    def program(self) -> ServerProgram:
        found = self.vllm or self.sglang
        assert found is not None, "one is set"
        return found

    def identity(self) -> dict[str, Any]:
        """Another server, or other options, may round differently."""
        return {self.name: list(self.program.options)}

    def command(
        self,
        folder: Path,
        model: str,
        port: int,
        *,
        gpus: float,
        dtype: str,
        trust_remote_code: bool,
    ) -> list[str]:
        """The server's command line; `model` is the name that it serves the folder under."""
        program = self.program
        parallel = program.tensor_parallel or max(1, int(gpus))
        if self.name == "vllm":
            parallel_option = "--tensor-parallel-size"
            # The module is to go some day. The command does not work in every package of vLLM.
            serve = Path(program.python).with_name("vllm")
            if serve.is_file() and not _has_vllm_module(program.python):
                command = [program.python, str(serve), "serve", str(folder)]
            else:
                module = "vllm.entrypoints.openai.api_server"
                command = [program.python, "-m", module, "--model", str(folder)]
        else:
            parallel_option = "--tp-size"
            command = [program.python, "-m", "sglang.launch_server", "--model-path", str(folder)]
        command += ["--served-model-name", model, "--host", "127.0.0.1", "--port", str(port)]
        if parallel > 1:
            command += [parallel_option, str(parallel)]
        if dtype != "auto":
            command += ["--dtype", dtype]
        if trust_remote_code:
            command += ["--trust-remote-code"]
        return [*command, *program.options]


def _has_vllm_module(python: str) -> bool:
    """Whether an environment has the module that starts vLLM's server."""
    place = "lib/python*/site-packages/vllm/entrypoints/openai/api_server.py"
    return any(Path(python).parent.parent.glob(place))
