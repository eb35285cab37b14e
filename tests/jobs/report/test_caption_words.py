"""Words and verbs of captions."""

from __future__ import annotations

import duckdb
import pytest

from clipmill.jobs.report.caption_words import count_words
from clipmill.jobs.report.verbs import verb_forms

# Typical captions of captioners, with their verbs as a human marked them.
CAPTIONS = {
    "a man is riding a horse on a beach": "ride",
    "two women are dancing in front of a mirror": "dance",
    "a blue square moves to the right": "move",
    "a tall building with many windows": "",
    "a painting of a woman holding a child": "hold",
    "a group of people walking down a street": "walk",
    "a person cuts the bread with a knife": "cut",
    "a woman in a red dress is standing next to a car": "stand",
    "people play soccer in a park": "play",
    "a dog catches a frisbee and runs back": "catch run",
    "waves crash on the beach": "crash",
    "a close-up of a hand writing on a piece of paper": "write",
    "a man wearing glasses is talking to the camera": "wear talk",
    "a chef cooks in the kitchen and stirs the soup": "cook stir",
    "a boy learns to swim in a pool": "learn swim",
    "a wooden cutting board with sliced tomatoes": "",
    "an old man with a walking stick sits on a bench": "sit",
    "children are playing with toys while their mother watches": "play watch",
    "cars drive on a highway at night": "drive",
    "a video game character shooting at enemies": "shoot",
    "a cup of coffee on a table": "",
    "a woman paints a picture of a lighthouse": "paint",
    "a football player kicked the ball into the goal": "kick",
    "she waves to the crowd": "wave",
    "the train passes through a tunnel": "pass",
    "a parked car in a parking lot": "",
    "a man and a woman are cooking dinner and laughing": "cook laugh",
    "the drinks on the table are cold": "",
    "the band performs on stage": "perform",
    "a white star stays still": "stay",
}


class Connected:
    """The part of a catalog that `count_words` needs."""

    def __init__(self, captions: list[str | None]) -> None:
        self.connection = duckdb.connect()
        self.connection.execute(
            "CREATE TABLE said AS SELECT unnest(?::VARCHAR[]) AS caption", [captions]
        )


def words(*captions: str | None):
    return count_words(Connected(list(captions)), "SELECT caption FROM said")


def test_words_are_counted_without_function_words():
    found = words("The dog's red ball, a RED ball!", "Un café — 犬が走る 42", None, "")
    assert found.captions == 3
    assert found.words == 11
    assert found.distinct_words == 9
    assert found.commonest == [
        ("ball", 2),
        ("red", 2),
        ("café", 1),
        ("dog's", 1),
        ("un", 1),
        ("犬が走る", 1),
    ]


def test_most_verbs_are_found_and_few_nouns_mistaken():
    right = wrong = missed = 0
    for caption, verbs in CAPTIONS.items():
        found = {verb for verb, _ in words(caption).verbs}
        right += len(found & set(verbs.split()))
        wrong += len(found - set(verbs.split()))
        missed += len(set(verbs.split()) - found)
    assert right / (right + wrong) >= 0.9
    assert right / (right + missed) >= 0.8


def test_plural_noun_is_not_a_verb_except_before_an_object():
    assert words("big waves, cold drinks on wooden boards, and old clocks").verbs == []
    assert words("a boy waves to a girl who drinks a tea").verbs == [("drink", 1), ("wave", 1)]


@pytest.mark.parametrize(
    ("form", "lemma"),
    [
        ("running", "run"),
        ("stopped", "stop"),
        ("tying", "tie"),
        ("flies", "fly"),
        ("tried", "try"),
        ("catches", "catch"),
        ("beginning", "begin"),
        ("eating", "eat"),
        ("opened", "open"),
        ("saw", "see"),
        ("found", "find"),
        ("written", "write"),
        ("skied", "ski"),
        ("playing", "play"),
    ],
)
def test_verb_forms_map_to_their_base(form, lemma):
    assert {one.lemma for one in verb_forms() if one.form == form} == {lemma}
