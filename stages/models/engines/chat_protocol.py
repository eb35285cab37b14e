"""OpenAI's protocol: chat requests as JSON, lists of models, and refusals of any request."""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from clipmill.schemas.errors import ErrorKind, RowFailed, ServerRefused
from clipmill.stages.media.fetch.http_answers import retry_after_seconds
from clipmill.stages.models.engines.requests import Message, Part, Picture, Request

if TYPE_CHECKING:  # runs without a server don't import its client
    from clipmill.stages.models.engines.lines import Answer

# What `/v1/models` says about a model in vLLM, SGLang, llama.cpp and Ollama, without times.
_FACTS = ("id", "root", "parent", "revision", "owned_by", "max_model_len", "meta")
NO_CREDIT = 402
NO_KEY = (401, 403)
NOT_THE_PROXYS = 407
# Redirects, too: an address that is right has none.
_WRONG_PLACE = (301, 302, 303, 307, 308, 404, 405, 410)
_NOT_TAKEN = (400, 413, 422)
# An account without credit never gets further; some services say so with the status of a limit.
_OF_CREDIT = re.compile(
    rb'"(insufficient_quota|exceeded_current_quota_error|billing_not_active|'
    rb'billing_hard_limit_reached|insufficient_balance)"'
)


class TryAgain(Exception):
    """A request failed for a reason that may pass; `lost` if nothing was heard from the server."""

    def __init__(
        self,
        kind: ErrorKind,
        message: str,
        after_seconds: float | None = None,
        *,
        lost: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind: ErrorKind = kind
        self.after_seconds = after_seconds
        self.lost = lost


class NotUnderstood(TryAgain):
    """An answer with status 200 that isn't what was asked for."""

    def __init__(self, message: str) -> None:
        super().__init__("model", message)


class NotTaken(RowFailed):
    """The server takes no request like this one: it is wrong, or has a field that is unknown."""


def body_of(
    request: Request, model: str, options: Mapping[str, Any], *, with_schema: bool
) -> dict[str, Any]:
    """A request's JSON. A video is its frames as pictures, each after its time: the protocol has
    no videos."""
    request = request.without_videos()
    if not with_schema:
        request = request.with_schema_in_words()
    body: dict[str, Any] = {
        "model": model,
        "messages": [_message(message) for message in request.messages],
        "max_tokens": request.generation.max_new_tokens,
        "temperature": 0,
        "seed": 0,
    }
    if request.schema is not None:
        body["response_format"] = {
            "type": "json_schema",
            "json_schema": {"name": "answer", "strict": True, "schema": request.schema},
        }
    body |= options
    return {name: value for name, value in body.items() if value is not None}


def _message(message: Message) -> dict[str, Any]:
    if all(isinstance(part, str) for part in message.parts):
        return {"role": message.role, "content": "\n".join(map(str, message.parts))}
    return {"role": message.role, "content": [_part(part) for part in message.parts]}


def _part(part: Part) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    assert isinstance(part, Picture), "a video goes out as its frames"
    data = base64.b64encode(part.jpeg).decode("ascii")
    return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{data}"}}


def refusal(name: str, answer: Answer, *, key_variable: str, setting: str) -> Exception:
    """What an answer with a status other than 200 means; `name` is the server's."""
    status = answer.status
    said = " ".join(answer.content[:500].decode("utf-8", "replace").split())
    text = f"{name} answered {status}: {said}" if status else f"{name} sent an error: {said}"
    if answer.location:
        text = f"{name} answered {status}, a redirect to {answer.location}"
    if status == NO_CREDIT or (status in (0, 403, 429) and _OF_CREDIT.search(answer.content)):
        return ServerRefused("blocked", text, NO_CREDIT, setting)
    if status in (408, 409, 425, 429) or status >= 500:
        return TryAgain("transient", text, retry_after_seconds(answer.retry_after))
    if status in NO_KEY:
        lacking = "" if os.environ.get(key_variable, "").strip() else ", which is not set"
        text = f"{text}; the key is read from ${key_variable}{lacking}"
        return ServerRefused("blocked", text, status, setting)
    if status == NOT_THE_PROXYS:
        return ServerRefused("blocked", text, status, setting)
    if status in _WRONG_PLACE:
        return ServerRefused("permanent", text, status, setting)
    if status in _NOT_TAKEN:
        return NotTaken("model", text)
    if not status:
        return TryAgain("model", text)
    return RowFailed("permanent", text)


def error_status(content: bytes) -> int | None:
    """The status in an error that was sent with status 200; 0 if it has none, None if it is no
    error."""
    try:
        said = json.loads(content)
        error = said.get("error")
        if not error and said.get("object") != "error":
            return None
        places = [error, said] if isinstance(error, Mapping) else [said]
        codes = [str(place.get(name)) for place in places for name in ("code", "status")]
        return next((int(code) for code in codes if re.fullmatch("[45][0-9][0-9]", code)), 0)
    except (ValueError, AttributeError, RecursionError):
        return None


def listed_models(content: bytes) -> dict[str, dict[str, Any]]:
    """What a server's list of models says about each, by id; empty if it is no such list."""
    try:
        listed = json.loads(content)["data"]
        return {
            str(model["id"]): {name: model[name] for name in _FACTS if model.get(name) is not None}
            for model in listed
        }
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return {}
