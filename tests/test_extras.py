"""What works with only some of the dependencies, and what the rest reports."""

from __future__ import annotations

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from clipmill.schemas.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[1]
WITHOUT = """
import sys

class Without:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            return None
        return self.finder.find_spec(name, path, target)

    def __getattr__(self, name):
        return getattr(self.finder, name)

sys.meta_path[:] = map(Without, sys.meta_path)
{code}
"""


def python(code: str, missing: set[str], folder: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", WITHOUT.format(missing=missing, code=code)],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
    )


def clipmill(folder: Path, missing: set[str], *words: object) -> subprocess.CompletedProcess:
    arguments = ["clipmill", *map(str, words)]
    return python(
        f"sys.argv = {arguments!r}\nfrom clipmill.jobs.cli import main\nmain()", missing, folder
    )


SEVERAL = """
import contextlib, io, json
from clipmill.jobs.cli import main

for words in {commands!r}:
    sys.argv = ["clipmill", *words]
    said = io.StringIO()
    status = 0
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    print(json.dumps([words, status, said.getvalue()]))
"""


def several(folder: Path, missing: set[str], commands: list[tuple[str, ...]]) -> list[list]:
    """Each command with its exit status and messages, of one process."""
    said = python(SEVERAL.format(commands=commands), missing, folder)
    assert said.returncode == 0, said.stderr
    found = [json.loads(line) for line in said.stdout.splitlines()]
    assert len(found) == len(commands)
    return found


def test_queries_subsets_exports_and_reports_need_no_extra(made, tmp_path):
    dataset = str(made.dataset)
    commands = [
        ("sql", dataset, "SELECT count(*) FROM clips"),
        ("status", dataset),
        ("subset", "explain", dataset, "--where", "aesthetic > 0"),
        ("export", dataset, "--format", "webdataset", "--output", "out"),
        ("report", dataset),
    ]
    for words, status, said in several(tmp_path, set(EXTRAS), commands):
        assert status == 0, (words, said)


def test_run_without_models_needs_only_its_extra(made, tmp_path):
    missing = {name for name, extra in EXTRAS.items() if extra != "run"}
    said = clipmill(
        tmp_path,
        missing,
        "run",
        "timestamps-only",
        "--engine",
        "local",
        "--dataset",
        "new",
        "--sources",
        made.loaded.recipe.sources[0].path,
    )
    assert said.returncode == 0, said.stderr


@pytest.mark.parametrize(
    ("missing", "recipe", "status", "lines"),
    [
        ("run models", "timestamps-only", 1, ["missing av", "pip install 'clipmill[run]'"]),
        ("models", "timestamps-only", 0, ["ok      torch: not installed", "decoder h264"]),
        ("models", "demo", 1, ["missing torch", "pip install 'clipmill[models]'"]),
    ],
)
def test_doctor_lists_the_extras_that_a_recipe_needs(tmp_path, missing, recipe, status, lines):
    names = {name for name, extra in EXTRAS.items() if extra in missing.split()}
    said = clipmill(tmp_path, names, "doctor", recipe)
    assert said.returncode == status, said.stdout + said.stderr
    assert all(line in said.stdout for line in lines), said.stdout


def test_command_that_needs_an_extra_prints_the_line_that_installs_it(made, tmp_path):
    dataset = str(made.dataset)
    commands = [
        ("run", "timestamps-only", "--sources", "x.mp4"),
        ("verify", dataset),
        ("export", dataset, "--format", "webdataset", "--media", "copy", "--output", "out"),
    ]
    for words, status, said in several(tmp_path, set(EXTRAS), commands):
        assert status == 1, (words, said)
        assert "pip install 'clipmill[run]'" in said, (words, said)
        assert "Traceback" not in said


def test_python_prints_it_too(made, tmp_path):
    dataset = str(made.dataset)
    lines = {
        "clipmill.run": "pip install 'clipmill[run]'",
        "clipmill.ClipDataset": "pip install 'clipmill[train]'",
        f"clipmill.open({dataset!r}).training()": "pip install 'clipmill[train]'",
        f"clipmill.open({dataset!r}).export('out', 'parquet', media='copy')": (
            "pip install 'clipmill[run]'"
        ),
    }
    said = python(
        f"import clipmill\nfor code in {list(lines)!r}:\n    try:\n        eval(code)\n"
        "    except ImportError as error:\n        print(str(error).replace('\\n', ' '))",
        set(EXTRAS),
        tmp_path,
    )
    assert said.returncode == 0, said.stderr
    for found, line in zip(said.stdout.splitlines(), lines.values(), strict=True):
        assert line in found


def test_all_named_extras_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert {*EXTRAS.values(), "train", "all"} <= set(project["optional-dependencies"])
