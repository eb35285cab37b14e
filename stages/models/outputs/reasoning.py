"""Leaves a model's reasoning out of its text, by the marks that each family puts around it."""

from __future__ import annotations

import re
from dataclasses import dataclass

# Opening and closing marks, as the families emit them: DeepSeek-R1, Qwen3, GLM-4.5, Hunyuan, MiMo,
# InternVL and most others <think>; EXAONE <thought>; Seed-OSS <seed:think>; MiniMax <mm:think>;
# Magistral [THINK]; Kimi-VL ◁think▷; Apertus, Command A, Gemma 4 and MedGemma tokens of their own.
_PAIRS = (
    (r"<(?:think|thinking|thought|reasoning|seed:think|mm:think)>", 0),
    (r"</(?:think|thinking|thought|reasoning|seed:think|mm:think)>", 1),
    (r"\[THINK\]", 0),
    (r"\[/THINK\]", 1),
    (r"◁think▷", 0),
    (r"◁/think▷", 1),
    (r"<\|inner_prefix\|>", 0),
    (r"<\|inner_suffix\|>", 1),
    (r"<\|START_THINKING\|>", 0),
    (r"<\|END_THINKING\|>", 1),
    (r"<\|channel>", 0),
    (r"<channel\|>", 1),
    (r"<unused94>", 0),
    (r"<unused95>", 1),
)
_MARK = re.compile("|".join(f"({pattern})" for pattern, _ in _PAIRS))
# Opens with the first word of the text only: as a tag it is too common elsewhere.
_ANALYSIS = re.compile(r"\s*<analysis>.*?(?:</analysis>|\Z)", re.DOTALL)
# gpt-oss's channels; a server that drops special tokens leaves only their names.
_CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)[^<]*<\|message\|>")
_END_OF_MESSAGE = re.compile(r"<\|(?:end|return|call|start)\|>")
_BARE_CHANNELS = re.compile(r"\s*analysis(?=\S).*?assistantfinal", re.DOTALL)
_BARE_ANALYSIS = re.compile(r"\s*analysis(?=[A-Z][a-z]|The user|We )")
_GRANITE = re.compile(r"\s*Here(?:'s| is) my thought process:")
_GRANITE_ANSWER = re.compile(r"Here(?:'s| is) my response:")
# Reasoning without marks: the template opened it, and the limit came before its end.
_ASKED = (
    r"the user (?:wants|is asking|asked|has asked|has provided|provided|gave|has given|"
    r"would like|needs|requested|has requested)\b"
)
_UNMARKED = re.compile(
    rf"\s*(?:(?:ok|okay|got it|alright|all right|hmm|so|well|right|let me think|let's see)\b[^\n]"
    rf"{{0,60}}?(?:{_ASKED}|\b(?:i|we) (?:need|have|should|must) to "
    r"(?:describe|write|come up|caption|summari[sz]e|look|figure|analy[sz]e|create|generate)\b)"
    rf"|{_ASKED} (?:me|us|an?|one|the|to|for)\b[^\n]{{0,60}}?"
    r"\b(?:describe|description|caption|sentence|summary|summari[sz]e)\b"
    r"|(?:i|we) need to (?:describe|caption|summari[sz]e|write|produce|generate)\b)",
    re.IGNORECASE,
)
OPENS_IN_PROMPT = re.compile(rf"({'|'.join(pattern for pattern, ends in _PAIRS if not ends)})\s*\Z")
"""The end of a prompt whose template opens the reasoning, so that only its end is generated."""


@dataclass(frozen=True)
class Answer:
    """A text without its reasoning. `unfinished`: the text ended before the reasoning did."""

    text: str
    reasoned: bool = False
    unfinished: bool = False


def without_reasoning(text: str) -> Answer:
    """The answer that follows a text's reasoning, or that it interrupts."""
    if (channels := _of_channels(text)) is not None:
        return channels
    if thought := _GRANITE.match(text):
        told = _GRANITE_ANSWER.search(text, thought.end())
        return Answer(text[told.end() :], True) if told else Answer("", True, True)
    if thought := _ANALYSIS.match(text):
        rest = without_reasoning(text[thought.end() :])
        closed = thought.group().endswith("</analysis>")
        return Answer(rest.text, True, rest.unfinished or not closed)
    return _outside_marks(text)


def _of_channels(text: str) -> Answer | None:
    channels = list(_CHANNEL.finditer(text))
    if not channels:
        if bare := _BARE_CHANNELS.match(text):
            return Answer(text[bare.end() :], True)
        return Answer("", True, True) if _BARE_ANALYSIS.match(text) else None
    finals = [channel for channel in channels if channel.group(1) == "final"]
    if not finals:
        return Answer("", True, True)
    said = text[finals[-1].end() :]
    end = _END_OF_MESSAGE.search(said)
    return Answer(said[: end.start()] if end else said, True)


def _outside_marks(text: str) -> Answer:
    """In one pass, because a text may be nothing but a hundred thousand opening marks."""
    kept: list[str] = []
    at, thinking, found = 0, False, False
    for mark in _MARK.finditer(text):
        found = True
        if _PAIRS[(mark.lastindex or 1) - 1][1]:
            # Some chat templates open the block in the prompt, so only its end is generated.
            if not thinking:
                kept.clear()
            thinking = False
        elif not thinking:
            kept.append(text[at : mark.start()])
            thinking = True
        at = mark.end()
    if not thinking:
        kept.append(text[at:])
    answer = " ".join(kept) if found else text
    return Answer(answer, found, thinking and not answer.strip())


def is_unmarked_reasoning(text: str) -> bool:
    """Whether a text is reasoning about the request, without any mark."""
    return _UNMARKED.match(text) is not None
