"""Checks the files of audits: readable, consistent, and without clips of removed videos."""

from __future__ import annotations

from clipmill.pipeline.dataset.audit_records import read_audit
from clipmill.pipeline.verify.findings import Book, Reopen, some
from clipmill.pipeline.verify.layout import Survey
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.damage import DamagedFile
from clipmill.schemas.folders import AUDITS, json_files


def check_audits(survey: Survey, book: Book) -> None:
    """Adds a fault for each audit that can't be read or still names removed videos.

    Labels are someone's work, so no file is set aside.
    """
    done = [stone for stone in survey.removals if stone.purged_at is not None]
    gone = {video for stone in done for video in stone.videos}
    for path in json_files(survey.dataset / AUDITS):
        where = path.relative_to(survey.dataset).as_posix()
        try:
            record = read_audit(path)
        except FileNotFoundError:
            continue
        except (DamagedFile, OSError) as error:
            why = error.reason if isinstance(error, DamagedFile) else str(error)
            book.fault(
                "audit",
                where,
                f"the audit can't be read ({why})",
                "fix the file by hand, or delete it and draw the audit again; its labels are lost",
            )
            continue
        book.report.checked["audits"] += 1
        left = {clip.video_id for clip in record.sample} & gone
        if left:
            stones = [stone for stone in done if not left.isdisjoint(stone.videos)]
            book.fault(
                "removal",
                where,
                f"still has labels of removed videos: {some(left)}",
                f"`clipmill verify {shell_word(book.dataset)} --repair` reopens the removal; "
                f"then {book.again} finishes it",
                *(Reopen(stone.name) for stone in stones),
                at_rest=True,
            )
