"""Commands that show what a dataset contains and what became of its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipmill.jobs import completion
from clipmill.jobs.cli_options import (
    Dataset,
    Kinds,
    LogLevel,
    MemoryLimit,
    Output,
    OutputFormat,
    StatusFormat,
)
from clipmill.jobs.help_pages import Commands

app = Commands("Explore a dataset")


@app.command()
def status(
    dataset: Dataset,
    format_: StatusFormat = "table",
    cost: Annotated[
        bool,
        typer.Option(
            "--cost",
            help="also what was spent per stage and per 1,000 kept clips, and what the next "
            "1,000 would cost",
        ),
    ] = False,
) -> None:
    """Show inputs, kept, rejected, failed, skipped, pending, seconds, rows/s for each stage."""
    from clipmill.jobs.status import print_status

    print_status(dataset, format_, cost=cost)


@app.command()
def show(
    dataset: Dataset,
    clip_ids: Annotated[list[str], typer.Argument(metavar="CLIP_ID...", help="as in `clips`")],
    frames: Annotated[int, typer.Option(min=1, max=60, help="frames to show per clip")] = 8,
    output: Annotated[
        Path | None,
        typer.Option(metavar="FILE.png", help="write the frames to this picture, one row per clip"),
    ] = None,
    play: Annotated[
        bool, typer.Option("--open", help="cut the spans to temporary files and play them")
    ] = False,
    format_: OutputFormat = "table",
) -> None:
    """Show clips: their rows with captions and scores, their frames, and their spans as video."""
    from clipmill.jobs.show import show as show_clips

    show_clips(dataset, clip_ids, frames=frames, format=format_, output=output, play=play)


@app.command()
def search(
    dataset: Dataset,
    words: Annotated[
        list[str] | None,
        typer.Argument(metavar="[WORDS]", help="what to look for, such as a dog on a beach"),
    ] = None,
    like: Annotated[
        str | None, typer.Option(metavar="CLIP_ID", help="a clip to compare with instead of words")
    ] = None,
    by: Annotated[
        str | None,
        typer.Option(
            metavar="LABEL",
            help="the stage whose embeddings are compared; by default embed_texts, or else "
            "embed_clips",
        ),
    ] = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL", help='only clips for which this is true, e.g. "aesthetic >= 4.5"'
        ),
    ] = None,
    limit: Annotated[int, typer.Option(metavar="N", min=1, help="clips to show")] = 20,
    format_: OutputFormat = "table",
    output: Output = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Find the clips whose captions or frames are closest to some words, or to another clip."""
    from clipmill.jobs.search import search as find

    find(
        dataset,
        words or [],
        like=like,
        by=by,
        where=where,
        limit=limit,
        format=format_,
        output=output,
        memory_limit=memory_limit,
    )


@app.command()
def sql(
    dataset: Dataset,
    query: Annotated[str | None, typer.Argument(help="one query; without it, a prompt")] = None,
    file: Annotated[Path | None, typer.Option(help="read the query from this file")] = None,
    format_: OutputFormat = "table",
    output: Output = None,
    allow_external: Annotated[
        bool,
        typer.Option("--allow-external", help="let the query read other files and the network"),
    ] = False,
    memory_limit: MemoryLimit = None,
) -> None:
    """Query the catalog with DuckDB, read-only."""
    from clipmill.jobs.sql import run_sql

    run_sql(
        dataset,
        query,
        file=file,
        format=format_,
        output=output,
        allow_external=allow_external,
        memory_limit=memory_limit,
    )


@app.command()
def failures(
    dataset: Dataset,
    kind: Kinds = None,
    format_: OutputFormat = "table",
    output: Output = None,
    all_: Annotated[
        bool, typer.Option("--all", help="also failures that a retry resolved")
    ] = False,
) -> None:
    """Show what failed, why, and how often it was tried."""
    from clipmill.jobs.failures import print_failures

    print_failures(dataset, kinds=kind or [], format=format_, output=output, history=all_)


@app.command()
def report(
    dataset: Dataset,
    output: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.html",
            help="where to write the "
            "page, replacing an old one; by default DATASET-report.html here",
        ),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="a frozen subset to report on, next to the whole catalog",
            autocompletion=completion.subset_names,
        ),
    ] = None,
    samples: Annotated[
        int, typer.Option(metavar="N", min=0, max=60, help="show at most this many sample clips")
    ] = 36,
    seed: Annotated[int, typer.Option(help="seed of the random sample clips")] = 0,
) -> None:
    """Write one self-contained page: funnel, distributions, captions, samples, failures."""
    from clipmill.jobs.report.page import report_on

    report_on(dataset, output, subset=subset, sample_count=samples, seed=seed)


@app.command()
def logs(
    dataset: Dataset,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            metavar="ID",
            help="this run's id, or a unique prefix of it; by default the newest run",
            autocompletion=completion.run_ids,
        ),
    ] = None,
    level: Annotated[LogLevel, typer.Option(help="this level and above")] = "info",
    follow: Annotated[
        bool, typer.Option("--follow", help="keep printing new lines until the run ends")
    ] = False,
    format_: OutputFormat = "table",
    output: Output = None,
) -> None:
    """Show what a run's driver and workers logged: shards, failures, warnings, tracebacks."""
    from clipmill.jobs.logs import show_logs

    show_logs(dataset, run, level=level, follow=follow, format=format_, output=output)


@app.command()
def runs(dataset: Dataset, format_: OutputFormat = "table", output: Output = None) -> None:
    """List the runs so far, with models, prompts and fingerprints."""
    from clipmill.jobs.runs import print_runs

    print_runs(dataset, format=format_, output=output)
