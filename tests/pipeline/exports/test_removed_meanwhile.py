"""Videos removed from the dataset during an export are in none of its files."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipmill.jobs.remove import remove
from clipmill.pipeline.exports import run_export as exporting
from clipmill.pipeline.exports import selection, units
from clipmill.pipeline.exports.folder import read_manifest
from clipmill.pipeline.exports.request import ExportRequest, Interleaving, cut_options
from clipmill.pipeline.exports.run_export import Exported, ExportWatcher, run_export
from clipmill.schemas.errors import ClipmillError, UsageError
from tests.pipeline.exports.small_dataset import (
    Small,
    contents,
    export,
    freeze,
    write_small,
    youtube_id,
)

VIDEOS = 6
GONE = youtube_id(2)
FORMATS = {
    "parquet": {"shard_bytes": 10_000},
    "csv": {"shard_bytes": 10_000},
    "internvid": {},
    "interleaved": {"interleaving": Interleaving("c", drop=0.0)},
    "webdataset": {"shard_bytes": 40_960, "uncaptioned": True},
}
CUT = {
    "parquet": {"cut": cut_options("copy")},
    "webdataset": {"cut": cut_options("copy"), "shard_bytes": 40_960},
    "huggingface": {"cut": cut_options("copy"), "shard_bytes": 150_000},
}


def _own_file(step: str, row: dict[str, Any]) -> None:
    if step == "download_videos":
        row["path"] = f"media/{row['video_id']}.mp4"


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Small:
    """Units of two videos, and a film for each video."""
    monkeypatch.setattr(selection, "ROWS_UNIT_CLIPS", 6)
    monkeypatch.setattr(selection, "MEDIA_UNIT_VIDEOS", 2)
    small = write_small(tmp_path / "dataset", VIDEOS, change=_own_file)
    film = small.path / "media" / "film.mp4"
    for row in small.rows["download_videos"]:
        shutil.copy(film, small.path / row["path"])
    film.unlink()
    return small


def export_and_remove(
    small: Small, output: Path, format: str, at: tuple[str, int], *, gone: str = GONE, **asked: Any
) -> Exported:
    """Exports, and removes a video after this many reported steps."""
    steps: list[str] = []
    now = ""

    def begin(step: str, clips: int | None) -> None:
        nonlocal now
        now = step
        look(0)

    def step(clips: int, failed: int) -> None:
        steps.append(now)
        look(steps.count(now))

    def look(number: int) -> None:
        if (now, number) == at and "removed" not in steps:
            steps.append("removed")
            remove(small.path, videos=[f"youtube-{gone}"])

    request = ExportRequest(small.path, output, format, engine="local", **asked)
    done = run_export(request, code_version="test", watcher=ExportWatcher(begin, step))
    assert "removed" in steps
    return done


def clips_in(output: Path) -> list[str]:
    """The ids of all clips in an export's shards, in order."""
    found: list[str] = []
    for name, data in contents(output).items():
        if name.endswith(".tar"):
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                found += [
                    member.removesuffix(".json")
                    for member in tar.getnames()
                    if member.endswith(".json")
                ]
        elif name.endswith(".parquet"):
            found += pq.read_table(io.BytesIO(data))["clip_id"].to_pylist()
        elif name.startswith("documents"):
            found += [
                item["clip_id"]
                for line in data.splitlines()
                for item in json.loads(line)["items"]
                if item["type"] == "video"
            ]
    return found


def assert_left_out(output: Path, done: Exported, clips: int = 3 * VIDEOS) -> None:
    counts = done.manifest["counts"]
    assert counts["left_out"]["removed"] == 3
    assert (
        counts["clips"]
        == clips
        == (counts["exported"] + sum(counts["left_out"].values()) + sum(counts["failed"].values()))
    )
    assert counts["failed"] == {}
    assert not any(GONE.encode() in name.encode() + data for name, data in contents(output).items())
    assert not (output / ".work").exists()
    names = {file["name"] for file in done.manifest["files"]}
    shards = {name for name in contents(output) if "-0000" in name and not name.startswith("media")}
    assert names == shards
    assert read_manifest(output) == done.manifest


@pytest.mark.parametrize(
    ("format", "at"),
    [
        ("parquet", ("select", 1)),
        ("parquet", ("write", 2)),
        ("webdataset", ("render", 2)),
        *(
            pytest.param(format, ("write", number), marks=pytest.mark.slow)
            for format, number in (("csv", 3), ("internvid", 1), ("interleaved", 2))
        ),
    ],
)
def test_clip_removed_during_an_export_is_left_out_and_counted(small, tmp_path, format, at):
    """At any time; the rest equals an export that began after the removal."""
    out, asked = tmp_path / "out", FORMATS[format]
    done = export_and_remove(small, out, format, at, **asked)
    assert_left_out(out, done)
    export(small, tmp_path / "later", format, **asked)
    assert clips_in(out) == clips_in(tmp_path / "later")
    if format in ("csv", "internvid", "interleaved"):
        later = contents(tmp_path / "later")
        assert {name: data for name, data in contents(out).items() if name != "export.json"} == {
            name: data for name, data in later.items() if name != "export.json"
        }


@pytest.mark.parametrize(
    ("format", "at"),
    [
        ("webdataset", ("cut", 0)),
        *(
            pytest.param(format, at, marks=pytest.mark.slow)
            for format, at in (
                ("parquet", ("cut", 2)),
                ("webdataset", ("write", 1)),
                ("huggingface", ("write", 1)),
            )
        ),
    ],
)
def test_media_of_a_removed_clip_is_left_out(small, tmp_path, format, at):
    """Even of clips that were cut or packed into shards before the removal."""
    out, asked = tmp_path / "out", CUT[format]
    done = export_and_remove(small, out, format, at, **asked)
    assert_left_out(out, done)
    export(small, tmp_path / "later", format, **asked)
    assert clips_in(out) == clips_in(tmp_path / "later")
    media = list((out / "media").rglob("*.mp4"))
    assert len(media) == (15 if format == "parquet" else 0)
    if format == "huggingface":
        card = (out / "README.md").read_text()
        assert f"num_examples: {done.manifest['counts']['exported']}" in card
        index = pq.read_table(out / done.manifest["files"][0]["name"])
        assert all(row["bytes"] for row in index["video"].to_pylist())
    if format == "webdataset":
        index = json.loads((out / "index.json").read_text())
        assert sum(one["nsamples"] for one in index["shardlist"]) == len(clips_in(out))


def test_removals_are_checked_again_after_everything_is_written(small, tmp_path, monkeypatch):
    """A removal while the card is being written is noticed, too."""
    done = []

    def slow(*given: Any) -> str:
        if not done:
            done.append(True)
            remove(small.path, videos=[f"youtube-{GONE}"])
        return real(*given)

    real: Callable[..., str] = exporting.card
    monkeypatch.setattr(exporting, "card", slow)
    made = export(small, tmp_path / "out", "huggingface", uncaptioned=True)
    assert_left_out(tmp_path / "out", made)
    assert f"num_examples: {3 * VIDEOS - 3}" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("format", "asked", "subset"),
    [
        ("parquet", FORMATS["parquet"], None),
        ("interleaved", FORMATS["interleaved"], "mine"),
        ("huggingface", CUT["huggingface"], "mine"),
    ],
)
def test_resumed_export_leaves_out_removed_clips(small, tmp_path, format, asked, subset):
    """The same command resumes it; running it once more finds it complete."""
    freeze(small.path, "mine", small.clip_ids)
    out = tmp_path / "out"
    asked = {**asked, "subset": subset}

    class Stopped(Exception):
        pass

    def step(clips: int, failed: int) -> None:
        nonlocal left
        left -= 1
        if left < 0:
            raise Stopped

    left = 5
    request = ExportRequest(small.path, out, format, engine="local", **asked)
    with pytest.raises(Stopped):
        run_export(request, code_version="test", watcher=ExportWatcher(step=step))
    remove(small.path, videos=[f"youtube-{GONE}"])
    done = export(small, out, format, **asked)
    assert not done.was_finished
    assert_left_out(out, done)
    assert export(small, out, format, **asked).was_finished


def test_export_of_only_removed_clips_is_an_error(small, tmp_path):
    mine = [clip for clip in small.clip_ids if GONE in clip]
    freeze(small.path, "mine", mine)
    with pytest.raises(UsageError, match=r"of 3 clips all are left out \(3 removed\)"):
        export_and_remove(
            small,
            tmp_path / "out",
            "webdataset",
            ("write", 0),
            subset="mine",
            cut=cut_options("copy"),
        )
    assert not (tmp_path / "out").exists()


def test_removal_after_the_end_makes_a_different_export(small, tmp_path):
    """For the whole catalog; an export that contains removed clips is never reported as done."""
    export(small, tmp_path / "out", "parquet")
    remove(small.path, videos=[f"youtube-{GONE}"])
    with pytest.raises(UsageError, match="has changed since"):
        export(small, tmp_path / "out", "parquet")


def test_full_disk_is_one_clear_message(small, tmp_path, monkeypatch):
    def full(*_: Any, **__: Any) -> None:
        raise OSError(27, "File too large")

    for module, name in ((units, "shard_writer"), (exporting.webdataset, "write_tar")):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, full)
            with pytest.raises(ClipmillError) as error:
                export(small, tmp_path / name, "webdataset")
        assert str(error.value).startswith(
            f"cannot write to {tmp_path / name}: File too large; allow larger files"
        )
