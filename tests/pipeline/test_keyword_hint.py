"""An SQL keyword as a column name is explained only if it causes the error."""

from __future__ import annotations

import duckdb
import pytest

from clipmill.pipeline.catalog import views
from clipmill.pipeline.catalog.user_sql import KEYWORD_COLUMNS, readable_errors
from clipmill.schemas.errors import UsageError

HINT = '\nAT is an SQL keyword: write the column `at` as "at", in double quotes'


def said_about(query: str) -> str:
    with pytest.raises(UsageError) as raised, readable_errors(query):
        duckdb.extract_statements(query)
    return str(raised.value)


@pytest.mark.parametrize(
    "query",
    [
        "SELECT at FROM failures",
        "SELECT key, at, kind FROM failures",
        "SELECT max(AT) FROM failures",
        "SELECT * FROM failures ORDER BY at",
        "SELECT 'é', at\nFROM failures WHERE at > '2026'",
    ],
)
def test_keyword_column_is_explained(query):
    assert said_about(query).endswith(HINT)


@pytest.mark.parametrize(
    "query",
    [
        "SELEC 1",
        "SELECT key FROM failures WHER x",
        "SELECT 'at' FROM FROM",
        "SELECT FROM WHERE",
        'SELECT "at" FROM failures WHERE',
        "SELECT at FROM failures WHERE -- at\n",
        "SELECT key FROM failures WHERE message LIKE 'at %' ORDER key",
    ],
)
def test_other_errors_have_no_hint(query):
    assert "is an SQL keyword" not in said_about(query)


def test_all_keyword_columns_are_known():
    names = {name for columns in views.VIEWS.values() for name, _ in columns}

    def is_name(name: str) -> bool:
        try:
            duckdb.extract_statements(f"SELECT {name} FROM t")
        except duckdb.ParserException:
            return False
        return True

    assert {name for name in names if not is_name(name)} == KEYWORD_COLUMNS
