"""Known ids that a dataset leaves out, stored with it so that downloads can check again.

    sources/.excluded.npy    hashes of names, sorted: 8 bytes each, memory-mapped

For many URLs only the site knows which video they show.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.schemas.damage import reading
from clipmill.schemas.folders import EXCLUDED

if TYPE_CHECKING:
    import numpy as np

RULE = "sources.exclude_ids"


def names_of(extractor: str | None, platform_id: str | None, *others: str | None) -> list[str]:
    """All names by which a list of known ids may refer to one video."""
    found = [other for other in others if other]
    if platform_id:
        found.append(platform_id)
        if extractor:
            found += [f"{extractor.lower()} {platform_id}", f"{extractor.lower()}-{platform_id}"]
    return found


def write_exclusions(dataset: Path, names: Iterable[str]) -> None:
    """Stores these names with the dataset, replacing earlier ones."""
    import numpy as np

    path = dataset / EXCLUDED
    hashes = np.unique(np.fromiter(map(_hash, names), np.uint64))
    if not hashes.size:
        path.unlink(missing_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".excluded~{uuid.uuid4().hex[:8]}.tmp")
    try:
        with open(temporary, "wb") as file:
            np.save(file, hashes)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def read_exclusions(path: Path) -> np.ndarray:
    """The hashes in a file, memory-mapped; DamagedFile if it holds something else."""
    import numpy as np

    with reading(path):
        hashes: np.ndarray = np.load(path, mmap_mode="r", allow_pickle=False)
        if hashes.dtype != np.uint64 or hashes.ndim != 1:
            raise ValueError("it does not hold hashes")
    return hashes


class Exclusions:
    """The names of videos that a dataset leaves out."""

    def __init__(self, dataset: Path) -> None:
        import numpy as np

        try:
            self._hashes = read_exclusions(dataset / EXCLUDED)
        except FileNotFoundError:
            self._hashes = np.empty(0, np.uint64)

    def find(self, names: Iterable[str]) -> str | None:
        """The first of the names that is excluded."""
        import numpy as np

        for name in names:
            value = np.uint64(_hash(name))
            at = int(np.searchsorted(self._hashes, value))
            if at < len(self._hashes) and self._hashes[at] == value:
                return name
        return None


def _hash(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little")
