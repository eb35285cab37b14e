"""Tells what a chat model says around a caption, or instead of one, from the caption.

Each pattern stands at the beginning or at the end of a text and names what only an assistant says.
A caption that quotes such words, or that describes someone who says them, stays as it is.
"""

from __future__ import annotations

import re

_CANNOT = r"(?:can(?:no|['’])?t|can not|(?:am|['’]?m) (?:un|not )able to|won['’]?t|will not)"
_DECLINES = rf"(?:but )?(?:as an ai\b|i ?(?:{_CANNOT}| don['’]?t| do not)\b)"
_DOING = (
    r"(?:assist|help|provide|describe|identify|create|generate|fulfill?|comply|process|analy[sz]e|"
    r"answer|determine|discuss|caption|summari[sz]e|engage|continue with|comment|"
    r"(?:view|see|access|open|watch|display) (?:the|this|that|an?|any|your|images?|videos?))"
)
_MACHINE = r"(?:ai (?:language )?(?:model|assistant|chatbot)|(?:large )?language model|ai, )"
_MEDIA = r"(?:image|picture|video|photo|frame|caption)s?"
_GIVEN = r"(?:attached|provided|included|uploaded|shared|visible|loaded|available)"
_REFUSALS = re.compile(
    r"\s*(?:"
    + "|".join(
        (
            rf"(?:i['’]?m|i am|we are) (?:\w+ )?sorry,? {_DECLINES}",
            rf"sorry,? {_DECLINES}",
            rf"(?:i apologi[sz]e|my apologies|unfortunately|regrettably),? {_DECLINES}",
            rf"(?:unfortunately|i apologi[sz]e,? but),? (?:the|no) {_MEDIA} (?:is|was|are|were|can)"
            rf"(?: ?not| n['’]t)?(?: be)? (?:{_GIVEN}|viewed|displayed|seen)",
            rf"as an? {_MACHINE}[^.!?\n]{{0,60}}?,? (?:i|my)\b",
            rf"i(?:['’]?m| am) (?:just |only )?an? {_MACHINE}",
            rf"i ?{_CANNOT} {_DOING}\b",
            r"i (?:do not|don['’]?t) (?:have (?:the ability|access|enough (?:information|context)|"
            rf"any information)|see (?:any|an?|the) {_MEDIA})",
            r"(?:it (?:seems|looks|appears)(?: like| that| as if)? )?"
            r"(?:there(?:['’]s| is| was) no|you (?:have|did)(?:n['’]t| not) (?:provided?|"
            r"attach(?:ed)?|upload(?:ed)?|shared?|included?)(?: any| an?| the)?|no) "
            rf"{_MEDIA}(?: (?:was|were|has been|have been|is))?"
            rf"(?: {_GIVEN}| in your (?:message|request)| to (?:describe|caption)|[.,])",
            r"please (?:provide|upload|attach|share|send) (?:me )?(?:with )?(?:the|an?|your|more) "
            rf"(?:{_MEDIA}|text|details?|context|information)",
            r"(?:i['’]d|i would) be (?:happy|glad) to (?:help|assist|describe)[^.!?]{0,80}"
            r"(?:but|if you|please|could you|however)",
            r"很?抱歉|对不起，|作为一个?(?:ai|人工智能|语言模型)|我无法(?:查看|提供|描述|识别|回答)",
        )
    )
    + ")",
    re.IGNORECASE,
)
_KIND = (
    r"(?:captions?|descriptions?|summary|summaries|sentences?|answers?|responses?|versions?|"
    r"rewrites?|paraphrases?|overviews?|breakdown|alt text)"
)
_OPENING = re.compile(
    r"\s*(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|alright|all right|great|got it|"
    r"no problem|with pleasure|gladly)\s*[!.,:—–-]+\s+(?=[A-Z\"“'*#`{\[]|here\b)",
    re.IGNORECASE,
)
_HERE_IS = re.compile(
    rf"\s*(?:(?:here(?:['’]s| is| are)|below (?:is|are)|this is|the following is)\s+"
    rf"[^:\n.]{{0,60}}?\b{_KIND}\b[^:\n.]{{0,90}}|(?:i'?d|i would|i'?ll|i will|let me)"
    rf" (?:describe|summari[sz]e|caption)[^:\n.]{{0,60}}|based on (?:the|your)"
    rf"[^:\n.]{{0,80}}\b{_KIND}\b[^:\n.]{{0,40}})"
    r":\s+(?=\S)",
    re.IGNORECASE,
)
_LABEL = re.compile(
    rf"\s*(?:(?:final|short|brief|detailed|one[- ]sentence|image|video|clip|scene|picture|visual) )"
    rf"{{0,2}}{_KIND}(?: of the (?:image|video|clip|picture|scene))?\s*:\s+(?=\S)",
    re.IGNORECASE,
)
_CLOSING = re.compile(
    r"(?:(?<=[.!?\"”'])\s+|\n\s*)(?:please )?(?:let me know (?:if|whether|how|what)|feel free to|"
    r"(?:i )?hope (?:this|that) helps|is there anything else|would you like me to|"
    r"do you (?:want|need) me to|if you (?:need|have|want|would like|'d like) "
    r"(?:any|more|further|additional|me|another|a different)|"
    r"(?:i'?m|i am) here to help)\b[^\n]{0,200}\s*\Z",
    re.IGNORECASE,
)
_QUOTED = re.compile(r"\s*(?:\"([^\"]+)\"|“([^“”]+)”|'([^']+)'|«([^«»]+)»)\s*\Z")
_LETTERS = re.compile(r"[^\w]+")
# Fewer words may begin a caption by chance.
_ECHO_WORDS = 4


def is_refusal(text: str) -> bool:
    """Whether the model declines, or says that it was shown nothing."""
    return _REFUSALS.match(text) is not None


def without_preamble(text: str) -> str:
    """Without "Sure! Here's a caption:", and without the quotation marks after it."""
    rest = text
    for opening in (_OPENING, _HERE_IS, _LABEL):
        rest = rest[found.end() :] if (found := opening.match(rest)) else rest
    if rest is not text and rest != text and (quoted := _QUOTED.match(rest)):
        rest = next(group for group in quoted.groups() if group is not None)
    return rest


def without_closing(text: str) -> str:
    """Without "Let me know if you need anything else!"."""
    for _ in range(3):
        if not (found := _CLOSING.search(text)) or not text[: found.start()].strip():
            break
        text = text[: found.start()]
    return text


def normal(text: str) -> str:
    """The words alone, for comparing texts: case, punctuation and spaces left out."""
    return " ".join(_LETTERS.sub(" ", text.casefold()).split())


def is_request(text: str) -> bool:
    """Whether the beginning of a prompt is long enough to be told from a caption's."""
    return len(normal(text).split()) >= _ECHO_WORDS


def without_echo(text: str, asked: str) -> str:
    """Without the request that it repeats: empty if it is nothing else."""
    wanted = normal(asked)
    if " " in wanted and normal(text) == wanted:
        return ""
    if not is_request(asked):
        return text
    # A request ends with a full stop; the beginning of a caption, which a model continues, doesn't.
    request = " ".join(asked.split())
    said = " ".join(text.split())
    if request[-1:] in ".?!:" and said.casefold().startswith(request.casefold()):
        return said[len(request) :]
    return text
