"""Tables on a narrow terminal: values that users copy stay on one line."""

from __future__ import annotations

import io
import re

import pyarrow as pa
import pytest

from clipmill.jobs.formats import write_rows

IDS = ["file-94a302560869bdd74ef8-6083-9750", "youtube-dQw4w9WgXcQ-120000-124500"]
LONG = "a red square moves from side to side, and then it stays where it is for a while"


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [80, 100, 120])
def test_ids_stay_on_one_line(monkeypatch, columns):
    """Texts are wrapped, the shortest last; nothing is wider than the terminal."""
    screen = Screen()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setenv("COLUMNS", str(columns))
    table = pa.table(
        {
            "clip_id": IDS,
            "caption": [LONG, "short"],
            "similarity": [0.52, 0.5],
            "language": ["en", "de"],
        }
    )
    write_rows(table.to_reader(), "table")
    lines = re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()).splitlines()
    for name in IDS:
        assert sum(name in line for line in lines) == 1
    assert all(len(line.rstrip()) <= columns for line in lines)
    said = " ".join(" ".join(line[len(IDS[0]) :] for line in lines).split())
    for word in ("square", "while", "similarity", "language", "en", "0.52"):
        assert word in said
