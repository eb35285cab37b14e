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
_LEAST_BYTES = 2 << 20
"""Of media in a shard: about the work that outweighs what a shard costs at every step."""


@dataclass(frozen=True)
class FittedShards:
    """Shards for a machine with so many CPUs.

    A shard's videos are downloaded together, so `downloads` of them are in one at least, if that
    is what their stage does at a time. Files on disk need none, but small ones share a shard.
    """

    cpus: int
    downloads: int = 1

    @property
    def most(self) -> int:
        """From so many new videos on, shards are no smaller than they may be at most."""
        return SHARD_VIDEOS * _SHARDS_A_CPU * self.cpus

    def videos(self, new: int, bytes_on_disk: int | None) -> int:
        """Videos per shard for so many new ones; the size is None if any is to be downloaded."""
        if bytes_on_disk is None:
            least = self.downloads
        else:
            least = new * _LEAST_BYTES // max(1, bytes_on_disk)
        return min(SHARD_VIDEOS, max(1, least, new // (_SHARDS_A_CPU * self.cpus)))
