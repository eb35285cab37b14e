"""A run's record says where workers opened each model, as soon as one has."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from clipmill.jobs.run import run
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.dataset.run_records import RecordOfThisRun, read_run, run_records
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.stages.models.places import ModelPlace

HERE = Path(__file__).parent
ON_CPU = [{"device": "cpu", "dtype": "float32"}]


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """Two settings name one file, which is opened once; a third one is a separate file."""
    (tmp_path / "urls.txt").write_text("https://a.test/\nhttps://b.test/\nhttps://c.test/\n")
    (tmp_path / "head.bin").write_bytes(b"weights")
    path = tmp_path / "words.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "sources": [{"path": "urls.txt"}],
                "shard_videos": 1,
                "ray": {"num_cpus": 2},
                "stages": {
                    "fetch_words": {"stage": f"{HERE / 'own_stages.py'}:FetchWords"},
                    "weigh_words": {
                        "stage": f"{HERE / 'placed_stages.py'}:WeighWords",
                        "head": "head.bin",
                        "other_head": "head.bin",
                    },
                },
            },
            sort_keys=False,
        )
    )
    return path


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_run_record_says_where_models_were_opened(recipe, tmp_path, engine):
    """Each place once, for any number of workers and shards; null if nothing was done."""
    dataset = tmp_path / "dataset"
    run(load_recipe(recipe, engine=engine), dataset)
    run(load_recipe(recipe, engine="local", overrides=["weigh_words.dtype=bfloat16"]), dataset)
    run(load_recipe(recipe, engine="local"), dataset)  # back to the tables of the first one
    with open_catalog(dataset) as catalog:
        rows = catalog.execute(
            "SELECT s.models FROM (SELECT started_at, unnest(stages) AS s FROM "
            "runs) WHERE s.stage = 'weigh_words' ORDER BY started_at"
        ).fetchall()
    places = [[model["places"] for model in models] for (models,) in rows]
    assert places == [[ON_CPU] * 2, [[{"device": "cpu", "dtype": "bfloat16"}]] * 2, [None] * 2]
    assert {record["state"] for record in run_records(dataset)} == {"done"}


def test_places_are_on_disk_before_the_first_row_is_done(recipe, tmp_path):
    """So that they are recorded even if the driver is killed."""
    dataset = tmp_path / "dataset"
    run(load_recipe(recipe, engine="local"), dataset)
    (first, *_) = sorted(dataset.glob("weigh_words/*/*.parquet"))
    (row,) = pq.read_table(first).to_pylist()
    assert json.loads(row["known"]) == {"head": ON_CPU, "other_head": ON_CPU}


def test_places_of_several_nodes_are_recorded_once(recipe, tmp_path):
    """Messages after the end of the run don't change its record."""
    dataset = tmp_path / "dataset"
    run(load_recipe(recipe, engine="local"), dataset)
    (path,) = dataset.glob("runs/*.json")
    record = read_run(path)
    again = RecordOfThisRun(dataset, {**record, "state": "running", "finished_at": None})
    gpu = ModelPlace("head", "cuda (a GPU)", "bfloat16")
    for _ in range(2):
        again.add_places("weigh_words", [gpu, ModelPlace("head", "cpu", "float32")])
    places = [*ON_CPU, {"device": "cuda (a GPU)", "dtype": "bfloat16"}]
    assert read_run(path)["state"] == "running"
    assert read_run(path)["stages"][-1]["places"]["head"] == places
    again.finish("done")
    again.add_places("weigh_words", [ModelPlace("head", "cuda (late)", "bfloat16")])
    assert read_run(path)["state"] == "done"
    assert read_run(path)["stages"][-1]["places"]["head"] == places
