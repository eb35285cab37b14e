"""A media file that is missing when it is read, because its disk may come back."""

from __future__ import annotations

import json
import shutil

import pytest
import yaml

from tests.faults.kill_world import clipmill
from tests.media import Scene, cached


@pytest.mark.slow
def test_video_on_a_missing_disk_is_retried_when_it_is_back(tmp_path):
    """The failure is transient, and its message has a remedy."""
    film = cached((Scene("red", 2.0), Scene("blue", 2.0)), size=(320, 240), rate=10)[0]
    disk, unmounted = tmp_path / "disk", tmp_path / "unmounted"
    disk.mkdir()
    shutil.copy(film, disk / "film.mp4")
    recipe, dataset = tmp_path / "clips.yaml", tmp_path / "dataset"
    listing = tmp_path / "films.jsonl"
    listing.write_text(json.dumps({"path": str(disk / "film.mp4")}) + "\n")
    stages = {"download_videos": {"min_duration_seconds": 1, "min_height": None}}

    def run() -> None:
        recipe.write_text(
            yaml.safe_dump(
                {"sources": [str(listing)], "engine": "local", "stages": stages}, sort_keys=False
            )
        )
        ran = clipmill("run", recipe, "--dataset", dataset)
        assert ran.returncode == 0, ran.stderr

    def failures() -> list[dict]:
        listed = clipmill("failures", dataset, "--format", "json")
        assert listed.returncode == 0, listed.stderr
        return json.loads(listed.stdout)

    run()
    disk.rename(unmounted)
    stages["split_clips"] = {}
    run()
    (failure,) = failures()
    assert (failure["stage"], failure["kind"]) == ("split_clips", "transient")
    assert failure["message"].startswith(f"{disk / 'film.mp4'}: no such file; mount its disk")
    unmounted.rename(disk)
    retried = clipmill("retry", dataset, "--kind", "transient")
    assert retried.returncode == 0, retried.stderr
    assert failures() == []
    counted = clipmill("sql", dataset, "SELECT count(*) AS n FROM clips", "--format", "json")
    assert json.loads(counted.stdout) == [{"n": 2}]
