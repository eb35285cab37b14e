"""Runs exports in this process, because starting others would take longer than the work."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def one_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})
