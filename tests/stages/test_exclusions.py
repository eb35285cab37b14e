"""Known ids are compared with the site's id before anything is downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.pipeline.ingest.source_spec import SourceSpec
from clipmill.pipeline.ingest.sources import ingest
from clipmill.schemas.damage import DamagedFile
from clipmill.schemas.ids import source_key
from clipmill.stages.media.fetch.exclusions import Exclusions
from clipmill.stages.protocol import Workspace
from tests.download_helpers import make_video, outcome, stage


def bring(dataset: Path, urls: list[str]) -> list[dict]:
    import pyarrow as pa

    from clipmill.schemas.tables import SOURCES

    rows = pa.Table.from_pylist(
        [{"source_key": source_key(url), "url": url, "extractor": "home"} for url in urls], SOURCES
    )
    with stage(concurrency=1, batch_rows=1).open(Workspace(dataset, dataset / "s")) as transform:
        return [row for at in range(len(urls)) for row in transform(rows.slice(at, 1)).to_pylist()]


@pytest.mark.parametrize(
    ("line", "names_it"),
    [
        ("RealId_7", True),
        ("home RealId_7", True),
        ("home-RealId_7", True),
        ("Home RealId_7", True),
        ("https://home.example/v/7", True),
        ("realid_7", False),
        ("other RealId_7", False),
        ("slug", False),
    ],
)
def test_video_is_excluded_by_its_sites_id(tmp_path, site, platform, line, names_it):
    media = site.file("/film.mp4", make_video())
    platform.info = {
        "id": "RealId_7",
        "webpage_url": "https://home.example/v/7",
        "formats": [{"format_id": "0", "url": media, "ext": "mp4"}],
    }
    url = site.url("/home/slug")
    (tmp_path / "known.txt").write_text(f"someone else\n{line}\n")
    dataset = tmp_path / "dataset"
    ingest(
        dataset,
        [SourceSpec(url=site.url("/else.mp4"))],
        shard_videos=4,
        exclude_ids=tmp_path / "known.txt",
    )
    [row] = bring(dataset, [url])
    assert outcome(row) == ("sources.exclude_ids" if names_it else "kept"), row
    assert len(site.asked("/film.mp4")) == (not names_it)


def test_second_url_of_a_video_is_detected_before_the_download(tmp_path, site, platform):
    media = site.file("/film.mp4", make_video())
    platform.info = {"id": "RealId_7", "formats": [{"format_id": "0", "url": media, "ext": "mp4"}]}
    rows = bring(tmp_path, [site.url("/home/one"), site.url("/home/two")])
    assert [outcome(row) for row in rows] == ["kept", "download_videos.duplicate"]
    assert len(site.asked("/film.mp4")) == 1


def test_ids_that_differ_in_case_are_different_videos(tmp_path, site, platform):
    for name, seed in (("aB_7", 1), ("Ab_7", 2)):
        media = site.file(f"/{name}.mp4", make_video(seed=seed))
        platform.infos[name] = {"formats": [{"format_id": "0", "url": media, "ext": "mp4"}]}
    rows = bring(tmp_path, [site.url("/home/aB_7"), site.url("/home/Ab_7")])
    assert [row["video_id"] for row in rows] == ["home-aB_7", "home-Ab_7"]


def test_damaged_file_of_known_ids_is_reported(tmp_path):
    """Runs don't continue as if no id were known; `verify --repair` and the next ingest fix it."""
    (tmp_path / "known.txt").write_text("abcdefghijk\n")
    dataset = tmp_path / "dataset"

    def take() -> None:
        ingest(
            dataset,
            [SourceSpec(url="https://example.invalid/a.mp4")],
            shard_videos=4,
            exclude_ids=tmp_path / "known.txt",
        )

    def verify(*options: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["verify", str(dataset), *options])
        return done.exit_code, done.stdout

    take()
    assert verify() == (0, "")
    file = dataset / "sources" / ".excluded.npy"
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(DamagedFile, match=r"sources/\.excluded\.npy is damaged"):
        Exclusions(dataset)
    _, said = verify("--repair")
    assert "the file of known ids can't be read" in said
    take()
    assert verify() == (0, "")
    assert Exclusions(dataset).find(["abcdefghijk"])
