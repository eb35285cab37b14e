"""What servers that speak OpenAI's protocol answer to a chat request: a text, or why there is none.

They differ in what surrounds the text: reasoning beside it or in it, content in parts, refusals in
a field of their own, further words for how it ended.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipmill.schemas.errors import RowFailed
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.chat_protocol import NotUnderstood, TryAgain
from clipmill.stages.models.generated_text import shortened, tidy
from clipmill.stages.usage import TOKENS_IN, TOKENS_OUT, TOLD_TOKENS, use

# How an answer ended, in lower case. `length`, `content_filter` and `tool_calls` are OpenAI's own
# words; the others are in use for the same.
_CUT_OFF = ("length", "max_tokens", "model_length")
_FILTERED = (
    "content_filter",
    "safety",
    "recitation",
    "prohibited_content",
    "blocklist",
    "spii",
    "sensitive",
    "guardrail_intervened",
)
# The server gave up: what it wrote so far is no whole answer, though nothing limited it.
_BROKEN_OFF = (
    "abort",
    "aborted",
    "cancelled",
    "error",
    "network_error",
    "insufficient_system_resource",
)
# Where servers put what is no part of the answer: fields beside it, and parts of it.
_REASONING = ("reasoning", "reasoning_content")
_REASONING_PARTS = (*_REASONING, "thinking")
_CALLS = ("tool_calls", "function_call")


def completion(url: str, content: bytes) -> tuple[Completion, str]:
    """The answer with status 200, and what it says about the model that gave it."""
    try:
        answer = json.loads(content)
        counts = _count_tokens(answer.get("usage"))
        choice = answer["choices"][0]
        reason = str(choice.get("finish_reason") or "").lower()
        said = _said(choice["message"])
        calls = any(choice["message"].get(name) for name in _CALLS)
        trouble = choice.get("error")
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _not_understood(url, content) from error
    if trouble or reason in _BROKEN_OFF:
        told = f": {shortened(tidy(json.dumps(trouble, ensure_ascii=False)))}" if trouble else ""
        raise TryAgain("transient", f"{url} broke off its answer ({reason or 'error'}){told}")
    if reason.startswith(_FILTERED):
        raise RowFailed("model", f"{url} filtered its answer")
    if said.text is None:
        raise RowFailed("model", f"{url} answered with content that is not text")
    if not said.text and said.refusal:
        raise RowFailed("model", f"the model refused (it said {shortened(tidy(said.refusal))})")
    if not said.text and said.has_reasoned:
        end = " before the token limit" if reason in _CUT_OFF else ""
        raise RowFailed("model", f"{url} sent reasoning without an answer{end}")
    if not said.text and calls:
        raise RowFailed("model", f"{url} sent a call of a tool without an answer")
    by = " ".join(
        f"{name} {str(answer[name])[:200]}"
        for name in ("model", "system_fingerprint")
        if answer.get(name)
    )
    return Completion(said.text, reason not in _CUT_OFF, *counts), by


@dataclass(frozen=True)
class _Said:
    """A message's text, None if its content is something else, and what is beside it."""

    text: str | None
    refusal: str
    has_reasoned: bool


def _said(message: Mapping[str, Any]) -> _Said:
    content = message.get("content")
    refusal = message.get("refusal")
    refusals = [refusal] if isinstance(refusal, str) else []
    has_reasoned = any(message.get(name) for name in _REASONING)
    if not isinstance(content, list):
        text = content or "" if isinstance(content, str | None) else None
        return _Said(text, "".join(refusals), has_reasoned)
    texts = []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif part.get("type") in _REASONING_PARTS:
            has_reasoned = True
        elif isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif isinstance(part.get("refusal"), str):
            refusals.append(part["refusal"])
    return _Said("".join(texts), "".join(refusals), has_reasoned)


def _not_understood(url: str, content: bytes) -> NotUnderstood:
    if content.lstrip().startswith(b"data:"):
        return NotUnderstood(
            f"{url} answered with a stream of events; answers are taken whole, so neither "
            "server_options nor the server may turn `stream` on"
        )
    said = content[:200].decode("utf-8", "replace")
    return NotUnderstood(f"{url} answered with something that is not a chat completion: {said!r}")


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
