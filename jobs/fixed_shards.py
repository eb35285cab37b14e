"""Tells that sources stay in the shards that they are in, where others are asked for."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from clipmill.pipeline.dataset import run_records as records
from clipmill.pipeline.ingest.sources import list_source_shards
from clipmill.schemas.words import counted

_err = Console(stderr=True, highlight=False)


def say_that_shards_are_fixed(
    dataset: Path, asked: int, setting: str = "shard_videos", *, by_hand: bool = False
) -> None:
    """Says so where the dataset's newest run had another `shard_videos` than is asked for now.

    Where no run says how the shards were made, only who asks `by_hand` is answered.
    """
    latest, there = records.latest_run(dataset), len(list_source_shards(dataset))
    before = latest["recipe"].get("shard_videos") if latest else None
    if not there or asked == before or (before is None and not by_hand):
        return
    was = "" if before is None else f", and was {before}"
    _err.print(f"{setting} is {asked} now{was}: {counted(there, 'shard')} of sources that are "
               "there stay as they are, which can't be changed; it holds for new sources. For "
               "other shards make another dataset.", soft_wrap=True)
