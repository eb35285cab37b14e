"""`sql`, `status`, `failures` and `runs` as users see them."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prompt_toolkit.application import create_app_session
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.jobs.failures import print_failures
from clipmill.jobs.formats import plain, write_rows
from clipmill.jobs.runs import print_runs
from clipmill.jobs.sql import prompt, run_sql
from clipmill.jobs.status import print_status
from clipmill.pipeline.status import status_report
from clipmill.schemas.errors import UsageError
from tests.synthetic import Truth, build_dataset

ROOT = Path(__file__).resolve().parents[2]
TWO = "SELECT clip_id, similarity, tags, width > 5 AS wide FROM clips ORDER BY clip_id LIMIT 2"


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return build_dataset(tmp_path_factory.mktemp("query") / "dataset")


def said(capsys: pytest.CaptureFixture[str], dataset: Path, text: str, **details) -> str:
    run_sql(dataset, text, **details)
    return capsys.readouterr().out


def test_json_is_a_list_of_rows(truth: Truth, capsys):
    rows = json.loads(said(capsys, truth.path, TWO, format="json"))
    assert rows[1] == {
        "clip_id": "generic-v0-2000-3250",
        "similarity": None,
        "tags": [{"tag": "dog", "score": 0.75}],
        "wide": True,
    }
    assert json.loads(said(capsys, truth.path, "FROM clips LIMIT 0", format="json")) == []


def test_jsonl_has_one_row_per_line(truth: Truth, capsys):
    lines = said(capsys, truth.path, TWO, format="jsonl").splitlines()
    assert [json.loads(line)["clip_id"] for line in lines] == [
        "generic-v0-0-1000",
        "generic-v0-2000-3250",
    ]


def test_csv_can_be_read_again(truth: Truth, capsys):
    """Nested values are JSON inside their cell, nulls are empty."""
    rows = list(csv.DictReader(io.StringIO(said(capsys, truth.path, TWO, format="csv"))))
    assert rows[1]["similarity"] == ""
    assert json.loads(rows[1]["tags"]) == [{"tag": "dog", "score": 0.75}]
    assert rows[1]["wide"] == "true"


def test_parquet_keeps_types(truth: Truth, tmp_path: Path, capsys):
    said(capsys, truth.path, TWO, format="parquet", output=tmp_path / "two.parquet")
    table = pq.read_table(tmp_path / "two.parquet")
    assert table.num_rows == 2
    assert table.schema.field("similarity").type == pa.float32()


def test_table_in_a_pipe_has_one_line_per_row(truth: Truth, capsys):
    """However long the text; the number of rows goes to standard error."""
    run_sql(truth.path, "SELECT repeat('long ', 100) AS text, NULL AS nothing")
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 2
    assert "long " * 99 in out
    assert "∅" in out
    assert err == "(1 row)\n"


def test_output_file_is_written_completely_or_not_at_all(truth: Truth, tmp_path: Path, capsys):
    target = tmp_path / "out.csv"
    target.write_text("what was there")
    with pytest.raises(UsageError):
        run_sql(truth.path, "SELECT error('stop') FROM clips", format="csv", output=target)
    assert target.read_text() == "what was there"
    run_sql(truth.path, TWO, format="csv", output=target)
    assert len(target.read_text().splitlines()) == 3
    assert os.listdir(tmp_path) == ["out.csv"]
    with pytest.raises(UsageError, match="existing folder"):
        run_sql(truth.path, TWO, format="csv", output=tmp_path / "no" / "out.csv")


def test_titles_control_characters_do_not_reach_the_terminal(capsys):
    """A title comes from the network."""
    table = pa.table({"title": ["\x1b[31mred\x07"]})
    write_rows(table.to_reader(), "table")
    assert "\x1b" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        (math.inf, None),
        (Decimal("12"), 12),
        (Decimal("1.5"), 1.5),
        (b"\x01\xff", "01ff"),
        (datetime(2026, 1, 2, tzinfo=UTC), "2026-01-02T00:00:00+00:00"),
        (timedelta(seconds=90), 90.0),
        ({"a": [1.0, math.nan]}, {"a": [1.0, None]}),
        (True, True),
    ],
)
def test_json_can_represent_every_value(value: object, expected: object):
    assert plain(value) == expected
    json.dumps(plain(value), allow_nan=False)


def test_query_may_come_from_a_file_or_a_pipe(truth: Truth, tmp_path: Path, capsys, monkeypatch):
    (tmp_path / "q.sql").write_text("-- how many\nSELECT count(*) AS n FROM clips;\n")
    assert said(capsys, truth.path, None, file=tmp_path / "q.sql", format="csv") == "n\n64\n"
    monkeypatch.setattr(sys, "stdin", io.StringIO("SELECT 1 AS one"))
    assert said(capsys, truth.path, None, format="csv") == "one\n1\n"
    with pytest.raises(UsageError, match="not both"):
        run_sql(truth.path, "SELECT 1", file=tmp_path / "q.sql")
    with pytest.raises(UsageError, match="no such file"):
        run_sql(truth.path, None, file=tmp_path / "none.sql")


def test_prompt_continues_after_an_error(truth: Truth, capsys):
    """A query ends with a semicolon, perhaps lines later; dot commands end with their line."""
    typed = (
        ".help\n.tables\n.nope\nSELECT nope FROM clips;\nSELECT count(*) AS n\nFROM clips;\n.quit\n"
    )
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text(typed)
        prompt(truth.path, format="csv")
    out, err = capsys.readouterr()
    assert out.endswith("n\n64\n")
    assert "clips: clip_id, video_id" in out
    assert "steps.tag_clips: clip_id, tags" in out
    assert "semicolon" in err
    assert ".nope is unknown" in err
    assert 'column "nope" not found' in err


def test_prompt_ends_with_the_input(truth: Truth):
    with create_pipe_input() as pipe, create_app_session(input=pipe, output=DummyOutput()):
        pipe.send_text("SELECT 1\n\x03\x04")
        prompt(truth.path)


def test_failures_can_be_narrowed(truth: Truth, capsys):
    """By kind; the history also has those that a retry resolved."""
    print_failures(truth.path, format="json")
    standing = json.loads(capsys.readouterr().out)
    print_failures(truth.path, kinds=["bad_media", "permanent"], format="json")
    some = json.loads(capsys.readouterr().out)
    assert {row["kind"] for row in some} == {"bad_media", "permanent"}
    assert len(some) < len(standing)
    print_failures(truth.path, format="json", history=True)
    assert len(json.loads(capsys.readouterr().out)) > len(standing)
    done = CliRunner().invoke(app, ["failures", str(truth.path), "--kind", "bad"])
    assert str(done.exception).startswith("--kind bad: allowed: permanent, transient")


def test_runs_show_models_and_settings(truth: Truth, capsys):
    print_runs(truth.path)
    out = capsys.readouterr().out
    assert "org/writer@abc" in out
    print_runs(truth.path, format="json")
    rows = json.loads(capsys.readouterr().out)
    assert rows[-1]["stages"][4]["prompts"] == {"prompt": "Merge {coarse} and {fine}."}


def test_status_as_json_has_the_promised_keys(truth: Truth, capsys):
    print_status(truth.path, "json")
    report = json.loads(capsys.readouterr().out)
    assert {"dataset", "stages", "totals"} <= set(report)
    for stage in report["stages"]:
        assert {
            "stage",
            "inputs",
            "kept",
            "rejected",
            "failed",
            "skipped",
            "not_asked",
            "pending",
            "shards_done",
            "shards_total",
            "seconds",
        } <= set(stage)
    assert {"videos", "clips", "hours", "source_frames", "decoded_frames"} <= set(report["totals"])


def test_status_shows_accounting_and_its_errors(truth: Truth, tmp_path: Path, capsys):
    print_status(truth.path)
    out = capsys.readouterr().out
    assert "Every input is kept, rejected or failed" in out
    assert "frames of source video: 1.000" in out
    failed = sum(stage["failed"] for stage in status_report(truth.path)["stages"])
    assert re.search(rf"^{failed} failed: ", out, re.M)
    assert f"\n  clipmill failures {truth.path}  " in out
    broken = build_dataset(tmp_path / "dataset", shards=1)
    path = broken.path / "tag_clips" / "t1" / "000000.parquet"
    pq.write_table(pq.read_table(path).slice(2), path)
    print_status(broken.path)
    assert "ACCOUNTING IS BROKEN at tag_clips" in capsys.readouterr().out


def _on_terminal(code: str, columns: int) -> str:
    """What `code` prints on a terminal with this many columns."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        stdout=theirs,
        stderr=theirs,
        stdin=theirs,
        env={**os.environ, "COLUMNS": str(columns), "TERM": "xterm"},
    )
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        parts.append(part)
    done.wait(timeout=60)
    os.close(ours)
    return re.sub(r"\x1b\[[0-9;]*m", "", b"".join(parts).decode())


def test_80_columns_are_enough(truth: Truth):
    """Status is a grid; rows that are too wide for one become blocks, one line per column."""
    shown = _on_terminal(
        "from pathlib import Path\nfrom clipmill.jobs.sql import run_sql\n"
        "from clipmill.jobs.status import print_status\n"
        f"d = Path({str(truth.path)!r})\nprint_status(d)\n"
        "run_sql(d, 'SELECT * FROM clips LIMIT 1')\n"
        "run_sql(d, \"SELECT repeat('x', 900) AS text\")\n",
        80,
    )
    lines = [line.rstrip("\r") for line in shown.splitlines()]
    assert any("inputs kept rejected failed pending shards seconds" in line for line in lines)
    status_rows = [line for line in lines if line.startswith("summarize_captions")]
    assert len(status_rows) == 1
    assert "── row 1" in shown
    assert any(line.startswith("caption_coarse  ") for line in lines)
    assert all(len(line) <= 80 for line in lines if "clipmill" not in line and "/" not in line)
    assert "…" in shown
    assert "x" * 300 not in shown.replace("\r\n", "")
