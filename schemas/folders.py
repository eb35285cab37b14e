"""The names of all folders and files of a dataset, as paths from its folder.

No other module spells them. The tables of stages lie next to them, in
`<label>/<fingerprint>/<shard>.parquet`.
"""

from __future__ import annotations

import uuid
from pathlib import Path

SOURCES = "sources"
LISTS = f"{SOURCES}/.lists"
"""What playlists and searches were found to hold."""
LIST_COUNTS = f"{SOURCES}/.counts"
"""What became of the lines and rows of each list."""
PUBLISHED = f"{SOURCES}/.published.json"
"""Whether sources came with spans, and which of the spans' columns are known scores."""
EXCLUDED = f"{SOURCES}/.excluded.npy"
"""Hashes of the ids that the recipe leaves out."""

MEDIA = "media"
MEDIA_WORK = f"{MEDIA}/.work"
"""By source, a download in progress."""
MEDIA_READY = f"{MEDIA}/.ready"
"""By source, a checked file that is not claimed yet."""
MEDIA_FOUND = f"{MEDIA}/.found"
"""By source, what was found out about its file."""
MEDIA_CLAIMS = f"{MEDIA}/.claims"
"""By settings and video, which source has it."""
MEDIA_HOSTS = f"{MEDIA}/.hosts"
"""When which host may be asked again."""

RUNS = "runs"
CHOICES = f"{RUNS}/choices"
"""Which clips and sources single runs were asked for."""
FITS = f"{RUNS}/fits"
"""What stages found once in the rows of all shards, such as the centres of clusters."""
LOGS = "logs"
REMOVED = "removed"
RETRIES = "retries"
JOURNAL = "journal"
QUARANTINE = "quarantine"
QUARANTINE_REASON = "why.json"

INDEX = "index"
INDEX_MANIFEST = "manifest.json"
INDEX_OF_PUBLISHED = f"{INDEX}/published"
"""The published clips that have no media yet, as files that queries read fast."""

SUBSETS = "subsets"
SUBSET_RECORD = "subset.json"
SUBSET_CLIPS = "clips-*.parquet"
COMPARED = f"{SUBSETS}/.compared"
"""Which clips of a group are near-duplicates, as found so far; may be deleted."""

AUDITS = "audits"
"""By audit, its sample of clips and their labels."""

SCRATCH = ".scratch"
LOCK = ".lock"
"""Held by the command that writes to the dataset; also the lock of a single download's folder."""
COMMITS = ".commits"
"""Held while a shard is committed."""

OWN_FOLDERS = frozenset(
    (SOURCES, MEDIA, RUNS, LOGS, INDEX, SUBSETS, AUDITS, REMOVED, RETRIES, JOURNAL, QUARANTINE)
)
"""Folders that don't hold a stage's tables."""

FRAMES = "frames"
SHOTS = "shots"
INGEST = "ingest"
RESERVED_LABELS = OWN_FOLDERS | {FRAMES, SHOTS, INGEST}
"""Names that no stage can have: its tables would mix with others, or its rows with theirs."""


def is_dataset(folder: Path) -> bool:
    return (folder / RUNS).is_dir() or (folder / SOURCES).is_dir()


def json_files(folder: Path) -> list[Path]:
    """The complete JSON files of a folder, by name; an unfinished one's name begins with a dot."""
    return sorted(folder.glob("[!.]*.json"))


def subset_records(dataset: Path) -> list[Path]:
    """The record of each frozen subset; the folder of an unfinished one begins with a dot."""
    return sorted((dataset / SUBSETS).glob(f"[!.]*/{SUBSET_RECORD}"))


def subset_lock(dataset: Path, name: str) -> Path:
    """Held by whoever is creating the subset of this name."""
    return dataset / SUBSETS / f".{name}.lock"


def audit_file(dataset: Path, name: str) -> Path:
    return dataset / AUDITS / f"{name}.json"


def audits_lock(dataset: Path) -> Path:
    """Held while an audit's file is changed."""
    return dataset / AUDITS / LOCK


def scratch_folder(dataset: Path, purpose: str) -> Path:
    """A fresh place for temporary files, which whoever uses it creates and removes."""
    return dataset / SCRATCH / f"{purpose}-{uuid.uuid4().hex[:8]}"
