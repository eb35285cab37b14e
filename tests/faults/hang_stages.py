"""A stage whose worker dies at its start."""

from __future__ import annotations

import os
from contextlib import contextmanager

import pyarrow as pa

from clipmill.stages.protocol import Stage, Workspace


class DieAtOnce(Stage):
    """Like a model whose library crashes."""

    name = "die_at_once"
    reads = ("cut_words.start_seconds",)
    writes = pa.schema([("nothing", pa.string())])

    @contextmanager
    def open(self, workspace: Workspace):
        os._exit(1)
        yield
