"""CI's commands run as on a fresh machine, whatever is installed on this one."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ALONE = Path(__file__).resolve().parents[1] / ".ci" / "alone"


@pytest.fixture
def machine(tmp_path) -> dict[str, str]:
    """The environment of a machine with software and settings of its own."""
    programs, home = tmp_path / "programs", tmp_path / "home"
    (home / ".cache" / "huggingface").mkdir(parents=True)
    (home / ".netrc").write_text("machine 127.0.0.1 login a password b\n")
    programs.mkdir()
    for name in ("ffmpeg", "ffprobe", "somebodys-own"):
        (programs / name).write_text("#!/bin/sh\necho started\n")
        (programs / name).chmod(0o755)
    return {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "HOME": str(home),
        "HF_HOME": "/elsewhere",
        "CLIPMILL_CACHE": "/elsewhere",
        "RAY_ADDRESS": "10.0.0.1:6379",
        "HTTPS_PROXY": "http://10.0.0.1:3128",
        "XDG_CACHE_HOME": "/elsewhere",
    }


def alone(machine: dict[str, str], *command: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(ALONE), *command],
        env=machine,
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=60,
    )


@pytest.mark.parametrize("name", ["ffmpeg", "ffprobe", "somebodys-own"])
def test_program_that_setup_does_not_install_is_not_found(machine, name):
    said = alone(machine, "sh", "-c", f"command -v {name} && {name}")
    assert (said.returncode, said.stdout) != (0, "started\n")
    assert said.stdout == ""


def test_hidden_and_visible_programs_are_printed(machine, tmp_path):
    said = alone(machine, "true")
    assert said.returncode == 0, said.stderr
    [hidden] = [line for line in said.stderr.splitlines() if "hidden" in line]
    assert f"that is: {tmp_path}/programs/ffmpeg {tmp_path}/programs/ffprobe" in hidden
    assert "programs that are seen: make git bash" in said.stderr


def test_callers_variables_and_files_are_hidden(machine):
    said = alone(machine, "sh", "-c", 'env | cut -d= -f1 | sort; ls -A "$HOME"; cd ~ && pwd')
    names = [
        name
        for name in said.stdout.splitlines()[:-1]
        if name not in ("_", "OLDPWD", "PWD", "SHLVL")
    ]
    assert names == ["CI", "HOME", "LANG", "PATH"]
    home = Path(said.stdout.splitlines()[-1])
    assert home != Path(machine["HOME"])
    assert not home.exists()  # and nothing is left behind


def test_arguments_of_make_and_exit_status_are_passed_on(machine):
    assert alone(machine, "make", "--version").returncode == 0
    assert alone(machine, "sh", "-c", "exit 7").returncode == 7


def test_it_can_run_inside_itself(machine):
    said = alone(machine, str(ALONE), "sh", "-c", "command -v ffmpeg || echo alone")
    assert said.stdout == "alone\n", said.stderr
