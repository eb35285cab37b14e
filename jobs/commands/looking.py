"""Commands that show what a dataset holds and what became of its inputs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipmill.jobs import completion
from clipmill.jobs.cli_options import (
    Dataset,
    Format,
    Kinds,
    LogLevel,
    MemoryLimit,
    Output,
    OutputFormat,
    StatusFormat,
)
from clipmill.jobs.help_pages import Commands

app = Commands("Look at it")


@app.command()
def status(
    dataset: Dataset,
    format_: Annotated[StatusFormat, typer.Option("--format", help="how it is printed")
                       ] = StatusFormat.table,
) -> None:
    """Per stage: inputs, kept, rejected, failed, pending, seconds, rows per second."""
    from clipmill.jobs.query import print_status

    print_status(dataset, format_.value)


@app.command()
def show(
    dataset: Dataset,
    clip_ids: Annotated[list[str], typer.Argument(metavar="CLIP_ID...", help="as `clips` has them")
                        ],
    frames: Annotated[int, typer.Option(min=1, max=60, help="frames to show of each clip")] = 8,
    output: Annotated[Path | None, typer.Option(metavar="FILE.png", help="write the frames to this "
                      "picture, a row per clip")] = None,
    play: Annotated[bool, typer.Option("--open", help="cut the spans to temporary files and play "
                                       "them")] = False,
    format_: OutputFormat = Format.table,
) -> None:
    """Show clips: their rows with captions and scores, their frames, and the span played."""
    from clipmill.jobs.show import show as show_clips

    show_clips(dataset, clip_ids, frames=frames, format=format_.value, output=output, play=play)


@app.command()
def sql(
    dataset: Dataset,
    query: Annotated[str | None, typer.Argument(help="one query; a prompt when none is given")
                     ] = None,
    file: Annotated[Path | None, typer.Option(help="read the query from this file")] = None,
    format_: OutputFormat = Format.table,
    output: Output = None,
    allow_external: Annotated[bool, typer.Option("--allow-external", help="let the query read "
                              "other files and the network")] = False,
    memory_limit: MemoryLimit = None,
) -> None:
    """Query the catalog with DuckDB, read-only."""
    from clipmill.jobs.query import run_sql

    run_sql(dataset, query, file=file, format=format_.value, output=output,
            allow_external=allow_external, memory_limit=memory_limit)


@app.command()
def failures(
    dataset: Dataset,
    kind: Kinds = None,
    format_: OutputFormat = Format.table,
    output: Output = None,
    all_: Annotated[bool, typer.Option("--all", help="also failures that a retry made good")
                    ] = False,
) -> None:
    """What failed, why, and how often it was tried."""
    from clipmill.jobs.query import print_failures

    print_failures(dataset, kinds=kind or [], format=format_.value, output=output, history=all_)


@app.command()
def report(
    dataset: Dataset,
    output: Annotated[Path | None, typer.Option(metavar="FILE.html", help="where the page goes; "
                      "what is there is replaced; by default DATASET-report.html here")] = None,
    subset: Annotated[str | None, typer.Option(metavar="NAME", help="a frozen subset to report on, "
                      "with the whole catalog", autocompletion=completion.subset_names)] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=0, max=60, help="show at most this many "
                       "sample clips")] = 36,
    seed: Annotated[int, typer.Option(help="of the clips shown at random")] = 0,
) -> None:
    """Write one self-contained page: funnel, distributions, captions, samples, failures."""
    from clipmill.jobs.report.page import report_on

    report_on(dataset, output, subset=subset, sample_count=samples, seed=seed)


@app.command()
def logs(
    dataset: Dataset,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="of this run, or the only "
                   "one whose id begins so; by default the newest",
                   autocompletion=completion.run_ids)] = None,
    level: Annotated[LogLevel, typer.Option(help="this and what is worse")] = LogLevel.info,
    follow: Annotated[bool, typer.Option("--follow", help="go on with what is written until the "
                      "run ends")] = False,
    format_: OutputFormat = Format.table,
    output: Output = None,
) -> None:
    """What a run's driver and workers wrote, by time: shards, failures, warnings, tracebacks."""
    from clipmill.jobs.logs import show_logs

    show_logs(dataset, run, level=level.value, follow=follow, format=format_.value, output=output)


@app.command()
def runs(dataset: Dataset, format_: OutputFormat = Format.table, output: Output = None) -> None:
    """The runs so far, with models, prompts and fingerprints."""
    from clipmill.jobs.query import print_runs

    print_runs(dataset, format=format_.value, output=output)
