"""`clipmill subset`: explain, create, list, show."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from rich.console import Console

from clipmill.jobs import funnel, subset
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.dataset.tombstones import new_tombstone
from clipmill.pipeline.subsets.freeze import load_subset
from clipmill.schemas.errors import ClipmillError, UsageError
from tests.scored_catalog import aesthetic, build, embeddings, random_clips, similarity

ROOT = Path(__file__).resolve().parents[2]
RULES = [
    {"where": "duration_seconds BETWEEN 2 AND $longest"},
    {"name": "good looking", "percentile": {"column": "aesthetic", "top": 60}},
    {"sample": {"clips": "$clips", "weight": "one_per_video"}},
]
MINE = {
    "description": "clips to look at",
    "source": "nowhere",
    "verified": False,
    "parameters": {"clips": 50, "longest": 15},
    "rules": RULES,
}


@pytest.fixture(scope="module")
def clips():
    return random_clips(300, {"similarity": (0.0, 0.5), "aesthetic": (2.0, 8.0)})


@pytest.fixture(scope="module")
def explored(clips, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset that tests only read."""
    names = list(dict.fromkeys(clip.video for clip in clips))
    videos = {
        name: {
            "language": ("en", "de")[i % 2],
            "license": "cc-by",
            "category": "a | b\n# c" if i == 0 else "sport",
        }
        for i, name in enumerate(names)
    }
    return build(
        tmp_path_factory.mktemp("subset") / "dataset",
        clips,
        [embeddings(), similarity(), aesthetic()],
        videos=videos,
    )


@pytest.fixture
def dataset(explored: Path, tmp_path: Path) -> Path:
    """A separate copy that may be changed."""
    shutil.copytree(explored, tmp_path / "dataset")
    return tmp_path / "dataset"


@pytest.fixture
def recipe(tmp_path: Path) -> str:
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(MINE, sort_keys=False))
    return str(path)


def explained(capsys, dataset: Path, recipe: str, **details) -> dict:
    subset.explain(dataset, recipe, format="json", **details)
    return json.loads(capsys.readouterr().out)


def ask(dataset: Path, query: str) -> list[tuple]:
    with open_catalog(dataset) as catalog:
        return [tuple(row.values()) for row in catalog.ask(query).read_all().to_pylist()]


def test_funnel_has_remaining_and_removed_clips_of_each_rule(explored: Path, recipe: str, capsys):
    """Clips, videos, hours after each rule; nulls separately; and what a rule removes alone."""
    found = explained(capsys, explored, recipe)
    everything, short = ask(
        explored,
        """
        SELECT count(*), count(DISTINCT video_id), round(sum(duration_seconds) / 3600, 3)
        FROM clips UNION ALL
        SELECT count(*), count(DISTINCT video_id), round(sum(duration_seconds) / 3600, 3)
        FROM clips WHERE duration_seconds BETWEEN 2 AND 15 ORDER BY ALL DESC""",
    )
    first, second, third = found["funnel"]
    assert tuple(found["catalog"].values()) == pytest.approx(everything, abs=1e-3)
    assert tuple(first["remaining"].values()) == pytest.approx(short, abs=1e-3)
    assert first["took"] == {"clips": everything[0] - short[0], "because_null": 0}
    [(nulls, all_nulls)] = ask(
        explored,
        "SELECT count(*) FILTER (duration_seconds BETWEEN 2 AND "
        "15), count(*) FROM clips WHERE aesthetic IS NULL",
    )
    assert second["took"]["because_null"] == nulls
    assert second["alone"]["takes"]["because_null"] == all_nulls
    scored = everything[0] - all_nulls
    assert second["alone"]["leaves"]["clips"] == scored - int(0.4 * scored)
    assert second["name"] == "good looking"
    assert third["remaining"]["clips"] == found["result"]["clips"] == 50
    assert third["alone"]["takes"]["clips"] == everything[0] - 50
    assert found["parameters"] == {"clips": 50, "longest": 15}
    assert not (explored / "subsets").exists()


def test_clips_next_to_each_threshold_are_shown(explored: Path, recipe: str, clips, capsys):
    """On both sides, nearest first, with their outcome."""
    found = explained(capsys, explored, recipe, near=2)
    low, high = found["funnel"][0]["near"]
    assert (low["column"], low["operator"], low["value"]) == ("duration_seconds", ">=", 2)
    assert (high["operator"], high["value"]) == ("<=", 15)
    seconds = sorted(clip.seconds for clip in clips)
    assert [one["value"] for one in high["inside"]] == pytest.approx(
        [s for s in seconds if s <= 15][:-3:-1]
    )
    assert [one["value"] for one in high["outside"]] == pytest.approx(
        [s for s in seconds if s > 15][:2]
    )
    assert all(one["stays"] for one in high["inside"])
    assert not any(one["stays"] for one in high["outside"])
    assert high["inside"][0]["caption"] == "a dog runs"
    [percentile] = found["funnel"][1]["near"]
    reaching = sorted(
        clip.values["aesthetic"]
        for clip in clips
        if clip.values["aesthetic"] is not None and 2 <= clip.seconds <= 15
    )
    last_out = int(0.4 * len(reaching))
    assert percentile["value"] == pytest.approx(reaching[last_out])
    assert [one["value"] for one in percentile["inside"]] == pytest.approx(
        reaching[last_out : last_out + 2]
    )
    assert [one["value"] for one in percentile["outside"]] == pytest.approx(
        reaching[last_out - 1 : last_out - 3 : -1]
    )
    assert explained(capsys, explored, recipe, near=0)["funnel"][0]["near"] == []


@pytest.mark.parametrize("columns", [80, 100])
def test_80_columns_are_enough(explored: Path, recipe: str, capsys, monkeypatch, columns: int):
    """No line of numbers is wrapped, and control characters are removed."""
    monkeypatch.setattr(
        funnel,
        "Console",
        functools.partial(Console, width=columns, force_terminal=True, color_system=None),
    )
    subset.explain(explored, recipe, scores=True, recipes=True)
    shown = capsys.readouterr().out
    lines = [line.rstrip() for line in shown.splitlines()]
    assert max(map(len, lines)) <= columns
    assert any("removes alone" in line for line in lines)
    assert "unverified" in shown
    assert any("removes only this" in line and "share of the loss" in line for line in lines)
    assert any("similarity · aesthetic" in line for line in lines)
    assert any("flow_unimatch (a stage of your own)" in line for line in lines)
    assert sum("──────" in line for line in lines) == 3
    assert any("stays" in line and "a dog runs" in line for line in lines)
    head = next(line for line in lines if "removes alone" in line)
    numbers = lines[lines.index("the catalog") + 1]
    ends = [found.end() for found in re.finditer(r"\S+", numbers)]
    assert ends[3] == head.index("hours") + len("hours")


def test_rule_that_removes_everything_is_named(dataset: Path, recipe: str, capsys):
    """`explain` shows it, `create` refuses, and nothing is left behind."""
    subset.explain(dataset, recipe, overrides=["longest=2.0001"])
    said = capsys.readouterr().out
    assert "This rule removes the last clips" in said
    with pytest.raises(UsageError, match=r"mine.yaml: rule 1 \(where\) removes the last 300 clips"):
        subset.create(dataset, recipe, overrides=["longest=2.0001"])
    assert not list((dataset / "subsets").glob("mine*"))


def test_frozen_subset_is_a_list_with_its_provenance(dataset: Path, recipe: str, capsys):
    subset.create(dataset, recipe, seed=5)
    said = capsys.readouterr().out
    frozen = load_subset(dataset, "mine")
    table = pq.read_table(frozen.files)
    assert table.column_names == ["clip_id", "video_id", "position"]
    ids = table["clip_id"].to_pylist()
    assert ids == sorted(ids)
    assert table["position"].to_pylist() == list(range(50))
    digest = hashlib.sha256("".join(f"{clip}\n" for clip in ids).encode()).hexdigest()
    info = frozen.info
    assert info["hash"] == f"sha256:{digest}"
    assert info["hash"] in said
    assert (info["n_clips"], info["seed"], info["parameters"]["clips"]) == (50, 5, 50)
    assert info["rules"][2] == {"sample": {"clips": 50, "weight": "one_per_video"}}
    assert info["recipe_files"] == [{"name": "mine.yaml", "text": Path(recipe).read_text()}]
    assert info["catalog"]["steps"]["score_aesthetic"]["fingerprint"] == "score_aesthetic-1"
    assert info["catalog"]["steps"]["split_clips"]["rows"] == 300
    assert sum(row["clips"] for row in info["counts"]["language"]) == 50
    assert info["counts"]["licence"] == [
        {"licence": "cc-by", "clips": 50, "videos": info["n_videos"], "hours": info["hours"]}
    ]
    assert ask(dataset, "SELECT name, n_clips, snapshot FROM subsets") == [
        ("mine", 50, info["snapshot"])
    ]
    assert ask(
        dataset,
        "SELECT count(*), min(aesthetic) > 4 FROM clips SEMI JOIN "
        "(SELECT clip_id FROM subset_clips WHERE name = 'mine') USING (clip_id)",
    ) == [(50, True)]


def test_creating_the_same_subset_again_is_allowed_a_different_one_not(
    dataset: Path, recipe: str, capsys
):
    """A name always stands for the same list."""
    subset.create(dataset, recipe)
    before = times(dataset)
    subset.create(dataset, recipe)
    assert "already exists, with the same clips and rules" in capsys.readouterr().out
    with pytest.raises(UsageError, match=r"different clips and a different seed.*--name"):
        subset.create(dataset, recipe, seed=1)
    assert times(dataset) == before
    subset.create(dataset, recipe, seed=1, name="second.try")
    capsys.readouterr()
    subset.list_subsets(dataset, format="json")
    rows = json.loads(capsys.readouterr().out)
    assert [(row["name"], row["recipe"]) for row in rows] == [
        ("mine", "mine"),
        ("second.try", "mine"),
    ]


def times(dataset: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in (dataset / "subsets/mine").iterdir()}


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "", "-x", "a b", "é", "x" * 81])
def test_name_must_be_a_safe_file_name(explored: Path, recipe: str, name: str):
    with pytest.raises(UsageError, match="--name"):
        subset.create(explored, recipe, name=name)


KILLED = """
import sys, time
from pathlib import Path
from clipmill.jobs import subset
from clipmill.pipeline.subsets import freeze
whole = freeze.write_json
def slow(path, value):
    print("writing", flush=True)
    time.sleep(60)
    whole(path, value)
freeze.write_json = slow
subset.create(Path(sys.argv[1]), sys.argv[2])
"""


def test_killed_create_leaves_no_subset(dataset: Path, recipe: str):
    """The next one removes what it left; two concurrent ones detect each other."""
    child = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(dataset), recipe],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert child.stdout.readline() == "writing\n"
    with pytest.raises(ClipmillError, match="another process"):
        subset.create(dataset, recipe)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert list((dataset / "subsets").glob(".mine~*.tmp/clips-000000.parquet"))
    assert ask(dataset, "SELECT name FROM subsets UNION ALL SELECT name FROM subset_clips") == []
    with pytest.raises(UsageError, match="no subset 'mine'"):
        subset.show(dataset, "mine")
    deadline = time.monotonic() + 60
    while True:  # the kernel takes a moment to release a dead process's lock
        try:
            subset.create(dataset, recipe)
            break
        except ClipmillError:
            assert time.monotonic() < deadline
    assert [path.name for path in (dataset / "subsets").glob("[!.]*")] == ["mine"]
    assert not list((dataset / "subsets").glob("*.tmp"))
    assert len(ask(dataset, "SELECT * FROM subset_clips")) == 50


def test_data_card_describes_the_subset_and_how_to_reproduce_it(dataset: Path, recipe: str, capsys):
    """Markdown that a hostile category cannot break."""
    subset.create(dataset, recipe, overrides=["clips=120"], seed=4)
    capsys.readouterr()
    subset.show(dataset, "mine")
    card = capsys.readouterr().out
    assert card.startswith("# mine\n\nclips to look at\n\n- 120 clips of ")
    command = f"clipmill subset create {dataset} ./mine.yaml --name mine --seed 4 --set clips=120"
    assert command in card
    assert "unverified" in card
    assert "good looking: percentile" in card
    assert load_subset(dataset, "mine").info["hash"] in card
    assert "All of its clips are in the catalog" in card
    assert not any(line.startswith("# c") for line in card.splitlines())
    assert any(line.startswith(r"| a \| b # c ") for line in card.splitlines())
    subset.show(dataset, "mine", format="json")
    assert json.loads(capsys.readouterr().out)["since"] == {
        "removed": 0,
        "not_in_catalog": 0,
        "changed_steps": [],
    }


def test_card_says_what_has_changed_since(dataset: Path, recipe: str, capsys):
    """Clips that the newest run no longer shows, and steps that were run again."""
    subset.create(dataset, recipe)
    record = json.loads((dataset / "runs/r1.json").read_text())
    split = next(stage for stage in record["stages"] if stage["stage"] == "split_clips")
    split["steps"][0].update(fingerprint="new", tables={"split_clips": "split_clips/new"})
    (dataset / "split_clips/new").mkdir()
    shutil.copy(dataset / "split_clips/split_clips-1/000000.parquet", dataset / "split_clips/new")
    (dataset / "runs/r2.json").write_text(json.dumps({**record, "run_id": "r2"}))
    capsys.readouterr()
    subset.show(dataset, "mine", format="json")
    since = json.loads(capsys.readouterr().out)["since"]
    assert since["changed_steps"] == ["split_clips"]
    assert 0 < since["not_in_catalog"] < 50
    subset.show(dataset, "mine")
    assert f"{since['not_in_catalog']} of its clips are no longer" in capsys.readouterr().out


def test_card_counts_removed_clips(dataset: Path, recipe: str, capsys):
    """The list stays as cited; a new one is made without the removed video."""
    subset.create(dataset, recipe)
    [(video, clips)] = ask(
        dataset,
        "SELECT video_id, count(*) FROM subset_clips GROUP BY ALL ORDER BY 2 DESC, 1 LIMIT 1",
    )
    new_tombstone(dataset, {video: []}, "asked for")
    capsys.readouterr()
    subset.show(dataset, "mine", format="json")
    since = json.loads(capsys.readouterr().out)["since"]
    assert since == {"removed": clips, "not_in_catalog": 0, "changed_steps": []}
    assert len(ask(dataset, "SELECT * FROM subset_clips")) == 50
    subset.create(dataset, recipe, name="after")
    assert (
        ask(dataset, f"SELECT * FROM subset_clips WHERE name = 'after' AND video_id = '{video}'")
        == []
    )


def test_unknown_subset_suggests_similar_ones(dataset: Path, recipe: str):
    with pytest.raises(UsageError, match="clipmill subset create"):
        subset.show(dataset, "mine")
    subset.create(dataset, recipe)
    with pytest.raises(UsageError, match=r"did you mean mine\?"):
        subset.show(dataset, "mime")


def test_ready_made_recipes_are_listed_and_printed(capsys):
    subset.recipes(None)
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert "internvid-flt" in names
    subset.recipes("internvid-div")
    assert yaml.safe_load(capsys.readouterr().out)["rules"]
    with pytest.raises(UsageError, match=r"did you mean internvid-div\?"):
        subset.recipes("internvid-dvi")


def test_command_line_passes_on_all_options(explored: Path, recipe: str):
    """Errors are status 2 with one message; results go to standard output."""

    def clipmill(*words: str) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "clipmill.jobs.cli", "subset", *words],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )

    done = clipmill(
        "explain",
        str(explored),
        recipe,
        "--set",
        "clips=7",
        "--seed",
        "3",
        "--near",
        "1",
        "--format",
        "json",
    )
    assert done.stderr == ""
    found = json.loads(done.stdout)
    assert (found["seed"], found["result"]["clips"]) == (3, 7)
    assert len(found["funnel"][0]["near"][0]["inside"]) == 1
    wrong = clipmill("explain", str(explored), recipe, "--set", "clip=7")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "did you mean clips?" in wrong.stderr


def test_predicate_needs_no_recipe(dataset: Path, tmp_path: Path, capsys):
    """`--where` selects by itself; it is recorded, and the card's recipe reproduces it."""
    where = "aesthetic > 5 AND language = 'de'"
    found = explained(capsys, dataset, None, where=where)
    subset.create(dataset, None, where=where)
    (name,) = [place.parent.name for place in (dataset / "subsets").glob("*/subset.json")]
    assert name == found["recipe"]
    info = load_subset(dataset, name).info
    assert (info["where"], info["rules"]) == (where, [{"where": where}])
    assert ask(dataset, f"SELECT count(*) FROM clips WHERE {where}") == [(info["n_clips"],)]
    assert info["n_clips"] == found["result"]["clips"] > 0
    subset.create(dataset, None, where="aesthetic > 5", name="another")
    again = tmp_path / "again.yaml"
    again.write_text(info["recipe_files"][0]["text"])
    subset.create(dataset, str(again), name="again")
    assert load_subset(dataset, "again").info["hash"] == info["hash"]
    capsys.readouterr()
    subset.show(dataset, name)
    assert f"clipmill subset create {dataset} --where" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("recipe", "details", "said"),
    [
        (None, {}, "give a RECIPE .* or a predicate with --where"),
        ("svd", {"where": "true"}, "not both"),
        (None, {"where": " "}, "--where is empty"),
        (None, {"where": "motoin > 2"}, "motoin"),
        (None, {"where": "true; DROP TABLE x"}, "2 statements"),
        (None, {"where": "aesthetic > 5", "overrides": ["a=1"]}, "a predicate has no parameters"),
    ],
)
def test_predicate_is_checked_like_a_rule(explored: Path, recipe, details, said):
    with pytest.raises(UsageError, match=said):
        subset.explain(explored, recipe, **details)
