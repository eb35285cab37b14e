"""What tests of commands share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.in_process import Done, heard


@pytest.fixture
def clipmill(monkeypatch, capfd) -> Callable[..., Done]:
    """Runs a command in the tests' own process, from the root of the tree."""
    monkeypatch.chdir(Path(__file__).resolve().parents[2])
    return partial(heard, capfd)
