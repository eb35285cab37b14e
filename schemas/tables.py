"""The schema of `sources`, and the types that tables share; a stage's schema is in its own file.

A table belongs to the step that writes it and lies in the folder of that step's label. Schemas
only grow: columns are added nullable, never renamed or retyped. Every step's table also carries
`rejection` and `error`; a row is *kept* when both are null. All times are the video's, whose
second 0 is the container's start time, as in players and `ffmpeg -ss`.
"""

from __future__ import annotations

import pyarrow as pa

ERROR = pa.struct(
    [
        ("kind", pa.string()),
        ("message", pa.string()),
        ("attempts", pa.int32()),
        ("at", pa.timestamp("us", tz="UTC")),
    ]
)
REJECTION = pa.struct([("rule", pa.string()), ("detail", pa.string())])
OUTCOME = [pa.field("rejection", REJECTION), pa.field("error", ERROR)]

# `captions` are all captions of the span if several were given; `caption` is the first of them.
SPAN = pa.struct(
    [
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("caption", pa.string()),
        ("extra", pa.map_(pa.string(), pa.string())),
        ("captions", pa.list_(pa.string())),
    ]
)
SUBTITLE = pa.struct(
    [
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("text", pa.string()),
        ("language", pa.string()),
        ("automatic", pa.bool_()),
    ]
)
# Optional parts of a kept row that could not be fetched.
FAILED_PART = pa.struct([pa.field("part", pa.string()), *ERROR])
HOLE = pa.struct([("start_seconds", pa.float64()), ("end_seconds", pa.float64())])
FRAME = pa.struct([("frame_number", pa.int64()), ("seconds", pa.float64()), ("jpeg", pa.binary())])
TEXT_AT = pa.struct([("seconds", pa.float64()), ("text", pa.string())])
TAG = pa.struct([("tag", pa.string()), ("score", pa.float32())])
# Around something in a frame: sides as shares of the picture, from its upper left corner.
BOX = pa.struct(
    [
        ("seconds", pa.float64()),
        ("left", pa.float32()),
        ("top", pa.float32()),
        ("right", pa.float32()),
        ("bottom", pa.float32()),
        ("confidence", pa.float32()),
    ]
)
SCORE_AT = pa.struct([("seconds", pa.float64()), ("score", pa.float32())])

# The stages whose tables hold embeddings of clips, in a column of that name; the last of texts.
EMBEDDERS = ("embed_clips", "embed_images", "embed_texts")
TEXT_EMBEDDER = EMBEDDERS[-1]

# Written by ingest. `url` is what the user gave (a URL, or a path in its absolute form); `path` is
# set for local files; `extractor` and `platform_id` if a platform's URL identifies its video
# without a request; `spans` if the user gave times. `listed_in` is set for failures: the list,
# folder or pattern that they are in, null for what the recipe itself names. `captions` are all
# captions of the whole video if several were given, `caption` is the first.
SOURCES = pa.schema(
    [
        pa.field("source_key", pa.string(), nullable=False),
        ("position", pa.int64()),
        ("url", pa.string()),
        ("path", pa.string()),
        ("extractor", pa.string()),
        ("platform_id", pa.string()),
        ("video_id", pa.string()),
        ("spans", pa.list_(SPAN)),
        ("title", pa.string()),
        ("category", pa.string()),
        ("language", pa.string()),
        ("query", pa.string()),
        ("caption", pa.string()),
        ("extra", pa.map_(pa.string(), pa.string())),
        ("listed_in", pa.string()),
        ("captions", pa.list_(pa.string())),
        *OUTCOME,
    ]
)

CLIP_CAPTION = "caption_clip.caption_clip"
"""Where a caption of the whole clip is, unless a recipe says otherwise: LABEL.COLUMN."""


def clip_table(*fields: pa.Field | tuple[str, pa.DataType]) -> pa.Schema:
    """The schema of a table with one row per clip: key, the given columns, outcome."""
    return pa.schema([pa.field("clip_id", pa.string(), nullable=False), *fields, *OUTCOME])
