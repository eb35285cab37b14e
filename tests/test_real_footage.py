"""The full recipe over real files: many codecs and containers, late starts, variable rates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipmill.jobs.run import run
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe

SHARED = Path(__file__).resolve().parents[2] / "shared" / "videos"
# Includes short and small videos.
RULES = ("download_videos.min_duration_seconds=null", "download_videos.min_height=null")
# Of 51 hand-verified cuts PySceneDetect's content detector finds 43 at 27: the rest are within 0.6
# s of another or in near darkness. test_split_clips compares the cuts themselves.
LEAST_FOUND = 43
# The results of the engine that ran first: the other one must have the same.
_by_engine: dict[str, list] = {}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not SHARED.is_dir(), reason="the real footage is not next to this checkout"),
]


@pytest.mark.parametrize("engine", ["ray", "local"])
def test_every_real_file_is_kept_or_has_a_reason(engine, tmp_path):
    files = sorted(
        path for path in SHARED.iterdir() if path.suffix in (".mp4", ".webm", ".mov", ".ts")
    )
    assert len(files) == 18
    loaded = load_recipe(recipe_path("demo"), overrides=RULES, sources=[str(SHARED)], engine=engine)
    run(loaded, tmp_path / "dataset")
    with open_catalog(tmp_path / "dataset") as catalog:

        def ask(query: str) -> list[dict]:
            return catalog.ask(query).read_all().to_pylist()

        videos = {Path(row["path"]).name: row for row in ask("SELECT * FROM videos")}
        clips = ask("SELECT * FROM clips")
        failures = ask("SELECT * FROM failures")
        rejections = ask("SELECT * FROM rejections")
    assert {path.name for path in files} == set(videos), (failures, rejections)
    assert failures == []
    assert rejections == []
    assert {clip["video_id"] for clip in clips} == {v["video_id"] for v in videos.values()}
    for clip in clips:
        assert clip["start_seconds"] < clip["end_seconds"]
        for column in (
            "caption",
            "caption_coarse",
            "captions_fine",
            "tags",
            "similarity",
            "aesthetic",
            "motion",
            "sharpness",
            "brightness",
        ):
            assert clip[column] is not None, (clip["clip_id"], column)
    check_cuts(videos, clips)
    plain = sorted(
        (c["clip_id"], c["start_frame"], c["end_frame"], c["motion"], c["sharpness"]) for c in clips
    )
    assert _by_engine.setdefault("first", plain) == plain
    late = [c for c in clips if c["video_id"] == videos["googlework_short_35s.mp4"]["video_id"]]
    assert min(c["start_seconds"] for c in late) == pytest.approx(0.834, abs=0.001)


def check_cuts(videos: dict[str, dict], clips: list[dict]) -> None:
    """Clips begin at the hand-verified cuts, by time and by frame number."""
    found = wanted = 0
    for path in sorted((SHARED / "cuts").glob("*.json")):
        truth = json.loads(path.read_text())
        video = videos[truth["video"]]
        # A clip's times count from the container's start; the cuts' times are the file's own.
        clock = video["clock_starts_at_seconds"] or 0.0
        starts = {
            (c["start_frame"], clock + c["start_seconds"])
            for c in clips
            if c["video_id"] == video["video_id"]
        }
        for cut in truth["hard_cuts"]:
            wanted += 1
            found += any(
                abs(frame - cut["frame"]) <= 1 and abs(seconds - cut["time_s"]) < 0.06
                for frame, seconds in starts
            )
    assert wanted == 51
    assert found >= LEAST_FOUND
