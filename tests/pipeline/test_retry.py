"""Retries: unresolved failures, first messages, and what a kill leaves behind."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clipmill.jobs.failures import print_failures
from clipmill.jobs.run import run
from clipmill.jobs.verify import verify_dataset
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.dataset.run_logs import log_files, logged_runs
from clipmill.pipeline.run import load
from clipmill.pipeline.status import status_report

MOODY = '''
from contextlib import contextmanager
from pathlib import Path
import pyarrow as pa
from clipmill.schemas.errors import RowFailed
from clipmill.stages.protocol import Rows, Stage, Workspace, resource

class Guess(Stage):
    """Works without a word; where it gets one it does what `mood_file` says."""
    name = "guess"
    reads = ("cut_words.start_seconds", "name_words.word?")
    writes = pa.schema([("guess", pa.string())])
    mood_file: str = resource("")

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            rows = Rows(self)
            for clip, word in zip(*batch.select(["clip_id", "word"]).to_pydict().values()):
                mood = Path(self.mood_file).read_text() if word else ""
                if clip == "v-a-1" and mood == "fail":
                    raise RowFailed("transient", "no guess today")
                if clip == "v-a-1" and mood == "reject":
                    rows.reject(clip, "guess.rule", "as asked")
                else:
                    rows.keep(clip, guess=word or "none")
            return rows.table()
        yield transform
'''


def ask(dataset: Path, text: str) -> list[tuple]:
    with open_catalog(dataset) as catalog:
        return catalog.execute(text).fetchall()


def counts(dataset: Path, stage: str) -> tuple[int, int, int]:
    (found,) = [row for row in status_report(dataset)["stages"] if row["stage"] == stage]
    assert found["accounted"]
    assert found["lost"] == 0
    return found["kept"], found["rejected"], found["failed"]


class Killed(BaseException):
    """Simulates SIGKILL: no later code runs."""


def killed_half_way(monkeypatch: pytest.MonkeyPatch, after: int, act) -> None:
    """Runs `act` with a worker that dies after committing this many shards."""
    from clipmill.pipeline.engine import step_files

    done = [0]
    finish = step_files.StepFiles.finish

    def die_later(self, metadata):
        if done[0] == after:
            raise Killed
        done[0] += 1
        finish(self, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(step_files.StepFiles, "finish", die_later)
        with pytest.raises(Killed):
            act()


def test_killed_retry_is_finished_by_the_next_retry(words, tmp_path, monkeypatch, capsys):
    """The rest of it is done, each row once more and not twice; then the new request."""
    mend = tmp_path / "mended"
    setting = f"name_words.mend_file={mend}"
    data = words("a?fail=name", "b?fail=name", "c?fail=name", "x?fail=cut", shard_videos=1)
    data.run(setting)
    # name_words, count_letters and guess_words of the first shard, then name_words of the second.
    killed_half_way(monkeypatch, 4, lambda: data.run(setting, retry_kinds=["model"]))
    attempts = "SELECT key, attempts FROM failures WHERE kind = 'model' ORDER BY key"
    assert ask(data.dataset, attempts) == [("v-a-1", 2), ("v-b-1", 2), ("v-c-1", 1)]
    assert data.run(setting, retry_kinds=["model"])
    assert ask(data.dataset, attempts) == [("v-a-1", 2), ("v-b-1", 2), ("v-c-1", 2)]
    said = capsys.readouterr().err
    assert "Finishing 1 shard of an earlier, interrupted retry." in said
    assert "no failures of kind model from before that retry" in said
    assert ask(data.dataset, "SELECT attempts FROM failures WHERE kind = 'bad_media'") == [(1,)]

    # Another kind than the killed one: that one is finished first, then this one starts.
    killed_half_way(monkeypatch, 1, lambda: data.run(setting, retry_kinds=["model"]))
    mend.touch()
    capsys.readouterr()
    assert data.run(setting, retry_kinds=["bad_media"])
    said = capsys.readouterr().err
    assert "Finishing" in said
    assert "Retrying 1 failed row of cut_words." in said
    assert ask(data.dataset, "SELECT key, attempts FROM failures ORDER BY key") == [
        ("v-a-1", 3),
        ("v-x", 2),
    ]
    assert data.run(setting, retry_kinds=["model"])
    assert ask(data.dataset, "SELECT key FROM failures") == [("v-x",)]
    assert not data.run(setting)


def test_old_requests_without_a_time_are_finished_too(words, tmp_path):
    data = words("a?fail=name")
    data.run()
    (data.dataset / "retries").mkdir()
    fingerprint = next(
        step["fingerprint"]
        for stage in data.records()[0]["stages"]
        for step in stage["steps"]
        if step["step"] == "name_words"
    )
    (data.dataset / "retries" / "000000.retry1.json").write_text(
        json.dumps({"step": "name_words", "fingerprint": fingerprint, "keys": ["v-a-1"]})
    )
    assert data.run(retry_kinds=[])
    assert data.shards("name_words") == ["000000", "000000.retry1", "000000.retry2"]


@pytest.mark.parametrize("mood", ["fail", "reject"])
def test_kept_row_stays_kept_if_its_retry_fails(words, tmp_path, mood, capsys):
    """A stage kept a row without an optional input; when the input arrives later, it fails.

    The existing row stays, in views, status and failures; the history has the error, and a retry
    tries it again.
    """
    (tmp_path / "moody.py").write_text(MOODY)
    mend, moods = tmp_path / "mended", tmp_path / "mood"
    moods.write_text(mood)
    settings = (
        f"name_words.mend_file={mend}",
        f"guess.stage={tmp_path / 'moody.py'}:Guess",
        f"guess.mood_file={moods}",
    )
    data = words("a?fail=name&clips=3", "b")
    data.run(*settings)
    assert counts(data.dataset, "guess") == (5, 0, 0)
    mend.touch()
    assert data.run(*settings, retry_kinds=["model"])
    assert counts(data.dataset, "name_words") == (5, 0, 0)
    assert counts(data.dataset, "guess") == (5, 0, 0)
    assert ask(data.dataset, "SELECT * FROM failures") == []
    assert ask(data.dataset, "SELECT * FROM rejections") == []
    history = ask(
        data.dataset, "SELECT key, kind, resolved FROM failures_all WHERE stage = 'guess'"
    )
    assert history == ([("v-a-1", "transient", True)] if mood == "fail" else [])
    if mood == "fail":
        moods.write_text("")
        assert data.run(*settings, retry_kinds=["transient"])
        assert "Retrying 1 failed row of guess." in capsys.readouterr().err
        assert counts(data.dataset, "guess") == (5, 0, 0)
        rows = ask(
            data.dataset,
            "SELECT guess FROM steps.guess WHERE clip_id = 'v-a-1' "
            "AND error IS NULL ORDER BY shard",
        )
        assert rows == [("none",), ("clip v-a-1",)]


def test_first_message_stays_if_a_retry_fails_differently(words, tmp_path, capsys):
    """The row also has its address, time, number of attempts and the command to retry."""
    data = words("a?fail=name")
    data.run()
    path = next((data.dataset / "runs").glob("*.json"))
    record = json.loads(path.read_text())
    source = tmp_path / "renamed.py"
    own = Path(record["recipe"]["stages"]["name_words"]["stage"].rpartition(":")[0])
    source.write_text(own.read_text().replace("no word for", "still nothing for"))
    record["recipe"]["stages"]["name_words"]["stage"] = f"{source}:NameWords"
    path.write_text(json.dumps(record))
    assert run(load(None, data.dataset), data.dataset, retry_kinds=[])
    capsys.readouterr()
    print_failures(data.dataset, format="json")
    out, err = capsys.readouterr()
    (row,) = json.loads(out)
    assert row["message"] == "still nothing for v-a-1"
    assert row["first_message"] == "no word for v-a-1"
    assert row["first_at"] < row["at"]
    assert row["attempts"] == 2
    assert row["retry"] == f"clipmill retry {data.dataset} --kind model"
    assert err.startswith(f"clipmill retry {data.dataset} --kind model  # tries it again; ")
    print_failures(data.dataset)
    out, _ = capsys.readouterr()
    assert "still nothing for v-a-1 (at first: no word for v-a-1)" in out
    print_failures(data.dataset, format="json", history=True)
    assert [(row["message"], row["resolved"]) for row in json.loads(capsys.readouterr().out)] == [
        ("still nothing for v-a-1", False),
        ("no word for v-a-1", False),
    ]


def test_suggested_retries_match_the_kinds_shown(words, capsys, tmp_path):
    """Only unresolved kinds, and of those the requested ones; a dataset's name is quoted."""
    data = words("a?fail=name", "b?fail=cut", "c?lose=cut")
    data.folder = tmp_path / "it's here"
    data.folder.mkdir()
    data.run()
    capsys.readouterr()
    print_failures(data.dataset)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("clipmill")]
    assert [line.partition("  #")[0].rpartition("--kind ")[2] for line in lines] == [
        "bad_media",
        "model",
    ]
    assert "tries these 2 again" in lines[0]
    assert "'\"'\"'s here" in lines[0]
    print_failures(data.dataset, kinds=["model"])
    assert "bad_media" not in capsys.readouterr().err
    print_failures(data.dataset, kinds=["crash"])
    assert "clipmill" not in capsys.readouterr().err


def test_retry_has_a_separate_log(words):
    data = words("a?fail=name")
    data.run()
    data.run(retry_kinds=[])
    runs = logged_runs(data.dataset)
    assert len(runs) == 2
    (driver,) = [file for file in log_files(data.dataset, runs[1]) if file.worker == "driver"]
    assert "Retrying 1 failed row of name_words." in driver.path.read_text()


def test_damaged_retry_request_hides_no_later_one(words, tmp_path):
    """Its number stays unused after verify has set it aside."""
    mend = tmp_path / "mended"
    setting = f"name_words.mend_file={mend}"
    data = words("a?fail=name", "b?fail=cut")
    data.run(setting)
    assert data.run(setting, retry_kinds=["model"])
    assert data.run(setting, retry_kinds=["bad_media"])
    (data.dataset / "retries" / "000000.retry1.json").write_text("{")
    assert verify_dataset(data.dataset, repairs=True) == 0
    data.run(setting)
    mend.touch()
    assert data.run(setting, retry_kinds=["model"])
    assert [path.stem for path in sorted((data.dataset / "retries").iterdir())] == [
        "000000.retry2",
        "000000.retry3",
    ]
    assert ask(data.dataset, "SELECT key FROM failures") == [("v-b",)]
    assert ask(data.dataset, "SELECT count(*) FROM clips WHERE word IS NULL") == [(0,)]
    counts(data.dataset, "count_letters")
    assert verify_dataset(data.dataset) == 0
