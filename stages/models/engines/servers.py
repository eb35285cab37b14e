"""An engine of model servers that speak OpenAI's protocol (vLLM, SGLang, llama.cpp, …)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.chat_answers import completion
from clipmill.stages.models.engines.chat_protocol import body_of
from clipmill.stages.models.engines.requests import CHAT_PROMPT, Request, Sees
from clipmill.stages.models.engines.server_client import ServerClient

# A server's tokenizer is unknown; four characters per token is typical.
_CHARACTERS_PER_TOKEN = 4


class ServerEngine(ServerClient[Request, Completion]):
    """Chat completions; a schema goes with a request as a field, if the server takes that."""

    longest_prompt: int | None = None
    default_prompt: str | None = CHAT_PROMPT
    sees: Sees = "pictures"
    refused_part = "the server takes no response_format ({}); schemas are put into words"

    def message(
        self, request: Request, model: str, options: Mapping[str, Any], *, in_full: bool
    ) -> tuple[str, bytes]:
        body = body_of(request, model, options, with_schema=in_full)
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return "chat/completions", text.encode()

    def understood(self, url: str, content: bytes) -> tuple[Completion, str]:
        return completion(url, content)

    def has_more(self, request: Request) -> bool:
        return request.schema is not None

    def check_prompt(self, prompt: str | None) -> None:
        """A server accepts any prompt."""

    def count_tokens(self, request: Request) -> int:
        return -(-len(request.text + request.system) // _CHARACTERS_PER_TOKEN)
