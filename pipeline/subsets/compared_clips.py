"""Clips that were compared within their groups, kept so that only new ones are compared later.

subsets/.compared/<step>.<fingerprint>.<digits>/000000/   clips compared in one go, a segment:
    clips.parquet    clip, group, and which shard it is from; in the order of the vectors
    vectors.bin      their integer vectors, as in `stages/models/integer_vectors.py`
    blocks.parquet   which rows each group has
    pairs.parquet    pairs of near clips, the later one of this segment, the other of this or before
    segment.json     from which cosine on they are near, and the shards that were read

Nothing in it is more than a copy of tables, so it may be deleted at any time. `<digits>` stand for
the expression that makes groups. It is used as long as the shards that it was made from are there
unchanged, and for cosines at least as high; otherwise it is made again. A group with very many
pairs is `dense`: its pairs are not kept, and its clips are compared again each time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.shards import shard_path
from clipmill.schemas.file_locks import try_lock
from clipmill.schemas.folders import COMPARED, LOCK

_RECORD = "segment.json"
_VERSION = 1

BLOCKS = pa.schema(
    [("grp", pa.string()), ("start", pa.int64()), ("stop", pa.int64()), ("dense", pa.bool_())]
)
PAIRS = pa.schema([("one", pa.int64()), ("other", pa.int64()), ("product", pa.int32())])


@dataclass(frozen=True)
class Block:
    """Rows of a segment that belong to one group."""

    start: int
    stop: int
    dense: bool


@dataclass
class Segment:
    """Clips that were compared in one go; `first` is the number of its first clip."""

    folder: Path
    first: int
    record: dict[str, Any]

    @property
    def width(self) -> int:
        return int(self.record["width"])

    @property
    def clips(self) -> int:
        """How many clips it has; `vectors` of them, the first ones, have a vector."""
        return int(self.record["clips"])

    def blocks(self) -> dict[str, Block]:
        rows = pq.read_table(self.folder / "blocks.parquet").to_pylist()
        return {row["grp"]: Block(row["start"], row["stop"], row["dense"]) for row in rows}

    def vectors(self) -> np.ndarray:
        """All vectors, on disk."""
        rows = int(self.record["vectors"])
        if not rows:
            return np.empty((0, self.width), np.int16)
        return np.memmap(self.folder / "vectors.bin", np.int16, "r", shape=(rows, self.width))


@dataclass
class ComparedClips:
    """The segments that hold, and where a further one goes; with `keeps`, for later commands."""

    folder: Path
    segments: list[Segment]
    keeps: bool
    _lock: IO[str] | None = field(default=None, repr=False)

    @property
    def count(self) -> int:
        return sum(segment.clips for segment in self.segments)

    @property
    def width(self) -> int:
        """Numbers per vector; 0 if there is none yet."""
        return max((segment.width for segment in self.segments), default=0)

    @property
    def min_cosine(self) -> float | None:
        """From which cosine on pairs are known; None if nothing was compared."""
        return min((one.record["min_cosine"] for one in self.segments), default=None)

    @contextlib.contextmanager
    def new_segment(self) -> Iterator[Path]:
        """A folder for a segment, which counts when it has been left without an error."""
        name = f"{len(self.segments):06d}"
        temporary = self.folder / f".{name}~{uuid.uuid4().hex[:8]}.tmp"
        temporary.mkdir(parents=True)
        try:
            yield temporary
            temporary.rename(self.folder / name)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self.segments.append(_segment(self.folder / name, self.count))


@contextlib.contextmanager
def compared_clips(
    dataset: Path, step: str, fingerprint: str, groups: str, min_cosine: float, scratch: Path
) -> Iterator[ComparedClips]:
    """What was compared before; nothing of it if it can't be used.

    Where another command is at it, or the dataset can't be written to, a folder in `scratch` stands
    for it.
    """
    digits = hashlib.sha256(groups.encode()).hexdigest()[:8]
    place = dataset / COMPARED / f"{step}.{fingerprint}.{digits}"
    with contextlib.ExitStack() as stack:
        lock = _locked(place, stack)
        if lock is None:
            folder = scratch / f"compared-{uuid.uuid4().hex[:8]}"
            folder.mkdir()
            stack.callback(shutil.rmtree, folder, ignore_errors=True)
            yield ComparedClips(folder, [], keeps=False)
            return
        for left in place.glob(".*~*.tmp"):  # of killed commands
            shutil.rmtree(left, ignore_errors=True)
        segments = _whole_segments(place, min_cosine, dataset / step / fingerprint)
        for path in sorted(place.glob("[0-9]*"))[len(segments) :]:
            shutil.rmtree(path)
        yield ComparedClips(place, segments, keeps=True)


def _locked(place: Path, stack: contextlib.ExitStack) -> IO[str] | None:
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context((place / LOCK).open("a", encoding="utf-8"))
        return lock if try_lock(lock) else None
    except OSError:
        return None


def _segment(folder: Path, first: int) -> Segment:
    return Segment(folder, first, json.loads((folder / _RECORD).read_text("utf-8")))


def _whole_segments(place: Path, min_cosine: float, table: Path) -> list[Segment]:
    """The segments that can be used: all, or none, since later ones name rows of earlier ones."""
    found: list[Segment] = []
    first = 0
    for folder in sorted(place.glob("[0-9]*")):
        try:
            segment = _segment(folder, first)
            record = segment.record
            usable = (
                record["version"] == _VERSION
                and record["min_cosine"] <= min_cosine
                and folder.name == f"{len(found):06d}"
                and shard_marks(table, record["shards"]) == record["shards"]
                and (folder / "vectors.bin").stat().st_size
                == 2 * record["vectors"] * record["width"]
            )
        except (OSError, ValueError, KeyError, TypeError):
            usable = False
        if not usable:
            return []
        found.append(segment)
        first += segment.clips
    return found


def shard_marks(table: Path, shards: Mapping[str, Any] | list[str]) -> dict[str, list[int]]:
    """What tells whether shards have changed: size and time of their files."""
    found = {}
    for shard in shards:
        with contextlib.suppress(FileNotFoundError):
            about = shard_path(table, shard).stat()
            found[shard] = [about.st_size, about.st_mtime_ns]
    return found


def write_record(
    folder: Path,
    *,
    clips: int,
    vectors: int,
    width: int,
    min_cosine: float,
    shards: dict[str, list[int]],
) -> None:
    record = {
        "version": _VERSION,
        "clips": clips,
        "vectors": vectors,
        "width": width,
        "min_cosine": min_cosine,
        "shards": shards,
    }
    (folder / _RECORD).write_text(json.dumps(record) + "\n", "utf-8")
