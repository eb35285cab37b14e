"""Recipes: plain data, checked before anything starts, with helpful errors."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.recipe import LoadedRecipe, load_recipe
from clipmill.schemas.errors import UsageError
from tests.pipeline.conftest import OWN


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(textwrap.dedent(text))
    return path


def load(folder: Path, text: str, *overrides: str) -> LoadedRecipe:
    return load_recipe(write(folder, text), overrides=overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("stages: [", "not valid YAML"),
        ("- a\n- b\n", "expected a mapping"),
        ("stages: {}", "`stages` is empty"),
        ("sources: []", "stages: Field required"),
        ("stages: {split_clip: {}}", "did you mean split_clips"),
        ("stages: {split_clips: {}}\nengin: ray", "did you mean engine"),
        ("stages: {split_clips: {}}\nengine: spark", "'ray' or 'local'"),
        ("stages: {split_clips: {treshold: 3}}", "did you mean threshold"),
        ("stages:\n  split_clips: {}\n  split_clips: {}", "given twice"),
        ("stages: {split_clips: {}}\nshard_videos: 0", "greater than or equal to 1"),
        ("stages: {own: {stage: 'missing.py:X'}}", "no file"),
        ("stages: {own: {stage: 'no.such.module:X'}}", "cannot import no.such.module"),
        (f"stages: {{own: {{stage: '{OWN}:Nope'}}}}", "name it as `file.py:Class`"),
        ("x: !!python/object/apply:os.system ['true']\nstages: {a: {}}", "not valid YAML"),
    ],
)
def test_bad_recipe_is_one_clear_message(tmp_path, text, message):
    with pytest.raises(UsageError, match=r"(?s).*") as caught:
        load(tmp_path, text)
    assert message in str(caught.value)


def test_paths_are_relative_to_the_recipe_and_set_paths_to_the_working_directory(
    tmp_path, monkeypatch
):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    text = "stages: {download_videos: {}, split_clips: {}, caption_frames: {model: ./models/a}}"
    (tmp_path / "there").mkdir()
    loaded = load(tmp_path / "there", text)
    assert loaded.stages["caption_frames"].model.folder == str(tmp_path / "there/models/a")
    loaded = load(tmp_path / "there", text, "caption_frames.model=./models/a")
    assert loaded.stages["caption_frames"].model.folder == str(here / "models/a")


def test_recorded_recipe_equals_the_original(tmp_path):
    """The run's record is enough to run again with the same fingerprints."""
    text = """
        sources: {path: urls.txt}
        stages:
          download_videos: {min_height: null}
          split_clips: {threshold: 30}
          caption_frames: {model: ./models/a}
    """
    loaded = load(tmp_path, text)
    again = LoadedRecipe.from_record(loaded.record())
    first, second = build_plan(loaded), build_plan(again)
    assert [s.fingerprint for s in first.steps] == [s.fingerprint for s in second.steps]


def test_fingerprints_depend_on_a_models_bytes_not_its_path(tmp_path):
    def fingerprint(folder: str) -> str:
        loaded = load(
            tmp_path,
            "stages: {download_videos: {}, split_clips: {}, "
            f"caption_frames: {{model: ./{folder}}}}}",
        )
        return build_plan(loaded).by_label["caption_frames"].fingerprint

    for name, weights in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(weights)
    assert fingerprint("a") == fingerprint("b") != fingerprint("c")


def test_only_settings_about_pixels_change_the_decode_pass(tmp_path):
    """A new threshold gives another split of the same scan."""
    text = "stages: {download_videos: {}, split_clips: {}}"
    plans = [
        build_plan(load(tmp_path, text, *overrides)).by_label
        for overrides in (
            [],
            ["split_clips.threshold=35"],
            ["split_clips.min_clip_seconds=2"],
            ["split_clips.frame_quality=80"],
        )
    ]
    scans = [plan["scan_videos"].fingerprint for plan in plans]
    splits = [plan["split_clips"].fingerprint for plan in plans]
    assert scans[0] == scans[1] == scans[2] != scans[3]
    assert len(set(splits)) == 4


BASE = "stages: {download_videos: {}, split_clips: {}, embed_clips: {model: ./models/a}}"


def test_set_adds_a_stage_at_the_end_of_a_recipe(tmp_path, monkeypatch):
    """Its settings may precede its name; paths are relative to the working directory."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "own_stages.py").write_text(OWN.read_text())
    loaded = load(
        tmp_path,
        BASE,
        "dark.over_frames=min",
        "dark.stage=score_aesthetic",
        "dark.head=./v1.pth",
        "words.stage=./own_stages.py:CountLetters",
    )
    assert list(loaded.stages) == ["download_videos", "split_clips", "embed_clips", "dark", "words"]
    assert loaded.stages["dark"].head.path == str(here / "v1.pth")
    assert loaded.stages["dark"].over_frames == "min"
    assert loaded.stages["embed_clips"].model.folder == str(tmp_path / "models/a")
    assert type(loaded.stages["words"]).__name__ == "CountLetters"


def test_stage_can_be_added_to_a_recorded_recipe(tmp_path):
    """Existing stages keep their fingerprints, so only the new stage has work to do."""
    loaded = load(tmp_path, BASE)
    more = LoadedRecipe.from_record(
        loaded.record(), ["dark.stage=score_aesthetic", "dark.head=./v1.pth"]
    )
    assert more.name == loaded.name
    before, after = build_plan(loaded).by_label, build_plan(more).by_label
    assert {label: step.fingerprint for label, step in before.items()} == {
        label: step.fingerprint for label, step in after.items() if label != "dark"
    }
    assert list(after["dark"].upstream) == ["split_clips", "embed_clips"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["dark.head=./v1.pth"], "give --set dark.stage=NAME, too"),
        (["embed_clip.model=./b"], "did you mean embed_clips"),
        (["dark.stage=score_esthetic"], "did you mean score_aesthetic"),
        (["dark.stage=score_aesthetic"], "stages.dark: head: Field required"),
        (["dark.stage=score_aesthetic", "dark.hed=./v1.pth"], "did you mean head"),
        (["no-word.stage=score_aesthetic", "no-word.head=./v1.pth"], "a label is a word"),
        (["ray.stage=score_aesthetic"], "ray.stage: unknown setting"),
        (["dark.stage=./missing.py:X"], "no file"),
        (["dark.stage.name=score_aesthetic"], "no stage or key 'dark'"),
    ],
)
def test_stage_that_cannot_be_added_is_one_clear_message(tmp_path, overrides, message):
    with pytest.raises(UsageError) as caught:
        load(tmp_path, BASE, *overrides)
    assert message in str(caught.value)
