"""Subset recipes are plain data: allowed contents, inheritance, and errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe
from clipmill.schemas.errors import UsageError


def load(folder: Path, text: str, name: str = "mine", **details):
    path = folder / f"{name}.yaml"
    path.write_text(text)
    return load_subset_recipe(path, **details)


def refusal(folder: Path, text: str, **details) -> str:
    with pytest.raises(UsageError) as error:
        load(folder, text, **details)
    assert "mine.yaml" in str(error.value) or "--set" in str(error.value)
    return str(error.value)


def test_parameters_are_values_and_sql_literals(tmp_path: Path):
    """By itself, `$name` is the value; within SQL it is a literal, and in a string it is text."""
    recipe = load(
        tmp_path,
        """
parameters: {least: 1e-6, low: -3, top: 30, languages: [en, "no"], word: "it's"}
rules:
  - where: "motion > $least AND x > $low AND language IN $languages AND a = $word AND b = '$top'"
  - name: top $top percent
    percentile: {column: aesthetic, top: $top}
""",
        overrides=["top=12.5", "word=5"],
    )
    first, second = recipe.rules
    assert first.body.expression == (
        "motion > 1e-06 AND x > (-3) AND language IN ['en', 'no'] AND a = '5' AND b = '$top'"
    )
    assert second.name == "top 12.5 percent"
    assert second.plain() == {
        "name": "top 12.5 percent",
        "percentile": {"column": "aesthetic", "top": 12.5},
    }
    assert recipe.parameters["top"] == 12.5


def test_recipe_inherits_rules_parameters_and_seed(tmp_path: Path):
    """Its own keys win; its rules follow the inherited ones, `rules_before` precedes them."""
    (tmp_path / "ready").mkdir()
    (tmp_path / "ready/base.yaml").write_text("""
description: the base
seed: 7
parameters: {clips: 10, top: 5}
rules:
  - sample: {clips: $clips}
""")
    (tmp_path / "middle.yaml").write_text("""
extends: base
parameters: {clips: 20}
rules_before: [{percentile: {column: aesthetic, top: $top}}]
rules: [{where: "a > 1"}]
""")
    recipe = load(
        tmp_path, "extends: middle.yaml\nrules: [{where: 'b > 2'}]\n", ready_made=tmp_path / "ready"
    )
    assert [rule.verb for rule in recipe.rules] == ["percentile", "sample", "where", "where"]
    assert [rule.number for rule in recipe.rules] == [1, 2, 3, 4]
    assert recipe.rules[1].body.clips == 20
    assert (recipe.seed, recipe.description) == (7, "the base")
    assert recipe.extends == ["middle", "base"]
    assert [name for name, _ in recipe.texts] == ["mine.yaml", "middle.yaml", "base.yaml"]
    assert load(tmp_path, "extends: middle.yaml", seed=1, ready_made=tmp_path / "ready").seed == 1


def test_circular_extends_is_reported_with_its_members(tmp_path: Path):
    (tmp_path / "other.yaml").write_text("extends: mine.yaml\n")
    said = refusal(tmp_path, "extends: other.yaml\n")
    assert "mine.yaml → other.yaml → mine.yaml" in said


def test_unknown_extends_names_the_available_recipes(tmp_path: Path):
    (tmp_path / "internvid-div.yaml").write_text("rules: []\n")
    said = refusal(tmp_path, "extends: internvid-dif\n", ready_made=tmp_path)
    assert "did you mean internvid-div?" in said


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("rulez: []", ["rulez", "did you mean rules?"]),
        ("description: x", ["no rules"]),
        ("- where: a", ["expected a mapping with `rules:`"]),
        ("stages: {split_clips: {}}", ["a recipe for `clipmill run`"]),
        ("rules: [{were: a}]", ["rule 1", "unknown rule 'were'", "did you mean where?"]),
        ("rules: [{where: a, sample: {clips: 1}}]", ["rule 1", "where and sample"]),
        ("rules: [{name: x}]", ["rule 1", "has none"]),
        (
            "rules: [{percentile: {column: a, top: 101}}]",
            ["rule 1 (percentile)", "top", "less than or equal to 100"],
        ),
        ("rules: [{percentile: {column: a, between: [-1, 5]}}]", ["greater than or equal to 0"]),
        ("rules: [{percentile: {column: a, between: [9, 5]}}]", ["must be smaller"]),
        (
            "rules: [{percentile: {column: a, top: 3, bottom: 2}}]",
            ["one of top, bottom and between"],
        ),
        ("rules: [{percentile: {column: a, top: yes}}]", ["number, not true or false"]),
        ("rules: [{percentile: 5}]", ["rule 1 (percentile)", "column, top, bottom, between"]),
        ("rules: [{sample: {}}]", ["one of clips and fraction"]),
        ("rules: [{sample: {fraction: 0}}]", ["greater than 0"]),
        ("rules: [{cap: {per: video_id, clips: 2.5}}]", ["clips", "integer"]),
        ("rules: [{cap: {per: video_id, clip: 2}}]", ["did you mean clips?"]),
        ("rules: [{quota: {per: language, clips: {no: 5}}}]", ['"no"', "quotes"]),
        ("rules: [{deduplicate: {by: frames}}]", ["max_distance"]),
        (
            "rules: [{deduplicate: {by: bytes, min_cosine: 0.9}}]",
            ["min_cosine can't be combined with"],
        ),
        ("rules: [{balance: {clusters: 1, clips: 5}}]", ["clusters", "2"]),
        ("rules: [{stratify: {by: [], clips: 5}}]", ["by"]),
        ("rules: [{where: 'a > $x'}]", ["$x is not a parameter"]),
        ("parameters: {a: 1}\nrules: [{where: b}]", ["no rule uses $a"]),
        ("parameters: {a: [en, no]}\nrules: [{where: 'l in $a'}]", ["quotes"]),
        ("parameters: {a: .inf}\nrules: [{where: 'l > $a'}]", ["inf"]),
        ("parameters: {a: {b: 1}}\nrules: [{where: 'l > $a'}]", ["$a is a mapping"]),
        ("seed: -1\nrules: [{where: a}]", ["seed"]),
        ("verified: maybe\nrules: [{where: a}]", ["verified"]),
        ("rules: [{where: [a, b]}]", ["rule 1 (where)"]),
        ("a: b: c", ["not valid YAML"]),
        ("rules: [{where: a}]\nrules: [{where: b}]", ["given twice"]),
    ],
)
def test_invalid_recipes_are_refused(tmp_path: Path, text: str, told: list[str]):
    """The error names the file, the rule, and what is allowed."""
    said = refusal(tmp_path, text)
    for part in told:
        assert part in said


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("clip=5", "did you mean clips?"),
        ("clips", "expected name=value"),
        ("clips=many", "clips is a number (10 by default), not text"),
        ("seed=3", "--seed"),
        ("scorers.similarity=any", "requires no scorer for 'similarity'"),
        ("clips=[1", "not valid YAML"),
    ],
)
def test_invalid_set_is_refused(tmp_path: Path, override: str, told: str):
    text = "parameters: {clips: 10}\nrules: [{sample: {clips: $clips}}]"
    assert told in refusal(tmp_path, text, overrides=[override])


def test_scorer_check_can_be_waived_but_not_renamed(tmp_path: Path):
    text = """
scorers:
  similarity: {name: UMT-SIM, accepts: [{stage: take_given_score}]}
rules: [{where: "similarity > 0.4"}]
"""
    assert load(tmp_path, text, overrides=["scorers.similarity=any"]).scorers == {
        "similarity": "any"
    }
    assert "scorers.similarity=any" in refusal(
        tmp_path, text, overrides=["scorers.similarity=clip"]
    )
