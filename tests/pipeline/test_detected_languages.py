"""`language` in the views: the source's, else the detected one; gates and quotas go by it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

import clipmill
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.catalog.index_writer import update_index
from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.recipe import load_recipe
from tests.media import Scene, render

GERMAN = "Zwei Kinder spielen im Garten mit einem Ball"
# By file: title, declared language, the language that is shown, and its detected one.
VIDEOS = {
    "a": (GERMAN, None, "de", "de"),
    "b": (GERMAN, "fr", "fr", "de"),
    "c": ("IMG 1234", " ", None, None),
    "d": ("How to sharpen a kitchen knife", "", "en", "en"),
}


def recipe(folder: Path, **stages: object) -> Path:
    path = folder / "languages.yaml"
    own = {"download_videos": {"min_duration_seconds": None, "min_height": None}}
    path.write_text(yaml.safe_dump({"stages": {**own, **stages}}, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four videos, of which a gate lets the German clip through."""
    pytest.importorskip("py3langid", reason="detects languages; comes with clipmill[signals]")
    folder = tmp_path_factory.mktemp("languages")
    rows = []
    for name, (title, declared, _, _) in VIDEOS.items():
        render(folder / f"{name}.mp4", (Scene("red" if name < "c" else "blue", 1.0),), rate=10)
        rows.append({"path": f"{name}.mp4", "title": title, "language": declared, "category": name})
        rows[-1]["caption"] = "two children are playing with a ball" if name == "a" else None
    # Otherwise these would be one video: the same bytes.
    for number, name in enumerate(VIDEOS):
        with (folder / f"{name}.mp4").open("ab") as file:
            file.write(b"\0\0\0\x09free" + bytes([number]))
    (folder / "videos.jsonl").write_text("\n".join(map(json.dumps, rows)))
    stages = {
        "detect_language": {},
        "split_clips": {},
        "detect_caption_language": {"caption": "split_clips.caption_given"},
        "hash_frames": {"where": "language = 'de' AND language_confidence > 0.9"},
    }
    done = clipmill.run(
        recipe(folder, **stages),
        sources=[folder / "videos.jsonl"],
        dataset=folder / "dataset",
        engine="local",
    )
    assert (done["hash_frames"]["kept"], done["hash_frames"]["skipped"]) == (1, 3)
    return folder / "dataset"


def test_language_of_the_source_is_kept_and_another_filled_in(dataset):
    shown = sorted((name, one[2], one[3]) for name, one in VIDEOS.items())
    for _ in range(2):
        with open_catalog(dataset) as catalog:
            for view in ("clips", "videos"):
                query = f"SELECT category, language, language_detected FROM {view} ORDER BY 1"
                assert catalog.execute(query).fetchall() == shown
            found = catalog.execute(
                "SELECT language_confidence > 0.9, language_detected_reason FROM videos "
                "ORDER BY category"
            ).fetchall()
            assert found[0] == (True, None)
            assert found[2] == (None, "too short: 3 letters")
            given = "SELECT caption_language, caption_language_reason FROM clips ORDER BY category"
            assert catalog.execute(given).fetchall()[:2] == [("en", None), (None, "no text")]
        # Once more with the index.
        assert update_index(dataset) is not None


def test_quotas_count_by_the_filled_language(dataset, tmp_path):
    path = tmp_path / "quota.yaml"
    rules = [{"quota": {"per": "language", "clips": {"de": 1, "en": 1}}}]
    path.write_text(yaml.safe_dump({"rules": rules}))
    subset = clipmill.open(dataset).create_subset(path, name="two")
    counts = {one["language"]: one["clips"] for one in subset.info["counts"]["language"]}
    assert counts == {"de": 1, "en": 1}


def test_gate_on_the_language_waits_for_the_stage_that_detects_it(tmp_path):
    def columns(*labels: str) -> dict[str, str]:
        from clipmill.pipeline.recipes.gates import check_gates

        stages = {label: {} for label in labels}
        stages |= {"split_clips": {}, "hash_frames": {"where": "language = 'de'"}}
        (gate,) = check_gates(build_plan(load_recipe(recipe(tmp_path, **stages))).steps)
        return gate.columns

    assert columns() == {"language": "download_videos"}
    assert columns("detect_language") == {"language": "detect_language"}
