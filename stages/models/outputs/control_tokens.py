"""Removes control tokens, turns of a chat and places in the picture from a text."""

from __future__ import annotations

import re

# Where a turn ends; what follows was made up by the model.
_END_OF_TURN = re.compile(
    r"<\|(?:im_end|eot_id|eom_id|end_of_turn|endoftext|end|return|eot|user|end_of_text|im_start)\|>"
    r"|<end_of_turn>|<turn\|>|<end_of_utterance>|</s>|<eos>|\[/?INST\]|<｜end▁of▁sentence｜>"
)
_START_OF_TURN = re.compile(
    r"\s*(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>|<\|turn>|<\|start\|>|<s>|<bos>)?"
    r"\s*(?:<\|assistant\|>|(?:assistant|model)(?:<\|end_header_id\|>|\n))\s*",
    re.IGNORECASE,
)
# A whole conversation: the prompt was not removed.
_CONVERSATION = re.compile(
    r"\s*(?:system\b.*?)?(?:\[INST\].*\[/INST\]"
    r"|(?:USER|Human|User|### Human|### Instruction):.*?(?:ASSISTANT|Assistant|### Response):"
    r"|(?:system\n.*?\n)?user\n.*?\n(?:assistant|model)\n)",
    re.DOTALL,
)
_SPEAKER = re.compile(r"\s*(?:#+ ?)?(?:ASSISTANT|Assistant)\s*:\s+")
_NEXT_SPEAKER = re.compile(
    r"(?:\n\s*(?:#+ ?)?(?:USER|User|Human):|\sUSER:(?=.*\sASSISTANT:)).*", re.S
)
# Any `<|name|>`, and the names that have another form.
_TOKEN = re.compile(
    r"<\|[A-Za-z][\w./:-]{0,40}\|>|<｜[^｜<>]{1,40}｜>|</?s>|<(?:pad|eos|bos|unk|mask)>"
    r"|\[(?:PAD|CLS|SEP|UNK|MASK|DEC|ENC)\]|<(?:start|end)_of_(?:turn|image|utterance)>"
    r"|</?(?:image|video|img|audio|im_patch|im_start|im_end|vision)>|<<?/?SYS>>?|\[/?INST\]"
    r"|<fake_token_around_image>|<global-img>|<row_\d+_col_\d+>|<unused\d+>|<extra_id_\d+>"
    r"|<0x[0-9A-F]{2}>|<\|turn>|<turn\|>|<(?:reserved|special)_?\d+>"
)
# Places: Florence-2 and PaliGemma `<loc…>`, Kosmos-2 patches, Qwen-VL and InternVL boxes,
# DeepSeek-VL2 `<|det|>`, Molmo's points, and lists of four numbers (Shikra, CogVLM).
_PLACE = re.compile(
    r"<(?:loc|seg|bin)_?\d{1,4}>|<patch_index_\d+>|</?grounding>|</?delimiter_of_multi_objects/?>"
    r"|<(box|quad|bbox|poly|object)>.{0,400}?</\1>"
    r"|<\|(box|quad|point)_start\|>.{0,400}?<\|\2_end\|>|<\|det\|>.{0,400}?<\|/det\|>"
    r"|\[?\[\s*\d+(?:\.\d+)?(?:\s*,\s*\d+(?:\.\d+)?){3}\s*\]\]?"
)
# Marks around words that stay.
_NAMED = re.compile(
    r"</?(?:ref|phrase|p)>|<\|(?:object_ref_(?:start|end)|/?ref|/?grounding)\|>"
    r"|</?points?(?:\s[^<>]{0,400})?>"
)


def without_turns(text: str) -> str:
    """The model's own turn: without the prompt, the speaker's name and turns after it."""
    if (whole := _CONVERSATION.match(text)) and text[whole.end() :].strip():
        text = text[whole.end() :]
    for start in (_START_OF_TURN, _SPEAKER):
        if (found := start.match(text)) and found.end():
            text = text[found.end() :]
    # A token at the very start ends nothing.
    for end in _END_OF_TURN.finditer(text):
        if any(character.isalnum() for character in _TOKEN.sub("", text[: end.start()])):
            text = text[: end.start()]
            break
    return _NEXT_SPEAKER.sub("", text)


def without_tokens(text: str) -> str:
    """Without control tokens."""
    return _TOKEN.sub(" ", text)


def without_places(text: str) -> str:
    """Without places in the picture, but with the words that they belong to."""
    return _spaced(_NAMED.sub("", _PLACE.sub(" ", text)), text)


def _spaced(made: str, text: str) -> str:
    return re.sub(r" +([.,;:!?])", r"\1", made) if made != text else text
