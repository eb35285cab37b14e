"""The public `search`: clips by words, or like another clip."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from clipmill.clips import Clips
from clipmill.schemas.errors import UsageError
from clipmill.schemas.extras import extras_explained
from clipmill.schemas.sql_text import literal

if TYPE_CHECKING:
    from clipmill.dataset import Dataset
    from clipmill.pipeline.catalog.catalog import Catalog
    from clipmill.pipeline.subsets.search import Vector

_SHOWN_CLIPS = 20


class Searches:
    """What `Dataset` offers to find clips by their stored embeddings."""

    path: Path
    _embedders: dict[str, Vector]

    if TYPE_CHECKING:

        def _asking(self) -> AbstractContextManager[Catalog]: ...

    def search(
        self,
        words: str | None = None,
        *,
        like: str | None = None,
        by: str | None = None,
        where: str | None = None,
        limit: int = _SHOWN_CLIPS,
    ) -> Clips:
        """The clips closest to some words, or to another clip, best first.

        Each row is one of `clips`, with `search_cosine` (of the clip's closest text or frame) and
        `search_seconds` (when that is) before its columns.

        words: compared with the texts that embed_texts embedded, or else with the frames of
            embed_clips. Its model embeds the words, and stays loaded for the next search.
        like: the id of a clip instead of words.
        by: the label of the stage whose embeddings are compared.
        where: an SQL condition over `clips`.
        """
        from clipmill.pipeline.subsets.search import (
            clip_vector,
            closest,
            searched_step,
            words_embedder,
        )

        if (words is None) == (like is None):
            raise UsageError("give words to search for, or a clip's id with like; one of both")
        if words is not None and not words.strip():
            raise UsageError("the words to search for are empty")
        if limit < 1:
            raise UsageError(f"limit: {limit} is not a number of clips; give 1 or more")
        with self._asking() as catalog, extras_explained("models"):
            step = searched_step(catalog.layout, by, words=words is not None)
            if words is not None:
                place = str(step.folder)
                if place not in self._embedders:
                    self._embedders[place] = words_embedder(catalog.layout, step)
                towards = self._embedders[place](words)
            else:
                towards = clip_vector(catalog, step, str(like))
            found = closest(catalog, step, towards, limit=limit, where=where, without=like)
            ids = ", ".join(map(literal, found.clip_ids)) or "NULL"
            clips = catalog.relation(f"SELECT * FROM clips WHERE clip_id IN ({ids})")
            rows = clips.to_arrow_table()
        return Clips(_dataset(self), _in_order(rows, found.clip_ids, found.cosines, found.seconds))


def _in_order(
    rows: pa.Table, ids: list[str], cosines: list[float], seconds: list[float | None]
) -> pa.Table:
    place = {clip_id: at for at, clip_id in enumerate(ids)}
    rows = rows.take(
        pa.array(sorted(range(len(rows)), key=lambda i: place[rows["clip_id"][i].as_py()]))
        if len(rows)
        else pa.array([], pa.int64())
    )
    at = [place[clip_id] for clip_id in rows["clip_id"].to_pylist()]
    found = {
        "search_cosine": pa.array([cosines[i] for i in at], pa.float64()),
        "search_seconds": pa.array([seconds[i] for i in at], pa.float64()),
    }
    return pa.table({**found, **{name: rows[name] for name in rows.column_names}})


def _dataset(searches: Searches) -> Dataset:
    from clipmill.dataset import Dataset

    assert isinstance(searches, Dataset)
    return searches
