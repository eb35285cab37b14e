"""The runner, through the entry point of `clipmill run`, with small custom stages."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from clipmill.jobs.run import run
from clipmill.pipeline.dataset.run_logs import log_files, logged_runs
from clipmill.pipeline.run import load
from clipmill.schemas.errors import ClipmillError, UsageError
from tests.pipeline.conftest import OWN, STAGES

ROOT = Path(__file__).resolve().parents[2]


def outcomes(rows: list[dict]) -> Counter:
    return Counter(
        "failed" if row["error"] else "rejected" if row["rejection"] else "kept" for row in rows
    )


def test_every_input_is_kept_rejected_or_failed(words):
    """Good and bad rows together: each has exactly one outcome, at the stage where it ended."""
    data = words("a?clips=3", "b?reject=fetch", "c?fail=cut", "d?lose=cut", "e?fail=name", "f")
    assert data.run()
    assert outcomes(data.table("fetch_words")) == {"kept": 5, "rejected": 1}
    cut = data.table("cut_words")
    assert outcomes(cut) == {"kept": 7, "failed": 2}
    assert {row["video_id"]: row["error"]["kind"] for row in cut if row["error"]} == {
        "v-c": "bad_media",
        "v-d": "bad_media",
    }
    assert outcomes(data.table("name_words")) == {"kept": 6, "failed": 1}
    assert outcomes(data.table("count_letters")) == {"kept": 6}
    for label in STAGES:
        for shard in data.metadata(label):
            assert shard.inputs == shard.kept + shard.rejected + shard.failed


def test_failed_rows_carry_kind_message_attempts_and_time(words):
    data = words("e?fail=name")
    data.run()
    (error,) = [row["error"] for row in data.table("name_words") if row["error"]]
    assert error["kind"] == "model"
    assert error["message"] == "no word for v-e-1"
    assert error["attempts"] == 1
    assert error["at"] is not None


def test_bad_row_fails_only_that_row(words):
    """The bad row's batch is processed again row by row."""
    data = words("e?fail=name&clips=3")
    data.run()
    assert {row["clip_id"]: bool(row["error"]) for row in data.table("name_words")} == {
        "v-e-0": False,
        "v-e-1": True,
        "v-e-2": False,
    }


def test_second_run_does_nothing(words):
    data = words("a", "b", "c", "d")
    assert data.run()
    before = data.files()
    assert not data.run()
    assert data.files() == before
    assert len(data.records()) == 1


def test_changed_setting_recomputes_only_what_depends_on_it(words):
    data = words("a", "b")
    data.run()
    before = data.files()
    assert data.run("name_words.prefix=part")
    made = {name.split("/")[0] for name in data.files().keys() - before.keys()}
    assert made == {"name_words", "count_letters", "guess_words"}
    assert {
        row["word"].split()[0] for row in data.table("name_words", "name_words.prefix=part")
    } == {"part"}
    after = data.files()
    # Going back finds the old tables again, and makes them the current ones.
    assert not data.run()
    assert data.files() == after
    assert len(data.records()) == 3


def test_resources_do_not_change_the_fingerprint(words):
    data = words("a")
    data.run()
    assert not data.run("name_words.batch_rows=1", "name_words.workers=2")


def test_until_stops_and_a_later_run_continues(words):
    data = words("a", "b")
    data.run(until="cut_words")
    assert data.table("cut_words")
    assert not data.table("name_words")
    data.run()
    assert len(data.table("name_words")) == 4


def test_new_sources_make_new_shards_and_keep_the_old_ones(words):
    data = words("a", "b", "c")
    data.run()
    before = data.files()
    data.urls += ["https://d.test/?clips=2"]
    data.run()
    after = data.files()
    assert {name: after[name] for name in before} == before
    assert len(data.table("count_letters")) == 8


def test_retry_processes_failed_keys_and_their_dependents(words, tmp_path):
    """Only failed keys are tried, at the stage where they failed; later stages get only them."""
    mend = tmp_path / "mended"
    setting = f"name_words.mend_file={mend}"
    data = words("a", "e?fail=name", "f?fail=name&clips=3")
    data.run(setting)
    before = data.files()
    assert data.run(setting, retry_kinds=["model"])
    failed_again = [row["error"]["attempts"] for row in data.table("name_words") if row["error"]]
    assert failed_again == [1, 1, 2, 2]
    mend.touch()
    assert not data.run(setting, retry_kinds=["transient"])
    assert data.run(setting, retry_kinds=[])
    after = data.files()
    assert {name: after[name] for name in before} == before
    assert data.shards("cut_words") == ["000000"]
    assert data.shards("name_words") == ["000000", "000000.retry1", "000000.retry2"]
    letters = [row["clip_id"] for row in data.table("count_letters")]
    assert sorted(letters) == sorted({row["clip_id"] for row in data.table("cut_words")})
    # A stage that did without the word at first processes the row again, now that it has one.
    guesses = {row["clip_id"]: row["guess"] for row in data.table("guess_words")}
    assert guesses["v-e-1"] == "clip v-e-1"
    assert not data.run(setting, retry_kinds=[])
    assert not data.run(setting)


def test_both_engines_give_the_same_rows(words, tmp_path):
    sources = [f"v{i}?clips={i % 4 + 1}" for i in range(9)] + ["x?fail=cut", "y?fail=name"]
    data = words(*sources, shard_videos=2)
    data.run(engine="ray")
    over_ray = {label: data.table(label) for label in STAGES}
    here = words(*sources, shard_videos=2)
    here.folder = tmp_path / "again"
    here.folder.mkdir()
    here.run(engine="local")

    def plain(rows: list[dict]) -> list[dict]:
        for row in rows:
            if row["error"]:
                row["error"].pop("at")
        return rows

    # Actors are killed, not closed, but their temporary files must be gone.
    assert list(data.dataset.glob(".scratch/*")) == []
    for label, rows in over_ray.items():
        assert plain(rows) == plain(here.table(label)), label


@pytest.mark.slow
def test_row_that_kills_its_worker_twice_is_a_crash(words):
    """Ray starts the worker again; the row that kills it becomes a crash, its neighbours stay."""
    data = words("a", "k?kill=cut", "b", "c")
    data.run(engine="ray")
    rows = data.table("cut_words")
    assert {row["video_id"]: row["error"]["kind"] for row in rows if row["error"]} == {
        "v-k": "crash"
    }
    assert {row["video_id"] for row in rows if not row["error"]} == {"v-a", "v-b", "v-c"}
    assert len(data.table("count_letters")) == 6
    # Every worker has a log next to the driver's: those that died, and their replacements.
    (run,) = logged_runs(data.dataset)
    files = log_files(data.dataset, run)
    lines = [json.loads(line) for file in files for line in file.path.read_text().splitlines()]
    assert len(files) >= 4
    assert [(line["kind"], line["key"]) for line in lines if line["event"] == "failure"] == [
        ("crash", "v-k")
    ]
    assert {line["step"] for line in lines if line["event"] == "shard_end"} == set(STAGES)
    assert {
        line["step"]: line["counts"].get("failed")
        for line in lines
        if line["event"] == "stage_counts"
    }["cut_words"] == 1


@pytest.mark.slow
def test_local_engine_gets_past_a_row_that_kills_the_process(words, tmp_path):
    """Two runs die at the row, the third records it as a crash and continues."""
    data = words("a", "k?kill=cut", "b")
    data.loaded()
    command = [
        sys.executable,
        "-m",
        "clipmill.jobs.cli",
        "run",
        str(tmp_path / "words.yaml"),
        "--engine",
        "local",
        "--dataset",
        str(data.dataset),
    ]
    codes = [
        subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            capture_output=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        ).returncode
        for _ in range(3)
    ]
    assert codes == [1, 1, 0]
    rows = data.table("cut_words")
    assert {row["video_id"]: (row["error"] or {}).get("kind") for row in rows} == {
        "v-a": None,
        "v-k": "crash",
        "v-b": None,
    }
    assert len(list(data.dataset.rglob("*.tmp"))) == 0


def test_stopping_a_run_does_not_count_against_its_row(words, monkeypatch):
    """However often: only a process that died may have been killed by the row."""

    def stopped(status: int) -> None:
        raise KeyboardInterrupt

    data = words("a", "k?kill=cut")
    monkeypatch.setattr("os._exit", stopped)
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            data.run()
    monkeypatch.setattr("os._exit", lambda status: None)
    data.run()
    assert {row["video_id"]: row["error"] for row in data.table("cut_words")} == {
        "v-a": None,
        "v-k": None,
    }


def test_concurrent_run_is_refused(words):
    import fcntl

    data = words("a")
    data.run()
    with open(data.dataset / ".lock") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ClipmillError, match="another command is using"):
            data.run()


def test_stage_that_reads_an_unknown_column_is_refused(words):
    data = words("a")
    loaded = data.loaded()
    with pytest.raises(UsageError, match="until 'nope'"):
        data.run(until="nope")
    loaded.stages.pop("name_words")
    from clipmill.pipeline.recipes.plan import build_plan

    with pytest.raises(UsageError, match=r"count_letters reads name_words\.word"):
        build_plan(loaded)


def test_run_without_a_recipe_uses_the_newest_one_and_adds_no_sources(words):
    """A source added to the list meanwhile is not fetched; an added stage runs."""
    data = words("a?clips=3", "b?clips=2")
    data.run()
    before = data.files()
    (data.folder / "urls.txt").write_text("https://new.test/?clips=9\n")
    loaded = load(
        None, data.dataset, overrides=[f"more.stage={OWN}:NameWords", "more.prefix=again"]
    )
    assert loaded.recipe.sources
    assert run(loaded, data.dataset, take_sources=False)
    made = {name.split("/")[0] for name in set(data.files()) - set(before)}
    assert made - {"index"} == {"more"}
    assert before.items() <= data.files().items()
    assert data.records()[-1]["recipe"]["stages"]["more"]["prefix"] == "again"
    with pytest.raises(UsageError, match="--limit is about sources"):
        run(loaded, data.dataset, take_sources=False, limit=1)
    # Sources that are given are still added.
    more = load(None, data.dataset, sources=[str(data.folder / "urls.txt")])
    assert list(more.stages) == [*STAGES, "more"]
    assert run(more, data.dataset)
    assert len(data.shards("fetch_words")) == 2


def test_run_without_a_recipe_needs_an_earlier_run(tmp_path):
    with pytest.raises(UsageError, match="name a RECIPE"):
        load(None, None)
    with pytest.raises(UsageError, match="does not exist"):
        load(None, tmp_path / "nothing")
    (tmp_path / "sources").mkdir()
    with pytest.raises(UsageError, match="has no run yet"):
        load(None, tmp_path)
