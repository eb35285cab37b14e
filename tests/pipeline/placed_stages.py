"""A custom stage that opens a model, for tests of the run record."""

from __future__ import annotations

import json
from contextlib import contextmanager

import pyarrow as pa

from clipmill.stages.models.places import note_place
from clipmill.stages.protocol import Rows, Stage, Workspace
from clipmill.stages.references import DataFile


class WeighWords(Stage):
    """The word's length, and as `known` the places in the run record at that time."""

    name = "weigh_words"
    key = "video_id"
    reads = ("fetch_words.url",)
    writes = pa.schema([("weight", pa.int64()), ("known", pa.string())])
    head: DataFile
    other_head: DataFile
    dtype: str = "float32"

    @contextmanager
    def open(self, workspace: Workspace):
        note_place("weigh_words.head", "cpu", self.dtype)

        def transform(batch):
            rows = Rows(self)
            record = json.loads(max(workspace.dataset.glob("runs/*.json")).read_text())
            known = json.dumps(record["stages"][-1].get("places"))
            for key, url in zip(
                *batch.select(["video_id", "url"]).to_pydict().values(), strict=True
            ):
                rows.keep(key, weight=len(url), known=known)
            return rows.table()

        yield transform
