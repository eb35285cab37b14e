"""The identity of a served model: its name and revision, wherever it is served."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.stages.references import ModelReference

# What release 0.1 computed for this recipe with the model at http://a:8000/v1#tiny.
FORMER = {"caption_frames": "f6aaac1ebb7f8cc1", "summarize_captions": "2dcfc99dbd11c1a7"}


def planned(folder, model: str, dataset=None) -> dict[str, str]:
    path = folder / "served.yaml"
    path.write_text(
        "stages:\n  download_videos:\n  split_clips:\n"
        f"  caption_frames: {{model: '{model}', skip_similar: 0}}\n"
        f"  summarize_captions: {{model: '{model}'}}\n"
    )
    steps = build_plan(load_recipe(path), dataset).steps
    return {step.label: step.fingerprint for step in steps if step.label in FORMER}


def test_address_does_not_count_but_name_and_revision_do(tmp_path):
    one = planned(tmp_path, "http://a:8000/v1#tiny")
    assert one == planned(tmp_path, "https://b/v1#tiny")
    assert one == planned(tmp_path, "http://a:8000/v1,http://b:8000/v1#tiny")
    for other in ("http://a:8000/v1#tiny@2", "http://a:8000/v1#tidy"):
        assert not set(one.values()) & set(planned(tmp_path, other).values())


def test_shards_of_former_fingerprints_stay_valid(tmp_path):
    """Also if the server has moved since, for a run's record names its former address."""
    dataset = tmp_path / "dataset"
    for label, digits in FORMER.items():
        (dataset / label / digits).mkdir(parents=True)
        (dataset / label / digits / "000000.parquet").touch()
    assert planned(tmp_path, "http://a:8000/v1#tiny", dataset) == FORMER
    moved = "http://b:8000/v1#tiny"
    assert planned(tmp_path, moved, dataset) == planned(tmp_path, moved)
    reference = {"reference": "http://a:8000/v1#tiny", "revision": None, "identity": "x"}
    stages = [
        {"stage": label, "name": label, "reads": [], "settings": {}, "models": {"model": reference}}
        | {"prompts": {}, "score": None, "steps": []}
        for label in FORMER
    ]
    texts = dict.fromkeys(("state", "recipe_name", "code_version", "engine"), "x")
    times = {"started_at": "2026-01-01T00:00:00", "finished_at": None}
    record = {"run_id": "1", "recipe": {}, "stages": stages, **texts, **times}
    (dataset / "runs").mkdir()
    (dataset / "runs" / "1.json").write_text(json.dumps(record))
    assert planned(tmp_path, moved, dataset) == FORMER
    for other in ("http://a:8000/v1#tiny@2", "http://a:8000/v1#tidy"):
        assert planned(tmp_path, other, dataset) == planned(tmp_path, other)


def test_reference_names_several_servers():
    text = "http://a:8000/v1,http://b:8000/v1#tiny@2"
    reference = ModelReference.model_validate(text)
    assert reference.servers == ("http://a:8000/v1", "http://b:8000/v1")
    assert (reference.model, reference.revision, str(reference)) == ("tiny", "2", text)
    both = ["http://a:8000/v1#tiny@2", "http://b:8000/v1#tiny@2"]
    assert ModelReference.model_validate(both) == reference
    assert ModelReference.model_validate(reference.model_dump(mode="json")) == reference


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (["http://a/v1#x", "http://b/v1#y"], "serve one model, but these are 2: x, y"),
        (["http://a/v1#x", "models/y"], "a list as a model means servers"),
        ([], "a list as a model means servers"),
        ("http://a/v1,http://#x", "http://"),
    ],
)
def test_wrong_list_of_servers_is_refused(wrong, words):
    with pytest.raises(ValidationError, match=words):
        ModelReference.model_validate(wrong)
