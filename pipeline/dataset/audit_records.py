"""Audits: labelled samples of clips around a threshold, one JSON file each in `audits/`.

A file holds ids, scores and labels, never captions or addresses: what it shows of a clip is read
from the catalog. It also holds how many clips each stratum has on each side of every threshold
that is reported, so that estimates need the file alone, however the catalog has changed since.

Every change reads the file again under a lock: several people may label at once, and `remove`
takes removed clips out meanwhile.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from clipmill.pipeline.dataset.audit_estimates import Cell, Part, Quality, consistent, quality
from clipmill.pipeline.dataset.shards import write_json
from clipmill.pipeline.dataset.tombstones import removed_videos
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.damage import read_json, reading
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.file_locks import wait_for_lock
from clipmill.schemas.folders import AUDITS, audit_file, audits_lock, json_files
from clipmill.schemas.words import did_you_mean

FORMAT = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}\Z")
_MEETS: dict[str, Callable[[float, float], bool]] = {
    ">=": lambda value, limit: value >= limit,
    ">": lambda value, limit: value > limit,
    "<=": lambda value, limit: value <= limit,
    "<": lambda value, limit: value < limit,
}


@dataclass(frozen=True)
class Stratum:
    """Clips on one side of the audited threshold, at similar distances from it."""

    is_kept: bool
    place: str
    """near, middle or far from the threshold."""
    clips: int
    drawn: int
    low: float
    high: float


@dataclass(frozen=True)
class ReportedThreshold:
    """A threshold with how many clips of each stratum it would keep.

    `limit` is the number as the comparison uses it: the one given, in the score's precision.
    """

    value: float
    limit: float
    kept: tuple[int, ...]


@dataclass(frozen=True)
class SampledClip:
    """A clip of the sample. `if_met` and `if_not` say what the rule does with it in either case."""

    clip_id: str
    video_id: str
    stratum: int
    value: float
    if_met: bool
    if_not: bool
    label: bool | None = None
    is_skipped: bool = False
    labelled_by: str | None = None
    labelled_at: str | None = None


@dataclass(frozen=True)
class Population:
    """The clips that some threshold would keep; those without a value are not sampled."""

    clips: int
    kept: int
    without_value: int = 0
    not_a_number: int = 0
    not_a_number_kept: int = 0
    """How many clips the rule keeps although their score is NaN, which SQL ranks above all."""


@dataclass(frozen=True)
class AuditRecord:
    """Everything that an audit's file holds."""

    name: str
    predicate: str | None
    """The condition that was given, unless a rule of a recipe was."""
    recipe: str | None
    subset: str | None
    rule: int
    """The number of the audited rule in its recipe."""
    rules: list[dict[str, Any]]
    """The rules up to the audited one, which is the last."""
    says: str
    score: str
    operator: str
    threshold: float
    question: str | None
    seed: int
    requested: int
    population: Population
    strata: tuple[Stratum, ...]
    thresholds: tuple[ReportedThreshold, ...]
    sample: tuple[SampledClip, ...]
    created_at: str
    code_version: str
    snapshot: str
    run_id: str | None
    scorer: dict[str, Any] | None = None
    """The step that made the score, with its fingerprint; None for a computed expression."""
    updated_at: str | None = None
    removed: int = 0
    """How many clips of the sample were removed from the dataset since."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def labelled(self) -> int:
        return sum(clip.label is not None for clip in self.sample)

    @property
    def yes(self) -> int:
        return sum(clip.label is True for clip in self.sample)

    @property
    def waiting(self) -> list[SampledClip]:
        """Clips that are neither labelled nor skipped, in the order in which they are shown."""
        return [clip for clip in self.sample if clip.label is None and not clip.is_skipped]

    @property
    def labelled_by(self) -> list[str]:
        return sorted({clip.labelled_by for clip in self.sample if clip.labelled_by})

    @property
    def comparison(self) -> str:
        return f"{self.score} {self.operator} {self.threshold:g}"

    def is_kept(self, clip: SampledClip, at: ReportedThreshold | None = None) -> bool:
        """Whether the rule keeps a clip, with its own or with another threshold."""
        if at is None or at.value == self.threshold:
            return self.strata[clip.stratum].is_kept
        return clip.if_met if _MEETS[self.operator](clip.value, at.limit) else clip.if_not

    def weight(self, clip: SampledClip) -> float:
        """How many clips of the catalog a clip of the sample stands for."""
        stratum = self.strata[clip.stratum]
        return stratum.clips / stratum.drawn

    def quality(self, at: ReportedThreshold | None = None) -> Quality:
        """Precision and recall at the audited threshold, or at another reported one."""
        counts = {True: [[0, 0] for _ in self.strata], False: [[0, 0] for _ in self.strata]}
        for clip in self.sample:
            if clip.label is not None:
                count = counts[self.is_kept(clip, at)][clip.stratum]
                count[0] += 1
                count[1] += clip.label
        cells = []
        for number, stratum in enumerate(self.strata):
            kept = stratum.clips if stratum.is_kept else 0
            if at is not None and at.value != self.threshold:
                kept = at.kept[number]
            cells.append(
                Cell(
                    Part(kept, *counts[True][number]),
                    Part(stratum.clips - kept, *counts[False][number]),
                )
            )
        return quality(cells)

    @property
    def table(self) -> list[tuple[ReportedThreshold, Quality]]:
        """What each reported threshold is worth, from the lowest on."""
        found = [(at, self.quality(at)) for at in self.thresholds]
        loosest_first = sorted(found, key=lambda one: -one[1].clips)
        places = [at.value for at, _ in loosest_first]
        # Otherwise a lower threshold could keep a clip that a higher one keeps, and lose another.
        one_way = len({clip.if_met for clip in self.sample if clip.if_met != clip.if_not}) <= 1
        if one_way and self.threshold in places:
            made = consistent([one for _, one in loosest_first], places.index(self.threshold))
            found = [(at, one) for (at, _), one in zip(loosest_first, made, strict=True)]
        return sorted(found, key=lambda one: one[0].value)

    @property
    def audited(self) -> Quality:
        """Precision and recall at the audited threshold, as in the table."""
        return next((one for at, one in self.table if at.value == self.threshold), self.quality())

    def plain(self) -> dict[str, Any]:
        """As JSON."""
        found = asdict(self)
        return {"format": FORMAT, **found.pop("extra"), **found}

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> AuditRecord:
        """The record in a file's JSON; keys of a newer release are kept."""
        known = {one.name for one in fields(cls)}
        given: dict[str, Any] = {key: item for key, item in value.items() if key in known}
        given["population"] = _made(Population, value["population"])
        given["strata"] = tuple(_made(Stratum, one) for one in value["strata"])
        given["thresholds"] = tuple(
            _made(ReportedThreshold, {**one, "kept": tuple(one["kept"])})
            for one in value["thresholds"]
        )
        given["sample"] = tuple(_made(SampledClip, one) for one in value["sample"])
        others = {key: item for key, item in value.items() if key not in {*known, "format"}}
        record = cls(**{**given, "extra": others})
        record.check()
        return record

    def check(self) -> None:
        """ValueError if the parts contradict each other."""
        places = range(len(self.strata))
        if any(clip.stratum not in places for clip in self.sample):
            raise ValueError("a clip is of a stratum that the file does not have")
        if any(len(one.kept) != len(self.strata) for one in self.thresholds):
            raise ValueError("a threshold does not have one count per stratum")
        if len({clip.clip_id for clip in self.sample}) != len(self.sample):
            raise ValueError("a clip is twice in the sample")
        if self.operator not in _MEETS:
            raise ValueError(f"{self.operator!r} is no comparison")
        drawn = [0 for _ in self.strata]
        for clip in self.sample:
            drawn[clip.stratum] += 1
        if any(
            have > one.drawn or one.drawn > one.clips
            for have, one in zip(drawn, self.strata, strict=True)
        ):
            raise ValueError("a stratum has more clips in the sample than it has clips")
        for at in (None, *self.thresholds):
            self.quality(at)


def _made(kind: Any, value: Mapping[str, Any]) -> Any:
    known = {one.name for one in fields(kind)}
    return kind(**{key: item for key, item in value.items() if key in known})


def audit_names(dataset: Path) -> list[str]:
    return [path.stem for path in json_files(dataset / AUDITS)]


def read_audit(path: Path) -> AuditRecord:
    """One file; DamagedFile if it can't be read. Clips of removed videos are left out."""
    value = read_json(path)
    with reading(path):
        return AuditRecord.of(value)


def audit_records(dataset: Path) -> list[AuditRecord]:
    """All audits by name, without clips of removed videos, even while these are being removed."""
    removed = removed_videos(dataset)
    return [without(read_audit(path), removed) for path in json_files(dataset / AUDITS)]


def load_audit(dataset: Path, name: str) -> AuditRecord:
    """An audit by name; UsageError with similar names if there is none."""
    names = audit_names(dataset)
    if name not in names:
        known = (
            f"available: {', '.join(names)}"
            if names
            else f'`clipmill audit {shell_word(dataset)} --where "aesthetic >= 4.5"` draws one'
        )
        raise UsageError(f"{dataset} has no audit {name!r}; {did_you_mean(name, names)}{known}")
    return without(read_audit(audit_file(dataset, name)), removed_videos(dataset))


def check_audit_name(name: str) -> str:
    """The name if it is safe as a file name, otherwise UsageError."""
    if not _NAME.match(name):
        raise UsageError(
            f"--name {name!r}: an audit's name has up to 100 letters, digits, dots, dashes and "
            "underscores, and starts with a letter or digit"
        )
    return name


def add_audit(dataset: Path, record: AuditRecord) -> AuditRecord:
    """Writes a new audit, or the wider sample of one; labels that are there stay.

    ClipmillError if one of its clips was removed while it was being drawn.
    """
    with _changing(dataset):
        removed = removed_videos(dataset)
        if any(clip.video_id in removed for clip in record.sample):
            raise ClipmillError(
                "a clip of the sample was removed from the dataset while it was being drawn; run "
                "the same command again, which leaves it out"
            )
        path = audit_file(dataset, record.name)
        if path.exists():
            record = _with_labels_of(record, read_audit(path))
        write_json(path, record.plain())
    return record


def _with_labels_of(record: AuditRecord, former: AuditRecord) -> AuditRecord:
    there = {clip.clip_id: clip for clip in former.sample}
    sample = tuple(
        replace(
            clip,
            label=there[clip.clip_id].label,
            is_skipped=there[clip.clip_id].is_skipped,
            labelled_by=there[clip.clip_id].labelled_by,
            labelled_at=there[clip.clip_id].labelled_at,
        )
        if clip.clip_id in there
        else clip
        for clip in record.sample
    )
    return replace(record, sample=sample, updated_at=former.updated_at)


def store_labels(
    dataset: Path, name: str, labels: Mapping[str, bool | None], *, skip: bool = False, by: str = ""
) -> AuditRecord:
    """Stores labels by clip, or takes them back with None; `skip` marks clips as skipped.

    Ids that are no longer in the sample are ignored: their videos were removed meanwhile.
    """
    now = datetime.now(UTC).isoformat(timespec="seconds")
    with _changing(dataset):
        record = without(read_audit(audit_file(dataset, name)), removed_videos(dataset))
        sample = []
        for clip in record.sample:
            if clip.clip_id in labels:
                label = labels[clip.clip_id]
                is_labelled = label is not None
                clip = replace(  # noqa: PLW2901  the changed clip takes its place
                    clip,
                    label=label,
                    is_skipped=skip,
                    labelled_by=(by or None) if is_labelled else None,
                    labelled_at=now if is_labelled else None,
                )
            sample.append(clip)
        record = replace(record, sample=tuple(sample), updated_at=now)
        write_json(audit_file(dataset, name), record.plain())
    return record


def without(record: AuditRecord, videos: Mapping[str, Any] | Sequence[str]) -> AuditRecord:
    """The audit without the clips of some videos, whose labels are then no longer counted."""
    sample = tuple(clip for clip in record.sample if clip.video_id not in videos)
    gone = len(record.sample) - len(sample)
    return replace(record, sample=sample, removed=record.removed + gone) if gone else record


def forget_videos(dataset: Path, videos: Sequence[str] | frozenset[str]) -> int:
    """Deletes these videos' clips from all samples, with their labels; returns how many clips."""
    if not (dataset / AUDITS).is_dir():
        return 0
    forgotten = 0
    with _changing(dataset):
        for path in json_files(dataset / AUDITS):
            record = read_audit(path)
            left = without(record, dict.fromkeys(videos))
            if len(left.sample) < len(record.sample):
                forgotten += len(record.sample) - len(left.sample)
                write_json(path, left.plain())
    return forgotten


@contextlib.contextmanager
def _changing(dataset: Path) -> Iterator[None]:
    """Holds the lock of the audits; changes take milliseconds."""
    lock = audits_lock(dataset)
    try:
        lock.parent.mkdir(exist_ok=True)
        lock.touch()
    except OSError as error:
        raise ClipmillError(f"cannot write to {lock.parent}: {error.strerror}") from error
    with open(lock, "a", encoding="utf-8") as file:
        wait_for_lock(file)
        yield
