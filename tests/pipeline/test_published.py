"""Published clips stand in `clips` before any media, each once, with their scores."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import clipmill
from clipmill.jobs.remove import remove
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.catalog.index_writer import update_index
from clipmill.pipeline.ingest.sources import SourceSpec, ingest
from clipmill.pipeline.ingest.span_import import import_spans
from clipmill.schemas.errors import UsageError
from clipmill.schemas.folders import INDEX, INDEX_OF_PUBLISHED, PUBLISHED

VIDEOS = ("-walk_walk_", "swim-swim-s", "gone-gone-g")


def internvid(folder: Path, videos: tuple[str, ...] = VIDEOS) -> Path:
    """Four clips of each video."""
    path = folder / "rows.jsonl"
    with open(path, "w", encoding="utf-8") as file:
        for number, video in enumerate(videos):
            for at in range(4):
                row = {
                    "YoutubeID": video,
                    "Start_timestamp": f"00:00:{at:02d}.250",
                    "End_timestamp": f"00:00:{at:02d}.9995",
                    "Caption": f"caption {number} {at}",
                    "Aesthetic_Score": 3 + at / 2,
                    "UMT_Score": "nan" if at == 3 else at / 10,
                }
                file.write(json.dumps(row) + "\n")
    return path


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    place = tmp_path / "dataset"
    report = clipmill.import_internvid(place, [internvid(tmp_path)], shard_videos=2)
    assert (report.kept, report.index_problem) == (12, None)
    return place


def rows(dataset: Path, query: str) -> list[tuple[Any, ...]]:
    with open_catalog(dataset) as catalog:
        return catalog.execute(query).fetchall()


EVERYTHING = "SELECT * FROM clips ORDER BY clip_id"


def test_published_clips_are_in_the_catalog_with_their_scores(dataset: Path):
    assert rows(dataset, "SELECT media, count(*) FROM clips GROUP BY media") == [("absent", 12)]
    found = rows(
        dataset,
        "SELECT clip_id, start_seconds, end_seconds, caption_given, umt_sim, aesthetic_given, url "
        f"FROM clips WHERE video_id = 'youtube-{VIDEOS[0]}' ORDER BY start_seconds",
    )
    # The same rounding as in schemas/ids.py: 999.5 ms is 1000, 1999.5 ms is 2000.
    assert [row[0].removeprefix(f"youtube-{VIDEOS[0]}-") for row in found] == [
        "250-1000",
        "1250-2000",
        "2250-3000",
        "3250-4000",
    ]
    assert found[1][1:] == (
        1.25,
        1.9995,
        "caption 0 1",
        0.1,
        3.5,
        f"https://www.youtube.com/watch?v={VIDEOS[0]}",
    )
    assert found[3][4] is None
    status = clipmill.open(dataset).status()
    assert (status["totals"]["clips"], status["totals"]["published"]) == (0, 12)


def test_rows_are_the_same_with_without_and_with_an_outdated_index(dataset: Path, tmp_path: Path):
    assert list((dataset / INDEX_OF_PUBLISHED).glob("clips-*.parquet"))
    indexed = rows(dataset, EVERYTHING)
    shutil.move(dataset / INDEX, tmp_path / "aside")
    assert rows(dataset, EVERYTHING) == indexed
    shutil.move(tmp_path / "aside", dataset / INDEX)
    more = internvid(tmp_path, ("another-one", VIDEOS[0]))
    assert import_spans(dataset, [more], shard_videos=2).kept == 8
    both = rows(dataset, EVERYTHING)
    assert len({row[0] for row in both}) == len(both) == 16
    update_index(dataset)
    assert rows(dataset, EVERYTHING) == both
    assert not clipmill.open(dataset).verify().faults


def test_damaged_part_is_found_and_not_read(dataset: Path):
    before = rows(dataset, EVERYTHING)
    [part] = (dataset / INDEX_OF_PUBLISHED).glob("clips-*.parquet")
    part.write_bytes(part.read_bytes()[:-100])
    assert rows(dataset, EVERYTHING) == before
    assert any("damaged" in note.what for note in clipmill.open(dataset).verify().notes)


def test_dataset_of_an_earlier_release_shows_its_published_clips(dataset: Path):
    before = rows(dataset, EVERYTHING)
    shutil.rmtree(dataset / INDEX)
    (dataset / PUBLISHED).unlink()
    assert rows(dataset, EVERYTHING) == before


def test_removed_video_takes_its_published_clips_along(dataset: Path):
    remove(dataset, videos=[f"youtube-{VIDEOS[1]}"])
    assert rows(dataset, "SELECT count(*), count(DISTINCT video_id) FROM clips") == [(8, 2)]
    for path in dataset.rglob("*.parquet"):
        assert VIDEOS[1] not in str(pq.read_table(path).to_pylist())


def test_subsets_and_exports_work_before_any_media(dataset: Path, tmp_path: Path):
    opened = clipmill.open(dataset)
    subset = opened.create_subset("internvid-aes", name="aes")
    assert subset.info["n_clips"] == 6
    assert subset.info["scorers"]["aesthetic"]["column"] == "aesthetic_given"
    opened.export(tmp_path / "iv", "internvid", subset="aes")
    lines = (tmp_path / "iv" / "internvid-000000.jsonl").read_text().splitlines()
    assert {json.loads(line)["YoutubeID"] for line in lines} == set(VIDEOS)
    assert json.loads(lines[0])["Caption"].startswith("caption ")
    opened.export(tmp_path / "jl", "jsonl", where="umt_sim = 0.2")
    found = [json.loads(line) for line in (tmp_path / "jl" / "clips-000000.jsonl").open()]
    assert [(row["umt_sim"], row["media"]) for row in found] == [(0.2, "absent")] * 3
    for format_ in ("csv", "parquet"):
        assert opened.export(tmp_path / format_, format_)["counts"]["exported"] == 12
    with pytest.raises(UsageError, match=r"12 without media.*only published"):
        opened.export(tmp_path / "cut", "webdataset", media="copy")
    opened.report(tmp_path / "report.html")
    checked = opened.verify()
    assert (checked.faults, checked.notes) == ([], [])
    found = opened.explain(where="umt_sim >= 0.1", scores=True)
    assert found["correlations"]["columns"] == ["duration_seconds", "umt_sim", "aesthetic_given"]
    assert "caption 0 1" in str(found)
    with pytest.raises(UsageError, match="the catalog has no such column"):
        opened.create_subset("panda-10m")


def test_spans_of_a_list_are_there_too(tmp_path: Path):
    listed = tmp_path / "panda.csv"
    listed.write_text(
        "videoID,url,timestamp,caption,matching_score\n"
        "a,https://www.youtube.com/watch?v=swim-swim-s,\"[['0:00:02.5', '0:00:08.341']]\","
        '"[\'a dog\']","[0.4375]"\n'
        'b,https://media.example/one.mp4,"[[1, 2]]","[\'a cat\']","[0.5]"\n'
        "c,https://media.example/two.mp4,,,\n"
    )
    dataset = tmp_path / "dataset"
    ingest(dataset, [SourceSpec(path=str(listed))], shard_videos=8)
    (dataset / "runs").mkdir()
    found = rows(
        dataset, "SELECT clip_id, caption_given, panda_matching, media FROM clips ORDER BY 3"
    )
    assert found[0] == ("youtube-swim-swim-s-2500-8341", "a dog", 0.4375, "absent")
    assert found[1][0].startswith("source-")
    assert found[1][0].endswith("-1000-2000")
    assert len(found) == 2
