"""Model servers that a run starts itself, by a stand-in program for vLLM and SGLang."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from clipmill.schemas.errors import ClipmillError
from clipmill.stages.models.engines import started_servers
from clipmill.stages.models.engines.opening import open_engine
from clipmill.stages.models.engines.requests import Generation, Request, answers
from clipmill.stages.models.generation import GeneratingStage
from clipmill.stages.models.places import noted_places
from clipmill.stages.references import ModelReference
from tests.faults.kill_world import clipmill
from tests.media import Scene, cached
from tests.server_program import environment

SHORT = Generation(5)


class Settings(GeneratingStage):
    """Only the settings."""


def lives(folder: Path) -> list[list]:
    """The process and arguments of each start."""
    return [json.loads(line) for line in (folder / "lives").read_text().splitlines()]


@contextmanager
def started(folder: Path, *options: str, program: str = "vllm", start_seconds=60.0, **settings):
    python = environment(folder)
    chosen = {
        "python": str(python),
        "options": ["--lives", str(folder / "lives"), *options],
        "start_seconds": start_seconds,
    }
    stage = Settings(
        engine={program: chosen}, server_concurrency=1, server_first_wait_seconds=0.05, **settings
    )
    with open_engine(
        ModelReference(folder=str(folder)), stage, "s.model", takes="text", batch=1
    ) as opened:
        yield opened


def ask(opened, *texts: str):
    return answers(opened, [Request.of(text, generation=SHORT) for text in texts])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def until(holds, seconds=60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("program", "module", "parallel"),
    [
        ("vllm", "vllm.entrypoints.openai.api_server", "--tensor-parallel-size"),
        pytest.param("vllm", "vllm serve", "--tensor-parallel-size", marks=pytest.mark.slow),
        pytest.param("sglang", "sglang.launch_server", "--tp-size", marks=pytest.mark.slow),
    ],
)
def test_server_starts_slowly_answers_and_ends(program, module, parallel, tmp_path, caplog):
    caplog.set_level(logging.INFO, "clipmill.models.server")
    if module == "vllm serve":
        (tmp_path / "vllm").touch()
    with (
        noted_places() as places,
        started(tmp_path, "--wait", "0.3", program=program, gpus=2, dtype="bfloat16") as opened,
    ):
        ((pid, said, *options),) = [(one[0], one[1], *one[2:]) for one in lives(tmp_path)]
        assert [answer.text for answer in ask(opened, "a", "b")] == ["life 1: a", "life 1: b"]
        assert is_alive(pid)
    assert not is_alive(pid)
    assert said == module
    assert " ".join(options) == f"{parallel} 2 --dtype bfloat16"
    assert f"s.model: loading {tmp_path}" in caplog.messages
    assert not [line for line in caplog.messages if "POST" in line]  # a line per request
    (place,) = places
    facts = json.loads(place.served)
    assert (facts["id"], facts["root"]) == (tmp_path.name, str(tmp_path))
    assert "created" not in facts


@pytest.mark.slow
def test_request_that_kills_the_server_fails_alone(tmp_path):
    """Each start is a new life; innocents in flight are answered by the next one."""
    with started(tmp_path, "--die-on", "poison") as opened:
        found = ask(opened, "a", "poison", "b")
    assert [getattr(answer, "text", None) for answer in found] == ["life 1: a", None, "life 3: b"]
    assert found[1].kind == "crash"
    assert "the server died 2 times during this request" in found[1].message
    assert "out of memory, as told" in found[1].message
    assert len(lives(tmp_path)) == 3


def test_server_that_dies_once_is_started_again(tmp_path):
    with started(tmp_path, "--die-on", "poison", "--times", "1") as opened:
        found = ask(opened, "a", "poison")
    assert [answer.text for answer in found] == ["life 1: a", "life 2: poison"]


@pytest.mark.slow
def test_server_that_hangs_is_ended_and_started_again(tmp_path, monkeypatch):
    monkeypatch.setattr(started_servers, "_HEALTH_SECONDS", 0.3)
    settings = {"server_timeout_seconds": 1.0}
    with started(tmp_path, "--hang-on", "poison", "--times", "1", **settings) as opened:
        found = ask(opened, "a", "poison")
        assert [answer.text for answer in found] == ["life 1: a", "life 2: poison"]
        assert [is_alive(life[0]) for life in lives(tmp_path)] == [False, True]


@pytest.mark.slow
def test_server_that_never_answers_is_an_error_with_its_last_lines(tmp_path):
    ended = r"s\.model: the server ended before it answered, with exit status 1.*"
    with (
        pytest.raises(ClipmillError, match=f"(?s){ended}no GPU is big enough"),
        started(tmp_path, "--quit"),
    ):
        pass
    slow = r"did not answer within 0\.5 s \(start_seconds\)"
    with (
        pytest.raises(ClipmillError, match=slow),
        started(tmp_path, "--wait", "50", start_seconds=0.5),
    ):
        pass
    assert not any(is_alive(life[0]) for life in lives(tmp_path))
    (tmp_path / "python").unlink()
    stage = Settings(engine={"sglang": {"python": str(tmp_path / "python")}})
    reference = ModelReference(folder=str(tmp_path))
    with (
        pytest.raises(ClipmillError, match=r"s\.model: no Python at .*python"),
        open_engine(reference, stage, "s.model", takes="text", batch=1),
    ):
        pass


@pytest.mark.slow
def test_stages_with_the_same_model_share_a_server(tmp_path):
    with started(tmp_path) as one:
        with started(tmp_path) as two:
            assert [ask(opened, "x")[0].text for opened in (one, two)] == ["life 1: x"] * 2
        assert ask(one, "y")[0].text == "life 1: y"
    assert len(lives(tmp_path)) == 1


WORKER = """
import sys, time
from pathlib import Path
from tests.stages.models.test_started_servers import ask, started

with started(Path(sys.argv[1]), "--child") as opened:
    print(ask(opened, "x")[0].text, flush=True)
    time.sleep(300)
"""


@pytest.mark.slow
def test_server_ends_with_a_worker_that_is_killed(tmp_path):
    """With all that it has started, though a process of it ignores being asked to."""
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, str(tmp_path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[3],
    ) as worker:
        assert worker.stdout.readline() == "life 1: x\n"
        ((server, *_),) = lives(tmp_path)
        children = Path(f"/proc/{server}/task/{server}/children").read_text().split()
        assert len(children) == 1
        os.kill(worker.pid, signal.SIGKILL)
        until(lambda: not is_alive(server))
        until(lambda: not is_alive(int(children[0])))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_run_starts_a_server_for_its_stages_and_ends_it(engine, tmp_path):
    """Both stages share it; its output is in the run's log, and what it says in the record."""
    film = cached((Scene("red", 2.0), Scene("blue", 2.0)), size=(320, 240), rate=10)[0]
    from tests.models_factory import tiny_model

    folder = str(tiny_model("qwen_vl"))
    server = {"python": str(environment(tmp_path)), "options": ["--lives", str(tmp_path / "lives")]}
    model = {"model": folder, "engine": {"vllm": server}}
    recipe = {
        "sources": [str(film)],
        "engine": engine,
        "ray": {"num_cpus": 2},
        "stages": {
            "download_videos": {"min_duration_seconds": 1, "min_height": None},
            "split_clips": {},
            "caption_frames": {**model, "prompt": "the picture", "fine": False},
            "summarize_captions": {**model, "prompt": "say {{ coarse }}"},
        },
    }
    (tmp_path / "served.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    dataset = tmp_path / "dataset"
    done = clipmill("run", tmp_path / "served.yaml", "--dataset", dataset)
    assert done.returncode == 0, done.stderr
    ((server, *_),) = lives(tmp_path)
    assert not is_alive(server)
    shown = clipmill("sql", dataset, "SELECT DISTINCT caption FROM clips", "--format", "csv")
    assert shown.stdout.split("\n")[1] == "life 1: say life 1: the picture"
    assert "caption_frames.model: loading" in clipmill("logs", dataset).stdout
    (record,) = [json.loads(file.read_text()) for file in (dataset / "runs").glob("*.json")]
    for stage in record["stages"][2:]:
        ((said,),) = stage["served"].values()
        assert json.loads(said["said"])["root"] == folder
