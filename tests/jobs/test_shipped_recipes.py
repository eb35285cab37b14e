"""The ready-made recipes load, plan, and name models that the stages support."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmill import jobs
from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.ready_made import names
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import UsageError
from clipmill.stages.models.published_weights import published_weights
from clipmill.stages.references import DataFile, ModelReference

RECIPES = Path(jobs.__file__).parent / "recipes"


@pytest.mark.parametrize("name", names())
def test_shown_recipe_has_the_same_meaning_in_any_folder(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved = tmp_path / "mine.yaml"
    saved.write_text((RECIPES / f"{name}.yaml").read_text("utf-8"), "utf-8")
    plans = [build_plan(load_recipe(path)) for path in (RECIPES / f"{name}.yaml", saved)]
    here, there = ([(step.label, step.fingerprint) for step in plan.steps] for plan in plans)
    assert here == there
    assert "missing:" not in str([step.stage.identity() for step in plans[1].steps])


def models_of(name: str) -> dict[str, ModelReference]:
    loaded = load_recipe(RECIPES / f"{name}.yaml")
    return {
        f"{label}.{setting}": reference
        for label, stage in loaded.stages.items()
        for setting, reference in stage.references().items()
        if isinstance(reference, ModelReference)
    }


@pytest.mark.parametrize("name", ["internvid", "small-cpu"])
def test_recipes_run_the_whole_main_job(name: str) -> None:
    loaded = load_recipe(RECIPES / f"{name}.yaml")
    plan = build_plan(loaded)
    assert set(loaded.stages) == {
        "download_videos",
        "split_clips",
        "embed_clips",
        "tag_clips",
        "caption_frames",
        "summarize_captions",
        "score_similarity",
        "score_aesthetic",
        "hash_frames",
    }
    assert loaded.recipe.description
    for label in ("tag_clips", "score_similarity", "score_aesthetic"):
        assert "embed_clips" in plan.by_label[label].upstream
    for reference in models_of(name).values():
        if reference.hub.startswith("open_clip:"):
            published_weights(reference.hub)
        else:
            assert reference.hub.count("/") == 1


def test_internvid_has_the_published_values() -> None:
    loaded = load_recipe(RECIPES / "internvid.yaml")
    stages = loaded.stages
    assert stages["split_clips"].threshold == 27
    assert stages["embed_clips"].frames_per_clip == 4
    assert stages["score_aesthetic"].over_frames == "max"
    assert stages["caption_frames"].num_beams == 5
    head = stages["score_aesthetic"].head
    assert isinstance(head, DataFile)
    assert head.name == "sac+logos+ava1-l14-linearMSE.pth"


def test_timestamps_only_needs_no_model_and_keeps_no_frames() -> None:
    loaded = load_recipe(RECIPES / "timestamps-only.yaml")
    assert list(loaded.stages) == ["download_videos", "split_clips"]
    assert not loaded.stages["split_clips"].keep_frames
    assert models_of("timestamps-only") == {}


def test_scorer_with_another_model_than_its_embeddings_is_refused() -> None:
    loaded = load_recipe(
        RECIPES / "small-cpu.yaml", overrides=["score_similarity.model=open_clip:ViT-L-14/openai"]
    )
    with pytest.raises(UsageError, match=r"stages\.score_similarity: .*cannot be compared"):
        build_plan(loaded)
