"""Takes the answer out of the container that a model was trained to put it in."""

from __future__ import annotations

import re

# `<answer>` (Hunyuan, R1-like models), `<response>` (ERNIE), `<CONCLUSION>` (LLaVA-CoT), Command A.
_CONTAINERS = tuple(
    re.compile(rf"{opening}(.*?)(?:{closing}|\Z)", re.DOTALL)
    for opening, closing in (
        (r"<answer>", r"</answer>"),
        (r"<response>", r"</response>"),
        (r"<CONCLUSION>", r"</CONCLUSION>"),
        (r"<\|START_RESPONSE\|>", r"<\|END_RESPONSE\|>"),
    )
)
_BOX = re.compile(r"<\|begin_of_box\|>(.*?)(?:<\|end_of_box\|>|\Z)", re.DOTALL)
_BOXED = re.compile(r"\$*\\boxed\s*\{")
_LATEX_TEXT = re.compile(r"\\text(?:bf|it|rm)?\s*\{([^{}]*)\}")
# A box around a word or two marks the word; around more, it is the answer.
_FEW_WORDS = 3


def answer_in(text: str) -> str | None:
    """What is in the text's last container; None if it has none."""
    for container in _CONTAINERS:
        if found := container.findall(text):
            filled = [one for one in found if one.strip()]
            return filled[-1] if filled else ""
    if boxes := list(_BOX.finditer(text)):
        inner, outside = boxes[-1].group(1), _BOX.sub("", text)
        return _inner_or_whole(inner, outside, _BOX.sub(r"\1", text))
    return _latex_box(text)


def _latex_box(text: str) -> str | None:
    """From `\\boxed{…}`, whose braces may be nested and whose last ones may be missing."""
    boxes = list(_BOXED.finditer(text))
    if not boxes:
        return None
    start = boxes[-1].end()
    depth, end = 1, len(text)
    for i in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if not depth:
            end = i
            break
    inner = _LATEX_TEXT.sub(r"\1", text[start:end])
    before, after = text[: boxes[-1].start()], text[end + 1 :].lstrip("$")
    return _inner_or_whole(inner, before + after, f"{before}{inner}{after}")


def _inner_or_whole(inner: str, outside: str, whole: str) -> str:
    if not outside.strip(" .\n$") or len(inner.split()) >= _FEW_WORDS:
        return inner
    return whole
