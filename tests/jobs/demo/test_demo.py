"""`clipmill demo` as a user runs it: rendered, served, over Ray, measured, and not twice."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]


def demo(dataset: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "clipmill.jobs.cli", "demo", "--dataset", str(dataset)],
        stdin=subprocess.DEVNULL,
        cwd=ROOT,
        text=True,
        capture_output=True,
        check=False,
        timeout=280,
    )


# Each of the two runs has its own limit. CI runs `make demo` itself.
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_demo_meets_its_targets_and_repeats_nothing(tmp_path):
    dataset = tmp_path / "demo"
    done = demo(dataset)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("reached") == 8, done.stdout
    assert "missed" not in done.stdout
    assert "know nothing else" in done.stdout
    assert done.stdout.count("sql ") == 3
    before = {path: path.stat().st_mtime_ns for path in dataset.rglob("*.parquet")}
    again = demo(dataset)
    assert again.returncode == 0, again.stderr
    assert "Nothing to do" in again.stderr
    assert {path: path.stat().st_mtime_ns for path in dataset.rglob("*.parquet")} == before
