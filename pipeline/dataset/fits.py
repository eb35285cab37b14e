"""What stages found once in the rows of all shards: `runs/fits/<label>.<fingerprint>.parquet`.

A step's fingerprint names it, so every shard of a step is made with the same one. It is written
before the step's first shard, and never replaced.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.commit_fence import Fence
from clipmill.pipeline.dataset.shards import committed_shards, shard_path, temporary_beside
from clipmill.pipeline.dataset.steps import Step
from clipmill.schemas.damage import DamagedFile, reading
from clipmill.schemas.folders import FITS

_RECORD = b"clipmill_fit"


@dataclass(frozen=True)
class Fit:
    """The origin of a fit: its step, the run that made it, and the rows in which it was found.

    `rows` counts the rows of all shards at that time, `shards` the shards.
    """

    label: str
    fingerprint: str
    run_id: str
    rows: int
    shards: int

    @property
    def file(self) -> str:
        """Its path in the dataset."""
        return f"{FITS}/{self.label}.{self.fingerprint}.parquet"


def fit_file(step: Step) -> str:
    """The path in the dataset of a step's fit."""
    return Fit(step.label, step.fingerprint, "", 0, 0).file


def has_fit(dataset: Path, step: Step) -> bool:
    return (dataset / fit_file(step)).exists()


def fit_files(dataset: Path) -> list[Path]:
    return sorted((dataset / FITS).glob("[!.]*.parquet"))


def read_fit(path: Path) -> tuple[Fit, pa.Table]:
    """A stored fit; DamagedFile if its file is not one, or is that of another step."""
    with reading(path), pq.ParquetFile(path, page_checksum_verification=True) as file:
        fit = Fit(**json.loads((file.metadata.metadata or {})[_RECORD]))
        if Path(fit.file).name != path.name:
            raise ValueError(f"it was made for {Path(fit.file).stem}")
        return fit, file.read()


def open_fit(dataset: Path, step: Step) -> tuple[Fit, pa.Table] | None:
    """A step's fit; None if it has none."""
    try:
        return read_fit(dataset / fit_file(step))
    except FileNotFoundError:
        return None


def fitted(dataset: Path, step: Step) -> pa.Table | None:
    """What a step has found; None if it has found nothing yet."""
    found = open_fit(dataset, step)
    return None if found is None else found[1]


def store_fit(dataset: Path, fit: Fit, table: pa.Table) -> None:
    """Commits a fit; if another one of the step is there, that one stays."""
    path = dataset / fit.file
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _written(path, fit, table)
    try:
        with Fence(dataset, fit.run_id).held():
            if not path.exists():
                temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _written(path: Path, fit: Fit, table: pa.Table) -> Path:
    """A complete file beside `path`, on disk."""
    temporary = temporary_beside(path)
    record = {_RECORD: json.dumps(asdict(fit)).encode()}
    try:
        with open(temporary, "wb") as file:
            pq.write_table(
                table.replace_schema_metadata(record),
                file,
                compression="zstd",
                write_page_checksum=True,
            )
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return temporary


def forget_in_fits(dataset: Path) -> None:
    """Empties what only rows of removed videos had in fits.

    If a fit's first column is also one of its step's table, rows of the table refer to rows of the
    fit by it: those to which none refers any more keep only that column.
    """
    for path in fit_files(dataset):
        with contextlib.suppress(DamagedFile):  # `verify` reports it
            fit, table = read_fit(path)
            used = _referred_to(dataset / fit.label / fit.fingerprint, table.column_names[0])
            if used is not None:
                _keep(path, fit, table, pc.is_in(table[0], used))


def _keep(path: Path, fit: Fit, table: pa.Table, stays: pa.ChunkedArray) -> None:
    columns = [table[0], *(pc.if_else(stays, one, None) for one in table.columns[1:])]
    kept = pa.table(columns, schema=table.schema)
    if not kept.equals(table):
        _written(path, fit, kept).replace(path)


def _referred_to(folder: Path, column: str) -> pa.Array | None:
    """The rows of a fit to which rows of a table refer; None if it has no rows that could."""
    found = []
    for shard in committed_shards(folder):
        path = shard_path(folder, shard)
        with reading(path), pq.ParquetFile(path) as file:
            if column not in file.schema_arrow.names:
                return None
            rows = file.read(columns=[column])
        found.append(pc.unique(rows[column]).drop_null())
    return pa.concat_arrays(found) if found else None
