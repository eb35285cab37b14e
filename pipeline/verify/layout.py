"""What a dataset should contain by its run records, and the files that it has."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from sys import intern

from clipmill.pipeline.dataset.choices import asked_shards, check_choice, choice_files
from clipmill.pipeline.dataset.crash_journal import read_journal
from clipmill.pipeline.dataset.run_records import RunRecord, read_run
from clipmill.pipeline.dataset.shards import base_shard, is_shard, retry_number, shard_order
from clipmill.pipeline.dataset.steps import Step, StepId, fingerprints, steps_of
from clipmill.pipeline.dataset.tombstones import Tombstone, tombstones
from clipmill.pipeline.engine.retry import read_request
from clipmill.pipeline.ingest.list_counts import read_counts
from clipmill.pipeline.ingest.playlists import read_list_entries
from clipmill.pipeline.recipes.plan import RetryRequest, beginnings
from clipmill.pipeline.verify.findings import Book, SetAside
from clipmill.schemas import folders, tables
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.damage import DamagedFile, read_json, reading
from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.ids import is_of
from clipmill.schemas.step_tables import StepTable
from clipmill.stages.media.fetch.exclusions import read_exclusions

SOURCES_STEP = Step(
    folders.SOURCES,
    folders.SOURCES,
    folders.SOURCES,
    "source_key",
    "",
    {},
    (),
    (folders.SOURCES,),
    tuple(tables.SOURCES.names),
    None,
)


@dataclass
class Folder:
    """The shards in one folder, and names that are not shards."""

    shards: set[str] = field(default_factory=set)
    others: list[str] = field(default_factory=list)


@dataclass
class Survey:
    """A dataset's records, requests and files, as found at the start."""

    dataset: Path
    records: dict[str, RunRecord]
    newest: RunRecord | None
    newest_changed_at: float
    steps: dict[StepId, Step]
    requests: dict[str, RetryRequest]
    request_times: dict[str, float]
    removals: list[Tombstone]
    removals_known: bool
    records_known: bool
    awaited: set[str]
    folders: dict[str, Folder] = field(default_factory=dict)
    declared: dict[tuple[str, str, str], tuple[str, ...]] = field(default_factory=dict)
    _below: dict[StepId, list[Step]] = field(default_factory=dict)

    @cached_property
    def current(self) -> set[StepId]:
        """The steps of the newest run."""
        return set(fingerprints(self.newest).items())

    @cached_property
    def removed_videos(self) -> set[str]:
        return {video for stone in self.removals for video in stone.videos}

    @cached_property
    def removed_keys(self) -> set[str]:
        return {key for stone in self.removals for key in stone.source_keys}

    def is_removed(self, key: str) -> bool:
        return is_of(key, self.removed_videos, self.removed_keys)

    @cached_property
    def ordered(self) -> list[Step]:
        """The steps of all records, each after those it reads."""
        depths: dict[StepId, int] = {SOURCES_STEP.id: 0}

        def depth(name: StepId) -> int:
            if name not in depths:
                depths[name] = 0  # stops at a circular record
                step = self.steps.get(name)
                depths[name] = 1 + max(map(depth, step.inputs.items()), default=0) if step else 0
            return depths[name]

        return sorted(self.steps.values(), key=lambda step: (depth(step.id), step.id))

    @cached_property
    def _children(self) -> dict[StepId, list[Step]]:
        found: dict[StepId, list[Step]] = {}
        for step in self.steps.values():
            for name in step.inputs.items():
                found.setdefault(name, []).append(step)
        return found

    def below(self, name: StepId) -> list[Step]:
        """The steps that depend on one, in order, without that step itself."""
        if name not in self._below:
            self._below[name] = self._find_below(name)
        return self._below[name]

    def _find_below(self, name: StepId) -> list[Step]:
        reached: set[StepId] = set()
        open_ = [name]
        while open_:
            for child in self._children.get(open_.pop(), ()):
                if child.id not in reached:
                    reached.add(child.id)
                    open_.append(child.id)
        return [step for step in self.ordered if step.id in reached]

    def shards(self, step: Step, table: str | None = None) -> set[str]:
        return self.folders.get(step.place(table), Folder()).shards

    @cached_property
    def _groups(self) -> dict[str, dict[str, list[str]]]:
        """The shards by folder and base shard, in order."""
        found: dict[str, dict[str, list[str]]] = {}
        for place, folder in self.folders.items():
            groups = found.setdefault(place, {})
            for shard in sorted(folder.shards, key=shard_order):
                groups.setdefault(base_shard(shard), []).append(shard)
        return found

    def group(self, step: Step, base: str, table: str | None = None) -> list[str]:
        return self._groups.get(step.place(table), {}).get(base, [])

    @cached_property
    def bases(self) -> list[str]:
        """Every base shard that any table has."""
        found = {base_shard(shard) for folder in self.folders.values() for shard in folder.shards}
        return sorted(found, key=int)

    def begins_at(self, shard: str) -> list[StepId]:
        """The steps at which a retry begins; none for a retry that nobody requested."""
        request = self.requests.get(shard)
        return list(beginnings(request)) if request else []

    def passes(self, step: Step, shard: str) -> bool:
        """Whether a shard passes through a step; a retry does so from its first step on."""
        if not retry_number(shard):
            return True
        return any(begin == step.id or step in self.below(begin) for begin in self.begins_at(shard))

    @cached_property
    def _asked_for(self) -> frozenset[str] | None:
        """The base shards that the newest run was asked for; None for all."""
        try:
            return asked_shards(self.dataset, self.newest)
        except DamagedFile:  # which is reported
            return frozenset()

    def is_asked_for(self, shard: str) -> bool:
        """Whether the newest run was asked for something of this shard."""
        return self._asked_for is None or base_shard(shard) in self._asked_for

    def must_have(self, step: Step, shard: str) -> bool:
        """Whether the newest run claims to have done this shard."""
        record = self.newest
        if record is None or record.get("state") != "done" or step.id not in self.current:
            return False
        if step.file(shard) in self.awaited or not self.is_asked_for(shard):
            return False
        if "last_shard" in record:
            last = record["last_shard"]
            if last is None or int(base_shard(shard)) > int(last):
                return False
            labels = [stage["stage"] for stage in record["stages"]]
            if record["until"] in labels and (
                labels.index(step.stage_label) > labels.index(record["until"])
            ):
                return False
        elif not self.shards(step):
            return False  # an older record doesn't say whether it got that far
        if retry_number(shard):
            return self.passes(step, shard) and self._was_asked_before_the_run(shard)
        return True

    def _was_asked_before_the_run(self, shard: str) -> bool:
        asked_at = self.requests[shard].get("asked_at")
        if asked_at is None:  # an older request has no time: use the file's
            return self.request_times[shard] <= self.newest_changed_at
        return self.newest is not None and asked_at <= self.newest["started_at"]


def read_survey(dataset: Path, book: Book) -> Survey:
    """Reads records and lists folders; anything unreadable becomes a fault in the book."""
    records: dict[str, RunRecord] = {}
    steps: dict[StepId, Step] = {}
    declared: dict[tuple[str, str, str], tuple[str, ...]] = {}
    newest, changed_at, records_known = None, 0.0, True
    for path in folders.json_files(dataset / folders.RUNS):
        try:
            record = read_run(path)
            with reading(path):
                found = steps_of(record)
            changed_at = path.stat().st_mtime
        except (DamagedFile, OSError) as error:
            records_known = False
            _unreadable(
                book,
                dataset,
                path,
                error,
                "the run's record",
                "a run with the same recipe writes a new one",
            )
            continue
        records[path.stem], newest = record, record
        steps.update((step.id, step) for step in found)
        declared.update(((path.stem, *step.id), step.columns) for step in found)
        book.report.checked["runs"] += 1
    requests, times = _requests(dataset, book)
    removals, removals_known = _removals(dataset, book)
    survey = Survey(
        dataset,
        records,
        newest,
        changed_at,
        steps,
        requests,
        times,
        removals,
        removals_known,
        records_known,
        set(),
        declared=declared,
    )
    _read_quarantine(survey)
    # A dependent step is listed before its inputs, so that during a run no input seems missing.
    for step in reversed(survey.ordered):
        for table in reversed(step.tables):
            survey.folders[step.place(table)] = list_folder(dataset / step.place(table))
    survey.folders[folders.SOURCES] = list_folder(dataset / folders.SOURCES)
    return survey


def list_folder(folder: Path) -> Folder:
    found = Folder()
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return found
    for name in names:
        shard = name.removesuffix(".parquet")
        if name.endswith(".parquet") and is_shard(shard):
            found.shards.add(intern(shard))
        else:
            found.others.append(name)
    found.others.sort()
    return found


def _unreadable(
    book: Book, dataset: Path, path: Path, error: Exception, what: str, then: str
) -> None:
    where = path.relative_to(dataset).as_posix()
    why = error.reason if isinstance(error, DamagedFile) else str(error)
    book.fault(
        "unreadable",
        where,
        f"{what} can't be read ({why})",
        f"{book.repair}; {then}",
        SetAside((where,)),
    )


def check_notes(dataset: Path, book: Book) -> None:
    """Checks files of single commands: workers' journals, and the stored contents of lists.

    One that disappears before it is opened belonged to an active run.
    """
    for paths, read, what, then in (
        (
            folders.json_files(dataset / folders.JOURNAL),
            read_journal,
            "the journal of a worker",
            "a row that kills its worker is then identified again",
        ),
        (
            folders.json_files(dataset / folders.LISTS),
            read_list_entries,
            "what a list was found to hold",
            "the next run that names the list requests it again",
        ),
        (
            folders.json_files(dataset / folders.LIST_COUNTS),
            read_counts,
            "what became of a list's rows",
            "the next run that names the list counts them again",
        ),
        (
            choice_files(dataset),
            check_choice,
            "what a run was asked for",
            "a run with the same choice writes it again",
        ),
        (
            [dataset / folders.EXCLUDED],
            read_exclusions,
            "the file of known ids",
            "a run whose recipe has the same exclude_ids writes it again",
        ),
    ):
        for path in paths:
            try:
                read(path)
            except FileNotFoundError:
                continue
            except (DamagedFile, OSError) as error:
                _unreadable(book, dataset, path, error, what, then)


def _requests(dataset: Path, book: Book) -> tuple[dict[str, RetryRequest], dict[str, float]]:
    found: dict[str, RetryRequest] = {}
    times: dict[str, float] = {}
    for path in folders.json_files(dataset / folders.RETRIES):
        try:
            request = read_request(path)
            times[path.stem] = path.stat().st_mtime
            found[path.stem] = request
        except (DamagedFile, OSError) as error:
            _unreadable(
                book,
                dataset,
                path,
                error,
                "the retry's request",
                f"`clipmill retry {shell_word(book.dataset)}` requests it again",
            )
    return found, times


def _removals(dataset: Path, book: Book) -> tuple[list[Tombstone], bool]:
    try:
        return tombstones(dataset), True
    except (ClipmillError, OSError) as error:
        # Never set aside, which would bring back removed videos.
        book.fault("removal", folders.REMOVED, str(error), "fix the file by hand")
        return [], False


def _read_quarantine(survey: Survey) -> None:
    """What repairs have set aside since the newest run is pending, not missing."""
    since = survey.newest["started_at"] if survey.newest else ""
    for path in sorted(
        (survey.dataset / folders.QUARANTINE).glob(f"*/{folders.QUARANTINE_REASON}")
    ):
        try:
            record = read_json(path)
            with reading(path):
                at, awaited, moved = str(record["at"]), set(record["awaited"]), record["moved"]
                takes_records = any(name.startswith(f"{folders.RUNS}/") for name in moved)
        except (DamagedFile, OSError):
            continue
        if at > since:
            survey.awaited |= awaited
            if takes_records:
                survey.records_known = False


def missing_inputs(survey: Survey, step: Step, shard: str) -> Iterator[Step]:
    """The earlier steps that must have had a shard for it to exist here, but lack it."""
    for name in step.inputs.items():
        before = survey.steps.get(name)
        if before is None:
            continue
        if shard not in survey.shards(before) and survey.passes(before, shard):
            yield before


def is_cache(table: str) -> bool:
    """Frames may be deleted at any time: stages then read them from the video again."""
    return table == folders.FRAMES


def frames_are_dropped(record: RunRecord | None) -> bool:
    return record is not None and bool(record["recipe"].get("drop_frames"))


def narrowed(table: StepTable, shards: Iterable[str]) -> StepTable:
    """A table of the catalog with only these shards."""
    names = tuple(sorted(shards, key=shard_order))
    return replace(
        table,
        shards=names,
        folder=table.folder if names else None,
        retries=tuple(name for name in names if retry_number(name)),
    )
