"""A run's logs: contents, limits, and that logging never stops a run."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
import warnings
from collections import Counter
from pathlib import Path

import pytest

from clipmill.pipeline.dataset.run_logs import (
    MAX_TRACEBACK_CHARACTERS,
    LogLimits,
    RunLog,
    bounded_traceback,
    forget,
    log_files,
    logged_runs,
    python_messages,
    read_line,
    worker_name,
)
from clipmill.schemas.errors import MAX_MESSAGE_CHARACTERS
from clipmill.schemas.storage import StorageError
from tests.pipeline.conftest import STAGES

WIDE = LogLimits(2**20, 2**23)
NOISY = """
import logging, warnings
from contextlib import contextmanager
import pyarrow as pa
from clipmill.stages.protocol import Stage, Workspace

class Noisy(Stage):
    name = "noisy"
    reads = ("cut_words.start_seconds",)
    writes = pa.schema([("said", pa.string())])

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            logging.getLogger("some.library").warning("weights are %s", "old")
            warnings.warn("this will go", UserWarning, stacklevel=1)
            if "v-a-1" in batch["clip_id"].to_pylist():
                raise KeyError("no such word")
            return batch.select(["clip_id"]).append_column("said", batch["clip_id"])
        yield transform
"""


def lines_of(dataset: Path, run_id: str | None = None) -> list[dict]:
    found = []
    for file in log_files(dataset, run_id or logged_runs(dataset)[-1]):
        for line in file.path.read_bytes().splitlines(keepends=True):
            assert line.endswith(b"\n")
            found.append(json.loads(line))
    return found


def events(lines: list[dict], name: str) -> list[dict]:
    return [line for line in lines if line["event"] == name]


def test_run_logs_its_plan_shards_failures_and_end(words):
    data = words("a", "b?fail=cut", "e?fail=name", "f?clips=3", shard_videos=2)
    data.run()
    (run,) = logged_runs(data.dataset)
    assert run == data.records()[0]["run_id"]
    lines = lines_of(data.dataset)
    for line in lines:
        assert {"time", "level", "event", "run_id", "worker", "host", "pid"} <= line.keys()
        assert line["run_id"] == run
    driver = [line for line in lines if line["worker"] == "driver"]
    assert driver[0]["event"] == "run_start"
    assert {"clipmill", "python", "duckdb"} <= driver[0]["versions"].keys()
    (todo,) = events(driver, "pending")
    assert todo["counts"] == dict.fromkeys(STAGES, 2)
    assert events(driver, "plan")
    assert driver[-1] | {"event": "run_end", "message": "done"} == driver[-1]
    made = Counter((line["step"], line["shard"]) for line in events(lines, "shard_end"))
    assert made == Counter((label, shard) for label in STAGES for shard in ("000000", "000001"))
    assert len(events(lines, "shard_start")) == len(made)
    for line in events(lines, "shard_end"):
        counts = line["counts"]
        assert counts["inputs"] == sum(counts.get(n, 0) for n in ("kept", "rejected", "failed"))
    failed = {(line["step"], line["key"]): line for line in events(lines, "failure")}
    assert set(failed) == {("cut_words", "v-b"), ("name_words", "v-e-1")}
    assert failed["cut_words", "v-b"]["kind"] == "bad_media"
    assert "cannot be cut" in failed["cut_words", "v-b"]["message"]
    (raised,) = events(lines, "exception")  # the other one is expected, as declared by the stage
    assert raised["key"] == "v-b"
    assert "own_stages.py" in raised["traceback"]


def test_stopped_run_logs_the_reason(words, monkeypatch):
    """The shard at which it stopped, and the driver's end, both with the traceback."""
    data = words("a")

    def full(*given, **named):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clipmill.pipeline.engine.step_files.StepFiles.finish", full)
    with pytest.raises(StorageError, match="No space"):
        data.run()
    lines = lines_of(data.dataset)
    (stopped,) = events(lines, "shard_stopped")
    assert (stopped["step"], stopped["shard"]) == ("fetch_words", "000000")
    assert "No space" in stopped["traceback"]
    assert events(lines, "run_error")[0]["worker"] == "driver"
    assert events(lines, "run_end")[0]["message"] == "failed"


def test_libraries_messages_inside_workers_are_logged(words, tmp_path):
    """Warnings from Python and `logging`; an exception of a batch has its traceback only once."""
    (tmp_path / "noisy.py").write_text(NOISY)
    data = words("a", "b")
    loggers = list(logging.getLogger().handlers)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # despite PYTHONWARNINGS
        data.run("noisy.stage=" + str(tmp_path / "noisy.py:Noisy"))
    lines = lines_of(data.dataset)
    said = [line for line in events(lines, "log") if line["logger"] == "some.library"]
    assert (said[0]["level"], said[0]["message"]) == ("warning", "weights are old")
    assert any("this will go" in line["message"] for line in events(lines, "warning"))
    raised = events(lines, "exception")
    assert [line.get("key") for line in raised] == [None, "v-a-1"]
    assert all("no such word" in line["traceback"] for line in raised)
    # No handlers are left behind.
    assert logging.getLogger().handlers == loggers


def test_messages_still_reach_their_former_destination(tmp_path, capsys, monkeypatch):
    """Without a handler, Python prints warnings and worse to standard error."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    log = RunLog(tmp_path, "r", "w", WIDE)
    with python_messages(log), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn("an old option", UserWarning, stacklevel=1)
        logging.getLogger("x").debug("too small to tell")
        logging.getLogger("x").warning("heads %s", "up")
        logging.getLogger("x").warning("%d items", "many")  # can't be formatted
    said = [line["message"] for line in lines_of(tmp_path)]
    assert said[0] == "heads up"
    assert not any("too small" in message for message in said)
    # "always" also shows resources left unclosed by other tests, if they are collected now.
    assert len([one for one in caught if "an old option" in str(one.message)]) == 1
    assert "heads up" in capsys.readouterr().err


def test_hostile_text_becomes_one_harmless_line(tmp_path):
    """Line breaks, escapes, half surrogates, and more text than anyone reads."""
    log = RunLog(tmp_path, "r", "w", WIDE)
    bad = "a\nb\x1b[2J\x9b\u202e\ud800\x00" + "x" * 100_000
    log.write("failure", bad, key=bad, kind="model")
    (path,) = [file.path for file in log_files(tmp_path, "r")]
    text = path.read_bytes()
    assert text.count(b"\n") == 1
    assert all(32 <= byte < 127 for byte in text.rstrip(b"\n"))
    line = read_line(text)
    assert line["message"].startswith("a\nb\x1b[2J")
    assert len(line["message"]) == MAX_MESSAGE_CHARACTERS
    assert len(line["key"]) <= 500


def test_long_traceback_is_truncated_but_keeps_its_end():
    def deep(n: int) -> None:
        if n == 0:
            raise ValueError("the reason " + "y" * 20)
        deep_again(n)

    def deep_again(n: int) -> None:
        deep(n - 1)

    with pytest.raises(ValueError, match="the reason") as caught:
        deep(200)
    text = bounded_traceback(caught.value)
    assert text.startswith("Traceback")
    assert text.rstrip().endswith("y" * 20)
    long = bounded_traceback(ValueError("z" * 50_000))
    assert len(long) <= MAX_TRACEBACK_CHARACTERS + 20


def test_full_file_is_rotated_and_the_oldest_are_deleted_at_the_run_limit(tmp_path):
    limits = LogLimits(20_000, 100_000)
    driver = RunLog(tmp_path, "r", "driver", limits)
    driver.write("run_start", "first of all")
    first = RunLog(tmp_path, "r", "a-first", limits)
    first.write("shard_start", shard="old")
    os.utime(log_files(tmp_path, "r")[0].path, (1, 1))
    log = RunLog(tmp_path, "r", "busy", limits)
    for number in range(3000):
        log.write("failure", f"message {number} " + "x" * 50)
    files = log_files(tmp_path, "r")
    assert all(file.path.stat().st_size <= limits.file_bytes for file in files)
    total = sum(file.path.stat().st_size for file in files)
    assert total <= limits.run_bytes + limits.run_bytes // 16 + limits.file_bytes
    assert total > limits.run_bytes // 2
    busy = [file for file in files if file.worker == "busy"]
    assert [file.number for file in busy][-1] is None
    numbers = [
        int(line["message"].split()[1])
        for file in busy
        for line in map(json.loads, file.path.read_text().splitlines())
    ]
    # The newest are there without a gap, and the driver's line is never dropped.
    assert numbers == list(range(numbers[0], 3000))
    assert "first of all" in (tmp_path / "logs/r/driver.jsonl").read_text()


def test_many_open_files_stay_below_the_run_limit_together(tmp_path):
    """If nothing has been rotated, the files written to longest ago are deleted; their writers go
    on."""
    limits = LogLimits(2**20, 50_000)
    logs = [RunLog(tmp_path, "r", f"w{number}", limits) for number in range(20)]
    for turn in range(60):
        for log in logs:
            log.write("failure", f"turn {turn} " + "x" * 100)
    total = sum(file.path.stat().st_size for file in log_files(tmp_path, "r"))
    assert total <= limits.run_bytes + 20 * limits.run_bytes // 16
    assert any(line["message"].startswith("turn 59") for line in lines_of(tmp_path))


def test_lines_of_many_threads_are_whole(tmp_path):
    log = RunLog(tmp_path, "r", "w", LogLimits(30_000, 2**23))

    def work(name: int) -> None:
        for number in range(100):
            log.write("failure", f"{name}/{number} " + "x" * 200)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = Counter(line["message"].split()[0] for line in lines_of(tmp_path))
    assert found == Counter(f"{name}/{number}" for name in range(8) for number in range(100))


@pytest.mark.parametrize("spoil", ["file", "folder"])
def test_unwritable_log_stops_nothing(words, spoil):
    """A file is where the folder should be, or a folder where the file should be."""
    data = words("a", "b?fail=cut")
    data.dataset.mkdir()
    if spoil == "file":
        (data.dataset / "logs").write_text("in the way")
    else:
        (data.dataset / "logs").mkdir(mode=0o500)
        (data.dataset / "logs").rmdir()
        (data.dataset / "logs").symlink_to("/proc/nowhere")
    assert data.run()
    assert len(data.table("count_letters")) == 2


def test_zero_megabytes_disable_logs(words):
    data = words("a")
    assert data.run("log_megabytes=0")
    assert not (data.dataset / "logs").exists()


def test_names_of_workers_are_safe_and_unique():
    names = {worker_name(["../../Cut words/\n"]) for _ in range(50)}
    assert len(names) == 50
    assert all(name[0] not in ".-" and "/" not in name and "\n" not in name for name in names)


def test_malformed_line_is_recognised_as_damaged():
    whole = json.dumps({"time": "2026-01-02T03:04:05.678+00:00", "event": "x"}).encode()
    assert read_line(whole)
    for bad in (
        whole[:-3],
        b"",
        b"[]",
        b'{"time": 5}',
        b'{"time": "late"}',
        b"\xff\xfe",
        b'{"time": "2026-01-02T03:04:05", "counts": 3}',
    ):
        assert read_line(bad) is None


def test_ten_thousand_lines_take_less_than_a_few_seconds(tmp_path):
    log = RunLog(tmp_path, "r", "w", WIDE)
    started = time.process_time()
    log.write_all([log.line("failure", f"message {n}", key=f"k{n}") for n in range(10_000)])
    assert time.process_time() - started < 5


def test_yt_dlps_messages_are_logged_and_not_printed(tmp_path, capsys, monkeypatch):
    from clipmill.stages.media.fetch.ytdlp_errors import Log

    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    ears = Log()
    with python_messages(RunLog(tmp_path, "r", "w", WIDE)):
        ears.debug("[download] 3%")
        ears.warning("the format is unusual")
        ears.error("ERROR: gone")
    assert [(line["logger"], line["message"]) for line in lines_of(tmp_path)] == [
        ("clipmill.yt_dlp", "the format is unusual"),
        ("clipmill.yt_dlp", "ERROR: gone"),
    ]
    assert capsys.readouterr().err == ""


def test_lines_about_a_removed_video_are_deleted_from_every_run(tmp_path):
    for run in ("r1", "r2"):
        log = RunLog(tmp_path, run, "w", LogLimits(700, 2**20))
        for key in ("v-1", "v-1-0-1000", "v-10", None):
            log.write("failure", "said", key=key)
    forget(tmp_path, lambda key: key.startswith("v-1") and key != "v-10")
    for run in ("r1", "r2"):
        assert [line.get("key") for line in lines_of(tmp_path, run)] == ["v-10", None]
    assert not list(tmp_path.rglob("*.tmp"))
