"""What an English caption claims that can be measured: colours, text, camera, sound, stillness."""

from __future__ import annotations

import re

_COLOR_WORDS = {
    "black": "black",
    "white": "white",
    "grey": "grey",
    "gray": "grey",
    "red": "red",
    "orange": "orange",
    "brown": "brown",
    "yellow": "yellow",
    "green": "green",
    "blue": "blue",
    "purple": "purple",
    "violet": "purple",
    "pink": "pink",
}
# Words after which a colour names no colour that can be seen: people, drinks, places, idioms.
_NOT_SEEN = (
    r"(?:man|men|woman|women|people|persons?|boys?|girls?|males?|females?|lady|ladies|guys?|"
    r"wines?|tea|coffee|beans?|bears?|belts?|house|hole|market|magic|noise|"
    r"collar|energy|power|party|cross|friday|juice|peel)"
)
_COLOR = re.compile(
    rf"(?<![\w-])({'|'.join(_COLOR_WORDS)})(?:ish)?(?![\w'’])(?!-(?:eyed|collar))"
    rf"(?!(?:-and-white|[ -]and[ -]white)\b)(?! {_NOT_SEEN}\b)",
    re.IGNORECASE,
)
_SENTENCE_START = re.compile(r"(?:\A|[.!?:;]\s+|[\"“'(]\s*)\Z")
_BLACK_AND_WHITE = re.compile(r"\bblack[ -]and[ -]white\b", re.IGNORECASE)
_TEXT = re.compile(
    r"\b(?:text|subtitles?|captions?|lettering|inscription|watermark|logo|"
    r"(?:sign|banner|poster|shirt|label|screen|title|board|card|book|page) "
    r"(?:that )?(?:reads?|says?|saying|reading|with the words?)|"
    r"the words? [\"“']|written|reads? [\"“'])",
    re.IGNORECASE,
)
_SPEECH = re.compile(
    r"\b(?:talk(?:s|ing|ed)?|speak(?:s|ing)?|spoke|narrat(?:es?|ing|or)|"
    r"explain(?:s|ing|ed)?|interview(?:s|ed|ing)?|discuss(?:es|ing|ed)?|lectur(?:es|ing)|"
    r"speech|conversation|sing(?:s|ing)?|sang|presenter|announc(?:es?|ing))\b",
    re.IGNORECASE,
)
_STILL = re.compile(
    r"\b(?:static|motionless|still (?:image|picture|photo|frame|shot|life|camera)|stationary|"
    r"(?:stands?|sits?|remains?|stays?|standing|sitting|staying) (?:perfectly |completely )?still|"
    r"does not move|doesn['’]t move|no movement|without (?:any )?movement|frozen in place|"
    r"slideshow)\b",
    re.IGNORECASE,
)
_CAMERA = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "pan_left": r"\bpan(?:s|ned|ning)?(?: \w+){0,3} left(?:wards?)?\b|\bleftwards? pan\b",
        "pan_right": r"\bpan(?:s|ned|ning)?(?: \w+){0,3} right(?:wards?)?\b|\brightwards? pan\b",
        "tilt_up": r"\b(?:tilt(?:s|ed|ing)?|camera (?:moves|moving|pans))(?: \w+){0,3} "
        r"up(?:wards?)?\b",
        "tilt_down": r"\b(?:tilt(?:s|ed|ing)?|camera (?:moves|moving|pans))(?: \w+){0,3} "
        r"down(?:wards?)?\b",
        "zoom_in": r"\bzoom(?:s|ed|ing)?[- ](?:\w+ )?in\b|"
        r"\bpush(?:es|ing)? in(?= (?:on|to|towards?)\b|[.,;]|\Z)",
        "zoom_out": r"\bzoom(?:s|ed|ing)?[- ](?:\w+ )?out\b|\bpull(?:s|ing)? (?:back|out)\b",
        "static": r"\b(?:static|fixed|stationary|still) (?:camera|shot|view)\b|"
        r"\bcamera (?:is|remains|stays) (?:static|fixed|stationary|still)\b|\block(?:ed)?-off\b",
    }.items()
}


def colors_named(caption: str) -> list[str]:
    """The basic colours that a caption names, in their order in it.

    Not those of people ("a black man"), of names ("Red Cross") and of things called so whatever
    their colour ("white wine"); black and white together name a kind of picture.
    """
    found: dict[str, None] = {}
    for match in _COLOR.finditer(_BLACK_AND_WHITE.sub("", caption)):
        word = match.group(1)
        before = _BLACK_AND_WHITE.sub("", caption)[: match.start()]
        if word[0].isupper() and not word.isupper() and not _SENTENCE_START.search(before):
            continue
        found[_COLOR_WORDS[word.lower()]] = None
    return list(found)


def names_text(caption: str) -> bool:
    """Whether it says that there is text in the picture."""
    return _TEXT.search(caption) is not None


def names_speech(caption: str) -> bool:
    """Whether it says that somebody speaks or sings."""
    return _SPEECH.search(caption) is not None


def names_stillness(caption: str) -> bool:
    """Whether it says that nothing moves."""
    return _STILL.search(caption) is not None


def camera_named(caption: str) -> list[str]:
    """The camera's movements that it names: pan_left, …, zoom_out, static."""
    return [name for name, pattern in _CAMERA.items() if pattern.search(caption)]
