"""Shared by several parts of the tests: a small dataset made with the whole recipe."""

from __future__ import annotations

import gc
import os
import re
import shutil
import signal
from collections.abc import Generator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from clipmill.schemas.extras import EXTRAS
from clipmill.schemas.file_locks import wait_for_lock

SEED = 11
FILMS = 2

# Whatever a user or CI has set: output is the same everywhere, loopback bypasses proxies, and the
# only Ray cluster is the tests' own.
for _name in (
    "COLUMNS",
    "LINES",
    "TERMINAL_WIDTH",
    "FORCE_COLOR",
    "PY_COLORS",
    "CLICOLOR_FORCE",
    "TTY_COMPATIBLE",
    "TTY_INTERACTIVE",
    "GITHUB_ACTIONS",
    "RAY_ADDRESS",
    *(f"{kind}_PROXY" for kind in ("HTTP", "HTTPS", "ALL", "NO")),
):
    os.environ.pop(_name, None)
    os.environ.pop(_name.lower(), None)

# A script's background jobs start with Ctrl-C ignored, `nohup` starts programs with SIGHUP
# ignored, and both are inherited: here each signal has its default effect.
signal.signal(signal.SIGINT, signal.default_int_handler)
for _signal in (signal.SIGHUP, signal.SIGQUIT):
    signal.signal(_signal, signal.SIG_DFL)

# `make test` has the same result for the same tree on any machine: examples are drawn from a fixed
# seed, without deadlines. `make test-slow` draws new ones each time.
settings.register_profile(
    "same", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.register_profile("anew", settings.get_profile("same"), derandomize=False, print_blob=True)
settings.load_profile("same")

HAS_MODELS = find_spec("torch") is not None
"""False where only `clipmill[run]` is installed, as `make test-wheel` does."""


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Skips test files that import what `clipmill[models]` installs, if it isn't there."""
    if HAS_MODELS or collection_path.suffix != ".py":
        return None
    text = collection_path.read_text("utf-8")
    needed = ("\nimport torch\n", "\nfrom safetensors", "\nfrom clipmill.pipeline.training")
    return any(words in text for words in needed) or None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports a test that needs models as skipped if none are installed."""
    report = yield
    if not HAS_MODELS and report.failed and call.excinfo is not None:
        said = str(call.excinfo.value)
        missing = re.search(r"No module named '(\w+)", said)
        if "clipmill[models]" in said or (missing and EXTRAS.get(missing[1]) == "models"):
            report.outcome = "skipped"
            report.longrepr = (str(item.path), item.location[1] or 0, "needs clipmill[models]")
    return report


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Imports and rewrites all tests without looking for garbage, which would take as long again.

    From then on, it is looked for among the objects that tests make, not among modules.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.collect()
        gc.freeze()
        gc.enable()


def pytest_unconfigure() -> None:
    """Lets modules be freed at the end: libraries report what is not."""
    gc.unfreeze()


@dataclass(frozen=True)
class Made:
    """A dataset of two of the demo's films, its recipe's plan, and the films' ground truth."""

    dataset: Path
    loaded: object
    plan: object
    films: list


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """The demo's recipe over two of its films, run in this process.

    Processes that share the tests make it once, and each has its own copy of the dataset.
    """
    from clipmill.jobs.demo.world import make_world
    from clipmill.pipeline.recipes.plan import build_plan
    from clipmill.pipeline.recipes.ready_made import recipe_path
    from clipmill.pipeline.recipes.recipe import load_recipe

    own = tmp_path_factory.getbasetemp()
    first = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "made-once"
    (first / "films").mkdir(parents=True, exist_ok=True)
    films = make_world(SEED, FILMS)
    loaded = load_recipe(recipe_path("demo"), sources=[str(first / "films")], engine="local")
    with (first / "lock").open("w") as file:
        wait_for_lock(file)
        if not (first / "whole").exists():
            _make(first, films, loaded)
            (first / "whole").touch()
    dataset = tmp_path_factory.mktemp("made") / "dataset"
    shutil.copytree(first / "dataset", dataset)
    return Made(dataset, loaded, build_plan(loaded), films)


def _make(folder: Path, films: list, loaded: Any) -> None:
    from clipmill.jobs.demo.render import render_film
    from clipmill.jobs.run import run

    for film in films:
        render_film(film, folder / "films" / f"{film.name}.mp4")
    shutil.rmtree(folder / "dataset", ignore_errors=True)  # a test's time was up while it was made
    run(loaded, folder / "dataset")
