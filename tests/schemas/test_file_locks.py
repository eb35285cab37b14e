"""Locks on files, all of which one module takes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from clipmill.schemas.file_locks import is_free, is_still_at, try_lock, wait_for_lock

ROOT = Path(__file__).parents[2]


def test_a_lock_is_held_until_the_file_is_closed(tmp_path):
    path = tmp_path / "lock"
    with open(path, "w") as first, open(path) as second:
        assert is_free(path)
        assert try_lock(first)
        assert not try_lock(second)
        assert not is_free(path)
    assert is_free(path)


def test_a_killed_holder_frees_its_lock(tmp_path):
    path = tmp_path / "lock"
    script = (
        "import sys, time; from clipmill.schemas.file_locks import wait_for_lock\n"
        "file = open(sys.argv[1], 'w'); wait_for_lock(file); print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(path)], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        assert not is_free(path)
        holder.kill()
    with open(path) as file:
        wait_for_lock(file)


def test_what_cannot_be_locked_is_free(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert is_free(tmp_path / "pipe")
    assert is_free(tmp_path)
    assert is_free(tmp_path / "nothing")


def test_a_deleted_or_replaced_file_is_told_apart(tmp_path):
    path = tmp_path / "lock"
    with open(path, "w") as file:
        assert is_still_at(path, file)
        assert is_still_at(path, file.fileno())
        path.unlink()
        assert not is_still_at(path, file)
        path.touch()
        assert not is_still_at(path, file)


def test_no_other_module_locks_files():
    found = [
        path.relative_to(ROOT).as_posix()
        for package in ("schemas", "stages", "pipeline", "jobs", "clipmill")
        for path in (ROOT / package).rglob("*.py")
        if "flock(" in path.read_text("utf-8")
    ]
    assert found == ["schemas/file_locks.py"]
