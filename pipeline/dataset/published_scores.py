"""Known scores of published metadata, and which of them a dataset's sources came with.

A published row's columns are kept as text in the map `extra` of its span. Those that are scores
get a column of `clips`, under the name that the ready-made recipes give the same score.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.shards import committed_shards, shard_path, write_json
from clipmill.schemas.damage import DamagedFile, read_json, reading
from clipmill.schemas.folders import PUBLISHED, SOURCES

_ROWS_READ = 200


@dataclass(frozen=True)
class PublishedScore:
    """A score: its column of `clips`, its key in `extra`, and who computed it."""

    name: str
    column: str
    scorer: str


KNOWN_SCORES: dict[str, tuple[PublishedScore, ...]] = {
    "internvid": (
        PublishedScore("umt_sim", "UMT_Score", "UMT-SIM"),
        PublishedScore("aesthetic_given", "Aesthetic_Score", "LAION aesthetic, InternVid"),
    ),
    "panda-70m": (PublishedScore("panda_matching", "matching_score", "Panda-70M matching score"),),
    "koala-36m": (
        PublishedScore("koala_clarity", "clarity_score", "Koala-36M clarity"),
        PublishedScore("koala_aesthetic", "aesthetic_score", "Koala-36M aesthetic"),
        PublishedScore("koala_motion", "motion_score", "Koala-36M motion"),
        PublishedScore("koala_vtss", "video_training_suitability_score", "Koala-36M VTSS"),
    ),
    "openvid-1m": (
        PublishedScore(
            "openvid_consistency", "temporal consistency score", "OpenVid-1M temporal consistency"
        ),
        PublishedScore("openvid_aesthetic", "aesthetic score", "OpenVid-1M aesthetic"),
        PublishedScore("openvid_motion", "motion score", "OpenVid-1M motion"),
    ),
    "spatialvid": (
        PublishedScore("spatialvid_luminance", "luminance score", "SpatialVID luminance"),
        PublishedScore("spatialvid_aesthetic", "aesthetic score", "SpatialVID aesthetic"),
        PublishedScore("spatialvid_motion", "motion score", "SpatialVID motion"),
    ),
}
"""By the name of the published layout."""


@dataclass(frozen=True)
class Published:
    """What a dataset's sources came with."""

    spans: bool = False
    scores: tuple[PublishedScore, ...] = ()

    def with_more(self, other: Published) -> Published:
        """Both together; of two scores with one name, the first."""
        names = {score.name for score in self.scores}
        more = tuple(score for score in other.scores if score.name not in names)
        return Published(self.spans or other.spans, (*self.scores, *more))


def note_published(dataset: Path, found: Published) -> None:
    """Adds to what is noted about a dataset's sources."""
    before = _noted(dataset)
    if before is None:
        note_former(dataset)
        before = _noted(dataset)
    now = (before or Published()).with_more(found)
    if now != before:
        _write(dataset, now)


def _write(dataset: Path, found: Published) -> None:
    write_json(
        dataset / PUBLISHED,
        {"spans": found.spans, "scores": [vars(score) for score in found.scores]},
    )


def read_published(dataset: Path) -> Published:
    """What is noted; for a dataset of an earlier release, a cautious guess from its first shard."""
    if (found := _noted(dataset)) is not None:
        return found
    for shard in committed_shards(dataset / SOURCES)[:1]:
        # A damaged shard is reported by whatever reads it.
        with (
            contextlib.suppress(DamagedFile),
            reading(shard_path(dataset / SOURCES, shard)),
            pq.ParquetFile(shard_path(dataset / SOURCES, shard)) as file,
        ):
            for batch in file.iter_batches(_ROWS_READ, columns=["spans"]):
                return Published(True, published_in(batch["spans"]).scores)
    return Published()


def _noted(dataset: Path) -> Published | None:
    path = dataset / PUBLISHED
    with contextlib.suppress(FileNotFoundError, DamagedFile):
        value = read_json(path)
        with reading(path):
            scores = tuple(PublishedScore(**score) for score in value["scores"])
            return Published(bool(value["spans"]), scores)
    return None


def note_former(dataset: Path) -> None:
    """Notes what the sources of an earlier release came with, by looking at all of them."""
    if _noted(dataset) is not None:
        return
    found = Published()
    for shard in committed_shards(dataset / SOURCES):
        path = shard_path(dataset / SOURCES, shard)
        with reading(path), pq.ParquetFile(path) as file:
            if _has_spans(file.metadata):
                for batch in file.iter_batches(_ROWS_READ, columns=["spans"]):
                    found = found.with_more(published_in(batch["spans"]))
    _write(dataset, found)


def _has_spans(metadata: pq.FileMetaData) -> bool:
    """Whether any row has a span, by the statistics in a file's footer."""
    for group in range(metadata.num_row_groups):
        columns = (metadata.row_group(group).column(n) for n in range(metadata.num_columns))
        for column in columns:
            if column.path_in_schema == "spans.list.element.end_seconds":
                found = column.statistics
                return found is None or found.null_count < column.num_values
    return False


def published_in(spans: pa.Array | pa.ChunkedArray) -> Published:
    """What rows of `sources` came with, by the keys of their first spans."""
    has_spans = pc.fill_null(pc.greater(pc.list_value_length(spans), 0), False)
    at = pc.indices_nonzero(has_spans)
    if not len(at):
        return Published()
    # Only the beginning: to pick rows from nested columns takes time.
    end = at[min(len(at), _ROWS_READ) - 1].as_py() + 1
    there = spans.slice(0, end).filter(has_spans.slice(0, end))
    first = pc.struct_field(pc.list_element(there, 0), "extra")
    keys = {key for extra in first.to_pylist() for key, _ in extra or ()}
    return Published(True, scores_among(keys))


def scores_among(keys: Iterable[str]) -> tuple[PublishedScore, ...]:
    """The scores of the layouts whose first score is among the keys."""
    there = set(keys)
    found: dict[str, PublishedScore] = {}
    for scores in KNOWN_SCORES.values():
        if scores[0].column in there:
            found |= {
                one.name: one for one in scores if one.column in there and one.name not in found
            }
    return tuple(found.values())
