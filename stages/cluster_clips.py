"""cluster_clips: the cluster of each clip among clips with similar embeddings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import ClassVar

import numpy as np
import pyarrow as pa
from pydantic import Field

from clipmill.schemas.tables import clip_table
from clipmill.stages.models.clusters import Centres, fit_centres, holds_vectors
from clipmill.stages.protocol import Stage, Transform, Workspace, resource
from clipmill.stages.wires import Kind, check_column

CLUSTERS = clip_table(
    ("cluster", pa.int32()),
    # 1 − the cosine of the clip's vector and the centre's.
    ("cluster_distance", pa.float32()),
    ("cluster_reason", pa.string()),
)
_NO_EMBEDDING = "the clip has no embedding"
_NO_DIRECTION = "its embedding has no direction: not finite, or zero"
_VECTORS = Kind("embeddings: lists of vectors, or vectors", holds_vectors)


class ClusterClips(Stage):
    """Spherical k-means over stored embeddings: the nearest of the centres, and how far it is.

    The centres are found once, before the first shard, among the clips that have embeddings then
    (of more than `sample_clips`, among that many, drawn by a hash of the clip's id). Later shards
    are assigned to the same centres. A higher `fit` finds new ones, and assigns all clips anew.
    Cluster 0 has the most clips of the sample. The result is the same on every machine, whatever
    the number of workers and the order of shards.
    """

    name: ClassVar[str] = "cluster_clips"
    writes: ClassVar[pa.Schema] = CLUSTERS
    robust: ClassVar[bool] = True
    fits: ClassVar[bool] = True

    embeddings: str = Field(
        "embed_clips",
        description="label of the stage whose embeddings are clustered; `label.column` if the "
        "column isn't called `embeddings`",
    )
    clusters: int | None = Field(
        None,
        ge=1,
        description="number of clusters; by default the square root of the number of clips with "
        "embeddings when the centres are found (9 of 74 clips, 1000 of a million), and at most "
        "sample_clips / 64. There are fewer if fewer clips differ",
    )
    sample_clips: int = Field(
        2**18,
        ge=1,
        description="clips among which the centres are found, if there are more; the memory for "
        "it is 6 bytes per number of their vectors",
    )
    seed: int = Field(0, ge=0, description="random seed of the first centres")
    fit: int = Field(
        1, ge=1, description="raise it to find new centres among all clips that are there now"
    )

    batch_rows: int = resource(2048, ge=1, description="rows passed to the stage at a time")

    @property
    def _place(self) -> str:
        """The column of the embeddings, as LABEL.COLUMN."""
        return self.embeddings if "." in self.embeddings else f"{self.embeddings}.embeddings"

    def columns_read(self) -> tuple[str, ...]:
        return (f"{self._place} as embeddings",)

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        check_column(f"embeddings is {self.embeddings}", self._place, before, _VECTORS)

    def fit_on(self, rows: Iterable[pa.Table]) -> pa.Table | None:
        return fit_centres(rows, clusters=self.clusters, sample=self.sample_clips, seed=self.seed)

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        centres = None if workspace.fitted is None else Centres(workspace.fitted)

        def transform(batch: pa.Table) -> pa.Table:
            numbers = np.full(batch.num_rows, -1, np.int32)
            away = np.full(batch.num_rows, np.nan, np.float32)
            if centres is not None:
                numbers, away = centres.of(batch)
            lacks = numbers < 0
            reasons = np.where(batch["embeddings"].is_valid(), _NO_DIRECTION, _NO_EMBEDDING)
            return pa.table(
                {
                    "clip_id": batch["clip_id"],
                    "cluster": pa.array(numbers, mask=lacks),
                    "cluster_distance": pa.array(away, mask=lacks),
                    "cluster_reason": pa.array(reasons, pa.string(), mask=~lacks),
                }
            )

        yield transform
