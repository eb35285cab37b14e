"""If picture and sound are separate files, refused sound fails only the sound."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest

from clipmill.jobs.lines_below import lines_below
from clipmill.jobs.run import run
from clipmill.jobs.verify import verify_dataset
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.run import load
from clipmill.pipeline.status import status_report
from clipmill.schemas.ids import content_video_id, source_key
from clipmill.schemas.tables import SOURCES
from clipmill.stages.media.fetch.media_store import sha256_of
from clipmill.stages.media.isolation.ffmpeg_program import ffmpeg_program
from clipmill.stages.protocol import Workspace
from tests.download_helpers import outcome, stage
from tests.http_server import Broken, Busy, Endless, File

SECONDS = 2


def ffmpeg(*arguments: str | Path) -> None:
    subprocess.run(
        [ffmpeg_program(), "-v", "error", *map(str, arguments)],
        check=True,
        stdin=subprocess.DEVNULL,
    )


@functools.cache
def files() -> dict[str, bytes]:
    """Pictures with B-frames, and a tone, separately: as files, and as sites' segments."""
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        picture = (
            "-f",
            "lavfi",
            "-i",
            f"testsrc=s=96x64:r=10:d={SECONDS}",
            "-c:v",
            "libx264",
            "-preset",
            "ultrafast",
            "-bf",
            "2",
            "-g",
            "10",
            "-pix_fmt",
            "yuv420p",
        )
        tone = ("-f", "lavfi", "-i", f"sine=440:d={SECONDS}", "-ac", "1")
        ffmpeg(*picture, folder / "square.mp4")
        # Only the container has the pixel aspect ratio.
        ffmpeg("-i", folder / "square.mp4", "-c", "copy", "-aspect", "3:1", folder / "picture.mp4")
        ffmpeg(*tone, "-c:a", "aac", folder / "sound.m4a")
        ffmpeg(*tone, "-c:a", "libopus", folder / "sound.webm")
        both = (
            "-i",
            folder / "picture.mp4",
            "-i",
            folder / "sound.m4a",
            "-map",
            "0:v",
            "-map",
            "1:a",
            "-c",
            "copy",
        )
        ffmpeg(*both, folder / "both.mp4")
        for form in ("dash", "hls"):
            (folder / form).mkdir()
        ffmpeg(
            *both,
            "-seg_duration",
            "1",
            "-use_template",
            "1",
            "-use_timeline",
            "0",
            "-f",
            "dash",
            folder / "dash" / "film.mpd",
        )
        ffmpeg(
            *both,
            "-f",
            "hls",
            "-hls_time",
            "1",
            "-hls_list_size",
            "0",
            "-master_pl_name",
            "film.m3u8",
            "-var_stream_map",
            "v:0,agroup:a a:0,agroup:a",
            "-hls_segment_filename",
            folder / "hls" / "%v-%d.ts",
            folder / "hls" / "%v.m3u8",
        )
        return {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob("*")
            if path.is_file()
        }


PICTURE = {"vcodec": "avc1", "acodec": "none", "width": 96, "height": 64}
SOUND = {"vcodec": "none", "acodec": "aac"}
# The site's format names, the sound's request, and the files of both.
OFFERS = {
    "files": ("/home/film", "/sound.m4a", "picture.mp4 sound.m4a"),
    "mixed": ("/home/film", "/sound.webm", "picture.mp4 sound.webm"),
    "dash": ("/dash/film.mpd", "/dash/chunk-stream1-00002.m4s", ""),
    "hls": ("/hls/film.m3u8", "/hls/1-1.ts", ""),
}
TYPES = {".mpd": "application/dash+xml", ".m3u8": "application/vnd.apple.mpegurl"}


def offer(site, platform, kind: str = "files", *sound) -> tuple[str, str]:
    """A video whose sound segment answers with these steps, then with itself; that segment."""
    page, piece, names = OFFERS[kind]
    for path, data in files().items():
        site.file(f"/{path}", data, TYPES.get(Path(path).suffix, "video/mp4"))
    if sound:
        site.script(piece, *sound, File(files()[piece[1:]]))
    if names:
        platform.info = {
            "formats": [
                {
                    "format_id": name,
                    "url": site.url(f"/{name}"),
                    "ext": name.rpartition(".")[2],
                    **said,
                }
                for name, said in zip(names.split(), (PICTURE, SOUND), strict=True)
            ]
        }
        site.page("/home/film", "<html>a page, for who does not know the site</html>")
    return site.url(page), piece


def bring(dataset: Path, url: str, **settings) -> dict:
    extractor = "home" if "/home/" in url else None
    rows = pa.Table.from_pylist(
        [{"source_key": source_key(url), "url": url, "extractor": extractor}], SOURCES
    )
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        return transform(rows).to_pylist()[0]


def times(path: Path) -> tuple[int, list[float]]:
    """The start of the file's clock, and its pictures' times."""
    with av.open(str(path)) as container:
        return container.start_time, [
            float(packet.pts * packet.time_base)
            for packet in container.demux(container.streams.video[0])
            if packet.size
        ]


def sound_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])


@pytest.mark.parametrize("kind", ["mixed", "dash", "hls"])
def test_refused_sound_fails_alone_and_is_requested_alone(tmp_path, site, platform, kind):
    """The pictures are neither downloaded again nor shifted in time, and the id stays."""
    url, piece = offer(site, platform, kind, Busy(403))
    before = bring(tmp_path, url, retries=0)
    assert outcome(before) == "kept", before
    [failure] = before["failed_parts"]
    assert (failure["part"], failure["kind"], failure["attempts"]) == ("sound", "blocked", 1)
    assert "403" in failure["message"]
    assert (before["has_audio"], before["width"]) == (False, 96 if kind == "hls" else 192)
    file = tmp_path / before["path"]
    assert before["size_bytes"] == file.stat().st_size
    pictures, asked = times(file), len(site.log)
    row = bring(tmp_path, url)
    assert (outcome(row), row["failed_parts"], row["has_audio"]) == ("kept", [], True), row
    changed = {name for name in row if row[name] != before[name]}
    assert changed == {"failed_parts", "has_audio", "sha256", "size_bytes"}
    assert row["size_bytes"] == file.stat().st_size
    assert [one for one in file.parent.iterdir() if not one.name.startswith(".")] == [file]
    assert times(file) == pictures
    assert len(pictures[1]) == SECONDS * 10
    heard = sound_of(file)
    assert abs(heard).max() > 0.05
    assert len(heard) / 44100 == pytest.approx(SECONDS, abs=0.2) or kind == "mixed"
    fetched = {one.path for one in site.log[asked:]}
    assert piece in fetched
    assert not {one for one in fetched if "picture" in one or "stream0" in one or "/0-" in one}
    if "/home/" not in url:
        assert row["video_id"] == content_video_id(before["sha256"])
    # The existing file is found again, under every name that it has had.
    asked = len(site.log)
    assert bring(tmp_path, url)["sha256"] == row["sha256"]
    assert len(site.log) == asked


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (Busy(404), "permanent"),
        (File(b"<html>no", "text/html"), "bad_media"),
        (Broken(File(b"\0" * 9000, "audio/mp4"), 4000), "transient"),
        (Endless(size_bytes=3_000_000), "permanent"),
    ],
)
def test_pictures_are_kept_whatever_becomes_of_the_sound(tmp_path, site, platform, answer, kind):
    url, piece = offer(site, platform)
    site.script(piece, answer)
    row = bring(tmp_path, url, retries=1, max_bytes=1_000_000)
    assert outcome(row) == "kept", row
    assert [(part["part"], part["kind"]) for part in row["failed_parts"]] == [("sound", kind)]
    assert row["has_audio"] is False
    assert len(site.asked("/picture.mp4")) == 1
    file = tmp_path / row["path"]
    assert (row["size_bytes"], row["sha256"]) == (file.stat().st_size, sha256_of(file))
    assert len(times(file)[1]) == SECONDS * 10


def test_host_that_refuses_sound_is_used_for_all_else(tmp_path, site, platform):
    """Its Retry-After applies only to sound, no row waits for it, and no segment is repeated."""
    url, piece = offer(site, platform, "hls", Busy(429, "600"), Busy(429, "600"))
    assert bring(tmp_path / "one", url, retries=3)["failed_parts"][0]["kind"] == "transient"
    assert len(site.asked(piece)) == 1
    row = bring(tmp_path / "one", url, retries=3)
    assert row["failed_parts"][0]["attempts"] == 2
    assert "asks to be left alone until" in row["failed_parts"][0]["message"]
    assert outcome(bring(tmp_path / "one", another(site, platform))) == "kept"


def test_parallel_sound_segments_pause_only_sound(tmp_path, site, platform):
    """Threads of yt-dlp download them."""
    url, _ = offer(site, platform, "hls", Busy(429, "600"))
    row = bring(tmp_path, url, yt_dlp={"concurrent_fragment_downloads": 3})
    assert [part["part"] for part in row["failed_parts"]] == ["sound"]
    assert outcome(bring(tmp_path, another(site, platform))) == "kept"


def another(site, platform) -> str:
    """A video from the same host, in one file."""
    platform.info = {
        "formats": [
            {"format_id": "0", "url": site.file("/both.mp4", files()["both.mp4"]), "ext": "mp4"}
        ]
    }
    return site.url("/home/another")


@pytest.mark.parametrize("kind", ["files", "hls"])
def test_refused_picture_fails_the_row(tmp_path, site, platform, kind):
    url, piece = offer(site, platform, kind)
    picture = {"files": "/picture.mp4", "hls": "/hls/0-1.ts"}[kind]
    site.status(picture, 403)
    assert outcome(bring(tmp_path, url)) == "blocked"
    assert not site.asked(piece)
    assert not list((tmp_path / "media").glob("[!.]*"))


def test_required_sound_fails_the_row(tmp_path, site, platform):
    url, _ = offer(site, platform, "files", Busy(403), Busy(403), Busy(403))
    assert outcome(bring(tmp_path, url, sound="required")) == "blocked"
    # A row kept without sound by another run stays, and only its sound is requested.
    assert bring(tmp_path, url)["failed_parts"]
    asked = len(site.asked("/picture.mp4"))
    assert outcome(bring(tmp_path, url, sound="required")) == "blocked"
    assert bring(tmp_path, url, sound="required")["has_audio"]
    assert len(site.asked("/picture.mp4")) == asked


def test_no_sound_is_requested(tmp_path, site, platform):
    """A file with both stays unchanged; and if `format` is set, it determines the request."""
    url, piece = offer(site, platform)
    row = bring(tmp_path, url, sound="none")
    assert (outcome(row), row["has_audio"], row["failed_parts"]) == ("kept", False, [])
    assert not site.asked(piece)
    row = bring(tmp_path, url, sound="none", format="bv+ba")
    assert (row["has_audio"], len(site.asked(piece))) == (True, 1)
    assert bring(tmp_path, url, sound="none")["has_audio"] is False
    assert len(site.asked(piece)) == 1
    assert bring(tmp_path, another(site, platform), sound="none")["has_audio"]


RECIPE = """
shard_videos: 4
engine: local
stages:
  download_videos: {min_duration_seconds: 1, min_height: 16, backoff_seconds: 0, retries: 0}
  split_clips: {boundaries: whole, min_clip_seconds: 0.5}
"""


class Dataset:
    """A dataset that a recipe makes from a page."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "urls.txt").write_text(url)
        (folder / "recipe.yaml").write_text(RECIPE)
        self._folder, self.path = folder, folder / "dataset"

    def run(self, **how) -> bool:
        loaded = load(
            str(self._folder / "recipe.yaml"), self.path, sources=[str(self._folder / "urls.txt")]
        )
        return run(loaded, self.path, **how)

    def ask(self, query: str) -> list[tuple]:
        with open_catalog(self.path) as catalog:
            return catalog.execute(query).fetchall()


def test_retry_fetches_the_sound_and_decodes_nothing_again(tmp_path, site, platform, capsys):
    """A row that lacks two parts is retried for either; the clips don't change."""
    url, piece = offer(site, platform, "files", Busy(403), Busy(403))
    platform.info["subtitles"] = {
        "en": [
            {
                "ext": "vtt",
                "url": site.script(
                    "/en.vtt",
                    Busy(429),
                    File(b"WEBVTT\n\n00:00.100 --> 00:01.500\none\n", "text/vtt"),
                ),
            }
        ]
    }
    dataset = Dataset(tmp_path, url)
    assert dataset.run()
    assert dataset.ask("SELECT stage, kind, attempts FROM failures ORDER BY 1") == [
        ("download_videos.sound", "blocked", 1),
        ("download_videos.subtitles", "transient", 1),
    ]
    before, clips = status_report(dataset.path), dataset.ask("FROM clips")
    assert any("2 failed (2 parts of kept rows): " in line for line in lines_below(before))
    assert not dataset.run(retry_kinds=["permanent"])
    assert dataset.run(retry_kinds=["transient"])
    assert dataset.ask("SELECT stage, kind, attempts FROM failures") == [
        ("download_videos.sound", "blocked", 2)
    ]
    assert dataset.run(retry_kinds=["blocked"])
    said = " ".join(capsys.readouterr().err.split())
    assert "Retrying 1 failed row of download_videos.subtitles." in said
    assert "Retrying 1 failed row of download_videos.sound." in said
    assert dataset.ask("SELECT * FROM failures") == []
    assert dataset.ask("SELECT has_audio FROM videos") == [(True,)]
    assert len(site.asked(piece)) == 3
    assert len(site.asked("/picture.mp4")) == len(site.asked("/en.vtt")) - 1 == 1
    after = status_report(dataset.path)
    assert after["totals"]["decoded_frames"] == before["totals"]["decoded_frames"]
    assert [stage["kept"] for stage in after["stages"]] == [1, 1]
    assert all(stage["accounted"] and not stage["pending"] for stage in after["stages"])
    assert [row[:12] for row in dataset.ask("FROM clips")] == [row[:12] for row in clips]
    assert verify_dataset(dataset.path) == 0
    # Earlier rows describe the file as it was, even if only they still do.
    shutil.rmtree(dataset.path / "media" / ".found")
    assert verify_dataset(dataset.path) == 0


class Killed(BaseException):
    pass


def test_kill_while_muxing_sound_leaves_an_intact_dataset(tmp_path, site, platform, monkeypatch):
    """Whichever file exists then, `verify` and the next run accept it."""
    url, _ = offer(site, platform, "files", Busy(403))
    dataset = Dataset(tmp_path, url)
    assert dataset.run()

    def killed(*_):
        raise Killed

    for moment in (
        "media.fetch.media_store.MediaStore.note",
        "media.fetch.media_store.MediaStore.keep",
        "download_videos._columns",
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"clipmill.stages.{moment}", killed)
            with pytest.raises(Killed):
                dataset.run(retry_kinds=[])
        assert verify_dataset(dataset.path) == 0
    assert dataset.run()
    assert dataset.ask("SELECT has_audio FROM videos") == [(True,)]
    assert dataset.ask("FROM failures") == []
    assert verify_dataset(dataset.path) == 0
    assert len(site.asked("/picture.mp4")) == 1
    assert len(list((dataset.path / "media").glob("[!.]*"))) == 1
    assert not list((dataset.path / "media" / ".ready").iterdir())
