"""The client for OpenAI-compatible servers, against a loopback server that misbehaves."""

from __future__ import annotations

import json
import pickle
import ssl
import threading
from pathlib import Path

import pytest

from clipmill.schemas.errors import ClipmillError, RowFailed, ServerRefused
from clipmill.stages import usage
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.engines.requests import Generation, Picture, Request, answers
from clipmill.stages.models.engines.servers import ServerEngine
from clipmill.stages.references import ModelReference
from tests.http_server import refusing_address, serve
from tests.openai_stand_in import completion, openai_server, picture_of, text_of

SELF_SIGNED = Path(__file__).parents[2] / "files" / "self_signed.pem"


def client(url: str, **settings) -> ServerEngine:
    settings = {"retries": 1, "timeout_seconds": 100.0, "first_wait_seconds": 0.0} | settings
    return ServerEngine(ModelReference(server=url, model="tiny"), **settings)


def ask(server: ServerEngine, *texts: str):
    asked = [Request.of(text, generation=Generation(5)) for text in texts]
    return answers(server, asked)


def test_answers_are_in_the_order_of_the_requests():
    """Eight requests are sent at once; each answer belongs to its own request."""
    gate = threading.Barrier(4, timeout=60)

    def answer(request):
        gate.wait()  # answers only when four have arrived, in any order
        return "re: " + text_of(request)

    with openai_server(answer) as stand_in, client(stand_in.url, concurrency=4) as server:
        found = ask(server, *(f"question {i}" for i in range(12)))
    assert found == [Completion(f"re: question {i}") for i in range(12)]
    assert stand_in.most_at_once == 4


def test_request_has_the_settings(monkeypatch):
    """The key comes from the environment; options add fields, and None removes one."""
    monkeypatch.setenv("TEST_KEY", "secret")
    options = {"temperature": None, "top_k": 1}
    with (
        openai_server(lambda request: "x") as stand_in,
        client(stand_in.url, key_variable="TEST_KEY", options=options) as server,
    ):
        server.submit(
            Request.of("hello", Picture(b"\xff\xd8jpeg"), generation=Generation(7))
        ).result()
    (request,) = stand_in.requests
    assert request["path"] == "/v1/chat/completions"
    assert (request["model"], request["max_tokens"], request["top_k"]) == ("tiny", 7, 1)
    assert "temperature" not in request
    assert (text_of(request), picture_of(request)) == ("hello", b"\xff\xd8jpeg")
    assert stand_in.headers[0]["Authorization"] == "Bearer secret"


def test_requests_and_tokens_are_counted():
    """Every request counts, also one that fails; tokens only if the server tells them."""
    told = {**json.loads(completion("a")), "usage": {"prompt_tokens": 7, "completion_tokens": 2}}
    odd = {**json.loads(completion("b")), "usage": {"prompt_tokens": "many"}}
    misdeeds = [500, json.dumps(told).encode(), json.dumps(odd).encode()]
    before = usage.used()
    serving = openai_server(lambda request: "fine", *misdeeds)
    with serving as stand_in, client(stand_in.url, concurrency=1) as server:
        ask(server, "x", "y")
    spent = {name: count - before[name] for name, count in usage.used().items()}
    assert spent[usage.REQUESTS] == 3
    assert (spent[usage.TOKENS_IN], spent[usage.TOKENS_OUT], spent[usage.TOLD_TOKENS]) == (7, 2, 1)


@pytest.mark.parametrize("misdeed", [500, 503, 429, 408, b"<html>", b'{"choices": []}', "reset"])
def test_transient_errors_are_retried(misdeed):
    serving = openai_server(lambda request: "fine", misdeed)
    with serving as stand_in, client(stand_in.url) as server:
        assert ask(server, "x") == [Completion("fine")]
    assert len(stand_in.requests) == 2


@pytest.mark.parametrize(
    ("misdeed", "kind", "asked", "words"),
    [
        (500, "transient", 2, "answered 500"),
        (429, "transient", 2, "answered 429"),
        ("reset", "transient", 2, "127.0.0.1"),
        ("hang", "transient", 2, "did not answer within 1 s"),
        ("drip", "transient", 2, "did not answer within 1 s"),
        (b"{not json", "model", 2, "not a chat completion"),
        (b"[]", "model", 2, "not a chat completion"),
        (b'{"choices": [{"message": {"content": 5}}]}', "model", 1, "not text"),
        (completion("x", "content_filter"), "model", 1, "filtered"),
        (400, "model", 1, "as told"),
        (401, "blocked", 1, "$OPENAI_API_KEY"),
        (404, "permanent", 1, "answered 404"),
        (302, "permanent", 1, "answered 302"),
        (402, "blocked", 1, "answered 402"),
        (405, "permanent", 1, "answered 405"),
        (completion("x", "SAFETY"), "model", 1, "filtered"),
        (completion("A dog runs and", "abort"), "transient", 2, "broke off its answer (abort)"),
        (completion("A dog runs and", "error"), "transient", 2, "broke off its answer (error)"),
        (b'{"error": {"message": "slow down", "code": 429}}', "transient", 2, "slow down"),
        (b'{"error": {"code": "insufficient_quota"}}', "blocked", 1, "insufficient_quota"),
        (b'{"object": "error", "message": "no model", "code": 404}', "permanent", 1, "no model"),
        (b'{"error": "the model is loading"}', "model", 2, "sent an error"),
        (b"data: {}\n\ndata: [DONE]\n", "model", 2, "a stream of events"),
    ],
)
def test_each_error_status_has_its_kind(misdeed, kind, asked, words):
    serving = openai_server(lambda request: "fine", misdeed, misdeed)
    seconds = 1.0 if misdeed in ("hang", "drip") else 100.0
    with serving as stand_in, client(stand_in.url, timeout_seconds=seconds) as server:
        (failure,) = ask(server, "x")
    assert isinstance(failure, RowFailed)
    assert (failure.kind, len(stand_in.requests)) == (kind, asked)
    assert words in failure.message


def test_refusals_that_concern_all_requests_are_told_apart():
    """A wrong key and a missing model always do; 403 only until the server has answered."""
    serving = openai_server(text_of, 401, 403, 404, completion("x"), 403, 401, 404)
    with serving as stand_in, client(stand_in.url, concurrency=1, setting="s.model") as server:
        found = ask(server, *"xxxxxxx")
    assert [getattr(answer, "status", None) for answer in found] == [
        401,
        403,
        404,
        None,
        None,
        401,
        404,
    ]
    refused = pickle.loads(pickle.dumps(found[0]))
    assert isinstance(refused, ServerRefused)
    assert (refused.kind, refused.status, refused.setting) == ("blocked", 401, "s.model")
    assert refused.message == found[0].message


def test_failure_affects_only_its_own_request():
    with openai_server(text_of, 400) as stand_in, client(stand_in.url, concurrency=1) as server:
        found = ask(server, "a", "b")
    assert isinstance(found[0], RowFailed)
    assert found[1] == Completion("b")


@pytest.mark.parametrize("reason", ["length", "MAX_TOKENS", "model_length"])
def test_answer_at_the_token_limit_is_incomplete(reason):
    serving = openai_server(text_of, completion("a dog and", reason))
    with serving as stand_in, client(stand_in.url) as server:
        (answer,) = ask(server, "x")
    assert answer == Completion("a dog and", complete=False)


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content"])
def test_reasoning_is_no_part_of_the_answer(field):
    """An answer that consists of it alone is a failure that says so."""

    def reasoned(text, reason):
        whole = json.loads(completion(text, reason))
        whole["choices"][0]["message"][field] = "The user wants a caption"
        whole["usage"] = {"prompt_tokens": 3, "completion_tokens": 5}
        return json.dumps(whole).encode()

    serving = openai_server(text_of, reasoned("a dog", "stop"), reasoned(None, "length"))
    with serving as stand_in, client(stand_in.url, concurrency=1) as server:
        answer, failure = ask(server, "x", "y")
    assert answer == Completion("a dog", True, 3, 5)
    assert "reasoning without an answer before the token limit" in failure.message


@pytest.mark.parametrize(
    ("message", "found"),
    [
        ({"content": [{"type": "text", "text": "a dog"}, {"text": " runs"}]}, "a dog runs"),
        ({"content": [{"type": "thinking", "thinking": []}, {"text": "a dog"}]}, "a dog"),
        ({"content": [{"type": "thinking", "thinking": []}]}, "reasoning without an answer"),
        ({"reasoning": "the user wants"}, "reasoning without an answer"),
        ({"content": None, "refusal": "I can't help"}, 'refused (it said "I can\'t help")'),
        ({"refusal": "I can't help"}, "refused"),
        ({"content": [{"type": "refusal", "refusal": "I can't help"}]}, "refused"),
        ({"content": "a dog", "refusal": None, "tool_calls": []}, "a dog"),
        ({"content": None, "tool_calls": [{"type": "function"}]}, "a call of a tool"),
        ({"content": None}, ""),
    ],
    ids=str,
)
@pytest.mark.parametrize("reason", ["stop", "eos", None])
def test_text_is_found_in_whatever_form_a_message_has(message, found, reason):
    choice = {"message": message, "finish_reason": reason}
    body = json.dumps({"choices": [choice]}).encode()
    with openai_server(text_of, body) as stand_in, client(stand_in.url) as server:
        (answer,) = ask(server, "x")
    if isinstance(answer, RowFailed):
        assert answer.kind == "model"
        assert found
        assert found in answer.message
    else:
        assert answer == Completion(found)


def test_untrusted_certificate_and_port_without_tls_are_told_from_a_server_that_is_down(
    monkeypatch,
):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(SELF_SIGNED)
    with serve(tls=context) as site:
        url = site.address.replace("127.0.0.1", "localhost") + "/v1"
        with client(url) as server, pytest.raises(ClipmillError, match=r"not trusted.*SSL_CERT"):
            server.check()
        monkeypatch.setenv("SSL_CERT_FILE", str(SELF_SIGNED))
        with client(url) as server:
            server.check()
    with (
        serve() as site,
        client(site.url("/v1").replace("http:", "https:")) as server,
        pytest.raises(ClipmillError, match="speaks no TLS"),
    ):
        server.check()


def test_proxy_of_the_environment_is_named_where_it_answers(monkeypatch):
    """Behind one, a server of the same network is often out of reach."""
    for name in ("NO_PROXY", "no_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    with openai_server(text_of, 503, 503, 407) as proxy:
        place = proxy.url.removesuffix("/v1").removeprefix("http://")
        monkeypatch.setenv("HTTP_PROXY", f"http://me:secret@{place}")
        with client("http://gpu1.test:8000/v1") as server:
            busy, refused = ask(server, "x")[0], ask(server, "y")[0]
        with client(proxy.url) as server:
            monkeypatch.setenv("NO_PROXY", "127.0.0.1")
            (answer,) = ask(server, "x")
    assert f"the environment's proxy {place}; NO_PROXY=gpu1.test goes without" in busy.message
    assert "secret" not in busy.message
    assert isinstance(refused, ServerRefused)
    assert refused.status == 407
    assert answer == Completion("x")


def test_password_of_an_address_is_sent_and_not_shown():
    with openai_server(text_of, 400) as stand_in:
        url = stand_in.url.replace("//", "//me:secret@")
        with client(url, concurrency=1) as server:
            failure, answer = ask(server, "x", "y")
        assert stand_in.headers[0]["Authorization"].startswith("Basic ")
    assert answer == Completion("y")
    assert failure.message.startswith(stand_in.url)


def test_unreachable_server_is_reported_at_the_start():
    with openai_server(text_of) as stand_in, client(stand_in.url) as server:
        server.check()
    with (
        refusing_address() as gone,
        client(f"http://{gone}/v1", setting="caption_frames.model") as server,
        pytest.raises(ClipmillError, match=r"--set caption_frames\.model"),
    ):
        server.check()
