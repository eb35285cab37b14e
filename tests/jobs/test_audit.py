"""`clipmill audit`: a sample around a threshold, labels, precision and recall."""

from __future__ import annotations

import csv
import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

import clipmill
from clipmill.jobs.cli import app
from clipmill.pipeline.dataset.tombstones import new_tombstone
from clipmill.schemas.damage import DamagedFile
from clipmill.schemas.errors import UsageError
from tests.scored_catalog import Clip, aesthetic, build, embeddings, own, random_clips, similarity
from tests.typed import Shell

WHERE = "aesthetic >= 4.4 AND duration_seconds > 3"
MADE = [embeddings(), similarity(), aesthetic()]


@pytest.fixture(scope="module")
def explored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 clips; some lack a value, two are NaN, and some are exactly at a threshold."""
    clips = random_clips(300, {"similarity": (0.0, 0.5), "aesthetic": (2.0, 8.0)})
    for clip in clips[:6]:
        clip.values["aesthetic"] = 4.4  # not the same number in single and double precision
    for clip in clips[6:8]:
        clip.values["aesthetic"] = float("nan")
    return build(tmp_path_factory.mktemp("audit") / "dataset", clips, MADE)


@pytest.fixture
def dataset(explored: Path, tmp_path: Path) -> Path:
    shutil.copytree(explored, tmp_path / "dataset")
    return tmp_path / "dataset"


def command(*words: Any) -> None:
    app(["audit", *map(str, words)], standalone_mode=False)


def printed(capsys: pytest.CaptureFixture[str], *words: Any) -> dict[str, Any]:
    command(*words, "--format", "json")
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def belongs(clip: dict[str, Any]) -> bool:
    """What a person would say: by a number that no score knows."""
    return (int(clip["clip_id"].encode().hex(), 16) % 10 < 7) == (clip["aesthetic"] > 5)


def label_all(audit: clipmill.Audit) -> None:
    audit.label({clip["clip_id"]: belongs(clip) for clip in audit.clips()}, by="anna")


@pytest.mark.parametrize(
    ("where", "score", "reaches", "kept"),
    [
        (WHERE, "aesthetic", "duration_seconds > 3", "aesthetic {} AND duration_seconds > 3"),
        ("aesthetic >= 4.4", None, "true", "aesthetic {}"),
        ("4.4 <= aesthetic", None, "true", "aesthetic {}"),
        (
            "NOT aesthetic < 4.4 OR similarity > 0.4",
            "aesthetic",
            "true",
            "aesthetic {} OR similarity > 0.4",
        ),
        (
            "aesthetic BETWEEN 4.4 AND 7",
            "aesthetic >=",
            "aesthetic <= 7",
            "aesthetic {} AND aesthetic <= 7",
        ),
    ],
)
def test_labels_of_all_clips_give_the_truth(dataset: Path, where, score, reaches, kept):
    """With every clip labelled, precision and recall are those of SQL, at each threshold."""
    with clipmill.open(dataset) as opened:
        valued = f"{reaches} AND aesthetic IS NOT NULL AND NOT isnan(aesthetic)"
        count = opened.sql(f"SELECT count(*) FROM clips WHERE {valued}").fetchall()[0][0]
        audit = opened.audit(where, score=score, sample=count, thresholds=[4.4])
        label_all(audit)
        rows = opened.sql(f"SELECT * FROM clips WHERE {valued}").to_arrow_table().to_pylist()
        yes = {row["clip_id"] for row in rows if belongs(row)}
        assert set(audit.sample) == {row["clip_id"] for row in rows}
        assert len(audit.table) > 5
        for value, quality in audit.table:
            condition = kept.format(f">= {value}")
            ids = opened.sql(f"SELECT clip_id FROM clips WHERE ({condition}) AND {valued}")
            there = {clip_id for (clip_id,) in ids.fetchall()}
            assert quality.clips == len(there), value
            assert quality.precision.value == pytest.approx(len(there & yes) / len(there))
            assert quality.recall.value == pytest.approx(len(there & yes) / len(yes))
            assert quality.recall.low == pytest.approx(quality.recall.high)


def test_sample_is_of_known_weights_on_both_sides(explored: Path, tmp_path: Path):
    """Half from each side, a third of it near; weights add up to the clips on each side."""
    dataset = shutil.copytree(explored, tmp_path / "dataset")
    with clipmill.open(dataset) as opened:
        audit = opened.audit("aesthetic >= 5.5")
        again = clipmill.open(shutil.copytree(explored, tmp_path / "other")).audit(
            "aesthetic >= 5.5"
        )
        assert again.sample == audit.sample
        label_all(audit)
        sides = opened.sql(
            "SELECT l.kept, count(*), sum(weight), bool_and(value = aesthetic) FROM audit_labels "
            "AS l JOIN clips USING (clip_id) GROUP BY 1 ORDER BY 1"
        ).fetchall()
        truth = opened.sql(
            "SELECT aesthetic >= 5.5, count(*) FROM clips WHERE aesthetic IS NOT NULL "
            "AND NOT isnan(aesthetic) GROUP BY 1 ORDER BY 1"
        ).fetchall()
        near = opened.sql(
            "SELECT count(*) FROM audit_labels WHERE abs(value - 5.5) < 0.75"
        ).fetchall()[0]
    assert [(kept, number) for kept, number, *_ in sides] == [(False, 15), (True, 15)]
    assert [(kept, round(weight)) for kept, _, weight, _ in sides] == truth
    assert all(same for *_, same in sides)
    assert near[0] >= 8
    assert audit.record.population.without_value > 10
    assert audit.record.population.not_a_number == 2
    assert audit.record.population.not_a_number_kept == 2


def test_larger_sample_keeps_labels_and_further_thresholds_use_them(dataset: Path, capsys):
    with clipmill.open(dataset) as opened:
        label_all(opened.audit("aesthetic >= 5.5"))
    before = printed(capsys, dataset, "--where", "aesthetic >= 5.5")
    assert before["labelled"] == 30
    at = printed(capsys, dataset, "--where", "aesthetic >= 5.5", "--threshold", "6.25")
    assert 6.25 in [one["value"] for one in at["thresholds"]]
    assert at["precision"] == before["precision"]
    more = printed(capsys, dataset, "--where", "aesthetic >= 5.5", "--sample", "50")
    assert (more["labelled"], len(more["sample"])) == (30, 50)
    labelled = {clip["clip_id"] for clip in before["sample"]}
    assert labelled < {clip["clip_id"] for clip in more["sample"]}
    with pytest.raises(UsageError, match="already has a sample of 50"):
        command(dataset, "--where", "aesthetic >= 5.5", "--sample", "10")
    with pytest.raises(UsageError, match=r"already exists, with aesthetic >= 5\.5"):
        command(dataset, "--where", "aesthetic >= 6", "--name", more["name"])


def test_labels_go_through_a_file(dataset: Path, tmp_path: Path, capsys):
    """Written without labels, filled in, read; what the table says is what JSON says."""
    file = tmp_path / "labels.csv"
    command(dataset, "--where", WHERE, "--score", "aesthetic", "--write", file)
    captured = capsys.readouterr()
    (again,) = re.findall(r"then: clipmill (audit .*)", captured.err)
    with file.open() as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 30
    assert {row["label"] for row in rows} == {""}
    assert all(row["link"].startswith("https://media.example/") for row in rows)
    words = ["yes", "NO", "1", "0", "True", "false"]
    labelled = [{**row, "label": words[i % 6]} for i, row in enumerate(rows[:-1])]
    with file.open("w", encoding="utf-8-sig") as opened:
        writer = csv.DictWriter(opened, rows[0].keys(), delimiter=";")
        writer.writeheader()
        writer.writerows([*labelled, rows[-1]])
    app(again.split(), standalone_mode=False)
    captured = capsys.readouterr()
    assert "29 of 30 sampled clips labelled: 15 yes, 14 no" in captured.out
    assert "1 clip still to label" in captured.out
    found = printed(capsys, dataset, "--where", WHERE, "--score", "aesthetic")
    low, high = (f"{100 * found[f'precision_{end}']:.0f}" for end in ("low", "high"))
    (line,) = [line for line in captured.out.splitlines() if line.startswith("> 4.4 ")]
    assert f"{100 * found['precision']:.0f}% ({low}–{high}%)" in line
    shown = [line for line in captured.out.splitlines() if str(dataset) not in line]
    assert max(map(len, shown)) <= 80
    with pytest.raises(UsageError, match=r"labels.csv: it exists, and may have labels"):
        command(dataset, "--where", WHERE, "--score", "aesthetic", "--write", file)
    (row,) = rows_of(dataset, "SELECT * FROM audits")
    assert (row["predicate"], row["score"], row["threshold"]) == (WHERE, "aesthetic", 4.4)
    assert (row["n"], row["labelled"], row["yes"]) == (30, 29, 15)
    assert row["precision_low"] == found["precision_low"]


def rows_of(dataset: Path, query: str) -> list[dict[str, Any]]:
    with clipmill.open(dataset) as opened:
        found: list[dict[str, Any]] = opened.sql(query).to_arrow_table().to_pylist()
        return found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda ids: f"clip_id,label\n{ids[0]}x,yes\n", r"line 2: no clip '.*x' is in .* mean"),
        (lambda ids: f"clip_id,label\n\n{ids[0]},maybe\n", r"line 3: the label 'maybe' is neither"),
        (
            lambda ids: f"clip_id,label\n{ids[0]},yes\n{ids[1]},no\n{ids[0]},0\n",
            r"line 4: .* is no here, and yes in line 2",
        ),
        (lambda ids: f"clip,label\n{ids[0]},yes\n", "it lacks clip_id"),
        (lambda ids: "clip_id,label\n", "has no labels"),
        (lambda ids: None, "no such file"),
    ],
)
def test_bad_labels_are_named(explored: Path, dataset: Path, tmp_path: Path, change, message):
    with clipmill.open(dataset) as opened:
        audit = opened.audit("aesthetic >= 5.5", name="mine")
    text = change(audit.sample)
    if text is not None:
        (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UsageError, match=message):
        command(dataset, "--name", "mine", "--labels", tmp_path / "labels.csv")
    assert rows_of(dataset, "SELECT labelled FROM audits") == [{"labelled": 0}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "say what to audit: a condition with --where"),
        (["--where", "aesthetics >= 5"], r'Candidate bindings: "aesthetic"'),
        (["--where", "language = 'en'"], "compares nothing with a number"),
        (
            ["--where", "aesthetic >= 5 AND motion > 0"],
            r'2 thresholds, .*: aesthetic >= 5, motion > 0; name one with --score, e.g. .*"aesth',
        ),
        (
            ["--where", "motion BETWEEN 0 AND 2", "--score", "motion"],
            r'motion >= 0, motion <= 2; name one with --score, e.g. --score "motion >= 0"',
        ),
        (
            ["--where", "aesthetic >= 5", "--score", "aesthetics"],
            "--score aesthetics: .* did you mean aesthetic",
        ),
        (["--where", "aesthetic >= 9"], "leaves out all .* from 2.* to 7.*: with none kept"),
        (["--where", "aesthetic >= 1"], "keeps all .*: with none left out"),
        (["--where", "aesthetic >= 5", "--sample", "1000"], "--sample 1000: only 2.* at most 2"),
        (["--where", "aesthetic >= 5", "--sample", "1"], "give at least 2"),
        (["--where", "aesthetic >= 5", "--threshold", "nan"], "--threshold nan: give a number"),
        (["--where", "aesthetic >= 5", "--name", "../x"], "an audit's name has"),
        (["--where", "aesthetic >= 5", "--subset", "laion"], "not both"),
        (["--name", "nothing"], "has no audit 'nothing'"),
        (["--subset", "internvid-aes", "--rule", "3"], "has 1 rule, numbered from 1"),
        (["--subset", "internvid-ase"], "did you mean internvid-aes"),
        (["--where", "aesthetic >= 5"], "this is none; write them to a file with --write"),
    ],
)
def test_wrong_use_is_one_message(explored: Path, tmp_path: Path, words, message):
    dataset = explored
    if "none; write" in message:
        dataset = shutil.copytree(explored, tmp_path / "dataset")
    with pytest.raises(UsageError, match=message):
        command(dataset, *words)
    assert not (explored / "audits").exists()


RULES = [
    {"where": "duration_seconds BETWEEN 2 AND 15"},
    {"name": "good looking", "percentile": {"column": "aesthetic", "top": 60}},
    {"sample": {"clips": 50}},
]


def test_rule_of_a_subset_stands_on_its_card_and_in_the_report(dataset: Path, tmp_path, capsys):
    """A percentile's threshold, among the clips that reach the rule; and only its own subset."""
    recipe = tmp_path / "mine.yaml"
    recipe.write_text(yaml.safe_dump({"rules": RULES}))
    with clipmill.open(dataset) as opened:
        subset = opened.create_subset(str(recipe), name="mine")
        other = opened.create_subset(where="duration_seconds > 2", name="other")
        with pytest.raises(UsageError, match=r"3 thresholds, .*name one with --rule"):
            opened.audit(subset="mine")
        audit = opened.audit(subset="mine", rule=2, question="Is it | pretty?")
        assert audit.record.threshold == subset.info["funnel"][1]["thresholds"][0]["value"]
        reached = subset.info["funnel"][0]["remaining"]["clips"]
        people = audit.record.population
        assert people.clips + people.without_value + people.not_a_number == reached
        assert people.kept == subset.info["funnel"][1]["remaining"]["clips"]
        assert "## Audits" not in subset.card()
        label_all(audit)
        card = subset.card()
        precision = audit.precision
        assert precision is not None
        assert f"| {100 * precision.value:.0f}% ({100 * precision.low:.0f}–" in card
        assert "30 of 30" in card
        assert "“Is it \\| pretty?”" in card
        assert "## Audits" not in other.card()
        by_recipe = opened.audit(subset=str(recipe), rule=2)
        assert by_recipe.name == "mine-rule-2"
        assert by_recipe.name != audit.name or by_recipe.labels
        page = opened.report(tmp_path / "page.html", subset="mine").read_text()
        whole = opened.report(tmp_path / "whole.html").read_text()
    assert ">Audits<" in page
    assert f"{100 * precision.value:.0f}% ({100 * precision.low:.0f}–" in whole
    app(["subset", "show", str(dataset), "mine", "--format", "json"], standalone_mode=False)
    (found,) = json.loads(capsys.readouterr().out)["audits"]
    assert found["precision"] == precision.value


def test_clips_that_pass_by_a_crop_are_kept_at_any_threshold(tmp_path: Path):
    names = ("bars", "safe_left", "safe_top", "safe_right", "safe_bottom")
    clips = [
        Clip(
            f"generic-v{n}",
            0.0,
            3.0,
            values=dict(zip(names, (n / 40, 0.0, 0.1 * (n % 4 == 0), 1.0, 1.0), strict=True)),
        )
        for n in range(40)
    ]
    dataset = build(tmp_path / "dataset", clips, [own(name) for name in names])
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("rules: [{where: bars <= 0.2, crop: safe}]")
    with clipmill.open(dataset) as opened:
        audit = opened.audit(subset=str(recipe), sample=40, thresholds=[0.1])
        audit.label(dict.fromkeys(audit.sample, True))
        subset = opened.create_subset(str(recipe), name="mine")
        assert "## Audits" in subset.card()
    counts = {value: quality.clips for value, quality in audit.table}
    assert counts[0.2] == len(subset) == 9 + 7
    assert counts[0.1] == 5 + 8


def test_removal_drops_labels_at_once_and_for_good(dataset: Path, tmp_path: Path, capsys):
    with clipmill.open(dataset) as opened:
        audit = opened.audit("aesthetic >= 5.5", name="mine")
        label_all(audit)
        video = audit.record.sample[0].video_id
        gone = sum(clip.video_id == video for clip in audit.record.sample)
        new_tombstone(dataset, {video: set()}, None)
        assert opened.load_audit("mine").record.removed == gone
        assert video in (dataset / "audits" / "mine.json").read_text()
        assert opened.sql("SELECT labelled FROM audits").fetchall() == [(30 - gone,)]
    shutil.rmtree(dataset / "removed")
    with clipmill.open(dataset) as opened:
        opened.remove(videos=[video])
        assert video not in (dataset / "audits" / "mine.json").read_text()
        assert opened.load_audit("mine").record.labelled == 30 - gone
        assert opened.sql(f"SELECT * FROM audit_labels WHERE video_id = '{video}'").fetchall() == []
        audit.label({audit.sample[0]: True})  # by who still has the sample open
        assert video not in (dataset / "audits" / "mine.json").read_text()
        verified = opened.verify(media=False)
    assert verified.checked["audits"] == 1
    assert [one for one in verified.faults if "audits" in one.where] == []
    assert verified.others == []


@pytest.mark.parametrize(
    ("spoil", "check"),
    [
        (lambda path: path.write_text("{"), "audit"),
        (lambda path: path.with_name(".half~0a1b2c3d.tmp").write_text("x"), "temporary"),
        (lambda path: path.with_name("notes.txt").write_text("x"), "orphan"),
        (
            lambda path: path.write_text(path.read_text().replace('"stratum": 0', '"stratum": 9')),
            "audit",
        ),
    ],
)
def test_verify_names_what_is_wrong_with_an_audit(dataset: Path, spoil: Callable, check: str):
    with clipmill.open(dataset) as opened:
        opened.audit("aesthetic >= 5.5", name="mine")
        before = len(opened.verify(media=False).faults)
        spoil(dataset / "audits" / "mine.json")
        faults = opened.verify(media=False).faults
        assert len(faults) == before + 1
        (fault,) = [one for one in faults if one.where.startswith("audits/")]
        assert fault.check == check
        if check == "audit":
            with pytest.raises(DamagedFile, match="draw the audit again"):
                opened.sql("SELECT * FROM audits")
        assert opened.sql("SELECT count(*) FROM clips").fetchall()[0][0] == 300


def test_changed_catalog_keeps_the_audit_and_refuses_another_sample(tmp_path: Path):
    """Labels stay labels of what was drawn; more clips would be drawn from something else."""
    clips = [
        Clip(f"generic-v{n}", 0.0, 3.0, values={"aesthetic": 2 + n / 20, "similarity": 0.1})
        for n in range(80)
    ]
    dataset = build(tmp_path / "dataset", clips, MADE)
    with clipmill.open(dataset) as opened:
        audit = opened.audit("aesthetic >= 4")
        label_all(audit)
    new = Clip("generic-new", 0.0, 3.0, values={"aesthetic": 9.0, "similarity": 0.1})
    shutil.copytree(dataset / "audits", tmp_path / "kept")
    shutil.rmtree(dataset)
    build(dataset, [*clips, new], MADE)
    shutil.copytree(tmp_path / "kept", dataset / "audits")
    with clipmill.open(dataset) as opened:
        assert opened.audit("aesthetic >= 4").precision == audit.precision
        for more in ({"sample": 40}, {"thresholds": [5.0]}):
            with pytest.raises(UsageError, match="catalog has changed since the audit"):
                opened.audit("aesthetic >= 4", **more)


def test_labelling_in_a_terminal(dataset: Path, tmp_path: Path):
    """One key per clip: yes, no, undo, skip, quit; the next time, it goes on where it was."""
    with Shell(columns=80) as shell:
        shell.run(f"cd {tmp_path}; PATH={Path(sys.executable).parent}:$PATH", 20)
        shell.begin('clipmill audit dataset --where "aesthetic >= 5.5" --sample 4 --question "Hm?"')
        shell.wait_for(r"Hm\?", 60)
        for key in "yn":
            shell.wait_for(r"u or q\? ", 30)
            shell.press(key)
        shell.wait_for(r"u or q\? ", 30)
        shell.press("xu")
        shell.wait_for(r"back to the one before", 30)
        shell.wait_for(r"u or q\? ", 30)
        shell.press("s")
        shell.wait_for(r"u or q\? ", 30)
        shell.press("q")
        assert shell.end(60) == 0
        assert "2 clips still to label" in shell.screen()
        (first,) = rows_of(dataset, "SELECT label FROM audit_labels WHERE label IS NOT NULL")
        assert first == {"label": True}
        begin = len(shell.screen())
        shell.begin('clipmill audit dataset --where "aesthetic >= 5.5" --sample 4 --blind')
        for place in (3, 4):
            shell.wait_for(rf"{place} of 4[^?]*u or q\? ", 60)
            shell.press("y")
        assert shell.end(60) == 0
        screen = shell.screen()[begin:]
    assert "similarity 0" not in screen
    assert "3 of 4 sampled clips labelled: 3 yes, 0 no, 1 skipped" in screen
    shown = [line for line in screen.splitlines() if "clipmill audit" not in line]
    assert max(map(len, shown)) <= 80


def test_page_shows_the_sample(dataset: Path, tmp_path: Path, capsys):
    page = tmp_path / "page.html"
    command(dataset, "--where", "aesthetic >= 5.5", "--page", page, "--blind")
    text = page.read_text()
    with clipmill.open(dataset) as opened:
        audit = opened.load_audit(opened.audits[0])
    places = [text.index(clip_id) for clip_id in audit.sample]
    assert places == sorted(places)
    assert "30 of 30" in text
    assert "aesthetic <b>" not in text
    with pytest.raises(UsageError, match=r"--page .*audits.*: this is inside the dataset"):
        command(dataset, "--name", audit.name, "--page", dataset / "audits" / "x.html")
