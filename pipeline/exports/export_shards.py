"""Writes shards of an export: files of about the requested size, numbered without gaps.

`roll` writes them one after the other, for formats whose file size is only known after writing;
`pack` plans them from known sizes, and writes them in parallel.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import pyarrow as pa

from clipmill.pipeline.dataset.shards import commit, remove_leftovers, temporary_beside, write_json
from clipmill.pipeline.engine.parallel_map import map_tasks
from clipmill.pipeline.exports.folder import WORK
from clipmill.pipeline.exports.request import ExportRequest, Format
from clipmill.pipeline.exports.selection import Unit
from clipmill.pipeline.exports.units import check_own, read_unit
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.storage import full_storage

SHARDS: dict[Format, str] = {
    "webdataset": "clips",
    "huggingface": "data/train",
    "parquet": "clips",
    "csv": "clips",
    "jsonl": "clips",
    "internvid": "internvid",
    "interleaved": "documents",
}
"""What a format's shards are called, before their number."""


@dataclass(frozen=True)
class Shard:
    """One finished file; `items` are clips, or documents."""

    name: str
    items: int
    size_bytes: int


class ShardFile(ABC):
    """A file being written under a temporary name; `suffix` is that of its final name."""

    suffix: ClassVar[str]

    def __init__(self, path: Path, request: ExportRequest) -> None:
        self.path = path
        self.request = request
        self.items = 0

    @abstractmethod
    def room_for(self, part: Any) -> bool:
        """Whether the shard stays within its size with this part, as far as is known."""

    @abstractmethod
    def add(self, part: Any) -> None: ...

    @abstractmethod
    def close(self) -> None: ...


Position = tuple[int, int]
"""Where a part begins: the number of a unit, and of a part in it."""


def roll(
    request: ExportRequest,
    kind: type[ShardFile],
    parts: Callable[[Position], Iterator[tuple[Position, Any]]],
) -> list[Shard]:
    """Writes all parts, in order, into shards; a part is never split.

    Continues after the last complete shard: a note for it says where the next one begins.
    """
    notes = notes_of(request)
    name = SHARDS[request.format]
    done, begin = _written(notes)
    if begin is None:
        return done
    writer: _Rolling | None = None
    try:
        for position, part in parts(begin):
            if writer is not None and writer.file.items and not writer.file.room_for(part):
                done.append(writer.finish(position))
                writer = None
            if writer is None:
                writer = _Rolling(
                    request,
                    kind,
                    f"{name}-{len(done):06d}{kind.suffix}",
                    notes / f"{len(done):06d}.json",
                )
            writer.file.add(part)
        if writer is not None:
            done.append(writer.finish(None))
            writer = None
    finally:
        if writer is not None:
            writer.discard()
    return done


def notes_of(request: ExportRequest) -> Path:
    return request.output / WORK / "shards"


def unit_by_unit(
    units: Sequence[Unit], parts: Callable[[Unit], Iterable[Any]], report: Callable[[int], None]
) -> Callable[[Position], Iterator[tuple[Position, Any]]]:
    """The parts of all units in order, from a position on, as `roll` takes them.

    `report` gets the number of clips of each finished unit.
    """

    def stream(begin: Position) -> Iterator[tuple[Position, Any]]:
        first, skipped = begin
        for at, unit in enumerate(units):
            if at >= first:
                for number, part in enumerate(parts(unit)):
                    if at > first or number >= skipped:
                        yield (at, number), part
            report(unit.clips)

    return stream


class _Rolling:
    """A shard that is being written, with the note that says where the next one begins."""

    def __init__(
        self, request: ExportRequest, kind: type[ShardFile], name: str, note: Path
    ) -> None:
        self._final = request.output / name
        self._final.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._final)
        self._temporary = temporary_beside(self._final)
        self._name, self._note = name, note
        self.file = kind(self._temporary, request)

    def finish(self, following: Position | None) -> Shard:
        self.file.close()
        shard = Shard(self._name, self.file.items, self._temporary.stat().st_size)
        commit(self._temporary, self._final)
        write_json(self._note, {**asdict(shard), "next": following})
        return shard

    def discard(self) -> None:
        self._temporary.unlink(missing_ok=True)


def _written(notes: Path) -> tuple[list[Shard], Position | None]:
    """The complete shards, and where the next one begins; None if all are complete."""
    done: list[Shard] = []
    following: Position | None = (0, 0)
    while (note := notes / f"{len(done):06d}.json").exists():
        found = json.loads(note.read_text("utf-8"))
        place = found.pop("next")
        following = None if place is None else (place[0], place[1])
        done.append(Shard(**found))
    return done, following


@dataclass(frozen=True)
class Piece:
    """Rows `start` to `stop` of a unit."""

    unit: Unit
    start: int
    stop: int


@dataclass(frozen=True)
class PackTask:
    """One shard to write from pieces of finished units; `token` is this process's."""

    request: ExportRequest
    token: str
    name: str
    pieces: tuple[Piece, ...]
    write: Callable[[ExportRequest, Path, Iterable[pa.Table]], None]


def plan(
    request: ExportRequest, units: Sequence[Unit], column: str, fits: Callable[[int], bool]
) -> Iterator[tuple[Piece, ...]]:
    """Plans shards as pieces of units, in order.

    `fits(size)` says whether so many bytes fit into one shard; `column` has the samples' sizes.
    """
    pieces: list[Piece] = []
    size = 0
    for unit in units:
        begin = 0
        sizes = read_unit(request, unit, [column])[column].to_pylist()
        for at, own in enumerate(sizes):
            if size and not fits(size + own):
                if at > begin:
                    pieces.append(Piece(unit, begin, at))
                yield tuple(pieces)
                pieces, size, begin = [], 0, at
            size += own
        if len(sizes) > begin:
            pieces.append(Piece(unit, begin, len(sizes)))
    if pieces:
        yield tuple(pieces)


def pack(tasks: Sequence[PackTask], report: Callable[[int], None]) -> list[Shard]:
    """Writes the missing shards in parallel; returns all, in order."""
    todo = []
    for task in tasks:
        if (task.request.output / task.name).exists():
            report(_items(task))
        else:
            todo.append(task)
    if todo:
        engine = todo[0].request.engine_or_default
        with closing(map_tasks(write_shard, todo, engine=engine)) as results:
            for result in results:
                if result.problem is not None:
                    raise ClipmillError(
                        f"{result.item.name} could not be written: "
                        f"{result.problem.message}; run the same command to "
                        "continue"
                    )
                report(_items(result.item))
    return [
        Shard(task.name, _items(task), (task.request.output / task.name).stat().st_size)
        for task in tasks
    ]


def _items(task: PackTask) -> int:
    return sum(piece.stop - piece.start for piece in task.pieces)


def write_shard(task: PackTask) -> None:
    """Commits one packed shard, then deletes the clips' own files, which it contains."""
    final = task.request.output / task.name
    final.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(final)
    temporary = temporary_beside(final)
    try:
        task.write(task.request, temporary, _tables(task))
        check_own(task.request, task.token)
        commit(temporary, final)
    except Exception as error:
        if (full := full_storage(error, task.request.output)) is not None:
            raise full from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    if task.request.cut is not None:
        for piece in task.pieces:
            paths = read_unit(task.request, piece.unit, ["media_path"])["media_path"]
            for path in paths[piece.start : piece.stop].to_pylist():
                (task.request.output / path).unlink(missing_ok=True)


def _tables(task: PackTask) -> Iterator[pa.Table]:
    for piece in task.pieces:
        yield read_unit(task.request, piece.unit).slice(piece.start, piece.stop - piece.start)
