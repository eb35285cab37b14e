"""Bash's suggestions after Tab."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BIN = Path(sys.executable).parent
# Queries the installed completion for each line like bash at Tab, after its last word.
ASK = """
. "$HOME/.bashrc"
while IFS= read -r line; do
  COMP_WORDS=($line); case $line in *" ") COMP_WORDS+=("");; esac
  COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 )); COMPREPLY=()
  _clipmill_completion clipmill
  printf '%s\\n' "${COMPREPLY[*]}"
done
"""

EXPECTED = {
    "clipmill ru": {"run", "runs"},
    "clipmill run s": {"small-cpu"},
    "clipmill run timestamps-only --until ": {"download_videos", "split_clips"},
    "clipmill run timestamps-only --set split_clips.min_clip_s": {"split_clips.min_clip_seconds="},
    "clipmill run timestamps-only --set split_clips.whe": {"split_clips.where="},
    "clipmill retry data --kind b": {"blocked", "bad_media"},
    "clipmill export data --subset ": {"calm", "talks"},
    "clipmill export data --caption caption_c": {"caption_coarse"},
    "clipmill subset show data t": {"talks"},
    "clipmill subset explain data internvid-d": {"internvid-div"},
    "clipmill audit data --subset ca": {"calm"},
    "clipmill audit data --name ": {"pretty"},
    "clipmill logs data --run 2026": {"20260101T000000000000-abcdef"},
    "clipmill run no-such-recipe --until ": None,
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder in which `clipmill --install-completion` was run in bash."""
    home = tmp_path_factory.mktemp("home")
    for name in ("calm", "talks"):
        (home / "data" / "subsets" / name).mkdir(parents=True)
    (home / "data" / "runs").mkdir()
    (home / "data" / "audits").mkdir()
    (home / "data" / "audits" / "pretty.json").write_text("{}")
    (home / "data" / "runs" / "20260101T000000000000-abcdef.json").write_text(json.dumps({}))
    bash(home, "clipmill --install-completion; true")
    return home


def bash(home: Path, script: str, typed: str = "") -> str:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "HOME": str(home), "PATH": path}
    return subprocess.run(
        ["bash", "--norc", "-c", script],
        cwd=home,
        env=environment,
        input=typed,
        text=True,
        capture_output=True,
        check=True,
    ).stdout


@pytest.mark.slow
def test_bash_uses_the_installed_completion(home: Path):
    """Recipes, stages, settings, a dataset's subsets and runs, columns; nothing if unknown."""
    answers = bash(home, ASK, "".join(f"{line}\n" for line in EXPECTED)).splitlines()
    for (line, offers), answer in zip(EXPECTED.items(), answers, strict=True):
        if offers is None:  # the built-in stages as a fallback
            assert "split_clips" in answer.split()
            continue
        said = {word for word in answer.split() if not word.endswith("=2.0")}
        assert offers <= said, line
        assert all(word.startswith(line.split(" ")[-1]) for word in said), line
