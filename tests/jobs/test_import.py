"""`clipmill import`, then a run that fetches only the videos and adds what is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.jobs.importing import import_internvid
from clipmill.jobs.run import run
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import ClipmillError
from tests.download_helpers import add_extractor
from tests.http_server import serve
from tests.media import THREE_SHOTS, cached

WALK, SWIM, GONE = "-walk_walk_", "swim-swim-s", "gone-gone-g"
CLIPS = [
    (WALK, "00:00:00.500", "00:00:01.500", "someone walks", 4.25, 0.3125),
    (GONE, "00:00:00.500", "00:00:01.500", "no more", 3.0, 0.25),
    (SWIM, "00:00:01.000", "00:00:03.200", "someone swims", 5.0, 0.375),
    (WALK, "00:00:02.000", "00:00:05.000", "someone stops", 2.5, None),
]


@pytest.fixture
def published(tmp_path) -> Path:
    names = (
        "YoutubeID",
        "Start_timestamp",
        "End_timestamp",
        "Caption",
        "Aesthetic_Score",
        "UMT_Score",
    )
    path = tmp_path / "InternVid-10M-FLT.jsonl"
    path.write_text(
        "".join(json.dumps(dict(zip(names, clip, strict=True))) + "\n" for clip in CLIPS)
    )
    return path


@pytest.fixture
def site(monkeypatch):
    """YouTube as yt-dlp sees it: two videos exist and one is private."""
    from yt_dlp.extractor.common import InfoExtractor
    from yt_dlp.utils import ExtractorError

    film, _ = cached(THREE_SHOTS, audio=True)
    with serve() as server:
        for name in (WALK, SWIM):
            server.file(f"/files/{name}.mp4", film.read_bytes() + name.encode())

        class YoutubeIE(InfoExtractor):
            files = server.url("/files/")
            _VALID_URL = r"https?://www\.youtube\.com/watch\?v=(?P<id>[\w-]{11})"

            def _real_extract(self, url):
                name = self._match_id(url)
                if name == GONE:
                    raise ExtractorError("Private video", expected=True)
                return {
                    "id": name,
                    "title": f"Title {name}",
                    "ext": "mp4",
                    "width": 320,
                    "height": 180,
                    "url": f"{self.files}{name}.mp4",
                }

        add_extractor(YoutubeIE, monkeypatch.setattr)
        yield server


def test_imported_clips_get_their_media_and_keep_their_captions_and_scores(
    tmp_path, published, site, capsys
):
    dataset = tmp_path / "dataset"
    import_internvid(dataset, [published], shard_videos=2)
    assert capsys.readouterr().out.splitlines() == [
        "Rows: 4 = 4 kept + 0 rejected + 0 failed.",
        "Videos: 3 new in 2 shards.",
        f"Next: clipmill run internvid-metadata --dataset {dataset}",
    ]
    loaded = load_recipe(
        recipe_path("internvid-metadata"),
        engine="local",
        overrides=["split_clips.keep_frames=false"],
    )
    with open_catalog(dataset) as catalog:
        before = catalog.execute("SELECT clip_id, media, umt_sim FROM clips").fetchall()
    assert len(before) == 4
    assert {media for _, media, _ in before} == {"absent"}
    assert run(loaded, dataset)
    with open_catalog(dataset, use_index=False) as catalog:
        query = "SELECT clip_id, umt_sim FROM clips ORDER BY ALL"
        after = catalog.execute(query).fetchall()
    assert after == sorted((clip, score) for clip, _, score in before)
    with open_catalog(dataset) as catalog:
        assert catalog.execute(query).fetchall() == after
        rows = catalog.execute(
            "SELECT clip_id, start_seconds, end_seconds, caption_given, umt_sim, aesthetic_given, "
            "extra['Start_timestamp'], title FROM clips WHERE media = 'present' ORDER BY clip_id"
        ).fetchall()
        others = catalog.execute(
            "SELECT clip_id, media, umt_sim FROM clips WHERE media <> 'present'"
        ).fetchall()
        failures = catalog.execute("SELECT stage, kind FROM failures").fetchall()
    assert failures == [("download_videos", "permanent")]
    assert others == [(f"youtube-{GONE}-500-1500", "failed", 0.25)]
    assert rows == [
        (
            f"youtube-{WALK}-2000-5000",
            2.0,
            5.0,
            "someone stops",
            None,
            2.5,
            "00:00:02.000",
            f"Title {WALK}",
        ),
        (
            f"youtube-{WALK}-500-1500",
            0.5,
            1.5,
            "someone walks",
            0.3125,
            4.25,
            "00:00:00.500",
            f"Title {WALK}",
        ),
        (
            f"youtube-{SWIM}-1000-3200",
            1.0,
            3.2,
            "someone swims",
            0.375,
            5.0,
            "00:00:01.000",
            f"Title {SWIM}",
        ),
    ]
    assert {request.path for request in site.log} == {f"/files/{WALK}.mp4", f"/files/{SWIM}.mp4"}
    assert not run(loaded, dataset)


def test_usage_error_of_import_is_one_message_and_leaves_no_folder(tmp_path, clipmill):
    wrong = tmp_path / "urls.txt"
    wrong.write_text("https://a.example/1.mp4\n")
    dataset = tmp_path / "dataset"
    done = clipmill("import", str(dataset), str(wrong), "--format", "internvid")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        f"Error: {wrong} is not InternVid's metadata: none of its first lines "
        "is a JSON object, and it is not a Parquet file\n"
    )
    assert not dataset.exists()


def test_import_reports_that_existing_shards_stay(tmp_path, published):
    """If another shard size is requested; otherwise the size stays without a message."""
    more = tmp_path / "more.jsonl"
    more.write_text(published.read_text().replace(SWIM, "more-swims-").replace(WALK, "more-walks-"))
    dataset = tmp_path / "dataset"
    words = ["import", str(dataset), str(published), "--format", "internvid"]

    def said(*further: str) -> str:
        done = CliRunner().invoke(app, [*words, *further])
        assert done.exit_code == 0, done.output
        return done.stderr

    assert said("--shard-videos", "2") == ""
    words[2] = str(more)
    assert said() == ""
    assert "--shard-videos is now 1: it applies to new sources only" in said("--shard-videos", "1")


def test_import_does_not_wait_for_an_active_run(tmp_path, published):
    from clipmill.pipeline.dataset.locks import dataset_lock

    (tmp_path / "dataset").mkdir()
    with (
        dataset_lock(tmp_path / "dataset"),
        pytest.raises(ClipmillError, match="another command is using"),
    ):
        import_internvid(tmp_path / "dataset", [published], shard_videos=2)
