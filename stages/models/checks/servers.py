"""Checks of models behind a server: its list of models, and one small request."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipmill.schemas.errors import ClipmillError, RowFailed, ServerRefused
from clipmill.stages.models.checks.pictures import example_jpeg
from clipmill.stages.references import ModelReference

if TYPE_CHECKING:
    from clipmill.stages.models.generation import GeneratingStage

_PROMPT = "Describe this picture in one word."
_TEXT_PROMPT = "Answer with one word: what has four legs and barks?"
_MAX_NEW_TOKENS = 16
# Beyond this a server may still be loading its model: the run itself waits longer.
_PATIENCE_SECONDS = 30.0
_MOST_NAMES = 10


def check_server(
    reference: ModelReference, stage: GeneratingStage, setting: str, *, pictures: int
) -> str:
    """What a server answers to one small request; ClipmillError if it refuses.

    The request has as many pictures as those of the stage, because servers limit their number. A
    server that is busy or slow is not at fault: the run's own requests are tried again.
    """
    from clipmill.stages.models.engines.opening import server_engine
    from clipmill.stages.models.engines.requests import Generation, Picture, Request, answers

    patience = min(stage.server_timeout_seconds, _PATIENCE_SECONDS)
    impatient = stage.model_copy(
        update={"server_retries": min(stage.server_retries, 1), "server_timeout_seconds": patience}
    )
    generation = Generation(_MAX_NEW_TOKENS)
    request = (
        Request.of(_PROMPT, *[Picture(example_jpeg())] * pictures, generation=generation)
        if pictures
        else Request.of(_TEXT_PROMPT, generation=generation)
    )
    with server_engine(reference, impatient, setting) as engine:
        names = engine.check()
        [answer] = answers(engine, [request])
    kind = {0: "a request", 1: "a request with a picture"}.get(
        pictures, f"a request with {pictures} pictures"
    )
    if not isinstance(answer, RowFailed):
        return f"answers {kind}"
    if isinstance(answer, ServerRefused):
        raise ClipmillError(said_of_refusal(answer, names))
    if answer.kind == "transient":
        return f"not checked further: {answer.message}"
    step = (
        "; if that is too many, show it fewer, or raise its limit (vLLM: --limit-mm-per-prompt)"
        if pictures > 1
        else ""
    )
    raise ClipmillError(f"{setting}: the server fails on {kind}: {answer.message}{step}")


def said_of_refusal(error: ServerRefused, names: list[str] | None = None) -> str:
    """What a server that refuses every request said, and what helps.

    `names` are the models that it serves, if it says so.
    """
    setting = error.setting or "the model"
    if error.status == 404:
        step = (
            "check the address (usually http://HOST:PORT/v1) and the model's name, and change "
            f"them with --set {setting}=http://HOST:PORT/v1#MODEL"
        )
        if names:
            more = ", …" if len(names) > _MOST_NAMES else ""
            step += f" (it serves: {', '.join(names[:_MOST_NAMES])}{more})"
    else:
        step = "set it to a key that the server accepts"
    return f"{setting}: {error.message}; {step}"
