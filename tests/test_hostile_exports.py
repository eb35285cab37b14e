"""Hostile texts through InternVid's format and back, and SQL in predicates and subsets."""

from __future__ import annotations

import json
import os
import resource
from pathlib import Path

import pytest

from clipmill.pipeline.catalog import catalog as catalogs
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.schemas.errors import ClipmillError, UsageError
from tests.pipeline.exports.small_dataset import Small, freeze, write_small, youtube_id
from tests.test_hostile_input import HOSTILE, SQL, STEERING, cli, listing

# As a table stores them: Arrow rejects half a surrogate pair.
TEXTS = tuple(text.encode("utf-8", "replace").decode() for text in HOSTILE)
# Texts that would need gigabytes to answer a query.
BOMB = "length(printf('%2000000000d', width)) > 5"


@pytest.fixture(autouse=True)
def one_processor(monkeypatch):
    """Exports in this process, because starting others would take longer than the work."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0})


@pytest.fixture(scope="module")
def hostile(tmp_path_factory) -> Small:
    """YouTube videos, each with its own texts; one more for each text as an id."""

    def change(step: str, row: dict) -> None:
        number = (
            int(row.get("clip_id", row.get("source_key", "")).partition("-")[2][:3] or -1)
            if step != "download_videos"
            else int(row["source_key"][1:])
        )
        text = TEXTS[number // 2 % len(TEXTS)]
        if step == "download_videos":
            row |= {
                "title": text,
                "description": text,
                "uploader": text,
                "license": text,
                "language": text[:100],
                "category": text[:500],
            }
            if number // 2 >= len(TEXTS):
                row["source_id"] = f"{youtube_id(number)}\n" if number % 4 else text
        elif step == "summarize_captions":
            row["caption"] = text

    return write_small(
        tmp_path_factory.mktemp("hostile") / "dataset", 4 * len(TEXTS), change=change
    )


def test_internvids_format_round_trips_texts(hostile, tmp_path):
    """Every caption is unchanged; an id that isn't YouTube's stays."""
    dataset = hostile.path
    before = listing(dataset.parent)
    said = cli("export", dataset, "--format", "internvid", "--output", tmp_path / "out")
    assert listing(dataset.parent) == before
    [file] = (tmp_path / "out").glob("*.jsonl")
    lines = [json.loads(line) for line in file.read_bytes().split(b"\n") if line]
    by_id: dict[str, set[str]] = {}
    for line in lines:
        by_id.setdefault(line["YoutubeID"], set()).add(line["Caption"])
    assert by_id == {youtube_id(2 * number): {text} for number, text in enumerate(TEXTS)}
    said += cli("import", "--format", "internvid", tmp_path / "again", file)
    assert not STEERING.search(said)
    with open_catalog(tmp_path / "again") as catalog:
        rows = catalog.execute(
            "SELECT platform_id, spans FROM sources WHERE error IS NULL AND rejection IS NULL"
        ).fetchall()
    assert {name: {span["caption"] for span in spans} for name, spans in rows} == {
        youtube_id(2 * number): {text.strip()} for number, text in enumerate(TEXTS)
    }
    assert all(len(spans) == 3 for _, spans in rows)
    assert {path.name for path in tmp_path.iterdir()} == {"out", "again"}


# SQL in an export's predicate, and in a subset's file


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Small:
    return write_small(tmp_path_factory.mktemp("small") / "dataset", 2)


def inside(query: str) -> str:
    """A statement embedded in a predicate, as far as possible."""
    query = query.removeprefix("EXPLAIN ANALYZE ").removeprefix("SUMMARIZE ")
    return f"(SELECT count(*) FROM ({query})) > 0"


# One of each kind: hidden in a text, another file, a file on the network, a statement.
REACHING = (SQL[0], SQL[1], SQL[7], SQL[10], SQL[11], SQL[12], SQL[17], SQL[21], SQL[26])


@pytest.mark.parametrize("format_", ["parquet", "internvid"])
def test_export_predicate_cannot_write_or_read_elsewhere(small, tmp_path, format_):
    """As an expression, and as a text that ends the expression; the export doesn't start."""
    queries = [text.format(inside=small.path / "split_clips" / "c1") for text in REACHING]
    before = listing(small.path)
    for where in (
        *map(inside, queries),
        *(f"true) FROM clips; {queries[at]}; SELECT (true" for at in (0, -2)),
    ):
        with pytest.raises(UsageError):
            cli(
                "export",
                small.path,
                "--format",
                format_,
                "--output",
                tmp_path / "out",
                "--where",
                where,
            )
    with pytest.raises(UsageError):
        cli(
            "export",
            small.path,
            "--format",
            format_,
            "--output",
            tmp_path / "out",
            "--caption",
            f'caption" FROM clips; {queries[-2]}; SELECT "caption',
        )
    assert listing(small.path) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "where", [BOMB, "repeat('x', 2000000000 + width) = title", "repeat('x', 4000000000) = 'y'"]
)
def test_export_predicate_has_a_memory_limit(small, tmp_path, where):
    before = resource.getrlimit(resource.RLIMIT_DATA)
    with pytest.raises(ClipmillError, match="--memory-limit"):
        cli(
            "export",
            small.path,
            "--format",
            "parquet",
            "--output",
            tmp_path / "out",
            "--where",
            where,
            "--memory-limit",
            "200MB",
        )
    assert resource.getrlimit(resource.RLIMIT_DATA) == before
    # Nothing was started: another predicate may use the folder.
    cli("export", small.path, "--format", "parquet", "--output", tmp_path / "out")


def subset_with(dataset: Path, name: str, *predicates: str) -> None:
    """A frozen subset as a stranger may have written it, with arbitrary rules."""
    freeze(dataset, name, ["youtube-000-abc_DEF-0-2000"])
    path = dataset / "subsets" / name / "subset.json"
    counts = {"clips": 1, "videos": 1, "seconds": 2.0, "hours": 0.1}
    rules = [
        {
            "number": number,
            "verb": "where",
            "says": text,
            "rule": {"where": text},
            "remaining": counts,
            "took": counts,
        }
        for number, text in enumerate(predicates, start=1)
    ]
    path.write_text(json.dumps({**json.loads(path.read_text()), "funnel": rules}))


def test_subset_rules_in_a_report_cannot_write_or_read_elsewhere(tmp_path):
    """A rule that is not an expression is left out; errors while evaluating it are reported."""
    small = write_small(tmp_path / "dataset", 2)
    queries = [text.format(inside=small.path / "split_clips" / "c1") for text in REACHING]
    subset_with(
        small.path,
        "hidden",
        *(inside(query) for query in queries[:5]),
        *(f"true) FROM clips; {query}; SELECT (true" for query in queries),
    )
    subset_with(small.path, "reading", inside(queries[5]))
    before = listing(tmp_path)
    cli("report", small.path, "--subset", "hidden", "--output", tmp_path / "page.html")
    assert listing(tmp_path) - before == {"page.html"}
    for name, said in (
        ("reading", "more than the dataset's tables.*without --subset"),
        (queries[0], "no subset"),
        ("'; DROP TABLE clips; --", "no subset"),
    ):
        with pytest.raises(UsageError, match=said):
            cli("report", small.path, f"--subset={name}", "--output", tmp_path / "other.html")
    assert listing(tmp_path) - before == {"page.html"}


def test_subset_rules_in_a_report_have_a_memory_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(catalogs, "DEFAULT_MEMORY_LIMIT", "200MB")
    small = write_small(tmp_path / "dataset", 2)
    subset_with(small.path, "one", BOMB)
    with pytest.raises(ClipmillError, match=r"more memory.*without --subset"):
        cli("report", small.path, "--subset", "one", "--output", tmp_path / "page.html")
    cli("report", small.path, "--output", tmp_path / "page.html", "--samples", 0)
