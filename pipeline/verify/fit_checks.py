"""Checks what stages found once in all rows: readable, and there where shards were made with it."""

from __future__ import annotations

from clipmill.pipeline.dataset.fits import fit_files, read_fit
from clipmill.pipeline.dataset.shards import shard_order
from clipmill.pipeline.dataset.steps import Step
from clipmill.pipeline.verify.findings import Book, Remake, SetAside
from clipmill.pipeline.verify.layout import Survey
from clipmill.schemas.damage import DamagedFile


def check_fits(survey: Survey, book: Book) -> None:
    """Adds a fault for each fit that can't be read or is missing: its step's shards go with it."""
    by_file = _steps_with_fits(survey)
    there = set()
    for path in fit_files(survey.dataset):
        where = path.relative_to(survey.dataset).as_posix()
        there.add(where)
        try:
            read_fit(path)
        except FileNotFoundError:
            continue
        except (DamagedFile, OSError) as error:
            why = error.reason if isinstance(error, DamagedFile) else str(error)
            step = by_file.get(where)
            remakes = () if step is None else _remakes(survey, step)
            book.fault(
                "unreadable",
                where,
                f"what a stage has found in all rows can't be read ({why})",
                f"{book.repair} with all shards that were made with it, then {book.again} makes "
                "them again",
                SetAside((where,)),
                *remakes,
            )
            continue
        book.report.checked["fits"] += 1
    for where, step in by_file.items():
        if where not in there and (remakes := _remakes(survey, step)):
            book.fault(
                "missing",
                where,
                f"is missing, with which the shards in {step.place()} were made",
                f"restore it, or {book.repair.replace('sets it', 'sets those')}, then "
                f"{book.again} makes both again",
                *remakes,
            )


def _steps_with_fits(survey: Survey) -> dict[str, Step]:
    """The steps that have found something, by its file."""
    found = {}
    for record in survey.records.values():
        for stage in record["stages"]:
            fit = stage.get("fit")
            last = stage["steps"][-1]
            step = survey.steps.get((last["step"], last["fingerprint"]))
            if fit is not None and step is not None:
                found[fit["file"]] = step
    return found


def _remakes(survey: Survey, step: Step) -> tuple[Remake, ...]:
    shards = sorted(survey.shards(step), key=shard_order)
    return tuple(Remake(step.label, step.fingerprint, shard) for shard in shards)
