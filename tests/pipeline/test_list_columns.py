"""Lists are read column-wise with the same result as row by row."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.dataset.shards import shard_path
from clipmill.pipeline.ingest import (
    list_records,
    list_text,
    plain_gathering,
    sorted_rows,
    source_gathering,
    source_rows,
)
from clipmill.pipeline.ingest.layouts import specs_of
from clipmill.pipeline.ingest.sources import SourceSpec, ingest, list_source_shards

WATCH = "https://www.youtube.com/watch?v="
VIDEOS = ["nVbIUDjzWY4", "CTPAZ2euJ2Q", "-_abcdefghi", "0123456789a"]
VIDEOS += [f"another-{n:03}" for n in range(8)]
LINES = {
    "koala-36m": (
        "videoID,url,timestamp,caption,clarity_score,motion_score,title,video_id,language",
        "{video}_{n},{url},\"['{start}', '{end}']\",{caption},{score},22.0,{title},{id},{language}",
    ),
    "openvid-1m": (
        "video,caption,aesthetic score,temporal consistency score,seconds",
        "{name}.mp4,{caption},{score},0.9,{seconds}",
    ),
    "miradata": (
        "index,video_id,start_timestep,end_timestep,dense_caption,short_caption",
        "{n},{video},{start},{end},{caption},{title}",
    ),
    "spatialvid": (
        "id,YouTube id,timestamp_start,timestamp_end,luminance score",
        "{n},{video},{start},{end},{score}",
    ),
    "panda-70m": (
        "videoID,url,timestamp,caption,matching_score",
        "{video},{url},\"[['{start}', '{end}'], ['{end}', '9:59:59']]\",\"['a', 'b']\","
        '"[0.1, {score}]"',
    ),
}
CAPTIONS = [
    "A diver.", '"A shark, swimming."', '"He says ""no""."', "", " padded ", "Ünïcödé 你好",
    '"[\'one\', \'two\']"', "[odd", '"two\nlines, of one caption"', "A diver.", "\u2003", "nan",
]  # fmt: skip
RUBBISH = [
    "", "   ", "# a comment", ",,,,,", "a,b", "{header}", 'x,"never closed,{url},rest',
    '{url},"a "wrong" quote",b,c,d', "\x00{video},1", "{line},one,more,cells,than,there,are",
    "\ufeff{line}", " ,{url},1,2,3,4,5,6,7", '" ",{url},1,2,3,4,5,6,7', "{line},,,",
]  # fmt: skip
URLS = [
    f"{WATCH}{{video}}", f"{WATCH}{{video}}", f" {WATCH}{{video}}", "https://youtu.be/{video}",
    "http://youtube.com/watch?v={video}", "https://vimeo.com/76979871", "", "nowhere",
    "https://a.example/{n}.mp4", f"{WATCH}{{video}}#t=1,2", f"{WATCH}{{video}}&t=5",
]  # fmt: skip


def lines_of(dice: random.Random, format_: str, rows: int, *, grouped: bool) -> list[str]:
    header, form = LINES[format_]
    lines = []
    for n in range(rows):
        start = dice.choice([0, 1, 3.125]) + (n // 2 if grouped else 0)
        video = VIDEOS[n * len(VIDEOS) // rows] if grouped else dice.choice(VIDEOS)
        values = {
            "n": n // 3,
            "video": video,
            "url": dice.choice(URLS if dice.random() < 0.2 else URLS[:1]).format(
                video=video, n=n // 4
            ),
            "name": f"{'a/' * dice.randint(0, 1)}{video}_{n // 2}",
            "start": dice.choice([f"0:00:{start:06.3f}", f"00:00:{start:06.3f}", f"{start}"]),
            "end": dice.choice(
                [f"0:01:{start:04.1f}", f"{start + 60}"] * 9 + ["0:00:00", "soon", ""]
            ),
            "seconds": dice.choice([4.166666666666667, 3] * 5 + ["", "none"]),
            "caption": dice.choice(CAPTIONS if dice.random() < 0.3 else CAPTIONS[:3]),
            "score": dice.choice([0.5, -1, "", 1e-9]),
            "title": dice.choice(["", "", "A title", "Another"]),
            "id": dice.choice(["", video] * 20 + [f"own-{n % 2}"]),
            "language": dice.choice(["", "en", "de"]),
        }
        line = form.format(**values)
        lines.append(line)
        if dice.random() < 0.15 or n < len(RUBBISH):
            rubbish = RUBBISH[n] if n < len(RUBBISH) else dice.choice(RUBBISH)
            lines.append(rubbish.format(**values, header=header, line=line.partition("\n")[0]))
    if not dice.randint(0, 2):
        lines += [line for line in lines if dice.random() < 0.2]
    return [header, *lines]


def both_ways(folder: Path, monkeypatch, lists: list[list[SourceSpec]], **options) -> list[dict]:
    """The rows after some lists were ingested, which are the same row by row."""
    found = []
    parts = source_rows.Reader.parts
    for way in (source_rows.Reader.rows, parts):
        monkeypatch.setattr(source_rows.Reader, "parts", way)
        dataset = folder / way.__name__
        reports = [ingest(dataset, specs, shard_videos=3, **options) for specs in lists]
        rows = [
            row
            for shard in list_source_shards(dataset)
            for row in pq.read_table(shard_path(dataset / "sources", shard)).to_pylist()
        ]
        for row in rows:
            if row["error"]:
                del row["error"]["at"]
        found.append((reports, rows))
    (reports, rows), (others, again) = found
    assert others == reports
    assert again == rows
    for counts in (counts for report in reports for counts in report.lists):
        ends = counts.sources + counts.gathered + counts.rejected + counts.failed
        assert counts.rows == ends + counts.left_out
    return rows


@pytest.fixture
def small(monkeypatch):
    """Blocks and runs of so few rows that a small list has many."""
    monkeypatch.setattr(list_records, "_FIRST_LINES", 3)
    monkeypatch.setattr(list_text, "_BLOCK_BYTES", 700)
    monkeypatch.setattr(plain_gathering, "_BATCH_BYTES", 2000)
    monkeypatch.setattr(sorted_rows, "_RUN_ROWS", 9)
    monkeypatch.setattr(sorted_rows, "_STEP_ROWS", 8)
    monkeypatch.setattr(sorted_rows, "_FEWEST_ROWS", 2)
    monkeypatch.setattr(source_gathering, "_BATCH_ROWS", 5)


def check_both_ways(
    folder: Path, monkeypatch, format_: str, rows: int, seed: int, *, grouped: bool
) -> None:
    dice = random.Random(f"{format_} {grouped} {seed}")
    lists = []
    for number in range(2):
        path = folder / f"{number}.csv"
        text = "\n".join(lines_of(dice, format_, rows, grouped=grouped))
        path.write_bytes(text.encode() + "\ncaf\u00e9,,\n".encode("latin-1"))
        lists.append(specs_of(format_, [path]))
    excluded = folder / "known.txt"
    excluded.write_text(f"{VIDEOS[3]}\n")
    found = both_ways(
        folder,
        monkeypatch,
        [lists[0], [*lists[0], *lists[1]]],
        exclude_ids=excluded if grouped else None,
    )
    assert any(row["error"] for row in found)
    assert any(row["spans"] for row in found)


@pytest.mark.parametrize(("format_", "grouped"), [("koala-36m", False), ("spatialvid", True)])
def test_columns_give_what_rows_give(tmp_path, monkeypatch, small, format_, grouped):
    check_both_ways(tmp_path, monkeypatch, format_, 60, 0, grouped=grouped)


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [True, False])
@pytest.mark.parametrize("format_", LINES)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_columns_of_many_lists_give_what_rows_give(
    tmp_path, monkeypatch, small, format_, grouped, seed
):
    check_both_ways(tmp_path, monkeypatch, format_, 120, seed, grouped=grouped)


def test_columns_of_other_forms_give_what_rows_give(tmp_path, monkeypatch):
    rows = range(24)
    table = pa.table(
        {
            "video_id": [VIDEOS[n % 4] for n in rows],
            "start": pa.array([n / 3 for n in rows], pa.float32()),
            "end": pa.array([90 + n if n != 7 else None for n in rows], pa.int64()),
            "text": ["a", None, "b", " c ", "", "nan"] * 3 + ["['b']"] * 6,
            "score": [0.5, 12, float("nan"), 123456.789, -0.0, 1] * 3 + [1e16, 1e-9] * 3,
            "frames": [b"jpeg"] * 24,
        }
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    tabs = "\n".join(
        ["video_path\ttitle\tcategory", *(f'v{n % 4}.mkv\tsaid "{n // 4}\t' for n in rows)]
    )
    (tmp_path / "b.tsv").write_text(f"{tabs}\n")
    (tmp_path / "c.csv").write_text(
        "URL, start_ms, end_ms\r\n" + "".join(f"{n // 2}.mp4, {n}00, {n}50\r\n" for n in rows)
    )
    semicolons = "".join(f"{WATCH}{VIDEOS[n % 4]};t{n};d\xe9j\xe0\n" for n in rows)
    (tmp_path / "d.csv").write_bytes(f"url;title;caption\n{semicolons}".encode("cp1252"))
    (tmp_path / "e.csv").write_text("".join(f'{VIDEOS[n % 4]},"[{n}, {n + 1}.5]"\n' for n in rows))
    (tmp_path / "f.jsonl").write_text('{"url": "1.mp4", "caption": "of a file"}\n' * 2)
    names = {
        "a.parquet": {"platform": "youtube", "language": "en"},
        "b.tsv": {"category": "films"},
        "c.csv": {},
        "d.csv": {"encoding": "cp1252"},
        "e.csv": {"columns": ["id", "span"], "url_column": "id", "platform": "youtube"},
        "f.jsonl": {},
    }
    specs = [SourceSpec(path=name, **said) for name, said in names.items()]
    found = both_ways(tmp_path, monkeypatch, [specs[:3], specs], base_folder=tmp_path)
    kept = {row["platform_id"]: row for row in found if not (row["rejection"] or row["error"])}
    assert [len(kept[video]["spans"]) for video in VIDEOS[:4]] == [6, 6, 6, 5]
    assert kept[VIDEOS[0]]["language"] == "en"
