"""Checks whether the index still has removed rows: its files are copies of the tables' rows."""

from __future__ import annotations

from clipmill.pipeline.removal.removed_in_index import videos_in_index
from clipmill.pipeline.verify.findings import Book, Reopen, some
from clipmill.pipeline.verify.layout import Survey
from clipmill.schemas.command_line import shell_word


def check_removed_in_index(survey: Survey, book: Book) -> None:
    """Adds a fault for each index file with removed videos, whichever index it belongs to.

    Only finished removals are checked: an unfinished one will update the index when it finishes.
    """
    done = [stone for stone in survey.removals if stone.purged_at is not None]
    if not done:
        return
    wanted = {video for stone in done for video in stone.videos}
    for path, videos in videos_in_index(survey.dataset, wanted):
        stones = [stone for stone in done if not videos.isdisjoint(stone.videos)]
        book.fault(
            "removal",
            path.relative_to(survey.dataset).as_posix(),
            f"still has rows of removed videos: {some(videos)}",
            f"`clipmill verify {shell_word(book.dataset)} --repair` reopens the removal; "
            f"then {book.again} finishes it",
            *(Reopen(stone.name) for stone in stones),
            at_rest=True,
        )
