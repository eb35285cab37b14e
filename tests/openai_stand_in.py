"""A loopback server that implements enough of OpenAI's protocol, and misbehaves on request."""

from __future__ import annotations

import base64
import email
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


def picture_of(request: dict[str, Any]) -> bytes | None:
    """The JPEG in a chat request, if it has one."""
    content = request["messages"][-1]["content"]
    if isinstance(content, str):
        return None
    url = next(part["image_url"]["url"] for part in content if part["type"] == "image_url")
    kind, _, data = url.partition(",")
    assert kind == "data:image/jpeg;base64"
    return base64.b64decode(data)


def text_of(request: dict[str, Any]) -> str:
    """The user's text in a chat request."""
    content = request["messages"][-1]["content"]
    if isinstance(content, str):
        return content
    return next(part["text"] for part in content if part["type"] == "text")


def completion(text: str | None, finish_reason: str = "stop") -> bytes:
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": finish_reason,
    }
    return json.dumps({"object": "chat.completion", "choices": [choice]}).encode()


def form_of(body: bytes, kind: str) -> dict[str, Any]:
    """The fields of a form as lists of texts, and the bytes of its files."""
    form = email.message_from_bytes(f"Content-Type: {kind}\r\n\r\n".encode() + body)
    found: dict[str, Any] = {}
    for part in form.get_payload():
        name = str(part.get_param("name", header="content-disposition"))
        content = part.get_payload(decode=True)
        if part.get_filename():
            found[name] = content
        else:
            found.setdefault(name, []).append(content.decode())
    return found


@dataclass
class StandIn:
    """Each request plays one of `misdeeds`, in order; after them, `answer` makes the text, or the
    whole content.

    A misdeed is a status code, raw bytes for a response with 200, or a word: hang (no response),
    headers or drip (endless headers or body, a byte at a time), stream (an endless body at full
    speed), stall (half a body, then nothing), cut (half a body, then the connection is closed) or
    reset (the connection is closed without a response). `always` is played after the misdeeds.
    """

    answer: Callable[[dict[str, Any]], str | bytes]
    misdeeds: list[int | bytes | str] = field(default_factory=list)
    always: int | bytes | str | None = None
    retry_after: str = "0"
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    models: dict[str, Any] = field(default_factory=lambda: {"data": []})
    url: str = ""
    most_at_once: int = 0  # of requests that took time
    closing: threading.Event = field(default_factory=threading.Event)


@contextmanager
def openai_server(
    answer: Callable[[dict[str, Any]], str | bytes], *misdeeds: int | bytes | str, port: int = 0
) -> Iterator[StandIn]:
    """A running stand-in; `url` precedes the `#` in a model reference.

    `port` is an earlier stand-in's; by default it is a free one.
    """
    stand_in = StandIn(answer, list(misdeeds))
    lock = threading.Lock()
    at_once = 0

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: object) -> None:
            pass

        def send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            if status == 429:
                self.send_header("Retry-After", stand_in.retry_after)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            self.send(200, json.dumps(stand_in.models).encode())

        def do_POST(self) -> None:
            nonlocal at_once
            body = self.rfile.read(int(self.headers["Content-Length"]))
            form = self.headers["Content-Type"]
            request = form_of(body, form) if form.startswith("multipart/") else json.loads(body)
            with lock:
                at_once += 1
                stand_in.most_at_once = max(stand_in.most_at_once, at_once)
                stand_in.requests.append({"path": self.path, **request})
                stand_in.headers.append(dict(self.headers))
                misdeed = stand_in.misdeeds.pop(0) if stand_in.misdeeds else stand_in.always
            text = None
            try:
                if misdeed is None:
                    text = stand_in.answer(request)
            finally:
                # Before responding: a client with a response may already send the next request.
                with lock:
                    at_once -= 1
            self.play(misdeed, text)

        def play(self, misdeed: int | bytes | str | None, text: str | bytes | None) -> None:
            if misdeed is None:
                self.send(200, text if isinstance(text, bytes) else completion(text))
            elif isinstance(misdeed, int):
                self.send(misdeed, b'{"error": {"message": "as told"}}')
            elif isinstance(misdeed, bytes):
                self.send(200, misdeed)
            elif misdeed == "hang":
                stand_in.closing.wait(100)
            elif misdeed == "reset":
                self.connection.close()
            elif misdeed == "headers":
                self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
                while not stand_in.closing.wait(0.05):
                    self.wfile.write(b"x")
            elif misdeed in ("stall", "cut"):
                whole = completion("never seen")
                self.send_response(200)
                self.send_header("Content-Length", str(len(whole)))
                self.end_headers()
                self.wfile.write(whole[: len(whole) // 2])
                if misdeed == "stall":
                    stand_in.closing.wait(100)
            elif misdeed == "stream":
                self.send_response(200)
                self.end_headers()
                while not stand_in.closing.is_set():
                    self.wfile.write(b" " * 2**20)
            elif misdeed == "drip":
                self.send_response(200)
                self.end_headers()
                while not stand_in.closing.wait(0.05):
                    self.wfile.write(b" ")
            else:
                raise AssertionError(misdeed)

        def handle(self) -> None:
            # The client has gone, or the misdeed was to close the connection.
            with suppress(OSError, ValueError):
                super().handle()

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    stand_in.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield stand_in
    finally:
        stand_in.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
