"""YAML that is not a recipe is one error with its position; no text causes anything else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clipmill.jobs.cli import main
from clipmill.pipeline.recipes.recipe import load_recipe, read_yaml
from clipmill.pipeline.recipes.stage_classes import stage_class
from clipmill.pipeline.recipes.strict_yaml import parse_yaml
from clipmill.pipeline.subsets.subset_recipe import load_subset_recipe
from clipmill.schemas.errors import UsageError
from clipmill.stages.built_in import built_in_stage_names

ROOT = Path(__file__).resolve().parents[2]
SUBSET = 'parameters: {p: 1, q: text}\nrules:\n- where: "aesthetic > $p AND caption <> $q"\n'
RUN = "stages:\n  download_videos: {}\n"
NO_VALUES = [
    ("? [a, b]\n: 1", 1, "a list"),
    ("? {a: b}\n: 1", 1, "a mapping"),
    ("a: 1\nb: 2001-99-99", 2, "month must be in 1..12"),
    ("a: 2001-01-01 00:00:00+99:99", 1, "can't be read"),
    ("a: !!int x", 1, "can't be read"),
    ("a: !!bool x", 1, "can't be read"),
    ("a: !!timestamp x", 1, "can't be read"),
    ("a: !!float x", 1, "can't be read"),
    ("a: 0x_", 1, "can't be read"),
    ("a: " + "9" * 5000, 1, "is too long"),
    ("\n\na: 0x" + "f" * 9000, 3, "is too long"),
    ("a: 1" + ":59" * 3000, 1, "is too long"),
    ("a: 1." + "9" * 5000, 1, "is too long"),
    ("a: 1\na: 2", 2, "the key 'a' is given twice"),
    ("a: !!python/name:os.system", 1, "tag"),
    ("a: &x {b: *x}", 1, "aliases"),
    ("a: [", 1, "expected"),
    ("a: !!map x", 1, "is not a mapping"),
    ("a: !!set {b, c}", 1, "tag"),
    ("a: !!seq x", 1, "expected a sequence"),
]
VALUES = [(text, line, said) for text, line, said in NO_VALUES if "\n" not in text]


@pytest.mark.parametrize(("text", "line", "said"), NO_VALUES)
def test_ambiguous_yaml_is_refused_with_its_line(tmp_path, text, line, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    for read in read_yaml, load_recipe, load_subset_recipe:
        with pytest.raises(UsageError) as refused:
            read(path)
        told = str(refused.value)
        assert told.startswith(f"{path} is not valid YAML: line {line}, column ")
        assert said in told
        assert len(told.splitlines()) == 1
        assert len(told) < 400 + len(str(path))


@pytest.mark.parametrize("key", ["1", "null", "true", "on", "2001-01-01", "1.5", ".nan", "~"])
@pytest.mark.parametrize(
    "text",
    [
        "{}: x",
        "stages: {{{}: {{}}}}",
        "rules: [{{{}: 1}}]",
        "stages: {{download_videos: {{{}: 1}}}}",
        "scorers: {{{}: any}}",
        "sources: {{{}: 1}}\nstages: {{split_clips: }}",
        "ray: {{{}: 1}}",
    ],
)
def test_key_that_is_not_text_is_refused_as_a_name(tmp_path, text, key):
    path = tmp_path / "recipe.yaml"
    path.write_text(text.format(key))
    for load in load_recipe, load_subset_recipe:
        with pytest.raises(UsageError) as refused:
            load(path)
        assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "text",
    [
        "? [a, b]\n: 1",
        "a: 2001-99-99",
        "a: " + "9" * 5000,
        "1: x",
        "[" * 1000,
        "null: x",
        "stages: {a: {stage: ':x'}}",
    ],
)
@pytest.mark.parametrize("words", [["run"], ["doctor"], ["subset", "explain"]])
def test_command_exits_with_2_and_one_message(tmp_path, monkeypatch, capsys, text, words):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    (tmp_path / "dataset" / "runs").mkdir(parents=True)
    given = [str(tmp_path / "dataset"), str(path)] if words[0] == "subset" else [str(path)]
    monkeypatch.setattr("sys.argv", ["clipmill", *words, *given])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr().err
    assert ended.value.code == 2
    assert said.count("Error: ") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("value", "said"),
    [
        *(
            (text.partition(": ")[2] if text.startswith("a: ") else "{" + text + "}", said)
            for text, _, said in VALUES
            if not text.startswith("?") and "given" not in said
        ),
        ("{[a]: 1}", "a list"),
        ("{? {a: b} : 1}", "a mapping"),
        ("[" * 1000, "nested too deeply"),
    ],
)
def test_set_refuses_it_too(tmp_path, value, said):
    (tmp_path / "run.yaml").write_text(RUN)
    (tmp_path / "subset.yaml").write_text(SUBSET)
    for override, load, name in (
        (f"download_videos.min_height={value}", load_recipe, "run"),
        (f"dataset={value}", load_recipe, "run"),
        (f"p={value}", load_subset_recipe, "subset"),
    ):
        with pytest.raises(UsageError) as refused:
            load(tmp_path / f"{name}.yaml", overrides=[override])
        assert str(refused.value).startswith("--set ")
        assert "the value is not valid YAML" in str(refused.value)
        assert said in str(refused.value)


@pytest.mark.parametrize(
    "word",
    [
        ":x",
        "..a:b",
        ".:x",
        "a..b:x",
        "sys:x",
        "this-is:x",
        "a\0.py",
        "a\0:b",
        "x" * 5000 + ".py",
        "json:JSONDecoder",
        "builtins:",
        "\ud800.py",
        "-:x",
        "tests.pipeline.no_such:x",
    ],
)
def test_unknown_stage_is_refused(tmp_path, word):
    with pytest.raises(UsageError, match="stage "):
        stage_class(word, tmp_path)


def test_valid_recipes_are_read_as_before():
    """All shipped ones, and plain values of every kind."""
    for path in (
        *(ROOT / "jobs" / "recipes").glob("*.yaml"),
        *(ROOT / "jobs" / "subset_recipes").glob("*.yaml"),
    ):
        assert read_yaml(path) == yaml.safe_load(path.read_text("utf-8"))
    text = (
        "{a: [1, -2.5, true, null, 2001-02-03, .inf], 'on': &x {'1': 0x1f}, b: *x, "
        f"c: '{'1' * 5000}', d: {'9' * 300}}}"
    )
    assert parse_yaml(text, "here") == yaml.safe_load(text)


# Arbitrary file contents

SCALARS = st.one_of(
    st.text(max_size=12),
    st.integers(),
    st.floats(),
    st.booleans(),
    st.none(),
    st.dates(),
    st.sampled_from(
        [
            "2001-99-99",
            "9" * 5000,
            "0x" + "f" * 5000,
            "!!int x",
            "!!set {a, b}",
            "<<",
            "=",
            "&a",
            "*a",
            "? a",
            "!!python/object:x",
            "1:2:3",
            "~",
            '"\\ud800"',
            "!!binary x",
            "!!omap [a: 1]",
            "!!pairs [a: 1]",
            "!!timestamp 1",
            "%TAG",
        ]
    ),
)
PLAIN = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.one_of(st.text(max_size=8), SCALARS), inner, max_size=3),
    ),
    max_leaves=8,
)
PIECES = st.lists(
    st.sampled_from(
        [
            "a",
            "stages",
            ": ",
            ":\n",
            "\n",
            "\n  ",
            "- ",
            "? ",
            "[",
            "]",
            "{",
            "}",
            ", ",
            "&x ",
            "*x ",
            "!!int ",
            "!!set ",
            "!!map ",
            "!!null ",
            "!!timestamp ",
            "!x ",
            "|\n",
            ">-\n",
            "'",
            '"',
            "\\",
            "#",
            "%YAML 1.1\n",
            "---\n",
            "...\n",
            "<<",
            "2001-99-99",
            "1:2",
            "0x",
            "\t",
            "\x85",
            "\ufeff",
            "\x00",
            "é",
            "1e9",
            ".nan",
            "null",
            "~",
            "download_videos",
            "rules",
            "where",
        ]
    ),
    max_size=25,
).map("".join)


def shown(value: object) -> str:
    """A value as users may write it: flow style, texts mostly without quotes."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{shown(k)}: {shown(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(shown, value)) + "]"
    return str(value) if not isinstance(value, str) or len(value) % 2 else json.dumps(value)


@settings(max_examples=80)
@given(text=st.one_of(st.text(max_size=60), PIECES, PLAIN.map(shown)))
@example(text="? [a, b]\n: 1")
@example(text="a: 2001-99-99")
def test_any_text_is_a_recipe_or_a_clear_error(tmp_path_factory, text):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    for load in load_recipe, load_subset_recipe:
        try:
            load(path)
        except UsageError as error:
            str(error).encode("utf-8", "backslashreplace")


@settings(max_examples=60)
@given(
    top=st.dictionaries(
        st.sampled_from(
            ["dataset", "sources", "shard_videos", "exclude_ids", "engine", "ray", "description"]
        ),
        PLAIN,
        max_size=2,
    ),
    label=st.one_of(st.sampled_from(["download_videos", "split_clips"]), st.text(max_size=5)),
    word=st.one_of(st.sampled_from([*built_in_stage_names(), "a.py:B", ":B"]), PLAIN),
    settings_=st.dictionaries(
        st.one_of(
            st.text(max_size=5),
            st.sampled_from(
                [
                    "yt_dlp",
                    "min_height",
                    "format",
                    "model",
                    "boundaries",
                    "proxy",
                    "prompt",
                    "device",
                ]
            ),
        ),
        PLAIN,
        max_size=3,
    ),
)
def test_any_values_in_a_recipe_are_valid_or_a_clear_error(
    tmp_path_factory, top, label, word, settings_
):
    path = tmp_path_factory.getbasetemp() / "values.yaml"
    recipe = {**top, "stages": {label: {"stage": word, **settings_}}}
    path.write_text(yaml.safe_dump(recipe, allow_unicode=False))
    for overrides in [], [f"{label}.min_height={shown(word)}"]:
        try:
            load_recipe(path, overrides=overrides)
        except UsageError as error:
            str(error).encode("utf-8", "backslashreplace")
