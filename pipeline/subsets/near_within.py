"""Near-duplicates within groups, such as clusters: exact, and only new clips are compared.

All pairs of a group are compared, so the result is that of a full comparison within groups,
however often clips were added in between: whether a pair is near depends on nothing else. Pairs of
different groups are not found. What was compared is kept (`compared_clips.py`).
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from clipmill.pipeline.subsets.compared_clips import (
    BLOCKS,
    PAIRS,
    Block,
    ComparedClips,
    write_record,
)
from clipmill.schemas.errors import UsageError
from clipmill.schemas.words import counted
from clipmill.stages.models.integer_vectors import VectorStore

_ROWS_AT_A_TIME = 2048
# A group in which a clip has more near ones than this is not kept as pairs.
_PAIRS_PER_CLIP = 64
# Comparisons of one group, at about 10¹⁰ per second.
_MOST_COMPARISONS = 4e11
_CANDIDATES = "work.grouped"
_KNOWN = "work.known"


@dataclass(frozen=True)
class NewClips:
    """Reads the embeddings of clips that were not compared yet.

    `rows` gives `rank` and `embeddings` of the table `work.fresh`, whose `rank` is a clip's row in
    it; `shards` says which shards that reads, with marks of their files.
    """

    rows: Callable[[], pa.RecordBatchReader]
    shards: Callable[[], dict[str, list[int]]]


def near_within(
    connection: Any, compared: ComparedClips, new: NewClips, *, min_cosine: float, scratch: Path
) -> np.ndarray:
    """Ranks to remove: the cosine with an earlier one of the same group is at least `min_cosine`.

    `work.grouped` has the candidates: rank, clip_id, grp, and _base and _retry of their shard.
    """
    _match(connection, compared)
    ((fresh,),) = connection.execute("SELECT count(*) FROM work.fresh").fetchall()
    if fresh:
        _Comparison(connection, compared, min_cosine, scratch).add(new)
        _match(connection, compared)
    if not compared.segments:
        return np.empty(0, np.int64)
    gone = _gone_by_pairs(connection, compared, min_cosine)
    dense = [_gone_in_dense(connection, compared, grp, min_cosine) for grp in _dense(compared)]
    return np.unique(np.concatenate([gone, *dense]))


def _match(connection: Any, compared: ComparedClips) -> None:
    """Tells candidates that were compared from those that were not: `work.known`, `work.fresh`."""
    connection.execute(
        f"CREATE OR REPLACE TABLE {_KNOWN} "
        "(rank BIGINT, entry BIGINT, squares INTEGER, grp VARCHAR)"
    )
    for segment in compared.segments:
        with _shown(connection, segment.folder / "clips.parquet") as clips:
            connection.execute(
                f"INSERT INTO {_KNOWN} SELECT c.rank, {segment.first} + e.place, e.squares, c.grp "
                f"FROM {_CANDIDATES} AS c JOIN {clips} AS e USING (clip_id, grp, _base, _retry)"
            )
    connection.execute(
        "CREATE OR REPLACE TABLE work.fresh AS SELECT clip_id, grp, _base, _retry, row_number() "
        "OVER (ORDER BY grp, clip_id) - 1 AS rank FROM "
        f"(SELECT * FROM {_CANDIDATES} ANTI JOIN {_KNOWN} USING (rank))"
    )


@contextlib.contextmanager
def _shown(connection: Any, path: Path) -> Iterator[str]:
    """The name under which SQL, which may open no file of its own, sees a file's rows."""
    connection.register("given_rows", pads.dataset(path))
    try:
        yield "given_rows"
    finally:
        connection.unregister("given_rows")


def _gone_by_pairs(connection: Any, compared: ComparedClips, min_cosine: float) -> np.ndarray:
    gone = []
    for segment in compared.segments:
        with _shown(connection, segment.folder / "pairs.parquet") as pairs:
            found = connection.execute(
                f"SELECT DISTINCT greatest(a.rank, b.rank) AS rank FROM {pairs} AS p "
                f"JOIN {_KNOWN} AS a ON a.entry = p.one JOIN {_KNOWN} AS b ON b.entry = p.other "
                f"WHERE p.product >= CAST('{min_cosine!r}' AS DOUBLE) "
                "* sqrt(CAST(a.squares AS DOUBLE) * CAST(b.squares AS DOUBLE))"
            ).fetchnumpy()
        gone.append(np.asarray(found["rank"], np.int64))
    return np.concatenate(gone)


def _dense(compared: ComparedClips) -> list[str]:
    """The groups whose pairs are not kept."""
    return sorted(
        {
            grp
            for segment in compared.segments
            for grp, block in segment.blocks().items()
            if block.dense
        }
    )


def _gone_in_dense(
    connection: Any, compared: ComparedClips, grp: str, min_cosine: float
) -> np.ndarray:
    """The same for one group whose pairs are not kept."""
    found = connection.execute(
        f"SELECT rank, entry FROM {_KNOWN} WHERE grp = ? AND squares IS NOT NULL ORDER BY rank",
        [grp],
    ).fetchnumpy()
    ranks, entries = (np.asarray(found[name], np.int64) for name in ("rank", "entry"))
    vectors = np.empty((len(ranks), compared.width), np.float32)
    for segment in compared.segments:
        own = (entries >= segment.first) & (entries < segment.first + segment.clips)
        vectors[own] = segment.vectors()[entries[own] - segment.first]
    gone = np.zeros(len(ranks), bool)
    for later, earlier, _ in _near_pairs(vectors, vectors, min_cosine, same=True):
        gone[np.maximum(later, earlier)] = True
    return ranks[gone]


def _near_pairs(
    ones: np.ndarray, others: np.ndarray, min_cosine: float, *, same: bool = False
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The rows of near pairs and their products, in pieces; of the `same` rows each pair once."""
    squares = _squares(ones), _squares(others)
    for start in range(0, len(ones), _ROWS_AT_A_TIME):
        part = slice(start, start + _ROWS_AT_A_TIME)
        for begin in range(0, start + 1 if same else len(others), _ROWS_AT_A_TIME):
            piece = slice(begin, begin + _ROWS_AT_A_TIME)
            products = ones[part] @ others[piece].T
            lengths = np.sqrt(squares[0][part, None] * squares[1][None, piece])
            near = products >= min_cosine * lengths
            one, other = np.nonzero(np.tril(near, -1) if same and begin == start else near)
            yield one + start, other + begin, products[one, other]


def _squares(vectors: np.ndarray) -> np.ndarray:
    return np.asarray(np.einsum("ij,ij->i", vectors, vectors), np.float64)


@dataclass(frozen=True)
class _Comparison:
    """Makes a segment of new clips, and compares them with those of their group."""

    connection: Any
    compared: ComparedClips
    min_cosine: float
    scratch: Path

    def add(self, new: NewClips) -> None:
        before = [(one.first, one.blocks(), one.vectors()) for one in self.compared.segments]
        first, lowest = self.compared.count, self.compared.min_cosine
        floor = self.min_cosine if lowest is None else min(lowest, self.min_cosine)
        with (
            self.compared.new_segment() as folder,
            tempfile.TemporaryDirectory(dir=self.scratch) as unsorted,
        ):
            shards = new.shards()
            store = VectorStore(new.rows(), Path(unsorted) / "vectors")
            vectors = self._write_vectors(folder, store)
            clips = self._write_clips(folder, np.sort(store.ranks), vectors)
            blocks = self._blocks(np.sort(store.ranks))
            dense = set()
            with pq.ParquetWriter(folder / "pairs.parquet", PAIRS, compression="zstd") as writer:
                for grp, (start, stop) in blocks.items():
                    there = [
                        (number, own[grp], known)
                        for number, own, known in before
                        if grp in own and not own[grp].dense
                    ]
                    was_dense = any(grp in own and own[grp].dense for _, own, _ in before)
                    pairs = None
                    if not was_dense:
                        _check_size(grp, stop - start, [block for _, block, _ in there])
                        pairs = _pairs_of(vectors, start, stop, first, there, floor)
                    if pairs is None:
                        dense.add(grp)
                    elif pairs.num_rows:
                        writer.write_table(pairs)
            table = {
                "grp": list(blocks),
                "start": [start for start, _ in blocks.values()],
                "stop": [stop for _, stop in blocks.values()],
                "dense": [grp in dense for grp in blocks],
            }
            pq.write_table(pa.table(table, schema=BLOCKS), folder / "blocks.parquet")
            write_record(
                folder,
                clips=clips,
                vectors=len(vectors),
                width=vectors.shape[1],
                min_cosine=floor,
                shards=shards,
            )

    def _write_vectors(self, folder: Path, store: VectorStore) -> np.ndarray:
        """The vectors in the order of ranks; returns them as they lie on disk."""
        width = store.width or self.compared.width
        if self.compared.width not in (0, width):
            raise UsageError(
                f"embeddings of {self.compared.width} and of {width} numbers are mixed"
            )
        order = np.argsort(store.ranks)
        path = folder / "vectors.bin"
        with path.open("wb") as file:
            for start in range(0, len(order), _ROWS_AT_A_TIME):
                rows = store.take(order[start : start + _ROWS_AT_A_TIME])
                file.write(np.ascontiguousarray(rows.astype(np.int16)).data)
        if not len(order):
            return np.empty((0, width), np.int16)
        return np.memmap(path, np.int16, "r", shape=(len(order), width))

    def _write_clips(self, folder: Path, ranks: np.ndarray, vectors: np.ndarray) -> int:
        """The clips with vectors in the vectors' order, then those without; returns how many."""
        squares = np.empty(len(vectors), np.int32)
        for start in range(0, len(vectors), _ROWS_AT_A_TIME):
            part = slice(start, start + _ROWS_AT_A_TIME)
            squares[part] = _squares(vectors[part].astype(np.float32))
        self.connection.register("given_squares", pa.table({"rank": ranks, "squares": squares}))
        rows = self.connection.sql(
            "SELECT clip_id, grp, _base, _retry, squares, row_number() OVER (ORDER BY squares IS "
            "NULL, rank) - 1 AS place FROM work.fresh LEFT JOIN given_squares USING (rank) "
            "ORDER BY place"
        ).to_arrow_reader(100_000)
        count = 0
        with pq.ParquetWriter(folder / "clips.parquet", rows.schema, compression="zstd") as writer:
            for batch in rows:
                writer.write_batch(batch)
                count += batch.num_rows
        self.connection.unregister("given_squares")
        return count

    def _blocks(self, ranks: np.ndarray) -> dict[str, tuple[int, int]]:
        """By group, from which to which vector it goes."""
        self.connection.register(
            "given_places", pa.table({"rank": ranks, "place": np.arange(len(ranks))})
        )
        rows = self.connection.execute(
            "SELECT grp, min(place), max(place) + 1 FROM work.fresh JOIN given_places "
            "USING (rank) GROUP BY grp ORDER BY 2"
        ).fetchall()
        self.connection.unregister("given_places")
        return {grp: (start, stop) for grp, start, stop in rows}


def _check_size(grp: str, clips: int, before: list[Block]) -> None:
    """UsageError if comparing these clips would take hours."""
    there = sum(block.stop - block.start for block in before)
    if clips * (clips / 2 + there) > _MOST_COMPARISONS:
        raise UsageError(
            f"{counted(clips + there, 'clip')} are in the group {grp!r}, too many to compare each "
            "with each; make more clusters, or leave out `within`"
        )


def _pairs_of(
    vectors: np.ndarray,
    start: int,
    stop: int,
    first: int,
    before: list[tuple[int, Block, np.ndarray]],
    min_cosine: float,
) -> pa.Table | None:
    """The near pairs of a group that have a new clip; None if they are too many to keep."""
    own = np.asarray(vectors[start:stop], np.float32)
    most = _PAIRS_PER_CLIP * (len(own) + sum(block.stop - block.start for _, block, _ in before))
    parts, count = [], 0
    pieces = [(first + start, own, True)]
    for number, block, known in before:
        others = np.asarray(known[block.start : block.stop], np.float32)
        pieces.append((number + block.start, others, False))
    for begins, others, same in pieces:
        for one, other, products in _near_pairs(own, others, min_cosine, same=same):
            count += len(one)
            if count > most:
                return None
            parts.append((one + first + start, other + begins, products.astype(np.int32)))
    columns = [np.concatenate(part) for part in zip(*parts, strict=True)]
    return pa.table(columns, schema=PAIRS)
