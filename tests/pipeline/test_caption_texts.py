"""What `status` says about the models' texts: cut off, cleaned, and the same for many videos."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clipmill
from clipmill.jobs.lines_below import lines_below
from clipmill.jobs.report.page import write_report
from clipmill.pipeline.catalog.caption_texts import MANY_VIDEOS
from clipmill.stages.summarize_captions import SUMMARIES
from tests.jobs.report.parsed_page import parse
from tests.scored_catalog import Clip, build
from tests.synthetic import write_shard

SAID = ("A man talks.", "a man talks", "A MAN TALKS.")
TEXTS = MANY_VIDEOS + 2 + 20 + 9
NEW = ("caption_finish_reason", "caption_prompt_tokens", "caption_new_tokens", "caption_cleaned_by")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Clips of 12 videos say the same, 20 clips of two videos say the same, 9 clips their own.

    The second shard was written before texts had more columns than themselves.
    """
    clips = [Clip(f"file-v{i}", 0.0, 2.0, SAID[i % 3]) for i in range(MANY_VIDEOS + 2)]
    clips += [
        Clip(f"file-w{i % 2}", 4.0 * i, 4.0 * i + 2, "the same wheel turns") for i in range(20)
    ]
    clips += [Clip(f"file-x{i}", 0.0, 2.0, f"thing number {i}") for i in range(9)]
    folder = build(tmp_path_factory.mktemp("texts") / "dataset", clips, [], shards=2)
    rows = pq.read_table(
        folder / "summarize_captions" / "summarize_captions-1" / "000000.parquet"
    ).to_pylist()
    for number, row in enumerate(rows):
        row["caption_finish_reason"] = "length" if number < 3 else "stop"
        row["caption_new_tokens"] = number
        row["caption_cleaned_by"] = ["preamble", "markdown"] if number in (1, 2) else []
    rows[0]["caption_cleaned_by"] = ["markdown"]
    label = "summarize_captions"
    write_shard(folder, label, f"{label}-1", "000000", rows, SUMMARIES)
    old = pq.read_table(folder / label / f"{label}-1" / "000001.parquet")
    former = pa.schema([field for field in SUMMARIES if field.name not in NEW])
    write_shard(folder, label, f"{label}-1", "000001", old.select(former.names).to_pylist(), former)
    return clipmill.open(folder)


def test_texts_are_counted_by_how_they_ended_and_what_cleaned_them(dataset):
    (found,) = dataset.status()["texts"]
    told = dataset.sql("SELECT count(caption_finish_reason) FROM clips").fetchall()[0][0]
    assert (found["stage"], found["column"]) == ("summarize_captions", "caption")
    assert (found["texts"], found["told"], found["cut_off"]) == (TEXTS, told, 3)
    assert 3 < told < found["texts"]
    assert found["cleaned"] == {"markdown": 3, "preamble": 2}


def test_texts_of_many_videos_are_shown_and_those_of_few_are_not(dataset):
    (found,) = dataset.status()["texts"]
    (most,) = found["repeated"]
    assert most["text"].rstrip(".").lower() == "a man talks"
    assert (most["clips"], most["videos"]) == (MANY_VIDEOS + 2, MANY_VIDEOS + 2)
    assert (found["repeated_texts"], found["repeated_clips"]) == (1, MANY_VIDEOS + 2)


def test_lines_say_so(dataset):
    lines = "\n".join(lines_below(dataset.status()))
    assert "3 cut off; cleaned: 3 by markdown, 2 by preamble" in lines
    assert "12 clips (29.3%) share 1 text with clips of other videos, most often" in lines
    assert "(12 clips of 12 videos)" in lines


def test_columns_are_in_clips_and_null_for_earlier_shards(dataset):
    rows = dataset.sql(
        "SELECT caption_finish_reason IS NULL, caption_new_tokens IS NULL, "
        "caption_cleaned_by IS NULL, count(*) FROM clips GROUP BY ALL ORDER BY 1"
    ).fetchall()
    assert [row[:3] for row in rows] == [(False,) * 3, (True,) * 3]


def test_report_has_them_in_tables(dataset, tmp_path):
    page = tmp_path / "page.html"
    write_report(dataset.path, page, sample_count=0)
    ended = parse(page).one("table", class_="texts")
    cells = [cell.text.strip() for cell in ended.all("td")]
    assert cells == [str(TEXTS), "3", "markdown 3, preamble 2"]
    assert "The same caption for many videos" in page.read_text("utf-8")
