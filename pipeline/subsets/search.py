"""Finds the clips whose texts or frames are closest to given words, or to another clip.

The words are embedded by the model that made the stored embeddings, as the newest run's record
names it. All embeddings are read once, in pieces, and only the closest clips are kept.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.catalog.layout import Layout
from clipmill.pipeline.subsets.stored_embeddings import embeddings_step
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.sql_text import literal
from clipmill.schemas.step_tables import StepTable, kept
from clipmill.schemas.tables import TEXT_EMBEDDER
from clipmill.stages.built_in import built_in_stage
from clipmill.stages.embed_clips import EmbedClips
from clipmill.stages.embed_texts import EmbedTexts
from clipmill.stages.models.vectors import frame_mean, stored, unit
from clipmill.stages.protocol import Stage

_CLIPS_AT_A_TIME = 4096

Vector = Callable[[str], np.ndarray]
"""Embeds words: an array of length 1."""


@dataclass(frozen=True)
class Closest:
    """The closest clips, best first."""

    clip_ids: list[str] = field(default_factory=list)
    cosines: list[float] = field(default_factory=list)
    """Of each clip: that of its closest text or frame."""
    seconds: list[float | None] = field(default_factory=list)
    """When that text or frame is; None for a text without a time."""


def searched_step(layout: Layout, label: str | None, *, words: bool) -> StepTable:
    """The step to search: the one with this label, else that of texts, else that of pictures."""
    made = [step for step in layout.steps if step.folder is not None]
    if label is None and words and any(step.role == TEXT_EMBEDDER for step in made):
        found = embeddings_step(layout, "text", option="--by")
    elif label is None and words and not any(step.role == "embed_clips" for step in made):
        found = embeddings_step(layout, "text", option="--by")  # says what is missing
    else:
        found = embeddings_step(layout, "embedding", label, option="--by")
    if words and found.role == "embed_images":
        raise UsageError(
            f"{found.step} has embeddings of pictures alone, which words can't be compared with; "
            "search those of embed_texts or embed_clips, or give a clip (--like)"
        )
    return found


def words_embedder(layout: Layout, step: StepTable) -> Vector:
    """What embeds words as the step's stage embedded texts or frames; loads its model."""
    stage = _stage(layout, step)
    if isinstance(stage, EmbedTexts):
        sentences = stage.load()
        prompt = sentences.layout.query_prompt
        return lambda words: sentences.embed_texts([words], prompt)[0]
    assert isinstance(stage, EmbedClips)  # the only other one with a text tower
    embedder = stage.load("text")
    return lambda words: embedder.embed_texts([words])[0]


def _stage(layout: Layout, step: StepTable) -> Stage:
    """The stage that made a step's table, with its settings in the newest run's record."""
    stages = layout.record["stages"] if layout.record else ()
    recorded = next((one for one in stages if one["stage"] == step.stage), None)
    if recorded is None:
        raise ClipmillError(f"no run's record names the settings of {step.step}")
    stage = built_in_stage(step.name).model_validate(recorded["settings"])
    for setting, reference in stage.references().items():
        before = recorded["models"][setting]["identity"]
        if reference.identity() != before:
            raise ClipmillError(
                f"{step.step}.{setting}: {reference} is not what it was when the embeddings were "
                f"made: {reference.identity()} instead of {before}; bring the former files back, "
                "or run again"
            )
    return stage


def closest(
    catalog: Catalog,
    step: StepTable,
    towards: np.ndarray,
    *,
    limit: int,
    where: str | None = None,
    without: str | None = None,
) -> Closest:
    """The clips with the largest cosine of a text or frame with a vector of length 1.

    `where` restricts them, as an SQL condition over `clips`; `without` leaves out a clip.
    """
    if where is not None:
        _choose(catalog, where)
    towards = unit(towards).astype(np.float32)
    ids = np.empty(0, object)
    cosines, seconds = np.empty(0, np.float32), np.empty(0)
    for batch in _rows(catalog, step, where is not None):
        clips, best, frames = _best_frames(batch.column("embeddings"), towards, step)
        if len(ids) == limit:
            near = best >= cosines[-1]
            clips, best, frames = clips[near], best[near], frames[near]
        if not len(clips):
            continue
        found = batch.take(pa.array(clips))
        ids = np.concatenate([ids, found.column("clip_id").to_numpy(zero_copy_only=False)])
        cosines = np.concatenate([cosines, best])
        seconds = np.concatenate([seconds, _times(found.column("embedding_seconds"), frames)])
        # A clip may be in two shards; in a tie the smaller id comes first.
        _, firsts = np.unique(ids, return_index=True)
        firsts = firsts[ids[firsts] != without]
        order = firsts[np.argsort(-cosines[firsts], kind="stable")][:limit]
        ids, cosines, seconds = ids[order], cosines[order], seconds[order]
    return Closest(
        ids.tolist(),
        cosines.astype(float).tolist(),
        [None if np.isnan(one) else float(one) for one in seconds],
    )


def clip_vector(catalog: Catalog, step: StepTable, clip_id: str) -> np.ndarray:
    """The direction of a clip's stored embeddings; UsageError if it has none."""
    rows = catalog.connection.cursor().sql(
        f"SELECT embeddings FROM ({kept(step, ['clip_id', 'embeddings'])}) "
        f"WHERE clip_id = {literal(clip_id)} AND embeddings IS NOT NULL LIMIT 1"
    )
    found = stored(rows.to_arrow_table()["embeddings"])
    if not found or not len(found[0]):
        raise UsageError(f"--like {clip_id}: {step.step} has no embedding of a clip with this id")
    return frame_mean(found[0])


def _choose(catalog: Catalog, where: str) -> None:
    catalog.make_work()
    chosen = catalog.ask(f"SELECT clip_id FROM clips WHERE ({where}\n)")
    catalog.connection.register("given_clips", chosen)
    catalog.connection.execute(
        "CREATE OR REPLACE TABLE work.searched AS SELECT DISTINCT clip_id FROM given_clips"
    )
    catalog.connection.unregister("given_clips")


def _rows(catalog: Catalog, step: StepTable, chosen: bool) -> pa.RecordBatchReader:
    """The stored embeddings, of the chosen clips if there are some."""
    columns = ["clip_id", "embeddings", "embedding_seconds"]
    only = "SEMI JOIN work.searched USING (clip_id)" if chosen else ""
    # A separate cursor: a result that is being read blocks its connection.
    return (
        catalog.connection.cursor()
        .sql(
            f"SELECT {', '.join(columns)} FROM ({kept(step, columns)}) {only} "
            "WHERE embeddings IS NOT NULL"
        )
        .to_arrow_reader(_CLIPS_AT_A_TIME)
    )


def _best_frames(
    column: pa.Array, towards: np.ndarray, step: StepTable
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the rows with embeddings: their places, largest cosines, and which frame has it."""
    counts = np.diff(column.offsets.to_numpy())
    rows = np.flatnonzero(counts)
    frames = column.flatten()
    numbers = frames.flatten().to_numpy(zero_copy_only=False)
    width = len(numbers) // max(1, len(frames))
    if not len(rows):
        return rows, np.empty(0, np.float32), rows
    if width != len(towards):
        raise ClipmillError(
            f"the embeddings of {step.step} have {width} numbers, those of its model {len(towards)}"
        )
    vectors = numbers.reshape(-1, width)
    lengths = np.linalg.norm(vectors, axis=1)
    # One without a direction comes last.
    cosines = np.divide(
        vectors @ towards, lengths, where=lengths > 0, out=np.full_like(lengths, -2)
    )
    starts = (np.cumsum(counts) - counts)[rows]
    best = np.maximum.reduceat(cosines, starts)
    is_best = np.flatnonzero(cosines == np.repeat(best, counts[rows]))
    owners = np.repeat(np.arange(len(rows)), counts[rows])[is_best]
    _, firsts = np.unique(owners, return_index=True)
    return rows, best, is_best[firsts] - starts


def _times(column: pa.Array, frames: np.ndarray) -> np.ndarray:
    """The time of one frame or text of each clip; NaN if it has none."""
    found = [
        times[frame] if times is not None and frame < len(times) else None
        for times, frame in zip(column.to_pylist(), frames.tolist(), strict=True)
    ]
    return np.array([np.nan if time is None else time for time in found], float)
