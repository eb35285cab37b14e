"""Which subtitle track is used for a video, and which of its words belong to a clip."""

from __future__ import annotations

import random

import pytest

from clipmill.stages.media.read.speech import said_within, speaking_track


def line(start, end, text, language="en", automatic=False, words=None):
    return {
        "start_seconds": start,
        "end_seconds": end,
        "text": text,
        "language": language,
        "automatic": automatic,
        "words": words,
    }


def track(*codes: str) -> list[dict]:
    """A line of each track; automatic ones have a star."""
    return [line(0, 1, code, code.rstrip("*"), code.endswith("*")) for code in codes]


@pytest.mark.parametrize(
    ("codes", "language", "speaks"),
    [
        (["en", "es", "fr"], "es", "es"),
        (["en", "es-419", "fr"], "es", "es-419"),
        (["pt-BR", "pt-PT"], "pt-PT", "pt-PT"),
        (["fr", "en"], "es", "en"),
        (["fr", "de"], "es", "de"),
        (["fr", "es-orig*"], "es", "fr"),
        (["en", "de", "de-orig*"], None, "de"),
        (["en-orig*", "en*", "en-es*"], "en", "en-orig*"),
        (["en-es*", "es*"], None, "es*"),
        (["en*", "es*"], "es", "es*"),
        (["fr", "en"], None, "en"),
        ([], "es", None),
    ],
)
def test_one_track_is_selected_for_a_video(codes, language, speaks):
    """Human-written ones before automatic ones, the video's own language before English."""
    for order in (codes, codes[::-1]):
        found = {row["text"] for row in speaking_track(track(*order), language)}
        assert found == ({speaks} if speaks else set())


def test_clip_has_the_words_said_in_it():
    """From ten minutes of automatic captions; words without times are spread evenly."""
    rng = random.Random(5)
    timed, at, number = [], 0.3, 0
    rows = []
    while at < 600:
        words = []
        for _ in range(rng.randint(5, 9)):
            words.append({"seconds": at, "text": f" w{number}"})
            number += 1
            at += rng.uniform(0.22, 0.5)
        timed += words
        rows.append(
            line(
                words[0]["seconds"],
                at,
                "".join(w["text"] for w in words).strip(),
                automatic=True,
                words=words,
            )
        )
    for exact in (True, False):
        said = rows if exact else [{**row, "words": None} for row in rows]
        right = total = 0
        for start in range(0, 600, 4):
            found = " ".join(said_within(said, start, start + 4)).split()
            wanted = {w["text"].strip() for w in timed if start <= w["seconds"] < start + 4}
            total += len(found)
            right += len(wanted & set(found))
            assert not exact or found == [
                w["text"].strip() for w in timed if start <= w["seconds"] < start + 4
            ]
        assert total > 1500
        assert right / total > 0.9


def test_human_written_line_is_included_whole_or_not_at_all():
    rows = [line(0, 4, "first half"), line(4, 12, "long"), line(12, 13, "next")]
    assert said_within(rows, 0, 2) == ("first half",)
    assert said_within(rows, 3, 4) == ("first half",)
    assert said_within(rows, 3.9, 6) == ("long",)
    assert said_within(rows, 11, 20) == ("next",)
    assert said_within(rows, 12, None) == ("next",)


def test_languages_without_spaces_are_split_by_characters():
    assert said_within([line(0, 4, "一二三四", "zh", True)], 1, 3) == ("二三",)
