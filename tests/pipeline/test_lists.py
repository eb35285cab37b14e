"""Real-world lists: each line and row is accounted for, and none affects another."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.pipeline.dataset.shards import shard_path
from clipmill.pipeline.ingest.sources import (
    IngestReport,
    SourceSpec,
    ingest,
    list_source_shards,
    source_from_argument,
)
from clipmill.schemas.errors import UsageError
from clipmill.schemas.tables import SOURCES

SITE = "https://a.example/"


def read(dataset: Path) -> list[dict]:
    return [
        row
        for shard in list_source_shards(dataset)
        for row in pq.read_table(shard_path(dataset / "sources", shard)).to_pylist()
    ]


def take(folder: Path, name: str, text: str | bytes, **spec) -> tuple[IngestReport, list[dict]]:
    """The result of ingesting a list; all its lines and rows are in one count."""
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)
    report = ingest(
        folder / "dataset", [SourceSpec(path=name, **spec)], shard_videos=16, base_folder=folder
    )
    for counts in report.lists:
        rows = counts.sources + counts.gathered + counts.rejected + counts.failed + counts.left_out
        assert counts.rows == rows, counts
        lines = counts.header + counts.blank + counts.comments + counts.row_lines
        assert counts.lines in (None, lines), counts
    return report, read(folder / "dataset")


def kept(rows: list[dict], column: str = "url") -> list:
    return [row[column] for row in rows if row["rejection"] is None and row["error"] is None]


# Quotes


def stray(delimiter: str, last: str = "seven") -> str:
    titles = ["plain", '"Hello world', "three", "four", "five", "six", last, "eight"]
    lines = [f"{SITE}{at}{delimiter}{title}" for at, title in enumerate(titles)]
    return "\n".join([f"url{delimiter}title", *lines]) + "\n"


@pytest.mark.parametrize("last", ["seven", 'seven"', '"seven'])
@pytest.mark.parametrize("delimiter", [",", ";", "|"])
def test_stray_quote_fails_only_its_row(tmp_path, delimiter, last):
    report, rows = take(tmp_path, "a.csv", stray(delimiter, last))
    bad = 2 if last == '"seven' else 1
    assert (report.kept, report.failed, report.lists[0].rows) == (8 - bad, bad, 8)
    errors = [row["error"]["message"] for row in rows if row["error"]]
    assert "a.csv:3: a quoted cell is never closed" in errors[0]
    assert kept(rows, "title")[:5] == ["plain", "three", "four", "five", "six"]


def test_stray_quote_before_the_url(tmp_path):
    text = "title,url\n" + "".join(
        f"{'' if at != 2 else chr(34)}t{at}{'' if at != 5 else chr(34)},{SITE}{at}\n"
        for at in range(8)
    )
    report, _ = take(tmp_path, "a.csv", text)
    assert (report.kept, report.failed) == (7, 1)


def test_tsv_without_quoting_keeps_its_quotes(tmp_path):
    _, rows = take(tmp_path, "a.tsv", stray("\t") + f'{SITE}8\t"all of it"\n{SITE}9\t5" disk\n')
    assert kept(rows, "title")[1] == '"Hello world'
    assert kept(rows, "title")[-2:] == ['"all of it"', '5" disk']


TEXTS = st.text(st.sampled_from('ab ,;"\n\t|'), max_size=12)


@settings(max_examples=40)
@given(
    st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=6),
    st.sampled_from([",", ";", "\t"]),
    st.booleans(),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_quoted_cells_round_trip(tmp_path_factory, titles, mark, first, quoting):
    """Cells with quotes, delimiters and line breaks, wherever the URL is."""
    folder = tmp_path_factory.mktemp("list")
    out = io.StringIO()
    writer = csv.writer(out, delimiter=mark, lineterminator="\n", quoting=quoting)
    names = ["url", "one", "two"] if first else ["one", "two", "url"]
    # So that the file's quoting can be detected: a cell that needs quotes.
    titles = [*[('say ""', "x")] * (3 * len(titles)), *titles]
    writer.writerow(names)
    for at, (one, two) in enumerate(titles):
        row = {"url": f"{SITE}{at}.mp4", "one": one, "two": two}
        writer.writerow([row[name] for name in names])
    report, rows = take(folder, "a.tsv" if mark == "\t" else "a.csv", out.getvalue())
    assert report.failed == 0
    assert [dict(extra or ()) for extra in kept(rows, "extra")] == [
        {name: text.strip() for name, text in (("one", one), ("two", two)) if text.strip()}
        for one, two in titles
    ]


def test_records_with_wrong_columns_are_failures_with_line_numbers(tmp_path):
    text = (
        f"url,title\r\n{SITE}1,x\r\n\r\n{SITE}2\r\n{SITE}3,a,b\r\n{SITE}4,broken\r\nin two\r\n"
        f',\r\n# a note\r\n{SITE}5,"quoted\r\nin two"\r\n{SITE}6,"a "b" c"\r\n{SITE}7,x,\r\n'
    )
    report, rows = take(tmp_path, "a.csv", text)
    assert kept(rows) == [SITE + at for at in "1457"]
    assert [
        row["error"]["message"].split("a.csv:")[1].partition(":")[0] for row in rows if row["error"]
    ] == ["4", "5", "7", "12"]
    [counts] = report.lists
    assert (
        counts.lines,
        counts.header,
        counts.blank,
        counts.comments,
        counts.rows,
        counts.row_lines,
    ) == (13, 1, 2, 1, 8, 9)
    assert (
        "13 lines = 1 of the header + 2 blank + 1 of comments + 8 rows on 9 lines; 8 rows = "
        "4 sources + 4 failed" in report.describe_lists()
    )


# File formats


@pytest.mark.parametrize(
    "text",
    [
        f"sep=;\nurl;title\n{SITE}1;a,b\n",
        f"url|title|\n{SITE}1|a,b|\n",
        f"# made by x\nurl\ttitle\n{SITE}1\ta,b\n",
        f"# about\n# url; title\n{SITE}1; a,b\n",
        f"url;title\r{SITE}1;a,b\r",
        f"\ufeffurl;title\n\ufeff{SITE}1;a,b\nurl;title\n",
        f"caption, en;url\nx;{SITE}1\n",
    ],
)
def test_delimiters_headers_and_line_ends_are_detected(tmp_path, text):
    report, rows = take(tmp_path, "a.csv", text)
    assert (kept(rows), report.failed) == ([SITE + "1"], 0)
    if "title" in text:
        assert kept(rows, "title") == ["a,b"]


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.csv.gz", gzip.compress),
        ("a.csv.bz2", bz2.compress),
        ("a.csv.xz", lzma.compress),
        ("a.csv.zst", lambda data: pa.compress(data, "zstd", asbytes=True)),
        ("a.csv", gzip.compress),
    ],
)
def test_compressed_lists_are_read(tmp_path, name, pack):
    text = f"url,title\n{SITE}1,x\n".encode()
    if name.endswith(".zst"):
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, "zstd") as out:
            out.write(text)
        packed = sink.getvalue().to_pybytes()
    else:
        packed = pack(text)
    assert kept(take(tmp_path, name, packed)[1], "title") == ["x"]
    if not name.endswith(".zst"):
        (tmp_path / "half").mkdir()
        with pytest.raises(UsageError, match=name.replace(".", r"\.")):
            take(tmp_path / "half", name, packed[:-9])


def test_list_without_a_header(tmp_path):
    assert kept(take(tmp_path, "a.csv", f"{SITE}1\n{SITE}2\n")[1]) == [SITE + "1", SITE + "2"]
    with pytest.raises(UsageError, match="no header: its first line is a row"):
        take(tmp_path, "b.csv", f"{SITE}3,x\n")
    _, rows = take(tmp_path, "b.csv", f"{SITE}3,x\n", columns=["url", "caption"])
    assert (kept(rows)[-1], kept(rows, "caption")[-1]) == (SITE + "3", "x")


def test_json_in_a_single_value(tmp_path):
    _, rows = take(tmp_path, "a.json", f'[{{"url": "{SITE}1", "caption": "x"}},\n "{SITE}2"]')
    assert (kept(rows), kept(rows, "caption")) == ([SITE + "1", SITE + "2"], ["x", None])
    _, rows = take(tmp_path, "b.json", f'{{"url": "{SITE}3"}}\n{{"url": "{SITE}4"}}\n')
    assert kept(rows)[2:] == [SITE + "3", SITE + "4"]
    with pytest.raises(UsageError, match=r"c\.json is not valid JSON"):
        take(tmp_path, "c.json", '[{"url": ')


# Encodings


@pytest.mark.parametrize("name", ["a.csv", "a.txt", "a.jsonl"])
def test_invalid_utf8_fails_only_its_line(tmp_path, name):
    rows = [f"{SITE}猫", f"{SITE}é", f"{SITE}x", f"{SITE}"]
    if name == "a.jsonl":
        lines = [f'{{"url": "{row}' for row in rows]
        ends = [b'"}'] * 3 + [b'caf\xe9"}']
    else:
        lines, ends = rows, [b""] * 3 + [b"caf\xe9"]
    head = b"url\n" if name == "a.csv" else b""
    data = head + b"\n".join(line.encode() + end for line, end in zip(lines, ends, strict=True))
    report, rows = take(tmp_path, name, data)
    assert kept(rows) == [f"{SITE}猫", f"{SITE}é", f"{SITE}x"]
    at = len(lines[-1].encode()) + 4
    [error] = [row["error"]["message"] for row in rows if row["error"]]
    assert f"{name}:{5 if head else 4}: not UTF-8: byte {at} of the line is 0xe9" in error
    assert "encoding: cp1252" in error
    assert report.failed == 1


def test_list_in_another_encoding_is_refused_with_the_setting(tmp_path):
    text = "url,title\n" + "".join(f"{SITE}{at},Café {at}\n" for at in range(4))
    with pytest.raises(UsageError, match=r"4 of 5 lines are not UTF-8\. .*--set encoding=cp1252"):
        take(tmp_path, "a.csv", text.encode("cp1252"))
    assert list_source_shards(tmp_path / "dataset") == []
    _, rows = take(tmp_path, "a.csv", text.encode("cp1252"), encoding="cp1252")
    assert kept(rows, "title") == [f"Café {at}" for at in range(4)]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-32", "utf-8-sig"])
def test_byte_order_mark_determines_the_encoding(tmp_path, encoding):
    text = f"url,title\n{SITE}1,猫\n"
    _, rows = take(tmp_path, "a.csv", text.encode(encoding), encoding="cp1252")
    assert kept(rows, "title") == ["猫"]
    with pytest.raises(UsageError, match="encoding=utf-16-le"):
        take(tmp_path, "b.csv", text.encode("utf-16-le"))


def test_nul_bytes_and_invalid_utf8_in_parquet_fail_only_their_rows(tmp_path):
    _, rows = take(tmp_path, "a.csv", f"url\n{SITE}1\n\0\0\0\0\n{SITE}2")
    assert (kept(rows), len(rows)) == ([SITE + "1", SITE + "2"], 3)
    bad = pa.StringArray.from_buffers(
        2, pa.py_buffer(pa.array([0, 1, 2], pa.int32()).buffers()[1]), pa.py_buffer(b"x\xe9")
    )
    pq.write_table(
        pa.table(
            {"url": [SITE + "3", SITE + "4"], "title": bad, "video_bytes": [b"\xff", b"\xff"]}
        ),
        tmp_path / "b.parquet",
    )
    _, rows = take(tmp_path, "b.parquet", (tmp_path / "b.parquet").read_bytes())
    assert kept(rows)[2:] == [SITE + "3"]
    assert kept(rows, "extra")[2] is None
    assert "not UTF-8" in rows[-1]["error"]["message"]


def test_unknown_encoding_is_a_usage_error():
    with pytest.raises(ValueError, match="is not known"):
        SourceSpec(path="a.csv", encoding="cp99999")


# URLs and paths in a line


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("youtube.com/watch?v=dQw4w9WgXcQ", "https://youtube.com/watch?v=dQw4w9WgXcQ"),
        ("youtu.be/dQw4w9WgXcQ", "https://youtu.be/dQw4w9WgXcQ"),
        ("//www.youtube.com/watch?v=dQw4w9WgXcQ", "https://www.youtube.com/watch?v=dQw4w9WgXcQ"),
        ("www.a.example/x", "https://www.a.example/x"),
        (f'"{SITE}x"', SITE + "x"),
        (f"<{SITE}x>", SITE + "x"),
        (f"[a video]({SITE}x)", SITE + "x"),
        (f"- {SITE}x", SITE + "x"),
        (f"\u200b\u00a0{SITE}x\u200d\ufeff", SITE + "x"),
        (f"‘{SITE}x’,", SITE + "x"),
    ],
)
def test_url_is_extracted_from_surrounding_text(tmp_path, monkeypatch, text, url):
    monkeypatch.chdir(tmp_path)
    assert kept(take(tmp_path, "a.txt", text)[1]) == [url]
    assert source_from_argument(text).url == url


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("dQw4w9WgXcQ", "platform: youtube"),
        ("a.example.org/1.mp4", "write https://a.example.org/1"),
        (f"see {SITE}1", "other text before the URL"),
        (f"{SITE}1 {SITE}2", "several URLs"),
        ("https:/a.example/1.mp4", "begins with https://"),
        (r"C:\films\a.mp4", "a Windows path"),
        ("some words", "neither a URL"),
    ],
)
def test_text_that_is_neither_url_nor_file_is_refused_with_the_reason(tmp_path, text, missing):
    report, rows = take(tmp_path, "a.txt", text + "\nfilms/there-later.mp4\n")
    assert (report.kept, report.failed) == (1, 1)
    assert missing in rows[0]["error"]["message"]


def test_ids_and_names_without_a_suffix(tmp_path):
    (tmp_path / "vid-Scene-0001.mp4").touch()
    _, rows = take(
        tmp_path, "a.csv", "video_id,x\ndQw4w9WgXcQ,1\nvid-Scene-0001,2\n", platform="youtube"
    )
    assert kept(rows, "platform_id") == ["dQw4w9WgXcQ", None]
    assert kept(rows, "path") == [None, str(tmp_path / "vid-Scene-0001.mp4")]
    _, rows = take(tmp_path, "b.csv", "youtube_id\naaaaaaaaaaa\n")
    assert kept(rows, "platform_id")[2:] == ["aaaaaaaaaaa"]


# Rows of one source


def said(row: dict) -> list[tuple]:
    return [
        (span["start_seconds"], span["end_seconds"], span["captions"] or span["caption"])
        for span in row["spans"]
    ]


def test_all_captions_are_kept_and_the_first_is_the_caption(tmp_path):
    text = (
        f"url,caption\n{SITE}1,a cat\n{SITE}2,a car\n{SITE}1,a kitten\n{SITE}1,a cat\n"
        f"{SITE}1,an animal\n"
    )
    report, rows = take(tmp_path, "a.csv", text)
    assert (report.kept, report.gathered, report.rejected) == (2, 2, 1)
    assert [(row["caption"], row["captions"]) for row in rows[:2]] == [
        ("a cat", ["a cat", "a kitten", "an animal"]),
        ("a car", None),
    ]
    [counts] = report.lists
    assert (counts.sources, counts.gathered, counts.rejected) == (2, 2, 1)
    again, rows_after = take(tmp_path, "a.csv", text)
    assert (again.shards, again.lists[0].rejected, rows_after) == ((), 1, rows)


def test_rows_are_gathered_across_lists_in_the_order_of_the_lists(tmp_path, monkeypatch):
    monkeypatch.setattr("clipmill.pipeline.ingest.gathered_rows._MOST_BYTES_IN_MEMORY", 1)
    monkeypatch.setattr("clipmill.pipeline.ingest.source_gathering._BATCH_ROWS", 3)
    for name, first in (("a.csv", 0), ("b.csv", 1)):
        lines = [
            f"{SITE}{at},{at * 10 + first},{at * 10 + first + 1},{name} {at}" for at in range(7)
        ]
        (tmp_path / name).write_text("url,start,end,caption\n" + "\n".join(lines))
    report = ingest(
        tmp_path / "dataset",
        [SourceSpec(path="a.csv"), SourceSpec(path="b.csv")],
        shard_videos=3,
        base_folder=tmp_path,
    )
    rows = read(tmp_path / "dataset")
    assert (report.kept, report.gathered, len(report.shards)) == (7, 7, 3)
    assert [said(row) for row in rows] == [
        [(at * 10, at * 10 + 1, f"a.csv {at}"), (at * 10 + 1, at * 10 + 2, f"b.csv {at}")]
        for at in range(7)
    ]
    assert not (tmp_path / "dataset" / ".scratch").exists()


def test_later_additions_to_a_known_source_are_a_rejection(tmp_path):
    head = "url,start,end,caption\n"
    take(tmp_path, "a.csv", f"{head}{SITE}1,0,5,x\n")
    report, rows = take(tmp_path, "b.csv", f"{head}{SITE}1,0,5,x\n{SITE}1,5,9,y\n{SITE}1,0,5,z\n")
    assert (report.changed_spans, report.rejected, len(rows)) == (1, 1, 2)
    assert said(rows[0]) == [(0, 5, "x")]
    assert rows[1]["rejection"]["rule"] == "sources.fixed"
    assert "2 spans more (0 to 5 s: z; 5 to 9 s: y)" in rows[1]["rejection"]["detail"]
    assert said(rows[1]) == [(0, 5, "z"), (5, 9, "y")]
    report, again = take(tmp_path, "b.csv", (tmp_path / "b.csv").read_bytes())
    assert (again, report.shards) == (rows, ())


def test_columns_can_be_named(tmp_path):
    text = f"url,a,b,caption,text\n{SITE}1,1000,00:00:02.5,x,y\n"
    _, rows = take(
        tmp_path, "a.csv", text.replace("1000", "1"), span_columns=["a", "b"], caption_column="text"
    )
    assert said(rows[0]) == [(1, 2.5, "y")]
    _, rows = take(tmp_path, "b.csv", f"url,start,end\n{SITE}2,monday,friday\n", span_columns=[])
    assert dict(rows[-1]["extra"]) == {"start": "monday", "end": "friday"}
    with pytest.raises(UsageError, match="no column 'from'"):
        take(tmp_path, "c.csv", text, span_columns=["from", "b"])


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ("\"[['0:01', '0:02'], ['0:03', '0:04']]\",\"['a']\"", "2 spans and 1 caption"),
        ("\"[__import__('os').getcwd()]\",a", "not a list of [start, end]"),
        ("\"[['0:02', '0:01']]\",a", "empty or negative"),
        ('"[[1, 2, 3]]",a', "not a list of"),
        ('"' + "[" * 500 + '",a', "not a list of"),
    ],
)
def test_nonsensical_spans_are_failures(tmp_path, cells, message):
    report, rows = take(tmp_path, "a.csv", f"url,timestamp,caption\n{SITE}1,{cells}\n")
    assert report.failed == 1
    assert message in rows[0]["error"]["message"]


def test_timestamp_that_is_a_date_stays_text(tmp_path):
    text = f"url,timestamp\n{SITE}1,2024-05-01 10:00:00\n{SITE}2,2024-05"
    _, rows = take(tmp_path, "a.csv", text)
    assert [row["spans"] for row in rows] == [None, None]
    assert dict(rows[0]["extra"]) == {"timestamp": "2024-05-01 10:00:00"}


def test_shards_of_earlier_releases_without_captions_are_read(tmp_path):
    """The struct of spans has grown since, too."""
    take(tmp_path, "a.csv", f"url,start,end,caption\n{SITE}1,0,5,x\n")
    path = shard_path(tmp_path / "dataset" / "sources", "000000")
    table, footer = pq.read_table(path), dict(pq.read_metadata(path).metadata)
    footer.pop(b"ARROW:schema")
    [spans] = table["spans"].to_pylist()
    old = pa.list_(
        pa.struct(
            [field for field in SOURCES.field("spans").type.value_type if field.name != "captions"]
        )
    )
    spans = [{name: value for name, value in span.items() if name != "captions"} for span in spans]
    table = table.set_column(table.schema.get_field_index("spans"), "spans", pa.array([spans], old))
    pq.write_table(table.drop_columns(["captions"]).replace_schema_metadata(footer), path)
    report, _ = take(tmp_path, "b.csv", f"url,start,end,caption\n{SITE}1,0,5,x\n{SITE}1,5,6,y\n")
    assert (report.known, report.changed_spans) == (1, 1)
