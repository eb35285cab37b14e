"""A PyTorch dataset that decodes frames straight from the source videos, by time span.

No clips are cut: the rows come from the catalog once, and each worker opens the videos that it
needs with decord, or with PyAV if decord does not count frames correctly. The rows are in a
separate file that all workers memory-map, so ten million clips cost a worker next to nothing; no
database connection and no open video is shared between processes.
"""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
import weakref
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset, get_worker_info

from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.user_sql import readable_errors
from clipmill.pipeline.dataset.run_records import require_dataset
from clipmill.pipeline.subsets.freeze import FrozenSubset, load_subset
from clipmill.schemas.clocks import FILE_ZERO_SQL
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError, RowFailed, UsageError
from clipmill.schemas.sql_text import escaped_for_glob, literal, quoted
from clipmill.schemas.words import counted
from clipmill.stages.media.read.seek import FrameReader

# A frame this little before a clip's start is its first: given spans are in milliseconds.
_ROUNDING_SECONDS = 0.0006
_SMALLEST_SECONDS = 1e-6
_MAX_SUBSTITUTES = 10
# One slot per worker, so that none waits for another to count.
_SLOTS = 256
# Readers inherited by a forked process, which lacks their threads: they are never closed.
_inherited: list[Any] = []
_log = logging.getLogger("clipmill.training")


class ClipDataset(Dataset[dict[str, Any]]):
    """Clips of a dataset as tensors: `{video, caption, clip_id, start_seconds, end_seconds,
    frame_seconds}`.

    `video` is uint8 of shape (frames, 3, height, width), or what `transform` makes of that;
    `frame_seconds` are the presentation times of the frames, in the source video's time.

    subset: the name of a frozen subset; by default all clips.
    where: a further condition in SQL over the columns of `clips`.
    sampling: "uniform" takes the frame shown in the middle of each of `frames` equal parts of the
        clip, "random" one at a random time of each part, another in every epoch (`set_epoch`).
        A clip with fewer frames repeats some.
    size: the shorter side, cut square from the middle; or (height, width), filled and cut from the
        middle; None leaves frames as they are. Nothing is squeezed.
    caption: the column that is the caption; clips without one are left out. None: no captions.
    on_error: "raise" ends the iteration at a video that can't be read; "substitute" takes another
        clip, drawn by seed, epoch and index, logs it, and counts it in `n_substituted`.
    readers: how many videos a worker keeps open.
    scratch: where the file of rows goes (by default a temporary folder); about 200 bytes per clip.

    `left_out` says how many clips are not among these, and why.
    """

    def __init__(
        self,
        dataset: str | Path,
        subset: str | None = None,
        where: str | None = None,
        *,
        frames: int = 8,
        sampling: Literal["uniform", "random"] = "uniform",
        size: int | tuple[int, int] | None = 224,
        transform: Callable[[torch.Tensor], Any] | None = None,
        seed: int = 0,
        caption: str | None = "caption",
        on_error: Literal["raise", "substitute"] = "raise",
        readers: int = 4,
        scratch: str | Path | None = None,
    ) -> None:
        if sampling not in ("uniform", "random"):
            raise UsageError(f"sampling={sampling!r}: expected 'uniform' or 'random'")
        if on_error not in ("raise", "substitute"):
            raise UsageError(f"on_error={on_error!r}: expected 'raise' or 'substitute'")
        sides = () if size is None else (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) not in (0, 2) or min(frames, readers, *sides) < 1:
            raise UsageError("frames, readers and both sides of size must be at least 1")
        if seed < 0:
            raise UsageError(f"seed={seed}: must be at least 0")
        self.frames = frames
        self.sampling = sampling
        self.size: tuple[int, ...] = sides
        self.transform = transform
        self.seed = seed
        self.on_error = on_error
        self.readers = readers
        self._dataset = require_dataset(Path(dataset)).absolute()
        self._has_captions = caption is not None
        self._rows: pa.Table | None = None
        # Shared with workers of any kind, including persistent ones.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()
        self._substituted = torch.zeros(_SLOTS, dtype=torch.int64).share_memory_()
        frozen = None if subset is None else load_subset(self._dataset, subset)
        self._folder = Path(tempfile.mkdtemp(prefix="clipmill-clips-", dir=scratch))
        self._end = weakref.finalize(self, _remove, self._folder, os.getpid())
        self._forget_open_files()
        self.left_out = self._write_rows(frozen, where, caption)
        if not len(self):
            raise UsageError(f"no clip is left for training: {self._reasons(subset, where)}")

    def _reasons(self, subset: str | None, where: str | None) -> str:
        counts = ", ".join(f"{count} {reason}" for reason, count in self.left_out.items() if count)
        asked = " and ".join(
            filter(None, [subset and f"subset {subset}", where and f"where={where!r}"])
        )
        return counts or (
            f"none matches {asked}"
            if asked
            else f"{self._dataset} has none yet; see `clipmill status {shell_word(self._dataset)}`"
        )

    # -- rows ---------------------------------------------------------------------------------

    def _write_rows(
        self, frozen: FrozenSubset | None, where: str | None, caption: str | None
    ) -> dict[str, int]:
        """Writes the clips' rows, ordered by video; returns how many were left out, by reason."""
        # External files are allowed for the subset's own files; no untrusted SQL runs here.
        with open_catalog(self._dataset, allow_external=True) as catalog:
            query = _rows_query(catalog, frozen, where, caption)
            found = with_file = kept = 0
            with readable_errors():
                reader = catalog.ask(query)
                with pa.ipc.new_file(self._rows_path, reader.schema) as output:
                    for batch in reader:
                        files = batch.filter(pc.is_valid(batch["path"]))
                        texts = (
                            files
                            if caption is None
                            else files.filter(pc.is_valid(files["caption"]))
                        )
                        found += len(batch)
                        with_file += len(files)
                        kept += len(texts)
                        output.write_batch(texts)
        lacking_file, lacking_caption = found - with_file, with_file - kept
        left_out = {"without a video file": lacking_file, "without a caption": lacking_caption}
        if frozen is not None and where is None:
            left_out["removed since the subset was frozen"] = frozen.info["n_clips"] - found
        return left_out

    @property
    def _rows_path(self) -> str:
        return str(self._folder / "clips.arrow")

    def _table(self) -> pa.Table:
        if self._rows is None:
            try:
                self._rows = pa.ipc.open_file(pa.memory_map(self._rows_path)).read_all()
            except FileNotFoundError as error:
                raise ClipmillError(
                    f"{self._rows_path}: the dataset's rows are gone; they are removed together "
                    "with the ClipDataset that made them, so keep it alive, and make one on each "
                    "machine"
                ) from error
        return self._rows

    def __len__(self) -> int:
        return int(self._table().num_rows)

    def row(self, index: int) -> dict[str, Any]:
        """What is known about a clip, without decoding anything."""
        if not 0 <= index < len(self):
            raise IndexError(f"{index} of {len(self)} clips")
        found: list[dict[str, Any]] = self._table().slice(index, 1).to_pylist()
        return found[0]

    # -- samples ------------------------------------------------------------------------------

    def set_epoch(self, epoch: int) -> None:
        """Selects other random frames from now on; call it before each pass over the DataLoader."""
        self._epoch[0] = epoch

    @property
    def n_substituted(self) -> int:
        """How many clips have been replaced so far, in all workers."""
        return int(self._substituted.sum())

    def __getitem__(self, index: int) -> dict[str, Any]:
        index = index + len(self) if index < 0 else index
        row = self.row(index)
        for attempt in range(_MAX_SUBSTITUTES + 1):
            # The random times depend on the requested index, not on the worker.
            chance = np.random.default_rng([self.seed, int(self._epoch[0]), index, attempt])
            try:
                return self._sample(row, chance)
            except RowFailed as problem:
                if self.on_error == "raise":
                    raise ClipmillError(
                        f"clip {row['clip_id']}: {problem.message} "
                        "(ClipDataset(on_error='substitute') continues with another clip)"
                    ) from problem
                self._count(row, problem)
            row = self.row(int(chance.integers(len(self))))
        raise ClipmillError(
            f"{_MAX_SUBSTITUTES + 1} clips in a row can't be read, the last one "
            f"{row['clip_id']}: are the videos at {self._dataset}/media?"
        )

    def _sample(self, row: dict[str, Any], chance: np.random.Generator) -> dict[str, Any]:
        video = self._video(row["path"], row["_file_zero"])
        numbers = self._numbers(video, row, chance)
        images = video.images(numbers, self.size)
        tensor = torch.from_numpy(images)
        sample = {
            "video": tensor if self.transform is None else self.transform(tensor),
            "clip_id": row["clip_id"],
            "start_seconds": row["start_seconds"],
            "end_seconds": row["end_seconds"],
            "frame_seconds": torch.from_numpy(video.seconds[numbers]),
        }
        if self._has_captions:
            sample["caption"] = row["caption"]
        return sample

    def _numbers(
        self, video: _OpenVideo, row: dict[str, Any], chance: np.random.Generator
    ) -> np.ndarray:
        """The numbers of the frames to take: those shown at the wanted times."""
        start, end = row["start_seconds"], row["end_seconds"]
        places = chance.random(self.frames) if self.sampling == "random" else 0.5
        wanted = start + (np.arange(self.frames) + places) * (end - start) / self.frames
        first, last = np.searchsorted(
            video.seconds, [start - _ROUNDING_SECONDS, end - _ROUNDING_SECONDS]
        )
        if first == last:
            raise RowFailed("bad_media", f"{video.path} has no frame in {start:.3f}–{end:.3f} s")
        # A frame's own time is often wanted: rounding must not select the previous frame.
        shown = np.searchsorted(video.seconds, wanted + _SMALLEST_SECONDS, side="right") - 1
        return np.asarray(np.clip(shown, first, last - 1))

    # -- open videos --------------------------------------------------------------------------

    def _video(self, path: str, starts_at_seconds: float | None) -> _OpenVideo:
        if self._process != os.getpid():
            _inherited.append(self._videos)
            self._forget_open_files()
        video = self._videos.pop(path, None)
        if video is None:
            file = Path(path) if Path(path).is_absolute() else self._dataset / path
            while len(self._videos) >= self.readers:
                self._videos.popitem(last=False)
            # Workers already share the CPUs.
            video = _OpenVideo(
                file, starts_at_seconds, threads=0 if get_worker_info() is None else 1
            )
        self._videos[path] = video
        return video

    def _forget_open_files(self) -> None:
        self._rows = None
        self._videos: OrderedDict[str, _OpenVideo] = OrderedDict()
        self._process = os.getpid()

    def _count(self, row: dict[str, Any], problem: RowFailed) -> None:
        worker = get_worker_info()
        self._substituted[0 if worker is None else 1 + worker.id % (_SLOTS - 1)] += 1
        _log.warning("clip %s is replaced by another: %s", row["clip_id"], problem.message)

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if name not in ("_rows", "_videos", "_process", "_end")
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget_open_files()


class _OpenVideo:
    """An open video: its frames' times, and their pixels on demand."""

    def __init__(self, path: Path, starts_at_seconds: float | None, *, threads: int) -> None:
        self.path = path
        self._reader = FrameReader(path, starts_at_seconds, threads=threads)
        index = self._reader.index
        pts = np.asarray(index.pts, np.int64) + index.offset_pts
        # Rounded like `PacketIndex.seconds`: once.
        self.seconds = pts * index.time_base.numerator / index.time_base.denominator

    def images(self, numbers: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """RGB frames (k, 3, height, width); a number may occur more than once."""
        wanted = np.unique(numbers)
        width, height = self._reader.facts.width, self._reader.facts.height
        down, across = size or (height, width)
        factor = max(down / height, across / width)
        scaled = (max(across, round(width * factor)), max(down, round(height * factor)))
        left, top = (scaled[0] - across) // 2, (scaled[1] - down) // 2
        found = {}
        for number, image in self._reader.images(wanted.tolist(), scaled):
            cut = image[top : top + down, left : left + across]
            found[number] = cut[:, :, ::-1].transpose(2, 0, 1)
        if len(found) < len(wanted):
            raise RowFailed(
                "bad_media",
                f"{self.path}: of {counted(len(wanted), 'frame')} "
                f"only {len(found):,} can be decoded",
            )
        return np.stack([found[number] for number in numbers.tolist()])


def _rows_query(
    catalog: Catalog, frozen: FrozenSubset | None, where: str | None, caption: str | None
) -> str:
    """The rows of the requested clips, sorted so that a video's clips are together."""
    types = {name: kind for name, kind, *_ in catalog.execute("DESCRIBE clips").fetchall()}
    if caption is not None and types.get(caption, "VARCHAR") != "VARCHAR":
        raise UsageError(
            f"caption={caption!r}: this column holds {types[caption]}, not text; "
            "columns with text: "
            + ", ".join(name for name, kind in types.items() if kind == "VARCHAR")
        )
    text = "NULL" if caption is None else f"c.{quoted(caption)}"
    # On a separate line, so that a comment at the condition's end stops there.
    clips = "clips" if where is None else f"(SELECT * FROM clips WHERE ({where}\n))"
    chosen = ""
    if frozen is not None:
        files = ", ".join(literal(escaped_for_glob(str(path))) for path in frozen.files)
        chosen = f"SEMI JOIN read_parquet([{files}]) AS s ON c.clip_id = s.clip_id "
    return (
        f"SELECT c.clip_id, v.path, {FILE_ZERO_SQL} AS _file_zero, c.start_seconds, c.end_seconds, "
        f"CAST({text} AS VARCHAR) AS caption FROM {clips} AS c {chosen}"
        "LEFT JOIN videos AS v ON c.video_id = v.video_id "
        "ORDER BY c.video_id, c.start_seconds, c.clip_id"
    )


def _remove(folder: Path, process: int) -> None:
    # A forked worker that ends must not delete the rows that others use.
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
