"""What runs were asked for: the clips and sources of `run --where`, `--subset` and `--sample`.

A choice is computed once, at the start of its run, and kept as one Parquet file, sorted by shard.
Equal choices have the same name, so a run that is started again writes no new one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.run_records import ChoiceRecord, RunRecord
from clipmill.schemas.damage import DamagedFile, damaged, reading
from clipmill.schemas.folders import CHOICES

# A row per chosen clip, or per source that was chosen whole (`clip_id` is null). `span` is the
# clip's place in the source's given spans, null for a clip that the dataset had made.
CHOSEN = pa.schema(
    [
        pa.field("shard", pa.string(), nullable=False),
        pa.field("source_key", pa.string(), nullable=False),
        ("clip_id", pa.string()),
        ("span", pa.int32()),
    ]
)
_RECORD = b"clipmill_choice"
_ROWS_A_GROUP = 50_000


@dataclass(frozen=True)
class ChosenOfShard:
    """What is chosen of one base shard: per source its clips, each with its span; None is all."""

    clips: dict[str, dict[str, int | None] | None]

    @property
    def sources(self) -> set[str]:
        return set(self.clips)


@dataclass(frozen=True)
class Choice:
    """One run's choice, as it is stored in a dataset."""

    dataset: Path
    record: ChoiceRecord

    @property
    def name(self) -> str:
        return self.record["name"]

    @property
    def said(self) -> str:
        """The choice as the user wrote it, e.g. `--where aesthetic > 5`."""
        return self.record["said"]

    @property
    def path(self) -> Path:
        return self.dataset / CHOICES / f"{self.name}.parquet"

    @functools.cached_property
    def shards(self) -> frozenset[str]:
        """The base shards that hold something of it."""
        with reading(self.path), pq.ParquetFile(self.path) as file:
            found: set[str] = set()
            for batch in file.iter_batches(columns=["shard"]):
                found.update(pc.unique(batch.column(0)).to_pylist())
        return frozenset(found)

    def of(self, base: str) -> ChosenOfShard:
        with reading(self.path):
            table = pq.read_table(self.path, filters=[("shard", "==", base)])
        clips: dict[str, dict[str, int | None] | None] = {}
        for row in table.to_pylist():
            source, clip = row["source_key"], row["clip_id"]
            if clip is None:
                clips[source] = None
            elif (known := clips.setdefault(source, {})) is not None:
                known[clip] = row["span"]
        return ChosenOfShard(clips)


def choice_files(dataset: Path) -> list[Path]:
    return sorted((dataset / CHOICES).glob("[!.]*.parquet"))


def open_choice(dataset: Path, name: str) -> Choice:
    """A stored choice; DamagedFile if its file is missing or is not one."""
    path = dataset / CHOICES / f"{name}.parquet"
    if not path.is_file():
        raise damaged(path, "it is missing")
    with reading(path):
        record = json.loads((pq.read_metadata(path).metadata or {})[_RECORD])
        if record["name"] != name:
            raise ValueError("it is another choice")
        return Choice(dataset, record)


def stored_choices(dataset: Path) -> Iterator[Choice]:
    """The choices of all runs, without damaged ones, which `verify` reports."""
    for path in choice_files(dataset):
        with contextlib.suppress(DamagedFile):
            yield open_choice(dataset, path.stem)


def asked_shards(dataset: Path, record: RunRecord | None) -> frozenset[str] | None:
    """The base shards that a run was asked for something of; None for all."""
    chosen = None if record is None else record.get("choice")
    return None if chosen is None else open_choice(dataset, chosen["name"]).shards


def check_choice(path: Path) -> None:
    """Reads a stored choice to its end; DamagedFile if it is not one."""
    open_choice(path.parent.parent.parent, path.stem)
    with reading(path):
        if not pq.read_table(path).schema.equals(CHOSEN):
            raise ValueError("its columns are not those of a choice")


def store_choice(dataset: Path, said: str, rows: Iterable[pa.RecordBatch]) -> Choice:
    """Writes a choice; `rows` have the columns of CHOSEN and are sorted by them."""
    folder = dataset / CHOICES
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".choice~{uuid.uuid4().hex[:8]}.tmp"
    digest, clips, sources, last = hashlib.sha256(said.encode()), 0, 0, None
    try:
        with pq.ParquetWriter(temporary, CHOSEN, compression="zstd") as writer:
            for batch in rows:
                table = pa.Table.from_batches([batch]).cast(CHOSEN)
                if not table.num_rows:
                    continue
                writer.write_table(table, row_group_size=_ROWS_A_GROUP)
                digest.update(memoryview(batch.serialize()))
                keys = table["source_key"]
                clips += table.num_rows - table["clip_id"].null_count
                # A source's rows are neighbours, but may be in two batches.
                sources += len(pc.unique(keys)) - (keys[0].as_py() == last)
                last = keys[-1].as_py()
            record: ChoiceRecord = {
                "name": f"choice-{digest.hexdigest()[:16]}",
                "said": said,
                "clips": clips,
                "sources": sources,
            }
            writer.add_key_value_metadata({_RECORD: json.dumps(record).encode()})
        choice = Choice(dataset, record)
        os.replace(temporary, choice.path)
    finally:
        temporary.unlink(missing_ok=True)
    return choice


def forget_chosen(dataset: Path, is_removed: Callable[[str], bool]) -> None:
    """Takes the clips and sources of removed videos out of all choices."""
    for choice in stored_choices(dataset):
        with reading(choice.path):
            table = pq.read_table(choice.path)
        rows = zip(table["source_key"].to_pylist(), table["clip_id"].to_pylist(), strict=True)
        left = [not (is_removed(source) or (clip and is_removed(clip))) for source, clip in rows]
        if not all(left):
            temporary = choice.path.with_name(f".{choice.name}~{uuid.uuid4().hex[:8]}.tmp")
            rest = table.filter(pa.array(left, pa.bool_()))
            pq.write_table(rest, temporary, row_group_size=_ROWS_A_GROUP, compression="zstd")
            os.replace(temporary, choice.path)
