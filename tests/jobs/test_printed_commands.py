"""Every command that the program prints can be pasted, without placeholders or errors.

Checks all texts in the code and in the docs; pastes the commands of a data card into a shell.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from clipmill.jobs.cli import app
from clipmill.jobs.export import export
from clipmill.jobs.subset import create, show
from tests.scored_catalog import aesthetic, build, embeddings, random_clips

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("jobs", "pipeline", "stages", "schemas")
VALUE = "0"  # replaces interpolated values
# In a text, a command is in backquotes, on a separate line, or after a colon.
IN_TEXT = re.compile(r"`(clipmill [^`]+)`|^\s+(clipmill .+)$|: (clipmill .+)$", re.M)
COMMAND = typer.main.get_command(app)


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """A module's texts that are not docstrings, with VALUE for interpolated values."""
    tree = ast.parse(path.read_text("utf-8"))
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            skipped.add(id(node.value))
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(part) for part in node.values}
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(
                    str(part.value) if isinstance(part, ast.Constant) else VALUE
                    for part in node.values
                ),
            )


def in_code() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            for line, text in texts(path):
                for found in IN_TEXT.findall(text):
                    yield f"{path.relative_to(ROOT)}:{line}", "".join(found)


def in_pages() -> Iterator[tuple[str, str]]:
    pages = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for path in pages:
        for block in re.findall(r"```sh\n(.*?)```", path.read_text("utf-8"), re.S):
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("clipmill "):
                    yield path.name, line


def problem_of(line: str) -> str | None:
    """Why a shell or Clipmill would refuse this command."""
    words = shlex.split(line, comments=True)[1:]
    words = words[: words.index("|")] if "|" in words else words
    if placeholders := [word for word in words if re.fullmatch(r"<.*>|[A-Z_]{3,}|…", word)]:
        return f"placeholders: {placeholders}"
    command, path = COMMAND, "clipmill"
    context = click.Context(command, info_name=path)
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        command, context = found, click.Context(found, info_name=name, parent=context)
    if not words:
        return None  # it is only mentioned
    try:
        command.make_context(command.name, list(words), parent=context.parent)
    except click.exceptions.Exit:
        return None  # --help
    except click.UsageError as error:
        # An interpolated value may be a whole option, or of another type than VALUE.
        return (
            None
            if VALUE in words and isinstance(error, click.BadParameter)
            else (error.format_message())
        )
    return None


def test_commands_are_found_in_the_texts():
    assert len(list(in_code())) > 40
    assert len(list(in_pages())) > 30


@pytest.mark.parametrize("where", ["code", "pages"])
def test_all_printed_commands_are_valid(where):
    found = in_code() if where == "code" else in_pages()
    wrong = []
    for place, line in found:
        try:
            problem = problem_of(line)
        except (click.UsageError, ValueError) as error:
            problem = str(error)
        if problem is not None:
            wrong.append(f"{place}: {line}: {problem}")
    assert wrong == []


def pasted(card: str, folder: Path) -> subprocess.CompletedProcess:
    [block] = re.findall(r"```sh\n(.*?)```", card, re.S)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.run(
        ["bash", "-euc", block],
        cwd=folder,
        env={**os.environ, "PATH": path},
        text=True,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        check=False,
        timeout=120,
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory) -> Path:
    place = tmp_path_factory.mktemp("a folder") / "my data"
    return build(place, random_clips(12, {"aesthetic": (3.0, 7.0)}), [embeddings(), aesthetic()])


@pytest.mark.parametrize("kind", ["ready-made", "extending", "where"])
def test_data_card_reproduces_the_subset(dataset, tmp_path, capsys, kind):
    own = tmp_path / "it's mine.yaml"
    own.write_text("rules:\n- where: aesthetic > $least\nparameters: {least: 4}\n")
    more = tmp_path / "more.yaml"
    more.write_text(f'extends: "./{own.name}"\nrules:\n- where: duration_seconds > 0\n')
    predicate = "aesthetic > 4 AND caption != 'it''s'"
    asked = {
        "ready-made": ("internvid-aes", {"overrides": ["min_aesthetic=4.5"]}),
        "extending": (str(more), {"overrides": ["least=4.5"]}),
        "where": (None, {"where": predicate}),
    }[kind]
    create(dataset, asked[0], name=f"{kind}-1", seed=7, **asked[1])
    capsys.readouterr()
    show(dataset, f"{kind}-1")
    said = pasted(capsys.readouterr().out, tmp_path)
    assert said.returncode == 0, said.stderr
    assert "already exists, with the same clips and rules" in said.stdout


def test_exports_card_reproduces_the_export(dataset, tmp_path):
    output = dataset.parent / "an export"
    export(dataset, output, "huggingface", where="aesthetic > 4")
    said = pasted((output / "README.md").read_text(), dataset.parent)
    assert said.returncode == 0, said.stderr
