"""The demo's films match their records."""

from pathlib import Path

import av
import numpy as np
import pytest
from scenedetect import ContentDetector, detect

from clipmill.jobs.demo.render import render_film, write_duplicate, write_html_page, write_truncated
from clipmill.jobs.demo.truth import count_cuts, mark_summary, rank_auc, read_caption
from clipmill.jobs.demo.world import (
    BLACK_CAPTION,
    COLOURS,
    FRAME_HEIGHT,
    FRAME_WIDTH,
    FRAMES_PER_SECOND,
    Film,
    load_truth,
    make_world,
    save_truth,
)

WORLD = make_world(41, 4)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All films of `WORLD`, rendered."""
    folder = tmp_path_factory.mktemp("world")
    for film in WORLD:
        render_film(film, folder / f"{film.name}.mp4")
    return folder


def test_same_seed_gives_the_same_world() -> None:
    assert make_world(41, 4) == WORLD
    assert make_world(41, 2) == WORLD[:2]
    assert make_world(42, 4) != WORLD


@pytest.mark.slow
def test_film_is_rendered_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.mp4"
    render_film(WORLD[0], again)
    assert again.read_bytes() == (folder / f"{WORLD[0].name}.mp4").read_bytes()


def test_films_last_10_to_21_seconds_without_gaps_between_shots() -> None:
    for film in make_world(5, 200):
        assert 10 <= film.duration_seconds <= 21
        assert film.shots[0].start_frame == 0
        for before, after in zip(film.shots, film.shots[1:], strict=False):
            assert before.end_frame == after.start_frame
            assert before.transition_out == after.transition_in


def test_world_has_fades_still_shots_and_fast_shots() -> None:
    shots = [shot for film in make_world(5, 24) for shot in film.shots]
    assert sum(shot.transition_in == "fade" for shot in shots) >= 3
    assert sum(shot.motion == "still" for shot in shots) >= 5
    assert sum(shot.fast for shot in shots) >= 10


def test_films_have_the_recorded_frames_and_sound(folder: Path) -> None:
    for film in WORLD[:2]:
        with av.open(str(folder / f"{film.name}.mp4")) as container:
            video, sound = container.streams.video[0], container.streams.audio[0]
            assert (video.codec_context.name, sound.codec_context.name) == ("h264", "aac")
            assert (video.width, video.height) == (FRAME_WIDTH, FRAME_HEIGHT)
            assert video.average_rate == FRAMES_PER_SECOND
            assert video.frames == film.n_frames
            lasts = container.duration / av.time_base
            assert lasts == pytest.approx(film.duration_seconds, abs=0.1)


def test_shape_has_the_recorded_position_and_colour(folder: Path) -> None:
    for film in WORLD[:3]:
        with av.open(str(folder / f"{film.name}.mp4")) as container:
            for number, frame in enumerate(container.decode(video=0)):
                shot = film.shot_at(number / FRAMES_PER_SECOND)
                if number % 11 or shot.brightness_at(number) < 1:
                    continue
                x, y = shot.centre_at(number)
                seen = frame.to_ndarray(format="rgb24")[int(y * FRAME_HEIGHT), int(x * FRAME_WIDTH)]
                np.testing.assert_allclose(seen.astype(int), COLOURS[shot.colour], atol=30)


def test_pyscenedetect_finds_exactly_the_hard_cuts(folder: Path) -> None:
    for film in WORLD:
        scenes = detect(
            str(folder / f"{film.name}.mp4"), ContentDetector(threshold=27, min_scene_len=15)
        )
        counts = count_cuts(film, [start.frame_num for start, _ in scenes[1:]])
        assert (counts.missed, counts.invented) == (0, 0), film.name
        # Fades also separate shots, so that no clip shows two objects.
        assert len(scenes) == len(film.shots), film.name


def test_truth_survives_saving_and_loading(tmp_path: Path) -> None:
    save_truth(WORLD, tmp_path / "truth.json")
    assert load_truth(tmp_path / "truth.json") == WORLD


def test_frame_captions_follow_the_motion() -> None:
    shot = next(
        shot
        for film in make_world(7, 40)
        for shot in film.shots
        if shot.motion == "right" and (shot.transition_in, shot.transition_out) == ("cut", "cut")
    )
    frames = (shot.start_frame, (shot.start_frame + shot.end_frame) // 2, shot.end_frame - 1)
    assert [read_caption(shot.caption_at(frame)).position for frame in frames] == [
        "left", "middle", "right",
    ]  # fmt: skip
    assert shot.summary == f"{shot.subject} moves to the right"


def test_middle_of_a_fade_is_black() -> None:
    film = next(film for film in make_world(7, 40) if film.gradual_transitions)
    start, end = film.gradual_transitions[0]
    assert film.caption_at((start + end) / 2 / FRAMES_PER_SECOND) == BLACK_CAPTION


def _film_with_fade() -> Film:
    return next(film for film in make_world(7, 40) if film.gradual_transitions and film.hard_cuts)


def test_cuts_match_within_one_frame_and_fades_are_ignored() -> None:
    film = _film_with_fade()
    start, end = film.gradual_transitions[0]
    cut = film.hard_cuts[0]
    others = film.hard_cuts[1:]
    assert count_cuts(film, [cut + 1, *others, (start + end) // 2]).precision == 1
    assert count_cuts(film, [cut + 1, *others]).recall == 1
    assert count_cuts(film, [cut + 2, *others]).missed == 1
    assert count_cuts(film, [cut + 2, *others]).invented == 1
    # A second detection of the same cut is a false positive.
    assert count_cuts(film, [cut, cut + 1, *others]).invented == 1


def test_summaries_are_compared_with_the_clips_longest_shot() -> None:
    film = WORLD[0]
    shot = film.shots[1]
    span = shot.start_seconds - 0.2, shot.end_seconds - 0.1
    mark = mark_summary(film, *span, shot.summary)
    assert (mark.subject, mark.motion) == (True, True)
    other = mark_summary(film, *span, film.shots[0].summary)
    assert not other.subject
    assert not mark_summary(film, *span, "").motion


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("An orange star moves up and down.", ("orange", "star", "up_and_down", None)),
        ("a red circle moves up", ("red", "circle", "up", None)),
        ("a red circle on the left", ("red", "circle", None, "left")),
        ("a red and a blue circle", (None, "circle", None, None)),
        ("", (None, None, None, None)),
    ],
)
def test_captions_are_parsed(text: str, expected: tuple[str | None, ...]) -> None:
    said = read_caption(text)
    assert (said.colour, said.object, said.motion, said.position) == expected


def test_auc_is_the_probability_that_right_ranks_above_wrong() -> None:
    assert rank_auc([3, 4], [1, 2]) == 1
    assert rank_auc([1, 4], [2, 3]) == 0.5
    assert rank_auc([1, 1], [1]) == 0.5
    with pytest.raises(ValueError, match="at least one"):
        rank_auc([], [1])


def test_broken_files_are_broken_and_duplicates_are_not(folder: Path, tmp_path: Path) -> None:
    whole = folder / f"{WORLD[0].name}.mp4"
    write_truncated(whole, tmp_path / "truncated.mp4")
    write_html_page(tmp_path / "page.mp4")
    write_duplicate(whole, tmp_path / "again.mp4")
    for name in ("truncated.mp4", "page.mp4"):
        with pytest.raises(av.error.FFmpegError):
            av.open(str(tmp_path / name))
    assert (tmp_path / "again.mp4").read_bytes() == whole.read_bytes()
