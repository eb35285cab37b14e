"""The Arrow schema of every built-in table.

A table belongs to the step that writes it and lies in the folder of that step's label. Schemas
only grow: columns are added nullable, never renamed or retyped. Every step's table also carries
`rejection` and `error`; a row is *kept* when both are null.
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

# `captions` are all captions of the span where several were given; `caption` is the first of them.
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
# Of a kept row: something that it can do without, and that could not be had.
FAILED_PART = pa.struct([pa.field("part", pa.string()), *ERROR])
HOLE = pa.struct([("start_seconds", pa.float64()), ("end_seconds", pa.float64())])
FRAME = pa.struct([("frame_number", pa.int64()), ("seconds", pa.float64()), ("jpeg", pa.binary())])
TEXT_AT = pa.struct([("seconds", pa.float64()), ("text", pa.string())])
TAG = pa.struct([("tag", pa.string()), ("score", pa.float32())])

# What ingest writes. `url` is what the user gave (a URL, or a path in its absolute form);
# `path` is set for local files; `extractor` and `platform_id` where a platform's URL names its
# video without asking the network; `spans` where the user gave time stamps. `listed_in` is set for
# failures: the list, folder or pattern that they are in, null for what the recipe itself names.
# `captions` are all captions of the whole video where several were given, `caption` is the first.
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

# What download_videos writes, one row per source. `path` is relative to the dataset for downloaded
# files and absolute for referenced ones. Width and height are as displayed.
# All times, in all tables, are the video's, whose second 0 is the container's start time, as in
# players and `ffmpeg -ss`. `clock_starts_at_seconds` is the file's own time stamp there (0 for most
# MP4s, 1.4 for an MPEG-TS); null in rows of older versions, whose second 0 is the file's time 0.
# `starts_at_seconds` is the time in the video at which the file begins: null but for files that
# hold a section of it. `pixel_format`, `color_transfer` and `color_primaries` have FFmpeg's names,
# null where the file doesn't say: HDR10 is `smpte2084`, HLG `arib-std-b67`.
# `subtitle_words` runs parallel to `subtitles`: the words of each line with the times at which they
# are said, where those are known.
# `failed_parts` are failures of what a kept row lacks (`subtitles`, `sound`); `retry` asks for just
# those.
VIDEOS = pa.schema(
    [
        pa.field("source_key", pa.string(), nullable=False),
        ("video_id", pa.string()),
        ("url", pa.string()),
        ("extractor", pa.string()),
        ("source_id", pa.string()),
        ("title", pa.string()),
        ("description", pa.string()),
        ("uploader", pa.string()),
        ("tags", pa.list_(pa.string())),
        ("license", pa.string()),
        ("language", pa.string()),
        ("category", pa.string()),
        ("query", pa.string()),
        ("caption_given", pa.string()),
        ("duration_seconds", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("codec", pa.string()),
        ("has_audio", pa.bool_()),
        ("size_bytes", pa.int64()),
        ("sha256", pa.string()),
        ("path", pa.string()),
        ("downloaded_at", pa.timestamp("us", tz="UTC")),
        ("subtitles", pa.list_(SUBTITLE)),
        ("spans", pa.list_(SPAN)),
        ("extra", pa.map_(pa.string(), pa.string())),
        ("starts_at_seconds", pa.float64()),
        ("subtitle_words", pa.list_(pa.list_(TEXT_AT))),
        ("clock_starts_at_seconds", pa.float64()),
        ("pixel_format", pa.string()),
        ("color_transfer", pa.string()),
        ("color_primaries", pa.string()),
        ("captions_given", pa.list_(pa.string())),
        ("failed_parts", pa.list_(FAILED_PART)),
        *OUTCOME,
    ]
)

# What the decode pass of split_clips writes, one row per video. The lists run parallel: one entry
# per decoded frame, in presentation order. `frame_numbers` count from the file's first frame.
# `holes` are times in which neither a picture nor a sound is there, null where there are none.
# Detector statistics are doubles so that cuts made from them equal cuts made from the pixels.
# `tone_mapped`: kept frames show ordinary dynamic range, the video has a high one.
# `corrupt_seconds` are the times of pictures that were decoded with errors, or are lost, and
# `corrupt_frames` how many these are; null in exact mode, whose readers do not tell.
SCANS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("fps", pa.float64()),
        ("source_frames", pa.int64()),
        ("decoded_frames", pa.int64()),
        ("end_seconds", pa.float64()),
        ("frame_numbers", pa.list_(pa.int64())),
        ("seconds", pa.list_(pa.float64())),
        ("statistics", pa.map_(pa.string(), pa.list_(pa.float64()))),
        ("motion", pa.list_(pa.float32())),
        ("sharpness", pa.list_(pa.float32())),
        ("brightness", pa.list_(pa.float32())),
        ("tone_mapped", pa.bool_()),
        ("holes", pa.list_(HOLE)),
        ("corrupt_seconds", pa.list_(pa.float64())),
        ("corrupt_frames", pa.int64()),
        *OUTCOME,
    ]
)

# The frames that the decode pass kept: a cache, JPEG, one row group a video.
FRAMES = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        ("frame_number", pa.int64()),
        ("seconds", pa.float64()),
        ("jpeg", pa.binary()),
    ]
)

# Every shot that was found, also those that gave no clip (`rule` says why).
SHOTS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        ("shot", pa.int32()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("n_clips", pa.int32()),
        ("rule", pa.string()),
    ]
)

# What split_clips writes. The key is the video; a video that was rejected or failed is one row
# whose clip_id is null. `end_frame` is exclusive, as `end_seconds` is. `corrupt_frames` counts the
# clip's pictures that were decoded with errors, or are lost.
CLIPS = pa.schema(
    [
        pa.field("video_id", pa.string(), nullable=False),
        ("clip_id", pa.string()),
        ("shot", pa.int32()),
        ("start_seconds", pa.float64()),
        ("end_seconds", pa.float64()),
        ("duration_seconds", pa.float64()),
        ("start_frame", pa.int64()),
        ("end_frame", pa.int64()),
        ("fps", pa.float64()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("motion", pa.float32()),
        ("motion_max", pa.float32()),
        ("sharpness", pa.float32()),
        ("brightness", pa.float32()),
        ("caption_given", pa.string()),
        ("extra", pa.map_(pa.string(), pa.string())),
        ("tone_mapped", pa.bool_()),
        ("captions_given", pa.list_(pa.string())),
        ("corrupt_frames", pa.int32()),
        *OUTCOME,
    ]
)


def clip_table(*fields: pa.Field | tuple[str, pa.DataType]) -> pa.Schema:
    """The schema of a table with one row per clip: key, the given columns, outcome."""
    return pa.schema([pa.field("clip_id", pa.string(), nullable=False), *fields, *OUTCOME])


TAGS = clip_table(("tags", pa.list_(TAG)))
CAPTIONS = clip_table(
    ("caption_coarse", pa.string()),
    ("coarse_seconds", pa.float64()),
    ("captions_fine", pa.list_(TEXT_AT)),
)
SUMMARIES = clip_table(("caption", pa.string()))
EMBEDDINGS = clip_table(
    # k frames of d numbers each, L2-normalised, in time order.
    ("embeddings", pa.list_(pa.list_(pa.float16()))),
    ("embedding_seconds", pa.list_(pa.float64())),
)
SIMILARITY = clip_table(
    ("similarity", pa.float32()),
    ("similarity_coarse", pa.float32()),
    ("similarity_fine", pa.float32()),
    ("similarity_reason", pa.string()),
)
AESTHETIC = clip_table(("aesthetic", pa.float32()), ("aesthetic_reason", pa.string()))
GIVEN_SCORE = clip_table(("given_score", pa.float64()), ("given_score_reason", pa.string()))
VIDEO_SIMILARITY = clip_table(
    ("video_similarity", pa.float32()), ("video_similarity_reason", pa.string())
)
FRAME_HASHES = clip_table(
    # 64-bit perceptual hashes in time order; null for a frame that shows nothing.
    ("frame_hashes", pa.list_(pa.uint64())),
    ("frame_hashes_reason", pa.string()),
)
