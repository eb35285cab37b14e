"""A stage with two tables that both say which worker made them, for tests of commits."""

from __future__ import annotations

import time
import uuid
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from clipmill.stages.protocol import Stage, Workspace, resource


class SignWords(Stage):
    """Waits for a file, then signs every video in both tables."""

    name = "sign_words"
    key = "video_id"
    reads = ("fetch_words.url",)
    writes = pa.schema([("signature", pa.string())])
    more_tables = {"seals": pa.schema([("video_id", pa.string()), ("signature", pa.string())])}
    gate: str = resource("")

    @contextmanager
    def open(self, workspace: Workspace):
        signature = uuid.uuid4().hex

        def transform(batch):
            end = time.monotonic() + 120
            while self.gate and not Path(self.gate).exists() and time.monotonic() < end:
                time.sleep(0.01)
            table = pa.table(
                {"video_id": batch["video_id"], "signature": [signature] * batch.num_rows}
            )
            return {"sign_words": table, "seals": table}

        yield transform
