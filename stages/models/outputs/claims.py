"""What an English caption claims that can be measured: colours, text, camera, sound, stillness."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from difflib import SequenceMatcher

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
    r"\b(?:(?:texts?|subtitles?|captions?|lettering|inscriptions?|watermarks?|logos?|written)\b"
    r"(?! messag)|(?:sign|banner|poster|shirt|label|screen|title|board|card|book|page) "
    r"(?:that )?(?:reads?|says?|saying|reading|with the words?)\b|"
    r"the words? [\"“']|reads? [\"“'])",
    re.IGNORECASE,
)
_SENTENCES = re.compile(r"(?<=[.!?])[\"”»]?\s+(?=[A-Z\"“«])")
_QUOTED = re.compile(r"(?:[\"“”«„]|(?<!\w)[‘'])([^\"“”«»„‘’']+?)[.,!?]?(?:[\"“”»]|[’'](?!\w))")
_LABELLED = re.compile(
    r"\b(?:titles?|signs?|banners?|posters?|labels?|words?|screens?|cards?|letters|plates?|"
    r"headlines?|stickers?) (?=[\"“«„‘'])",
    re.IGNORECASE,
)
_SAYS = re.compile(
    r"\b(?:say(?:s|ing)?|said|shout(?:s|ing|ed)?|yell(?:s|ing|ed)?|ask(?:s|ing|ed)?|"
    r"repl(?:y|ies|ied|ying)|whisper(?:s|ing|ed)?|sing(?:s|ing)?|call(?:s|ing|ed)? out)\Z",
    re.IGNORECASE,
)
_SIGN_SAYS = re.compile(
    r"\b(?:signs?|banners?|posters?|shirts?|labels?|screens?|titles?|boards?|cards?|books?|pages?|"
    r"texts?|subtitles?|captions?|logos?|stickers?) (?:that |which )?(?:says?|saying|said)\Z",
    re.IGNORECASE,
)
_READ_SCRIPTS = ("LATIN", "FULLWIDTH LATIN", "CJK", "HIRAGANA", "KATAKANA")
_ALIKE = 0.75
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
# Where a movement starts: "from left to right" is one to the right.
_START = re.compile(
    r",? from (?:the |its )?(?:far )?(?:left|right|top|bottom|above|below)(?: side)?\b(?= to\b)"
    r"|(?<=pan|ans|ned|ing) (?:left|right)(?= to (?:the )?(?:left|right)\b)",
    re.IGNORECASE,
)
# Other things than a camera pan and tilt: a frying pan, heads, glasses.
_PAN = r"(?<!frying )(?<!baking )(?<!cooking )\bpan(?:s|ned|ning)?(?! (?:on|in|of|with|at|is)\b)"
_TILT = (
    r"(?:\btilt(?:s|ed|ing)?(?! (?:his|her|its|their|the(?! camera))\b)"
    r"|\bcamera (?:moves|moving|pans))"
)
# "Slowly", "to the": not "to her".
_BETWEEN = r"(?: (?!his\b|her\b|their\b|left\b|right\b)[\w-]+){0,3}"
_OF_CAMERA = r"\b(?:camera|shot|view|lens)(?: (?!he\b|she\b|who\b)\w+){0,3}"
_CAMERA = {
    name: re.compile(pattern, re.IGNORECASE)
    for name, pattern in {
        "pan_left": rf"{_PAN}{_BETWEEN}[- ]left(?:wards?)?\b|\bleftwards? pan\b",
        "pan_right": rf"{_PAN}{_BETWEEN}[- ]right(?:wards?)?\b|\brightwards? pan\b",
        "tilt_up": rf"{_TILT}{_BETWEEN}[- ]up(?:wards?)?\b",
        "tilt_down": rf"{_TILT}{_BETWEEN}[- ]down(?:wards?)?\b",
        "zoom_in": r"\bzoom(?:s|ed|ing)?[- ](?:\w+ly )?in\b|"
        r"\bpush(?:es|ing)? in(?= (?:on|to|towards?)\b|[.,;]|\Z)|\bpush-in\b",
        "zoom_out": r"\bzoom(?:s|ed|ing)?[- ](?:\w+ly )?out\b|\bpull-(?:back|out)\b|"
        rf"{_OF_CAMERA} pull(?:s|ing|ed)? (?:back|out|away)\b",
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


def texts_named(caption: str) -> list[str]:
    """What a caption says can be read in the picture: the quotations of the sentences that are
    about text, in their order."""
    found: dict[str, None] = {}
    for sentence in _SENTENCES.split(caption):
        if not (names_text(sentence) or _LABELLED.search(sentence)):
            continue
        for quoted in _QUOTED.finditer(sentence):
            before = sentence[: quoted.start()].rstrip(" ,:")
            is_spoken = _SAYS.search(before) and not _SIGN_SAYS.search(before)
            if not is_spoken and (text := quoted[1].strip()):
                found[text] = None
    return list(found)


def texts_missing(named: Sequence[str], read: Sequence[str]) -> list[str]:
    """The named texts that are not among those that were read on the screen.

    Case, spaces and punctuation don't count, and a few letters may be misread. A text in a script
    that PP-OCR's recognisers don't read is not expected among them.
    """
    screen = "".join(map(_letters, read))
    return [text for text in named if _is_readable(text) and not _is_within(_letters(text), screen)]


def _letters(text: str) -> str:
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def _is_readable(text: str) -> bool:
    letters = [character for character in text if character.isalpha()]
    return all(unicodedata.name(one, "").startswith(_READ_SCRIPTS) for one in letters)


def _is_within(text: str, screen: str) -> bool:
    if text in screen:
        return True
    matcher = SequenceMatcher(None, "", text, autojunk=False)
    for start in range(max(1, len(screen) - len(text) + 1)):
        matcher.set_seq1(screen[start : start + len(text)])
        if matcher.quick_ratio() >= _ALIKE and matcher.ratio() >= _ALIKE:
            return True
    return False


def names_speech(caption: str) -> bool:
    """Whether it says that somebody speaks or sings."""
    return _SPEECH.search(caption) is not None


def names_stillness(caption: str) -> bool:
    """Whether it says that nothing moves."""
    return _STILL.search(caption) is not None


def camera_named(caption: str) -> list[str]:
    """The camera's movements that it names: pan_left, …, zoom_out, static."""
    towards = _START.sub("", caption)
    return [name for name, pattern in _CAMERA.items() if pattern.search(towards)]
