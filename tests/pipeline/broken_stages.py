"""A stage whose model breaks its GPU at some rows, as seen from Python."""

from __future__ import annotations

from contextlib import contextmanager
from urllib.parse import urlsplit

import pyarrow as pa

from clipmill.stages.models.engines.gathering import Gathered
from clipmill.stages.models.engines.requests import outcome_of
from clipmill.stages.protocol import Rows, Stage, Workspace, resource
from tests.pipeline.own_stages import asked

_broken = False


class AcceleratorError(RuntimeError):
    """Named like PyTorch's, which takes seconds to import in every worker."""


def compute(urls: list[str]) -> list[str]:
    """From the first row that breaks the device on, every call fails in this process."""
    global _broken
    _broken = _broken or any("break" in asked(url) for url in urls)
    if _broken:
        raise AcceleratorError(
            "CUDA error: device-side assert triggered\nCUDA kernel errors might be reported "
            "asynchronously at some other API call."
        )
    return [urlsplit(url).netloc for url in urls]


class CaptionWords(Stage):
    """The host of each URL; with or without the batching that captioners use."""

    name = "caption_words"
    key = "video_id"
    reads = ("fetch_words.url",)
    writes = pa.schema([("caption", pa.string())])
    in_batches: bool = resource(True)
    batch_rows: int = resource(4)

    @contextmanager
    def open(self, workspace: Workspace):
        def gathered(urls):
            futures = Gathered(2, list, compute).submit_all([(url, 0, url) for url in urls])
            return [outcome_of(future) for future in futures]

        def transform(batch):
            rows, urls = Rows(self), batch["url"].to_pylist()
            found = gathered(urls) if self.in_batches else compute(urls)
            for key, caption in zip(batch["video_id"].to_pylist(), found, strict=True):
                if isinstance(caption, Exception):
                    rows.record(key, caption)
                else:
                    rows.keep(key, caption=caption)
            return rows.table()

        yield transform
