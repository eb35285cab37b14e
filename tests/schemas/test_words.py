"""Messages speak of one thing in the singular."""

from __future__ import annotations

import pytest

from schemas.words import counted


@pytest.mark.parametrize(("number", "word", "said"), [
    (1, "clip", "1 clip"), (0, "clip", "0 clips"), (2114, "failed row", "2,114 failed rows")])
def test_one_thing_is_said_in_the_singular(number: int, word: str, said: str):
    assert counted(number, word) == said
