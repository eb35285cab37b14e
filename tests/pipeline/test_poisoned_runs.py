"""Runs with models that run out of memory and servers that die: rows and records are right."""

from __future__ import annotations

import itertools
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from clipmill.jobs.run import run
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.dataset.run_records import latest_run
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.run import load
from clipmill.pipeline.status import status_report
from clipmill.stages.models.engines.language import LanguageModel
from tests.conftest import Made
from tests.openai_stand_in import StandIn, openai_server, text_of

ROOT = Path(__file__).resolve().parents[2]
# What a worker learns is lost when it ends: with several workers, each learns it again.
POISON = """
import importlib.abc, importlib.util, os, sys

MOST = {
    "clipmill.stages.models.engines.families": (
        "Blip", "generate", lambda x: len(x["pixel_values"]), 2),
    "clipmill.stages.models.embedders": ("ClipEmbedder", "embed_batch", len, 3),
    "clipmill.stages.models.engines.language": (
        "LanguageModel", "generate", lambda x: len(x["input_ids"]), 1),
}


def limited(original, size_of, most):
    def run(self, inputs, *arguments):
        import torch

        size = size_of(inputs)
        with open(os.environ["POISON_LOG"], "a") as log:
            log.write(f"{os.getpid()} {original.__name__} {size}\\n")
        if size > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(self, inputs, *arguments)
    return run


class Poisoned(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name not in MOST:
            return None
        sys.meta_path.remove(self)
        try:
            spec = importlib.util.find_spec(name)
        finally:
            sys.meta_path.insert(0, self)
        execute = spec.loader.exec_module

        def exec_module(module):
            execute(module)
            owner, method, size_of, most = MOST[name]
            owner = getattr(module, owner)
            setattr(owner, method, limited(getattr(owner, method), size_of, most))

        spec.loader.exec_module = exec_module
        return spec


sys.meta_path.insert(0, Poisoned())
"""
BY_MODELS = (
    "tag_clips",
    "caption_frames",
    "summarize_captions",
    "embed_clips",
    "score_similarity",
    "score_aesthetic",
)


@pytest.fixture
def dataset(made: Made, tmp_path: Path) -> Path:
    """A copy without the models' tables."""
    copy = Path(shutil.copytree(made.dataset, tmp_path / "dataset"))
    for name in BY_MODELS:
        shutil.rmtree(copy / name)
    return copy


def clips(dataset: Path, columns: str = "*") -> list[dict]:
    with open_catalog(dataset) as catalog:
        return catalog.ask(f"SELECT {columns} FROM clips ORDER BY clip_id").read_all().to_pylist()


def rows(dataset: Path, label: str) -> list[dict]:
    found = pq.read_table(next(iter((dataset / label).iterdir()))).to_pylist()
    return sorted(found, key=lambda row: row["clip_id"])


def assert_same(dataset: Path, expected: Path) -> None:
    """The models' results equal those with enough memory."""
    assert clips(dataset, "clip_id, caption, caption_coarse") == clips(
        expected, "clip_id, caption, caption_coarse"
    )
    for found, wanted in zip(clips(dataset, "tags"), clips(expected, "tags"), strict=True):
        assert [tag["tag"] for tag in found["tags"]] == [tag["tag"] for tag in wanted["tags"]]
        # With another batch size, the last bits may differ on some processors.
        assert [tag["score"] for tag in found["tags"]] == pytest.approx(
            [tag["score"] for tag in wanted["tags"]], abs=2e-2
        )
    for label, column in (
        ("embed_clips", "embeddings"),
        ("score_similarity", "similarity"),
        ("score_aesthetic", "aesthetic"),
    ):
        found, wanted = (
            np.array([row[column] for row in rows(place, label)], float)
            for place in (dataset, expected)
        )
        np.testing.assert_allclose(found, wanted, atol=2e-2)


def assert_sane(dataset: Path) -> None:
    record = latest_run(dataset)
    assert record["state"] == "done"
    report = status_report(dataset)
    assert all(stage["accounted"] and not stage["pending"] for stage in report["stages"])
    with open_catalog(dataset) as catalog:
        assert catalog.execute("SELECT count(*) FROM failures_all").fetchone() == (0,)


def poisoned_run(dataset: Path, folder: Path, engine: str) -> list[list[str]]:
    """Runs with low-memory modules on the workers' path; returns the recorded calls.

    Each line is a process, a method, and the size of a batch.
    """
    (folder / "poison").mkdir()
    (folder / "poison" / "sitecustomize.py").write_text(POISON)
    log = folder / "sizes.log"
    environment = {
        **os.environ,
        "POISON_LOG": str(log),
        "PYTHONPATH": f"{folder / 'poison'}{os.pathsep}{ROOT}",
    }
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "clipmill.jobs.cli",
            "run",
            "--dataset",
            str(dataset),
            "--engine",
            engine,
        ],
        stdin=subprocess.DEVNULL,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in log.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_run_with_too_little_memory_for_batches_makes_the_same_rows(
    engine, made, dataset, tmp_path
):
    """Each worker halves until a batch fits, and stays there; nothing fails."""
    seen = poisoned_run(dataset, tmp_path, engine)
    assert_same(dataset, made.dataset)
    assert_sane(dataset)
    for method, most in (("generate", 2), ("embed_batch", 3), ("_compute", 1)):
        for process in {number for number, name, _ in seen if name == method}:
            sizes = [
                int(size) for number, name, size in seen if (number, name) == (process, method)
            ]
            too_large = [size for size in sizes if size > most]
            assert too_large, "the limit was never met"
            # Tags and embeddings share a class, and each halves for itself, once.
            assert sum(later >= size for size, later in itertools.pairwise(too_large)) <= 1
            assert sizes[-1] <= most


@pytest.mark.slow
def test_rows_that_never_fit_fail_and_a_retry_makes_them(made, dataset, monkeypatch):
    import torch

    def no_memory(self, *inputs):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    with monkeypatch.context() as without:
        without.setattr(LanguageModel, "generate", no_memory)
        run(load(None, dataset), dataset)
    n_clips = len(clips(made.dataset))
    report = {stage["stage"]: stage for stage in status_report(dataset)["stages"]}
    assert report["summarize_captions"]["failed"] == n_clips
    assert report["caption_frames"]["kept"] == n_clips
    assert all(stage["accounted"] and not stage["pending"] for stage in report.values())
    with open_catalog(dataset) as catalog:
        [(kind, message)] = catalog.execute(
            "SELECT DISTINCT kind, message FROM failures"
        ).fetchall()
    assert kind == "model"
    assert "out of memory" in message
    run(load(None, dataset), dataset, retry_kinds=["model"])
    assert clips(dataset, "clip_id, caption") == clips(made.dataset, "clip_id, caption")
    assert latest_run(dataset)["state"] == "done"


def say(request: dict) -> str:
    return f"a shape moves over {len(text_of(request))} fields"


@contextmanager
def dying_server(answers: int, port: int) -> Iterator[StandIn]:
    """Answers this many requests, then stops listening."""
    enough, ended = threading.Event(), threading.Event()
    ready: list[StandIn] = []
    begun = threading.Event()

    def answer(request: dict) -> str:
        if len(ready[0].requests) >= answers:
            enough.set()
        if len(ready[0].requests) > answers:
            raise ConnectionAbortedError  # it will end, however long that takes
        return say(request)

    def serve() -> None:
        with openai_server(answer, port=port) as stand_in:
            ready.append(stand_in)
            begun.set()
            enough.wait(600)
        ended.set()

    thread = threading.Thread(target=serve)
    thread.start()
    assert begun.wait(60)
    try:
        yield ready[0]
    finally:
        enough.set()
        thread.join()


@pytest.fixture
def kept_port() -> Iterator[int]:
    """A port that nobody else gets while its server is down, because this socket holds it, too."""
    with socket.socket() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


def test_server_that_dies_during_a_run_and_comes_back(made, dataset, kept_port):
    """Unanswered rows are transient; a retry makes all of them, also in the views."""
    # The first answer is to the check before the run.
    with dying_server(answers=4, port=kept_port) as stand_in:
        recipe = load_recipe(
            recipe_path("demo"),
            engine="local",
            overrides=[
                f"summarize_captions.model={stand_in.url}#tiny",
                "summarize_captions.server_concurrency=1",
                "summarize_captions.server_retries=1",
                "summarize_captions.server_first_wait_seconds=0.05",
            ],
        )
        run(recipe, dataset)
    n_clips = len(clips(made.dataset))
    said = clips(dataset, "clip_id, caption, similarity")
    failed = [row for row in said if row["caption"] is None]
    assert len(said) == n_clips
    assert len(failed) == n_clips - 3
    report = {stage["stage"]: stage for stage in status_report(dataset)["stages"]}
    assert report["summarize_captions"]["failed"] == len(failed)
    assert all(stage["accounted"] and not stage["pending"] for stage in report.values())
    assert latest_run(dataset)["state"] == "done"
    with open_catalog(dataset) as catalog:
        assert set(
            catalog.execute(
                "SELECT kind FROM failures WHERE stage = 'summarize_captions'"
            ).fetchall()
        ) == {("transient",)}
    with openai_server(say, port=kept_port) as stand_in:
        run(load(None, dataset), dataset, retry_kinds=["transient"])
        # Only failed rows were requested again, after one request to check the server.
        assert len([one for one in stand_in.requests if "messages" in one]) == len(failed) + 1
    again = clips(dataset, "clip_id, caption, similarity")
    assert not [row for row in again if row["caption"] is None or row["similarity"] is None]
    kept = {row["clip_id"]: row["caption"] for row in said if row["caption"] is not None}
    assert {row["clip_id"]: row["caption"] for row in again if row["clip_id"] in kept} == kept
    with open_catalog(dataset) as catalog:
        assert catalog.execute("SELECT count(*) FROM failures").fetchone() == (0,)
        counted = catalog.execute(
            "SELECT count(*), bool_and(resolved) FROM failures_all"
        ).fetchone()
    assert counted == (len(failed), True)
