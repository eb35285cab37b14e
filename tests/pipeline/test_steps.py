"""One notion of a step: planned or recorded, and of the keys that it is given."""

from __future__ import annotations

import json
from dataclasses import fields, replace

import pytest

from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.dataset.run_records import latest_run
from clipmill.pipeline.dataset.steps import (
    KeptRows,
    Read,
    Step,
    StepInputs,
    downstream,
    fingerprints,
    given_keys,
    inputs_of,
    recorded_steps,
    steps_of,
)
from clipmill.pipeline.recipes.plan import Plan, build_plan
from clipmill.schemas.damage import DamagedFile
from tests.synthetic import build_dataset


def facts(step: Step) -> dict:
    found = {field.name: getattr(step, field.name) for field in fields(Step) if field.compare}
    return {**found, "inputs": dict(step.inputs), "required": step.required}


def test_a_record_has_the_steps_that_were_planned(words):
    data = words("a?clips=2")
    data.run()
    planned = build_plan(data.loaded()).steps
    recorded = steps_of(latest_run(data.dataset))
    assert [facts(step) for step in recorded] == [facts(step) for step in planned]
    assert fingerprints(latest_run(data.dataset)) == dict(step.id for step in planned)


def test_another_process_gets_the_same_steps(words):
    plan = build_plan(words("a?clips=2").loaded())
    again = Plan.from_spec(plan.spec())
    assert [facts(step) for step in again.steps] == [facts(step) for step in plan.steps]


def test_without_a_run_there_are_no_steps(tmp_path):
    assert recorded_steps(tmp_path, None) == []


def step(label: str, *upstream: str, reads: tuple[str, ...] = (), key: str = "clip_id") -> Step:
    return Step(
        label,
        label,
        label,
        key,
        f"{label}-1",
        {name: f"{name}-1" for name in upstream},
        tuple(map(Read.parse, reads)),
        (label,),
        (key,),
        None,
    )


def test_what_depends_on_a_step():
    steps = [step("a"), step("b", "a"), step("c", "b"), step("d", "a")]
    assert downstream(steps, "b") == {"b", "c"}
    assert downstream(steps, "a") == {"a", "b", "c", "d"}


def test_a_step_without_others_before_it_is_given_the_sources():
    first = step("first", key="source_key")
    assert first.inputs == {"sources": ""}
    assert first.required == {"sources"}


@pytest.mark.parametrize(
    ("reads", "required"),
    [
        ((), {"clips", "scores"}),
        (("scores.x?",), {"clips"}),
        (("scores.x?", "scores.y"), {"clips", "scores"}),
    ],
)
def test_only_an_input_of_which_all_is_optional_is_not_required(reads, required):
    assert step("captions", "clips", "scores", reads=reads).required == required


def test_inputs_are_joined_by_key_or_by_video():
    columns = {
        "videos": ["source_key", "video_id"],
        "clips": ["video_id", "clip_id"],
        "scores": ["clip_id", "score"],
    }
    found = inputs_of(step("captions", "clips", "videos", "scores"), columns)
    assert (found.of_keys, found.of_videos) == (("clips", "scores"), ("videos",))


CLIPS = {"000000": KeptRows(["a1", "a2", "b1"], ["a", "a", "b"])}
VIDEOS = {"000000": KeptRows(["ka", "kb"], ["a", "b"])}
INPUTS = StepInputs(("clips", "scores"), ("videos",), frozenset(("clips", "scores", "videos")))


def test_a_key_is_given_where_all_required_tables_kept_it_or_its_video():
    scores = {"000000": KeptRows(["a1", "b1"], [])}
    kept = {"clips": CLIPS, "scores": scores, "videos": VIDEOS}
    assert given_keys(INPUTS, kept).keys() == {"a1", "b1"}
    assert given_keys(INPUTS, {**kept, "videos": {"000000": KeptRows(["ka"], ["a"])}}).keys() == {
        "a1"
    }
    without = replace(INPUTS, required=frozenset(("clips",)))
    assert given_keys(without, kept).keys() == {"a1", "a2", "b1"}


def test_each_shard_with_something_new_for_a_key_brings_it():
    kept = {
        "clips": CLIPS,
        "scores": {"000000": KeptRows(["a1"], []), "000000.retry1": KeptRows(["a2", "b1"], [])},
        "videos": {
            **VIDEOS,
            "000000.retry2": KeptRows(["ka", "kb"], ["a", "b"], frozenset(("b",))),
        },
    }
    assert given_keys(INPUTS, kept) == {
        "a1": {"000000", "000000.retry2"},
        "a2": {"000000", "000000.retry1", "000000.retry2"},
        "b1": {"000000", "000000.retry1"},
    }


@pytest.mark.parametrize("reads", [["nonsense"], 5, None])
def test_record_with_unreadable_steps_is_reported_by_name(tmp_path, reads):
    dataset = build_dataset(tmp_path / "dataset", shards=1, clips=5).path
    path = max((dataset / "runs").glob("*.json"))
    record = json.loads(path.read_text())
    for stage in record["stages"]:
        stage["reads"] = reads
    path.write_text(json.dumps(record))
    with pytest.raises(DamagedFile, match=path.name), open_catalog(dataset):
        pass
