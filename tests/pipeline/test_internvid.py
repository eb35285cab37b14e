"""InternVid's rows become sources, one per video; each row is kept, rejected or failed."""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.pipeline.dataset.shards import ShardWriter, committed_shards, shard_path
from clipmill.pipeline.dataset.tombstones import new_tombstone
from clipmill.pipeline.ingest import sorted_rows, span_import
from clipmill.pipeline.ingest.sources import SourceSpec, ingest
from clipmill.pipeline.ingest.span_import import ImportReport, import_spans
from clipmill.schemas.errors import UsageError
from clipmill.schemas.tables import SOURCES

ID = "-1Ab_cdEfgh"
OTHER = "bbbbbbbbbbb"


def line(
    youtube_id: str = ID,
    start: str = "00:00:01.500",
    end: str = "00:00:04.250",
    caption: str = "a dog",
    **more,
) -> str:
    return json.dumps(
        {
            "YoutubeID": youtube_id,
            "Start_timestamp": start,
            "End_timestamp": end,
            "Caption": caption,
            **(more or {"Aesthetic_Score": 4.5, "UMT_Score": 0.4}),
        }
    )


def write(folder: Path, *lines: str, name: str = "list.jsonl") -> Path:
    path = folder / name
    text = "".join(f"{one}\n" for one in lines).encode()
    path.write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    return path


def take(dataset: Path, *files: Path, shard_videos: int = 16, **more) -> ImportReport:
    found = import_spans(dataset, files, shard_videos=shard_videos, **more)
    assert found.rows == (
        found.kept + found.rejected + found.failed + found.known + found.not_taken + found.removed
    )
    return found


def outcomes(report: ImportReport) -> tuple[int, int, int]:
    return report.kept, report.rejected, report.failed


def read(dataset: Path) -> list[dict]:
    rows = []
    for shard in committed_shards(dataset / "sources"):
        table = pq.read_table(shard_path(dataset / "sources", shard))
        assert table.schema.remove_metadata().equals(SOURCES)
        rows += table.to_pylist()
    assert [row["position"] for row in rows] == list(range(len(rows)))
    assert len({row["source_key"] for row in rows}) == len(rows)
    return rows


def kept(dataset: Path) -> dict[str, dict]:
    return {
        row["platform_id"]: row
        for row in read(dataset)
        if row["rejection"] is None and row["error"] is None
    }


def test_row_becomes_a_span_with_caption_and_unchanged_columns(tmp_path):
    text = (
        '{"YoutubeID": "-1Ab_cdEfgh", "Start_timestamp": "00:01:01.500", "End_timestamp": '
        '"01:00:04.25", "Caption": " a \\"dog\\": 5, caf\\u00e9 ", "Aesthetic_Score": 4.3500, '
        '"UMT_Score": 1e-05, "more": [1, {"a": 2.50}], "none": null, "nan": NaN}'
    )
    take(tmp_path, write(tmp_path, text))
    [row] = read(tmp_path)
    [span] = row.pop("spans")
    assert span == {
        "start_seconds": 61.5,
        "end_seconds": 3604.25,
        "caption": 'a "dog": 5, café',
        "extra": [
            ("Start_timestamp", "00:01:01.500"),
            ("End_timestamp", "01:00:04.25"),
            ("Aesthetic_Score", "4.3500"),
            ("UMT_Score", "1e-05"),
            ("more", '[1,{"a":"2.50"}]'),
        ],
        "captions": None,
    }
    ingest(tmp_path / "listed", [SourceSpec(url=f"https://youtu.be/{ID}")], shard_videos=1)
    [listed] = read(tmp_path / "listed")
    assert listed.pop("url") == f"https://youtu.be/{ID}"
    assert row.pop("url") == f"https://www.youtube.com/watch?v={ID}"
    assert {key: value for key, value in listed.items() if key != "spans"} == row


@pytest.mark.parametrize("kind", ["plain", "gzip", "parquet", "no last newline", "windows"])
def test_every_kind_of_file_gives_the_same_sources(tmp_path, kind):
    rows = [
        json.loads(
            line(
                ID,
                f"00:00:0{at}.000",
                f"00:00:0{at}.700",
                f"n {at}",
                Aesthetic_Score=at / 3,
                UMT_Score=at / 7,
            )
        )
        for at in range(5)
    ]
    take(tmp_path / "plain", write(tmp_path, *map(json.dumps, rows)))
    text = "\n".join(map(json.dumps, rows))
    if kind == "parquet":
        path = tmp_path / "[1]*.parquet"
        table = pa.Table.from_pylist(rows).rename_columns(
            [
                "YoutubeID",
                "Start_timestamp",
                "End_timestamp",
                "Caption",
                "Aesthetic_Score",
                "UMT-SIM",
            ]
        )
        pq.write_table(table, path)
    elif kind == "gzip":
        path = write(tmp_path, *map(json.dumps, rows), name="list.jsonl.gz")
    else:
        path = tmp_path / "other.json"
        path.write_bytes(
            text.encode()
            if kind == "no last newline"
            else b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b"\r\n"
        )
    assert outcomes(take(tmp_path / "other", path)) == (5, 0, 0)
    assert read(tmp_path / "other") == read(tmp_path / "plain")


def test_other_spelling_of_the_score_column_is_normalised(tmp_path):
    take(tmp_path, write(tmp_path, line(**{"UMT-SIM": 0.25})))
    assert dict(kept(tmp_path)[ID]["spans"][0]["extra"])["UMT_Score"] == "0.25"


def test_single_floats_of_parquet_keep_their_short_form(tmp_path):
    row = json.loads(line(Aesthetic_Score=None, UMT_Score=None))
    table = pa.Table.from_pylist([row])
    for name, value in (("Aesthetic_Score", 4.1), ("UMT_Score", float("nan"))):
        at = table.schema.get_field_index(name)
        table = table.set_column(at, name, pa.array([value], pa.float32()))
    pq.write_table(table, tmp_path / "a.parquet")
    take(tmp_path, tmp_path / "a.parquet")
    extra = dict(kept(tmp_path)[ID]["spans"][0]["extra"])
    assert extra["Aesthetic_Score"] == "4.1"
    assert "UMT_Score" not in extra


BAD = [
    ("nonsense", "not valid JSON"),
    ('["x"]', "not valid JSON, or not an object"),
    ('{"YoutubeID": "a", "YoutubeID": "b"}', "distinct keys"),
    ('{"Start_timestamp": "00:00:01.500"}', "no YoutubeID"),
    (line("short"), "YoutubeID short is not 11"),
    (line("has spaces "), "is not 11"),
    (line("aaaaaaaaaaé"), "is not 11"),
    (line(start=""), "no Start_timestamp"),
    (line(end="later"), "End_timestamp later is neither seconds"),
    (line(start="nan"), "Start_timestamp nan is neither"),
    (line(start="00:00:04.250"), "from 00:00:04.250 to 00:00:04.250 is empty or negative"),
    (line(start="-1"), "is empty or negative"),
]


def test_invalid_row_is_a_failure_with_its_line_number(tmp_path):
    path = write(tmp_path, line(), *(text for text, _ in BAD), "", line(OTHER))
    assert outcomes(take(tmp_path / "dataset", path)) == (2, 0, len(BAD))
    assert set(kept(tmp_path / "dataset")) == {ID, OTHER}
    failed = [row["error"] for row in read(tmp_path / "dataset") if row["error"]]
    assert {error["kind"] for error in failed} == {"permanent"}
    for number, (error, (_, words)) in enumerate(zip(failed, BAD, strict=True), 2):
        assert error["message"].startswith(f"{path}:{number}: "), error
        assert words in error["message"]


def test_invalid_utf8_fails_no_row(tmp_path):
    path = tmp_path / "list.jsonl"
    path.write_bytes(line(caption="caf#").encode().replace(b"#", b"\xe9") + b"\n")
    take(tmp_path, path)
    assert kept(tmp_path)[ID]["spans"][0]["caption"] == "caf\ufffd"


def test_rows_of_a_video_are_gathered_across_blocks(tmp_path, monkeypatch):
    rng = random.Random(5)
    names = [f"v{number:010d}" for number in range(300)]
    want: dict[str, list[float]] = {name: [] for name in names}
    lines = []
    for at in range(9000):
        name = rng.choice(names)
        want[name].append(at / 10)
        lines.append(line(name, str(at / 10), str(at / 10 + 1), f"row {at}"))
    path = write(tmp_path, *lines)
    monkeypatch.setattr("clipmill.pipeline.ingest.line_blocks._BLOCK_BYTES", 1000)
    for name, value in (("_RUN_ROWS", 900), ("_STEP_ROWS", 70), ("_FEWEST_ROWS", 7)):
        monkeypatch.setattr(sorted_rows, name, value)
    take(tmp_path / "dataset", path, shard_videos=7)
    found = kept(tmp_path / "dataset")
    assert {
        name: [span["start_seconds"] for span in row["spans"]] for name, row in found.items()
    } == {name: times for name, times in want.items() if times}
    sizes = [
        pq.read_metadata(shard_path(tmp_path / "dataset" / "sources", shard)).num_rows
        for shard in committed_shards(tmp_path / "dataset" / "sources")
    ]
    assert sizes[:-1] == [7] * (len(sizes) - 1)
    assert sum(sizes) == len(found)


def small_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a few hundred rows be sorted on disk, in steps of a few rows."""
    monkeypatch.setattr("clipmill.pipeline.ingest.line_blocks._BLOCK_BYTES", 3000)
    for name, value in (("_RUN_ROWS", 150), ("_STEP_ROWS", 40), ("_FEWEST_ROWS", 5)):
        monkeypatch.setattr(sorted_rows, name, value)


@pytest.mark.slow
def test_rows_sorted_on_disk_give_the_sources_of_rows_sorted_in_memory(tmp_path, monkeypatch):
    rng = random.Random(11)
    # Ids that differ in any place, also only in the last letter.
    names = [f"{rng.choice('-_aZ9')}bcdefghij{rng.choice('-_aZ09zA')}" for _ in range(60)]
    lines = []
    for at in range(1500):
        start = rng.choice([1, 1.0004, 1.0005, at / 7, 1e7])
        end = start + rng.choice([1, 2])
        more = {"Aesthetic_Score": at / 3, **({"other": at} if at % 9 == 0 else {})}
        caption = rng.choice(["plain", "caf\u00e9", '"quoted"', " padded ", ""])
        lines.append(line(rng.choice(names), f"{start:.4f}", f"{end:.4f}", caption, **more))
    first = write(tmp_path, lines[0].replace("1", "x"), *lines[:800], name="a.jsonl")
    second = write(tmp_path, *lines[800:], name="b.jsonl.gz")
    report = take(tmp_path / "memory", first, second, shard_videos=9)
    small_runs(monkeypatch)
    assert vars(take(tmp_path / "disk", first, second, shard_videos=9)) == vars(report)
    found = [read(tmp_path / name) for name in ("memory", "disk")]
    for rows in found:
        for row in rows:
            row["error"] = row["error"] and row["error"]["message"]
    assert found[0] == found[1]
    again = take(tmp_path / "disk", first, second)
    assert (again.known, again.shards) == (report.rows, [])


def test_rows_of_known_and_new_videos_are_told_apart_in_any_step(tmp_path, monkeypatch):
    names = [f"v{number:010d}" for number in range(400)]
    take(tmp_path / "dataset", write(tmp_path, *map(line, names[::3]), name="a.jsonl"))
    small_runs(monkeypatch)
    report = take(tmp_path / "dataset", write(tmp_path, *map(line, names), name="b.jsonl"))
    assert (report.kept, report.known) == (266, 134)
    assert set(kept(tmp_path / "dataset")) == set(names)


def test_failing_disk_leaves_whole_shards_without_a_gap(tmp_path, monkeypatch):
    seal, sealed = ShardWriter.seal, []

    def fail(writer: ShardWriter, *more: object) -> None:
        sealed.append(writer.path.stem)
        if writer.path.stem == "000003":
            raise OSError(28, "No space left on device")
        seal(writer, *more)

    path = write(tmp_path, *(line(f"v{number:010d}") for number in range(40)))
    monkeypatch.setattr(ShardWriter, "seal", fail)
    with pytest.raises(OSError, match="No space"):
        take(tmp_path / "dataset", path, shard_videos=4)
    folder = tmp_path / "dataset" / "sources"
    assert committed_shards(folder) == ["000000", "000001", "000002"]
    assert [one.name for one in folder.glob(".*~*")] == []
    monkeypatch.setattr(ShardWriter, "seal", seal)
    report = take(tmp_path / "dataset", path, shard_videos=4)
    assert (report.kept, report.known) == (28, 12)
    assert len(read(tmp_path / "dataset")) == 40


@pytest.mark.slow
def test_killed_import_goes_on_to_the_same_shards(tmp_path):
    names = [f"v{at * 37 % 3000:010d}" for at in range(9000)]
    path = write(tmp_path, *(line(name, str(at // 3000)) for at, name in enumerate(names)))
    whole = take(tmp_path / "whole", path, shard_videos=4)
    folder = tmp_path / "dataset" / "sources"
    code = (
        "import sys, pathlib; from clipmill.pipeline.ingest.span_import import import_spans; "
        "import_spans(pathlib.Path(sys.argv[1]), [pathlib.Path(sys.argv[2])], shard_videos=4)"
    )
    for wanted in (1, 150, 400):
        process = subprocess.Popen(
            [sys.executable, "-c", code, str(folder.parent), str(path)], stdin=subprocess.DEVNULL
        )
        while len(committed_shards(folder)) < wanted and process.poll() is None:
            time.sleep(0.01)
        process.kill()
        process.wait()
        there = committed_shards(folder)
        assert there == [f"{number:06d}" for number in range(len(there))]
    again = take(tmp_path / "dataset", path, shard_videos=4)
    assert again.known == whole.rows - again.kept
    for shard in committed_shards(tmp_path / "whole" / "sources"):
        assert read_shard(folder.parent, shard) == read_shard(tmp_path / "whole", shard)
    assert len(committed_shards(folder)) == len(whole.shards)
    assert [one.name for one in folder.glob(".*~*")] == []
    assert list((tmp_path / "dataset" / ".scratch").glob("import-*")) == []


def test_repeated_span_is_a_rejection_that_names_the_first(tmp_path):
    first = write(tmp_path, line(), line(), line(OTHER), name="a.jsonl")
    second = write(tmp_path, line(), line(end="00:00:05.000"), name="b.jsonl")
    report = take(tmp_path / "dataset", first, second)
    assert outcomes(report) == (3, 2, 0)
    rows = read(tmp_path / "dataset")
    details = [row["rejection"]["detail"] for row in rows if row["rejection"]]
    assert [detail.partition(",")[0] for detail in details] == [
        f"{first}:2: the same span as {first}:1",
        f"{second}:1: the same span as {first}:1",
    ]
    assert [span["caption"] for span in kept(tmp_path / "dataset")[ID]["spans"]] == [
        "a dog",
        "a dog",
    ]


def test_all_captions_of_a_span_are_kept_in_order_across_imports(tmp_path):
    first = write(tmp_path, line(), line(caption="another"), line(), name="a.jsonl")
    second = write(tmp_path, line(caption="third"), line(caption="another"), name="b.jsonl")
    assert outcomes(take(tmp_path / "dataset", first, second)) == (3, 2, 0)
    [span] = kept(tmp_path / "dataset")[ID]["spans"]
    assert (span["caption"], span["captions"]) == ("a dog", ["a dog", "another", "third"])
    more = write(tmp_path, line(caption="fourth"), line(caption="third"), name="c.jsonl")
    report = take(tmp_path / "dataset", more)
    assert (outcomes(report), report.known, report.grown_videos) == ((1, 0, 0), 1, 1)
    [span] = kept(tmp_path / "dataset")[ID]["spans"]
    assert span["captions"] == ["a dog", "another", "third", "fourth"]


def test_importing_the_same_files_again_adds_nothing(tmp_path):
    path = write(tmp_path, line(), line(), line(OTHER), "nonsense")
    take(tmp_path / "dataset", path)
    before = read(tmp_path / "dataset")
    again = take(tmp_path / "dataset", path)
    assert (again.known, again.shards, outcomes(again)) == (4, [], (0, 0, 0))
    assert read(tmp_path / "dataset") == before


def test_another_file_adds_spans_to_known_videos_before_a_run(tmp_path):
    take(tmp_path / "dataset", write(tmp_path, line(), line(OTHER), name="flt.jsonl"))
    more = write(
        tmp_path,
        line(),
        line(start="00:00:00.000", caption="new"),
        line("ccccccccccc"),
        name="aes.jsonl",
    )
    report = take(tmp_path / "dataset", more)
    assert (outcomes(report), report.known, report.grown_videos) == ((2, 0, 0), 1, 1)
    together = tmp_path / "together"
    take(together, tmp_path / "flt.jsonl", more)
    assert {name: row["spans"] for name, row in kept(tmp_path / "dataset").items()} == {
        name: row["spans"] for name, row in kept(together).items()
    }


@pytest.mark.slow
def test_known_video_grows_by_more_rows_than_one_batch(tmp_path, monkeypatch):
    take(tmp_path / "dataset", write(tmp_path, line(), name="a.jsonl"))
    monkeypatch.setattr(span_import, "_BATCH_ROWS", 100)
    lines = [line(start=str(at), end=str(at + 1)) for at in range(5000)]
    report = take(tmp_path / "dataset", write(tmp_path, *lines, name="b.jsonl"))
    assert (report.kept, report.grown_videos) == (5000, 1)
    assert len(kept(tmp_path / "dataset")[ID]["spans"]) == 5001


def test_spans_of_processed_videos_do_not_change(tmp_path):
    dataset = tmp_path / "dataset"
    take(dataset, write(tmp_path, line(), line(OTHER), name="flt.jsonl"), shard_videos=1)
    worked_on = next(
        shard
        for shard in committed_shards(dataset / "sources")
        if read_shard(dataset, shard)[0]["platform_id"] == ID
    )
    done = dataset / "download_videos" / "0123456789abcdef" / f"{worked_on}.parquet"
    done.parent.mkdir(parents=True)
    done.touch()
    report = take(
        dataset, write(tmp_path, line(start="0"), line(OTHER, start="0"), name="aes.jsonl")
    )
    assert (report.kept, report.not_taken) == (1, 1)
    assert {name: len(row["spans"]) for name, row in kept(dataset).items()} == {ID: 1, OTHER: 2}


def read_shard(dataset: Path, shard: str) -> list[dict]:
    return pq.read_table(shard_path(dataset / "sources", shard)).to_pylist()


def test_video_listed_as_a_whole_stays_whole(tmp_path):
    ingest(tmp_path, [SourceSpec(url=f"https://youtu.be/{ID}")], shard_videos=1)
    report = take(tmp_path, write(tmp_path, line()))
    assert (report.kept, report.not_taken) == (0, 1)
    assert kept(tmp_path)[ID]["spans"] is None


def test_rows_of_a_removed_video_are_counted_but_not_imported(tmp_path):
    path = write(tmp_path, line(), line(start="0"), line(OTHER))
    take(tmp_path / "dataset", path)
    new_tombstone(
        tmp_path / "dataset",
        {f"youtube-{ID}": [kept(tmp_path / "dataset")[ID]["source_key"]]},
        "asked for",
    )
    again = take(tmp_path / "dataset", path)
    assert (again.rows, again.known, again.removed) == (3, 1, 2)
    assert again.shards == []


def test_excluded_ids_are_rejected_with_all_their_rows(tmp_path):
    known = tmp_path / "known.txt"
    known.write_text(f"youtube {OTHER}\n")
    path = write(tmp_path, line(OTHER), line(), line(OTHER, start="0"))
    report = take(tmp_path / "dataset", path, exclude_ids=known)
    assert outcomes(report) == (1, 2, 0)
    assert set(kept(tmp_path / "dataset")) == {ID}
    [rejected] = [row for row in read(tmp_path / "dataset") if row["rejection"]]
    assert rejected["rejection"]["rule"] == "sources.exclude_ids"


def test_limit_takes_the_first_videos_with_all_their_rows(tmp_path):
    path = write(
        tmp_path,
        line("zzzzzzzzzzz"),
        line(OTHER),
        line(ID),
        line("zzzzzzzzzzz", start="0"),
        line(ID, start="0"),
    )
    report = take(tmp_path / "dataset", path, limit=2)
    assert (report.rows, report.kept) == (3, 3)
    assert {name: len(row["spans"]) for name, row in kept(tmp_path / "dataset").items()} == {
        "zzzzzzzzzzz": 2,
        OTHER: 1,
    }


# Without a time in gzip's header: the content is part of the tests' names, which must be the same
# in every process that collects them.
@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b'[{"YoutubeID": "x"}]', "one JSON array"),
        ("a.jsonl", b'{"url": "x"}\n', "no column YoutubeID, Start_timestamp, End_timestamp"),
        ("a.csv", b"YoutubeID,Start_timestamp\n", "not a Parquet file"),
        ("a.jsonl", b"", "none of its first lines"),
        ("a.parquet", b"PAR1nonsense", "not a readable Parquet file"),
        ("a.jsonl.gz", gzip.compress(line().encode() * 9, mtime=0)[:60], "cannot read"),
        ("none/a.jsonl", None, "cannot read"),
    ],
)
def test_unsupported_file_is_refused_before_anything_is_written(tmp_path, name, content, words):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=words):
        take(tmp_path / "dataset", write(tmp_path, line(), name="good.jsonl"), tmp_path / name)
    assert committed_shards(tmp_path / "dataset" / "sources") == []


def test_truncated_file_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("clipmill.pipeline.ingest.line_blocks._BLOCK_BYTES", 1000)
    rng = random.Random(3)
    lines = [
        line(caption="".join(rng.choices("abcdefghij", k=90)), start=str(at), end=str(at + 1))
        for at in range(500)
    ]
    whole = write(tmp_path, *lines, name="a.jsonl.gz").read_bytes()
    (tmp_path / "a.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"cannot read .*a\.jsonl\.gz"):
        take(tmp_path / "dataset", tmp_path / "a.jsonl.gz")
    assert committed_shards(tmp_path / "dataset" / "sources") == []
