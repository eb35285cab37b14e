"""A list's failure is resolved once the list is read without it; its history stays."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.jobs.failures import print_failures
from clipmill.jobs.report.outcomes import failures as failures_of_the_report
from clipmill.jobs.run import run
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.dataset.shards import shard_path
from clipmill.pipeline.ingest.sources import SourceSpec, ingest, list_source_shards
from clipmill.pipeline.ingest.span_import import import_spans
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.run import load
from clipmill.pipeline.status import status_report
from clipmill.pipeline.verify import verify
from clipmill.schemas.tables import SOURCES
from tests.http_server import Busy, serve

BAD = "http://[::1"


@pytest.fixture
def site():
    with serve() as server:
        yield server


def write(path: Path, *rows: str) -> Path:
    path.write_text("\n".join(["url", *rows]) + "\n")
    return path


def take(dataset: Path, *sources: Path | dict, **more):
    specs = [
        SourceSpec(path=str(given)) if isinstance(given, Path) else SourceSpec.model_validate(given)
        for given in sources
    ]
    return ingest(dataset, specs, shard_videos=4, **more)


def ask(dataset: Path, text: str) -> list[tuple]:
    with open_catalog(dataset) as catalog:
        return catalog.execute(text).fetchall()


def standing(dataset: Path) -> list[str]:
    """The messages of unresolved ingest failures; counts and all views agree on them."""
    with open_catalog(dataset) as catalog:

        def ask(text: str) -> list[tuple]:
            return catalog.execute(text).fetchall()

        rows = [
            message
            for (message,) in ask(
                "SELECT message FROM failures WHERE stage = 'ingest' ORDER BY message"
            )
        ]
        [[keys]] = ask("SELECT count(DISTINCT source_key) FROM sources")
        [[rejected]] = ask("SELECT count(*) FROM rejections WHERE stage = 'ingest'")
        [[unresolved]] = ask(
            "SELECT count(*) FROM failures_all WHERE stage = 'ingest' AND NOT resolved"
        )
        both = ask("SELECT key FROM failures INTERSECT SELECT key FROM rejections")
    counts = status_report(dataset)["ingest"]
    assert counts["inputs"] == counts["kept"] + counts["rejected"] + counts["failed"] == keys
    assert (counts["failed"], counts["rejected"]) == (len(rows), rejected)
    assert (unresolved, both) == (len(rows), [])
    return rows


def faults(dataset: Path) -> list:
    return verify(dataset).faults


def test_corrected_row_resolves_its_failure_and_stays_in_the_history(tmp_path):
    dataset, path = tmp_path / "dataset", tmp_path / "l.csv"
    take(dataset, write(path, "/v/a.mp4", BAD))
    [message] = standing(dataset)
    assert f"{path}:3: {BAD}" in message
    report = take(dataset, write(path, "/v/a.mp4", "/v/b.mp4"))
    assert report.describe() == ("Sources: 1 new in 1 shard, 1 already known, 1 failure resolved.")
    assert standing(dataset) == []
    assert ask(dataset, "SELECT message, resolved FROM failures_all") == [(message, True)]
    assert ask(dataset, "SELECT rule FROM rejections") == [("sources.mended",)]
    assert take(dataset, path).shards == ()
    assert faults(dataset) == []


def test_moved_or_deleted_row_resolves_its_failure(tmp_path):
    dataset, path = tmp_path / "dataset", tmp_path / "l.csv"
    take(dataset, write(path, "/v/a.mp4", BAD, '"1,2",3'))
    assert len(standing(dataset)) == 2
    take(dataset, write(path, "/v/a.mp4", "/v/b.mp4", BAD))
    [message] = standing(dataset)
    assert f"{path}:4" in message
    take(dataset, write(path, "/v/a.mp4"))
    assert standing(dataset) == []


def test_list_that_is_not_read_changes_nothing(tmp_path):
    dataset = tmp_path / "dataset"
    take(dataset, write(tmp_path / "l.csv", BAD, "/v/a.mp4"))
    before = standing(dataset)
    take(dataset, write(tmp_path / "other.csv", "/v/b.mp4", BAD))
    assert len(standing(dataset)) == 2
    take(dataset, write(tmp_path / "other.csv", "/v/b.mp4"))
    assert standing(dataset) == before


def test_row_that_breaks_again_is_a_failure_again(tmp_path):
    dataset, path = tmp_path / "dataset", tmp_path / "l.csv"
    for _ in range(2):
        take(dataset, write(path, BAD, "/v/a.mp4"))
        assert len(standing(dataset)) == 1
        assert take(dataset, path).shards == ()
        take(dataset, write(path, "/v/b.mp4", "/v/a.mp4"))
        assert standing(dataset) == []
    assert ask(dataset, "SELECT resolved FROM failures_all") == [(True,), (True,)]
    assert faults(dataset) == []


def test_rows_beyond_the_limit_are_checked_for_errors(tmp_path):
    dataset, path = tmp_path / "dataset", tmp_path / "l.csv"
    take(dataset, write(path, "/v/a.mp4", BAD))
    take(dataset, write(path, "/v/a.mp4", BAD), limit=1)
    assert len(standing(dataset)) == 1


def test_unread_search_terms_resolve_nothing(tmp_path):
    """With a limit, the terms after it are not read."""
    dataset, terms = tmp_path / "dataset", tmp_path / "terms.csv"
    terms.write_text("query,url\n,1\n")
    spec = {"search_file": str(terms)}
    take(dataset, spec)
    [message] = standing(dataset)
    terms.write_text("query,url\n,\nx,\n")
    take(dataset, write(tmp_path / "l.csv", "/v/a.mp4"), spec, limit=1)
    assert standing(dataset) == [message]


def test_playlist_that_answers_or_is_no_longer_listed_resolves_its_failure(tmp_path, site):
    dataset, path = tmp_path / "dataset", tmp_path / "l.csv"
    good, bad = site.script("/feed.xml", Busy(404)), site.status("/gone.xml", 404)
    for url in good, bad:
        take(dataset, {"url": url, "retries": 0})
    assert len(standing(dataset)) == 2
    site.page(
        "/feed.xml",
        '<?xml version="1.0"?><rss version="2.0"><channel><title>f</title>'
        f"<item><title>a</title><link>{site.url('/a.html')}</link></item></channel></rss>",
        "application/rss+xml",
    )
    take(dataset, {"url": good, "retries": 0})
    [message] = standing(dataset)
    assert "404" in message
    # The recipe itself named the other one: only an answer resolves that.
    take(dataset, write(path, "/v/a.mp4"))
    assert standing(dataset) == [message]


def test_renamed_file_resolves_its_failure(tmp_path):
    dataset, folder = tmp_path / "dataset", tmp_path / "films"
    folder.mkdir()
    odd = folder / b"a\xff.mp4".decode("utf-8", "surrogateescape")
    odd.write_bytes(b"x")
    (folder / "b.mp4").write_bytes(b"x")
    take(dataset, folder)
    assert len(standing(dataset)) == 1
    odd.rename(folder / "a.mp4")
    take(dataset, folder)
    assert standing(dataset) == []


def test_corrected_import_file_resolves_its_failures(tmp_path):
    def line(name: str) -> str:
        return json.dumps(
            {
                "YoutubeID": name,
                "Start_timestamp": "00:00:01.000",
                "End_timestamp": "00:00:02.000",
                "Caption": "c",
            }
        )

    dataset, path = tmp_path / "dataset", tmp_path / "l.jsonl"
    path.write_text("\n".join([line("aaaaaaaaaaa"), "nonsense", "more"]))
    for _ in range(2):
        import_spans(dataset, [path], shard_videos=4)
        assert len(standing(dataset)) == 2
    path.write_text("\n".join([line("aaaaaaaaaaa"), line("bbbbbbbbbbb"), "more"]))
    report = import_spans(dataset, [path], shard_videos=4)
    assert (report.rows, report.kept, report.rejected, report.failed, report.known) == (
        3,
        1,
        0,
        0,
        2,
    )
    assert len(standing(dataset)) == 1
    path.write_text("\n".join([line("aaaaaaaaaaa"), "nonsense"]))
    assert import_spans(dataset, [path], shard_videos=4).failed == 1
    assert len(standing(dataset)) == 1


def test_shards_of_earlier_releases_are_read(tmp_path):
    """They don't record the list of a failure, so it stays."""
    dataset, path = tmp_path / "dataset", tmp_path / "l.csv"
    take(dataset, write(path, "/v/a.mp4", BAD))
    [shard] = list_source_shards(dataset)
    file = shard_path(dataset / "sources", shard)
    table, footer = pq.read_table(file), dict(pq.read_metadata(file).metadata)
    assert table.schema.equals(SOURCES)
    footer.pop(b"ARROW:schema")
    pq.write_table(
        table.drop_columns(["listed_in"]).replace_schema_metadata(footer),
        file,
        write_page_checksum=True,
    )
    assert len(standing(dataset)) == 1
    take(dataset, write(path, "/v/a.mp4", "/v/b.mp4"))
    assert len(standing(dataset)) == 1
    assert [
        row["url"]
        for row in pa.concat_tables(
            [
                pq.read_table(shard_path(dataset / "sources", name), schema=SOURCES)
                for name in list_source_shards(dataset)
            ]
        ).to_pylist()
    ] == ["/v/a.mp4", None, "/v/b.mp4"]
    assert faults(dataset) == []


ROWS = st.lists(
    st.sampled_from(["/v/a.mp4", "/v/b.mp4", BAD, "http://[::2", '"1,2",3']), max_size=3
).map(lambda rows: ["/v/0.mp4", *rows])
STEPS = st.lists(
    st.dictionaries(st.sampled_from(["one.csv", "two.csv"]), ROWS, min_size=1),
    min_size=1,
    max_size=5,
)


@pytest.mark.slow
@settings(max_examples=6)
@given(steps=STEPS)
def test_unresolved_failures_are_those_of_each_lists_last_reading(tmp_path_factory, steps):
    folder = tmp_path_factory.mktemp("lists")
    expected: dict[str, int] = {}
    for lists in steps:
        paths = [write(folder / name, *rows) for name, rows in lists.items()]
        take(folder / "dataset", *paths)
        expected |= {name: sum(row[0] != "/" for row in rows) for name, rows in lists.items()}
        assert len(standing(folder / "dataset")) == sum(expected.values())


# Commands suggested by `failures`


@pytest.fixture
def mixed(tmp_path) -> Path:
    """6 list rows that are not sources, 5 missing sources: all are `permanent`."""
    (tmp_path / "recipe.yaml").write_text("engine: local\nstages: {download_videos: }\n")
    path = write(
        tmp_path / "it's a list.csv",
        *[f"{BAD}{at}" for at in range(6)],
        *[str(tmp_path / f"{at}.mp4") for at in range(5)],
    )
    run(load_recipe(tmp_path / "recipe.yaml", sources=[str(path)]), tmp_path / "data set")
    return tmp_path / "data set"


def said_by(capsys, dataset: Path, **more) -> tuple[list[dict], list[str]]:
    capsys.readouterr()
    print_failures(dataset, format="json", **more)
    out, err = capsys.readouterr()
    return json.loads(out), err.splitlines()


def test_retry_tries_the_promised_number(mixed, capsys):
    rows, said = said_by(capsys, mixed)
    assert len(rows) == 11
    retry = f"clipmill retry '{mixed}' --kind permanent"
    assert {row["retry"] for row in rows if row["stage"] != "ingest"} == {retry}
    assert said[0].startswith(f"{retry}  # tries these 5 again; ")
    assert not any(line.startswith("clipmill retry") for line in said[1:])
    assert run(load(None, mixed), mixed, retry_kinds=["permanent"])
    assert "Retrying 5 failed rows of download_videos." in capsys.readouterr().err


def test_suggested_command_reads_the_list_again(mixed, capsys):
    """Once the list is corrected, that command resolves all of them."""
    rows, said = said_by(capsys, mixed, kinds=["permanent"])
    path = mixed.parent / "it's a list.csv"
    command = f"clipmill run --dataset '{mixed}' --sources {shlex.quote(str(path))}"
    assert {row["retry"] for row in rows if row["stage"] == "ingest"} == {command}
    assert said[1:] == [f"{command}  # after fixing the list: 6 rows of it gave no source"]
    rows, said = said_by(capsys, mixed, kinds=["transient"])
    assert (rows, said) == ([], [])
    write(path, *[str(path.parent / f"{at}.mp4") for at in range(5)])
    words = shlex.split(command)
    run(load(None, Path(words[3]), sources=[words[5]]), Path(words[3]))
    rows, said = said_by(capsys, mixed)
    assert {row["stage"] for row in rows} == {"download_videos"}
    assert len(said) == 1
    rows, _ = said_by(capsys, mixed, history=True)
    assert {(row["resolved"], row["retry"]) for row in rows if row["stage"] == "ingest"} == {
        (True, None)
    }


def test_no_command_is_suggested_if_the_list_has_settings(tmp_path, capsys):
    """For example a recipe's item with its own column: `--sources` would read it differently."""
    path = tmp_path / "l.csv"
    path.write_text(f"where\n{BAD}\n/v/a.mp4\n")
    (tmp_path / "recipe.yaml").write_text(
        "engine: local\nsources: {path: l.csv, url_column: where}\nstages: {download_videos: }\n"
    )
    run(load_recipe(tmp_path / "recipe.yaml"), tmp_path / "d")
    rows, said = said_by(capsys, tmp_path / "d")
    assert [row["retry"] for row in rows if row["stage"] == "ingest"] == [None]
    assert said[1].startswith("# 1 row failed at ingest, which no retry changes: fix")
    print_failures(tmp_path / "d")
    assert str(path) in capsys.readouterr().out


def test_report_promises_no_retry_of_rows_that_are_not_sources(mixed, tmp_path):
    with open_catalog(mixed) as catalog:
        found = failures_of_the_report(catalog, mixed)
    assert found.commands == [
        (f"clipmill failures '{mixed}'", "lists them all, with remedies"),
        (f"clipmill retry '{mixed}'", "retries all of them except those of ingest"),
    ]
    (tmp_path / "recipe.yaml").write_text("engine: local\nstages: {download_videos: }\n")
    path = write(tmp_path / "only bad.csv", BAD)
    run(load_recipe(tmp_path / "recipe.yaml", sources=[str(path)]), tmp_path / "d")
    with open_catalog(tmp_path / "d") as catalog:
        found = failures_of_the_report(catalog, tmp_path / "d")
    assert found.commands == [
        (f"clipmill failures '{tmp_path / 'd'}'".replace("'", ""), "lists them all, with remedies")
    ]


def test_run_of_only_bad_rows_can_be_corrected(tmp_path, capsys):
    """The command comes from a run that only recorded them."""
    (tmp_path / "recipe.yaml").write_text("engine: local\nstages: {download_videos: }\n")
    path = write(tmp_path / "l.csv", BAD)
    run(load_recipe(tmp_path / "recipe.yaml", sources=[str(path)]), tmp_path / "d")
    rows, said = said_by(capsys, tmp_path / "d")
    assert rows[0]["retry"] == f"clipmill run --dataset {tmp_path / 'd'} --sources {path}"
    assert len(said) == 1
    assert not run(load(None, tmp_path / "d"), tmp_path / "d", retry_kinds=[])
    said_then = " ".join(capsys.readouterr().err.split())  # lines wrap at the terminal's width
    assert f"failed at ingest, `clipmill failures {tmp_path / 'd'}` says" in said_then
