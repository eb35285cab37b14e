"""A stage whose programs touch the terminal, like ffmpeg with its standard input."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pyarrow as pa

from clipmill.stages.protocol import Stage, Transform, Workspace, resource

_BY_NAME = "stty sane < /dev/tty;"


class TouchTerminal(Stage):
    """Sets the terminal's modes for each clip: through its standard input, and by its name."""

    name = "touch_terminal"
    reads = ("split_clips.start_seconds",)
    writes = pa.schema([("is_terminal", pa.bool_())])
    by_name: bool = resource(True, description="also as /dev/tty")

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        def transform(clips: pa.Table) -> pa.Table:
            done = subprocess.run(
                ["sh", "-c", f"{_BY_NAME if self.by_name else ''} stty sane"],
                stdin=None,
                capture_output=True,
                check=False,
            )  # what this process inherited
            return pa.table(
                {"clip_id": clips["clip_id"], "is_terminal": [not done.returncode] * clips.num_rows}
            )

        yield transform
