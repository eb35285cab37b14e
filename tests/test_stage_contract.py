"""The contract of all stages: a new stage joins by being in a recipe here."""

from __future__ import annotations

import math
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipmill.pipeline.engine.step_inputs import KeptFrameReader, input_table
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, build_plan
from clipmill.pipeline.recipes.recipe import LoadedRecipe
from clipmill.schemas.errors import RowFailed, RowRejected
from clipmill.schemas.tables import OUTCOME
from clipmill.stages.built_in import built_in_stage_names
from clipmill.stages.protocol import Workspace
from tests.conftest import Made
from tests.sentence_folders import save_sentence_model
from tests.vision_models import SMALL_VISION, save_vision_weights

# Float columns may differ this much between batch sizes: bfloat16 sums depend on the batch.
TOLERANCE = 0.05
# Columns that say when or where, not what.
UNSTABLE = {"downloaded_at", "error"}
SHARD = "000000"

LABELS = (
    "download_videos",
    "scan_videos",
    "split_clips",
    "find_speech",
    "tag_clips",
    "caption_frames",
    "summarize_captions",
    "embed_clips",
    "embed_images",
    "embed_texts",
    "score_similarity",
    "score_aesthetic",
    "hash_frames",
    "score_nsfw",
    "detect_faces",
    "measure_text",
    "take_given_score",
    "check_captions",
    "choose_caption",
    "rewrite_captions",
    "detect_language",
    "detect_caption_language",
    "cluster_clips",
)
# Stages that the demo's recipe lacks, but that fit its results.
ADDED = (
    "measure_text.stage=measure_text",
    "measure_text.read=true",
    "measure_text.short_side=96",
    "take_given_score.stage=take_given_score",
    "take_given_score.column=UMT_Score",
    "take_given_score.scorer=UMT-SIM",
    "detect_speech.stage=detect_speech",
    "score_nsfw.stage=score_nsfw",
    "score_nsfw.frames_per_clip=1",
    "detect_faces.stage=detect_faces",
    "detect_faces.frames_per_clip=1",
    "check_captions.stage=check_captions",
    "check_captions.motion=split_clips.motion",
    "choose_caption.stage=choose_caption",
    "choose_caption.model=package:clipmill.jobs/demo/models/clip",
    "rewrite_captions.stage=rewrite_captions",
    "rewrite_captions.model=package:clipmill.jobs/demo/models/summarizer",
    "rewrite_captions.dtype=float32",
    "rewrite_captions.max_new_tokens=24",
    "detect_language.stage=detect_language",
    "detect_caption_language.stage=detect_caption_language",
    "cluster_clips.stage=cluster_clips",
)
# Stages that can't run with the demo's models; each has its own test file.
ELSEWHERE: set[str] = {
    "score_video_similarity",
    "caption_clip",
    "detect_speech",
    "transcribe_videos",
    "transcribe_clips",
    "classify_frames",
    "detect_persons",
}


def test_every_built_in_stage_is_under_contract():
    assert set(built_in_stage_names()) == set(LABELS) | ELSEWHERE


def with_tiny_models(folder: Path) -> list[str]:
    """Settings of stages whose own models take longer to load than a test should."""
    return [
        "embed_texts.stage=embed_texts",
        f"embed_texts.model={save_sentence_model(folder, {})}",
        "embed_images.stage=embed_images",
        f"embed_images.weights={save_vision_weights(folder / 'vision.pth')}",
        f"embed_images.architecture={SMALL_VISION}",
    ]


@pytest.fixture(scope="module")
def made(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The shared dataset, with a plan that has every stage under contract."""
    added = [*ADDED, *with_tiny_models(tmp_path_factory.mktemp("models"))]
    return replace(made, plan=build_plan(LoadedRecipe.from_record(made.loaded.record(), added)))


@pytest.fixture
def step(made: Made, request: pytest.FixtureRequest) -> PlannedStep:
    return made.plan.by_label[request.param]


every_step = pytest.mark.parametrize("step", LABELS, indirect=True)


def inputs(made: Made, step: PlannedStep) -> pa.Table:
    plan: Plan = made.plan
    rows = input_table(plan, step, made.dataset, SHARD, [SHARD])
    if step.stage.frames_picked():
        rows, failed = KeptFrameReader(plan, made.dataset, [SHARD]).attach(
            rows, step.stage.frames_picked()
        )
        assert not failed
    return rows


def transformed(step: PlannedStep, batches: list[pa.Table], workspace: Workspace) -> list[dict]:
    """Rows of the stage's own table for some batches."""
    rows = []
    workspace.scratch.mkdir(parents=True, exist_ok=True)
    workspace.fitted = step.stage.fit_on(batches) if step.stage.fits else None
    with step.stage.open(workspace) as transform:
        for batch in batches:
            output = transform(batch)
            table = output if isinstance(output, pa.Table) else output[step.stage.name]
            rows += table.to_pylist()
    return rows


@pytest.fixture
def workspace(tmp_path) -> Workspace:
    return Workspace(tmp_path / "dataset", tmp_path / "dataset" / "scratch")


@every_step
def test_stage_declares_what_it_writes(made, step, workspace):
    batch = inputs(made, step).slice(0, 2)
    workspace.scratch.mkdir(parents=True)
    workspace.fitted = step.stage.fit_on([batch]) if step.stage.fits else None
    with step.stage.open(workspace) as transform:
        output = transform(batch)
    tables = output if isinstance(output, dict) else {step.stage.name: output}
    declared = {**step.stage.more_tables, step.stage.name: step.stage.table_schema}
    assert set(tables) == set(declared)
    for name, table in tables.items():
        optional = {field.name for field in OUTCOME}
        assert set(table.column_names) <= set(declared[name].names)
        assert set(declared[name].names) - optional <= set(table.column_names)
        for column in table.column_names:
            assert table.schema.field(column).type == declared[name].field(column).type


@every_step
def test_stage_loses_no_key_and_invents_none(made, step, workspace):
    batch = inputs(made, step)
    assert batch.num_rows
    rows = transformed(step, [batch], workspace)
    assert {row[step.stage.key] for row in rows} == set(batch[step.stage.key].to_pylist())


@every_step
def test_batch_size_does_not_change_the_rows(made, step, tmp_path):
    batch = inputs(made, step)
    together = Workspace(tmp_path / "a", tmp_path / "a" / "scratch")
    alone = Workspace(tmp_path / "b", tmp_path / "b" / "scratch")
    whole = transformed(step, [batch], together)
    singly = transformed(step, [batch.slice(i, 1) for i in range(batch.num_rows)], alone)

    def order(row: dict) -> tuple:
        return str(row[step.stage.key]), str(row.get("clip_id"))

    assert len(whole) == len(singly)
    for one, other in zip(sorted(whole, key=order), sorted(singly, key=order), strict=True):
        assert same(
            {k: v for k, v in one.items() if k not in UNSTABLE},
            {k: v for k, v in other.items() if k not in UNSTABLE},
        ), (one, other)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=TOLERANCE, abs_tol=TOLERANCE)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[k], other[k]) for k in one)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@every_step
def test_stage_can_be_pickled(step):
    assert pickle.loads(pickle.dumps(step.stage)) == step.stage
    again = PlannedStep.from_spec(pickle.loads(pickle.dumps(step.spec())))
    assert again == step


def spoil(batch: pa.Table, key: str) -> pa.Table:
    """The row with garbage in every column that can hold it."""
    columns = {}
    for name in batch.column_names:
        kind = batch.schema.field(name).type
        if name == "frames":
            frames = batch[name].to_pylist()
            for frame in frames[0]:
                frame["jpeg"] = b"\xff\xd8 no picture"
            columns[name] = pa.array(frames, kind)
        elif name in (key, "clip_id", "video_id", "start_seconds", "end_seconds"):
            columns[name] = batch[name]
        elif name in ("url", "path"):
            columns[name] = pa.array(["/no/such/file.mp4"], pa.string())
        else:
            columns[name] = pa.nulls(1, kind)
    return pa.table(columns)


@every_step
def test_bad_row_is_a_failure_a_rejection_or_a_null_with_a_reason(made, step, workspace):
    """Only RowFailed and RowRejected may be raised, and no value made up."""
    stage = step.stage
    bad = spoil(inputs(made, step).slice(0, 1), stage.key)
    try:
        rows = transformed(step, [bad], workspace)
    except (RowFailed, RowRejected):
        return
    for row in rows:
        reasons = [row[name] for name in row if name.endswith("_reason")]
        assert row.get("error") or row.get("rejection") or any(reasons), row


@every_step
def test_every_setting_has_a_description(step):
    for name, field in type(step.stage).model_fields.items():
        assert field.description, f"{step.label}.{name} has no description"
