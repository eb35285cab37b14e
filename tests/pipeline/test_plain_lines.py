"""Lines read by their pieces give the same rows as lines read by the JSON parser."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pytest

from clipmill.pipeline.ingest import internvid
from clipmill.pipeline.ingest.internvid import PublishedRows, open_published
from clipmill.pipeline.ingest.plain_lines import plain_lines

FIRST = (
    '{"YoutubeID": "-1Ab_cdEfgh", "Start_timestamp": "00:01:01.500", "End_timestamp": '
    '"00:01:04.250", "Caption": "a dog", "Aesthetic_Score": 4.3500, "UMT_Score": 1e-05}'
)
LINES = [
    FIRST,
    FIRST.replace("a dog", "Ein Café, {1}: 2"),
    FIRST.replace("a dog", '\\"quoted\\" 日本'),
    FIRST.replace("a dog", "caf\\u00e9"),
    FIRST.replace("a dog", "tab\there"),
    FIRST.replace("a dog", " padded "),
    FIRST.replace("a dog", ""),
    FIRST.replace('"a dog"', "null"),
    FIRST.replace("4.3500", "NaN"),
    FIRST.replace("4.3500", "01"),
    FIRST.replace("4.3500", "1.").replace("1e-05", "-3E+2"),
    FIRST.replace("4.3500", '"4.3500"'),
    FIRST.replace('"Caption"', '"caption"'),
    FIRST.replace("00:01:01.500", "nan"),
    FIRST.replace("00:01:01.500", "61.5").replace("00:01:04.250", "1:04,25"),
    FIRST.replace(": ", ":"),
    FIRST[:-1] + ', "more": 1}',
    FIRST[:-1],
    "   ",
    "[]",
    FIRST + "\r",
]


def rows(path: Path, monkeypatch: pytest.MonkeyPatch, *, plain: bool) -> list[dict]:
    if not plain:
        monkeypatch.setattr(internvid, "plain_lines", lambda line: None)
    read = PublishedRows([open_published(path)])
    tables = [read.with_extra(table) for table in read.tables()]
    return pa.concat_tables(tables).sort_by("row").to_pylist()


def test_plain_lines_give_the_rows_that_the_parser_gives(tmp_path, monkeypatch):
    path = tmp_path / "list.jsonl"
    path.write_text("\n".join(LINES))
    found = rows(path, monkeypatch, plain=True)
    assert len(found) == len(LINES) - 1
    # As text: a time that is not a number doesn't equal itself.
    assert str(found) == str(rows(path, monkeypatch, plain=False))


def test_only_lines_like_the_first_are_plain():
    found = plain_lines(FIRST + "\n")
    assert found is not None
    is_plain, values = found.read(pa.array([f"{line}\n" for line in LINES]))
    plain = [line for line, one in zip(LINES, is_plain, strict=True) if one]
    assert plain == [*LINES[:2], LINES[5], LINES[14]]
    assert values["Caption"].to_pylist() == ["a dog", "Ein Café, {1}: 2", " padded ", "a dog"]
    assert values["UMT_Score"].to_pylist() == ["1e-05"] * 4


@pytest.mark.parametrize(
    "line",
    [
        "",
        "[1]",
        '{"a": [1]}',
        '{"a": true}',
        '{"a": "b\\n"}',
        '{"a": ""}',
        '{"a": "a"}',
        json.dumps({"a": {"b": 1}}),
    ],
)
def test_other_lines_are_left_to_the_parser(line):
    assert plain_lines(line) is None
