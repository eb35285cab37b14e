"""Commands that select clips and write them for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipmill.jobs import completion
from clipmill.jobs.cli_options import (
    CardFormat,
    Crop,
    CutStart,
    Dataset,
    Documents,
    Engine,
    ExportFormat,
    ExportMedia,
    MemoryLimit,
    Output,
    OutputFormat,
    Parameters,
    Predicate,
    Seed,
    StatusFormat,
    SubsetName,
    SubsetRecipe,
)
from clipmill.jobs.help_pages import Commands

app = Commands("Make training data")
subsets = Commands(
    help="Subsets: frozen lists of clips, and what a recipe would keep.", no_args_is_help=True
)
app.add_group("subset", subsets)


@app.command()
def export(
    dataset: Dataset,
    format_: Annotated[ExportFormat, typer.Option("--format", help="the file format")],
    output: Annotated[
        Path,
        typer.Option(
            metavar="DIR",
            help="a new or empty folder, or the folder of the same export, to resume it",
        ),
    ],
    subset: SubsetName = None,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="SQL", help='only clips for which this is true, e.g. "similarity > 0.3"'
        ),
    ] = None,
    media: Annotated[
        ExportMedia,
        typer.Option(
            help="none; copy: cut at key frames, without "
            "re-encoding; exact: re-encoded, frame-accurate"
        ),
    ] = "none",
    redact: Annotated[
        bool,
        typer.Option(
            "--redact",
            help="leave out titles, descriptions, uploader names, and addresses that reveal them",
        ),
    ] = False,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="maximum size of a file")] = "1GB",
    caption: Annotated[
        str,
        typer.Option(
            metavar="COLUMN",
            help="the column of clips that holds the text",
            autocompletion=completion.clip_columns,
        ),
    ] = "caption",
    keep_uncaptioned: Annotated[
        bool | None,
        typer.Option(
            "--keep-uncaptioned/--drop-uncaptioned",
            help="whether to keep clips without that text; by default parquet, csv, jsonl do",
        ),
    ] = None,
    documents: Annotated[
        Documents | None,
        typer.Option(
            help="interleaved: a: a video's clips and "
            "captions; b: also what is said; c: as b, two videos per document; by "
            "default a"
        ),
    ] = None,
    drop: Annotated[
        float | None,
        typer.Option(
            metavar="SHARE",
            help="interleaved: the share of clips left out at random; by default 0.3",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(min=0, help="interleaved: seed of --drop; by default 42")
    ] = None,
    start: Annotated[
        CutStart | None,
        typer.Option(help="copy: the key frame at which a clip begins; by default the one before"),
    ] = None,
    encoder: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="exact: FFmpeg's name of the encoder; by default the best available for H.264",
        ),
    ] = None,
    crf: Annotated[
        int | None, typer.Option(help="exact: the encoder's quality; lower is better")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(metavar="NAME", help="exact: the encoder's preset")
    ] = None,
    short_side: Annotated[
        int | None,
        typer.Option(metavar="PIXELS", help="exact: scale the short side down to at most this"),
    ] = None,
    crop: Annotated[
        Crop | None,
        typer.Option(
            help="exact: safe: cut each picture to the clip's safe_left, safe_top, safe_right and "
            "safe_bottom, without bars and overlays"
        ),
    ] = None,
    audio: Annotated[bool, typer.Option("--audio/--no-audio", help="keep the sound")] = True,
    engine: Annotated[
        Engine | None,
        typer.Option(
            help="where clips are cut; by default on this machine's processors, or on the cluster "
            "that RAY_ADDRESS names"
        ),
    ] = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Write clips for training; run again to resume an interrupted export."""
    from clipmill.jobs.export import export as write

    write(
        dataset,
        output,
        format_,
        memory_limit=memory_limit,
        subset=subset,
        where=where,
        redact=redact,
        shard_size=shard_size,
        caption=caption,
        keep_uncaptioned=keep_uncaptioned,
        documents=documents,
        drop=drop,
        seed=seed,
        media=media,
        audio=audio,
        start=start,
        encoder=encoder,
        crf=crf,
        preset=preset,
        short_side=short_side,
        crop=crop,
        engine=engine,
    )


@subsets.command("create")
def subset_create(
    dataset: Dataset,
    recipe: SubsetRecipe = None,
    where: Predicate = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="the subset's name; by default the recipe's, or made from the predicate",
        ),
    ] = None,
    seed: Seed = None,
    set_: Parameters = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Freeze the clips that a recipe or a predicate selects, with everything that defines them."""
    from clipmill.jobs.subset import create

    create(
        dataset,
        recipe,
        where=where,
        name=name,
        seed=seed,
        overrides=set_ or [],
        memory_limit=memory_limit,
    )


@subsets.command("list")
def subset_list(dataset: Dataset, format_: OutputFormat = "table", output: Output = None) -> None:
    """List the frozen subsets of a dataset."""
    from clipmill.jobs.subset import list_subsets

    list_subsets(dataset, format=format_, output=output)


@subsets.command("show")
def subset_show(
    dataset: Dataset,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="the subset's name", autocompletion=completion.subset_names
        ),
    ],
    format_: Annotated[CardFormat, typer.Option("--format", help="output format")] = "markdown",
) -> None:
    """Print the data card of a frozen subset."""
    from clipmill.jobs.subset import show

    show(dataset, name, format=format_)


@subsets.command("explain")
def subset_explain(
    dataset: Dataset,
    recipe: SubsetRecipe = None,
    where: Predicate = None,
    seed: Seed = None,
    set_: Parameters = None,
    near: Annotated[
        int,
        typer.Option(metavar="K", min=0, max=100, help="clips to show on each side of a threshold"),
    ] = 3,
    scores: Annotated[
        bool, typer.Option("--scores", help="also show how the catalog's scores correlate")
    ] = False,
    recipes: Annotated[
        bool,
        typer.Option(
            "--recipes", help="also show what the ready-made recipes keep, and where they agree"
        ),
    ] = False,
    format_: StatusFormat = "table",
    memory_limit: MemoryLimit = None,
) -> None:
    """Show what a recipe or a predicate would keep, rule by rule, without freezing anything."""
    from clipmill.jobs.subset import explain

    explain(
        dataset,
        recipe,
        where=where,
        seed=seed,
        overrides=set_ or [],
        near=near,
        scores=scores,
        recipes=recipes,
        format=format_,
        memory_limit=memory_limit,
    )


@subsets.command("recipes")
def subset_recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="[NAME]",
            help="print this recipe, as a start for your own",
            autocompletion=completion.subset_recipes,
        ),
    ] = None,
) -> None:
    """List the ready-made subset recipes, or print one."""
    from clipmill.jobs.subset import recipes as print_recipes

    print_recipes(name)
