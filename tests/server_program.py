"""A stand-in for vLLM and SGLang: a program that is started as they are and speaks the protocol.

`environment(folder)` makes what a recipe calls a Python: a script that runs this file, whatever
module it is asked for. Options of the command make it misbehave: `--wait SECONDS` before it
listens, `--die-on TEXT` in a request (with `--times N`: in its first N lives only), `--hang-on
TEXT`, `--quit` at once, `--child` starts a process that ignores being asked to end.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def environment(folder: Path) -> Path:
    """A script to be used as the Python of a server's environment."""
    script = folder / "python"
    script.write_text(
        '#!/bin/sh\n[ "$1" = -c ] && exit 0  # asked whether it has a module\n'
        f'exec "{sys.executable}" -I "{Path(__file__).resolve()}" "$@"\n'
    )
    script.chmod(0o755)
    return script


def main() -> None:
    read = argparse.ArgumentParser()
    read.add_argument("-m", dest="module")
    read.add_argument("--model", "--model-path", dest="model")
    read.add_argument("--served-model-name", dest="name")
    read.add_argument("--host")
    read.add_argument("--port", type=int)
    read.add_argument("--lives", help="a file with a line for each start")
    read.add_argument("--wait", type=float, default=0.0)
    read.add_argument("--die-on")
    read.add_argument("--times", type=int, default=10**6)
    read.add_argument("--hang-on")
    read.add_argument("--quit", action="store_true")
    read.add_argument("--child", action="store_true")
    arguments = sys.argv[1:]
    if not arguments[0].startswith("-"):  # vllm serve MODEL, in new versions
        program, verb, model = arguments[:3]
        arguments = ["-m", f"{Path(program).name} {verb}", "--model", model, *arguments[3:]]
    asked, others = read.parse_known_args(arguments)
    life = 1
    if asked.lives:
        with Path(asked.lives).open("a") as file:
            file.write(json.dumps([os.getpid(), asked.module, *others]) + "\n")
        life = len(Path(asked.lives).read_text().splitlines())
    print(f"loading {asked.model}", flush=True)
    if asked.quit:
        sys.exit("no GPU is big enough")
    if asked.child:
        child = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(300)"
        subprocess.Popen(
            [sys.executable, "-c", child], stdin=subprocess.DEVNULL, start_new_session=True
        )
    time.sleep(asked.wait)
    hanging = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, pattern: str, *arguments: object) -> None:
            print(f"INFO: {pattern % arguments}", flush=True)

        def send(self, found: object) -> None:
            content = json.dumps(found).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self) -> None:
            if hanging.is_set():
                time.sleep(300)
            model = {"id": asked.name, "root": asked.model, "created": time.time()}
            self.send({} if self.path == "/health" else {"data": [model]})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])).decode()
            if asked.die_on and asked.die_on in body and life <= asked.times:
                print("out of memory, as told", flush=True)
                os._exit(3)
            if asked.hang_on and asked.hang_on in body and life <= asked.times:
                hanging.set()
            if hanging.is_set():
                time.sleep(300)
            text = json.loads(body)["messages"][-1]["content"]
            if not isinstance(text, str):
                text = " ".join(part["text"] for part in text if part["type"] == "text")
            message = {"role": "assistant", "content": f"life {life}: {text}"}
            self.send(
                {
                    "model": asked.name,
                    "system_fingerprint": "fp",
                    "choices": [{"message": message, "finish_reason": "stop"}],
                    "usage": {"prompt_tokens": 3, "completion_tokens": 2},
                }
            )

    server = ThreadingHTTPServer((asked.host, asked.port), Handler)
    server.daemon_threads = True
    server.serve_forever(0.05)


if __name__ == "__main__":
    main()
