"""Tables that a command makes of the catalog are on disk, and only while it works."""

from __future__ import annotations

from pathlib import Path

import pytest

import clipmill
from clipmill.pipeline.catalog import work_database
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.ingest.sources import SourceSpec, ingest
from clipmill.schemas.errors import ClipmillError


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    rows = "".join(f"{at}.mp4,0,{at + 2}\n" for at in range(20))
    (tmp_path / "a.csv").write_text(f"url,start,end\n{rows}")
    ingest(tmp_path / "d", [SourceSpec(path="a.csv")], shard_videos=20, base_folder=tmp_path)
    return tmp_path / "d"


def test_tables_of_a_choice_are_in_a_file_until_the_catalog_closes(dataset: Path):
    with open_catalog(dataset) as catalog:
        catalog.make_work()
        catalog.make_work()
        catalog.connection.execute("CREATE TABLE work.some AS SELECT range AS n FROM range(9)")
        ((place,),) = catalog.connection.execute(
            "SELECT path FROM duckdb_databases() WHERE database_name = 'work'"
        ).fetchall()
        assert Path(place).is_file()
    assert not Path(place).parent.exists()


def test_subsets_and_explanations_leave_no_tables(dataset: Path):
    before = {path.name for path in work_database._folder().path.iterdir()}
    opened = clipmill.open(dataset)
    subset = opened.create_subset(where="duration_seconds > 4", name="longer")
    assert subset.info["n_clips"] == 17
    opened.explain(where="duration_seconds > 4")
    opened.close()
    assert {path.name for path in work_database._folder().path.iterdir()} <= before


def test_folder_that_cannot_be_written_to_is_named(dataset: Path, tmp_path: Path):
    (tmp_path / "file").write_text("")
    with open_catalog(dataset) as catalog:
        catalog._work.folder = tmp_path / "file" / "work"
        with pytest.raises(ClipmillError, match=r"file/work: .*; set TMPDIR to a folder"):
            catalog.make_work()
