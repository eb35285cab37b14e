"""Usual names of a list's columns about parts of a video: times and captions."""

from __future__ import annotations

_STEMS = (
    "{}_seconds",
    "{}",
    "{}_time",
    "{}time",
    "time_{}",
    "{}_timestamp",
    "timestamp_{}",
    "{}_timestep",
    "{}_sec",
    "{}_second",
    "{}_s",
    "clip_{}",
    "span_{}",
    "segment_{}",
    "video_{}_time",
    "t_{}",
    "{}_ms",
    "{}_milliseconds",
)
STARTS = tuple(stem.format(word) for word in ("start", "begin") for stem in _STEMS)
ENDS = tuple(stem.format(word) for word in ("end", "stop") for stem in _STEMS)
SPANS = (
    "timestamp",
    "timestamps",
    "time_stamp",
    "time_stamps",
    "span",
    "spans",
    "segment",
    "segments",
    "interval",
    "intervals",
    "time_range",
    "time_ranges",
)
PARTS = ("clips", "clip", "annotations", "annotation", "events", "scenes", "shots")
"""Columns that hold spans if every entry of their lists has times; otherwise anything."""

CAPTIONS = (
    "caption",
    "captions",
    "sentence",
    "sentences",
    "dense_caption",
    "text",
    "texts",
    "short_caption",
    "cap",
    "caps",
)


def is_milliseconds(word: str) -> bool:
    return word.endswith(("_ms", "_milliseconds"))
