"""Counts the tokens of texts as the tokenizers of contrastive models would, without truncation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def token_counts(tokenize: Any, texts: Sequence[str]) -> list[int]:
    """Tokens per text, special ones included, by an open_clip tokenizer or one with `counts`."""
    if not texts:
        return []
    if hasattr(tokenize, "counts"):
        return list(tokenize.counts(texts))
    if hasattr(tokenize, "encode"):  # CLIP's own
        return [len(tokenize.encode(text)) + 2 for text in texts]
    cleaned = [tokenize.clean_fn(text) for text in texts]
    if tokenize.tokenizer_mode == "clips":
        ids = tokenize.tokenizer(cleaned, add_special_tokens=False)["input_ids"]
        return [len(tokens) + 3 for tokens in ids]
    return [len(tokens) for tokens in tokenize.tokenizer(cleaned)["input_ids"]]
