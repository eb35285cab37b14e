"""Stages over clips that note each clip that they are given, for tests of what is done twice."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from clipmill.stages.protocol import Rows, Stage, Workspace, resource


class _Counting(Stage):
    log: str = resource("")

    def note(self, clips: list[str]) -> None:
        with open(self.log, "a", encoding="utf-8") as file:
            file.writelines(f"{self.name} {clip}\n" for clip in clips)


class RateClips(_Counting):
    """A rating of each clip: its start."""

    name = "rate_clips"
    reads = ("split_clips.start_seconds",)
    writes = pa.schema([("rating", pa.float64())])
    score = "rating"

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            self.note(batch["clip_id"].to_pylist())
            return pa.table({"clip_id": batch["clip_id"], "rating": batch["start_seconds"]})

        yield transform


class TitleClips(_Counting):
    """A title of each clip, from the colour of its first frame."""

    name = "title_clips"
    reads = ("split_clips.brightness",)
    writes = pa.schema([("heading", pa.string())])

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            self.note(batch["clip_id"].to_pylist())
            headings = [f"{value:.1f}" for value in batch["brightness"].to_pylist()]
            return pa.table({"clip_id": batch["clip_id"], "heading": headings})

        yield transform


class JoinWords(_Counting):
    """Reads both of the others, which may let a clip in at the same time."""

    name = "join_words"
    reads = ("rate_clips.rating", "title_clips.heading")
    writes = pa.schema([("joined", pa.string())])

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            self.note(batch["clip_id"].to_pylist())
            rows = Rows(self)
            for row in batch.to_pylist():
                rows.keep(row["clip_id"], joined=f"{row['rating']} {row['heading']}")
            return rows.table()

        yield transform


STAGES = {
    name: {"stage": f"{Path(__file__)}:{stage}"}
    for name, stage in (
        ("rate_clips", "RateClips"),
        ("title_clips", "TitleClips"),
        ("join_words", "JoinWords"),
    )
}
