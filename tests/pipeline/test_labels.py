"""Stage labels must not clash with other names in the dataset's folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import UsageError
from clipmill.schemas.folders import OWN_FOLDERS, RESERVED_LABELS

OWN = Path(__file__).parent / "own_stages.py"


def planned(folder: Path, *labels: str, **more: dict):
    """A plan of the small stages with this label for the last one."""
    stages = {
        "fetch_words": {"stage": f"{OWN}:FetchWords"},
        "cut_words": {"stage": f"{OWN}:CutWords"},
        **more,
        **{label: {"stage": f"{OWN}:NameWords"} for label in labels},
    }
    path = folder / "words.yaml"
    path.write_text(
        yaml.safe_dump({"sources": [{"path": "urls.txt"}], "stages": stages}, sort_keys=False)
    )
    return build_plan(load_recipe(path))


@pytest.mark.parametrize("label", [*sorted(RESERVED_LABELS), "Runs", "LOGS"])
def test_reserved_name_is_refused(tmp_path, label):
    with pytest.raises(UsageError, match=rf"stages\.{label}: a stage can't be named '{label}'"):
        planned(tmp_path, label)


@pytest.mark.parametrize("labels", [("two", "Two"), ("cut_words_2", "CUT_words")])
def test_names_that_a_file_system_may_confuse_are_refused(tmp_path, labels):
    with pytest.raises(UsageError, match="already taken"):
        planned(tmp_path, *labels)


@pytest.mark.parametrize("label", [".hidden", "a/b", "a b", "", "1st", "x" * 61])
def test_invalid_folder_name_is_refused(tmp_path, label):
    with pytest.raises(UsageError, match="a label "):
        planned(tmp_path, label)


@pytest.mark.parametrize("label", ["runs_2", "my_index", "x" * 60])
def test_other_names_are_accepted(tmp_path, label):
    assert label in planned(tmp_path, label).by_label


def test_another_stages_table_name_is_refused(tmp_path):
    with pytest.raises(UsageError, match="already taken"):
        planned(
            tmp_path, "seals", sign_words={"stage": f"{OWN.parent / 'two_tables.py'}:SignWords"}
        )


@pytest.mark.parametrize("stage", ["split_clips", "detect_speech", "transcribe_clips"])
def test_second_stage_with_the_same_inner_step_is_refused(tmp_path, stage):
    recipe = tmp_path / "twice.yaml"
    first = {"download_videos": {}, "split_clips": {}, "detect_speech": {}}
    twice = {**first, stage: {}, "again": {"stage": stage}}
    recipe.write_text(yaml.safe_dump({"stages": twice}, sort_keys=False))
    with pytest.raises(UsageError, match=rf"stages.again: a recipe can have one {stage} only"):
        build_plan(load_recipe(recipe))


def test_all_folders_of_a_run_are_known(words):
    """Each folder in a dataset is reserved or a stage's table."""
    data = words("a?clips=2", "x?fail=cut")
    data.run()
    found = {path.name for path in data.dataset.iterdir() if path.is_dir()}
    tables = {"fetch_words", "cut_words", "name_words", "count_letters", "guess_words"}
    assert {name for name in found - tables if not name.startswith(".")} <= OWN_FOLDERS
