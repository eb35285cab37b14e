"""Processors of models: loaded, and copied for threads, for a tokenizer serves one at a time."""

from __future__ import annotations

import copy
import json
import queue
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from clipmill.schemas.errors import ClipmillError

if TYPE_CHECKING:
    import torch

T = TypeVar("T")


class Copies(Generic[T]):
    """As many copies of something as threads use it at a time ("Already borrowed" otherwise)."""

    def __init__(self, original: T, count: int) -> None:
        self._free: queue.LifoQueue[T] = queue.LifoQueue()
        for one in [*(copy.deepcopy(original) for _ in range(count - 1)), original]:
            self._free.put(one)

    @contextmanager
    def borrowed(self) -> Iterator[T]:
        """One that no other thread has; waits for it."""
        one = self._free.get()
        try:
            yield one
        finally:
            self._free.put(one)


def has_chat_template(folder: Path) -> bool:
    """Whether a model's folder holds a chat template, in any of its possible places."""
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    return any(
        (folder / name).is_file()
        and "chat_template" in json.loads((folder / name).read_text("utf-8"))
        for name in ("processor_config.json", "tokenizer_config.json")
    )


def chat_options(template: Any) -> dict[str, bool]:
    """Variables for a chat template: captions need no thinking."""
    return {"enable_thinking": False} if "enable_thinking" in str(template) else {}


def load_processor(auto_class: str, folder: Path, setting: str, trust_remote_code: bool) -> Any:
    """A transformers processor; ClipmillError if the folder lacks its files."""
    import transformers

    try:
        return getattr(transformers, auto_class).from_pretrained(
            folder, local_files_only=True, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError, KeyError) as error:
        raise ClipmillError(
            f"{setting}: {folder} lacks what {auto_class} needs: {error}"
        ) from error


def prompt_lengths(inputs: Mapping[str, Any]) -> list[int] | None:
    """Tokens of each prompt without its padding; None if the model takes no prompt."""
    counted = inputs.get("attention_mask", inputs.get("input_ids"))
    if counted is None or "input_ids" not in inputs:
        return None
    if "attention_mask" in inputs:
        return [int(length) for length in counted.sum(dim=1)]
    return [counted.shape[1]] * len(counted)


def without_prompt(output: torch.Tensor, input_ids: torch.Tensor | None) -> torch.Tensor:
    """`output` without `input_ids`, if it begins with them."""
    if input_ids is None or output.shape[1] < input_ids.shape[1]:
        return output
    length = input_ids.shape[1]
    return output[:, length:] if bool((output[:, :length] == input_ids).all()) else output


def takes_system(templated: Any, *, in_parts: bool) -> bool:
    """Whether the chat template of a processor or tokenizer passes a system message on.

    Contents are lists of parts, as models that take pictures want them, or plain texts.
    """

    def content(text: str) -> Any:
        return [{"type": "text", "text": text}] if in_parts else text

    said = "Be brief and precise."
    try:
        text = templated.apply_chat_template(
            [
                {"role": "system", "content": content(said)},
                {"role": "user", "content": content("x")},
            ],
            tokenize=False,
            add_generation_prompt=True,
        )
    except Exception:  # noqa: BLE001 - templates refuse roles with exceptions of many kinds
        return False
    return said in text
