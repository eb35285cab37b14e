"""The index of published clips: their rows, unpacked from the sources once, in a few wide files.

index/published/manifest.json         its files, and what they were made from
index/published/clips-000003.parquet  rows of some groups of shards, with `_base`

Like the index of the views, it holds only what the tables have, and may be deleted at any time.
Rows of a group of shards count only while its files are those that the rows were made from; the
rows of all other groups come from the tables.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.pipeline.catalog.index import ShardFiles, StoredFile, folder_times
from clipmill.pipeline.catalog.published import (
    no_rows,
    stored_published,
    tables_of_published,
    waiting_rows,
)
from clipmill.pipeline.dataset.choices import choice_files
from clipmill.pipeline.dataset.published_scores import PublishedScore
from clipmill.schemas.damage import DamagedFile, read_json
from clipmill.schemas.folders import INDEX_MANIFEST, INDEX_OF_PUBLISHED
from clipmill.schemas.sql_text import escaped_for_glob, literal
from clipmill.schemas.step_tables import StepTable

_VERSION = 1


@dataclass(frozen=True)
class PublishedPart:
    """A file with the rows of some groups of shards, and the state of each group."""

    file: StoredFile
    n_clips: int
    bases: dict[str, str]


@dataclass(frozen=True)
class PublishedManifest:
    """What the index holds; `made_of` is a hash over the columns of its rows."""

    made_of: str
    parts: tuple[PublishedPart, ...] = ()
    folders: dict[str, int] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        return {
            "version": _VERSION,
            "made_of": self.made_of,
            "parts": [
                {"file": vars(part.file), "n_clips": part.n_clips, "bases": part.bases}
                for part in self.parts
            ],
            "folders": self.folders,
        }

    @classmethod
    def read(cls, folder: Path) -> PublishedManifest | None:
        """The manifest; None if there is no usable one."""
        try:
            value = read_json(folder / INDEX_MANIFEST)
            if value["version"] != _VERSION:
                return None
            parts = tuple(
                PublishedPart(StoredFile(**part["file"]), int(part["n_clips"]), dict(part["bases"]))
                for part in value["parts"]
            )
            folders = {str(name): int(at) for name, at in value["folders"].items()}
            return cls(str(value["made_of"]), parts, folders)
        except (DamagedFile, OSError, ValueError, KeyError, TypeError, AttributeError):
            return None


def made_of(scores: Sequence[PublishedScore]) -> str:
    text = repr((_VERSION, [(score.name, score.column) for score in scores]))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class PublishedSource:
    """The tables that published clips come from, in a dataset."""

    dataset: Path
    ingest: StepTable
    steps: tuple[StepTable, ...]
    scores: tuple[PublishedScore, ...]
    removed: bool

    @property
    def folder(self) -> Path:
        return self.dataset / INDEX_OF_PUBLISHED

    @property
    def tables(self) -> list[StepTable]:
        return tables_of_published(self.ingest, self.steps)

    def live(self, files: ShardFiles, bases: Sequence[str]) -> str:
        """The rows of some groups of shards, from the tables."""
        ingest, *steps = files.only(bases, [self.ingest, *self.steps])
        return self._waiting(ingest, steps)

    def _waiting(self, ingest: StepTable, steps: Sequence[StepTable]) -> str:
        by_choices = bool(choice_files(self.dataset))
        return waiting_rows(ingest, steps, self.scores, by_choices=by_choices)

    def query(self, *, use_index: bool) -> str:
        """All rows, from the index as far as it is valid."""
        manifest = PublishedManifest.read(self.folder) if use_index else None
        if manifest is None or manifest.made_of != made_of(self.scores):
            return self._waiting(self.ingest, self.steps)
        whole = [part for part in manifest.parts if part.file.is_whole(self.folder)]
        if (
            len(whole) == len(manifest.parts)
            and manifest.folders
            and manifest.folders == folder_times(self.dataset, self.tables)
        ):
            return self._stored(whole, [])
        files = ShardFiles(self.tables)
        try:
            states = files.states
        except OSError:  # a file disappeared during the check
            return self._waiting(self.ingest, self.steps)
        wrong = [
            base
            for part in whole
            for base, state in part.bases.items()
            if states.get(base) != state
        ]
        held = {base for part in whole for base in part.bases}
        rest = sorted((states.keys() - held) | (states.keys() & set(wrong)), key=int)
        stored = self._stored(whole, sorted(map(int, wrong)))
        if not rest:
            return stored
        live = self.live(files, rest)
        return f"SELECT * FROM ({stored}) UNION ALL BY NAME SELECT * FROM ({live})"

    def _stored(self, parts: Sequence[PublishedPart], without: Sequence[int]) -> str:
        files = [str(self.folder / part.file.name) for part in parts if part.n_clips]
        if not files:
            return no_rows(self.scores)
        listed = ", ".join(literal(escaped_for_glob(file)) for file in files)
        return stored_published(listed, without, hide_removed=self.removed)
