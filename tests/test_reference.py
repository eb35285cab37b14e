"""The documentation matches the code."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from clipmill.jobs.reference import FOLDER, PAGES
from clipmill.pipeline.catalog.catalog import open_catalog
from tests.synthetic import Truth, build_dataset

ROOT = Path(__file__).resolve().parents[1]
GUIDE = ROOT / "docs" / "sql.md"
# A path in backquotes that begins with one of the tree's own folders.
OWN_PATH = re.compile(
    r"`((?:benchmarks|clipmill|docs|jobs|pipeline|schemas|stages|tests)/[\w./-]+)`"
)
PAGES_BY_HAND = [
    str(page.relative_to(ROOT))
    for pattern in ("*.md", "docs/**/*.md", "benchmarks/*.md")
    for page in sorted(ROOT.glob(pattern))
]
QUERIES = re.findall(r"\n([^\n]+):\n\n```sql\n(.*?)```", GUIDE.read_text(), re.S)


@pytest.mark.parametrize("name", PAGES)
def test_reference_pages_are_up_to_date(name: str):
    """If not, run `make docs`."""
    assert (FOLDER / name).read_text(encoding="utf-8") == PAGES[name](), (
        f"docs/reference/{name} is stale; run `make docs`"
    )


@pytest.mark.parametrize("page", PAGES_BY_HAND)
def test_paths_that_a_page_names_exist(page: str):
    named = OWN_PATH.findall((ROOT / page).read_text(encoding="utf-8"))
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.fixture(scope="module")
def truth(tmp_path_factory: pytest.TempPathFactory) -> Truth:
    return build_dataset(tmp_path_factory.mktemp("guide") / "dataset")


@pytest.mark.parametrize(("title", "query"), QUERIES, ids=[title for title, _ in QUERIES])
def test_all_queries_in_the_guide_work(truth: Truth, title: str, query: str):
    with open_catalog(truth.path) as catalog:
        assert catalog.ask(query).read_all().num_rows > 0


def test_the_guides_queries_are_found():
    assert len(QUERIES) >= 8
    assert GUIDE.read_text().count("```sql") == len(QUERIES)
