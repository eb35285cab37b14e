"""Clips that can't be cut, and what `--redact` leaves out."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.engine.task_results import TaskResult
from clipmill.pipeline.exports import units
from clipmill.pipeline.exports.request import Interleaving, cut_options
from clipmill.schemas.errors import ClipmillError, RowFailed
from clipmill.stages.media.cutting import cut as cutting
from clipmill.stages.media.cutting.cut import cut_clips
from clipmill.stages.media.cutting.requests import CutRequest, CutResult
from clipmill.stages.scan_videos import SCANS
from tests.media import THREE_SHOTS, cached
from tests.pipeline.exports.small_dataset import (
    PLANTED,
    Small,
    contents,
    export,
    freeze,
    write_small,
    youtube_id,
)
from tests.synthetic import START, run_record, write_run, write_shard


def failures(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "failures.jsonl").read_text().splitlines()]


def broken(step: str, row: dict[str, Any]) -> None:
    """The first video is intact; the others' files are missing, not kept, or no videos."""
    places = {"k001": "media/gone.mp4", "k002": None, "k003": "media/noise.mp4"}
    if step == "download_videos":
        row["path"] = places.get(row["source_key"], row["path"])


@pytest.mark.parametrize("format", ["webdataset", "huggingface", "parquet"])
def test_clip_that_cannot_be_cut_is_a_failed_row(tmp_path, format):
    """The others are exported, and all are accounted for."""
    dataset = write_small(tmp_path / "dataset", change=broken)
    (dataset.path / "media" / "noise.mp4").write_bytes(b"noise" * 9999)
    done = export(dataset, tmp_path / "out", format, cut=cut_options("exact"), uncaptioned=True)
    assert done.manifest["counts"] == {
        "clips": 12,
        "exported": 3,
        "left_out": {},
        "failed": {"permanent": 6, "bad_media": 3},
    }
    found = failures(tmp_path / "out")
    assert {(row["video_id"], row["kind"]) for row in found} == {
        ("file-001", "permanent"),
        (f"youtube-{youtube_id(2)}", "permanent"),
        ("file-003", "bad_media"),
    }
    assert len({row["clip_id"] for row in found}) == 9
    assert {row["message"] for row in found if row["video_id"] == "file-001"} == {
        "the file of file-001 is no longer there"
    }
    assert str(tmp_path) not in (tmp_path / "out" / "failures.jsonl").read_text()
    if format == "parquet":
        table = pq.read_table(tmp_path / "out" / "clips-000000.parquet")
        assert table.num_rows == 3
        assert None not in table["media_path"].to_pylist()


def test_span_beyond_the_video_fails_only_its_clip(tmp_path):
    def change(step: str, row: dict[str, Any]) -> None:
        if step == "split_clips" and row["shot"] == 2:
            row["start_seconds"], row["end_seconds"] = 60.0, 62.0

    dataset = write_small(tmp_path / "dataset", 1, change=change)
    done = export(dataset, tmp_path / "out", "webdataset", cut=cut_options("exact"))
    assert done.manifest["counts"]["exported"] == 2
    assert sum(done.manifest["counts"]["failed"].values()) == 1


def test_speech_is_kept_if_a_videos_first_clip_fails(tmp_path):
    """Subtitles are in the row of the first clip, whatever becomes of it."""

    def change(step: str, row: dict[str, Any]) -> None:
        if step == "split_clips" and row["shot"] == 0:
            row["start_seconds"], row["end_seconds"] = -5.0, -3.0

    dataset = write_small(tmp_path / "dataset", 1, change=change)
    export(
        dataset,
        tmp_path / "out",
        "interleaved",
        cut=cut_options("exact"),
        interleaving=Interleaving("b", 0.0),
    )
    (line,) = (tmp_path / "out" / "documents-000000.jsonl").read_text().splitlines()
    assert [item["text"] for item in json.loads(line)["items"] if item.get("role") == "speech"] == [
        "zusammen"
    ]


def test_missing_encoder_is_reported_before_anything_starts(tmp_path):
    dataset = write_small(tmp_path / "dataset", 1)
    with pytest.raises(ClipmillError, match="h264_nowhere"):
        export(
            dataset,
            tmp_path / "out",
            "webdataset",
            cut=cut_options("exact", encoder="h264_nowhere"),
        )
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def telling(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A dataset whose film also has its title in its own metadata."""
    small = write_small(tmp_path_factory.mktemp("telling") / "dataset", 6, change=_own_column)
    freeze(small.path, "mine", small.clip_ids)
    film, _ = cached(THREE_SHOTS)
    with av.open(str(film)) as source, av.open(str(small.path / "media" / "film.mp4"), "w") as told:
        told.metadata.update(
            title=PLANTED["title"], comment=PLANTED["description"], artist=PLANTED["uploader"]
        )
        stream = told.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                told.mux(packet)
    return small


def _own_column(step: str, row: dict[str, Any]) -> None:
    if row.get("source_key") == "k003":
        row["path"] = f"media/{PLANTED['title']} by {PLANTED['uploader']}.mp4"
    if row.get("source_key") == "k005":
        row["url"] = f"/home/{PLANTED['uploader']}/{PLANTED['title']}.mp4"


@pytest.mark.parametrize(
    ("format", "media"),
    [
        ("webdataset", "exact"),
        ("webdataset", "copy"),
        ("parquet", "copy"),
        ("huggingface", "copy"),
        ("huggingface", "none"),
        ("internvid", "none"),
        ("csv", "none"),
        ("interleaved", "copy"),
    ],
)
def test_redacted_exports_have_no_titles_descriptions_or_uploaders(
    telling, tmp_path, format, media
):
    """In no file, at no depth, in no spelling, and not in the clips' own metadata."""
    out = tmp_path / "out"
    export(
        telling,
        out,
        format,
        redact=True,
        subset="mine",
        uncaptioned=True,
        where=f"title LIKE '{PLANTED['title']}%' AND similarity < 2",
        cut=cut_options(media),
    )
    found = _as_text(out)
    assert b"a bar on red" in found
    for word in PLANTED.values():
        assert word.lower().encode() not in found.lower()


def test_exports_without_redact_have_them(telling, tmp_path):
    """Proves that the test above would detect them."""
    for format in ("webdataset", "huggingface", "csv", "interleaved"):
        export(telling, tmp_path / format, format, subset="mine", uncaptioned=True)
        assert PLANTED["title"].encode() in _as_text(tmp_path / format), format


def test_redacted_exports_keep_web_addresses(telling, tmp_path):
    """Except those that contain a name, and local paths."""
    export(telling, tmp_path / "out", "parquet", redact=True)
    table = pq.read_table(tmp_path / "out" / "clips-000000.parquet", columns=["url"])
    assert set(table["url"].to_pylist()) == {
        None,
        *(f"https://www.youtube.com/watch?v={youtube_id(n)}" for n in (0, 2, 4)),
    }


def _as_text(folder: Path) -> bytes:
    """The text of everything in a folder, Parquet unpacked."""
    parts = []
    for name, data in contents(folder).items():
        if name.endswith(".parquet"):
            table = pq.read_table(folder / name, partitioning=None)
            parts.append(str(table.schema).encode())
            for column in table.columns:
                for value in column.to_pylist():
                    # The bytes of videos unchanged, the rest as text.
                    inner = value["bytes"] if isinstance(value, dict) and "bytes" in value else b""
                    parts += [inner, repr(value).encode() if not inner else b""]
        parts += [name.encode(), data]
    return b"\n".join(parts)


def test_dying_worker_fails_only_the_videos_that_kill_it(tmp_path, monkeypatch):
    """The others of its unit are exported; the clips of the deadly ones fail as crash."""
    dataset = write_small(tmp_path / "dataset")
    monkeypatch.setattr(cutting, "cut_clips_isolated", _deadly)
    monkeypatch.setattr(units, "map_tasks", _in_forked_processes)
    done = export(
        dataset, tmp_path / "out", "webdataset", cut=cut_options("copy"), uncaptioned=True
    )
    assert done.manifest["counts"] == {
        "clips": 12,
        "exported": 6,
        "left_out": {},
        "failed": {"crash": 6},
    }
    assert {row["video_id"] for row in failures(tmp_path / "out")} == {
        "file-001",
        f"youtube-{youtube_id(2)}",
    }


def test_only_files_decoded_completely_without_errors_are_sound(tmp_path, monkeypatch):
    """Not with corrupt pictures, a changed size, read only in spans, or never counted."""
    dataset = write_small(tmp_path / "dataset", 5, change=_with_sizes)
    ids = [row["video_id"] for row in dataset.rows["download_videos"]]
    rows = [
        {"video_id": video, "corrupt_frames": corrupt}
        for video, corrupt in zip(ids, (0, 3, 0, 0, None), strict=True)
    ]
    steps = {"scan_videos": ("scan_videos", "s1", SCANS)}
    write_shard(dataset.path, "scan_videos", "s1", "000000", rows, SCANS)
    record = json.loads(next((dataset.path / "runs").glob("r1*.json")).read_text())
    record["stages"] += run_record("r1", START, steps)["stages"]
    write_run(dataset.path, record)
    called: dict[str, bool] = {}

    def cut(
        source: Path, requests: Sequence[CutRequest], *rest: Any, is_sound: bool, **more: Any
    ) -> Iterator[CutResult]:
        called[requests[0].clip_id] = is_sound
        return cut_clips(source, requests, *rest, is_sound=is_sound, **more)

    monkeypatch.setattr(cutting, "cut_clips_isolated", cut)
    done = export(dataset, tmp_path / "out", "parquet", cut=cut_options("copy"), uncaptioned=True)
    assert done.manifest["counts"]["exported"] == 15
    assert {ids.index(clip.rsplit("-", 2)[0]): sound for clip, sound in called.items()} == {
        0: True,
        1: False,
        2: False,
        3: False,
        4: False,
    }


def _with_sizes(step: str, row: dict[str, Any]) -> None:
    if step == "download_videos":
        number = int(row["source_key"][1:])
        film, _ = cached(THREE_SHOTS)
        row["size_bytes"] = film.stat().st_size + (number == 2)
        if number == 3:
            row["spans"] = [{"start_seconds": 0.0, "end_seconds": 2.0}]


def _deadly(
    source: Path, requests: Sequence[CutRequest], *rest: Any, **more: Any
) -> Iterator[CutResult]:
    if any(requests[0].clip_id.startswith(one) for one in ("file-001", "youtube-002")):
        os._exit(9)
    return cut_clips(source, requests, *rest, **more)


def _in_forked_processes(function: Any, items: Sequence[Any], **how: Any) -> Iterator[TaskResult]:
    """Like `map_tasks`, but with this test's monkeypatches."""
    context = multiprocessing.get_context("fork")
    for item in items:
        for death in (1, 2):
            results = context.SimpleQueue()
            process = context.Process(target=lambda: results.put(function(item)))  # noqa: B023
            process.start()
            process.join()
            if process.exitcode == 0:
                yield TaskResult(item, results.get())
                break
            if death == 2:
                yield TaskResult(item, problem=RowFailed("crash", "its process died"))
