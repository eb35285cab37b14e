"""What models say when they are asked for a caption: reasoning, refusals, marks and captions."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
import yaml

from clipmill.stages.models.outputs.cleaning import TEXT_RULES, cleaned, whole_sentences

TEXTS = yaml.safe_load(
    (Path(__file__).parents[2] / "files" / "model_texts.yaml").read_text("utf-8")
)


@pytest.mark.parametrize("case", TEXTS, ids=[case["said"][:40] for case in TEXTS])
def test_caption_is_told_from_what_is_none(case):
    made = cleaned(case["said"], asked=case.get("asked", []))
    if "fault" in case:
        assert case["fault"] in (made.fault or ""), made
        return
    assert (made.fault, made.text) == (None, case["kept"])
    assert set(made.rules) == set(case.get("rules", []))


def test_table_has_both_kinds_and_every_rule():
    """Captions that no rule may touch are as many as a third of those that it must."""
    assert len(TEXTS) >= 120
    untouched = [case for case in TEXTS if "kept" in case and "rules" not in case]
    assert len(untouched) >= 30
    seen = Counter(rule for case in TEXTS for rule in case.get("rules", []))
    assert set(seen) == set(TEXT_RULES) - {"refusal"}


@pytest.mark.parametrize("case", [case for case in TEXTS if "kept" in case])
def test_cleaning_a_caption_again_changes_nothing(case):
    assert cleaned(case["kept"]).text == case["kept"]


def test_rule_that_is_off_leaves_its_texts_alone():
    said = '{"subjects": ["dog"], "action": "runs"}'
    assert cleaned(said, off=("json",)).text == said
    assert cleaned("I'm sorry, but I can't help.", off=("refusal",)).fault is None
    assert cleaned("<think>a dog</think>b", off=("reasoning",)).text == "<think>a dog</think>b"
    assert cleaned("A **red** dog", off=("markdown",)).text == "A **red** dog"


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("A dog runs. A cat sits on a", "A dog runs."),
        ("A dog runs. It is 3.5 m lo", "A dog runs."),
        ("Mr. Smith walks his dog and Mrs. ", ""),
        ('A dog! Then "a cat." Then a', 'A dog! Then "a cat."'),
        ("狗在跑。猫在", "狗在跑。"),
        ("a man in a red shirt stands in front of a", ""),
    ],
)
def test_text_that_was_cut_off_is_cut_back_to_its_sentences(text, whole):
    assert whole_sentences(text) == whole


@pytest.mark.parametrize(
    "piece",
    ["<think>", "</think>", "<box>", "<answer>", "\\boxed{", "USER: ", "<|im_end|>", "**", "[0,",
     "<|box_start|>", "system\nUSER:", "{\"a\":", "- a\n", "<point ", "1,2 ", "`", "Sure! "],
)  # fmt: skip
def test_hostile_text_costs_no_time(piece):
    for length in (20_000, 400_000):
        began = time.process_time()
        cleaned(piece * (length // len(piece)))
        assert time.process_time() - began < 5
