"""Names of everything at the top of a dataset's folder, except stages' tables."""

from __future__ import annotations

SOURCES = "sources"
MEDIA = "media"
RUNS = "runs"
LOGS = "logs"
INDEX = "index"
SUBSETS = "subsets"
REMOVED = "removed"
RETRIES = "retries"
JOURNAL = "journal"
QUARANTINE = "quarantine"

OWN_FOLDERS = frozenset(
    (SOURCES, MEDIA, RUNS, LOGS, INDEX, SUBSETS, REMOVED, RETRIES, JOURNAL, QUARANTINE)
)
"""Folders that hold no stage's tables."""

FRAMES = "frames"
SHOTS = "shots"
INGEST = "ingest"
RESERVED_LABELS = OWN_FOLDERS | {FRAMES, SHOTS, INGEST}
"""Names that no stage can have: its tables would mix with others, or its rows with theirs."""
