"""A captioner's server that refuses in the middle of a run: it ends, and no row is charged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from clipmill.jobs.run import run
from clipmill.pipeline.dataset.run_records import latest_run
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.status import status_report
from clipmill.schemas.errors import ClipmillError
from tests.conftest import Made
from tests.openai_stand_in import openai_server


@pytest.fixture
def dataset(made: Made, tmp_path: Path) -> Path:
    copy = Path(shutil.copytree(made.dataset, tmp_path / "dataset"))
    for name in ("caption_frames", "summarize_captions", "score_similarity"):
        shutil.rmtree(copy / name)
    return copy


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (401, "key"),
        pytest.param(403, "key", marks=pytest.mark.slow),
        pytest.param(404, "model's name", marks=pytest.mark.slow),
    ],
)
def test_refusal_ends_the_run_and_the_next_one_does_the_rows(dataset, status, advice):
    """The check before the run is still answered."""
    with openai_server(lambda _: "a dog runs along the beach") as stand_in:
        overrides = [f"caption_frames.model={stand_in.url}#tiny", "caption_frames.dtype=auto"]
        loaded = load_recipe(recipe_path("demo"), overrides=overrides, engine="local")

        def answer_once(_) -> str:
            stand_in.always = status
            return "a dog"

        answers, stand_in.answer = stand_in.answer, answer_once
        with pytest.raises(ClipmillError) as caught:
            run(loaded, dataset, until="caption_frames", take_sources=False)
        said = str(caught.value)
        assert said.startswith(f"caption_frames.model: {stand_in.url} answered {status}")
        assert advice in said
        assert "No row is recorded as failed" in said
        assert "cookies" not in said
        record = latest_run(dataset)
        assert record is not None
        assert record["state"] == "failed"
        [stage] = [s for s in status_report(dataset)["stages"] if s["stage"] == "caption_frames"]
        assert (stage["failed"], stage["shards_done"]) == (0, 0)

        stand_in.answer, stand_in.always = answers, None
        run(loaded, dataset, until="caption_frames", take_sources=False)
        [stage] = [s for s in status_report(dataset)["stages"] if s["stage"] == "caption_frames"]
        assert (stage["kept"], stage["failed"]) == (stage["inputs"], 0)


def test_server_that_fails_on_every_row_ends_the_run(dataset):
    """Rows of the demo are fewer than 64, so the limit is lower here."""
    with openai_server(lambda _: "") as stand_in:

        def answer_once(_) -> str:
            stand_in.always = 500
            return "a dog"

        stand_in.answer = answer_once
        overrides = [
            f"caption_frames.model={stand_in.url}#tiny",
            "caption_frames.server_retries=0",
            "caption_frames.server_first_wait_seconds=0",
            "stop_after_alike_failures=3",
        ]
        loaded = load_recipe(recipe_path("demo"), overrides=overrides, engine="local")
        with pytest.raises(ClipmillError, match=r"first 3 rows all failed alike \(transient"):
            run(loaded, dataset, until="caption_frames", take_sources=False)
        [stage] = [s for s in status_report(dataset)["stages"] if s["stage"] == "caption_frames"]
        assert (stage["failed"], stage["shards_done"]) == (0, 0)
