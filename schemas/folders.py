"""Every name that something may have at the top of a dataset's folder, but for stages' tables."""

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

OWN_FOLDERS = frozenset((SOURCES, MEDIA, RUNS, LOGS, INDEX, SUBSETS, REMOVED, RETRIES, JOURNAL,
                         QUARANTINE))
"""Folders that hold no stage's tables."""

FRAMES = "frames"
SHOTS = "shots"
INGEST = "ingest"
RESERVED_LABELS = OWN_FOLDERS | {FRAMES, SHOTS, INGEST}
"""What no stage can be called: its tables would lie among others, or its rows pass for theirs."""
