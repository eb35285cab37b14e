"""The help on a terminal of 80 columns."""

from __future__ import annotations

import re

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.pipeline.dataset.versions import code_version


def commands(command=None, words=()):
    command = command or get_command(app)
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from commands(inner, (*words, name))


@pytest.mark.parametrize("words", [words for words, _ in commands()], ids=" ".join)
def test_help_is_readable_at_80_columns(words):
    """No line is longer or truncated, no flag shows a type, every option is explained."""
    done = CliRunner().invoke(app, [*words, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert all(len(line) <= 80 for line in done.output.splitlines())
    assert "<" not in done.output
    assert "..." not in done.output.replace("ARGS]...", "").replace("FILE...", "").replace(
        "CLIP_ID...", ""
    )
    assert "…" not in done.output
    assert "[[" not in done.output
    options = done.output.partition("\nOptions:\n")[2].partition("\n\n")[0]
    for name in re.findall(r"^  (--[a-z-]+)", options, re.M):
        assert re.search(rf"^  {name}( [^ ].*?)?(  +|\n +)\w", options, re.M), name


def test_every_command_is_under_a_heading():
    said = CliRunner().invoke(app, ["--help"]).output
    assert "\nCommands:" not in said
    for heading in (
        "Get started",
        "Make a dataset",
        "Explore a dataset",
        "Make training data",
        "Maintain a dataset",
    ):
        assert f"\n{heading}:\n" in said
    for words, _ in commands():
        if len(words) == 1:
            assert re.search(rf"^  {words[0]} ", said, re.M)


def test_version_is_printed():
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.output == f"clipmill {code_version()}\n"
