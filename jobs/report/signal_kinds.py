"""The signals that the page shows in a section of their own, and their columns in `clips`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from clipmill.pipeline.catalog.layout import Layout

VEILED_FROM = 0.8
"""From this NSFW score on, a clip's pictures are not recognisable on the page. Dark and animated
ones score 0.5 without being any such thing."""


@dataclass(frozen=True)
class SignalKind:
    """One number per clip: what makes it, and the words for it."""

    stage: str
    column: str
    title: str
    unit: str
    with_model: bool = True
    """Whether its stage has a model; without any such signal there is no section."""
    whole: bool = False
    more: tuple[str, ...] = ()
    """Further columns of the stage, which have no figure before all others have theirs."""


KINDS = (
    SignalKind(
        "measure_text",
        "text_area",
        "Text on the picture",
        "share of the picture under text, mean of the frames",
        more=(
            "text_area_max",
            "text_area_overlay",
            "text_area_subtitle",
            "text_area_scene",
            "text_boxes",
            "text_boxes_max",
            "text_subtitle_top",
            "text_subtitle_bottom",
        ),
    ),
    SignalKind("detect_speech", "speech_share", "Speech", "share of the clip's time with speech"),
    SignalKind(
        "detect_faces",
        "faces",
        "Faces",
        "faces in the frame that shows most",
        whole=True,
        more=("faces_mean", "face_area"),
    ),
    SignalKind(
        "score_nsfw", "nsfw", "NSFW", "score of the highest frame, 0 to 1", more=("nsfw_mean",)
    ),
    SignalKind("split_clips", "vmaf_motion", "Motion", "vmaf_motion, grey levels per frame", False),
    SignalKind("split_clips", "luminance", "Brightness", "luminance, 0 to 255", False),
    SignalKind("split_clips", "loudness", "Loudness", "LUFS", False),
)
CLUSTERS, CLUSTER, DISTANCE = "cluster_clips", "cluster", "cluster_distance"


@dataclass(frozen=True)
class FoundSignals:
    """The columns of `clips` that hold signals, by kind; those of the clusters, and their stage."""

    columns: dict[SignalKind, str]
    cluster: str | None = None
    distance: str | None = None
    clusters_of: str | None = None
    """The label of the embeddings that are clustered."""
    later: frozenset[str] = frozenset()
    """Columns of these stages that are not in the section."""

    def __bool__(self) -> bool:
        return self.cluster is not None or any(kind.with_model for kind in self.columns)

    @property
    def names(self) -> set[str]:
        """The columns that have their figure in the section."""
        found = [*self.columns.values(), self.cluster, self.distance] if self else []
        return {name for name in found if name is not None}

    def is_veiled(self, row: Mapping[str, Any]) -> bool:
        """Whether a clip's pictures must not be recognisable."""
        name = next((name for kind, name in self.columns.items() if kind.column == "nsfw"), None)
        value = row.get(name) if name else None
        return value is not None and value >= VEILED_FROM


def find_signals(layout: Layout) -> FoundSignals:
    """Of several stages of a kind, the first one counts."""
    made = layout.clip_columns
    places: dict[tuple[str | None, str], str] = {}
    for name, (table, column) in made.items():
        kind = table.schema.field(column).type
        if pa.types.is_floating(kind) or pa.types.is_integer(kind):
            places.setdefault((table.role, column), name)
    columns = {kind: place for kind in KINDS if (place := places.get((kind.stage, kind.column)))}
    later = {
        name
        for kind in columns
        for (stage, column), name in places.items()
        if stage == kind.stage and column in kind.more
    }
    cluster, distance = places.get((CLUSTERS, CLUSTER)), places.get((CLUSTERS, DISTANCE))
    of = None
    if cluster is not None:
        label = made[cluster][0].stage
        record = next((stage for stage in layout.stages if stage["stage"] == label), None)
        of = (record["settings"] if record else {}).get("embeddings")
    return FoundSignals(columns, cluster, distance if cluster else None, of, frozenset(later))
