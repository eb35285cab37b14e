"""A real run over videos that crash, hang and starve their decoder; others are unaffected.

The harm is done inside the helper processes: a `sitecustomize` on the search path replaces the
function that decodes there.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.media import Scene, render

_HARM = """
import sys

if any("isolated_process" in word for word in sys.orig_argv):
    import os, signal
    from clipmill.stages.media.read import scan

    def scan_video(path, settings, decode=scan.scan_video):
        frames = decode(path, settings)
        while True:
            try:
                yield next(frames)
            except StopIteration as end:
                return end.value
            if path.name == "crash.mp4":
                os.kill(os.getpid(), signal.SIGSEGV)
            if path.name == "hang.mp4":
                os.kill(os.getpid(), signal.SIGSTOP)
            if path.name == "hungry.mp4":
                bytearray(2 << 30)

    scan.scan_video = scan_video
    scan_video.__module__, scan_video.__qualname__ = "clipmill.stages.media.read.scan", "scan_video"
"""
ROOT = Path(__file__).parents[1]
NAMES = ("a good one", "crash", "hang", "hungry", "the last")
HARMED = {"crash", "hang", "hungry"}


def clipmill(*words: object, harm: Path | None = None) -> None:
    path = [str(ROOT), *([str(harm)] if harm else [])]
    subprocess.run(
        [sys.executable, "-m", "clipmill.jobs.cli", *map(str, words)],
        stdin=subprocess.DEVNULL,
        check=True,
        timeout=250,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        stdout=subprocess.DEVNULL,
    )


def rows(dataset: Path) -> dict[str, list[dict]]:
    """The rows of the decode pass and of the split, by file name."""
    videos = {}
    for file in (dataset / "download_videos").glob("*/*.parquet"):
        for row in pq.read_table(file, partitioning=None).to_pylist():
            videos[row["video_id"]] = Path(row["path"]).stem
    found: dict[str, list[dict]] = {name: [] for name in videos.values()}
    for table in ("scan_videos", "frames", "split_clips"):
        for file in sorted((dataset / table).glob("*/*.parquet")):
            for row in pq.read_table(file, partitioning=None).to_pylist():
                row.pop("run_id", None)
                found[videos[row["video_id"]]].append(row)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_killed_decoder_fails_only_its_video(engine, tmp_path):
    """Neighbours in the shard have the rows of an undisturbed run; a retry makes the rest."""
    films = tmp_path / "films"
    films.mkdir()
    for number, name in enumerate(NAMES):
        render(films / f"{name}.mp4", [Scene("red", 1.0, number), Scene("blue", 1.0, 3)])
    harm = tmp_path / "harm"
    harm.mkdir()
    (harm / "sitecustomize.py").write_text(_HARM)
    settings = [
        word
        for setting in (
            "download_videos.min_duration_seconds=0.1",
            "download_videos.min_height=16",
            "split_clips.keep_frames=true",
            "split_clips.stall_seconds=10",
            f"split_clips.memory_limit_bytes={512 << 20}",
        )
        for word in ("--set", setting)
    ]
    common = ["--engine", engine, "--sources", films, *settings]
    clipmill("run", "timestamps-only", "--dataset", tmp_path / "harmed", *common, harm=harm)
    clipmill("run", "timestamps-only", "--dataset", tmp_path / "calm", *common)

    harmed, calm = rows(tmp_path / "harmed"), rows(tmp_path / "calm")
    assert set(harmed) == set(calm) == set(NAMES)
    for name in set(NAMES) - HARMED:
        assert harmed[name] == calm[name]
        assert len(harmed[name]) > 3
    messages = {}
    for name in HARMED:
        (failed,) = harmed[name]  # a failure and no frames, although some had arrived
        assert failed["error"]["kind"] == "crash"
        place, _, messages[name] = failed["error"]["message"].partition(": ")
        assert place == str(films / f"{name}.mp4")
    assert messages == {
        "crash": "crashes its decoder's process: it ended twice, the last time by signal 11 "
        "(SIGSEGV); look at it with `ffprobe` or fetch it again",
        "hang": "reading made no progress for 10 s; raise split_clips.stall_seconds "
        "if the file needs more; look at it with `ffprobe` or fetch it again",
        "hungry": "takes more than 536,870,912 bytes of memory to read (MemoryError); raise "
        "split_clips.memory_limit_bytes if the file needs more; look at it with "
        "`ffprobe` or fetch it again",
    }

    clipmill("retry", tmp_path / "harmed", "--kind", "crash")
    mended = rows(tmp_path / "harmed")
    for name in HARMED:
        assert [row for row in mended[name] if row.get("error") is None] == calm[name]
