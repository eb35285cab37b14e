"""How many videos a shard holds where nobody has set it.

A shard is the unit of work, so a few videos that are decoded are spread over more, smaller shards:
otherwise one worker has them all, and nothing is decoded until the last of them has come. This is
decided when sources come in; later runs, on whatever machine, find the shards as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

SHARD_VIDEOS = 16
"""Videos per shard of a large run, and wherever no videos are decoded."""
_SHARDS_A_CPU = 4


@dataclass(frozen=True)
class FittedShards:
    """Shards for a machine with so many CPUs.

    A shard's videos are downloaded together, so `downloads` of them are in one at least, if that
    is what their stage does at a time; files on disk need none.
    """

    cpus: int
    downloads: int = 1

    @property
    def most(self) -> int:
        """From so many new videos on, shards are no smaller than they may be at most."""
        return SHARD_VIDEOS * _SHARDS_A_CPU * self.cpus

    def videos(self, new: int, *, are_on_disk: bool) -> int:
        """Videos per shard for so many new ones."""
        least = 1 if are_on_disk else self.downloads
        return min(SHARD_VIDEOS, max(least, new // (_SHARDS_A_CPU * self.cpus)))
