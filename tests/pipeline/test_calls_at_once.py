"""Stages whose transform is called from several threads, over batches and shards."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from clipmill.jobs.run import run
from clipmill.pipeline.dataset.shards import ShardMetadata
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import ClipmillError
from tests.faults.kill_world import clipmill

HERE = Path(__file__).parent


def recipe(folder: Path, sources: list[str], *, engine: str = "local", **settings: object) -> Path:
    (folder / "urls.txt").write_text("".join(f"https://{name}\n" for name in sources))
    path = folder / "words.yaml"
    stages = {
        "fetch_words": {"stage": f"{HERE / 'own_stages.py'}:FetchWords"},
        "cut_words": {"stage": f"{HERE / 'own_stages.py'}:CutWords"},
        "ask_words": {"stage": f"{HERE / 'calling_stages.py'}:AskWords", **settings},
        "count_said": {"stage": f"{HERE / 'calling_stages.py'}:CountSaid"},
    }
    of_run = {"shard_videos": 2, "engine": engine, "ray": {"num_cpus": 2}, "stall_seconds": 0.5}
    path.write_text(
        yaml.safe_dump(
            {"sources": [{"path": "urls.txt"}], **of_run, "stages": stages}, sort_keys=False
        )
    )
    return path


def shards(dataset: Path, label: str) -> list[Path]:
    return sorted(dataset.glob(f"{label}/*/*.parquet"))


def rows(dataset: Path, label: str) -> list[dict]:
    return [row for path in shards(dataset, label) for row in pq.read_table(path).to_pylist()]


def outcomes(dataset: Path) -> dict[str, str]:
    return {
        row["clip_id"]: (row["error"] or {}).get("kind") or row["said"]
        for row in rows(dataset, "ask_words")
    }


def most_at_once(diary: Path) -> int:
    running = most = 0
    for line in diary.read_text().splitlines():
        running += 1 if line[0] == "+" else -1
        most = max(most, running)
    return most


SOURCES = [f"v{number}.test/?clips=5" for number in range(8)]


@pytest.fixture(scope="module")
def one_by_one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("one")
    run(load_recipe(recipe(folder, SOURCES, calls=1, batch_rows=64)), folder / "d")
    return rows(folder / "d", "ask_words")


@pytest.mark.parametrize("batch_rows", [1, 3])
def test_calls_span_batches_and_shards_and_give_the_same_rows(one_by_one, tmp_path, batch_rows):
    diary = tmp_path / "diary"
    calls_a_shard = -(-10 // batch_rows)
    path = recipe(
        tmp_path,
        SOURCES,
        batch_rows=batch_rows,
        calls=16,
        together=calls_a_shard + 2,
        diary=str(diary),
    )
    run(load_recipe(path), tmp_path / "d")
    assert rows(tmp_path / "d", "ask_words") == one_by_one  # the same order, too
    assert calls_a_shard < most_at_once(diary) <= 16
    footers = [ShardMetadata.read(path) for path in shards(tmp_path / "d", "ask_words")]
    assert [footer.requests for footer in footers] == [10] * 4  # each shard's own
    counted = rows(tmp_path / "d", "count_said")
    assert len(counted) == 40
    assert len({row["thread"] for row in counted}) == 1
    assert list((tmp_path / "d" / "journal").glob("*")) == []


def test_time_is_divided_among_the_shards_in_flight(tmp_path):
    """Calls that overlap take the worker's time once."""
    path = recipe(tmp_path, SOURCES, pace_seconds=0.1, calls=16)
    run(load_recipe(path), tmp_path / "d")
    footers = [ShardMetadata.read(path) for path in shards(tmp_path / "d", "ask_words")]
    assert 0.3 < sum(footer.seconds for footer in footers) < 40 * 0.2
    assert all(footer.seconds > 0 for footer in footers)


def test_bad_row_fails_only_itself(tmp_path):
    path = recipe(tmp_path, ["a.test/?clips=4", "b.test/?clips=4&ask=fail"], batch_rows=3)
    run(load_recipe(path), tmp_path / "d")
    found = outcomes(tmp_path / "d")
    assert {clip for clip, said in found.items() if not said.startswith("said")} == {"v-b-1"}
    assert len(found) == 8


def test_hang_of_one_call_is_found_while_others_go_on(tmp_path, capfd):
    sources = ["a.test/", "b.test/?ask=hang", *(f"c{n}.test/?clips=9" for n in range(4))]
    run(load_recipe(recipe(tmp_path, sources, pace_seconds=0.05, calls=4)), tmp_path / "d")
    (log,) = (tmp_path / "d").glob("logs/*/driver.jsonl")
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    named = [line for line in lines if line["event"] == "standstill"]
    assert ("ask_words", "000000", "v-b-1") in {
        (line["step"], line["shard"], line.get("key")) for line in named
    }
    assert "ask_words makes no progress" in capfd.readouterr().err
    assert len(outcomes(tmp_path / "d")) == 4 + 36


def test_error_in_one_call_ends_the_run_and_the_rest_is_resumed(tmp_path):
    path = recipe(tmp_path, [*SOURCES, "x.test/?ask=stop"], pace_seconds=0.01)
    with pytest.raises(ClipmillError, match="no further row"):
        run(load_recipe(path), tmp_path / "d")
    journals = [json.loads(file.read_text()) for file in (tmp_path / "d" / "journal").glob("*")]
    assert not any(died for journal in journals for died in journal["started"].values())
    assert list((tmp_path / "d").glob("ask_words/*/.*")) == []  # no temporary file
    path = recipe(tmp_path, [*SOURCES, "x.test/?ask=stop"], calm=True)
    run(load_recipe(path), tmp_path / "d")
    assert len(outcomes(tmp_path / "d")) == 42


@pytest.mark.slow
def test_row_that_kills_its_process_is_given_up_and_no_other(tmp_path):
    """The second death comes when it is alone, so those in flight with it are innocent."""
    diary = tmp_path / "diary"
    sources = [*SOURCES[:3], "k.test/?clips=5&ask=die", *SOURCES[3:]]
    path = recipe(tmp_path, sources, pace_seconds=0.1, calls=8, diary=str(diary))
    for _ in range(2):
        assert clipmill("run", path, "--dataset", tmp_path / "d").returncode == 9
    second = diary.read_text()
    assert clipmill("run", path, "--dataset", tmp_path / "d").returncode == 0
    found = outcomes(tmp_path / "d")
    assert {clip for clip, said in found.items() if not said.startswith("said")} == {"v-k-1"}
    assert found["v-k-1"] == "crash"
    assert len(found) == 45
    assert second.splitlines()[-1] == "+v-k-1"  # nothing else was in flight


@pytest.mark.slow
def test_row_that_kills_its_worker_on_ray_is_given_up_and_no_other(tmp_path):
    sources = [*SOURCES[:3], "k.test/?clips=5&ask=die", *SOURCES[3:]]
    path = recipe(tmp_path, sources, engine="ray", pace_seconds=0.05, calls=8)
    run(load_recipe(path), tmp_path / "d")
    found = outcomes(tmp_path / "d")
    assert {clip for clip, said in found.items() if not said.startswith("said")} == {"v-k-1"}
    assert len(found) == 45
    assert len(rows(tmp_path / "d", "count_said")) == 44
