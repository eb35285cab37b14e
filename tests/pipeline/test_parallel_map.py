"""Functions over many items, both on Ray and on this machine's processors."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from clipmill.pipeline.engine import parallel_map as tasks
from clipmill.pipeline.engine.parallel_map import map_tasks
from clipmill.pipeline.recipes.recipe import RaySettings
from clipmill.schemas.errors import ClipmillError
from tests.pipeline.task_work import work


@pytest.fixture(params=["local", "local, one processor", "ray"])
def engine(request, monkeypatch) -> str:
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    else:
        one = request.param == "local, one processor"
        monkeypatch.setattr(tasks, "usable_cpus", lambda: 1 if one else 2)
    return request.param.split(",")[0]


@pytest.fixture(params=["local", "ray"])
def processes(request, monkeypatch) -> str:
    """The engines that run tasks in other processes."""
    if request.param == "ray":
        request.getfixturevalue("ray_cluster")
    monkeypatch.setattr(tasks, "usable_cpus", lambda: 2)
    return request.param


@pytest.fixture(scope="module")
def ray_cluster():
    """One cluster for all tests here, because starting one takes seconds."""
    from clipmill.pipeline.engine.on_ray import cluster

    with cluster(RaySettings(num_cpus=2)):
        yield


def test_every_item_has_a_result_and_a_bad_one_fails_alone(engine, tmp_path):
    items = ["a", "row/7", "b", "bug/8", *(f"c{i}" for i in range(12))]
    results = {r.item: r for r in map_tasks(partial(work, tmp_path), items, engine=engine)}
    assert sorted(results) == sorted(items)
    for item, result in results.items():
        if item == "row/7":
            assert (result.problem.kind, result.problem.message) == ("bad_media", "7 is broken")
        elif item == "bug/8":
            assert result.problem.kind == "crash"
            assert result.problem.message == "ZeroDivisionError: 8"
        else:
            assert (result.value, result.problem) == (item.upper(), None)
    assert list(map_tasks(partial(work, tmp_path), [], engine=engine)) == []


def test_error_of_the_whole_command_is_raised_unchanged(engine, tmp_path):
    items = ["a", "full/", *(f"sleep/0.3{i}" for i in range(40))]
    with pytest.raises(ClipmillError, match=r"^the disk is full$"):
        list(map_tasks(partial(work, tmp_path), items, engine=engine))
    assert len(list(tmp_path.iterdir())) < len(items), "the rest was done all the same"


def test_dead_process_is_replaced_and_its_item_retried(processes, tmp_path):
    """Only once: an item that kills its process again fails, and is named."""
    items = ["a", "once/1", "die/2", "b", "c"]
    results = {r.item: r for r in map_tasks(partial(work, tmp_path), items, engine=processes)}
    assert sorted(results) == sorted(items)
    assert results["once/1"].value == "ONCE/1"
    assert results["die/2"].problem.kind == "crash"
    assert "died 2 times" in results["die/2"].problem.message
    attempts = {path.name: len(path.read_text()) for path in tmp_path.iterdir()}
    assert attempts == {"a": 1, "b": 1, "c": 1, "once_1": 2, "die_2": 2}


def test_results_arrive_as_they_finish(tmp_path, monkeypatch):
    monkeypatch.setattr(tasks, "usable_cpus", lambda: 2)
    items = ["until/told", "a", "b", "c"]
    results = map_tasks(partial(work, tmp_path), items, engine="local")
    order = [next(results).item for _ in range(3)]
    (tmp_path / "told").touch()
    order += [result.item for result in results]
    assert order == ["a", "b", "c", "until/told"]


def test_leaving_the_iteration_kills_running_tasks(processes, tmp_path):
    items = ["a", "sleep/200", "sleep/200.0"]
    results = map_tasks(partial(work, tmp_path), items, engine=processes)
    assert next(results).item == "a"
    began = time.monotonic()
    results.close()
    assert time.monotonic() - began < 50


SCRIPT = """
import sys, time
from functools import partial
from pathlib import Path
from clipmill.pipeline.engine import parallel_map as tasks
from tests.pipeline.task_work import work

if __name__ == "__main__":
    tasks.usable_cpus = lambda: 2
    print("begun", flush=True)
    items = ["sleep/200", "sleep/201", "sleep/202"]
    list(tasks.map_tasks(partial(work, Path(sys.argv[1])), items, engine="local"))
"""


def test_ctrl_c_ends_all_processes_immediately_and_silently(tmp_path):
    root = Path(__file__).resolve().parents[2]
    (tmp_path / "script.py").write_text(SCRIPT)
    (tmp_path / "notes").mkdir()
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(tmp_path / "notes")],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert process.stdout.readline() == "begun\n"
    try:
        deadline = time.monotonic() + 100
        while len(list((tmp_path / "notes").iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)
        _, said = process.communicate(timeout=60)  # 400 s without the signal
        assert said.count("Traceback") == 1, said
        assert ends_within(30, process.pid), "a process of the group lives on"
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        raise


def ends_within(seconds: float, group: int) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if not any(is_alive(place, group) for place in Path("/proc").glob("[0-9]*")):
            return True
        time.sleep(0.05)
    return False


def is_alive(place: Path, group: int) -> bool:
    """Whether the group has live processes. Dead ones stay listed if nobody reaps orphans."""
    try:
        state, _, its_group = (place / "stat").read_text().rpartition(")")[2].split()[:3]
    except OSError:
        return False
    return int(its_group) == group and state not in "ZX"
