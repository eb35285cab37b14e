"""Which generated texts are usable, and what a prompt template may do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.stages.models.generated_text import fault_of, tidy
from clipmill.stages.models.prompts import render, variables_of


@pytest.mark.parametrize(
    "text",
    [
        "a red circle moves right",
        "it is very, very, very big",
        "a man and a woman and a man and a child",
        "The dog runs. The cat runs. The dog sleeps.",
        "ha ha ha",
        "3",
        "红色的圆向右移动",
        "a " + " ".join(f"word{i}" for i in range(300)),
    ],
)
def test_good_prose_is_usable(text):
    assert fault_of(text) is None


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("...", "no word"),
        ("— ?! —", "no word"),
        ("dog dog dog dog", "repeats 'dog'"),
        ("it is Very, very very VERY. big", "repeats"),
        ("a man in a red shirt in a red shirt in a red shirt", "repeats"),
        ("a dog runs on the beach. A dog runs on the beach.", "repeats"),
        ("红色的圆" * 6, "repeats"),
        ("x" * 40, "repeats"),
    ],
)
def test_empty_or_repetitive_text_is_not_usable(text, words):
    assert words in fault_of(text)


@given(
    st.lists(st.sampled_from(["red", "dog", "runs", "far"]), min_size=1, max_size=4),
    st.integers(12, 40),
)
def test_any_piece_repeated_twelve_times_is_a_repetition(piece, times):
    assert fault_of("Then " + " ".join(piece * times)) is not None


@pytest.mark.parametrize(
    ("text", "tidied"),
    [("  a\n\tdog ", "a dog"), ("\ufeffa \u202edog\x07", "a dog"), ("a dog \ufffd", "a dog")],
)
def test_white_space_and_invisible_characters_are_removed(text, tidied):
    assert tidy(text) == tidied


def test_template_may_use_only_its_variables():
    template = "{{ a }} {% for x in b %}{{ x }}{% endfor %}"
    assert variables_of(template, ("a", "b", "c")) == {"a", "b"}
    with pytest.raises(ValueError, match="uses typo; allowed variables: a, b"):
        variables_of("{{ a }} {{ typo }}", ("a", "b"))
    with pytest.raises(ValueError, match="line 2"):
        variables_of("fine\n{% if %}", ("a",))
    with pytest.raises(ValueError, match="nofilter"):
        variables_of("{{ a|nofilter }}", ("a",))


@pytest.mark.parametrize(
    "template",
    [
        "{{ a.__class__.__mro__ }}",
        "{{ a.append(1) }}",
        "{% for i in range(999999999) %}x{% endfor %}",
        "{{ 1 / 0 }}",
    ],
)
def test_template_is_sandboxed_and_raises_one_kind_of_error(template):
    with pytest.raises(ValueError, match="cannot be rendered"):
        render(template, {"a": [1]})
