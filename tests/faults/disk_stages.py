"""A stage that meets a full disk in several ways."""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress

import pyarrow as pa

from clipmill.schemas.errors import RowFailed
from clipmill.stages.protocol import Stage, Workspace, resource

_MUCH_BYTES = 300_000
_MOST_BYTES = 2_000_000


class FillDisk(Stage):
    """One row per video; `how` says what uses up the space."""

    name = "fill_disk"
    key = "video_id"
    reads = ("fetch_words.url",)
    writes = pa.schema([("blob", pa.binary())])
    how: str = resource("nothing")
    fragile = True

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            much = bytes(range(250)) * (_MUCH_BYTES // 250)
            if self.how in ("scratch", "wrapped"):
                try:
                    (workspace.scratch / "much.bin").write_bytes(much)
                except OSError as error:
                    (workspace.scratch / "much.bin").unlink()  # like stages that clean up
                    if self.how == "scratch":
                        raise
                    raise RowFailed("bad_media", "no such video") from error
            if self.how == "journal":
                # The next write is the record that this row is done.
                with (
                    suppress(OSError),
                    (workspace.dataset / "more.bin").open("wb", buffering=0) as file,
                ):
                    while file.tell() < _MOST_BYTES and file.write(bytes(4096)):
                        pass
            blob = os.urandom(_MUCH_BYTES) if self.how == "table" else b""
            return pa.table({"video_id": batch["video_id"], "blob": [blob] * batch.num_rows})

        yield transform
