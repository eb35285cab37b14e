"""Fixtures that tests of more than one stage share."""

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
    """A platform that yt-dlp knows by its own extractor."""
    return add_home(monkeypatch.setattr)
