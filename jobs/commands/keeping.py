"""Commands that check, repair and clean a dataset."""

from __future__ import annotations

from typing import Annotated

import typer

from clipmill.jobs.cli_options import Dataset, OutputFormat, Wait
from clipmill.jobs.help_pages import Commands

app = Commands("Maintain a dataset")


@app.command()
def verify(
    dataset: Dataset,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="set aside in DATASET/quarantine what is "
            "broken and can be made again; `clipmill run` then makes it again",
        ),
    ] = False,
    media: Annotated[
        bool,
        typer.Option("--media/--no-media", help="also read the video files: checksums and lengths"),
    ] = True,
    format_: OutputFormat = "table",
    wait: Wait = False,
) -> None:
    """Re-read everything; print one line per fault, and exit with status 1 if there are any."""
    from clipmill.jobs.verify import verify_dataset

    raise typer.Exit(
        verify_dataset(dataset, repairs=repair, media=media, format=format_, wait=wait)
    )


@app.command()
def remove(
    dataset: Dataset,
    video: Annotated[
        list[str] | None, typer.Option("--video", metavar="ID", help="a video_id; repeatable")
    ] = None,
    uploader: Annotated[
        list[str] | None,
        typer.Option(
            "--uploader",
            metavar="NAME",
            help="all videos of this uploader in the dataset; repeatable",
        ),
    ] = None,
    reason: Annotated[str | None, typer.Option(help="a note, kept in the view `removed`")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be removed")] = False,
    wait: Wait = False,
) -> None:
    """Remove videos from tables, media and later exports, for good."""
    from clipmill.jobs.remove import remove as take_out

    take_out(
        dataset,
        videos=video or [],
        uploaders=uploader or [],
        reason=reason,
        dry_run=dry_run,
        wait=wait,
    )


@app.command()
def index(dataset: Dataset, wait: Wait = False) -> None:
    """Build the catalog's index by hand; every run updates it at its end."""
    from clipmill.jobs.indexing import index_dataset

    index_dataset(dataset, wait=wait)
