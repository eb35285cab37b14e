"""Gates: rows that don't pass are skipped; a changed gate computes only what is newly let in."""

from __future__ import annotations

import dataclasses
import re
from contextlib import closing

import pytest

import clipmill
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.dataset.shards import base_shard, committed_shards
from clipmill.pipeline.engine import retry, step_files
from clipmill.pipeline.engine.left_out import gate_connection
from clipmill.pipeline.recipes.cheap_first import cheap_first_notes
from clipmill.pipeline.recipes.gates import Gate, check_gates, gate_rows
from clipmill.pipeline.recipes.overrides import as_overrides
from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.status import status_report
from clipmill.pipeline.verify import verify
from clipmill.schemas.errors import UsageError
from tests.synthetic import STEPS, build_dataset

NAMES = ("inputs", "kept", "rejected", "failed", "skipped", "pending")


def counts(data, stage: str) -> list[int]:
    found = {one["stage"]: one for one in status_report(data.dataset)["stages"]}
    assert all(one["accounted"] for one in found.values())
    return [found[stage][name] for name in NAMES]


def kept(data, label: str, *overrides: str) -> set[str]:
    return {row["clip_id"] for row in data.table(label, *overrides) if not row["rejection"]}


class Killed(BaseException):
    """Simulates SIGKILL: no later code runs."""


def killed_after(monkeypatch, times: int, act, owner=step_files.StepFiles, name="finish") -> None:
    """Runs `act` with a process that dies when it does something for one time more than this."""
    left = [times]
    done = getattr(owner, name)

    def die_later(self, *given):
        if not left[0]:
            raise Killed
        left[0] -= 1
        done(self, *given)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die_later)
        with pytest.raises(Killed):
            act()


def newest(data) -> dict[tuple[str, str], list[dict]]:
    """The newest rows of each key, by stage."""
    found = {}
    for label in ("cut_words", "name_words", "count_letters"):
        for row in data.table(label):
            key = row.get("clip_id") or row["video_id"]
            found[label, key] = row
    return found


def gate(where: str) -> str:
    return f"name_words.where={where}"


@pytest.mark.slow
def test_changed_gate_computes_only_what_it_newly_lets_in(words):
    data = words("a?clips=4", "b?clips=4", "c?clips=1")
    data.run(gate("start_seconds >= 2"))
    assert counts(data, "name_words") == [9, 4, 0, 0, 5, 0]
    assert counts(data, "count_letters") == [4, 4, 0, 0, 0, 0]
    found = clipmill.open(data.dataset).sql("SELECT DISTINCT stage, rule, detail FROM skipped")
    assert found.fetchall() == [("name_words", "skipped", "where start_seconds >= 2")]
    assert verify(data.dataset).faults == []
    before = data.files()
    assert not data.run(gate("start_seconds >= 2"))

    wider = gate("start_seconds >= 1")
    assert data.run(wider)
    assert counts(data, "name_words") == [9, 6, 0, 0, 3, 0]
    assert data.shards("name_words") == ["000000", "000000.retry1"]
    again = [row["clip_id"] for row in data.table("name_words")][-2:]
    assert sorted(again) == ["v-a-1", "v-b-1"]
    assert counts(data, "count_letters") == [6, 6, 0, 0, 0, 0]
    after = data.files()
    assert {name: after[name] for name in before if "index" not in name} == {
        name: at for name, at in before.items() if "index" not in name
    }
    # A narrower gate keeps what is there, and is remembered.
    assert not data.run(gate("start_seconds >= 3"))
    assert counts(data, "name_words") == [9, 6, 0, 0, 3, 0]
    assert data.records()[-1]["recipe"]["stages"]["name_words"]["where"] == "start_seconds >= 3"
    assert not data.run(gate("start_seconds >= 3"))
    # Without a gate the rest is done.
    assert data.run()
    assert counts(data, "name_words") == [9, 9, 0, 0, 0, 0]
    assert counts(data, "count_letters") == [9, 9, 0, 0, 0, 0]
    assert clipmill.open(data.dataset).sql("FROM skipped").fetchall() == []
    assert verify(data.dataset).faults == []
    assert not data.run()
    fingerprints = {step.fingerprint for step in build_plan(data.loaded(wider)).steps}
    assert fingerprints == {step.fingerprint for step in build_plan(data.loaded()).steps}


@pytest.mark.slow
def test_kills_while_gates_change_leave_the_same_rows(words, monkeypatch, tmp_path):
    """The process dies at the first gate, while it requests what passes, and while it does that."""
    sources = ("a?clips=3", "b?clips=3", "c?clips=3")
    first = ("name_words.where=start_seconds >= 2",)
    wider = ("name_words.where=start_seconds >= 1", "count_letters.where=word NOT LIKE '%b%'")
    quiet = words(*sources, shard_videos=1)
    quiet.run(*first)
    quiet.run(*wider)
    data = dataclasses.replace(quiet, folder=tmp_path / "killed")
    data.folder.mkdir()
    killed_after(monkeypatch, 7, lambda: data.run(*first))
    data.run(*first)
    killed_after(monkeypatch, 1, lambda: data.run(*wider), retry.Requests, "write")
    killed_after(monkeypatch, 2, lambda: data.run(*wider))
    data.run(*wider)
    assert newest(data) == newest(quiet)
    assert sorted(data.shards("name_words")) == sorted(quiet.shards("name_words"))
    assert verify(data.dataset).faults == []
    assert not data.run(*wider)


@pytest.mark.slow
def test_gates_of_every_level_pass_on_what_they_let_through(words):
    """A stage of several steps, stages over sources and videos, and a gate behind a gate."""
    data = words("a?clips=3", "b?clips=3", "c?fail=name", "d")
    gates = (
        "fetch_words.where=url NOT LIKE 'https://d%'",
        "cut_words.where=video_id <> 'v-b'",
        "name_words.where=start_seconds < 2",
        "count_letters.where=word LIKE '%-1'",
    )
    data.run(*gates)
    assert counts(data, "fetch_words") == [4, 3, 0, 0, 1, 0]
    assert counts(data, "cut_words") == [3, 2, 0, 0, 1, 0]
    assert counts(data, "name_words") == [5, 3, 0, 1, 1, 0]
    assert counts(data, "count_letters") == [3, 1, 0, 0, 2, 0]
    assert verify(data.dataset).faults == []
    assert data.run(*gates[3:])
    assert counts(data, "fetch_words") == [4, 4, 0, 0, 0, 0]
    assert counts(data, "cut_words") == [4, 4, 0, 0, 0, 0]
    assert counts(data, "name_words") == [10, 9, 0, 1, 0, 0]
    assert counts(data, "count_letters") == [9, 3, 0, 0, 6, 0]
    assert verify(data.dataset).faults == []


def test_row_whose_value_comes_with_a_retry_is_let_in(words, tmp_path):
    """A null is not let through; when a retry brings the value, the same command goes on."""
    data = words("a?fail=name", "b")
    mend = tmp_path / "mend"
    settings = (f"name_words.mend_file={mend}", "guess_words.where=word IS NOT NULL")
    data.run(*settings)
    assert counts(data, "name_words") == [4, 3, 0, 1, 0, 0]
    assert counts(data, "guess_words") == [4, 3, 0, 0, 1, 0]
    mend.write_text("")
    assert data.run(*settings, retry_kinds=["model"])
    assert counts(data, "name_words") == [4, 4, 0, 0, 0, 0]
    assert counts(data, "guess_words") == [4, 4, 0, 0, 0, 0]
    assert verify(data.dataset).faults == []


def test_best_share_acts_when_all_shards_are_known(words, capfd):
    data = words(*(f"{name}?clips=4" for name in "abcde"), shard_videos=2)
    best = "name_words.where={best: 30%, of: start_seconds}"
    data.run(best)
    said = capfd.readouterr().err
    assert "name_words begins when all shards have been through fetch_words, cut_words" in said
    # 30% of 20 clips are 6, but 10 of them start at 2 s or later, with 5 equal ones each.
    assert re.search(r"best 30% of start_seconds \(>= 2\): 10 of 20 rows pass", said)
    assert counts(data, "name_words") == [20, 10, 0, 0, 10, 0]
    (stage,) = [one for one in data.records()[-1]["stages"] if one["stage"] == "name_words"]
    assert stage["threshold"] == 2.0
    assert {row["rejection"]["detail"] for row in data.table("name_words") if row["rejection"]} == {
        "where best 30% of start_seconds (>= 2)"
    }
    assert not data.run(best)
    assert data.run("name_words.where={best: 60%, of: start_seconds, among: video_id <> 'v-a'}")
    assert counts(data, "name_words") == [20, 14, 0, 0, 6, 0]
    assert verify(data.dataset).faults == []


@pytest.mark.slow  # starts Ray, which evaluates gates in the same way
def test_gates_on_ray_leave_the_same_rows(words, tmp_path):
    first = ("cut_words.where=video_id <> 'v-b'", "name_words.where=start_seconds < 1")
    then = (first[0], "name_words.where={best: 40%, of: start_seconds}")
    here = words(*(f"{name}?clips=4" for name in "abcd"), shard_videos=1)
    there = dataclasses.replace(here, folder=tmp_path / "there")
    there.folder.mkdir()
    for settings in (first, then):
        here.run(*settings)
        there.run(*settings, engine="ray")
    assert newest(there) == newest(here)
    assert counts(there, "name_words") == [12, 9, 0, 0, 3, 0]
    assert verify(there.dataset).faults == []


CONDITIONS = (
    "motion > 1 AND aesthetic_v1 > 4.5",
    "title LIKE '%1%' OR language IS NULL",
    "len(tags) > 0 AND caption_coarse IS NOT NULL",
    "caption IS NULL",
    "similarity > 0.1 AND width >= 320 AND clips.duration_seconds > 1",
    "extra IS NULL AND aesthetic > 4 AND query IS NOT NULL",
)


def test_gate_means_what_it_means_in_sql(tmp_path):
    """Over the whole dataset, and group by group as workers see it, retries included."""
    truth = build_dataset(tmp_path / "dataset")
    head = "package:clipmill.jobs/demo/models/aesthetic.safetensors"
    second = ["aesthetic_v1.stage=score_aesthetic", f"aesthetic_v1.head={head}"]
    plan = build_plan(load_recipe(recipe_path("demo"), overrides=second))
    steps = [
        dataclasses.replace(step, fingerprint=STEPS[step.label][1])
        for step in plan.steps
        if step.label in STEPS
    ]
    last = dataclasses.replace(steps[-1], label="last", stage_label="last")
    folder = truth.path / "sources"
    bases = {base_shard(shard) for shard in committed_shards(folder)}
    groups = [[base, f"{base}.retry1", f"{base}.retry2"] for base in bases]
    with (
        open_catalog(truth.path, use_index=False, allow_external=True) as catalog,
        closing(gate_connection(truth.path)) as connection,
    ):
        for condition in CONDITIONS:
            query = f"SELECT clip_id FROM clips WHERE {condition}"
            right = sorted(clip for (clip,) in catalog.execute(query).fetchall())
            assert 0 < len(right) < truth.clips, condition
            gated = dataclasses.replace(last, gate=Gate(condition))
            (checked,) = check_gates([*steps, gated])
            for shards in ([None], groups):
                found = [
                    key
                    for group in shards
                    for key, _ in connection.execute(
                        gate_rows(
                            [*steps, gated], gated, truth.path, group, set(checked.columns)
                        ).where(condition)
                    ).fetchall()
                ]
                assert sorted(found) == right, condition


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("start_second > 1", "did you mean start_seconds?"),
        ("letters > 1", "which count_letters makes, and that comes later"),
        ("word IS NULL", "which the stage itself makes"),
        ("start_seconds >", "syntax error"),
        ("start_seconds > avg(start_seconds)", "looks at other rows"),
        ("start_seconds IN (SELECT 1)", "has a subquery"),
        ("start_seconds > random()", "a different result each time"),
        ("start_seconds", "is of type DOUBLE, but a gate is a condition"),
        ("1 = 1) OR (true", "syntax error"),
        ("true, true", "not one condition"),
        ("[1]", "is of type INTEGER[], but a gate is a condition"),
        ("{best: 130%, of: start_seconds}", "between 0% and 100%"),
        ("{best: 30%}", "belong together"),
        ("{best: 30%, of: clip_id}", "highest number"),
        ("{worst: 30%, of: start_seconds}", "unknown 'worst'"),
    ],
)
def test_bad_gate_is_refused_before_anything_begins(words, where, said):
    data = words("a")
    with pytest.raises(UsageError) as caught:
        data.run(gate(where))
    assert said in str(caught.value)
    assert "stages.name_words.where" in str(caught.value)
    assert not data.dataset.exists()


def test_condition_is_taken_as_it_is_written(words):
    def where(*overrides: str) -> str | dict | None:
        gate = words("a").loaded(*overrides).gates.get("name_words")
        return None if gate is None else gate.plain()

    odd = "url <> 'a: b #1' AND word_score = 0.5"
    assert where(gate(odd)) == odd
    assert where(*as_overrides({"name_words.where": odd})) == odd
    best = {"best": "30%", "of": "start_seconds", "among": "true"}
    assert where(*as_overrides({"name_words.where": best})) == best
    assert where(gate("true"), gate("null")) is None


def test_gate_that_lets_nothing_through_is_told_before_and_after(words, capfd):
    data = words("a")
    data.run("name_words.where=false")
    said = capfd.readouterr().err
    assert "Gate of name_words: where false; this is never true: it lets nothing through" in said
    assert "let nothing through: all 2 rows are skipped" in said
    data.run("name_words.prefix=x", "name_words.where=start_seconds > 9")
    assert "0 of 2 rows so far pass: it lets nothing through" in capfd.readouterr().err


def test_plan_warns_of_dear_stages_before_a_cheap_gate():
    def notes(*settings: str) -> list[str]:
        steps = build_plan(load_recipe(recipe_path("demo"), overrides=settings)).steps
        return cheap_first_notes(steps, check_gates(steps))

    (note,) = [
        line
        for line in notes("summarize_captions.where=motion > 2")
        if line.startswith("caption_frames ")
    ]
    assert "the gate of summarize_captions needs only motion" in note
    assert "give caption_frames the same `where`" in note
    before = ("tag_clips.where=motion > 2", "caption_frames.where=motion > 2")
    assert notes(*before, "summarize_captions.where=motion > 3") == []
    assert notes("summarize_captions.where=len(caption_coarse) > 3", *before) == []
    (note,) = [
        line for line in notes("hash_frames.where=aesthetic > 4") if line.startswith("caption_")
    ]
    assert "and move score_aesthetic before it" in note
