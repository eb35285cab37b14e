"""The layouts of published lists of clips, by their columns, and how the list reader takes them.

InternVid's is read by `pipeline/ingest/internvid.py`; the others are lists of sources with given
spans, whose columns differ. Checked against the publications' cards and readers of their files:
Panda-70M's lists have one row per video and lists in its cells; Koala-36M's one row per clip with a
pair of times; OpenVid-1M's name files that are one clip each, `seconds` long; MiraData's first
version has ids and two times, its later ones a URL and a pair; SpatialVID publishes its clips'
places in YouTube videos as SpatialVID-RAW; HowTo100M's speech is one JSON object by video id.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.pipeline.ingest.internvid_sql import END, START, YOUTUBE_ID
from clipmill.pipeline.ingest.source_lists import ListFile, Reading, word_of
from clipmill.pipeline.ingest.source_spec import SourceSpec
from clipmill.schemas.errors import UsageError

INTERNVID = "internvid"


@dataclass(frozen=True)
class Form:
    """Columns that tell a layout, in any spelling, and how its lists are to be read."""

    columns: tuple[str, ...]
    read: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Layout:
    """A publication and the forms of its lists; the first that fits is taken."""

    title: str
    forms: tuple[Form, ...]


_YOUTUBE = {"platform": "youtube"}
LAYOUTS: dict[str, Layout] = {
    "panda-70m": Layout(
        "Panda-70M",
        (
            Form(
                ("videoID", "url", "timestamp", "caption", "matching_score"), {"url_column": "url"}
            ),
        ),
    ),
    "koala-36m": Layout(
        "Koala-36M",
        (
            Form(
                ("videoID", "url", "timestamp", "caption", "clarity_score", "motion_score"),
                {"url_column": "url"},
            ),
        ),
    ),
    "openvid-1m": Layout(
        "OpenVid-1M",
        (
            Form(
                ("video", "caption", "aesthetic score", "temporal consistency score", "seconds"),
                {"url_column": "video", "span_columns": ["", "seconds"]},
            ),
        ),
    ),
    "miradata": Layout(
        "MiraData",
        (
            Form(
                ("video_url", "timestamp", "dense_caption", "short_caption"),
                {"url_column": "video_url", "caption_column": "dense_caption"},
            ),
            Form(
                ("video_id", "start_timestep", "end_timestep", "dense_caption"),
                {
                    "url_column": "video_id",
                    "span_columns": ["start_timestep", "end_timestep"],
                    "caption_column": "dense_caption",
                    **_YOUTUBE,
                },
            ),
        ),
    ),
    "spatialvid": Layout(
        "SpatialVID-RAW",
        (
            Form(
                ("YouTube id", "timestamp_start", "timestamp_end"),
                {
                    "url_column": "YouTube id",
                    "span_columns": ["timestamp_start", "timestamp_end"],
                    **_YOUTUBE,
                },
            ),
        ),
    ),
    "howto100m": Layout(
        "HowTo100M's speech",
        (
            Form(
                ("video_id", "start", "end", "text"),
                {
                    "url_column": "video_id",
                    "span_columns": ["start", "end"],
                    "caption_column": "text",
                    **_YOUTUBE,
                },
            ),
        ),
    ),
}
"""By the word of `--format`."""

_OF_INTERNVID = (YOUTUBE_ID, START, END)
_LOCATORS = ("url", "video", "video_url", "video_id", "youtube_id", "youtubeid", "id")


def specs_of(name: str, files: Sequence[Path]) -> list[SourceSpec]:
    """How to read files of a layout; UsageError with the likely layout for one of another."""
    return [_spec_of(name, Path(file).expanduser().absolute()) for file in files]


def _spec_of(name: str, path: Path) -> SourceSpec:
    layout = LAYOUTS[name]
    there = columns_of(path)
    for form in layout.forms:
        if (named := _named(form, there)) is not None:
            read = {
                setting: [named.get(word, word) for word in value]
                if isinstance(value, list)
                else named.get(value, value)
                for setting, value in form.read.items()
            }
            return SourceSpec(path=str(path), **read)
    needed = " or ".join(", ".join(form.columns) for form in layout.forms)
    raise UsageError(
        f"{path} is not a list of {layout.title}: it needs the columns {needed}; its columns: "
        f"{', '.join(there) or 'none'}{_instead(there)}"
    )


def _named(form: Form, there: Sequence[str]) -> dict[str, str] | None:
    """The list's own spelling of a form's columns; None if one is missing."""
    by_word = {word_of(name): name for name in reversed(there)}
    named = {column: by_word.get(word_of(column)) for column in form.columns}
    if None in named.values():
        return None
    return {column: name for column, name in named.items() if name is not None}


def _instead(there: Sequence[str]) -> str:
    found = layout_of(there)
    return f". It looks like --format {found}" if found else ""


def layout_of(there: Sequence[str]) -> str | None:
    """The layout that a list's columns are those of."""
    if {name.lower() for name in _OF_INTERNVID} <= {name.lower() for name in there}:
        return INTERNVID
    for name, layout in LAYOUTS.items():
        if any(_named(form, there) is not None for form in layout.forms):
            return name
    return None


def hint_of(path: Path) -> str:
    """A sentence with the format that a file looks like; empty if it looks like none."""
    try:
        return _instead(columns_of(path))
    except UsageError:
        return ""


def columns_of(path: Path) -> list[str]:
    """A list's columns, by its first rows; UsageError if it can't be read as a list."""
    reading = Reading(path)
    for row in ListFile(path).read(_LOCATORS, reading):
        if row.problem is None:
            return [*([reading.column] if reading.column else []), *row.columns]
    return []
