"""One module names the folders and files of a dataset: others import the names."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from clipmill.schemas import folders

ROOT = Path(__file__).parents[2]
PACKAGES = ("schemas", "stages", "pipeline", "jobs", "clipmill")
# Their hidden files are those of a temporary folder and of an export.
OTHERS = ("schemas/folders.py", "schemas/scratch.py", "pipeline/exports/folder.py")
TABLES = {folders.FRAMES, folders.SHOTS, folders.INGEST}
NAMES = {
    part
    for name, value in vars(folders).items()
    if name.isupper() and isinstance(value, str)
    for part in value.split("/")
} - TABLES
# A word such as "runs" alone may mean something else; these can't.
FILES = {name for name in NAMES if "." in name}


def spelled(source: str) -> list[str]:
    """The strings of a module that spell a name: as part of a path, or a file's anywhere."""
    tree = ast.parse(source)
    documentation = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    in_paths = {
        node.right
        for node in ast.walk(tree)
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            first, *others = node.value.split("/")
            is_path = bool(others) or node in in_paths
            if node not in documentation and (
                (is_path and first in NAMES) or FILES & {first, *others}
            ):
                found.append(f"line {node.lineno}: {node.value!r}")
    return found


def test_no_other_module_spells_a_folder_of_a_dataset():
    found = [
        f"{path.relative_to(ROOT)}: {line}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in OTHERS
        for line in spelled(path.read_text("utf-8"))
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "source",
    [
        "dataset / 'media'",
        "f'{dataset}/x'; f'runs/{run}.json'",
        "folder / '.claims' / rules",
        "x = '.lock'",
        "glob('*/subset.json')",
        "dataset / 'logs' / run",
    ],
)
def test_a_spelled_name_is_found(source):
    assert len(spelled(source)) == 1


@pytest.mark.parametrize(
    "source", ["checked['runs']", "'the media of runs'", "x / 2", "'''media/'''"]
)
def test_other_words_are_not(source):
    assert spelled(source) == []
