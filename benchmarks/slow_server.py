"""A loopback server that answers every chat request after a fixed time, and times its own load.

    python -m benchmarks.slow_server SECONDS

Prints its port. `GET /load` says for how many seconds a request was in it, added up over requests,
how long it was from the first request to the last answer, and the processor time that it has used.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

ANSWER = json.dumps(
    {
        "choices": [
            {"index": 0, "message": {"content": "a person walks"}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 40, "completion_tokens": 4},
    }
).encode()


class Load:
    """Requests in the server over time."""

    def __init__(self) -> None:
        self.inside, self.most, self.requests = 0, 0, 0
        self.seconds = 0.0
        self.began = self.last = 0.0

    def change(self, by: int) -> None:
        now = time.monotonic()
        self.began = self.began or now
        self.seconds += self.inside * (now - (self.last or now))
        self.last = now
        self.inside += by
        self.most = max(self.most, self.inside)
        self.requests += by > 0

    def as_json(self) -> bytes:
        return json.dumps(
            {
                "request_seconds": self.seconds,
                "seconds": self.last - self.began,
                "most": self.most,
                "requests": self.requests,
                "cpu_seconds": time.process_time(),
            }
        ).encode()


async def main(latency_seconds: float) -> None:
    load = Load()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                length = 0
                for line in head.split("\r\n"):
                    name, _, value = line.partition(":")
                    if name.lower() == "content-length":
                        length = int(value)
                await reader.readexactly(length)
                if head.startswith("GET /load"):
                    body = load.as_json()
                elif head.startswith("GET"):
                    body = b'{"data": [{"id": "m"}]}'
                else:
                    load.change(1)
                    await asyncio.sleep(latency_seconds)
                    load.change(-1)
                    body = ANSWER
                writer.write(
                    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                    b"Content-Length: %d\r\n\r\n" % len(body)
                )
                writer.write(body)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=2**24, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(float(sys.argv[1])))
