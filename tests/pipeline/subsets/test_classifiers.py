"""Recipes take the classifiers that their thresholds were published for, and no other's scores."""

from __future__ import annotations

import pytest

import clipmill
from clipmill.schemas.errors import UsageError
from tests.scored_catalog import (
    Made,
    aesthetic,
    build,
    classified,
    embeddings,
    random_clips,
    similarity,
)

B32 = "open_clip:ViT-B-32/openai"
FALCONSAI = "Falconsai/nsfw_image_detection"
WATERMARK = "amrul-hzz/watermark_detector"
OTHERS = (
    embeddings(frames=3),
    aesthetic(over="mean"),
    embeddings("embed_b32", B32, 3),
    similarity(model=B32, over="cosine", reads="embed_b32"),
)
VALUES = {
    "aesthetic": (3.0, 4.0),
    "similarity": (0.1, 0.2),
    "unsafe": (0.0, 0.7),
    "marked": (0.9, 1.0),
    "nsfw": (0.0, 0.7),
}


def frozen(folder, *made: Made):
    clips = random_clips(300, VALUES)
    build(folder / "dataset", clips, [*OTHERS, *made], shards=1)
    with clipmill.open(folder / "dataset") as opened:
        subset = opened.create_subset("data-juicer-msrvtt", name="kept")
        rows = opened.sql(f"SELECT clip_id FROM subset_clips WHERE name = '{subset.name}'")
        return clips, {clip for (clip,) in rows.fetchall()}


def test_a_recipe_finds_its_classifiers_under_any_label(tmp_path):
    clips, kept = frozen(
        tmp_path, classified("unsafe", FALCONSAI, "nsfw"), classified("marked", WATERMARK, 1)
    )
    bounds = {"aesthetic": 3.18, "similarity": 0.166, "unsafe": -0.348, "marked": -0.965}
    expected = {
        clip.id
        for clip in clips
        if all(
            (value := clip.values[name]) is not None
            and (value >= bound if bound > 0 else value <= -bound)
            for name, bound in bounds.items()
        )
    }
    assert kept == expected
    assert 0 < len(kept) < len(clips)


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (Made("score_nsfw", "score_nsfw", "nsfw"), "made by score_nsfw, not classify_frames"),
        (classified("nsfw", "org/other", "nsfw"), "its model is org/other, not Falconsai"),
        (classified("nsfw", FALCONSAI, "normal"), "its label is ['normal'], not"),
        (classified("nsfw", FALCONSAI, "nsfw", over="max"), "its over_frames is max, not mean"),
    ],
)
def test_other_scores_are_refused_with_the_command_that_adds_the_right_ones(tmp_path, made, said):
    with pytest.raises(UsageError) as raised:
        frozen(tmp_path, made, classified("marked", WATERMARK, "watermark"))
    message = str(raised.value)
    assert said in message
    assert "--set falconsai_nsfw.stage=classify_frames" in message
    assert f"--set falconsai_nsfw.model={FALCONSAI}" in message
    assert "--set falconsai_nsfw.label=nsfw" in message


def test_a_label_of_ones_own_wins_over_another_stages_column(tmp_path):
    """Both are shown, whichever comes first."""
    makers = [Made("score_nsfw", "score_nsfw", "nsfw"), classified("nsfw", FALCONSAI, "nsfw")]
    for number, made in enumerate((makers, makers[::-1])):
        clips = random_clips(5, VALUES)
        build(tmp_path / str(number), clips, made, shards=1)
        with clipmill.open(tmp_path / str(number)) as opened:
            names = opened.sql("FROM clips LIMIT 0").columns
        assert names.count("nsfw") == 1
        assert {"score_nsfw_nsfw", "nsfw_mean"} <= set(names)
