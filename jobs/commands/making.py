"""Commands that make a dataset or add to it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer

from clipmill.jobs import completion
from clipmill.jobs.cli_options import (
    Budget,
    ChosenSubset,
    Dataset,
    Environment,
    Have,
    ImportFormat,
    Kinds,
    Limit,
    RecipeArgument,
    RunEngine,
    Sample,
    SampleSeed,
    Set,
    Sources,
    Until,
    Wait,
    Where,
)
from clipmill.jobs.help_pages import Commands
from clipmill.schemas.errors import UsageError

app = Commands("Make a dataset")

_LAYOUTS = ", ".join(get_args(ImportFormat))


def _begin(what: str) -> None:
    """Says immediately, on a terminal, what begins: a run's imports take seconds on a slow disk."""
    if sys.stderr.isatty():
        print(what, file=sys.stderr, flush=True)
    from clipmill.schemas.pandas_import import spare_pandas

    spare_pandas()  # before modules are imported that make arrays


@app.command()
def run(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="a ready-made name or a "
            "YAML file; by default the recipe of the newest run of --dataset, without "
            "looking at its sources again",
            autocompletion=completion.run_recipes,
        ),
    ] = None,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="the dataset's folder; by default the recipe's, otherwise NAME-dataset here"
        ),
    ] = None,
    sources: Sources = None,
    engine: Annotated[
        RunEngine | None,
        typer.Option(
            help="where stages run; by default as in the recipe, otherwise auto: in this process "
            "if that is faster and safe, else on Ray"
        ),
    ] = None,
    set_: Set = None,
    until: Until = None,
    limit: Limit = None,
    where: Where = None,
    subset: ChosenSubset = None,
    sample: Sample = None,
    seed: SampleSeed = 0,
    have: Have = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="show what would be done, and what it would take and cost, as ranges; do nothing",
        ),
    ] = False,
    rates: Annotated[
        Path | None,
        typer.Option(
            metavar="DATASET",
            help="with --dry-run: a dataset whose runs tell what stages take that were never "
            "run in this one",
        ),
    ] = None,
    format_: Annotated[
        Literal["table", "json"], typer.Option("--format", help="with --dry-run: output format")
    ] = "table",
    budget: Budget = None,
    wait: Wait = False,
) -> None:
    """Run what is not done yet. Running again does only what is missing."""
    _begin("Reading the recipe …")
    asked: dict[str, Any] = {
        "recipe": recipe,
        "dataset": dataset,
        "sources": sources,
        "settings": set_ or [],
        "engine": engine,
        "until": until,
        "limit": limit,
        "where": where,
        "subset": subset,
        "sample": sample,
        "seed": seed,
        "have": have or (),
    }
    if dry_run:
        from clipmill.jobs.run import print_plan

        if budget:
            raise UsageError("--budget with --dry-run: a dry run spends nothing; give one of them")
        print_plan(format_, rates=rates, **asked)
        return
    if rates is not None or format_ != "table":
        option = "--rates" if rates is not None else "--format"
        raise UsageError(f"{option} is for --dry-run; add that, or leave {option} out")
    from clipmill.jobs.run import run_recipe

    run_recipe(budget=budget or [], wait=wait, **asked)


@app.command()
def retry(dataset: Dataset, kind: Kinds = None, wait: Wait = False) -> None:
    """Retry failed rows, and only those, with the newest run's recipe."""
    _begin("Looking for failed rows …")
    from clipmill.jobs.run import retry_failures

    retry_failures(dataset, kind or [], wait=wait)


@app.command("import")
def import_(
    dataset: Dataset,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE...",
            help="files as they were published; pass all files of a publication at once",
        ),
    ],
    format_: Annotated[
        ImportFormat,
        typer.Option("--format", metavar="LAYOUT", help=f"the layout of the metadata: {_LAYOUTS}"),
    ],
    limit: Annotated[
        int | None, typer.Option(min=1, help="take only this many videos, with all their clips")
    ] = None,
    shard_videos: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1_000_000,
            help="videos per "
            "shard, the unit of work, for new shards; 16 if not set; "
            "use more for millions of videos",
        ),
    ] = None,
    exclude_ids: Annotated[
        Path | None, typer.Option(metavar="FILE", help="known ids to reject, one per line")
    ] = None,
    wait: Wait = False,
) -> None:
    """Import published metadata as sources with given spans, captions and scores."""
    from clipmill.jobs.importing import import_published

    import_published(
        dataset,
        files,
        format_,
        shard_videos=shard_videos,
        limit=limit,
        exclude_ids=exclude_ids,
        wait=wait,
    )


@app.command()
def submit(
    recipe: RecipeArgument,
    address: Annotated[str, typer.Option(help="the cluster's job server, e.g. http://head:8265")],
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="absolute path of the dataset's folder, on storage that every node mounts"
        ),
    ] = None,
    sources: Sources = None,
    set_: Set = None,
    until: Until = None,
    limit: Limit = None,
    where: Where = None,
    subset: ChosenSubset = None,
    sample: Sample = None,
    seed: SampleSeed = 0,
    have: Have = None,
    budget: Budget = None,
    environment: Annotated[
        Environment,
        typer.Option(
            help="locked: the versions that this "
            "release was tested with; cluster: what the nodes have installed"
        ),
    ] = "locked",
    wait: Annotated[bool, typer.Option("--wait", help="follow the log until the job ends")] = False,
) -> None:
    """Submit the run to a Ray cluster as a job."""
    from clipmill.jobs.submit import submit as send

    send(
        recipe,
        address,
        dataset=dataset,
        sources=sources or [],
        overrides=set_ or [],
        until=until,
        limit=limit,
        where=where,
        subset=subset,
        sample=sample,
        seed=seed,
        have=have or [],
        budget=budget or [],
        locked=environment == "locked",
        wait=wait,
    )


@app.command()
def demo(
    files: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[FILE...]",
            help="with --real: your own films, or lists, folders and URLs; by default a few are "
            "rendered",
        ),
    ] = None,
    real: Annotated[
        bool,
        typer.Option(
            "--real",
            help="run the recipe `signals` instead, with models that know the world, from "
            "clipmill[signals]",
        ),
    ] = False,
    dataset: Annotated[
        Path | None,
        typer.Option(
            help="the dataset's folder; by default demo-dataset, with --real demo-real-dataset"
        ),
    ] = None,
    engine: Annotated[
        RunEngine | None, typer.Option(help="where stages run; by default ray, with --real local")
    ] = None,
) -> None:
    """Run the full recipe on a small rendered world, offline, and measure it against the truth."""
    if files and not real:
        raise UsageError(
            f"{files[0]}: the demo's models know only its own films; "
            "add --real for models that know the world"
        )
    _begin("Making the world …")
    if real:
        from clipmill.jobs.demo.real import run_real_demo

        place = (dataset or Path("demo-real-dataset")).absolute()
        run_real_demo(place, files or [], engine=engine or "local")
        return
    from clipmill.jobs.demo.demo import run_demo

    run_demo((dataset or Path("demo-dataset")).absolute(), engine=engine or "ray")
