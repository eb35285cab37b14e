"""Windows of speech, words of tokens, lines, and invented repetition."""

from __future__ import annotations

import numpy as np
import pytest

from clipmill.stages.models.transcripts import (
    Line,
    Word,
    lines_of_words,
    parts_to_read,
    repeats,
    spread,
    windows,
    with_repeats,
    words_of_tokens,
)

RATE = 16000


def line(text: str, start: float = 0.0) -> Line:
    return Line(start, start + 1, text, ())


def test_speech_is_joined_over_short_pauses_only():
    spans = [(1.0, 2.0), (4.5, 5.0), (8.5, 9.0)]
    assert parts_to_read(spans) == [
        (pytest.approx(0.9), pytest.approx(5.1)),
        (pytest.approx(8.4), pytest.approx(9.1)),
    ]


def test_windows_end_where_it_is_quietest_and_lose_no_sample():
    sound = np.ones(70 * RATE, np.float32)
    sound[round(25.0 * RATE) : round(25.2 * RATE)] = 0
    found = list(windows(100.0, sound, 30.0))
    assert [window.start_seconds for window in found][:2] == [100.0, pytest.approx(125.1, abs=0.1)]
    assert np.array_equal(np.concatenate([window.samples for window in found]), sound)
    assert all(window.seconds <= 30 for window in found)
    assert len(list(windows(0.0, sound[: 30 * RATE], 30.0))) == 1
    assert list(windows(0.0, sound[:100], 30.0)) == []


def test_words_of_tokens_that_are_parts_of_characters():
    pieces = [" Gr", "ü".encode()[:1], "ü".encode()[1:], "ße", ",", " Welt", "!", " ("]
    whole = [piece if isinstance(piece, bytes) else piece.encode() for piece in pieces]

    def decode(tokens):
        return b"".join(whole[token] for token in tokens).decode("utf-8", "replace")

    times = [0.2, 0.25, 0.3, 0.5, 0.6, 1.0, 1.1, 1.2]
    words = words_of_tokens(range(8), times, decode, spaced=True)
    assert words == [Word(0.0, 0.6, " Grüße,"), Word(0.6, 1.1, " Welt!"), Word(1.1, 1.2, " (")]
    signs = words_of_tokens(
        range(3), [1.0, 2.0, 3.0], lambda t: "".join("你好。"[i] for i in t), spaced=False
    )
    assert signs == [Word(0.0, 1.0, "你"), Word(1.0, 3.0, "好。")]
    assert words_of_tokens([], [], decode, spaced=True) == []


def test_words_without_times_are_spread_by_length():
    assert spread("ab cdef", 1.0, 8.0) == [Word(1.0, 3.0, "ab"), Word(3.0, 8.0, " cdef")]
    assert [word.text for word in spread("你好", 0.0, 2.0)] == ["你", "好"]
    assert spread("", 0.0, 1.0) == []


def test_lines_end_with_a_sentence_or_at_a_pause():
    words = [
        Word(0.0, 0.5, "Yes."),
        Word(0.5, 1.0, " No"),
        Word(1.0, 1.5, " way"),
        Word(3.0, 3.5, " at"),
        Word(3.5, 4.0, " 3.5?”"),
    ]
    lines = lines_of_words(words, 0.2)
    assert [(one.text, one.start_seconds, one.end_seconds) for one in lines] == [
        ("Yes.", 0.0, 0.5),
        ("No way", 0.5, 1.5),
        ("at 3.5?”", 3.0, 4.0),
    ]
    assert {one.no_speech_probability for one in lines} == {0.2}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "I think that we should go now, because it is late and the last train leaves soon.",
            False,
        ),
        ("No, no, no, I said no!", False),
        ("Never, never, never, never give up, since giving up is what everybody does.", False),
        ("Thank you. Thank you. Thank you. Thank you.", True),
        ("so " * 40, True),
        ("the sound of the sea and " * 12, True),
        ("", False),
        ("はい。" * 30, True),
    ],
)
def test_text_that_repeats_itself(text, expected):
    assert repeats(text) is expected


def test_a_window_that_loops_and_lines_that_come_in_a_row_are_marked():
    texts = ["Hello there.", "Thank you.", "Thank you.", "Thank you.", "Thank you.", "Bye."]
    loop = with_repeats([line(text) for text in texts], [0, 1, 1, 1, 1, 2])
    assert [one.repeats for one in loop] == [False, True, True, True, True, False]
    same = ["Thanks for watching!", "Thanks for watching!", "thanks for watching"]
    spread_out = with_repeats([line(text) for text in [*same, "Hello.", "Hello."]], range(5))
    assert [one.repeats for one in spread_out] == [True, True, True, False, False]
