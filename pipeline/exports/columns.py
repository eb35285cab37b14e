"""Defines an export's columns, where they come from, and which of them `--redact` leaves out.

A clip's row consists of columns of the `clips` view and of columns about its video, joined by
merging two sorted streams. Names that begin with an underscore are for internal use only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from clipmill.pipeline.catalog.catalog import Catalog
from clipmill.pipeline.catalog.views import usual_caption
from clipmill.pipeline.exports.request import ExportRequest
from clipmill.pipeline.exports.safe_rectangles import safe_columns
from clipmill.schemas.clocks import FILE_ZERO_SQL
from clipmill.schemas.errors import UsageError
from clipmill.schemas.sql_text import literal, quoted
from clipmill.schemas.words import did_you_mean

TEXT, PATH, FILE_ZERO, SOUND_BYTES, SUBTITLES, SUBTITLE_WORDS, DROPPED, MEDIA = (
    "_text",
    "_path",
    "_file_zero_seconds",
    "_sound_bytes",
    "_subtitles",
    "_subtitle_words",
    "_dropped",
    "_media",
)
SPAN = ("clip_id", "video_id", "start_seconds", "end_seconds", "duration_seconds")
# Columns about the video, by their names in an export; the first five are in `clips`.
_FACTS = {
    "url": "url",
    "title": "title",
    "language": "language",
    "category": "category",
    "query": "query",
    "extractor": "extractor",
    "source_id": "source_id",
    "license": "license",
    "uploader": "uploader",
    "description": "description",
    "video_duration_seconds": "duration_seconds",
    "codec": "codec",
    "has_audio": "has_audio",
    "sha256": "sha256",
}
# Columns about a video that every export needs for its counts.
_COUNTED = ("extractor", "license")
_PERSONAL = re.compile(r"(?:.*_)?(?:title|description|uploader)s?\Z", re.I)


@dataclass(frozen=True)
class Columns:
    """SQL expressions by name: over `clips`, and over `internal.known_videos` joined by it."""

    clips: Mapping[str, str]
    facts: Mapping[str, str]
    shown: tuple[str, ...]
    """The names that the files have, in order."""


def choose_columns(catalog: Catalog, request: ExportRequest, scores: Mapping[str, str]) -> Columns:
    """The columns for a format; UsageError if the caption is not a text column of `clips`.

    `scores` gives SQL over `clips` of further columns, by name (InternVid's two).
    """
    there = _types(catalog, "clips")
    _check_caption(request.caption, there)
    clips = {name: quoted(name) for name in SPAN}
    clips[TEXT] = quoted(request.caption)
    if request.caption == "caption":
        clips[TEXT] = usual_caption(catalog.layout.steps)
    if request.cut is not None:
        clips[MEDIA] = "media"
    facts = dict(_FACTS)
    if request.format == "internvid":
        facts = {name: _FACTS[name] for name in (*_COUNTED, "source_id")}
        clips |= scores
        shown: list[str] = []
    elif request.format == "interleaved":
        facts = {
            name: _FACTS[name] for name in ("url", "title", "language", *_COUNTED, "source_id")
        }
        shown = []
        if request.interleaving.documents != "a":
            facts |= {SUBTITLES: "subtitles", SUBTITLE_WORDS: "subtitle_words"}
    else:
        clips |= {
            name: _expression(name, kind, request)
            for name, kind in there.items()
            if name not in facts
        }
        # A scorer may have the same name as a column about the video.
        facts = {
            name: column
            for name, column in facts.items()
            if name not in there or name in ("url", "title", "language", "category", "query")
        }
        shown = [name for name in (*there, *facts) if not name.startswith("_")]
    sql = {name: quoted(column) for name, column in facts.items()}
    if request.cut is not None:
        sql[PATH] = "path"
        sql[FILE_ZERO] = FILE_ZERO_SQL
        sql[SOUND_BYTES] = _sound_bytes(_types(catalog, "videos"))
    if request.crop is not None:
        clips |= safe_columns(there, request.dataset)
    if request.redact:
        sql = {name: value for name, value in sql.items() if not _PERSONAL.match(name)}
        clips = {
            name: value
            for name, value in clips.items()
            if name.startswith("_") or not (_PERSONAL.match(name) or name == "extra")
        }
        if "url" in sql:
            sql["url"] = _address_without_names()
    if request.format == "interleaved":
        clips[DROPPED] = _dropped(request)
    names = {*clips, *sql}
    return Columns(clips, sql, tuple(dict.fromkeys(name for name in shown if name in names)))


def _sound_bytes(there: Mapping[str, str]) -> str:
    """The size of a file that was decoded completely and without an error; else null.

    With given spans, only the spans were decoded.
    """
    if "corrupt_frames" not in there:
        return "NULL::BIGINT"
    return "CASE WHEN corrupt_frames = 0 AND spans IS NULL THEN size_bytes END"


def _types(catalog: Catalog, view: str) -> dict[str, str]:
    description = catalog.execute(f"SELECT * FROM {view} LIMIT 0").description
    return {column[0]: str(column[1]) for column in description}


def _check_caption(caption: str, there: Mapping[str, str]) -> None:
    texts = [name for name, kind in there.items() if kind == "VARCHAR"]
    if caption in texts:
        return
    what = "is not text" if caption in there else "is not a column of clips"
    fitting = [name for name in texts if "caption" in name]
    raise UsageError(
        f"--caption {caption}: this {what}; {did_you_mean(caption, texts)}text columns: "
        f"{', '.join(fitting)}, or any other column of text"
    )


def _expression(name: str, kind: str, request: ExportRequest) -> str:
    # Hugging Face's `datasets` doesn't support maps.
    if request.format == "huggingface" and kind.startswith("MAP("):
        return f"map_entries({quoted(name)})"
    return quoted(name)


def _address_without_names() -> str:
    """The URL if it is a web address and doesn't reveal the title or the uploader.

    A local file's address is a path on somebody's machine, often with their name in it.
    """
    tells = " OR ".join(
        f"coalesce(contains(lower(url_decode(url)), lower(nullif(trim({name}), ''))), false)"
        for name in ("title", "uploader")
    )
    return f"CASE WHEN regexp_matches(url, '^https?://', 'i') AND NOT ({tells}) THEN url END"


def _dropped(request: ExportRequest) -> str:
    """Whether a document leaves the clip out; the same on every machine."""
    seed = literal(f":{request.interleaving.seed}")
    # The upper bits of the hash, as an exact fraction of 2**53.
    return (
        f"(md5_number_lower(clip_id || {seed}) >> 11)::DOUBLE / 9007199254740992 "
        f"< {request.interleaving.drop!r}"
    )
