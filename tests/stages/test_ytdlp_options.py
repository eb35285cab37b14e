"""yt-dlp options in a recipe cannot start programs of its choice or write files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from clipmill.jobs.cli import main
from clipmill.jobs.submit import submit
from clipmill.pipeline.ingest.sources import SourceSpec, ingest
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import UsageError
from clipmill.schemas.ids import source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.download_videos import DownloadVideos
from clipmill.stages.media.fetch.ytdlp_options import ALLOWED, REFUSED, known_options
from clipmill.stages.protocol import Workspace
from tests.download_helpers import make_video, outcome, stage
from tests.http_server import serve

VIDEO = make_video()
PAGE = '<html><head><title>A film</title></head><body><video src="/v.mp4"></video></body></html>'


@pytest.fixture
def site():
    with serve() as server:
        server.file("/v.mp4", VIDEO)
        server.page("/watch", PAGE)
        yield server


def exec_options(target: Path, when: str = "pre_process") -> dict:
    return {"postprocessors": [{"key": "Exec", "exec_cmd": f"touch {target}", "when": when}]}


def write_recipe(folder: Path, options: dict, source: dict) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(
        json.dumps(
            {
                "engine": "local",
                "sources": [source],
                "stages": {
                    "download_videos": {
                        "min_duration_seconds": 0,
                        "min_height": 16,
                        "yt_dlp": options,
                    }
                },
            }
        )
    )
    return path


# Commands, programs, other files


@pytest.mark.parametrize(
    "when", ["pre_process", "after_filter", "before_dl", "post_process", "after_move", "playlist"]
)
def test_recipe_cannot_run_a_shell_command(tmp_path, site, capsys, monkeypatch, when):
    """Neither for downloads nor for lists, and before anything is requested or created."""
    target = tmp_path / "made by the recipe"
    bad = exec_options(target, when)
    url = site.url("/watch")
    for options, source in (bad, {"url": url}), ({}, {"url": url, "yt_dlp": bad}):
        recipe = write_recipe(tmp_path, options, source)
        monkeypatch.setattr(
            "sys.argv", ["clipmill", "run", str(recipe), "--dataset", str(tmp_path / "dataset")]
        )
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr().err
        assert ended.value.code == 2
        assert "'postprocessors' can't be set in a recipe: it can start programs" in said
        assert said.count("Error:") == 1
        assert not target.exists()
        assert not (tmp_path / "dataset").exists()
    assert site.log == []


def test_set_and_submit_refuse_it_too(tmp_path, site):
    target = tmp_path / "made"
    recipe = write_recipe(tmp_path, {}, {"url": site.url("/watch")})
    bad = json.dumps(exec_options(target))
    for override in (
        f"download_videos.yt_dlp={bad}",
        f'download_videos.yt_dlp.netrc_cmd="touch {target}"',
    ):
        with pytest.raises(UsageError, match="can't be set in a recipe"):
            load_recipe(recipe, overrides=[override])
        with pytest.raises(UsageError, match="can't be set in a recipe"):
            submit(
                str(recipe),
                "http://127.0.0.1:1",
                dataset=tmp_path / "d",
                sources=[],
                overrides=[override],
                until=None,
                limit=None,
                locked=False,
                wait=False,
            )


def test_recorded_options_are_refused_too(tmp_path, site):
    """A run's record is checked like a recipe."""
    from clipmill.pipeline.recipes.recipe import LoadedRecipe

    recipe = write_recipe(tmp_path, {}, {"url": site.url("/watch")})
    record = load_recipe(recipe).record()
    record["stages"]["download_videos"]["yt_dlp"] = exec_options(tmp_path / "made")
    with pytest.raises(UsageError, match="can't be set in a recipe"):
        LoadedRecipe.from_record(record)


@pytest.mark.parametrize(
    "options",
    [
        {"netrc_cmd": "touch /tmp/x"},
        {"ffmpeg_location": "/tmp/x"},
        {"bidi_workaround": True},
        {"postprocessor_args": {"ffmpeg": ["-y", "/tmp/x"]}},
        {"remote_components": ["ejs:github"]},
        {"external_downloader_args": {"aria2c": ["--on-download-complete=/tmp/x"]}},
        {"external_downloader": "/tmp/aria2c"},
        {"external_downloader": {"default": "./curl"}},
        {"external_downloader": {"http": "aria2c/../../tmp/x"}},
        {"external_downloader": ["curl"]},
        {"js_runtimes": {"node": {"path": "/tmp/x"}}},
        {"js_runtimes": {"/tmp/node": {}}},
        {"js_runtimes": ["node"]},
        {"extractor_args": {"youtube-ejs": {"dev": ["true"], "repo": ["evil/scripts"]}}},
        {"extractor_args": {"youtubepot-bgutilscript": {"script_path": ["/tmp/x.js"]}}},
        {"extractor_args": ["youtube"]},
        {"extractor_args": {"youtube": "tv"}},
        {"print_to_file": {"video": [["text", "/tmp/x"]]}},
        {"writeinfojson": True},
        {"write_pages": True},
        {"load_pages": True},
        {"cachedir": "/tmp/x"},
        {"download_archive": "/tmp/x"},
        {"paths": {"home": "/tmp"}},
        {"outtmpl": "/tmp/x"},
        {"enable_file_urls": True},
        {"logger": "print"},
        {"progress_hooks": []},
        {"post_hooks": []},
        {"match_filter": "x"},
        {"verbose": True},
        {"forcejson": True},
        {"cookiefile": ["a"]},
        {"cookiefile": {"a": 1}},
        {"impersonate": 3},
        {"_warnings": []},
        {"load_info_filename": "/tmp/x"},
        {"exec_cmd": "touch /tmp/x"},
        {"plugin_dirs": ["/tmp"]},
        {"cookiesfrombrowser": {"firefox": 1}},
    ],
)
def test_options_that_start_programs_or_access_other_files_are_refused(options):
    with pytest.raises(ValidationError) as refused:
        DownloadVideos(yt_dlp=options)
    assert any(name in str(refused.value) for name in options)
    with pytest.raises(ValidationError):
        SourceSpec(url="https://a.example/list", yt_dlp=options)


@pytest.mark.parametrize(
    "options",
    [
        {"format": "b[ext=mp4]", "format_sort": ["vcodec:h264"], "merge_output_format": "mkv"},
        {
            "extractor_args": {
                "youtube": {"player_client": ["tv"], "skip": ["dash"]},
                "youtubepot-bgutilhttp": {"base_url": ["http://127.0.0.1:4416"]},
            }
        },
        {"cookiefile": "cookies.txt"},
        {"cookiesfrombrowser": "firefox"},
        {"cookiesfrombrowser": ["firefox", None, None, "Meta"]},
        {"usenetrc": True},
        {"username": "me", "password": "secret"},
        {"proxy": "socks5://p:1"},
        {"geo_bypass": True},
        {"source_address": "0.0.0.0", "socket_timeout": 5, "nocheckcertificate": True},
        {"sleep_interval": 1, "max_sleep_interval": 3, "sleep_interval_requests": 1},
        {"ratelimit": 1_000_000, "concurrent_fragment_downloads": 4},
        {"impersonate": "chrome"},
        {"js_runtimes": {"node": {}, "deno": None}},
        {"external_downloader": "native"},
        {"external_downloader": {"m3u8": "ffmpeg", "http": "aria2c"}},
        {"cachedir": False},
        {"http_headers": {"Referer": "https://a.example/"}},
        {"playlist_items": "1:3"},
        {"compat_opts": ["no-certifi"]},
    ],
)
def test_options_that_sites_need_are_allowed(options):
    assert DownloadVideos(yt_dlp=options).yt_dlp == options
    assert SourceSpec(url="https://a.example/list", yt_dlp=options).yt_dlp == options


def test_every_yt_dlp_option_is_allowed_or_refused_with_a_reason():
    """New options must be reviewed before the locked version is raised."""
    assert known_options() - ALLOWED - set(REFUSED) == set()
    assert set(REFUSED) & ALLOWED == set()


def test_unreviewed_option_is_refused(monkeypatch):
    known = known_options() | {"run_this"}
    monkeypatch.setattr("clipmill.stages.media.fetch.ytdlp_options.known_options", lambda: known)
    with pytest.raises(ValidationError, match="'run_this' can't be set in a recipe"):
        DownloadVideos(yt_dlp={"run_this": "x"})


# What is passed on


@dataclass(frozen=True)
class Baking:
    """A response with a cookie that a shell would interpret."""

    body: bytes
    content_type: str

    def answer(self, handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", self.content_type)
        handler.send_header("Set-Cookie", "a=`touch_x`; Max-Age=10000")
        handler.send_header("Content-Length", str(len(self.body)))
        handler.end_headers()
        handler.body(self.body)


def download(dataset: Path, url: str, **settings) -> dict:
    rows = pa.Table.from_pylist([{"source_key": source_key(url), "url": url}], SOURCES)
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        [row] = transform(rows).to_pylist()
    return row


def test_cookie_file_is_read_and_never_written(tmp_path, site):
    host = "127.0.0.1"
    jar = tmp_path / "cookies.txt"
    text = f"# Netscape HTTP Cookie File\n{host}\tFALSE\t/\tFALSE\t4102444800\tlogin\tmine\n"
    jar.write_text(text)
    page = site.script("/baked", Baking(PAGE.encode(), "text/html"))
    assert outcome(download(tmp_path / "dataset", page, yt_dlp={"cookiefile": str(jar)})) == "kept"
    ingest(
        tmp_path / "lists", [SourceSpec(url=page, yt_dlp={"cookiefile": str(jar)})], shard_videos=4
    )
    # Whether a URL is a file or a page is checked without yt-dlp; then a download, then a list.
    asked = ["login=mine" in request.headers.get("Cookie", "") for request in site.asked("/baked")]
    assert asked[0] is False
    assert len(asked) >= 3
    assert all(asked[1:])
    assert jar.read_text() == text
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cookies.txt", "dataset", "lists"]


def test_missing_cookie_file_is_not_created(tmp_path, site):
    jar = tmp_path / ".profile"
    page = site.script("/baked", Baking(PAGE.encode(), "text/html"))
    options = {"cookiefile": str(jar)}
    with pytest.raises(UsageError, match=r"cannot read the cookies in .*\.profile"):
        download(tmp_path / "dataset", page, yt_dlp=options)
    with pytest.raises(UsageError, match=r"cannot read the cookies in .*\.profile"):
        ingest(tmp_path / "lists", [SourceSpec(url=page, yt_dlp=options)], shard_videos=4)
    assert not jar.exists()


def test_values_without_a_yaml_type_are_parsed_from_text(tmp_path):
    from yt_dlp import YoutubeDL
    from yt_dlp.networking.impersonate import ImpersonateTarget

    from clipmill.stages.media.fetch.ytdlp_options import given_options

    given = given_options(
        {"impersonate": "chrome-116", "cookiesfrombrowser": "firefox", "js_runtimes": {"node": {}}},
        tmp_path,
    )
    assert given["impersonate"] == ImpersonateTarget("chrome", "116")
    assert given["cookiesfrombrowser"] == ("firefox",)
    with YoutubeDL({"quiet": True, "js_runtimes": given["js_runtimes"]}) as downloader:
        assert list(downloader.params["js_runtimes"]) == ["node"]
