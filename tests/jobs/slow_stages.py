"""Slow stages under the built-in names, for tests of what readers see meanwhile.

A source's URL says how many clips it has and whether they fail: `https://NAME.test/?clips=3`.
`gate` names a file to wait for. `looks` names one that gets a byte longer with each read of the
dataset: every shard waits until a reader has read everything, however slow it is.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa

from clipmill.stages.caption_frames import CAPTIONS
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.protocol import Rows, Stage, Workspace, resource
from clipmill.stages.split_clips import CLIPS
from clipmill.stages.summarize_captions import SUMMARIES


def own(schema: pa.Schema, key: str) -> pa.Schema:
    return pa.schema([field for field in schema if field.name not in (key, "rejection", "error")])


class Slow(Stage):
    """Waits, then makes its rows."""

    gate: str = resource("")
    looks: str = resource("")

    def looked(self) -> int:
        return Path(self.looks).stat().st_size if self.looks else 0

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            while self.gate and not Path(self.gate).exists():
                time.sleep(0.02)
            # A first read may have begun earlier, and seen less than what is there now.
            enough = self.looked() + 2
            while self.looks and self.looked() < enough:
                time.sleep(0.005)
            rows = Rows(self)
            for row in batch.to_pylist():
                self.row(rows, row)
            return rows.table()

        yield transform


class Download(Slow):
    """A video named by its host."""

    name = "download_videos"
    key = "source_key"
    reads = ("sources.url",)
    writes = own(VIDEOS, "source_key")

    def row(self, rows: Rows, row: dict) -> None:
        rows.keep(
            row["source_key"],
            url=row["url"],
            video_id="generic-" + urlsplit(row["url"]).netloc.partition(".")[0],
        )


class Split(Slow):
    """As many clips as the URL says, one second each."""

    name = "split_clips"
    key = "video_id"
    reads = ("download_videos.url",)
    writes = own(CLIPS, "video_id")

    def row(self, rows: Rows, row: dict) -> None:
        for n in range(int(parse_qs(urlsplit(row["url"]).query)["clips"][0])):
            rows.keep(
                row["video_id"],
                clip_id=f"{row['video_id']}-{n * 1000}-{n * 1000 + 1000}",
                start_seconds=float(n),
                end_seconds=n + 1.0,
                duration_seconds=1.0,
            )


class Caption(Slow):
    """A caption, or, while `mend_file` is missing, a failure for every second clip."""

    name = "caption_frames"
    reads = ("split_clips.start_seconds",)
    writes = own(CAPTIONS, "clip_id")
    mend_file: str = resource("")

    def row(self, rows: Rows, row: dict) -> None:
        if self.mend_file and row["start_seconds"] % 2 and not Path(self.mend_file).exists():
            rows.fail(row["clip_id"], "transient", "not today")
        else:
            rows.keep(row["clip_id"], caption_coarse="a dog")


class Summarize(Slow):
    """Works with or without a caption, so that a retry makes its rows again."""

    name = "summarize_captions"
    reads = ("split_clips.start_seconds", "caption_frames.caption_coarse?")
    writes = own(SUMMARIES, "clip_id")

    def row(self, rows: Rows, row: dict) -> None:
        rows.keep(row["clip_id"], caption=row["caption_coarse"] or "nothing")
