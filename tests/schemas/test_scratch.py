"""Temporary folders outside the dataset: those of killed processes are removed, others stay."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.synthetic import build_dataset

ROOT = Path(__file__).resolve().parents[2]
HOLDER = (
    "from clipmill.schemas.scratch import ScratchFolder\n"
    "folder = ScratchFolder('sql')\n"
    "(folder.path / 'duckdb_temp').write_bytes(bytes(1000))\n"
    "print(folder.path, flush=True)\n"
    "input()\n"
)


def test_next_command_removes_only_abandoned_folders(tmp_path: Path):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    environment = {**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT)}
    dataset = build_dataset(tmp_path / "dataset").path
    holders = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER],
            env=environment,
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    try:
        killed, living = (Path(holder.stdout.readline().strip()) for holder in holders)
        holders[0].kill()
        holders[0].wait()
        assert killed.is_dir()
        (temporary / "clipmill-sql-mine").mkdir()  # without a lock: not one of ours
        (temporary / "clipmill-sql-link").symlink_to(dataset)
        subprocess.run(
            [sys.executable, "-m", "clipmill.jobs.cli", "sql", str(dataset), "FROM clips"],
            stdin=subprocess.DEVNULL,
            env=environment,
            cwd=ROOT,
            check=True,
            capture_output=True,
        )
        left = {path.name for path in temporary.glob("clipmill-*")}
        assert left == {living.name, "clipmill-sql-mine", "clipmill-sql-link"}
        holders[1].communicate("\n", timeout=60)
        assert not living.exists()
    finally:
        for holder in holders:
            holder.kill()
            holder.wait()
            holder.stdin.close()
            holder.stdout.close()
