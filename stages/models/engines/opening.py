"""Opens the engine for a stage's model."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from clipmill.stages.models.engines.requests import Engine
from clipmill.stages.models.generation import GeneratingStage, ModelPlacement, load_config
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.engines.servers import ServerEngine


@contextmanager
def open_engine(
    reference: ModelReference,
    stage: GeneratingStage,
    setting: str,
    *,
    takes: Literal["pictures", "text"],
    batch: int,
    longest_answer: int = 0,
) -> Iterator[Engine]:
    """The engine for a reference; errors name `setting`.

    In this process, a model that `takes` pictures or text answers up to `batch` requests at a time.
    """
    if reference.server:
        with server_engine(reference, stage, setting) as engine:
            engine.check()
            yield engine
        return
    if stage.engine is not None:
        with _started(reference, stage, setting) as engine:
            yield engine
        return
    from clipmill.stages.models.engines.in_process import TransformersEngine
    from clipmill.stages.models.loading import local_folder
    from clipmill.stages.models.torch_setup import prepare_torch

    prepare_torch()
    folder = local_folder(reference, setting=setting)
    place = ModelPlacement.of(stage, setting, folder)
    config = load_config(folder, setting, trust_remote_code=stage.trust_remote_code)
    threads = max(1, int(stage.cpus))
    model: Any  # mypy takes Family's class variable for something else than the protocol's
    if takes == "pictures":
        from clipmill.stages.models.engines.families import family_of

        family = family_of(config, folder)
        model = family(folder, config, setting, place, stage.trust_remote_code, threads=threads)
    else:
        from clipmill.stages.models.engines.language import LanguageModel

        model = LanguageModel(
            folder,
            config,
            setting,
            place,
            stage.trust_remote_code,
            threads=threads,
            longest_answer=longest_answer,
        )
    with TransformersEngine(model, batch, threads=threads, name=setting) as engine:
        yield engine


def server_engine(
    reference: ModelReference, stage: GeneratingStage, setting: str, **more: Any
) -> ServerEngine:
    """The client for a reference to servers; errors name `setting`."""
    # Here, because httpx takes a tenth of a second to import.
    from clipmill.stages.models.engines.servers import ServerEngine

    return ServerEngine(
        reference,
        setting=setting,
        concurrency=stage.requests_at_once,
        **stage.client_settings,
        **more,
    )


@contextmanager
def _started(
    reference: ModelReference, stage: GeneratingStage, setting: str
) -> Iterator[ServerEngine]:
    """An engine of a server that is started here; stages with the same model share one."""
    from clipmill.stages.models.engines.started_servers import StartedServer, shared_servers
    from clipmill.stages.models.loading import local_folder

    chosen = stage.engine
    assert chosen is not None, "the caller has looked"
    folder = local_folder(reference, setting=setting)
    model = Path(reference.hub or folder).name

    def command(port: int) -> list[str]:
        return chosen.command(
            folder,
            model,
            port,
            gpus=stage.gpus,
            dtype=stage.dtype,
            trust_remote_code=stage.trust_remote_code,
        )

    def make() -> StartedServer:
        return StartedServer(
            command,
            setting,
            start_seconds=chosen.program.start_seconds,
            environment=chosen.program.environment,
        )

    environment = tuple(sorted(chosen.program.environment.items()))
    key = (*command(0), *environment, os.environ.get("CUDA_VISIBLE_DEVICES"))
    with shared_servers.use(key, make) as server:
        served = ModelReference(server=server.url, model=model)
        with server_engine(served, stage, setting, started=server) as engine:
            engine.check()
            yield engine
