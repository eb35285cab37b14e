"""WebDataset samples: `key.txt` and `key.json` of a clip, and their sizes in a tar file."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from clipmill.pipeline.exports.columns import TEXT
from clipmill.pipeline.exports.values import json_text, records
from clipmill.schemas.safe_rectangles import SAFE

JSON, SAMPLE_BYTES = "_json", "_sample_bytes"
BLOCK = 512
# A longer name is stored twice: as GNU tar's long name, and with the member.
LONGEST_NAME = 100
_SPAN = ("start_seconds", "end_seconds", "start_frame", "end_frame")
_CAPTIONS = ("caption", "caption_coarse", "captions_fine", "caption_given", "captions_given")
_VIDEO = (
    "url",
    "title",
    "language",
    "category",
    "query",
    "extractor",
    "source_id",
    "license",
    "uploader",
    "description",
    "video_duration_seconds",
    "fps",
    "width",
    "height",
    "codec",
    "has_audio",
    "sha256",
)
_SIDES = ("left", "top", "right", "bottom")
_MEDIA = ("media_frames", "media_width", "media_height", "media_has_audio", "media_bytes")


def render_samples(rows: pa.Table) -> pa.Table:
    """The rows with each one's JSON text, and the number of bytes of its sample in a tar file."""
    # Any number that a scorer made is a score; other results of stages are stored next to it.
    scores = [
        field.name
        for field in rows.schema
        if pa.types.is_floating(field.type)
        and field.name not in (*_SPAN, *_VIDEO, *SAFE, "duration_seconds")
        and not field.name.startswith(("media_", "_"))
    ]
    shown = [name for name in rows.column_names if not name.startswith("_")]
    texts, sizes = [], []
    for row, caption in zip(records(rows.select(shown)), rows[TEXT].to_pylist(), strict=True):
        key, path = row["clip_id"], row.get("media_path")
        size: Any = row.get("media_bytes")  # set for every cut file
        text = json_text(_sample(row, caption, scores))  # modifies the row
        members = [
            (f"{key}.txt", len((caption or "").encode())),
            (f"{key}.json", len(text.encode())),
        ]
        if path is not None:
            members.append((f"{key}.{extension(path)}", size))
        texts.append(text)
        sizes.append(sum(member_bytes(name, size) for name, size in members))
    rows = rows.append_column(JSON, pa.array(texts, pa.string()))
    return rows.append_column(SAMPLE_BYTES, pa.array(sizes, pa.int64()))


def extension(path: str) -> str:
    return path.rpartition(".")[2]


def member_bytes(name: str, size: int) -> int:
    """The size of a file in a tar file, with its header."""
    header = BLOCK
    if len(name) > LONGEST_NAME:
        header += BLOCK + _whole_blocks(len(name) + 1)
    return header + _whole_blocks(size)


def _whole_blocks(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _sample(row: dict[str, Any], caption: str | None, scores: list[str]) -> dict[str, Any]:
    span: dict[str, Any] = {"asked": {name: row.pop(name) for name in _SPAN if name in row}}
    row.pop("media", None)  # a sample's `media` is about its file
    start, end = row.pop("media_start_seconds", None), row.pop("media_end_seconds", None)
    if row.pop("media_path", None) is not None:
        span["true"] = {"start_seconds": start, "end_seconds": end}
    found: dict[str, Any] = {
        "clip_id": row.pop("clip_id"),
        "video_id": row.pop("video_id"),
        "text": caption,
        "span": span,
        "duration_seconds": row.pop("duration_seconds"),
        "captions": {name: row.pop(name) for name in _CAPTIONS if name in row},
        "scores": {name: row.pop(name) for name in scores},
    }
    if "media_crop_left" in row:
        true = {side: row.pop(f"media_crop_{side}") for side in _SIDES}
        asked = {side: row.pop(f"safe_{side}") for side in _SIDES}
        found["crop"] = None if true["left"] is None else {"asked": asked, "true": true}
    media = {name.removeprefix("media_"): row.pop(name) for name in _MEDIA if name in row}
    if media:
        found["media"] = media
    found["video"] = {name.removeprefix("video_"): row.pop(name) for name in _VIDEO if name in row}
    return found | row
