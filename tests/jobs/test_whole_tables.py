"""Tables of figures on a narrow terminal."""

from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from clipmill.jobs.whole_tables import print_whole


@pytest.mark.parametrize("columns", [10, 40, 200])
def test_figures_are_not_truncated(columns):
    file = io.StringIO()
    console = Console(file=file, width=columns, color_system=None)
    table = Table(box=None)
    for name in ("stage", "inputs", "kept", "failed"):
        table.add_column(name, no_wrap=True)
    table.add_row("download_videos", "123456", "123450", "6")
    print_whole(console, table)
    assert "".join(file.getvalue().split()) == (
        "stageinputskeptfailed" + "download_videos1234561234506"
    )
    assert console.width == columns
