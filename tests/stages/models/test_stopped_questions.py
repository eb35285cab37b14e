"""Pending requests when a run is stopped: cut immediately, and no more are sent."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress

import pytest
import yaml

from clipmill.stages.models.engines.requests import Generation, Request, answers
from clipmill.stages.models.engines.servers import ServerEngine
from clipmill.stages.references import ModelReference
from tests.faults.kill_world import ROOT, clipmill, command, environment
from tests.media import Scene, cached
from tests.openai_stand_in import openai_server, text_of


def until(holds, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


@contextmanager
def stopped_in(url: str, asked):
    """Leaves a client while eight of its threads wait for answers; returns the seconds it took."""
    server = ServerEngine(ModelReference(server=url, model="tiny"), timeout_seconds=100.0)

    def ask() -> None:
        with suppress(CancelledError):
            answers(server, [Request.of(str(i), generation=Generation(5)) for i in range(40)])

    threading.Thread(target=ask, daemon=True).start()
    until(asked)
    began = time.monotonic()
    server.__exit__()
    yield time.monotonic() - began


@pytest.mark.parametrize("misdeed", ["hang", "headers", "drip", "stall", "stream", "reset", 429])
def test_leaving_cuts_pending_requests_and_sends_no_more(misdeed):
    """A server that sends nothing, one that never ends, one that requests retries."""
    with openai_server(text_of) as stand_in:
        stand_in.always, stand_in.retry_after = misdeed, "50"
        with stopped_in(stand_in.url, lambda: len(stand_in.requests) >= 8) as seconds:
            assert seconds < 2
            before = len(stand_in.requests)
            time.sleep(1.5)  # a lost connection is retried after 1.25 s at most
            assert len(stand_in.requests) == before


def test_leaving_does_not_wait_for_connections_or_use_them(monkeypatch):
    """A connection that is being opened can't be cut; it is cut once it is open."""
    left, begun, made = threading.Event(), [], []
    connect = socket.create_connection

    def slow(*arguments, **settings):
        begun.append(arguments)
        assert left.wait(60)
        made.append(connect(*arguments, **settings))
        return made[-1]

    monkeypatch.setattr(socket, "create_connection", slow)
    with openai_server(text_of) as stand_in:
        with stopped_in(stand_in.url, lambda: len(begun) == 8) as seconds:
            assert seconds < 4
        left.set()
        until(lambda: len(made) == 8)
        time.sleep(0.5)
        assert stand_in.requests == []
    assert len(begun) == 8


def test_leaving_does_not_wait_for_a_handshake():
    """A server that accepts the connection and sends nothing."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listening:
        url = "https://{}:{}/v1".format(*listening.getsockname())
        taken = []

        def took_eight() -> bool:
            taken.append(listening.accept()[0])
            return len(taken) == 8

        listening.settimeout(60)
        with stopped_in(url, took_eight) as seconds:
            assert seconds < 4
        for line in taken:
            line.close()


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_run_with_a_hanging_model_server_stops_immediately(how, tmp_path):
    """The next run resumes it."""
    film = cached((Scene("red", 2.0), Scene("blue", 2.0)), size=(320, 240), rate=10)[0]
    with openai_server(lambda request: "a dog runs") as stand_in:

        def answer_check(_) -> str:
            stand_in.always = "hang"
            return "a dog"

        answers, stand_in.answer = stand_in.answer, answer_check
        recipe = tmp_path / "hang.yaml"
        recipe.write_text(
            yaml.safe_dump(
                {
                    "sources": [str(film)],
                    "engine": "local",
                    "stages": {
                        "download_videos": {"min_duration_seconds": 1, "min_height": None},
                        "split_clips": {},
                        "caption_frames": {
                            "model": f"{stand_in.url}#tiny",
                            "server_timeout_seconds": 60,
                        },
                    },
                },
                sort_keys=False,
            )
        )
        dataset = tmp_path / "dataset"
        with subprocess.Popen(
            command("run", recipe, "--dataset", dataset),
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env=environment(),
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            until(lambda: len(stand_in.requests) > 1 or process.poll() is not None)
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.3)
            before = len(stand_in.requests)
            os.kill(process.pid, how)
            began = time.monotonic()
            _, said = process.communicate(timeout=90)
            assert time.monotonic() - began < 10
        assert process.returncode == 128 + how
        assert said.endswith(
            "Stopped. What is committed stays; run the same command to continue.\n"
        )
        assert len(stand_in.requests) == before
        (record,) = [json.loads(file.read_text()) for file in (dataset / "runs").glob("*.json")]
        assert record["state"] == "stopped"
        stand_in.answer, stand_in.always = answers, None
        done = clipmill("run", recipe, "--dataset", dataset)
        assert done.returncode == 0, done.stderr
