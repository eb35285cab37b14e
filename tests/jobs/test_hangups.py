"""A closing terminal ends a run cleanly, except one that was told to continue."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from tests.faults.kill_world import ROOT, command, environment
from tests.media import Scene, cached

OWN = Path(__file__).parents[1] / "faults" / "kill_stages.py"
# Like a shell: makes standard input the controlling terminal.
TAKES_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""


def recipe(folder: Path, pace_seconds: float) -> Path:
    film = cached((Scene("red", 2.0), Scene("blue", 2.0)), size=(320, 240), rate=10)[0]
    path = folder / "pace.yaml"
    path.write_text(
        yaml.safe_dump(
            {
                "sources": [str(film)],
                "engine": "local",
                "stages": {
                    "download_videos": {"min_duration_seconds": 1, "min_height": None},
                    "split_clips": {},
                    "describe_clips": {
                        "stage": f"{OWN}:DescribeClips",
                        "pace_seconds": pace_seconds,
                    },
                },
            },
            sort_keys=False,
        )
    )
    return path


def until_described(dataset: Path, process: subprocess.Popen) -> None:
    end = time.monotonic() + 100
    while not list(dataset.glob(".scratch/describe*/*.bin")):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)


def state_of(dataset: Path) -> str:
    (record,) = [json.loads(file.read_text()) for file in (dataset / "runs").glob("*.json")]
    return record["state"]


def test_run_whose_terminal_is_closed_is_recorded_as_stopped(tmp_path):
    """The terminal is a real one, and the run is its session's leader."""
    dataset = tmp_path / "dataset"
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [
            sys.executable,
            "-c",
            TAKES_TERMINAL,
            *command("run", recipe(tmp_path, 60.0), "--dataset", dataset),
        ],
        cwd=ROOT,
        env=environment(TERM="xterm"),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        until_described(dataset, process)
        os.close(ours)
        assert process.wait(timeout=30) == 128 + signal.SIGHUP
    assert state_of(dataset) == "stopped"


def test_run_that_receives_sighup_is_recorded_as_stopped(tmp_path):
    dataset = tmp_path / "dataset"
    with subprocess.Popen(
        command("run", recipe(tmp_path, 60.0), "--dataset", dataset),
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment(),
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        until_described(dataset, process)
        process.send_signal(signal.SIGHUP)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 128 + signal.SIGHUP
    assert said.endswith("Stopped. What is committed stays; run the same command to continue.\n")
    assert "Traceback" not in said
    assert state_of(dataset) == "stopped"


def test_run_under_nohup_continues(tmp_path):
    dataset = tmp_path / "dataset"
    with subprocess.Popen(
        ["nohup", *command("run", recipe(tmp_path, 1.0), "--dataset", dataset)],
        cwd=ROOT,
        env=environment(),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        until_described(dataset, process)
        process.send_signal(signal.SIGHUP)
        said, _ = process.communicate(timeout=90)
    assert process.returncode == 0, said
    assert state_of(dataset) == "done"
