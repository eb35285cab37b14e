"""The request of an export, validated as far as possible without the dataset."""

from __future__ import annotations

import hashlib
import re
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from clipmill.pipeline.engine.named_cluster import has_cluster
from clipmill.schemas.errors import UsageError
from clipmill.stages.media.cutting.requests import CutOptions

Format = Literal["webdataset", "parquet", "huggingface", "internvid", "csv", "jsonl", "interleaved"]
Engine = Literal["ray", "local"]
Documents = Literal["a", "b", "c"]
Crop = Literal["safe"]

FORMATS: tuple[Format, ...] = (
    "webdataset",
    "parquet",
    "huggingface",
    "internvid",
    "csv",
    "jsonl",
    "interleaved",
)
_UNITS = {
    "": 1,
    "k": 10**3,
    "m": 10**6,
    "g": 10**9,
    "t": 10**12,
    "ki": 2**10,
    "mi": 2**20,
    "gi": 2**30,
    "ti": 2**40,
}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]i?|)b?\Z", re.I)
SMALLEST_SHARD_BYTES = 10_000
# Samples of these formats need a text for each clip; tables are read by column.
_NEED_A_TEXT = {"webdataset", "huggingface", "internvid", "interleaved"}
PERSONAL = re.compile(r"\b(title|description|uploader|extra|url)\b", re.I)
"""Column names in a rule or a predicate that reveal who made a video."""


def size_in_bytes(text: str, option: str) -> int:
    """Bytes of `1GB`, `500MB` or `2GiB`; UsageError naming the option otherwise."""
    match = _SIZE.match(text.strip())
    if match is None:
        raise UsageError(f"{option} {text!r}: expected a size such as 1GB, 500MB or 2GiB")
    size = int(float(match[1]) * _UNITS[match[2].lower()])
    if size < SMALLEST_SHARD_BYTES:
        raise UsageError(
            f"{option} {text}: shards this small are mostly headers; the minimum is "
            f"{SMALLEST_SHARD_BYTES // 1000}kB"
        )
    return size


@dataclass(frozen=True)
class Interleaving:
    """How video–text documents are made; see `interleaved`."""

    documents: Documents = "a"
    drop: float = 0.3
    seed: int = 42


@dataclass(frozen=True)
class ExportRequest:
    """The request; everything except the folders, the engine and the workers determines the
    bytes of the result.
    """

    dataset: Path
    output: Path
    format: Format
    subset: str | None = None
    where: str | None = None
    redact: bool = False
    shard_bytes: int = 10**9
    caption: str = "caption"
    uncaptioned: bool | None = None
    interleaving: Interleaving = field(default_factory=Interleaving)
    cut: CutOptions | None = None
    engine: Engine | None = None
    crop: Crop | None = None

    def __post_init__(self) -> None:
        if self.crop is not None and (self.cut is None or self.cut.media != "exact"):
            raise UsageError(
                f"--crop {self.crop} requires --media exact: only re-encoded pictures can be "
                f"cropped, not those of --media {self.cut.media if self.cut else 'none'}"
            )
        if self.format == "internvid" and self.cut is not None:
            raise UsageError(
                "--format internvid is metadata only: its columns have no place for "
                "a file; omit --media, or use --format webdataset, parquet or "
                "huggingface"
            )

    @property
    def keeps_uncaptioned(self) -> bool:
        """Whether to keep clips without a text."""
        if self.uncaptioned is not None:
            return self.uncaptioned
        return self.format not in _NEED_A_TEXT

    @property
    def engine_or_default(self) -> Engine:
        """Cutting uses a cluster that there is; for one machine, its own processes will do."""
        if self.engine is not None:
            return self.engine
        return "ray" if self.cut is not None and has_cluster() else "local"

    @property
    def has_units(self) -> bool:
        """Whether clips have to be processed one by one, which is worth doing in parallel."""
        return self.cut is not None or self.format == "webdataset"

    def asked(self) -> dict[str, Any]:
        """What determines the result, as stored in the manifest.

        The dataset is not included: an export may be shared, and a path reveals who made it.
        """
        asked: dict[str, Any] = {
            "format": self.format,
            "subset": self.subset,
            "where": self._shown_where(),
            "media": "none",
            "redact": self.redact,
            "shard_size": self.shard_bytes,
            "caption": self.caption,
            "uncaptioned": self.keeps_uncaptioned,
        }
        if self.format == "interleaved":
            asked |= asdict(self.interleaving)
        if self.cut is not None:
            asked |= asdict(self.cut)
            del asked["threads"]
        if self.crop is not None:
            asked["crop"] = self.crop
        return asked

    def _shown_where(self) -> str | None:
        """`--where` in a form that may be shared: it may refer to what --redact leaves out."""
        if self.where is None or not (self.redact and PERSONAL.search(self.where)):
            return self.where
        return "not shown: sha256:" + hashlib.sha256(self.where.encode()).hexdigest()


def interleaving_options(
    format_: Format, documents: Documents | None, drop: float | None, seed: int | None
) -> Interleaving:
    """How documents are made; UsageError if an option has no effect or is not a share."""
    given = [
        name
        for name, value in (("--documents", documents), ("--drop", drop), ("--seed", seed))
        if value is not None
    ]
    if given and format_ != "interleaved":
        raise UsageError(
            f"{', '.join(given)}: only --format interleaved makes documents; with "
            f"--format {format_} this would have no effect"
        )
    usual = Interleaving()
    made = Interleaving(
        documents or usual.documents,
        usual.drop if drop is None else drop,
        usual.seed if seed is None else seed,
    )
    if not 0 <= made.drop < 1:
        raise UsageError(
            f"--drop {drop}: allowed: from 0 to below 1, the share of clips to "
            "leave out of documents"
        )
    return made


def cut_options(
    media: Literal["none", "copy", "exact"],
    *,
    audio: bool = True,
    start: Literal["before", "nearest"] | None = None,
    encoder: str | None = None,
    crf: int | None = None,
    preset: str | None = None,
    short_side: int | None = None,
) -> CutOptions | None:
    """How media is cut, None for no media; UsageError if an option has no effect."""
    of_exact = {"--encoder": encoder, "--crf": crf, "--preset": preset, "--short-side": short_side}
    given = [name for name, value in of_exact.items() if value is not None]
    if media != "exact" and given:
        raise UsageError(
            f"{', '.join(given)}: only --media exact re-encodes; with --media "
            f"{media} this would have no effect"
        )
    if media != "copy" and start is not None:
        raise UsageError(
            "--start requires --media copy, where a clip can only begin at a key "
            f"frame; with --media {media} this would have no effect"
        )
    if media == "none":
        if not audio:
            raise UsageError("--no-audio requires --media copy or exact")
        return None
    return CutOptions(media, audio, start or "before", encoder, crf, preset, short_side)
