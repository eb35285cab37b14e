"""A rule with `crop: safe` keeps clips that a crop would make pass, and says how many they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import clipmill
from clipmill.jobs.cli import app
from clipmill.schemas.errors import UsageError
from tests.scored_catalog import Clip, build, own

SAFE = ("safe_left", "safe_top", "safe_right", "safe_bottom")
RECIPE = """
rules:
  - {name: no bars, where: bars <= 0.02, crop: safe}
  - {name: little text, where: lettering <= 0.1, crop: safe}
  - {name: long, where: duration_seconds >= 2}
"""
BOX, WHOLE, NONE = (0.0, 0.1, 1.0, 0.9), (0.0, 0.0, 1.0, 1.0), (None,) * 4
# By clip: share of bars, share of text, rectangle, whether it passes, whether only by a crop.
ROWS: list[tuple[float | None, float | None, Sequence[float | None], bool, bool]] = [
    (0.0, 0.0, NONE, True, False),
    (0.0, 0.0, BOX, True, False),
    (0.2, 0.0, BOX, True, True),
    (0.2, 0.5, BOX, True, True),
    (0.0, 0.5, BOX, True, True),
    (None, 0.0, BOX, True, True),
    (0.2, 0.0, WHOLE, False, False),
    (0.2, 0.0, NONE, False, False),
    (None, 0.0, NONE, False, False),
    (0.2, 0.0, (0.9, 0.1, 0.1, 0.9), False, False),
    (0.2, 0.0, (0.0, 0.1, 1.0, 7.0), False, False),
]
SECONDS = 3.0


@pytest.fixture(scope="module")
def clips() -> list[Clip]:
    found = []
    for number, (bars, text, box, _, _) in enumerate(ROWS):
        values = {"bars": bars, "lettering": text, **dict(zip(SAFE, box, strict=True))}
        found.append(Clip("generic-v", 10.0 * number, 10.0 * number + SECONDS, values=values))
    # Regained by the first rules, lost to the last one.
    values = {"bars": 0.2, "lettering": 0.0, **dict(zip(SAFE, BOX, strict=True))}
    return [*found, Clip("generic-w", 0.0, 1.0, values=values)]


@pytest.fixture(scope="module")
def dataset(clips: list[Clip], tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = [own(name) for name in ("bars", "lettering", *SAFE)]
    return build(tmp_path_factory.mktemp("crop") / "dataset", clips, made, shards=1)


@pytest.fixture
def recipe(tmp_path: Path) -> Any:
    def written(text: str = RECIPE) -> str:
        (tmp_path / "mine.yaml").write_text(text)
        return str(tmp_path / "mine.yaml")

    return written


def test_clips_that_a_crop_makes_pass_are_kept_and_counted(dataset, clips, recipe, capsys):
    only_cropped = [row for row in ROWS if row[4]]
    with clipmill.open(dataset) as opened:
        found = opened.explain(recipe())
        subset = opened.create_subset(recipe(), name="mine")
        shown = subset.card()
        rows = opened.sql("SELECT clip_id FROM subset_clips WHERE name = 'mine'").fetchall()
    assert {clip for (clip,) in rows} == {
        clip.id for clip, row in zip(clips, ROWS, strict=False) if row[3]
    }
    hours = len(only_cropped) * SECONDS / 3600
    assert found["result"]["clips"] == sum(row[3] for row in ROWS)
    assert found["regained"]["clips"] == len(only_cropped)
    assert found["regained"]["hours"] == pytest.approx(hours, abs=1e-4)
    bars, text, long = (rule["regained"] for rule in found["funnel"])
    assert bars["clips"] == 4  # with the short one
    assert text["clips"] == 2
    assert long is None
    assert found["funnel"][0]["rule"]["crop"] == "safe"
    assert found["funnel"][0]["worth"]["only"]["clips"] == 5
    assert subset.info["regained"] == found["regained"]
    assert f"Of these, {len(only_cropped)} clips, " in shown
    app(["subset", "explain", str(dataset), recipe()], standalone_mode=False)
    printed = capsys.readouterr().out
    assert "of these, 4 clips (" in printed
    assert f"Regained by cropping: {len(only_cropped)} clips, " in printed


def test_recipe_without_such_a_rule_says_nothing(dataset, recipe):
    with clipmill.open(dataset) as opened:
        found = opened.explain(recipe(RECIPE.replace(", crop: safe", "")))
    assert found["regained"] is None
    assert [rule["regained"] for rule in found["funnel"]] == [None] * 3


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rules: [{where: bars < 1, crop: all}]", "crop: 'all'; allowed: safe"),
        (
            "rules: [{cap: {per: video_id, clips: 1}, crop: safe}]",
            "only a `where` rule can let clips pass to be cropped",
        ),
    ],
)
def test_senseless_crop_is_refused(text, said, dataset, recipe):
    with clipmill.open(dataset) as opened, pytest.raises(UsageError, match=said):
        opened.explain(recipe(text))


def test_missing_columns_are_named(tmp_path, recipe):
    build(tmp_path / "dataset", [Clip("generic-v", 0.0, 3.0)], [], shards=1)
    with (
        clipmill.open(tmp_path / "dataset") as opened,
        pytest.raises(UsageError, match=r"rule 1 .*crop: safe reads the columns safe_left"),
    ):
        opened.explain(recipe("rules: [{where: duration_seconds > 1, crop: safe}]"))
