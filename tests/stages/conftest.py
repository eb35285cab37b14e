"""Fixtures shared by tests of several stages."""

from __future__ import annotations

import pytest

from tests.download_helpers import add_home
from tests.http_server import serve


@pytest.fixture
def site():
    """A web server on this machine."""
    with serve() as server:
        yield server


@pytest.fixture
def platform(monkeypatch):
    """A platform with its own yt-dlp extractor."""
    return add_home(monkeypatch.setattr)
