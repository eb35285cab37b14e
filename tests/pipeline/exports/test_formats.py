"""The contents of each format, read back by the libraries that training jobs use."""

from __future__ import annotations

import csv
import io
import itertools
import json
import tarfile
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq
import pytest
import yaml

from clipmill.pipeline.exports.request import Interleaving, cut_options
from clipmill.pipeline.exports.tar_samples import member_bytes
from clipmill.schemas.errors import UsageError
from tests.pipeline.exports.small_dataset import (
    COLOURS,
    SPANS,
    Small,
    export,
    freeze,
    write_small,
    youtube_id,
)

COPY = cut_options("copy")
EXACT = cut_options("exact")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return write_small(tmp_path_factory.mktemp("small") / "dataset")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Small:
    return write_small(tmp_path_factory.mktemp("many") / "dataset", 100)


def files(folder: Path, pattern: str) -> list[Path]:
    return sorted(folder.glob(pattern))


def test_parquet_has_all_clip_columns_and_video_facts(small, tmp_path):
    """Includes clips without a caption; rows are sorted by video and time."""
    done = export(small, tmp_path / "out", "parquet")
    table = pq.read_table(tmp_path / "out" / "clips-000000.parquet")
    rows = table.to_pylist()
    assert done.manifest["counts"] == {"clips": 12, "exported": 12, "left_out": {}, "failed": {}}
    assert [row["clip_id"] for row in rows] == sorted(
        small.clip_ids, key=lambda one: (one.rsplit("-", 2)[0], int(one.rsplit("-", 2)[1]))
    )
    first = next(row for row in rows if row["clip_id"] == f"youtube-{youtube_id(0)}-2000-3600")
    assert first["caption"] == "a bar on blue, video 0"
    assert first["captions_fine"] == [{"seconds": 2.0, "text": "a blue frame"}]
    assert (first["title"], first["uploader"], first["license"], first["source_id"]) == (
        "PLANTEDTITLE 0",
        "PLANTEDUPLOADER",
        "CC-BY",
        youtube_id(0),
    )
    assert (first["umt_sim"], first["video_duration_seconds"]) == (0.4176532, 6.0)
    assert dict(first["extra"]) == {"title": "PLANTEDEXTRA"}
    assert not [name for name in table.column_names if name.startswith("_")]


@pytest.mark.parametrize(
    ("format", "pattern"),
    [
        ("parquet", "clips-*.parquet"),
        ("csv", "clips-*.csv"),
        ("webdataset", "clips-*.tar"),
        ("huggingface", "data/train-*.parquet"),
        ("internvid", "internvid-*.jsonl"),
        ("interleaved", "documents-*.jsonl"),
    ],
)
def test_shards_respect_the_size_limit_and_have_no_gaps(many, tmp_path, format, pattern):
    """Shards are numbered consecutively and listed with their counts and sizes."""
    limit = {"webdataset": 200_000, "internvid": 10_000}.get(format, 60_000)
    done = export(many, tmp_path / "out", format, shard_bytes=limit)
    found = files(tmp_path / "out", pattern)
    listed = done.manifest["files"]
    assert [path.relative_to(tmp_path / "out").as_posix() for path in found] == [
        file["name"] for file in listed
    ]
    assert [int(path.stem.rpartition("-")[2]) for path in found] == list(range(len(found)))
    assert [path.stat().st_size for path in found] == [file["size_bytes"] for file in listed]
    assert len(found) > 1
    assert max(path.stat().st_size for path in found) <= limit
    if format != "interleaved":
        assert sum(file["items"] for file in listed) == done.manifest["counts"]["exported"]


def test_webdataset_library_reads_the_samples(small, tmp_path):
    """It finds the clip, its text and its facts under one key, in every shard."""
    import webdataset

    out = tmp_path / "out"
    done = export(small, out, "webdataset", cut=EXACT, shard_bytes=60_000)
    shards = files(out, "clips-*.tar")
    assert len(shards) > 1
    found = {}
    for shard in shards:
        for sample in webdataset.WebDataset(str(shard), shardshuffle=False):
            found[sample["__key__"]] = sample
    assert sorted(found) == sorted(one for one in small.clip_ids if one != "file-001-2000-3600")
    key = f"youtube-{youtube_id(2)}-3600-6000"
    sample = found[key]
    facts = json.loads(sample["json"])
    assert sample["txt"].decode() == "a bar on yellow, video 2" == facts["text"]
    assert facts["span"]["asked"]["start_seconds"] == 3.6
    assert facts["span"]["true"] == {"start_seconds": 3.6, "end_seconds": 6.0}
    assert facts["captions"]["captions_fine"] == [{"seconds": 3.6, "text": "a yellow frame"}]
    assert facts["scores"]["aesthetic"] == 6.3  # not 6.300000190734863
    assert facts["scores"]["umt_sim"] == 0.4176532
    assert facts["tags"] == [{"tag": "yellow", "score": 0.3}]
    assert facts["video"]["title"] == "PLANTEDTITLE 2"
    with av.open(io.BytesIO(sample["mp4"])) as clip:
        frames = sum(1 for _ in clip.decode(video=0))
    assert frames == facts["media"]["frames"] == 60
    index = json.loads((out / "index.json").read_text())
    assert [(one["url"], one["filesize"]) for one in index["shardlist"]] == [
        (shard.name, shard.stat().st_size) for shard in shards
    ]
    assert sum(one["nsamples"] for one in index["shardlist"]) == 11
    assert done.manifest["counts"]["left_out"] == {"no caption": 1}
    assert not (out / ".work").exists()


def test_webdataset_fills_each_tar_file_up_to_the_limit(tmp_path):
    """The next sample would not have fitted, even if names are too long for a tar header."""

    def lengthen(step: str, row: dict[str, Any]) -> None:
        if row.get("clip_id", "").startswith("file-"):
            row["clip_id"] = row["clip_id"].replace("file-", "file-" + "x" * 120)
        if str(row.get("video_id", "")).startswith("file-"):
            row["video_id"] = row["video_id"].replace("file-", "file-" + "x" * 120)

    many = write_small(tmp_path / "dataset", 12, change=lengthen)
    out = tmp_path / "out"
    export(many, out, "webdataset", shard_bytes=40_960)
    shards = files(out, "*.tar")
    samples = []
    for shard in shards:
        assert shard.stat().st_size <= 40_960
        with tarfile.open(shard) as tar:
            members = [(member.name, member.size) for member in tar]
        sizes = [member_bytes(*one) for one in members]
        samples.append([a + b for a, b in zip(sizes[::2], sizes[1::2], strict=True)])
    assert any(len(one) > 100 for one in many.clip_ids)
    for own, following in itertools.pairwise(samples):
        whole = sum(own) + following[0] + 1024
        assert -(-whole // 10240) * 10240 > 40_960


def test_webdataset_without_media_has_text_and_facts(small, tmp_path):
    export(small, tmp_path / "out", "webdataset", uncaptioned=True)
    with tarfile.open(tmp_path / "out" / "clips-000000.tar") as tar:
        names = [member.name for member in tar]
        empty = tar.extractfile("file-001-2000-3600.txt").read()
        facts = json.load(tar.extractfile("file-001-2000-3600.json"))
    assert len(names) == 24
    assert {name.partition(".")[2] for name in names} == {"txt", "json"}
    assert (empty, facts["text"]) == (b"", None)
    assert "true" not in facts["span"]


def test_datasets_library_loads_the_folder_with_its_videos(small, tmp_path, monkeypatch):
    """`load_dataset` takes columns and videos from the card; the bytes are the clips' files."""
    import datasets

    out = tmp_path / "out"
    export(small, out, "huggingface", cut=COPY, shard_bytes=100_000)
    assert len(files(out, "data/*.parquet")) > 1
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))["train"]
    assert loaded.features["video"] == datasets.Video()
    assert loaded.num_rows == 11
    rows = loaded.cast_column("video", datasets.Video(decode=False))
    for row in rows:
        assert row["video"]["path"] == f"{row['clip_id']}.mp4"
        with av.open(io.BytesIO(row["video"]["bytes"])) as clip:
            assert sum(1 for _ in clip.decode(video=0)) == row["media_frames"]
        # Cut at key frames: what it actually shows begins no later than requested.
        assert row["media_start_seconds"] <= row["start_seconds"]
        assert row["media_end_seconds"] >= row["end_seconds"] - 1e-6
    assert rows[0]["captions_fine"] == [{"seconds": 0.0, "text": "a red frame"}]
    assert rows[0]["extra"] == [{"key": "title", "value": "PLANTEDEXTRA"}]


def test_videos_are_stored_uncompressed_in_parquet_so_that_viewers_can_seek(small, tmp_path):
    """As `datasets` writes them: uncompressed, plain, with a page index; each file declares its
    video column. Text is compressed."""
    import datasets

    out = tmp_path / "out"
    export(small, out, "huggingface", cut=COPY)
    (path,) = out.glob("data/*.parquet")
    loaded = datasets.load_dataset(
        "parquet", data_files=str(path), cache_dir=str(tmp_path / "cache")
    )["train"]
    assert loaded.features["video"] == datasets.Video()
    with pq.ParquetFile(path) as file:
        group = file.metadata.row_group(0)
        columns = {
            column.path_in_schema: column for column in map(group.column, range(group.num_columns))
        }
        rows = file.read(["video"])["video"].to_pylist()
    assert {
        name: column.compression for name, column in columns.items() if name.startswith("video.")
    } == {"video.bytes": "UNCOMPRESSED", "video.path": "UNCOMPRESSED"}
    assert "PLAIN" in columns["video.bytes"].encodings
    assert not columns["video.bytes"].has_dictionary_page
    assert all(column.has_offset_index for column in columns.values())
    assert {
        column.compression for name, column in columns.items() if not name.startswith("video.")
    } == {"ZSTD"}
    content = path.read_bytes()
    assert all(row["bytes"] in content for row in rows)


def test_datasets_library_loads_a_folder_without_videos(small, tmp_path):
    """The card's features equal those that `datasets` infers from the files."""
    import datasets

    export(small, tmp_path / "out", "huggingface")
    loaded = datasets.load_dataset(str(tmp_path / "out"), cache_dir=str(tmp_path / "a"))["train"]
    found = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "out/data/*.parquet"), cache_dir=str(tmp_path / "b")
    )["train"]
    assert loaded.features == found.features
    assert loaded.to_dict() == found.to_dict()


def test_card_describes_contents_and_provenance(small, tmp_path):
    """Counts, scorers with their models, licences by video, and the command to reproduce it."""
    dataset = write_small(tmp_path / "dataset", 4, change=_strange_licence)
    freeze(dataset.path, "mine", dataset.clip_ids[:5])
    export(dataset, tmp_path / "out", "huggingface", subset="mine")
    card = (tmp_path / "out" / "README.md").read_text()
    _, head, text = card.split("---\n", 2)
    info = yaml.safe_load(head)["dataset_info"]
    hash_ = json.loads((dataset.path / "subsets/mine/subset.json").read_text())["hash"]
    assert info["splits"][0]["num_examples"] == 4
    assert "| clips selected | 5 |" in text
    assert "| left out: no caption | 1 |" in text
    assert "| `aesthetic` | `float` | `score_aesthetic`: `sac+logos+ava1-l14-linearMSE.pth` |" in (
        text
    )
    assert "| `sac+logos+ava1-l14-linearMSE.pth` | Apache-2.0 |" in text
    assert "/home/someone" not in card
    assert hash_ in text
    assert "where: title = 'PLANTEDTITLE'" in text
    assert "--subset mine" in text
    assert "| CC\\|BY &lt;b\\> | 1 |" in text
    assert "| not stated | 1 |" in text


def _strange_licence(step: str, row: dict[str, Any]) -> None:
    if row.get("license"):
        row["license"] = "CC|BY\n<b>"


def test_csv_has_nested_columns_as_json(small, tmp_path):
    export(small, tmp_path / "out", "csv")
    with open(tmp_path / "out" / "clips-000000.csv", encoding="utf-8", newline="") as file:
        rows = {row["clip_id"]: row for row in csv.DictReader(file)}
    row = rows[f"youtube-{youtube_id(0)}-0-2000"]
    assert json.loads(row["tags"]) == [{"tag": "red", "score": 0.3}]
    assert json.loads(row["extra"]) == {"title": "PLANTEDEXTRA"}
    assert (row["similarity"], row["aesthetic"], row["has_audio"]) == ("0.3", "4.3", "false")
    assert rows["file-001-2000-3600"]["caption"] == ""


def test_csv_text_has_no_formulas_and_no_control_characters(tmp_path):
    """A title from the network must do nothing in a spreadsheet; quotes and line breaks stay."""
    hostile = {
        0: '=HYPERLINK("http://x","y")',
        1: "@SUM(A1)",
        2: "-2+3",
        3: 'a "quoted",\nsecond line\x00\x1b[31m — ünï 🎬',
    }

    def change(step: str, row: dict[str, Any]) -> None:
        if step == "download_videos":
            row["title"] = hostile[int(row["source_key"][1:])]

    dataset = write_small(tmp_path / "dataset", 4, change=change)
    export(dataset, tmp_path / "out", "csv")
    with open(tmp_path / "out" / "clips-000000.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    titles = {row["title"] for row in rows}
    assert titles == {
        "'" + hostile[0],
        "'" + hostile[1],
        "'" + hostile[2],
        'a "quoted",\nsecond line  [31m — ünï 🎬',
    }
    # An id may begin with a dash and stays unchanged; so do negative numbers.
    assert {row["source_id"] for row in rows} == {youtube_id(0), youtube_id(2), ""}


def test_internvid_has_exactly_its_columns(small, tmp_path):
    """Clips of other sites have no YoutubeID; they are left out and counted."""
    done = export(small, tmp_path / "out", "internvid")
    lines = (tmp_path / "out" / "internvid-000000.jsonl").read_text().splitlines()
    assert json.loads(lines[1]) == {
        "YoutubeID": youtube_id(0),
        "Start_timestamp": "00:00:02.000",
        "End_timestamp": "00:00:03.600",
        "Caption": "a bar on blue, video 0",
        "Aesthetic_Score": 5.3,
        "UMT_Score": 0.4176532,
    }
    assert list(json.loads(lines[1])) == [
        "YoutubeID",
        "Start_timestamp",
        "End_timestamp",
        "Caption",
        "Aesthetic_Score",
        "UMT_Score",
    ]
    assert done.manifest["counts"] == {
        "clips": 12,
        "exported": 6,
        "left_out": {"no caption": 1, "not from YouTube": 5},
        "failed": {},
    }


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        ({"settings": {"umt_sim": {"scorer": "ViCLIP"}}}, "UMT_Score"),
        (
            {
                "steps": [
                    "download_videos",
                    "split_clips",
                    "summarize_captions",
                    "score_similarity",
                    "score_aesthetic",
                ]
            },
            "UMT_Score",
        ),
        ({"settings": {"score_aesthetic": {"over_frames": "mean"}}}, "Aesthetic_Score"),
        (
            {
                "models": {
                    "score_aesthetic": {
                        "head": {
                            "reference": "sa_0_4_vit_l_14_linear.pth",
                            "revision": None,
                            "identity": "x",
                        }
                    }
                }
            },
            "Aesthetic_Score",
        ),
    ],
)
def test_internvid_columns_reject_another_scorers_values(tmp_path, changed, column):
    dataset = write_small(tmp_path / "dataset", **changed)
    done = export(dataset, tmp_path / "out", "internvid")
    lines = (tmp_path / "out" / "internvid-000000.jsonl").read_text().splitlines()
    assert {json.loads(line)[column] for line in lines} == {None}
    note = next(note for note in done.manifest["notes"] if note.startswith(column))
    assert "is null" in note
    other = {"UMT_Score": "Aesthetic_Score", "Aesthetic_Score": "UMT_Score"}[column]
    assert None not in {json.loads(line)[other] for line in lines}


def documents(folder: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for path in files(folder, "documents-*.jsonl")
        for line in path.read_text().splitlines()
    ]


def test_documents_have_clips_and_captions_in_time_order(small, tmp_path):
    """Form (a): without speech."""
    done = export(small, tmp_path / "out", "interleaved", interleaving=Interleaving("a", 0.0))
    found = documents(tmp_path / "out")
    assert len(found) == 4
    document = next(one for one in found if one["document_id"] == f"youtube-{youtube_id(2)}")
    assert [
        (item["type"], item.get("text", item.get("start_seconds"))) for item in document["items"]
    ] == [
        ("video", 0.0),
        ("text", "a bar on red, video 2"),
        ("video", 2.0),
        ("text", "a bar on blue, video 2"),
        ("video", 3.6),
        ("text", "a bar on yellow, video 2"),
    ]
    assert done.manifest["counts"]["exported"] == 11


def test_rows_are_ordered_by_time_not_by_id(tmp_path):
    """500 comes before 2000, although not alphabetically."""

    def change(step: str, row: dict[str, Any]) -> None:
        if row.get("clip_id", "").endswith("-0-2000"):
            row["clip_id"] = row["clip_id"].replace("-0-2000", "-500-2000")
            if "start_seconds" in row:
                row["start_seconds"], row["duration_seconds"] = 0.5, 1.5

    dataset = write_small(tmp_path / "dataset", 2, change=change)
    export(dataset, tmp_path / "out", "parquet")
    starts = pq.read_table(tmp_path / "out" / "clips-000000.parquet")["start_seconds"].to_pylist()
    assert starts == [0.5, 2.0, 3.6] * 2


def test_documents_include_the_speech_of_each_clip(small, tmp_path):
    """Form (b): the video's own language, human-written; a cue goes to the clip that overlaps it
    most."""
    export(small, tmp_path / "out", "interleaved", interleaving=Interleaving("b", 0.0))
    document = documents(tmp_path / "out")[-1]
    said = [(item["text"]) for item in document["items"] if item.get("role") == "speech"]
    assert said == ["Guten Tag", "zusammen"]
    roles = [item.get("role", "video") for item in document["items"]]
    assert roles == ["video", "caption", "speech", "video", "caption", "speech", "video", "caption"]


def test_documents_can_combine_two_videos(tmp_path):
    """Form (c): two consecutive videos, and the last of an odd number alone."""
    odd = write_small(tmp_path / "dataset", 5)
    export(
        odd,
        tmp_path / "out",
        "interleaved",
        shard_bytes=10_000,
        interleaving=Interleaving("c", 0.0),
    )
    found = documents(tmp_path / "out")
    assert [len(one["videos"]) for one in found] == [2, 2, 1]
    for one in found:
        ids = [item["video_id"] for item in one["items"] if item["type"] == "video"]
        assert list(dict.fromkeys(ids)) == [video["video_id"] for video in one["videos"]]
    together = [video["video_id"] for one in found for video in one["videos"]]
    assert together == sorted(together)
    assert len(set(together)) == 5


def test_documents_drop_clips_by_seed(many, tmp_path):
    """The share is about the requested one, reproducible, and different for another seed."""

    def dropped(name: str, **asked: Any) -> tuple[int, bytes]:
        done = export(many, tmp_path / name, "interleaved", interleaving=Interleaving(**asked))
        counts = done.manifest["counts"]
        assert counts["clips"] == counts["exported"] + sum(counts["left_out"].values())
        return (
            counts["left_out"]["dropped at random"],
            (tmp_path / name / "documents-000000.jsonl").read_bytes(),
        )

    first, text = dropped("a")
    assert 60 < first < 120  # 299 × 0.3 = 90, four deviations are 32
    assert dropped("b") == (first, text)
    assert dropped("c", seed=43)[1] != text
    assert dropped("d", drop=0.6)[0] > 140


def test_documents_reference_the_clips_files(small, tmp_path):
    out = tmp_path / "out"
    export(small, out, "interleaved", cut=COPY, interleaving=Interleaving("a", 0.0))
    items = [item for one in documents(out) for item in one["items"] if item["type"] == "video"]
    assert len(items) == 11
    assert all((out / item["media_path"]).stat().st_size for item in items)


def test_tables_reference_the_clips_files_and_actual_spans(small, tmp_path):
    out = tmp_path / "out"
    export(small, out, "parquet", cut=EXACT)
    for row in pq.read_table(out / "clips-000000.parquet").to_pylist():
        start, end = next(span for span in SPANS if span[0] == row["start_seconds"])
        assert (row["media_start_seconds"], row["media_end_seconds"]) == pytest.approx(
            (start, end), abs=1e-6
        )
        with av.open(str(out / row["media_path"])) as clip:
            frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
        assert len(frames) == row["media_frames"] == round((end - start) * 25)
        assert (out / row["media_path"]).stat().st_size == row["media_bytes"]
        # Red is strongest in the first, blue in the second, and yellow has little blue.
        ground = frames[0][-20:, -20:].mean(axis=(0, 1))
        strongest = {"red": 0, "blue": 2, "yellow": 0}[COLOURS[SPANS.index((start, end))]]
        assert ground.argmax() == strongest


def test_internvid_rejects_media(small, tmp_path):
    with pytest.raises(UsageError, match="metadata only"):
        export(small, tmp_path / "out", "internvid", cut=COPY)
