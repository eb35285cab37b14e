"""Everything in docs/subsets.md works as shown, and its table lists what is shipped."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pytest

from clipmill.jobs.cli import app
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, names
from clipmill.pipeline.subsets.scorers import resolve
from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe
from tests.conftest import Made
from tests.scored_catalog import aesthetic, build, embeddings, own, random_clips, similarity

DOCS = Path(__file__).resolve().parent.parent / "docs"
TEXT = (DOCS / "subsets.md").read_text()
B32 = "open_clip:ViT-B-32/openai"


def block(language: str, beginning: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", TEXT, re.S)
    (text,) = [text for text in found if text.startswith(beginning)]
    return text


@pytest.mark.parametrize("beginning", ["description: Good-looking", "extends: data-juicer"])
def test_documented_recipes_load_and_find_their_scorers(tmp_path, beginning):
    (tmp_path / "mine.yaml").write_text(block("yaml", beginning))
    recipe = load_subset_recipe(tmp_path / "mine.yaml", ready_made=SUBSET_FOLDER)
    columns = dict.fromkeys(("aesthetic", "similarity", "nsfw", "flow_farneback"), (0.0, 1.0))
    made = [
        embeddings(model=B32, frames=3),
        similarity(model=B32, over="cosine"),
        own("nsfw"),
        aesthetic(over="max" if "Good" in beginning else "mean"),
        own("flow_farneback"),
    ]
    build(tmp_path / "dataset", random_clips(3, columns), made, shards=1)
    with open_catalog(tmp_path / "dataset") as catalog:
        assert resolve(recipe.scorers, catalog, recipe="mine").keys() == recipe.scorers.keys()


@pytest.mark.slow
def test_documented_stage_measures_flow_under_the_recipes_label(
    made: Made, tmp_path, monkeypatch, capsys
):
    """The printed command, typed as shown; a film of moving shapes has flow."""
    shutil.copytree(made.dataset, tmp_path / "my-dataset")
    (tmp_path / "measure_flow.py").write_text(block("python", "# measure_flow.py"))
    monkeypatch.chdir(tmp_path)
    (command,) = [
        line
        for line in TEXT.splitlines()
        if line.startswith("clipmill run") and "measure_flow.py" in line
    ]
    app(command.split()[1:], standalone_mode=False)
    with open_catalog(tmp_path / "my-dataset") as catalog:
        rows = catalog.execute(
            "SELECT flow_farneback, motion FROM clips ORDER BY motion"
        ).fetchall()
    flows = [flow for flow, _ in rows]
    assert all(flow is not None and flow >= 0 for flow in flows)
    assert flows[0] < max(flows)
    assert max(flows) > 0.1


def test_documented_flow_is_in_pixels_of_the_video():
    """A picture shifted by 4 of its pixels, in a video twice as large, has moved by 8."""
    space: dict = {}
    exec(block("python", "# measure_flow.py"), space)
    rng = np.random.default_rng(0)
    picture = cv2.GaussianBlur(rng.integers(0, 255, (120, 200), np.uint8), (0, 0), 5)
    picture = cv2.normalize(picture, None, 0, 255, cv2.NORM_MINMAX)
    frames = [
        {"jpeg": cv2.imencode(".jpg", np.roll(picture, 4 * i, axis=1))[1].tobytes()}
        for i in range(3)
    ]
    with space["MeasureFlow"]().open(None) as transform:
        (row,) = transform(
            pa.table({"clip_id": ["a"], "height": [240], "frames": [frames]})
        ).to_pylist()
    assert row["flow"] == pytest.approx(8, rel=0.15)


def test_table_lists_every_ready_made_recipe_and_its_columns():
    lines = {match[1]: match[0] for match in re.finditer(r"^\| `([a-z0-9-]+)` \|.*$", TEXT, re.M)}
    assert set(lines) == set(names(SUBSET_FOLDER))
    for name, line in lines.items():
        recipe = load_subset_recipe(SUBSET_FOLDER / f"{name}.yaml", ready_made=SUBSET_FOLDER)
        assert ("**Unverified**" in line) == (not recipe.verified), name
        own = {role for role, spec in recipe.scorers.items() if not (spec.add or spec.set)}
        assert own == set(
            re.findall(r"`(\w+)`", line.split("own:")[1]) if "own:" in line else ()
        ), name
        signals = {role for role, spec in recipe.scorers.items() if spec.set}
        said = re.search(r"signals?: ([^;|.]*)", line)
        assert signals == set(re.findall(r"`(\w+)`", said[1]) if said else ()), name


def test_documented_links_have_targets():
    for link in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (DOCS / link).exists(), link
