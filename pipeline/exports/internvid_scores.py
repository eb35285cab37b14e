"""Determines which columns may be exported as InternVid's own scores.

`UMT_Score` is UMT-SIM's, and `Aesthetic_Score` the LAION predictor's maximum over frames. Scores
of another scorer are on another scale, so they are not written under these names.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.exports.lines import AESTHETIC, UMT
from clipmill.schemas.sql_text import quoted

GIVEN = "take_given_score"
# The paper names no head; the recipe `internvid` uses V2, and V1 has another scale.
LAION_V2 = "*sac+logos+ava1-l14-linearMSE*"
# Names of a folder with UMT-L/16's weights; as in the recipe internvid-flt.
_UMT_L16 = ("umt-l16*", "l16_*")
_UMT_FRAMES = 4


@dataclass(frozen=True)
class InternVidScores:
    """SQL over `clips` of the two columns, and messages about them."""

    columns: dict[str, str]
    notes: tuple[str, ...]


def internvid_scores(catalog: Catalog) -> InternVidScores:
    """The catalog's columns that are InternVid's scores; null if there is none."""
    found: dict[str, str] = {}
    others: dict[str, list[str]] = {AESTHETIC: [], UMT: []}
    for column, stage in _scores(catalog):
        if _is_umt(stage):
            found.setdefault(UMT, column)
        elif _is_laion(stage):
            # A published score takes precedence over one that was computed here.
            if stage["name"] == GIVEN or AESTHETIC not in found:
                found[AESTHETIC] = column
        elif stage["name"] == "score_aesthetic":
            others[AESTHETIC].append(column)
        elif "similarity" in column:
            others[UMT].append(column)
    notes = [_note(name, found.get(name), others[name]) for name in (AESTHETIC, UMT)]
    columns = {
        name: quoted(found[name]) if name in found else "CAST(NULL AS DOUBLE)"
        for name in (AESTHETIC, UMT)
    }
    return InternVidScores(columns, tuple(note for note in notes if note))


def _scores(catalog: Catalog) -> list[tuple[str, Mapping[str, Any]]]:
    """Columns that are scores, with the run's record of the stage that made each."""
    stages = {stage["stage"]: stage for stage in catalog.layout.stages}
    return [
        (name, stages[table.stage])
        for name, (table, column) in catalog.layout.clip_columns.items()
        if table.score == column and table.stage in stages
    ]


def _is_umt(stage: Mapping[str, Any]) -> bool:
    if stage["name"] == GIVEN:
        return _scorer(stage) == "umt-sim"
    if stage["name"] != "score_video_similarity":
        return False
    model = Path(str((stage["models"].get("model") or {}).get("reference", ""))).name
    return stage["settings"].get("frames_per_clip") == _UMT_FRAMES and any(
        fnmatch.fnmatchcase(model, name) for name in _UMT_L16
    )


def _is_laion(stage: Mapping[str, Any]) -> bool:
    if stage["name"] == GIVEN:
        return "laion" in _scorer(stage)
    if stage["name"] != "score_aesthetic" or stage["settings"].get("over_frames") != "max":
        return False
    head = Path(str((stage["models"].get("head") or {}).get("reference", ""))).name
    return fnmatch.fnmatchcase(head, LAION_V2)


def _scorer(stage: Mapping[str, Any]) -> str:
    return str(stage["settings"].get("scorer", "")).lower()


def _note(name: str, column: str | None, others: list[str]) -> str | None:
    if column is not None:
        return f"{name} is the column {column}"
    wanted = "UMT-SIM" if name == UMT else "LAION's aesthetic predictor V2, the largest over frames"
    instead = f"; {', '.join(others)} comes from another scorer, on another scale" if others else ""
    return f"{name} is null: the catalog has no score by {wanted}{instead}"
