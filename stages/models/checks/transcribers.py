"""Checks of models that write what is said, local or served."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clipmill.schemas.errors import ClipmillError, RowFailed, ServerRefused
from clipmill.stages.media.read.samples import RATE
from clipmill.stages.models.checks.packages import packages_explained
from clipmill.stages.models.checks.servers import said_of_list, said_of_refusal
from clipmill.stages.models.checks.skeleton import load_skeleton
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.transcribing import TranscribingStage

# Beyond this a server may still be loading its model: the run itself waits longer.
_PATIENCE_SECONDS = 30.0


def check_transcriber(reference: ModelReference, stage: TranscribingStage, setting: str) -> str:
    """What is known of the model; ClipmillError if the stage can't use it."""
    if reference.server:
        return _check_server(reference, stage, setting)
    with packages_explained(setting):
        import torch

        from clipmill.stages.models.generation import ModelPlacement
        from clipmill.stages.models.speech_models import Task
        from clipmill.stages.models.transcribers import local_model

        place = ModelPlacement(torch.device("meta"), torch.float32)
        model = local_model(reference, stage, setting, place=place, load=load_skeleton)
        try:
            model.prepare([Task(np.zeros(RATE, np.float32), stage.language)])
        except ImportError:
            raise
        except Exception as error:  # processors may raise anything
            raise ClipmillError(
                f"{setting}: {reference} cannot prepare a second of sound: "
                f"{type(error).__name__}: {error}; its processor's files are another model's"
            ) from error
    name = type(model.model).__name__
    return f"{name}; it hears {model.longest_seconds:g} s at a time"


def _check_server(reference: ModelReference, stage: TranscribingStage, setting: str) -> str:
    """What a server answers to a second of silence; one that is busy is not at fault."""
    from clipmill.stages.models.engines.transcription_servers import Asked, transcription_servers
    from clipmill.stages.models.transcribers import results_of

    patience = min(stage.server_timeout_seconds, _PATIENCE_SECONDS)
    impatient = stage.model_copy(
        update={"server_retries": min(stage.server_retries, 1), "server_timeout_seconds": patience}
    )
    with transcription_servers(reference, impatient, setting) as servers:
        names = servers.check()
        asked = Asked(np.zeros(RATE, np.float32), stage.language)
        [answer] = results_of(servers.submit_all([asked]), beats=True)
    if isinstance(answer, ServerRefused):
        raise ClipmillError(said_of_refusal(answer, names))
    if isinstance(answer, RowFailed):
        if answer.kind == "transient":
            return f"not checked further: {answer.message}"
        raise ClipmillError(f"{setting}: the server fails on a second of sound: {answer.message}")
    return f"transcribes{said_of_list(reference, names)}"
