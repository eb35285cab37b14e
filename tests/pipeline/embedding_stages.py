"""A stage that embeds clips by their numbers, for tests of what is fitted to all rows."""

from __future__ import annotations

import hashlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipmill.schemas.errors import RowFailed
from clipmill.stages.models.vectors import STORED, as_column, unit
from clipmill.stages.protocol import Stage, Workspace, resource
from tests.pipeline.own_stages import CutWords, asked

TOPICS = 3


def vector(clip: str, topic: int) -> np.ndarray:
    """A vector near to that of its topic, for each clip another one."""
    seed = int.from_bytes(hashlib.sha256(clip.encode()).digest()[:4], "big")
    return unit(np.eye(8)[topic] + 0.2 * unit(np.random.default_rng(seed).normal(size=8)))


class CutClips(CutWords):
    """Clips whose ids name their videos and times, by which removals find them."""

    @contextmanager
    def open(self, workspace: Workspace):
        with super().open(workspace) as cut:

            def transform(batch):
                rows = cut(batch).to_pylist()
                for row in rows:
                    ms = [round(1000 * row[name]) for name in ("start_seconds", "end_seconds")]
                    row["clip_id"] = "-".join(map(str, (row["video_id"], *ms)))
                return pa.Table.from_pylist(rows, schema=self.table_schema)

            yield transform


class EmbedWords(Stage):
    """Two frames per clip; `topic=2` gives all clips of a video that one, `fail=embed` fails for
    the second clip until `mend_file` exists, `none=embed` leaves them without embeddings.
    """

    name = "embed_words"
    reads = ("cut_words.start_seconds", "fetch_words.url")
    writes = pa.schema([("embeddings", STORED)])
    mend_file: str | None = resource(None)

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            clips, made = batch["clip_id"].to_pylist(), []
            for clip, url in zip(clips, batch["url"].to_pylist(), strict=True):
                number, want = int(clip.rpartition("-")[2]), asked(url)
                bad = want.get("fail") == "embed" and number == 1
                if bad and not (self.mend_file and Path(self.mend_file).exists()):
                    raise RowFailed("model", f"no embedding of {clip}")
                topic = int(want.get("topic", number % TOPICS))
                frames = 0 if want.get("none") == "embed" else 2
                made.append(np.stack([vector(clip, topic)] * frames or [np.empty(0)]))
            column = as_column(made)
            if all(not clip.size for clip in made):
                column = pa.nulls(len(made), STORED)
            return pa.table({"clip_id": batch["clip_id"], "embeddings": column})

        yield transform
