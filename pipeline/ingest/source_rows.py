"""Interprets rows of input: the source that each one names, its timestamps and columns."""

# A list may have a million rows, and path objects would take most of the time; `abspath` is
# intended, because a link counts under its own name.
# ruff: noqa: PTH100, PTH122
from __future__ import annotations

import functools
import glob
import os
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa

from clipmill.pipeline.ingest.given_spans import Roles, given, roles_of, text_of
from clipmill.pipeline.ingest.list_pieces import Piece, pieces
from clipmill.pipeline.ingest.list_text import list_suffix
from clipmill.pipeline.ingest.listed_rows import ListNote, ListPart, Source
from clipmill.pipeline.ingest.locators import YOUTUBE, url_or_path, youtube_clip
from clipmill.pipeline.ingest.ordered_threads import in_threads
from clipmill.pipeline.ingest.plain_rows import Named, PlainForm
from clipmill.pipeline.ingest.platforms import Identity, identify, looks_like_url
from clipmill.pipeline.ingest.playlists import Expander
from clipmill.pipeline.ingest.source_files import ALL_SUFFIXES, ARCHIVES, Finder
from clipmill.pipeline.ingest.source_lists import (
    LIST_SUFFIXES,
    QUERY_COLUMNS,
    YOUTUBE_COLUMNS,
    ListFile,
    ListRow,
    Reading,
    clean,
    word_of,
)
from clipmill.pipeline.ingest.source_spec import SourceSpec
from clipmill.schemas.errors import RowFailed, UsageError
from clipmill.schemas.ids import source_key
from clipmill.schemas.step_tables import EXPANDED_RULE
from clipmill.schemas.words import counted
from clipmill.stages.media.read.suffixes import MEDIA_SUFFIXES, has_media_head, suffix_of

DEFAULT_SEARCH_RESULTS = 20
_SEARCHES_AT_A_TIME = 4


def list_of(spec: SourceSpec, folder: Path) -> str | None:
    """The name of a list, a folder or a pattern, the same in every run; None for anything else.

    Relative paths are resolved against `folder`.
    """
    text = spec.path or spec.search_file
    return None if text is None else clean(str(_absolute(text, folder)))


def _absolute(text: str, folder: Path) -> Path:
    return Path(os.path.abspath(folder / Path(text).expanduser()))


def is_pattern_of_lists(text: str, folder: Path) -> bool:
    return (
        glob.has_magic(text)
        and list_suffix(Path(text)) in LIST_SUFFIXES
        and not os.path.lexists(_absolute(text, folder))
    )


class Reader:
    """Turns the recipe's items into rows, expanding lists of videos on sites."""

    def __init__(
        self,
        base_folder: Path,
        expander: Expander,
        has_failed: Callable[[str], bool],
        is_full: Callable[[], bool],
        take_suffixes: Collection[str] = (),
    ) -> None:
        self.finder = Finder(take_suffixes)
        self._base = base_folder
        self._expander = expander
        self._has_failed = has_failed
        self._is_full = is_full
        self.lists: list[ListNote] = []

    def lists_of(self, spec: SourceSpec) -> list[SourceSpec]:
        """One item for each list that a pattern like `lists/*.csv` matches; otherwise the item."""
        if spec.path is None or not is_pattern_of_lists(spec.path, self._base):
            return [spec]
        found = self.finder.lists_of_pattern(self._base, spec.path)
        return [spec.model_copy(update={"path": path}) for path in found] or [spec]

    def rows(self, spec: SourceSpec) -> Iterator[Source]:
        listed_in = list_of(spec, self._base)
        for source in self._rows(spec):
            source.listed_in = listed_in
            yield source

    def parts(self, spec: SourceSpec) -> Iterator[Source | ListPart]:
        """The same rows, those of lists as columns where that is possible."""
        path = None if spec.path is None else self._absolute(spec.path)
        if path is not None and path.is_file() and list_suffix(path) in LIST_SUFFIXES:
            note = ListNote(clean(str(path)), Reading(path))
            found = pieces(_list_file(spec, path), note.reading)
            if found is not None:
                self.lists.append(note)
                yield from self._of_pieces(spec, path, note, found)
                return
        yield from self.rows(spec)

    def _of_pieces(
        self, spec: SourceSpec, path: Path, note: ListNote, found: Iterator[Piece]
    ) -> Iterator[ListPart]:
        number, listed_in = len(self.lists) - 1, list_of(spec, self._base)
        form: PlainForm | None = None

        def read(piece: Piece) -> tuple[PlainForm, Piece, pa.Table, np.ndarray]:
            assert form is not None
            return form, piece, *form.read(piece)

        def with_form() -> Iterator[Piece]:
            nonlocal form
            for piece in found:
                form = form or self._form(spec, path, number, piece)
                yield piece

        with in_threads(read, with_form()) as tables:
            for how, piece, plain, is_plain in tables:
                others = piece.others + [
                    (int(piece.numbers[at]), piece.row(at))
                    for at in np.flatnonzero(~is_plain).tolist()
                ]
                if len(piece.numbers) or any(row.columns for _, row in others):
                    note.said.update(dict.fromkeys(how.roles.said()))
                if plain.num_rows:
                    note.say_spans(how.roles.spans)
                platform = YOUTUBE if how.bare_ids else None
                sources = []
                for place, row in sorted(others, key=lambda other: other[0]):
                    made = self._of_row(spec, row, path.parent, roles=how.roles, platform=platform)
                    for at, source in enumerate(made):
                        note.say_spans(source.spans_column)
                        source.row_of = number if at == 0 else None
                        source.listed_in = listed_in
                        sources.append((place, source))
                yield ListPart(number, piece.start, how.names, plain, sources)

    def _form(self, spec: SourceSpec, path: Path, number: int, piece: Piece) -> PlainForm:
        names = tuple(name for name in piece.names if name != piece.column)
        roles = _roles(spec, path, names, piece.column, is_first=True)
        platform = YOUTUBE if word_of(piece.column) in YOUTUBE_COLUMNS else spec.platform
        folder = str(path.parent)
        return PlainForm(
            roles,
            number,
            folder,
            platform == YOUTUBE,
            spec.category,
            spec.language,
            lambda text: _named(text, folder, platform),
        )

    def _rows(self, spec: SourceSpec) -> Iterator[Source]:
        if spec.path is not None:
            yield from self._of_path(spec, spec.path)
        elif spec.url is not None:
            yield from self._of_row(spec, ListRow("recipe", spec.url), self._base, ask=True)
        else:
            yield from self._of_searches(spec)

    def _of_path(self, spec: SourceSpec, text: str) -> Iterator[Source]:
        path = self._absolute(text)
        if path.is_dir():
            yield from map(_of_file, self.finder.in_folder(path))
            while self.finder.unreadable:
                yield _of_unreadable(*self.finder.unreadable.pop())
        elif path.is_file() and list_suffix(path) in LIST_SUFFIXES:
            yield from self._of_list(spec, path)
        elif path.is_file() and (has_media_head(str(path)) or self.finder.takes(str(path))):
            yield _of_file(str(path))
        elif path.is_file() and suffix_of(str(path)) in ARCHIVES:
            raise UsageError(
                f"sources: {path} is an archive, which is not opened; unpack it into a folder "
                "and name that, or a list of its files (docs/sources.md, Videos inside other files)"
            )
        elif path.is_file():
            suffix = path.suffix or ALL_SUFFIXES
            raise UsageError(
                f"sources: {path} is neither a list ({', '.join(LIST_SUFFIXES)}) nor, "
                f"by its name and first bytes, a video; `--set take_suffixes={suffix}`"
                " treats it as one"
            )
        elif glob.has_magic(text):
            yield from map(_of_file, self.finder.of_pattern(self._base, text))
        else:
            raise UsageError(f"sources: {path} does not exist")

    def _note(self, path: Path) -> tuple[int, ListNote]:
        note = ListNote(clean(str(path)), Reading(path))
        self.lists.append(note)
        return len(self.lists) - 1, note

    def _of_list(self, spec: SourceSpec, path: Path) -> Iterator[Source]:
        number, note = self._note(path)
        by_names: dict[tuple[str, ...], Roles] = {}
        platform = spec.platform
        for row in _list_file(spec, path).read(reading=note.reading):
            names = tuple(row.columns)
            roles = by_names.get(names)
            if roles is None:
                roles = by_names[names] = _roles(
                    spec, path, names, note.reading.column, is_first=not by_names
                )
                note.said.update(dict.fromkeys(roles.said()))
                if word_of(note.reading.column or "") in YOUTUBE_COLUMNS:
                    platform = YOUTUBE
            found = self._of_row(spec, row, path.parent, roles=roles, platform=platform)
            for at, source in enumerate(found):
                note.say_spans(source.spans_column)
                source.row_of = number if at == 0 else None
                yield source

    def _absolute(self, text: str) -> Path:
        return _absolute(text, self._base)

    def _of_row(
        self,
        spec: SourceSpec,
        row: ListRow,
        folder: Path,
        *,
        ask: bool = False,
        roles: Roles = Roles(),  # noqa: B008  it is frozen
        platform: str | None = None,
    ) -> Iterator[Source]:
        """The source of a row, or the sources of its playlist.

        With `ask`, if a URL doesn't show whether it is a list or a video, the site is asked.
        """
        source = _understand(row, folder, roles, platform or spec.platform)
        source.category = source.category or spec.category
        source.language = source.language or spec.language
        if source.problem is not None or source.path is not None or source.url is None:
            yield source
            return
        unsure = (
            ask
            and source.platform_id is None
            and (os.path.splitext(urlsplit(source.url).path)[1].lower() not in MEDIA_SUFFIXES)
        )
        if not source.is_list and not unsure:
            yield source
            return
        yield from self._expanded(spec, source, spec.results)

    def _expanded(self, spec: SourceSpec, source: Source, results: int | None) -> list[Source]:
        listed = f"list {results or 'all'} {source.url}"
        try:
            entries = self._expander.expand(source.url or "", spec, results)
        except RowFailed as problem:
            source.locator = listed
            source.problem = RowFailed(problem.kind, f"could not be listed: {problem.message}")
            return [source]
        if not entries:
            source.locator = listed
            source.problem = RowFailed("permanent", f"{source.url} lists no videos")
            return [source]
        found = []
        for entry in entries:
            one = _understand(ListRow(source.place, entry.url or None), self._base, Roles(), None)
            one.is_list = False
            for name in ("category", "language", "query", "extra"):
                setattr(one, name, getattr(source, name))
            one.title = clean(entry.title) if entry.title else None
            found.append(one)
        found[0].row_of = source.row_of
        if self._has_failed(source_key(listed)):
            # It failed in an earlier run: a newer row with its key resolves that.
            source.locator, source.again = listed, True
            source.rejection = {
                "rule": EXPANDED_RULE,
                "detail": f"now listed: {counted(len(entries), 'video')}",
            }
            found.append(source)
        return found

    def _of_searches(self, spec: SourceSpec) -> Iterator[Source]:
        results = spec.results or DEFAULT_SEARCH_RESULTS
        terms = self._terms(spec)
        pool = ThreadPoolExecutor(_SEARCHES_AT_A_TIME)
        try:
            while not self._is_full() and (some := list(islice(terms, _SEARCHES_AT_A_TIME))):
                for found in pool.map(
                    lambda source: (
                        self._expanded(spec, source, results)
                        if source.problem is None
                        else [source]
                    ),
                    some,
                ):
                    yield from found
        finally:
            # A stopped run does not wait for a site that does not answer.
            pool.shutdown(wait=False, cancel_futures=True)

    def _terms(self, spec: SourceSpec) -> Iterator[Source]:
        rows: Iterator[ListRow] = (ListRow("recipe", clean(term)) for term in spec.search or [])
        number = None
        if spec.search_file is not None:
            path = self._absolute(spec.search_file)
            number, note = self._note(path)
            rows = _list_file(spec, path).read(QUERY_COLUMNS, note.reading)
        results = spec.results or DEFAULT_SEARCH_RESULTS
        for row in rows:
            source = Source(row.place, row_of=number)
            roles = roles_of(tuple(row.columns), spec.model_copy(update={"span_columns": []}))
            _take_columns(source, row, roles)
            if row.problem or not row.locator:
                source.problem = RowFailed(
                    "permanent", f"{row.place}: {row.problem or 'no search term'}"
                )
                source.locator = f"row {row.place}"
            else:
                source.query = row.locator
                source.url = f"{spec.search_engine}{results}:{row.locator}"
            source.category = source.category or spec.category
            source.language = source.language or spec.language
            yield source


def _list_file(spec: SourceSpec, path: Path) -> ListFile:
    return ListFile(
        path, spec.url_column, spec.encoding, None if spec.columns is None else tuple(spec.columns)
    )


def _roles(
    spec: SourceSpec, path: Path, names: tuple[str, ...], locator: str | None, *, is_first: bool
) -> Roles:
    named = [name for name in (*(spec.span_columns or ()), spec.caption_column) if name]
    missing = [name for name in named if name not in names]
    if missing and names and is_first:
        raise UsageError(
            f"{path} has no column {missing[0]!r}; its other columns: {', '.join(names)}"
        )
    return roles_of(names, spec, locator)


def _of_unreadable(folder: str, why: str) -> Source:
    shown = clean(folder)
    return Source(
        shown,
        f"folder {folder!r}",
        problem=RowFailed(
            "permanent", f"the folder {shown} can't be read: {why}; its contents are not listed"
        ),
    )


def _of_file(path: str) -> Source:
    source = Source(path)
    _set_path(source, path)
    return source


def _set_path(source: Source, path: str) -> None:
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        shown = clean(path)
        source.locator = f"file {path!r}"
        source.problem = RowFailed("permanent", f"the name of {shown!r} is not UTF-8; rename it")
        return
    source.path = source.url = source.locator = path


def _understand(row: ListRow, folder: Path, roles: Roles, platform: str | None) -> Source:
    """The source that a row names; paths are relative to `folder`."""
    source = Source(row.place)
    if row.problem is not None or row.locator is None:
        source.locator = f"row {row.place}"
        reason = row.problem or "no URL or path in this row"
        source.problem = RowFailed("permanent", f"{row.place}: {reason}")
        return source
    try:
        named = _take_locator(source, row.locator, folder, platform)
        if row.columns:
            _take_columns(source, row, roles)
        if named is not None and source.spans is None:
            source.spans = [
                {
                    "start_seconds": named[0],
                    "end_seconds": named[1],
                    "caption": source.caption,
                    "extra": source.extra,
                    "captions": source.captions,
                }
            ]
            source.caption = source.captions = source.extra = None
    except ValueError as error:
        source.locator = f"row {row.place} {row.locator}"
        source.problem = RowFailed("permanent", f"{row.place}: {row.locator}: {error}")
    return source


def _take_locator(
    source: Source, text: str, folder: Path, platform: str | None
) -> tuple[float, float] | None:
    """Fills in what a URL or a path names; returns the span in it (`#t=10,20`)."""
    clip = youtube_clip(text) if platform == YOUTUBE else None
    text = url_or_path(text, str(folder), platform)
    if not looks_like_url(text):
        _set_path(source, text)
        return None
    identity = _identity(text)
    source.url = text
    source.locator = identity.locator
    source.extractor = identity.extractor
    source.platform_id = identity.platform_id
    source.is_list = identity.is_list
    return identity.span if clip is None else clip[1]


def _named(text: str, folder: str, platform: str | None) -> Named | None:
    """What a locator names; None if it is invalid, or names a list or a part of a video."""
    source = Source("")
    try:
        span = _take_locator(source, text, Path(folder), platform)
    except ValueError:
        return None
    if span is not None or source.is_list or source.problem is not None or source.url is None:
        return None
    return source.locator, source.url, source.path, source.extractor, source.platform_id


@functools.lru_cache(4096)
def _identity(url: str) -> Identity:
    """What a URL names, cached because the clips of a video are mostly consecutive."""
    return identify(url)


def _take_columns(source: Source, row: ListRow, roles: Roles) -> None:
    """Fills in the row's columns; ValueError if its times can't be read.

    In a row with timestamps, the other columns describe its spans, not the video.
    """
    for name, word in roles.of_the_video.items():
        setattr(source, word, text_of(row.columns[name]))
    if source.video_id is not None and source.video_id == source.platform_id:
        source.video_id = None  # no id given by the user
    found = given(row.columns, roles)
    source.spans, source.extra = found.spans, found.extra
    source.spans_column = found.spans_column
    if found.captions:
        source.caption = found.captions[0]
        source.captions = found.captions if len(found.captions) > 1 else None
