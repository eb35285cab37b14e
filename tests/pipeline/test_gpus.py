"""GPUs that a stage can't use are refused, and ready-made recipes do without any."""

from __future__ import annotations

import pytest

from clipmill.pipeline.engine.gpus import with_gpus_of
from clipmill.pipeline.engine.pools import Machine, plan_legs
from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import ClipmillError, UsageError

READY_MADE = ("internvid", "small-cpu")


@pytest.mark.parametrize("label", ["caption_frames", "summarize_captions", "embed_clips"])
def test_more_gpus_than_a_model_uses_are_refused(label):
    loaded = load_recipe(recipe_path("internvid"), overrides=[f"{label}.gpus=2"])
    with pytest.raises(UsageError, match=rf"stages\.{label}\.gpus: 2, but its model computes on"):
        build_plan(loaded)


@pytest.mark.parametrize("name", READY_MADE)
def test_ready_made_recipes_share_a_gpu_and_do_without_one(name):
    loaded = load_recipe(recipe_path(name))
    plan = build_plan(loaded)
    here, said = with_gpus_of(plan, 1, loaded.recipe)
    assert said == []
    (leg,) = plan_legs(here.steps, Machine(8, 1), 10)
    assert [pool.gpus for pool in leg if pool.gpus] == [1]
    without, said = with_gpus_of(plan, 0, loaded.recipe)
    assert said == [
        "No GPU: embed_clips, tag_clips, caption_frames, summarize_captions, score_similarity "
        "run on CPUs."
    ]
    assert not any(pool.gpus for leg in plan_legs(without.steps, Machine(8, 0), 10) for pool in leg)
    assert [s.fingerprint for s in without.steps] == [s.fingerprint for s in plan.steps]


def test_other_recipes_are_refused_without_the_gpus_that_they_ask_for():
    loaded = load_recipe(recipe_path("internvid"), overrides=["without_gpus=refuse"])
    plan, said = with_gpus_of(build_plan(loaded), 0, loaded.recipe)
    assert said == []
    with pytest.raises(ClipmillError, match="but this machine has 0"):
        plan_legs(plan.steps, Machine(8, 0), 10)


def test_a_stage_that_asks_a_server_takes_no_gpu():
    served = ["summarize_captions.model=http://127.0.0.1:1/v1#m"]
    loaded = load_recipe(recipe_path("internvid"), overrides=served)
    plan, said = with_gpus_of(build_plan(loaded), 2, loaded.recipe)
    assert plan.by_label["summarize_captions"].stage.gpus == 0
    assert plan.by_label["caption_frames"].stage.gpus == 0.5
    assert said == ["summarize_captions: a server computes, so no GPU is taken for it here."]
