"""Cheap stages that take some time and disk space, for runs that are killed midway.

Their results depend only on the clip's id. They write their scratch folder as they go, so that a
kill leaves partial files.
"""

from __future__ import annotations

import random
import time
from contextlib import contextmanager

import pyarrow as pa

from clipmill.stages.protocol import Rows, Stage, Workspace, resource

BLOB_BYTES = 40_000


class DescribeClips(Stage):
    """A word and some incompressible bytes for each clip."""

    name = "describe_clips"
    reads = ("split_clips.start_seconds",)
    writes = pa.schema([("word", pa.string()), ("blob", pa.binary())])
    batch_rows: int = resource(2)
    calls: int = resource(1)
    pace_seconds: float = resource(0.0)

    @property
    def calls_at_once(self) -> int:
        return self.calls

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            rows = Rows(self)
            for clip in batch["clip_id"].to_pylist():
                blob = random.Random(clip).randbytes(BLOB_BYTES)
                place = workspace.scratch / f"{clip}.bin"
                place.write_bytes(blob)
                time.sleep(self.pace_seconds)
                rows.keep(clip, word=f"word {clip}", blob=place.read_bytes())
                place.unlink()
            return rows.table()

        yield transform


class CountLetters(Stage):
    """The length of the word; every fifth clip is rejected."""

    name = "count_letters"
    reads = ("describe_clips.word", "split_clips.start_seconds")
    writes = pa.schema([("letters", pa.int32())])
    pace_seconds: float = resource(0.0)

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            rows = Rows(self)
            for clip, word in zip(
                batch["clip_id"].to_pylist(), batch["word"].to_pylist(), strict=True
            ):
                time.sleep(self.pace_seconds)
                if sum(clip.encode()) % 5 == 0:
                    rows.reject(clip, "count_letters.fifth", "as asked")
                else:
                    rows.keep(clip, letters=len(word))
            return rows.table()

        yield transform
