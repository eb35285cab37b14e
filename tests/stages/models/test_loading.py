"""Models come from a folder or a hub; errors are immediate and name a remedy."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from clipmill.schemas.errors import UsageError
from clipmill.stages.models.loading import local_folder, resolved_revision
from clipmill.stages.references import ModelReference

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _ask(hub_url: str, home: Path, code: str, **environment: str) -> str:
    """Runs `code` in a process whose hub is `hub_url`, with its cache in `home`."""
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_"))
    }
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from clipmill.stages.models.loading import *\n"
            "from clipmill.schemas.errors import *\n"
            "def ref(text): return ModelReference.model_validate(text)\n" + code,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
        env={
            **own,
            "HF_ENDPOINT": hub_url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            **environment,
        },
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


class _Hub(BaseHTTPRequestHandler):
    """The two hub responses that a download needs: a list of files, and each file."""

    protocol_version = "HTTP/1.1"
    files: dict[str, bytes] = {}

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path.startswith("/api/models/org/model/tree/"):
            self._answer(
                json.dumps(
                    [
                        {
                            "type": "file",
                            "path": name,
                            "size": len(data),
                            "oid": hashlib.sha1(data).hexdigest(),
                        }
                        for name, data in self.files.items()
                    ]
                ).encode()
            )
        elif path.startswith("/api/models/org/model"):
            siblings = [{"rfilename": name} for name in self.files]
            self._answer(
                json.dumps({"id": "org/model", "sha": COMMIT, "siblings": siblings}).encode()
            )
        elif (name := path.removeprefix(f"/org/model/resolve/{COMMIT}/")) in self.files:
            self._answer(self.files[name], ETag=f'"{hashlib.sha1(self.files[name]).hexdigest()}"')
        else:
            self.send_response(404)
            gated = path.startswith("/api/models/org/gated")
            self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _answer(self, body: bytes, **headers: str) -> None:
        self.send_response(200)
        for name, value in {"X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[_Hub]]]:
    handler = type(
        "Hub",
        (_Hub,),
        {
            "files": {
                "config.json": b"{}",
                "tokenizer.model": b"t",
                "model.safetensors": b"w",
                "model.fp16.safetensors": b"half",
                "pytorch_model.bin": b"pickle",
                "modeling.py": b"raise SystemExit",
                "onnx/model.safetensors": b"o",
                "README.md": b"#",
            }
        },
    )
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler
    server.shutdown()
    server.server_close()
    thread.join()


LIST = (
    "folder = local_folder(ref('org/model'), setting='s.model')\n"
    "print(sorted(p.name for p in folder.iterdir()))\n"
)


def test_hub_download_has_configuration_and_one_set_of_weights_without_code(hub, tmp_path) -> None:
    """A second process, while the hub is down, reads the same files from the cache."""
    url, _ = hub
    expected = "['config.json', 'model.safetensors', 'tokenizer.model']"
    out = _ask(url, tmp_path, LIST + "print(resolved_revision(ref('org/model')))")
    assert out.splitlines() == [expected, COMMIT]
    offline = _ask("http://127.0.0.1:9", tmp_path, LIST, HF_HUB_OFFLINE="1")
    assert offline == expected


def test_pickled_weights_are_downloaded_only_as_a_last_resort(hub, tmp_path) -> None:
    url, handler = hub
    handler.files = {"config.json": b"{}", "pytorch_model.bin": b"p", "training_args.bin": b"x"}
    assert _ask(url, tmp_path, LIST) == "['config.json', 'pytorch_model.bin']"


def test_sentence_models_come_with_their_modules(hub, tmp_path) -> None:
    url, handler = hub
    own = {"modules.json": b"[]", "1_Pooling/config.json": b"{}", "2_Dense/model.safetensors": b"d"}
    others = {"onnx/model.onnx": b"o", "1_Pooling/pooling.py": b"print()", "0_CLIP/README.md": b""}
    handler.files = {"config.json": b"{}", "model.safetensors": b"t", **own, **others}
    code = (
        "folder = local_folder(ref('org/model'), setting='s.model')\n"
        "print(sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*') if p.is_file()))"
    )
    assert _ask(url, tmp_path, code) == str(sorted(["config.json", "model.safetensors", *own]))


def test_open_clips_own_format_is_chosen_among_two(hub, tmp_path) -> None:
    url, handler = hub
    handler.files = {
        "config.json": b"{}",
        "open_clip_config.json": b"{}",
        "model.safetensors": b"t",
        "open_clip_model.safetensors": b"o",
        "open_clip_pytorch_model.bin": b"p",
    }
    assert _ask(url, tmp_path, LIST) == (
        "['config.json', 'open_clip_config.json', 'open_clip_model.safetensors']"
    )


def test_incomplete_cache_is_not_mistaken_for_complete(hub, tmp_path) -> None:
    url, handler = hub
    index = {"weight_map": {"a": "model-1-of-2.safetensors", "b": "model-2-of-2.safetensors"}}
    handler.files = {
        "config.json": b"{}",
        "model.safetensors.index.json": json.dumps(index).encode(),
        "model-1-of-2.safetensors": b"1",
    }
    assert "model-1-of-2" in _ask(url, tmp_path, LIST)
    out = _ask(url, tmp_path, REFUSED.format(model="org/model"), HF_HUB_OFFLINE="1")
    assert "HF_HUB_OFFLINE is set" in out


REFUSED = (
    "try:\n    local_folder(ref({model!r}), setting='embed_clips.model')\n"
    "except ClipmillError as error:\n    print(error)\n"
)


def test_unknown_model_is_named_with_a_remedy(hub, tmp_path) -> None:
    out = _ask(hub[0], tmp_path, REFUSED.format(model="org/other@v1"))
    assert "embed_clips.model: the model org/other@v1 could not be fetched" in out
    assert "Check the name; a private model is fetched with your token" in out
    assert "--set embed_clips.model=./models/other" in out


def test_model_that_asks_for_consent_is_told_from_one_that_is_not_there(hub, tmp_path) -> None:
    out = _ask(hub[0], tmp_path, REFUSED.format(model="org/gated"))
    assert "Ask for access at https://huggingface.co/org/gated, and run again with your" in out


def test_hub_id_that_is_a_folders_path_is_told(hub, tmp_path) -> None:
    (tmp_path / "org" / "other").mkdir(parents=True)
    code = f"import os\nos.chdir({str(tmp_path)!r})\n" + REFUSED.format(model="org/other")
    assert "the folder of that name here is ./org/other" in _ask(hub[0], tmp_path, code)


def test_repository_of_gguf_files_is_not_sent_for_again(hub, tmp_path) -> None:
    url, handler = hub
    handler.files = {"config.json": b"{}", "model-q4.gguf": b"GGUF"}
    out = _ask(url, tmp_path, REFUSED.format(model="org/model"))
    assert "GGUF files are for llama.cpp and Ollama" in out
    assert "hf download" not in out


def test_hub_that_never_answers_is_given_up_quickly(tmp_path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        started = time.monotonic()
        out = _ask(
            f"http://127.0.0.1:{silent.getsockname()[1]}",
            tmp_path,
            "import clipmill.stages.models.loading as loading\n"
            "loading._HUB_TIMEOUT_SECONDS = 1.0\n" + REFUSED.format(model="org/model"),
        )
    assert "could not be fetched from the Hugging Face hub: timed out" in out
    assert time.monotonic() - started < 100


def test_folders_are_used_directly(tmp_path) -> None:
    reference = ModelReference(folder=str(tmp_path))
    assert local_folder(reference, setting="s.model") == tmp_path
    assert resolved_revision(reference) is None


@pytest.mark.parametrize("text", ["./nowhere", "http://127.0.0.1:1/v1#m"])
def test_invalid_folder_error_names_the_setting(text: str) -> None:
    with pytest.raises(UsageError, match=r"tag_clips\.model"):
        local_folder(ModelReference.model_validate(text), setting="tag_clips.model")
