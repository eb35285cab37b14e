"""A cluster's job server, simulated on loopback, with Ray's answers and faulty ones."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import socket
import threading
from collections.abc import Iterator

import pytest
import ray
from aiohttp import web

from clipmill.pipeline.engine.ray_jobs import Job, job_server, submit_job
from clipmill.schemas.errors import ClipmillError, UsageError


class JobServer:
    """Ray's HTTP interface for one job, `job-1`, whose log is `pieces`.

    `cuts` are the numbers of pieces that each connection sends before it is cut; later ones send
    all.
    """

    def __init__(
        self,
        pieces: list[str],
        cuts: list[int] | None = None,
        state: str = "SUCCEEDED",
        asked_for_token: bool = False,
    ) -> None:
        self.pieces, self.cuts, self.state = pieces, cuts or [], state
        self.asked_for_token = asked_for_token
        self.asked: list[str] = []
        self.knows_the_job = True
        self.url = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(f"{request.method} {request.path}")
        # Ray sends a token automatically if this process has started a cluster.
        if self.asked_for_token:
            return web.Response(status=401, text="Unauthorized: Missing authentication token")
        if request.path == "/api/version":
            return web.json_response(
                {
                    "version": "4",
                    "ray_version": ray.__version__,
                    "ray_commit": "x",
                    "session_name": "s",
                }
            )
        if request.path.startswith("/api/packages/"):
            return web.Response()
        if request.path == "/api/jobs/":
            return web.json_response({"job_id": "job-1", "submission_id": "job-1"})
        if not self.knows_the_job:
            return web.Response(status=404, text="Job job-1 does not exist")
        if request.path.endswith("/logs/tail"):
            return await self._send_log(request)
        has_ended = not self.cuts
        return web.json_response(
            {
                "type": "SUBMISSION",
                "submission_id": "job-1",
                "entrypoint": "x",
                "status": self.state if has_ended else "RUNNING",
                "message": "as it is",
            }
        )

    async def _send_log(self, request: web.Request) -> web.StreamResponse:
        until = self.cuts.pop(0) if self.cuts else None
        answer = web.WebSocketResponse()
        await answer.prepare(request)
        for piece in self.pieces[:until]:
            await answer.send_str(piece)
        if until is not None:
            request.transport.abort()
        return answer


@contextlib.contextmanager
def serving(server: JobServer) -> Iterator[JobServer]:
    loop = asyncio.new_event_loop()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        port = site._server.sockets[0].getsockname()[1]
        server.url = f"http://127.0.0.1:{port}"

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield server
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


def sent(server: JobServer, folder, address: str | None = None) -> Job:
    return submit_job(address or server.url, "true", folder, None)


def test_log_continues_after_a_broken_connection(tmp_path):
    """Two cuts midway: every line is printed once, and the whole log is never requested again."""
    pieces = ["one\n", "two\n", "three ", "and four\n", "five\n"]
    with serving(JobServer(pieces, cuts=[2, 3])) as server:
        output = io.StringIO()
        assert sent(server, tmp_path).follow(output) == "SUCCEEDED"
    assert output.getvalue() == "one\ntwo\nthree and four\nfive\n"
    assert server.asked.count("GET /api/jobs/job-1/logs") == 0
    assert server.asked.count("GET /api/jobs/job-1/logs/tail") == 3


def test_log_is_fetched_once_without_interruptions(tmp_path):
    with serving(JobServer(["a\n"] * 50, state="FAILED")) as server:
        output = io.StringIO()
        job = sent(server, tmp_path)
        assert job.follow(output) == "FAILED"
        assert job.message() == "as it is"
    assert output.getvalue() == "a\n" * 50
    assert server.asked.count("GET /api/jobs/job-1/logs/tail") == 1


def test_unreachable_head_is_reported_with_the_next_step(tmp_path):
    with serving(JobServer(["one\n"], cuts=[1])) as server:
        job = sent(server, tmp_path)
    output = io.StringIO()
    with pytest.raises(ClipmillError, match=r"no longer answers.*ray job logs --address") as raised:
        job.follow(output, patience_seconds=0)
    assert job.address in str(raised.value)


def test_restarted_head_does_not_know_the_job(tmp_path):
    with serving(JobServer(["one\n"], cuts=[1])) as server:
        job = sent(server, tmp_path)
        server.knows_the_job = False
        with pytest.raises(ClipmillError, match=r"no longer knows job job-1.*submit it again"):
            job.follow(io.StringIO())


def test_closed_output_is_not_mistaken_for_an_unreachable_head(tmp_path):
    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with serving(JobServer(["one\n"])) as server, pytest.raises(BrokenPipeError):
        sent(server, tmp_path).follow(Closed())


def test_cluster_that_requires_a_token_is_reported_without_a_traceback(tmp_path, monkeypatch):
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    with (
        serving(JobServer([], asked_for_token=True)) as server,
        pytest.raises(
            ClipmillError, match=r"RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH"
        ) as raised,
    ):
        sent(server, tmp_path)
    assert len(str(raised.value).splitlines()) == 1


def test_host_and_port_are_enough(tmp_path):
    with serving(JobServer([])) as server:
        job = sent(server, tmp_path, server.url.removeprefix("http://"))
        assert job.address == server.url
    assert "POST /api/jobs/" in server.asked


@pytest.mark.parametrize("name", ["RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"])
def test_address_on_the_command_line_takes_precedence(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    with serving(JobServer([])) as server:
        assert sent(server, tmp_path).id == "job-1"
    assert os.environ[name] == "http://127.0.0.1:9"


def test_server_that_is_not_a_job_server_is_reported(tmp_path):
    class Web(JobServer):
        async def answer(self, request: web.Request) -> web.StreamResponse:
            return web.Response(text="<html>hello</html>", content_type="text/html")

    with serving(Web([])) as server, pytest.raises(ClipmillError, match="did not accept the job"):
        sent(server, tmp_path)


def test_port_without_a_server_is_reported(tmp_path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{nobody.getsockname()[1]}"
        with pytest.raises(ClipmillError, match=rf"http://{address} did not accept the job.*8265"):
            submit_job(address, "true", tmp_path, None)


@pytest.mark.parametrize(
    "address",
    [
        "ray://head:10001",
        "auto://x",
        "http://",
        "head:port",
        ":80",
        "",
        "http://[::1",
        "head:99999",
    ],
)
def test_invalid_job_server_address_is_refused(address):
    with pytest.raises(UsageError, match=r"--address http://head:8265"):
        job_server(address)
