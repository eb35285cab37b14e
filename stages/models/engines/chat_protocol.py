"""OpenAI's chat protocol: requests as JSON, and what servers answer to them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from clipmill.schemas.errors import ErrorKind, RowFailed, ServerRefused
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.lines import Answer
from clipmill.stages.models.engines.requests import Message, Part, Picture, Request
from clipmill.stages.usage import TOKENS_IN, TOKENS_OUT, TOLD_TOKENS, use

# `length` is OpenAI's own word; the others are in use for the same.
_CUT_OFF = ("length", "max_tokens", "model_length")
# Where servers put what is no part of the answer.
_REASONING = ("reasoning", "reasoning_content")
# What `/v1/models` says about a model in vLLM, SGLang, llama.cpp and Ollama, without times.
_FACTS = ("id", "root", "parent", "revision", "owned_by", "max_model_len", "meta")


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


def refusal(url: str, answer: Answer, *, key_variable: str, setting: str) -> Exception:
    """What an answer with a status other than 200 means."""
    status = answer.status
    said = " ".join(answer.content[:500].decode("utf-8", "replace").split())
    text = f"{url} answered {status}: {said}"
    if status in (408, 409, 425, 429) or status >= 500:
        return TryAgain("transient", text, _retry_after(answer))
    if status in (401, 403):
        text = f"{text}; the key is read from ${key_variable}"
        return ServerRefused("blocked", text, status, setting)
    if status == 404:
        return ServerRefused("permanent", text, status, setting)
    if status in (400, 413, 422):
        return NotTaken("model", text)
    return RowFailed("permanent", text)


def completion(url: str, content: bytes) -> tuple[Completion, str]:
    """The answer with status 200, and what it says about the model that gave it."""
    try:
        answer = json.loads(content)
        counts = _count_tokens(answer.get("usage"))
        choice = answer["choices"][0]
        text = choice["message"]["content"]
        reasoned = any(choice["message"].get(name) for name in _REASONING)
        reason = choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        said = content[:200].decode("utf-8", "replace")
        raise TryAgain(
            "model", f"{url} answered with something that is not a chat completion: {said!r}"
        ) from error
    if reason == "content_filter":
        raise RowFailed("model", f"{url} filtered its answer")
    if not isinstance(text, str | None):
        raise RowFailed("model", f"{url} answered with content that is not text")
    if reasoned and not text:
        end = " before the token limit" if reason in _CUT_OFF else ""
        raise RowFailed("model", f"{url} sent reasoning without an answer{end}")
    by = " ".join(
        f"{name} {str(answer[name])[:200]}"
        for name in ("model", "system_fingerprint")
        if answer.get(name)
    )
    return Completion(text or "", reason not in _CUT_OFF, *counts), by


def _count_tokens(usage: Any) -> tuple[int | None, int | None]:
    """The tokens of prompt and answer that a server says it has charged; not all servers do."""
    told = usage if isinstance(usage, Mapping) else {}
    into, out = told.get("prompt_tokens"), told.get("completion_tokens")
    if not (isinstance(into, int) and isinstance(out, int) and min(into, out) >= 0):
        return None, None
    use(TOKENS_IN, into)
    use(TOKENS_OUT, out)
    use(TOLD_TOKENS)
    return into, out


def _retry_after(answer: Answer) -> float | None:
    try:
        return float(answer.retry_after or "")
    except ValueError:
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
