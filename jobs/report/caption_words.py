"""Counts words, lengths and verbs of the captions in one pass of DuckDB.

A word is a run of letters or digits, with apostrophes and hyphens inside it; text that is written
without spaces counts as one word.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from clipmill.jobs.report.verbs import count_verbs_listed, verb_forms
from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.schemas.sql_text import literal

WORD = r"[\p{L}\p{N}]+(?:['’-][\p{L}\p{N}]+)*"
LONGEST_WORD = 40
SHOWN_WORDS = 200
SHOWN_VERBS = 30

_DETERMINERS = (
    "a",
    "an",
    "the",
    "this",
    "that",
    "these",
    "those",
    "his",
    "her",
    "its",
    "their",
    "my",
    "our",
    "your",
    "some",
    "any",
    "no",
    "each",
    "every",
    "several",
    "many",
    "of",
    "two",
    "three",
    "four",
    "five",
)
_BE = ("is", "are", "was", "were", "be", "been", "being")
_TAKERS = (
    "to",
    "can",
    "could",
    "will",
    "would",
    "should",
    "must",
    "may",
    "might",
    "not",
    "they",
    "we",
    "who",
    "people",
    "men",
    "women",
    "children",
    "kids",
    "boys",
    "girls",
    "players",
    "dancers",
    "students",
    "workers",
    "friends",
)
_FOLLOWERS = (
    "a",
    "an",
    "the",
    "his",
    "her",
    "its",
    "their",
    "him",
    "them",
    "it",
    "himself",
    "herself",
    "themselves",
    "to",
    "into",
    "onto",
    "through",
    "across",
    "toward",
    "towards",
    "past",
    "around",
    "down",
    "up",
    "over",
    "away",
    "off",
    "out",
    "back",
    "along",
    "still",
    "together",
)


@dataclass(frozen=True)
class Words:
    """Counts over the report's captions."""

    captions: int = 0
    words: int = 0
    distinct_words: int = 0
    commonest: list[tuple[str, int]] = field(default_factory=list)
    verbs: list[tuple[str, int]] = field(default_factory=list)
    """The most common verbs with their counts."""
    distinct_verbs: int = 0
    verb_uses: int = 0
    verbs_listed: int = 0


def count_words(catalog: Catalog, captions: str) -> Words:
    """Counts the words of a relation with one column, `caption`."""
    connection = catalog.connection
    tokens = (
        f"SELECT regexp_extract_all(lower(caption), {literal(WORD)}) AS tokens "
        f"FROM ({captions}) WHERE caption IS NOT NULL"
    )
    # Lists unnest in parallel: each word comes with its predecessor and successor.
    pairs = (
        "SELECT unnest(tokens) AS word, unnest(list_concat([''], tokens)) AS previous, "
        f"unnest(list_append(tokens[2:], '')) AS next FROM ({tokens})"
    )
    connection.execute(
        "CREATE OR REPLACE TEMP TABLE report_words AS SELECT word, count(*) AS uses, "
        f"count(*) FILTER (previous IN {_DETERMINERS}) AS after_determiner, "
        f"count(*) FILTER (previous IN {_BE}) AS after_be, "
        f"count(*) FILTER (previous IN {_TAKERS}) AS after_taker, "
        f"count(*) FILTER (next IN {_FOLLOWERS} AND previous NOT IN {_DETERMINERS}) "
        f"AS before_object FROM ({pairs}) WHERE word IS NOT NULL GROUP BY word"
    )
    said, distinct = connection.execute(
        "SELECT coalesce(sum(uses), 0)::BIGINT, count(*) FROM report_words"
    ).fetchall()[0]
    (number,) = connection.execute(
        f"SELECT count(*) FROM ({captions}) WHERE caption IS NOT NULL"
    ).fetchall()[0]
    commonest = connection.execute(
        f"SELECT word[:{LONGEST_WORD}], uses FROM report_words "
        "WHERE NOT list_contains(?, word) AND NOT regexp_full_match(word, '[0-9]+') "
        f"ORDER BY uses DESC, word LIMIT {SHOWN_WORDS}",
        [_stop_words()],
    ).fetchall()
    verbs = _verbs(catalog)
    connection.execute("DROP TABLE report_words")
    return Words(
        number,
        said,
        distinct,
        commonest,
        verbs[:SHOWN_VERBS],
        len(verbs),
        sum(uses for _, uses in verbs),
        count_verbs_listed(),
    )


def _verbs(catalog: Catalog) -> list[tuple[str, int]]:
    """Verbs by base form with their number of uses, the most common first."""
    forms = verb_forms()
    catalog.connection.register(
        "report_forms",
        pa.table(
            {name: [getattr(form, name) for form in forms] for name in ("form", "lemma", "counts")}
        ),
    )
    rows = catalog.connection.execute(
        """
        SELECT lemma, sum(CASE counts WHEN 'after_be' THEN after_be
            WHEN 'after_taker' THEN after_taker WHEN 'before_object' THEN before_object
            ELSE uses - after_determiner END)::BIGINT AS total
        FROM report_words JOIN report_forms ON word = form
        GROUP BY lemma HAVING total > 0 ORDER BY total DESC, lemma
        """
    ).fetchall()
    catalog.connection.unregister("report_forms")
    return rows


def count_tags(catalog: Catalog, tags: str) -> list[tuple[str, int]]:
    """The most common tags of a relation with one column, `tags`, with numbers of clips."""
    catalog.make_views("clips")
    return catalog.connection.execute(
        "SELECT tag[:200], count(*) AS n FROM (SELECT unnest(list_distinct(list_transform(tags, "
        f"lambda one: one.tag))) AS tag FROM ({tags})) GROUP BY ALL ORDER BY n DESC, 1 "
        f"LIMIT {SHOWN_VERBS}"
    ).fetchall()


def _stop_words() -> list[str]:
    text = Path(__file__).with_name("stop_words.txt").read_text(encoding="utf-8")
    return [word for line in text.splitlines() if not line.startswith("#") for word in line.split()]
