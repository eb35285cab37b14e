"""WebDataset: tar files of `key.mp4`, `key.txt` and `key.json`, and an index of them."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import pyarrow as pa

from clipmill.pipeline.dataset.shards import write_json
from clipmill.pipeline.exports.columns import TEXT
from clipmill.pipeline.exports.export_shards import Shard
from clipmill.pipeline.exports.request import ExportRequest
from clipmill.pipeline.exports.tar_samples import BLOCK, JSON, extension
from clipmill.schemas.ids import file_name

INDEX = "index.json"


def fits(request: ExportRequest, size: int) -> bool:
    """Whether a tar file with members of this size stays within the shard size."""
    whole = size + 2 * BLOCK  # two empty blocks end it, and it is padded
    return -(-whole // tarfile.RECORDSIZE) * tarfile.RECORDSIZE <= request.shard_bytes


def write_tar(request: ExportRequest, path: Path, tables: Iterable[pa.Table]) -> None:
    """One tar file; equal samples give equal bytes."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for table in tables:
            names = ["clip_id", TEXT, JSON]
            if "media_path" in table.column_names:
                names += ["media_path", "media_bytes"]
            for row in table.select(names).to_pylist():
                _add_sample(request, tar, row)


def _add_sample(request: ExportRequest, tar: tarfile.TarFile, row: dict[str, Any]) -> None:
    # A clip's id contains no dot: WebDataset would end the key there.
    key = file_name(row["clip_id"])
    media = row.get("media_path")
    if media is not None:
        with open(request.output / media, "rb") as file:
            _add(tar, f"{key}.{extension(media)}", row["media_bytes"], file)
    for suffix, text in (("txt", row[TEXT] or ""), ("json", row[JSON])):
        data = text.encode()
        _add(tar, f"{key}.{suffix}", len(data), io.BytesIO(data))


def _add(tar: tarfile.TarFile, name: str, size: int, file: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    tar.addfile(member, file)


def write_index(request: ExportRequest, shards: Sequence[Shard]) -> None:
    """Lists the shards with counts and sizes, for webdataset's indexed reader (wids)."""
    write_json(
        request.output / INDEX,
        {
            "__kind__": "wids-shard-index-v1",
            "wids_version": 1,
            "name": request.subset or "clips",
            "shardlist": [
                {"url": shard.name, "nsamples": shard.items, "filesize": shard.size_bytes}
                for shard in shards
            ],
        },
    )
