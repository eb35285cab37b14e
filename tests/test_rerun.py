"""What is recomputed when something changes, and what never is, counted in decoded frames."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from clipmill.jobs.cli import app
from clipmill.jobs.run import run
from clipmill.jobs.subset import create
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.status import status_report
from clipmill.schemas.errors import UsageError
from tests.conftest import Made

MOST_DECODED = 1.02


@pytest.fixture
def dataset(made: Made, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return Path(shutil.copytree(made.dataset, tmp_path / "dataset"))


def run_again(dataset: Path, *overrides: str) -> dict[str, int]:
    """Runs with changed settings; returns the new files by folder, except the index."""
    before = set(dataset.rglob("*.parquet"))
    run(load_recipe(recipe_path("demo"), overrides=overrides, engine="local"), dataset)
    made: dict[str, int] = {}
    for path in set(dataset.rglob("*.parquet")) - before:
        label = path.relative_to(dataset).parts[0]
        made[label] = made.get(label, 0) + 1
    made.pop("index", None)
    return made


def totals(dataset: Path) -> dict:
    return status_report(dataset)["totals"]


def test_source_frames_are_decoded_once_from_download_to_scores(made):
    counted = totals(made.dataset)
    assert counted["source_frames"] == sum(film.n_frames for film in made.films)
    assert 1 <= counted["decoded_frames"] / counted["source_frames"] <= MOST_DECODED


def test_nothing_is_done_twice(dataset):
    assert run_again(dataset) == {}


@pytest.mark.parametrize(
    ("override", "redone"),
    [
        (
            "split_clips.threshold=40",
            {
                "split_clips",
                "shots",
                "tag_clips",
                "caption_frames",
                "summarize_captions",
                "embed_clips",
                "score_similarity",
                "score_aesthetic",
                "hash_frames",
            },
        ),
        (
            "caption_frames.max_new_tokens=15",
            {"caption_frames", "summarize_captions", "score_similarity"},
        ),
        ("score_aesthetic.over_frames=mean", {"score_aesthetic"}),
    ],
)
def test_change_recomputes_only_what_depends_on_it_without_decoding(dataset, override, redone):
    """A new threshold, captioner or scorer opens no video: 0 frames are decoded."""
    before = totals(dataset)["decoded_frames"]
    assert set(run_again(dataset, override)) == redone
    assert totals(dataset)["decoded_frames"] == before


def test_new_threshold_makes_other_clips_from_the_same_scan(dataset):
    def clips() -> list[str]:
        with open_catalog(dataset) as catalog:
            return (
                catalog.ask("SELECT clip_id FROM clips ORDER BY 1")
                .read_all()["clip_id"]
                .to_pylist()
            )

    before = clips()
    run_again(dataset, "split_clips.threshold=200")
    after = clips()
    # At a threshold that nothing reaches, every film is one clip.
    assert len(after) == 2 < len(before)
    run_again(dataset)
    assert clips() == before


def test_missing_frames_are_decoded_again(dataset):
    """Dropped frames cost a decode, not the run, and the captions are the same."""

    def captions() -> list[dict]:
        with open_catalog(dataset) as catalog:
            return (
                catalog.ask("SELECT clip_id, caption_coarse FROM clips ORDER BY 1")
                .read_all()
                .to_pylist()
            )

    before, decoded = captions(), totals(dataset)["decoded_frames"]
    for path in (dataset / "frames").rglob("*.parquet"):
        path.unlink()
    made = run_again(dataset, "caption_frames.max_new_tokens=15")
    assert set(made) == {"caption_frames", "summarize_captions", "score_similarity"}
    assert captions() == before
    assert totals(dataset)["decoded_frames"] > decoded


def test_dropping_frames_is_a_setting(made, tmp_path):
    films = Path(made.loaded.recipe.sources[0].path)
    loaded = load_recipe(
        recipe_path("demo"), sources=[str(films)], engine="local", overrides=["drop_frames=true"]
    )
    run(loaded, tmp_path / "dataset")
    assert list((tmp_path / "dataset" / "frames").rglob("*.parquet")) == []
    with open_catalog(tmp_path / "dataset") as catalog:
        (left,) = catalog.execute("SELECT count(*) FROM clips WHERE caption IS NULL").fetchone()
    assert left == 0


def test_every_shard_records_its_counts(made):
    for path in made.dataset.rglob("[!.]*.parquet"):
        if path.parts[-3] in made.plan.by_label:
            assert b"clipmill" in pq.read_metadata(path).metadata


def test_timestamps_are_the_same_without_kept_frames(made, tmp_path):
    """The timestamps-only recipe keeps no picture and needs no model."""
    films = Path(made.loaded.recipe.sources[0].path)
    loaded = load_recipe(
        recipe_path("timestamps-only"),
        sources=[str(films)],
        engine="local",
        overrides=["split_clips.detector=content"],
    )
    run(loaded, tmp_path / "dataset")
    query = "SELECT clip_id, start_frame, end_frame, motion, sharpness FROM clips ORDER BY 1"
    rows = []
    for dataset in (tmp_path / "dataset", made.dataset):
        with open_catalog(dataset) as catalog:
            rows.append(catalog.ask(query).read_all().to_pylist())
    assert rows[0] == rows[1]
    kept = [
        pq.read_metadata(path).num_rows
        for path in (tmp_path / "dataset" / "frames").rglob("*.parquet")
    ]
    assert set(kept) == {0}


DARK = """
scorers:
  aesthetic:
    name: the demo's head, darkest of 2 frames
    accepts:
      - stage: score_aesthetic
        settings: {{over_frames: min}}
        upstream: {{embed_clips: {{settings: {{frames_per_clip: 2}}}}}}
    add:
      embed_2: {{stage: embed_clips, model: {models}/clip, frames_per_clip: 2}}
      dark: {{stage: score_aesthetic, embeddings: embed_2, over_frames: min,
              head: {models}/aesthetic.safetensors}}
rules:
  - where: aesthetic > 0
"""


@pytest.mark.slow
def test_command_printed_by_a_refused_subset_adds_only_its_scorer(dataset, tmp_path, capsys):
    """Typed as shown, it computes only the missing scores, and then the subset is created."""
    recipe = tmp_path / "dark.yaml"
    recipe.write_text(DARK.format(models=recipe_path("demo").parent.parent / "demo" / "models"))

    with pytest.raises(UsageError, match="dark was made for the demo's head, darkest") as refused:
        create(dataset, str(recipe))
    (command,) = [line for line in str(refused.value).splitlines() if "clipmill run" in line]
    before, decoded = set(dataset.rglob("*.parquet")), totals(dataset)["decoded_frames"]
    app(shlex.split(command)[1:], standalone_mode=False)
    made = {path.relative_to(dataset).parts[0] for path in set(dataset.rglob("*.parquet")) - before}
    assert made - {"index"} == {"embed_2", "dark"}
    assert totals(dataset)["decoded_frames"] == decoded
    create(dataset, str(recipe))
    with open_catalog(dataset) as catalog:
        ((clips, scored),) = catalog.execute("SELECT count(*), count(dark) FROM clips").fetchall()
    assert clips == scored > 2
    capsys.readouterr()
    app(["run", "--dataset", str(dataset)], standalone_mode=False)
    assert "Nothing to do" in capsys.readouterr().err
