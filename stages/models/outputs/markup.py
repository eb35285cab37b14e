"""Takes plain prose out of Markdown and of bare JSON."""

from __future__ import annotations

import json
import re

_FENCE = re.compile(r"^[ \t]*```[\w+-]*[ \t]*$\n?|```[ \t]*\Z", re.MULTILINE)
_HEADING = re.compile(r"^[ \t]*#{1,6}[ \t]+(?=\S)", re.MULTILINE)
_BOLD = re.compile(r"\*\*\*?(?=\S)(.+?)(?<=\S)\*?\*\*", re.DOTALL)
_ITALIC = re.compile(r"(?<![\w*])\*(?=[^\s*])([^*\n]{1,300}?)(?<=[^\s*])\*(?![\w*])")
_BULLET = re.compile(r"^[ \t]*[-*•‣][ \t]+(?=\S)")
_NUMBER = re.compile(r"^[ \t]*\d{1,2}[.)][ \t]+(?=\S)")
_RULE = re.compile(r"^[ \t]*(?:-{3,}|\*{3,}|_{3,})[ \t]*$\n?", re.MULTILINE)
_LINK = re.compile(r"\[([^\]\n]{1,300})\]\(https?://[^)\s]{1,500}\)")
# Names of a field that holds a caption.
_FIELDS = ("caption", "description", "summary", "text", "answer", "response", "sentence", "output")
_JSON = re.compile(r"\s*(?:\{\s*[\"'}]|\[\s*[{\"]|\{\s*\w+\s*:\s*\")")


def without_fences(text: str) -> str:
    """Without the lines that fence a block of code."""
    return _FENCE.sub("", text)


def without_markdown(text: str) -> str:
    """Without headings, bold, italics, rules, links and the marks of lists."""
    text = _RULE.sub("", text)
    text = _HEADING.sub("", text)
    text = _LINK.sub(r"\1", text)
    text = _BOLD.sub(r"\1", text)
    text = _ITALIC.sub(r"\1", text)
    return _without_bullets(text)


def _without_bullets(text: str) -> str:
    lines = text.split("\n")
    numbered = sum(1 for line in lines if _NUMBER.match(line)) > 1
    found = [
        bool(_BULLET.match(line)) or (numbered and bool(_NUMBER.match(line))) for line in lines
    ]
    if not any(found):
        return text
    last = max(i for i, is_item in enumerate(found) if is_item)
    return "\n".join(
        _item(line, ends=i == last) if is_item else line
        for i, (line, is_item) in enumerate(zip(lines, found, strict=True))
    )


def _item(line: str, *, ends: bool) -> str:
    """One item of a list, separated from the next by a semicolon if it has no mark of its own."""
    mark = _BULLET if _BULLET.match(line) else _NUMBER
    text = mark.sub("", line).rstrip()
    return text if ends or text[-1:] in tuple(".!?;:,") else f"{text};"


def is_json(text: str) -> bool:
    """Whether a text looks like JSON, even if it is broken."""
    return _JSON.match(text) is not None


def caption_in(text: str) -> str | None:
    """The only text of a JSON object, if its field is named like a caption; else None."""
    try:
        found = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    if isinstance(found, list) and len(found) == 1:
        found = found[0]
    if not isinstance(found, dict):
        return None
    texts = {name: value for name, value in found.items() if isinstance(value, str)}
    nested = any(isinstance(value, dict | list) for value in found.values())
    if len(texts) != 1 or nested:
        return None
    ((name, value),) = texts.items()
    words = re.split(r"[\W_]+", str(name).casefold())
    return value if any(field in words for field in _FIELDS) else None
