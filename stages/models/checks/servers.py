"""Checks of models behind a server: its list of models, and one small request."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from clipmill.schemas.errors import ClipmillError, RowFailed, ServerRefused
from clipmill.stages.models.checks.pictures import example_jpeg
from clipmill.stages.models.engines.chat_protocol import NO_CREDIT, NO_KEY, NOT_THE_PROXYS, NotTaken
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
        return f"answers {kind}{said_of_list(reference, names)}"
    if isinstance(answer, ServerRefused):
        raise ClipmillError(said_of_refusal(answer, names))
    if answer.kind == "transient":
        return f"not checked further: {answer.message}"
    step = (
        "; if that is too many, show it fewer, or raise its limit (vLLM: --limit-mm-per-prompt)"
        if pictures > 1 and isinstance(answer, NotTaken)
        else ""
    )
    raise ClipmillError(f"{setting}: the server fails on {kind}: {answer.message}{step}")


def said_of_refusal(error: ServerRefused, names: list[str] | None = None) -> str:
    """What a server that refuses every request said, and what helps.

    `names` are the models that it serves, if it says so.
    """
    setting = error.setting or "the model"
    if error.status in NO_KEY:
        step = "set it to a key that the server accepts"
    elif error.status == NO_CREDIT:
        step = f"add credit to the key's account, or name another server with --set {setting}="
    elif error.status == NOT_THE_PROXYS:
        step = (
            "give the proxy of the environment a name and a password (http://NAME:PASSWORD@HOST:"
            "PORT), or go without it for this host (NO_PROXY)"
        )
    else:
        step = (
            "check the address (usually http://HOST:PORT/v1) and the model's name, and change "
            f"them with --set {setting}=http://HOST:PORT/v1#MODEL"
        )
        if names:
            step += f" (it serves: {_shown(names)})"
    return f"{setting}: {error.message}; {step}"


def said_of_list(reference: ModelReference, names: Collection[str]) -> str:
    """That a server answers for a model that it doesn't list; empty if it lists it, or none."""
    own = (str(reference.model), reference.served_as, f"{reference.model}:latest")
    if not names or any(name.removeprefix("models/") in own for name in names):
        return ""
    return f", though it lists no model {reference.model} (it serves: {_shown(names)})"


def _shown(names: Collection[str]) -> str:
    more = ", …" if len(names) > _MOST_NAMES else ""
    return ", ".join(list(names)[:_MOST_NAMES]) + more
