"""New users' mistakes: one error each, which names the next step."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.schemas.errors import UsageError
from tests.synthetic import build_dataset


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one dataset and a file."""
    place = tmp_path_factory.mktemp("mistakes")
    build_dataset(place / "my-dataset", shards=1)
    (place / "page.html").write_text("")
    return place


def said(place: Path, *words: str) -> str:
    """The error for a wrong command, whichever part detects it."""
    done = CliRunner().invoke(app, [word.replace("PLACE", str(place)) for word in words])
    assert done.exit_code != 0
    if isinstance(done.exception, UsageError):
        return str(done.exception)
    assert done.exit_code == 2
    return done.output


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["status", "PLACE/my-datset"], ["does not exist", "did you mean", "my-dataset?"]),
        (["status", "PLACE/page.html"], ["is a file", "there is", "my-dataset"]),
        (["sql", "PLACE", "FROM clips"], ["not a Clipmill dataset", "there is", "my-dataset"]),
        (
            ["sql", "PLACE/my-dataset", "SELECT", "caption", "FROM", "clips"],
            ["extra argument", "in quotes"],
        ),
        (
            ["sql", "PLACE/my-dataset", 'FROM clips WHERE caption = "a dog"'],
            ["'a dog' is text", "single quotes"],
        ),
        (["sql", "PLACE/my-dataset", "SELECT captoin FROM clips"], ["captoin", '"caption"']),
        (
            ["subset", "explain", "PLACE/my-dataset", "--where", 'language = "en us"'],
            ["--where", "'en us' is text"],
        ),
        (["subset", "create", "PLACE/my-dataset", "--where", "motion"], ["put it in quotes"]),
        (
            ["export", "PLACE/my-dataset", "--format", "webdatset", "--output", "PLACE/out"],
            ["'webdatset' is not one of", "did you mean webdataset?"],
        ),
        (
            ["run", "timestamps-only", "one.mp4", "two.mp4"],
            ["--sources of its own", "--sources 'films/*.mp4'"],
        ),
        (["stauts", "PLACE/my-dataset"], ["Did you mean 'status'?"]),
    ],
)
def test_error_names_the_next_step(place: Path, words, parts):
    found = said(place, *words)
    for part in parts:
        assert part in found
    assert "Value error" not in found


def test_misspelt_column_is_not_mistaken_for_text(place: Path):
    found = said(place, "sql", "PLACE/my-dataset", "SELECT captoin FROM clips")
    assert "single quotes" not in found
