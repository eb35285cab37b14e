"""A broken GPU fails only the rows that broke it."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from clipmill.jobs.run import run
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import RowFailed
from clipmill.stages.models.device_errors import DeviceBroken, raise_if_broken
from clipmill.stages.models.engines.gathering import Gathered
from clipmill.stages.models.engines.requests import outcome_of
from tests.faults.kill_world import clipmill

HERE = Path(__file__).parent
NAMES = ("a", "b", "c", "d", "e", "f", "g")


def recipe(folder: Path, engine: str, *, in_batches: bool, breaking: str) -> Path:
    urls = [f"https://{name}.test/{'?break=1' if name in breaking else ''}" for name in NAMES]
    (folder / "urls.txt").write_text("\n".join(urls) + "\n")
    path = folder / "captions.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "sources": [{"path": "urls.txt"}],
                "shard_videos": 8,
                "engine": engine,
                "ray": {"num_cpus": 2},
                "stages": {
                    "fetch_words": {"stage": f"{HERE / 'own_stages.py'}:FetchWords"},
                    "caption_words": {
                        "stage": f"{HERE / 'broken_stages.py'}:CaptionWords",
                        "in_batches": in_batches,
                    },
                },
            },
            sort_keys=False,
        )
    )
    return path


def outcomes(dataset: Path) -> dict[str, str]:
    (shard,) = dataset.glob("caption_words/*/*.parquet")
    return {
        row["video_id"].removeprefix("v-"): (row["error"] or {}).get("kind") or row["caption"]
        for row in pq.read_table(shard).to_pylist()
    }


@pytest.mark.slow  # three processes; `make test` has a row that ends its process (test_runner.py)
def test_local_run_ends_and_the_same_command_resumes_it(tmp_path):
    """Two runs end at the row, the third records it as a crash; no neighbour is affected."""
    path, dataset = recipe(tmp_path, "local", in_batches=True, breaking="b"), tmp_path / "d"
    for _ in range(2):
        ran = clipmill("run", path, "--dataset", dataset)
        assert ran.returncode == 1
        said = ran.stderr[ran.stderr.index("Error: ") :]
        assert "AcceleratorError: CUDA error: device-side assert triggered. Run the same" in said
        assert "Traceback" not in ran.stderr
    ran = clipmill("run", path, "--dataset", dataset)
    assert ran.returncode == 0, ran.stderr
    assert outcomes(dataset) == {name: "crash" if name == "b" else f"{name}.test" for name in NAMES}
    assert list((dataset / "journal").glob("*")) == []


@pytest.mark.slow
def test_ray_starts_another_worker(tmp_path):
    """The run completes: the row is tried twice, and the others have their captions."""
    loaded = load_recipe(recipe(tmp_path, "ray", in_batches=False, breaking="b"))
    run(loaded, tmp_path / "d")
    assert outcomes(tmp_path / "d") == {
        name: "crash" if name == "b" else f"{name}.test" for name in NAMES
    }


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: an illegal memory access was encountered",
        "CUDA error: misaligned address",
        "CUDA error: unspecified launch failure",
        "HIP error: an illegal memory access",
        "CUDA error: uncorrectable ECC error encountered",
    ],
)
def test_errors_that_break_the_device_are_recognised(said):
    with pytest.raises(DeviceBroken, match=said):
        raise_if_broken(RuntimeError(f"{said}\nSearch for it"))
    with pytest.raises(DeviceBroken):
        raise_if_broken(torch.AcceleratorError(said))


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: invalid argument"),
        torch.OutOfMemoryError("CUDA out of memory"),
        ValueError("an illegal instruction"),
        RuntimeError("the caption said: illegal instruction"),
    ],
)
def test_other_errors_fail_only_their_row(error):
    raise_if_broken(error)

    def compute(items: list[int]) -> list[int]:
        if 2 in items:
            raise error
        return items

    found = Gathered(2, list, compute).submit_all([(item, 0, item) for item in (1, 2, 3)])
    assert [type(outcome_of(one)) for one in found] == [int, RowFailed, int]
