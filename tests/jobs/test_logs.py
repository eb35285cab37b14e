"""`clipmill logs`: all workers' lines by time, in every format, even during a run."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from clipmill.jobs import logs
from clipmill.pipeline.dataset.run_logs import LogLimits, RunLog, log_files
from clipmill.schemas.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
RUNS = ("20260101T000000000000-aaaaaa", "20260102T000000000000-bbbbbb")


def line(second: float, message: str, level: str = "info", worker: str = "w", **more) -> str:
    at = (START + timedelta(seconds=second)).isoformat(timespec="milliseconds")
    return (
        json.dumps(
            {
                "time": at,
                "level": level,
                "event": "log",
                "worker": worker,
                "run_id": RUNS[1],
                "host": "h",
                "pid": 7,
                "message": message,
                **more,
            }
        )
        + "\n"
    )


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    """Two runs; the second has two workers, one with a rotated file."""
    folder = tmp_path / "dataset"
    (folder / "runs").mkdir(parents=True)
    for run in RUNS:
        (folder / "logs" / run).mkdir(parents=True)
    (folder / "logs" / RUNS[0] / "driver.jsonl").write_text(line(0, "the first run"))
    place = folder / "logs" / RUNS[1]
    (place / "w.1.jsonl").write_text(line(1, "one") + line(3, "three", "warning"))
    (place / "w.2.jsonl").write_text(line(4, "four"))
    (place / "w.10.jsonl").write_text(line(5, "five"))
    (place / "w.jsonl").write_text(
        line(
            7,
            "seven",
            "error",
            kind="model",
            key="v-1",
            traceback="Traceback:\n  here\nValueError: \x1b[31mno",
        )
    )
    (place / "driver.jsonl").write_text(
        line(0, "zero", worker="driver", versions={"python": "3.11"})
        + line(2, "two", worker="driver", counts={"kept": 3, "failed": 1}, seconds=1.5)
        + line(6, "six", worker="driver")
    )
    return folder


def record_that_runs(dataset: Path) -> None:
    (dataset / "runs" / f"{RUNS[1]}.json").write_text(
        json.dumps(
            {
                "run_id": RUNS[1],
                "state": "running",
                "started_at": START.isoformat(),
                "finished_at": None,
                "recipe_name": "r",
                "code_version": "1",
                "engine": "local",
                "recipe": {},
                "stages": [],
            }
        )
    )


def messages(capsys, dataset: Path, run: str | None = None, **asked) -> list[str]:
    logs.show_logs(dataset, run, format="jsonl", **asked)
    return [json.loads(text)["message"] for text in capsys.readouterr().out.splitlines()]


def test_newest_runs_lines_of_all_workers_are_ordered_by_time(dataset, capsys):
    """Rotated files precede the current one, in the order of their numbers."""
    assert messages(capsys, dataset) == [
        "zero",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "seven",
    ]


def test_level_includes_more_severe_ones(dataset, capsys):
    assert messages(capsys, dataset, level="warning") == ["three", "seven"]
    assert messages(capsys, dataset, level="error") == ["seven"]


def test_run_can_be_given_by_the_beginning_of_its_id(dataset, capsys):
    assert messages(capsys, dataset, "20260101") == ["the first run"]
    assert messages(capsys, dataset, RUNS[0]) == ["the first run"]
    with pytest.raises(UsageError, match="several runs have ids with this prefix"):
        logs.show_logs(dataset, "2026")
    with pytest.raises(UsageError, match=f"no run with this id has logs; the newest: {RUNS[0]}"):
        logs.show_logs(dataset, "1999")


def test_readable_lines_cannot_control_the_terminal(dataset, capsys):
    logs.show_logs(dataset)
    out = capsys.readouterr().out
    assert "\x1b" not in out
    shown = out.splitlines()
    assert shown[0].startswith("2026-01-02 03:04:05.000 info")
    assert shown[2].endswith("kept=3 failed=1 1.5 s: two")
    assert shown[7].endswith("v-1 model: seven")
    assert shown[8:] == ["    Traceback:", "      here", "    ValueError:  [31mno"]


def test_other_formats_have_every_field(dataset, capsys, tmp_path):
    logs.show_logs(dataset, format="json")
    rows = json.loads(capsys.readouterr().out)
    assert rows[2]["counts"] == {"kept": 3, "failed": 1}
    assert rows[0]["versions"] == {"python": "3.11"}
    assert rows[7]["kind"] == "model"
    logs.show_logs(dataset, format="csv", output=tmp_path / "out.csv")
    found = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [row["message"] for row in found][-1] == "seven"
    assert found[7]["traceback"].startswith("Traceback")


def test_damaged_lines_are_counted_and_left_out(dataset, capsys):
    """A process was killed while writing a line; another line is not a log line at all."""
    path = dataset / "logs" / RUNS[1] / "w.1.jsonl"
    path.write_text(path.read_text() + '{"time": "2026-01-02T03:04\n[1]\n\n' + line(3.5, "x")[:-9])
    logs.show_logs(dataset)
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 11
    assert err.startswith("4 damaged lines skipped")


def test_dataset_without_logs_is_reported(tmp_path):
    (tmp_path / "runs").mkdir()
    with pytest.raises(UsageError, match="has no logs yet"):
        logs.show_logs(tmp_path)
    with pytest.raises(UsageError, match="does not exist"):
        logs.show_logs(tmp_path / "nothing")


def test_follow_ends_immediately_for_a_finished_run(dataset, capsys):
    """Its process was killed: the record still says that it is running, but nobody has the lock."""
    record_that_runs(dataset)
    logs.show_logs(dataset, follow=True)
    assert len(capsys.readouterr().out.splitlines()) == 11
    with pytest.raises(UsageError, match="--follow prints lines as they arrive"):
        logs.show_logs(dataset, follow=True, format="csv")


def test_follow_reads_another_processs_lines_until_it_ends(dataset, tmp_path):
    """Each line once, even if the file is rotated meanwhile."""
    writer = f"""
import sys, time
from pathlib import Path
from clipmill.pipeline.dataset.locks import dataset_lock
from clipmill.pipeline.dataset.run_logs import LogLimits, RunLog
dataset = Path({str(dataset)!r})
with dataset_lock(dataset) as hold:
    hold.begin({RUNS[1]!r})
    log = RunLog(dataset, {RUNS[1]!r}, "live", LogLimits(3000, 10**7))
    print("ready", flush=True)
    sys.stdin.readline()
    for number in range(40):
        log.write("failure", f"live {{number}}")
        time.sleep(0.02)
"""
    record_that_runs(dataset)
    with subprocess.Popen(
        [sys.executable, "-c", writer],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout.readline() == "ready\n"
        reader = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "clipmill.jobs.cli",
                "logs",
                str(dataset),
                "--follow",
                "--format",
                "jsonl",
            ],
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        first = [reader.stdout.readline() for _ in range(8)]
        process.stdin.write("go\n")
        process.stdin.flush()
        rest = reader.stdout.read()
        assert reader.wait(60) == 0
    said = [json.loads(text)["message"] for text in [*first, *rest.splitlines()]]
    assert said[8:] == [f"live {number}" for number in range(40)]
    assert sum(file.worker == "live" for file in log_files(dataset, RUNS[1])) > 2


def test_lines_keep_their_order_if_a_file_is_rotated_while_reading(dataset, capsys, monkeypatch):
    """The file then read under its name is newer than the listed one."""
    log = RunLog(dataset, RUNS[1], "live", LogLimits(3000, 10**7))
    log.write("failure", "live 0")
    goes_on, to_come = iter([True, False]), iter(range(1, 40))

    def listed(*run: object) -> list:
        found = log_files(*run)
        for number in to_come:  # all of them after the first listing
            log.write("failure", f"live {number}")
        return found

    monkeypatch.setattr(logs, "_goes_on", lambda *run: next(goes_on))
    monkeypatch.setattr(logs, "log_files", listed)
    said = messages(capsys, dataset, follow=True)
    assert said[8:] == [f"live {number}" for number in range(40)]
    assert sum(file.worker == "live" for file in log_files(dataset, RUNS[1])) > 2
