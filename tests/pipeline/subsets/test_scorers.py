"""A subset recipe uses exactly the scorer that it was made for, under any label."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.subsets.scorer_specs import ScorerSpec
from clipmill.pipeline.subsets.scorers import ResolvedScorer, resolve
from clipmill.schemas.errors import UsageError
from tests.scored_catalog import (
    HEAD_V1,
    Made,
    aesthetic,
    build,
    embeddings,
    given,
    own,
    random_clips,
    similarity,
)

VALUES = dict.fromkeys(("aesthetic", "similarity", "other", "text_area"), (0.0, 1.0))
V2_MAX = """
    name: LAION's V2, largest of 4 frames
    accepts:
      - stage: score_aesthetic
        models: {head: ["*sac+logos+ava1-l14-linearMSE*", "sha256:abc"]}
        settings: {over_frames: max}
        upstream:
          embed_clips:
            models: {model: "open_clip:ViT-L-14/openai*"}
            settings: {frames_per_clip: 4}
    add:
      embed_l14: {stage: embed_clips, model: "open_clip:ViT-L-14/openai", frames_per_clip: 4}
      aesthetic_v2:
        stage: score_aesthetic
        embeddings: embed_l14
        head: ./sac+logos+ava1-l14-linearMSE.pth
    note: The head is on the web.
"""
TEXT_AREA = "{name: area of text, means: share of the frame, accepts: [{column: text_area}]}"


def spec(text: str) -> ScorerSpec:
    return ScorerSpec.model_validate(yaml.safe_load(text))


def resolved(folder: Path, *made: Made, **specs: Any) -> dict[str, ResolvedScorer]:
    dataset = folder / "dataset"
    if not dataset.exists():
        build(dataset, random_clips(6, VALUES), made, shards=1)
    with open_catalog(dataset) as catalog:
        return resolve(specs, catalog, recipe="mine")


def refused(folder: Path, *made: Made, **specs: Any) -> str:
    with pytest.raises(UsageError) as caught:
        resolved(folder, *made, **specs)
    assert caught.value.exit_status == 2
    return str(caught.value)


def test_recipe_uses_its_scorer(tmp_path):
    found = resolved(tmp_path, embeddings(), aesthetic(), aesthetic=spec(V2_MAX))["aesthetic"]
    assert (found.column, found.label, found.stage) == (
        "aesthetic",
        "score_aesthetic",
        "score_aesthetic",
    )
    assert found.models["head"]["reference"].endswith("sac+logos+ava1-l14-linearMSE.pth")
    assert found.settings["over_frames"] == "max"
    assert found.upstream["embed_clips"]["models"]["model"]["reference"] == (
        "open_clip:ViT-L-14/openai"
    )
    assert found.fingerprint == "score_aesthetic-1"
    assert not found.waived
    assert found.record() == {**found.record(), "role": "aesthetic", "name": spec(V2_MAX).name}
    assert "score_aesthetic (head sac+logos+ava1-l14-linearMSE.pth" in found.describe()


def test_scorer_is_found_under_another_column(tmp_path):
    """The role's own column is from another scorer, but the catalog also has the right one."""
    found = resolved(
        tmp_path,
        embeddings(),
        aesthetic(head=HEAD_V1),
        aesthetic("pretty", column="other"),
        aesthetic=spec(V2_MAX),
    )["aesthetic"]
    assert (found.column, found.label) == ("pretty", "pretty")
    assert found.describe().startswith("pretty: pretty, a score_aesthetic (head sac+logos")


def test_model_matches_by_hash_not_by_file_name(tmp_path):
    by_hash = V2_MAX.replace("sha256:abc", "sha256:/h.pth")
    found = resolved(
        tmp_path, embeddings(), aesthetic(head="/models/h.pth"), aesthetic=spec(by_hash)
    )
    assert found["aesthetic"].column == "aesthetic"


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (
            [embeddings(), aesthetic(head=HEAD_V1)],
            "its head is sa_0_4_vit_l_14_linear.pth, not sac+logos+ava1-l14-linearMSE",
        ),
        ([embeddings(), aesthetic(over="mean")], "its over_frames is mean, not max"),
        (
            [embeddings(model="open_clip:ViT-L-14-336/openai"), aesthetic()],
            "of embed_clips, which it reads from, its model is open_clip:ViT-L-14-336/openai, not",
        ),
        (
            [embeddings(frames=8), aesthetic()],
            "of embed_clips, which it reads from, its frames_per_clip is 8, not 4",
        ),
        (
            [given("aesthetic", "InternVid", "Aesthetic_Score", "aesthetic")],
            "it is made by take_given_score, not score_aesthetic",
        ),
        ([embeddings()], "the catalog has no such column\nIts scores: none"),
        ([embeddings(), similarity()], "Its scores: similarity by score_similarity (model"),
    ],
)
def test_another_scorer_is_refused_and_named(tmp_path, made, said):
    message = refused(tmp_path, *made, aesthetic=spec(V2_MAX))
    assert message.startswith(
        "mine was made for LAION's V2, largest of 4 frames in the column `aesthetic`; "
    )
    assert said in message
    assert "clipmill run --dataset " in message
    assert "The head is on the web." in message


def command(message: str) -> list[str]:
    (line,) = [line for line in message.splitlines() if "clipmill run" in line]
    return shlex.split(line)


def test_suggested_command_adds_only_missing_stages(tmp_path, monkeypatch):
    """Matching embeddings are not computed again; a label in use is not overwritten."""
    monkeypatch.chdir(tmp_path)
    message = refused(
        tmp_path,
        embeddings("openai"),
        aesthetic("aesthetic_v2", head=HEAD_V1, reads="openai"),
        aesthetic=spec(V2_MAX),
    )
    assert command(message) == [
        "clipmill",
        "run",
        "--dataset",
        "dataset",
        "--set",
        "aesthetic_v2_2.stage=score_aesthetic",
        "--set",
        "aesthetic_v2_2.embeddings=openai",
        "--set",
        "aesthetic_v2_2.head=./sac+logos+ava1-l14-linearMSE.pth",
    ]
    message = refused(tmp_path / "b", embeddings(model="org/other"), aesthetic=spec(V2_MAX))
    assert command(message)[4:10] == [
        "--set",
        "embed_l14.stage=embed_clips",
        "--set",
        "embed_l14.model=open_clip:ViT-L-14/openai",
        "--set",
        "embed_l14.frames_per_clip=4",
    ]
    assert "aesthetic_v2.embeddings=embed_l14" in command(message)


def test_two_scorers_that_read_one_stage_add_it_once(tmp_path):
    other = spec(V2_MAX.replace("aesthetic_v2:", "second:").replace("max}", "min}"))
    words = command(refused(tmp_path, aesthetic=spec(V2_MAX), other=other))
    assert words.count("embed_l14.stage=embed_clips") == 1
    assert words.count("second.embeddings=embed_l14") == 1


def test_unsupported_measure_asks_for_a_custom_stage(tmp_path):
    message = refused(tmp_path, text_area=spec(TEXT_AREA))
    assert message.startswith(
        "mine was made for area of text (share of the frame) in the column `text_area`"
    )
    assert "--set text_area.stage=./my_stage.py:MyStage" in message
    assert "docs/stages.md" in message
    found = resolved(tmp_path / "b", own("text_area"), text_area=spec(TEXT_AREA))["text_area"]
    assert (found.column, found.stage) == ("text_area", "measure_text_area")
    found = resolved(
        tmp_path / "c", given("text_area", "theirs", "text", "text_area"), text_area=spec(TEXT_AREA)
    )["text_area"]
    assert found.stage == "take_given_score"


def test_built_in_scorer_under_that_label_does_not_match(tmp_path):
    message = refused(
        tmp_path, embeddings(), aesthetic("text_area", column="other"), text_area=spec(TEXT_AREA)
    )
    assert "made by score_aesthetic, which measures something else" in message


def test_all_missing_scorers_are_reported_at_once(tmp_path):
    message = refused(tmp_path, embeddings(), aesthetic=spec(V2_MAX), text_area=spec(TEXT_AREA))
    assert message.startswith("mine was made for these scorers:\n- LAION's V2, largest of 4 frames")
    assert "\n- area of text (share of the frame) in the column `text_area`; the catalog" in message
    assert "To add what Clipmill has stages for:" in message


@pytest.mark.parametrize(
    ("pattern", "value", "fits"),
    [
        ("mean", "mean", True),
        ("m*", "mean", True),
        ("m?", "mean", False),
        (4, 4, True),
        (4, 4.0, True),
        (4, 8, False),
        (4, "4", False),
        (True, 1, False),
        (None, None, True),
        (None, 0, False),
        (">= 8", 8, True),
        (">= 8", 7, False),
        ("< 0.5", 0.25, True),
        (">= 8", "8", False),
        (["min", "mean"], "mean", True),
        (["min", "mean"], "max", False),
        ("*", None, False),
        ("*", True, False),
    ],
)
def test_settings_match_by_value_pattern_or_bound(tmp_path, pattern, value, fits):
    wanted = ScorerSpec.model_validate(
        {"name": "x", "accepts": [{"stage": "measure_x", "settings": {"how": pattern}}]}
    )
    stage = Made("x", "measure_x", "other", {"how": value})
    if fits:
        assert resolved(tmp_path, stage, x=wanted)["x"].column == "x"
    else:
        assert "its how is" in refused(tmp_path, stage, x=wanted)


def test_any_accepts_every_column(tmp_path):
    made = [embeddings(), aesthetic(head=HEAD_V1)]
    found = resolved(tmp_path, *made, aesthetic="any", motion="any")
    assert found["aesthetic"].waived
    assert found["aesthetic"].models["head"]["reference"] == HEAD_V1
    assert "accepted without a check" in found["aesthetic"].describe()
    # A column from splitting is a column like any other.
    assert (found["motion"].column, found["motion"].stage) == ("motion", None)
    message = refused(tmp_path, *made, similarity="any")
    assert "`clips` has none" in message
    assert "aesthetic" in message
    message = refused(tmp_path, *made, aesthetic=spec(V2_MAX))
    assert "--set scorers.aesthetic=any" in message
    assert "--set scorers" not in refused(tmp_path, *made, text_area=spec(TEXT_AREA))


def test_scorer_that_has_not_run_does_not_match(tmp_path):
    made = [embeddings(), aesthetic()]
    assert resolved(tmp_path, *made, aesthetic=spec(V2_MAX))
    for path in (tmp_path / "dataset" / "score_aesthetic").rglob("*.parquet"):
        path.unlink()
    message = refused(tmp_path, aesthetic=spec(V2_MAX))
    assert "nothing of it is computed yet" in message
    assert "To compute `aesthetic`:\n  clipmill run --dataset" in message
    assert "aesthetic_v2" not in message


def test_dataset_without_a_run_is_reported(tmp_path):
    (tmp_path / "dataset" / "sources").mkdir(parents=True)
    assert "has no run yet" in refused(tmp_path, aesthetic=spec(V2_MAX))


@pytest.mark.parametrize(
    "text",
    [
        "{accepts: [{column: a}]}",
        "{name: x}",
        "{name: x, accepts: []}",
        "{name: x, accepts: [{models: {head: a}}]}",
        "{name: x, accepts: [{stage: a, setting: {b: 1}}]}",
    ],
)
def test_incomplete_spec_is_refused(text):
    with pytest.raises(ValidationError):
        spec(text)
