"""A video's optional parts, its subtitles, succeed or fail by themselves."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest

from clipmill.jobs.lines_below import lines_below
from clipmill.jobs.run import run
from clipmill.jobs.verify import verify_dataset
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.run import load
from clipmill.pipeline.status import status_report
from clipmill.schemas.ids import source_key
from clipmill.schemas.storage import StorageError
from clipmill.schemas.tables import SOURCES
from clipmill.stages.protocol import Workspace
from tests.download_helpers import make_video, outcome, stage
from tests.http_server import Busy, File, Hang
from tests.ytdlp_changes import change_ytdlp_process


def vtt(text: str) -> File:
    return File(f"WEBVTT\n\n00:00.100 --> 00:01.500\n{text}\n".encode(), "text/vtt")


def offer(site, platform, name: str, **tracks) -> str:
    """A video with subtitles; each of `tracks` is a language, automatic ones begin with `auto_`."""
    said: dict[str, dict] = {"subtitles": {}, "automatic_captions": {}}
    for track, steps in tracks.items():
        code = track.removeprefix("auto_").replace("_", "-")
        kind = "automatic_captions" if track.startswith("auto_") else "subtitles"
        url = site.script(
            f"/{name}/{track}.vtt", *(steps if isinstance(steps, tuple) else (steps,))
        )
        said[kind][code] = [{"url": url, "ext": "vtt"}]
    media = site.file(f"/{name}.mp4", make_video(seed=len(platform.infos)))
    platform.infos[name] = {"formats": [{"format_id": "0", "url": media, "ext": "mp4"}], **said}
    return site.page(f"/home/{name}", "<html>a page, for who does not know the site</html>")


def bring(dataset: Path, urls: list[str], **settings) -> list[dict]:
    rows = pa.Table.from_pylist(
        [{"source_key": source_key(url), "url": url, "extractor": "home"} for url in urls], SOURCES
    )
    with stage(**settings).open(Workspace(dataset, dataset / "scratch")) as transform:
        return transform(rows).to_pylist()


def said_in(row: dict) -> dict[str, str]:
    return {line["language"]: line["text"] for line in row["subtitles"]}


def test_refused_track_fails_neither_the_others_nor_the_media(tmp_path, site, platform):
    """Its Retry-After is valid only for subtitles, and its failure is one of its own part."""
    first = offer(site, platform, "first", en=Busy(429, "600"), en_GB=vtt("two"), fr=vtt("x"))
    second = offer(site, platform, "second", en=vtt("three"))
    [row] = bring(tmp_path, [first])
    assert outcome(row) == "kept"
    assert said_in(row) == {"en-GB": "two"}
    [failure] = row["failed_parts"]
    assert (failure["part"], failure["kind"], failure["attempts"]) == ("subtitles", "transient", 1)
    assert failure["message"].startswith("en: ")
    assert "429" in failure["message"]
    [row] = bring(tmp_path, [second])
    assert outcome(row) == "kept"
    assert row["failed_parts"][0]["kind"] == "transient"
    assert not site.asked("/second/en.vtt"), "the host asked for no more of these"


def test_only_missing_parts_are_requested(tmp_path, site, platform):
    url = offer(site, platform, "film", en=(Busy(503), vtt("one")), en_GB=vtt("two"))
    [row] = bring(tmp_path, [url], backoff_seconds=0.0)
    assert said_in(row) == {"en-GB": "two"}
    [row] = bring(tmp_path, [url], backoff_seconds=0.0)
    assert said_in(row) == {"en": "one", "en-GB": "two"}
    assert row["failed_parts"] == []
    assert [len(site.asked(path)) for path in ("/film.mp4", "/film/en.vtt", "/film/en_GB.vtt")] == [
        1,
        2,
        1,
    ]


@pytest.mark.parametrize(
    ("track", "kind"),
    [
        (Busy(404), "permanent"),
        (Busy(403), "blocked"),
        (Busy(500), "transient"),
        (File(b"\x00\x01", "text/vtt"), None),
        (Hang(), "transient"),
    ],
)
def test_video_is_kept_whatever_becomes_of_a_track(tmp_path, site, platform, track, kind):
    url = offer(site, platform, "film", en=track)
    [row] = bring(tmp_path, [url], retries=1, timeout_seconds=0.5)
    assert outcome(row) == "kept", row
    assert [part["kind"] for part in row["failed_parts"]] == [kind] * (kind is not None)


def test_full_disk_is_not_a_failure_of_the_track(tmp_path, site, platform, monkeypatch):
    """The row would be kept without subtitles that the source has."""

    def fill_the_disk(put):
        from clipmill.stages.media.fetch import ytdlp_subtitles

        def full(data: bytes) -> str:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        put(ytdlp_subtitles, "decoded", full)

    change_ytdlp_process(fill_the_disk, monkeypatch.setattr)
    url = offer(site, platform, "film", en=vtt("one"))
    with pytest.raises(StorageError, match="No space left"):
        bring(tmp_path, [url])


def test_other_languages_are_requested_without_the_media(tmp_path, site, platform):
    url = offer(site, platform, "film", en=vtt("one"), fr=vtt("un"))
    [row] = bring(tmp_path, [url])
    assert said_in(row) == {"en": "one"}
    [row] = bring(tmp_path, [url], subtitle_languages=["fr"])
    assert said_in(row) == {"fr": "un"}
    assert len(site.asked("/film.mp4")) == 1


@pytest.mark.parametrize(
    ("offered", "language", "settings", "taken"),
    [
        (
            "es fr pt_BR auto_es-orig auto_es auto_en auto_de auto_en-es auto_en-fr",
            "es",
            {},
            "es es-orig",
        ),
        (
            "en es fr auto_en-orig auto_en auto_es auto_en-en auto_en-es auto_es-en",
            "en",
            {},
            "en en-orig",
        ),
        ("es fr auto_es-orig auto_en auto_en-es", None, {}, "es es-orig"),
        ("auto_en auto_de auto_en-de", "de", {}, "de"),
        ("auto_de auto_en", None, {}, "en"),
        (
            "es auto_es-orig auto_en auto_en-es",
            "es",
            {"translated_subtitles": True},
            "es es-orig en en-es",
        ),
        ("es auto_es-orig", "es", {"user_subtitles": False}, "es-orig"),
        ("es auto_es-orig", "es", {"automatic_subtitles": False}, "es"),
        ("es de auto_es-orig", "es", {"subtitle_languages": []}, ""),
        ("es de auto_es-orig auto_es", "es", {"yt_dlp": {"allsubtitles": True}}, "de es es-orig"),
    ],
)
def test_which_tracks_are_requested(tmp_path, site, platform, offered, language, settings, taken):
    """Human-written ones, and the automatic one in the spoken language; translations optionally."""
    tracks = {
        name.replace("-", "_") if name.startswith("auto_") else name: vtt(name)
        for name in offered.split()
    }
    url = offer(site, platform, "film", **tracks)
    platform.infos["film"]["language"] = language
    [row] = bring(tmp_path, [url], **settings)
    assert set(said_in(row)) == set(taken.split())
    assert len([one for one in site.log if one.path.endswith(".vtt")]) == len(taken.split())


RECIPE = """
shard_videos: 4
engine: local
stages:
  download_videos: {{min_duration_seconds: 1, min_height: 16, backoff_seconds: 0, retries: 0}}
  split_clips: {{boundaries: whole, min_clip_seconds: 0.5}}
  hear: {{stage: "{stage}:Hear"}}
"""
HEAR = """
from contextlib import contextmanager
import pyarrow as pa
from clipmill.stages.protocol import Rows, Stage

class Hear(Stage):
    name = "hear"
    reads = ("download_videos.subtitles?",)
    writes = pa.schema([("heard", pa.string())])

    @contextmanager
    def open(self, workspace):
        def transform(batch):
            rows = Rows(self)
            for row in batch.to_pylist():
                rows.keep(row["clip_id"], heard="".join(s["text"] for s in row["subtitles"] or []))
            return rows.table()
        yield transform
"""


def test_retry_fetches_failed_parts(tmp_path, site, platform, capsys):
    """Only the part is fetched again, and only stages that read it run again."""
    offer(site, platform, "first", en=(Busy(429), vtt("one"), vtt("again")))
    offer(site, platform, "second", en=vtt("two"))
    (tmp_path / "urls.txt").write_text(
        "".join(site.url(f"/home/{name}\n") for name in ("first", "second"))
    )
    (tmp_path / "hear.py").write_text(HEAR)
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(stage=tmp_path / "hear.py"))
    dataset = tmp_path / "dataset"

    def go(**how) -> bool:
        loaded = load(str(tmp_path / "recipe.yaml"), dataset, sources=[str(tmp_path / "urls.txt")])
        return run(loaded, dataset, **how)

    def ask(query: str) -> list[tuple]:
        with open_catalog(dataset) as catalog:
            return catalog.execute(query).fetchall()

    assert go()
    key = source_key(site.url("/home/first"))
    assert ask("SELECT stage, key, kind, attempts FROM failures") == [
        ("download_videos.subtitles", key, "transient", 1)
    ]
    before = status_report(dataset)
    assert all(stage["inputs"] == stage["kept"] for stage in before["stages"])
    assert next(lines_below(before)).startswith("1 failed (1 part of kept rows): 1 transient")
    assert not go(retry_kinds=["permanent"])
    assert go(retry_kinds=["transient"])
    assert "Retrying 1 failed row of download_videos.subtitles." in " ".join(
        capsys.readouterr().err.split()
    )
    assert ask("SELECT * FROM failures") == []
    assert ask("SELECT resolved FROM failures_all") == [(True,)]
    assert sorted(ask("SELECT heard FROM clips")) == [("one",), ("two",)]
    assert len(site.asked("/first.mp4")) == len(site.asked("/second.mp4")) == 1
    after = status_report(dataset)
    assert after["totals"]["decoded_frames"] == before["totals"]["decoded_frames"]
    assert [stage["kept"] for stage in after["stages"]] == [2, 2, 2]
    assert all(stage["accounted"] and not stage["pending"] for stage in after["stages"])
    assert verify_dataset(dataset) == 0
    assert not go(retry_kinds=[])
