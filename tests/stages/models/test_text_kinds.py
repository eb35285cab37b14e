"""Kinds of text on a clip's frames, from the places and words of boxes alone."""

from __future__ import annotations

from clipmill.stages.models.text_kinds import PlacedText, in_place, kinds_of, same_words

WIDE = 16 / 9
TIMES = (0.0, 2.0, 4.0, 6.0)


def line(left: float, top: float, right: float, text: str | None = None, height: float = 0.05):
    return PlacedText(left, top, right, top + height, text=text)


def kinds(*frames: list[PlacedText], seconds=TIMES) -> list[list[str]]:
    return kinds_of(frames, seconds[: len(frames)], WIDE)


def test_a_logo_in_half_of_the_frames_is_overlay():
    logo = line(0.05, 0.05, 0.2)
    assert kinds([logo], [logo], [], []) == [["overlay"], ["overlay"], [], []]
    assert kinds([logo], [], [], []) == [["scene"], [], [], []]


def test_text_that_moves_with_the_scene_is_not_overlay():
    frames = [[line(0.2 + 0.05 * number, 0.3, 0.4 + 0.05 * number)] for number in range(4)]
    assert kinds(*frames) == [["scene"]] * 4


def test_a_time_code_is_overlay_although_it_says_something_else_each_time():
    frames = [[line(0.36, 0.85, 0.64, f"00:00:0{number}.000")] for number in range(4)]
    assert kinds(*frames) == [["overlay"]] * 4


def test_a_name_that_is_aligned_to_one_side_stays_in_place_though_its_length_changes():
    assert in_place(line(0.05, 0.8, 0.3), line(0.05, 0.8, 0.5), WIDE)
    assert in_place(line(0.6, 0.8, 0.95), line(0.8, 0.8, 0.95), WIDE)
    assert not in_place(line(0.05, 0.8, 0.3), line(0.15, 0.8, 0.5), WIDE)
    assert not in_place(line(0.05, 0.8, 0.3), line(0.05, 0.86, 0.3), WIDE)


def test_changing_lines_in_the_middle_below_are_subtitles_also_two_at_a_time():
    frames = [
        [line(0.3, 0.88, 0.7, "Where are you going?")],
        [line(0.35, 0.82, 0.65, "I don't know."), line(0.25, 0.88, 0.75, "Nobody told me to.")],
        [],
        [line(0.4, 0.88, 0.6, "Then stay.")],
    ]
    assert kinds(*frames) == [["subtitle"], ["subtitle", "subtitle"], [], ["subtitle"]]


def test_parts_of_one_line_are_of_one_kind():
    frames = [
        [line(0.3, 0.88, 0.48, "Where are"), line(0.5, 0.88, 0.7, "you going?")],
        [line(0.35, 0.88, 0.65, "Home.")],
    ]
    assert kinds(*frames) == [["subtitle", "subtitle"], ["subtitle"]]


def test_a_line_that_stays_for_longer_than_one_reads_is_overlay():
    title = line(0.3, 0.88, 0.7, "Annual conference")
    assert kinds([title], [title], [title], [title], seconds=(0, 5, 10, 15)) == [["overlay"]] * 4
    assert kinds([title], [title], [title], [title], seconds=(0, 1, 2, 3)) == [["subtitle"]] * 4


def test_the_end_of_a_column_of_text_is_not_a_subtitle():
    page = [line(0.3, 0.3 + 0.08 * row, 0.7, f"line {'abcdefg'[row]}") for row in range(7)]
    assert "subtitle" not in kinds(page, page)[0]
    credits = [line(0.3, 0.4 + 0.07 * row, 0.7) for row in range(5)]
    assert "subtitle" not in kinds(credits, [])[0]


def test_texts_are_the_same_up_to_a_few_letters_but_not_digits():
    assert same_words("Breaking news", "Breakinq news")
    assert same_words("Breaking news", None)
    assert not same_words("Breaking news", "Weather report")
    assert not same_words("00:00:12:05", "00:00:12:06")
