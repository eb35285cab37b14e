"""A recipe of small stages, and fixtures to run it and read its results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clipmill.jobs.run import run
from clipmill.pipeline.dataset.shards import ShardMetadata, committed_shards, shard_path
from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.recipe import load_recipe

OWN = Path(__file__).parent / "own_stages.py"
STAGES = {
    "fetch_words": {"stage": f"{OWN}:FetchWords"},
    "cut_words": {"stage": f"{OWN}:CutWords"},
    "name_words": {"stage": f"{OWN}:NameWords"},
    "count_letters": {"stage": f"{OWN}:CountLetters"},
    "guess_words": {"stage": f"{OWN}:GuessWords"},
}


@dataclasses.dataclass
class Words:
    """A dataset made from a list of URLs by the small stages."""

    folder: Path
    urls: list[str]
    shard_videos: int = 3

    @property
    def dataset(self) -> Path:
        return self.folder / "dataset"

    def loaded(self, *overrides: str, engine: str = "local"):
        (self.folder / "urls.txt").write_text("\n".join(self.urls) + "\n")
        path = self.folder / "words.yaml"
        path.write_text(
            yaml.safe_dump(
                {
                    "sources": [{"path": "urls.txt"}],
                    "shard_videos": self.shard_videos,
                    "ray": {"num_cpus": 2},
                    "stages": STAGES,
                },
                sort_keys=False,
            )
        )
        return load_recipe(path, overrides=overrides, engine=engine)

    def run(self, *overrides: str, engine: str = "local", **details: Any) -> bool:
        return run(self.loaded(*overrides, engine=engine), self.dataset, **details)

    def table(self, label: str, *overrides: str) -> list[dict]:
        """Rows of a step's shards for the current recipe, oldest shard first."""
        folder = build_plan(self.loaded(*overrides)).by_label[label].folder(self.dataset)
        parts = [pq.read_table(shard_path(folder, name)) for name in committed_shards(folder)]
        return pa.concat_tables(parts).to_pylist() if parts else []

    def shards(self, label: str, *overrides: str) -> list[str]:
        step = build_plan(self.loaded(*overrides)).by_label[label]
        return committed_shards(step.folder(self.dataset))

    def metadata(self, label: str) -> list[ShardMetadata]:
        folder = build_plan(self.loaded()).by_label[label].folder(self.dataset)
        return [ShardMetadata.read(shard_path(folder, name)) for name in committed_shards(folder)]

    def files(self) -> dict[str, float]:
        """Modification times of all committed Parquet files."""
        return {
            str(path.relative_to(self.dataset)): path.stat().st_mtime_ns
            for path in self.dataset.rglob("*.parquet")
        }

    def records(self) -> list[dict]:
        return [
            json.loads(path.read_text()) for path in sorted((self.dataset / "runs").glob("*.json"))
        ]


@pytest.fixture
def words(tmp_path: Path):
    """`words("a?clips=3", …)`: a dataset whose URLs determine each source's outcome."""

    def make(*sources: str, shard_videos: int = 3) -> Words:
        urls = []
        for source in sources:
            name, _, query = source.partition("?")
            urls.append(f"https://{name}.test/?{query}")
        return Words(tmp_path, urls, shard_videos)

    return make
