"""Integers too large for any table or machine are refused where they are given."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import UsageError


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (f"shard_videos=1{'0' * 300}", "whole numbers may be at most 9,223,372,036,854,775,807"),
        (
            f"split_clips.batch_rows=1{'0' * 30}",
            "whole numbers may be at most 9,223,372,036,854,775,807",
        ),
        (
            f"download_videos.max_bytes=-1{'0' * 30}",
            "whole numbers may be at most 9,223,372,036,854,775,807",
        ),
        ("shard_videos=1000001", "shard_videos: Input should be less than or equal to 1000000"),
        ("ray.num_cpus=1000000", "ray.num_cpus: Input should be less than or equal to 100000"),
        (
            "log_megabytes=1000000000",
            "log_megabytes: Input should be less than or equal to 100000000",
        ),
    ],
)
def test_absurdly_large_number_is_refused(tmp_path: Path, setting: str, said: str):
    path = tmp_path / "r.yaml"
    path.write_text(yaml.safe_dump({"stages": {"download_videos": {}, "split_clips": {}}}), "utf-8")
    with pytest.raises(UsageError, match=said):
        load_recipe(path, overrides=[setting])


def test_text_of_many_digits_stays_text(tmp_path: Path):
    path = tmp_path / "r.yaml"
    path.write_text(f"description: '{'9' * 40}'\nstages: {{download_videos: {{}}}}\n", "utf-8")
    assert load_recipe(path).recipe.description == "9" * 40


def test_import_limits_shard_videos(tmp_path: Path):
    done = CliRunner().invoke(
        app,
        ["import", str(tmp_path), "f", "--format", "internvid", "--shard-videos", f"1{'0' * 300}"],
    )
    assert done.exit_code == 2
