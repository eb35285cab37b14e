"""The recipe's description of one place that videos come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from clipmill.pipeline.ingest.list_text import check_encoding
from clipmill.pipeline.ingest.locators import bare, url_without_scheme
from clipmill.pipeline.ingest.platforms import looks_like_url
from clipmill.schemas.errors import UsageError

PLACES = ("path", "url", "search", "search_file")


class SourceSpec(BaseModel):
    """One item of `sources:`; exactly one of `path`, `url`, `search`, `search_file` is set."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    path: str | None = Field(
        None,
        min_length=1,
        description="a list (.csv .tsv .txt .json .jsonl .ndjson .parquet, optionally "
        "compressed: .gz .bz2 .xz .zst), a folder (searched recursively), a glob, or one media "
        "file; relative to the recipe's file",
    )
    url: str | None = Field(
        None, min_length=1, description="one video, playlist or channel, as supported by yt-dlp"
    )
    search: list[str] | None = Field(None, description="search terms", min_length=1)
    search_file: str | None = Field(
        None, description="a list of search terms, one per line or in a column"
    )
    url_column: str | None = Field(
        None,
        description="column of the list that holds the URL, path or search term; by default "
        "the first usual name (url, path, video, …)",
    )
    caption_column: str | None = Field(
        None,
        description="column of the list that holds the caption; by default the first usual "
        "name (caption, captions, sentence, text, …)",
    )
    span_columns: list[str] | None = Field(
        None,
        max_length=2,
        description="columns of the list that give the part of the video that "
        "a row describes: start and end, or one with both; by default the usual names "
        "(start_seconds and end_seconds, timestamp, …); none with []; an empty start is the "
        "video's",
    )
    columns: list[str] | None = Field(
        None, min_length=1, description="column names of a .csv or .tsv whose first line is a row"
    )
    encoding: str | None = Field(
        None,
        description="encoding of the list, by its Python name (cp1252, gbk, …); "
        "by default UTF-8, or what its byte order mark says",
    )
    platform: Literal["youtube"] | None = Field(
        None, description="platform whose ids the list holds instead of URLs"
    )
    results: int | None = Field(
        None,
        ge=1,
        description="maximum number of results per search term (20 by default), or of "
        "entries of a playlist or channel (all by default)",
    )
    search_engine: str = Field(
        "ytsearch",
        pattern=r"^[a-z]+search[a-z]*$",
        description="yt-dlp's prefix for where to search",
    )
    category: str | None = Field(None, description="category of all sources without one")
    language: str | None = Field(None, description="language of all sources without one")
    refresh: bool = Field(
        False,
        description="request playlists, channels and searches again on every run; by "
        "default the answer is kept with the dataset",
    )
    retries: int = Field(3, ge=0, description="retries for a playlist, channel or search")
    yt_dlp: dict[str, Any] = Field(
        {},
        description="options of yt-dlp's Python API for playlists, channels and searches, "
        "limited to those that a recipe may set (docs/sources.md)",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: Any) -> Any:
        if isinstance(value, str):
            text = bare(value)
            return {"url": text} if looks_like_url(text) else {"path": value}
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str | None) -> str | None:
        return None if value is None else check_encoding(value)

    @field_validator("search", mode="before")
    @classmethod
    def _one_term(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    @field_validator("yt_dlp")
    @classmethod
    def _known_options(cls, value: dict[str, Any]) -> dict[str, Any]:
        if value:
            from clipmill.stages.media.fetch.ytdlp_options import check_options

            check_options(value)
        return value

    @model_validator(mode="after")
    def _one_place(self) -> SourceSpec:
        given = [name for name in PLACES if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"a source needs exactly one of: {', '.join(PLACES)} "
                f"(given: {', '.join(given) or 'none'})"
            )
        return self


def source_from_argument(text: str) -> SourceSpec:
    """The source that `--sources PATH_OR_URL` names; a path is relative to the working folder."""
    if not text.strip():
        raise UsageError("sources: an empty path or URL")
    plain = bare(text)
    if plain.lower().startswith("file://"):
        plain = plain[len("file://") :]
    elif looks_like_url(plain):
        return SourceSpec(url=plain)
    elif url := url_without_scheme(plain, str(Path.cwd())):
        return SourceSpec(url=url)
    elif Path(text).expanduser().exists():
        plain = text
    return SourceSpec(path=str(Path(plain).expanduser().absolute()))
