"""The rows of the tables `clips` and `shots`, without what signals add."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from clipmill.schemas.ids import clip_id
from clipmill.stages.clip_parts import Part, end_frame, times_inside


def shot_row(row: dict[str, Any], number: int, shot: Part, parts: list[Part]) -> dict[str, Any]:
    count = sum(part.rule is None for part in parts)
    return {
        "video_id": row["video_id"],
        "shot": number,
        "start_seconds": shot.start_seconds,
        "end_seconds": shot.end_seconds,
        "start_frame": row["frame_numbers"][shot.first] if shot.first < shot.last else None,
        "end_frame": end_frame(row, shot),
        "n_clips": count,
        "rule": None if count else parts[0].rule,
        "transition": shot.transition,
    }


def clip_row(row: dict[str, Any], number: int, part: Part) -> dict[str, Any]:
    # The difference at the first frame is that across the cut.
    motion = [m for m in row["motion"][part.first + 1 : part.last] if m is not None]
    return {
        "clip_id": clip_id(row["video_id"], part.start_seconds, part.end_seconds),
        "shot": number,
        "start_seconds": part.start_seconds,
        "end_seconds": part.end_seconds,
        "duration_seconds": part.end_seconds - part.start_seconds,
        "start_frame": row["frame_numbers"][part.first],
        "end_frame": end_frame(row, part),
        "fps": row["fps"],
        "width": row["width"],
        "height": row["height"],
        "motion": _mean(motion),
        "motion_max": max(motion, default=None),
        "sharpness": _mean(row["sharpness"][part.first : part.last]),
        "brightness": _mean(row["brightness"][part.first : part.last]),
        "caption_given": part.caption,
        "captions_given": part.captions,
        "extra": part.extra,
        "tone_mapped": row.get("tone_mapped"),
        "corrupt_frames": None
        if (times := row.get("corrupt_seconds")) is None
        else len(times_inside(times, part)),
    }


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
