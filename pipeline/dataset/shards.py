"""Where shards are stored, how one is committed, and what its footer says.

A shard is done when its file exists under its final name. Files are written under a name that
starts with a dot and then renamed, so readers never see half a shard, even after a kill.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.schemas.damage import check_is_file, reading
from clipmill.schemas.folders import OWN_FOLDERS
from clipmill.schemas.step_tables import SKIPPED_RULE

SHARD_METADATA_KEY = b"clipmill"
_SHARD = re.compile(r"(\d{6,})(?:\.retry(\d+))?\Z")


def shard_name(number: int, retry: int = 0) -> str:
    return f"{number:06d}.retry{retry}" if retry else f"{number:06d}"


def base_shard(shard: str) -> str:
    """`000007` for `000007` and for every retry of it."""
    return shard.partition(".")[0]


def retry_number(shard: str) -> int:
    """0 for a first shard, 1 for `….retry1`, and so on."""
    match = _SHARD.match(shard)
    return int(match[2] or 0) if match else 0


def shard_order(shard: str) -> tuple[str, int]:
    """Sort key: by base, then by retry."""
    return base_shard(shard), retry_number(shard)


def is_shard(name: str) -> bool:
    """Whether a file's name, without its suffix, is that of a shard."""
    return _SHARD.match(name) is not None


def shard_path(folder: Path, shard: str) -> Path:
    return folder / f"{shard}.parquet"


def committed_shards(folder: Path) -> list[str]:
    """Names of the complete shards in a folder, in order; none if there is no folder.

    Raises DamagedFile if something that is not a file has the name of a shard.
    """
    names, odd = list_shards_in(folder)
    if odd is not None:
        check_is_file(odd)
    return sorted(names, key=shard_order)


def list_shards_in(folder: Path) -> tuple[list[str], Path | None]:
    """Unordered names of shards, and one such name that is not a file, if any.

    There may be a hundred thousand of them; the listing knows each entry's kind.
    """
    names: list[str] = []
    odd = None
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            shard = entry.name.removesuffix(".parquet")
            if shard == entry.name or _SHARD.match(shard) is None:
                continue
            if entry.is_file():
                names.append(shard)
            elif os.path.lexists(entry.path):  # it was not just replaced or removed
                odd = Path(entry.path)
    return names, odd


def existing(folder: Path, shards: Sequence[str]) -> list[str]:
    """Those of a few shards that are committed in a folder, without listing the folder."""
    return [shard for shard in shards if shard_path(folder, shard).exists()]


@dataclass(frozen=True)
class ShardMetadata:
    """Contents of a shard's footer; counts are of keys, `outputs` of kept rows.

    What older versions did not measure is null. `cpu_seconds` includes helper processes;
    `opening_…` is the part of the time in which models were loaded, `fixed_…` the rest of what was
    not spent on rows; `commit_seconds` is the time
    that the worker's commits took since its previous footer, which no other field counts. Tokens
    are null if a server was asked that doesn't tell them. `gate` is the condition of the step's
    gate, if it had one.
    """

    stage: str
    step: str
    shard: str
    fingerprint: str
    run_id: str
    inputs: int = 0
    kept: int = 0
    rejected: int = 0
    failed: int = 0
    outputs: int = 0
    seconds: float = 0.0
    decoded_frames: int = 0
    source_frames: int = 0
    skipped: int = 0
    not_asked: int | None = None
    cpu_seconds: float | None = None
    gpu_seconds: float | None = None
    opening_seconds: float | None = None
    opening_cpu_seconds: float | None = None
    fixed_seconds: float | None = None
    fixed_cpu_seconds: float | None = None
    commit_seconds: float | None = None
    requests: int | None = None
    tokens_in: int | None = None
    tokens_out: int | None = None
    media_seconds: float | None = None
    downloaded_bytes: int | None = None
    written_bytes: int | None = None
    gate: str | None = None

    def encode(self) -> dict[bytes, bytes]:
        return {SHARD_METADATA_KEY: json.dumps(asdict(self)).encode()}

    @classmethod
    def read(cls, path: Path) -> ShardMetadata:
        with reading(path):
            found = pq.read_metadata(path).metadata or {}
            values = json.loads(found.get(SHARD_METADATA_KEY, b"{}"))
            known = {field.name for field in fields(cls)}
            return cls(**{name: value for name, value in values.items() if name in known})


def is_skipped(table: pa.Table) -> pa.ChunkedArray:
    """Which rows of a step's table were left out, by a gate or by the run's choice."""
    rule = pc.struct_field(table["rejection"], "rule")
    return pc.fill_null(pc.equal(rule, SKIPPED_RULE), False)


def note_outcomes(key: str, table: pa.Table, outcome: dict[str, str]) -> int:
    """Records the outcome of each key of a step's rows; returns how many rows are kept.

    A key with a failed row is failed; otherwise, with any kept row, it is kept. Footers count
    these outcomes, and inputs = kept + rejected + failed + skipped must hold for them.
    """
    return note_each(
        table[key].to_pylist(),
        table["rejection"].is_valid().to_pylist(),
        table["error"].is_valid().to_pylist(),
        is_skipped(table).to_pylist(),
        outcome,
    )


def note_each(
    keys: Sequence[str],
    rejected: Sequence[bool],
    failed: Sequence[bool],
    skipped: Sequence[bool],
    outcome: dict[str, str],
) -> int:
    """As `note_outcomes`, for rows of which only this is known; skipped rows are rejected, too."""
    kept = 0
    for key, was_rejected, was_failed, was_skipped in zip(
        keys, rejected, failed, skipped, strict=True
    ):
        if was_failed:
            outcome[key] = "failed"
        elif was_rejected:
            outcome.setdefault(key, "skipped" if was_skipped else "rejected")
        else:
            kept += 1
            if outcome.get(key) != "failed":
                outcome[key] = "kept"
    return kept


def temporary_beside(path: Path) -> Path:
    """A new temporary name in the same folder, which readers ignore."""
    return path.with_name(f".{path.stem}~{uuid.uuid4().hex[:8]}.tmp")


def remove_leftovers(path: Path) -> None:
    """Removes what killed writers of this file left behind."""
    _remove(path.parent.glob(f".{path.stem}~*.tmp"))


def remove_all_leftovers(folder: Path) -> None:
    """Removes what killed writers left in a folder that nobody else is writing to."""
    _remove(folder.glob(".*~*.tmp"))


def _remove(leftovers: Iterable[Path]) -> None:
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)


def commit(temporary: Path, path: Path) -> None:
    """Makes a complete file visible under its final name, durably."""
    _sync(temporary)
    os.replace(temporary, path)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextlib.contextmanager
def shard_writer(
    path: Path, schema: pa.Schema, *, clean: bool = True, dictionaries: list[str] | bool = True
) -> Iterator[ShardWriter]:
    """Writes one shard, which `finish` commits; without `finish`, the file is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = ShardWriter(path, schema, clean=clean, dictionaries=dictionaries)
    try:
        yield writer
    finally:
        writer.discard()


class ShardWriter:
    """A Parquet file being written: one row group per `write`, visible only after `finish`.

    `clean` removes what killed writers left behind, for which the folder is listed. `dictionaries`
    are the columns that Parquet stores as dictionaries: values that rarely repeat are smaller, and
    faster to write, without.
    """

    def __init__(
        self,
        path: Path,
        schema: pa.Schema,
        *,
        clean: bool = True,
        dictionaries: list[str] | bool = True,
    ) -> None:
        self._path = path
        if clean:
            remove_leftovers(path)  # only one worker at a time writes a shard
        self._temporary = temporary_beside(path)
        self._schema = schema
        try:
            # Page checksums let `verify` find flipped bits that still decompress.
            self._writer = pq.ParquetWriter(
                self._temporary,
                schema,
                compression="zstd",
                write_page_checksum=True,
                use_dictionary=dictionaries,
            )
        except BaseException:
            self._temporary.unlink(missing_ok=True)
            raise
        self._open = True

    @property
    def path(self) -> Path:
        return self._path

    @property
    def size_bytes(self) -> int:
        """The size of what was written so far."""
        return self._temporary.stat().st_size

    def write(self, table: pa.Table) -> None:
        if table.num_rows:
            self._writer.write_table(table.cast(self._schema), row_group_size=table.num_rows)

    def seal(self, metadata: ShardMetadata | None = None) -> None:
        """Flushes the whole file to disk, still under its temporary name."""
        if metadata is not None:
            self._writer.add_key_value_metadata(metadata.encode())
        self._writer.close()
        _sync(self._temporary)

    def show(self) -> None:
        """Makes a sealed file visible, replacing any existing one."""
        os.replace(self._temporary, self._path)
        self._open = False

    def finish(self, metadata: ShardMetadata | None = None) -> None:
        self.seal(metadata)
        self.show()

    def discard(self) -> None:
        """Deletes what was written if it was never made visible."""
        if self._open:
            self._open = False
            with contextlib.suppress(Exception):  # the first error is the one to report
                self._writer.close()
            # If this fails, too, the next run removes the file.
            with contextlib.suppress(OSError):
                self._temporary.unlink()


def write_json(path: Path, value: object) -> None:
    """Writes a small JSON file atomically; DamagedFile if a folder has its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        temporary.write_text(
            json.dumps(value, indent=1, ensure_ascii=False, default=str) + "\n", "utf-8"
        )
        commit(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, IsADirectoryError):
            check_is_file(path)
        raise


def table_folders(dataset: Path) -> list[Path]:
    """The folders of all tables, of every step and fingerprint, that hold shards."""
    return sorted(
        folder
        for label in dataset.iterdir()
        if label.is_dir() and label.name not in OWN_FOLDERS and label.name[0] != "."
        for folder in label.iterdir()
        if folder.is_dir() and committed_shards(folder)
    )
