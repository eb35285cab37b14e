"""Connections to model servers: kept, shared by threads, cut; and requests in the asking thread."""

from __future__ import annotations

import gzip
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from clipmill.schemas.errors import RowFailed
from clipmill.stages.media.isolation import progress
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.requests import Generation, Request, answers
from clipmill.stages.models.engines.servers import ServerEngine
from clipmill.stages.references import ModelReference
from tests.openai_stand_in import completion, openai_server

QUESTION = Request.of("what", generation=Generation(5))


def engine(url: str, **settings) -> ServerEngine:
    settings = {"retries": 0, "timeout_seconds": 100.0, "first_wait_seconds": 0.0} | settings
    return ServerEngine(ModelReference.model_validate(f"{url}#tiny"), **settings)


@contextmanager
def keeping_server(answer: bytes = completion("a dog"), **headers: str) -> Iterator[dict]:
    """A server that keeps connections; it notes them, and the headers that it gets."""
    noted: dict = {"connections": 0, "headers": []}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def setup(self) -> None:
            noted["connections"] += 1
            super().setup()

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            noted["headers"].append(dict(self.headers))
            self.send_response(200)
            for name, value in {"Content-Length": str(len(answer)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    noted["address"] = "{}:{}".format(*server.server_address)
    try:
        yield noted
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_one_connection_serves_all_threads_in_turn():
    with keeping_server() as server, engine(f"http://{server['address']}/v1") as asked:
        for _ in range(4):
            thread = threading.Thread(target=answers, args=(asked, [QUESTION]))
            thread.start()
            thread.join()
        assert answers(asked, [QUESTION, QUESTION]) == [Completion("a dog")] * 2
    assert len(server["headers"]) == 6
    assert server["connections"] <= 2
    assert server["headers"][0]["Host"] == server["address"]


def test_name_and_password_in_the_address_are_sent():
    with keeping_server() as server, engine(f"http://me:a%20b@{server['address']}/v1") as asked:
        assert answers(asked, [QUESTION]) == [Completion("a dog")]
    assert server["headers"][0]["Authorization"] == "Basic bWU6YSBi"


@pytest.mark.parametrize(
    ("content", "headers", "said"),
    [
        (gzip.compress(completion("a dog")), {"Content-Encoding": "gzip"}, None),
        (b"no gzip", {"Content-Encoding": "gzip"}, "RemoteProtocolError"),
        (completion("a dog"), {"Content-Length": "4000", "Connection": "close"}, "IncompleteRead"),
        (completion("a dog"), {"X-Long": "x" * 70_000}, "RemoteProtocolError"),
    ],
)
def test_answers_are_unpacked_and_whole(content, headers, said):
    with (
        keeping_server(content, **headers) as server,
        engine(f"http://{server['address']}/v1") as asked,
    ):
        (found,) = answers(asked, [QUESTION])
    if said is None:
        assert found == Completion("a dog")
    else:
        assert isinstance(found, RowFailed)
        assert said in found.message
        assert found.kind == "transient"


def test_threads_that_ask_share_the_bound_on_requests_in_flight():
    gate = threading.Barrier(4, timeout=60)

    def answer(request):
        gate.wait()  # answers only when four have arrived
        return "a dog"

    with openai_server(answer) as stand_in, engine(stand_in.url, concurrency=4) as asked:
        threads = [
            threading.Thread(target=answers, args=(asked, [QUESTION] * (1 + i % 2)))
            for i in range(8)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(stand_in.requests) == 12
    assert stand_in.most_at_once == 4


def test_thread_that_waits_for_an_answer_makes_progress(monkeypatch):
    beats: list[int | None] = []
    monkeypatch.setattr(progress, "_listener", None)
    progress.listen(lambda decoded_frames=None, *, thread=None: beats.append(thread))
    with (
        openai_server(lambda request: time.sleep(1.2) or "a dog") as stand_in,
        engine(stand_in.url) as asked,
    ):
        assert answers(asked, [QUESTION]) == [Completion("a dog")]
    assert set(beats) == {threading.get_ident()}


def test_request_of_odd_text_arrives_whole():
    odd = Request.of('ü 红 "\\\n\x00', generation=Generation(5))
    with (
        openai_server(lambda request: json.dumps(request["messages"])) as stand_in,
        engine(f"{stand_in.url}/") as asked,
    ):
        (found,) = answers(asked, [odd])
    assert json.loads(found.text) == [{"role": "user", "content": 'ü 红 "\\\n\x00'}]
