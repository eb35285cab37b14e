"""Invalid addresses in recipes and in the environment: one message, exit status 2."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import socketserver
import subprocess
import sys
import threading

import pyarrow as pa
import pytest
import yaml
from pydantic import ValidationError

from clipmill.jobs.cli import main
from clipmill.pipeline.engine.preflight import examine_models
from clipmill.pipeline.ingest.source_spec import SourceSpec
from clipmill.pipeline.ingest.sources import ingest
from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.caption_frames import CaptionFrames
from clipmill.stages.media.fetch import downloads
from clipmill.stages.media.fetch.resumable_file import Partial
from clipmill.stages.models.engines.servers import ServerEngine
from clipmill.stages.protocol import Workspace
from clipmill.stages.references import ModelReference
from tests.download_helpers import make_video, outcome, stage
from tests.http_server import serve
from tests.ytdlp_changes import change_ytdlp_process

NO_PROXIES = [
    "http://[::1",
    "http://",
    "http://a..b:1",
    "h:80",
    "h",
    "ftp://h",
    "http://h:99999",
    "http://h:x",
    f"http://{'a' * 64}.test:1",
    "",
]


def recipe_of(tmp_path, **settings):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        yaml.safe_dump(
            {"sources": ["http://127.0.0.1:9/a.mp4"], "stages": {"download_videos": settings}}
        )
    )
    return path


@pytest.mark.parametrize("proxy", NO_PROXIES)
def test_invalid_proxy_is_reported_when_the_recipe_is_read(tmp_path, proxy):
    with pytest.raises(UsageError, match=r"stages\.download_videos: proxy: .*HOST:PORT") as raised:
        load_recipe(recipe_of(tmp_path, proxy=proxy))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("option", ["proxy", "geo_verification_proxy"])
@pytest.mark.parametrize("proxy", [one for one in NO_PROXIES if one] + [1])
def test_proxies_in_yt_dlps_options_are_checked_too(option, proxy):
    for made in (stage, lambda **more: SourceSpec(url="http://a.test/", **more)):
        with pytest.raises(ValidationError, match="proxy"):
            made(yt_dlp={option: proxy})
        made(yt_dlp={option: "socks4://proxy.test:1080"})
        made(yt_dlp={option: ""})  # no proxy


def test_command_reports_it_without_a_traceback(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "sys.argv",
        [
            "clipmill",
            "run",
            str(recipe_of(tmp_path, proxy="http://[::1")),
            "--dataset",
            str(tmp_path / "dataset"),
        ],
    )
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert "download_videos: proxy: is not the URL of a proxy" in capsys.readouterr().err
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize(
    "proxy",
    [
        None,
        "http://127.0.0.1:8080",
        "https://user:word@proxy.test",
        "socks5://proxy.test:1080",
        "socks5h://[2001:db8::1]:1080",
    ],
)
def test_valid_proxies_are_accepted(tmp_path, proxy):
    found = load_recipe(recipe_of(tmp_path, proxy=proxy)).stages["download_videos"]
    assert found.proxy == proxy
    with found.open(Workspace(tmp_path, tmp_path / "scratch")):
        pass


@pytest.mark.parametrize("user_agent", ["caf\u00e9", "a\nb"])
def test_user_agent_that_cannot_be_sent_is_refused(user_agent):
    with pytest.raises(ValidationError, match="ASCII"):
        stage(user_agent=user_agent)


def one_row(tmp_path, row, **settings):
    table = pa.Table.from_pylist([{"source_key": source_key(row["url"]), **row}], SOURCES)
    with stage(**settings).open(Workspace(tmp_path, tmp_path / "scratch")) as transform:
        return transform(table).to_pylist()[0]


@pytest.mark.parametrize("name", ["http_proxy", "no_proxy"])
def test_invalid_environment_proxy_is_reported_before_a_download(tmp_path, monkeypatch, name):
    monkeypatch.setenv(name, "http://[::1")
    with pytest.raises(UsageError, match=r"HTTP_PROXY.*fix or unset them"):
        one_row(tmp_path, {"url": "http://127.0.0.1:9/a.mp4"})


def test_invalid_environment_proxy_is_reported_before_a_list_request(tmp_path, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://[::1")
    with pytest.raises(UsageError, match="fix or unset them"):
        ingest(
            tmp_path,
            [SourceSpec(url="http://127.0.0.1:9/list")],
            shard_videos=10,
            downloads=stage(),
        )


def test_bug_in_an_extractor_fails_only_its_list(tmp_path, monkeypatch):
    """It used to end the run with a traceback."""
    import pyarrow.parquet as pq

    def mistake(put) -> None:
        from yt_dlp.extractor.generic import GenericIE

        def mistaken(self, url):
            raise AttributeError("'NoneType' object has no attribute 'group'")

        put(GenericIE, "_real_extract", mistaken)

    change_ytdlp_process(mistake, monkeypatch.setattr)
    ingest(
        tmp_path, [SourceSpec(url="http://127.0.0.1:9/list")], shard_videos=10, downloads=stage()
    )
    [row] = pq.read_table(tmp_path / "sources").to_pylist()
    assert outcome(row) == "permanent"
    assert "yt-dlp can't handle this page" in row["error"]["message"]


# A working proxy


class Socks(socketserver.StreamRequestHandler):
    """SOCKS 5 without a login: accepts an IPv4 address or a name, and records requests."""

    def handle(self) -> None:
        n_methods = self.rfile.read(2)[1]
        self.rfile.read(n_methods)
        self.wfile.write(b"\x05\x00")
        kind = self.rfile.read(4)[3]
        size = 4 if kind == 1 else self.rfile.read(1)[0]
        host = self.rfile.read(size)
        port = int.from_bytes(self.rfile.read(2), "big")
        self.server.asked.append(host)
        with socket.create_connection(("127.0.0.1", port)) as target:
            self.wfile.write(b"\x05\x00\x00\x01" + bytes(6))
            pump = threading.Thread(target=self._pump, args=(target,), daemon=True)
            pump.start()
            while data := target.recv(65536):
                self.wfile.write(data)

    def _pump(self, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := self.rfile.read1(65536):
                target.sendall(data)


@pytest.mark.parametrize("extractor", [None, "generic"], ids=["directly", "by yt-dlp"])
def test_downloads_can_use_a_socks_proxy(tmp_path, extractor):
    with serve() as site, socketserver.ThreadingTCPServer(("127.0.0.1", 0), Socks) as server:
        server.asked, server.daemon_threads = [], True
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        url = site.file("/a.mp4", make_video()).replace("127.0.0.1", "film.test")
        row = one_row(
            tmp_path,
            {"url": url, "extractor": extractor},
            proxy=f"socks5h://127.0.0.1:{server.server_address[1]}",
        )
        server.shutdown()
    assert outcome(row) == "kept", row
    assert set(server.asked) == {b"film.test"}


# Model servers, and the hub


@pytest.mark.parametrize(
    "server",
    ["http://[::1/v1", "http://a..b/v1", "http:///v1", "http://h:99999/v1", "http://h:x/v1"],
)
def test_invalid_server_is_reported_when_the_recipe_is_read(server):
    with pytest.raises(ValidationError, match="the server's address"):
        ModelReference.model_validate(f"{server}#name")
    assert (
        ModelReference.model_validate("http://[::1]:8000/v1#name").server == "http://[::1]:8000/v1"
    )


def test_invalid_environment_proxy_is_reported_before_a_server_request(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://[::1")
    reference = ModelReference.model_validate("http://127.0.0.1:9/v1#name")
    with ServerEngine(reference) as server, pytest.raises(ClipmillError, match="fix or unset"):
        server.check()
    step = PlannedStep.of(
        "caption_frames", "caption_frames", CaptionFrames(model=reference), "", {}
    )
    [found] = examine_models([step])
    assert "fix or unset them" in found.problem


def test_invalid_hub_address_is_reported():
    """In a separate process, because the library reads it once."""
    code = (
        "from clipmill.stages.models import loading\n"
        "loading.hub_folder('a/b', None, setting='x.model')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_ENDPOINT": "http://[::1"},
    )
    assert "ClipmillError: x.model: $HF_ENDPOINT (http://[::1) is not a URL" in done.stderr


# Failing disks


def failing(*_args, **_named):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_failing_disk_is_named_with_the_file(tmp_path, monkeypatch):
    film = tmp_path / "film.mp4"
    film.write_bytes(make_video())
    monkeypatch.setattr(downloads, "file_sha256", failing)
    row = one_row(tmp_path, {"url": str(film), "path": str(film)})
    assert outcome(row) == "transient"
    assert f"{film} cannot be read: Input/output error" in row["error"]["message"]
    assert "retry the failures of kind transient" in row["error"]["message"]


def test_datasets_disk_is_named_if_a_download_cannot_be_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(Partial, "write", failing)
    with serve() as site:
        row = one_row(tmp_path, {"url": site.file("/a.mp4", make_video())})
    assert outcome(row) == "transient"
    assert f"{tmp_path / 'media'} cannot be written" in row["error"]["message"]


@pytest.mark.parametrize("copy", [False, True])
def test_file_without_a_size_is_not_read(tmp_path, monkeypatch, copy):
    """Files in /proc may fail, or block for ever."""
    empty = tmp_path / "empty.mp4"
    empty.touch()
    monkeypatch.setattr(downloads, "file_sha256", failing)
    for path in (str(empty), "/proc/self/mem"):
        row = one_row(tmp_path, {"url": path, "path": path}, copy_local_files=copy)
        assert outcome(row) == "bad_media"
        assert f"an empty file: {path}" in json.dumps(row["error"], default=str)
