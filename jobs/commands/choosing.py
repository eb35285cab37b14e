"""Commands that choose clips and write them for training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipmill.jobs import completion
from clipmill.jobs.cli_options import (
    CardFormat,
    CutStart,
    Dataset,
    Documents,
    Engine,
    ExportFormat,
    Format,
    Media,
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
subsets = Commands(help="Subsets: what a recipe would take, and frozen lists of clips.",
                      no_args_is_help=True)
app.add_group("subset", subsets)


@app.command()
def export(
    dataset: Dataset,
    format_: Annotated[ExportFormat, typer.Option("--format", help="what the files are")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="a new or empty folder, or that of "
                      "the same export, to go on with it")],
    subset: SubsetName = None,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="only clips for which this is "
                     "true, e.g. \"similarity > 0.3\"")] = None,
    media: Annotated[Media, typer.Option(help="none; copy: cut at key frames, without encoding "
                     "again; exact: encoded again, right to the frame")] = Media.none,
    redact: Annotated[bool, typer.Option("--redact", help="leave out titles, descriptions and "
                      "names of uploaders, and addresses that tell them")] = False,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="how large a file may get")
                          ] = "1GB",
    caption: Annotated[str, typer.Option(metavar="COLUMN", help="the text of a clip, a column of "
                       "clips", autocompletion=completion.clip_columns)] = "caption",
    keep_uncaptioned: Annotated[bool | None, typer.Option(
        "--keep-uncaptioned/--drop-uncaptioned", help="whether clips without that text stay; by "
        "default in parquet and csv only")] = None,
    documents: Annotated[Documents | None, typer.Option(help="interleaved: a, a video's clips and "
                         "captions; b, also what is said; c, as b, two videos together; by "
                         "default a")] = None,
    drop: Annotated[float | None, typer.Option(metavar="SHARE", help="interleaved: the share of "
                    "clips left out at random; by default 0.3")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="interleaved: of that choice; by default "
                                             "42")] = None,
    start: Annotated[CutStart | None, typer.Option(help="copy: which key frame a clip begins at; "
                                                   "by default the one before")] = None,
    encoder: Annotated[str | None, typer.Option(metavar="NAME", help="exact: FFmpeg's name of an "
                       "encoder; by default the best H.264 one there is")] = None,
    crf: Annotated[int | None, typer.Option(help="exact: the encoder's quality, lower is better")
                   ] = None,
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="exact: the encoder's preset")
                      ] = None,
    short_side: Annotated[int | None, typer.Option(metavar="PIXELS", help="exact: scale down to "
                          "this at most")] = None,
    audio: Annotated[bool, typer.Option("--audio/--no-audio", help="keep the sound")] = True,
    engine: Annotated[Engine | None, typer.Option(help="where clips are cut; by default ray, and "
                      "local where there is nothing to cut")] = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Write clips for training; run again, it goes on where it was stopped."""
    from clipmill.jobs.export import export as write
    from clipmill.pipeline.exports.request import (
        ExportRequest,
        cut_options,
        interleaving_options,
        size_in_bytes,
    )

    write(ExportRequest(
        dataset.absolute(), output.absolute(), format_.value, subset=subset, where=where,
        redact=redact, shard_bytes=size_in_bytes(shard_size, "--shard-size"), caption=caption,
        uncaptioned=keep_uncaptioned,
        interleaving=interleaving_options(format_.value, documents.value if documents else None,
                                          drop, seed),
        cut=cut_options(media.value, audio=audio, start=start.value if start else None,
                        encoder=encoder, crf=crf, preset=preset, short_side=short_side),
        engine=engine.value if engine else None,
    ), memory_limit=memory_limit)


@subsets.command("create")
def subset_create(
    dataset: Dataset,
    recipe: SubsetRecipe = None,
    where: Predicate = None,
    name: Annotated[str | None, typer.Option(metavar="N", help="the subset's name; by default the "
                    "recipe's, or made from the predicate")] = None,
    seed: Seed = None,
    set_: Parameters = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Freeze the clips that a recipe or a predicate takes, with all that made the list."""
    from clipmill.jobs.subset import create

    create(dataset, recipe, where=where, name=name, seed=seed, overrides=set_ or [],
           memory_limit=memory_limit)


@subsets.command("list")
def subset_list(
    dataset: Dataset, format_: OutputFormat = Format.table, output: Output = None
) -> None:
    """The frozen subsets of a dataset."""
    from clipmill.jobs.subset import list_subsets

    list_subsets(dataset, format=format_.value, output=output)


@subsets.command("show")
def subset_show(
    dataset: Dataset,
    name: Annotated[str, typer.Argument(metavar="NAME", help="the subset's name",
                                        autocompletion=completion.subset_names)],
    format_: Annotated[CardFormat, typer.Option("--format", help="how it is printed")
                       ] = CardFormat.markdown,
) -> None:
    """The data card of a frozen subset."""
    from clipmill.jobs.subset import show

    show(dataset, name, format=format_.value)


@subsets.command("explain")
def subset_explain(
    dataset: Dataset,
    recipe: SubsetRecipe = None,
    where: Predicate = None,
    seed: Seed = None,
    set_: Parameters = None,
    near: Annotated[int, typer.Option(metavar="K", min=0, max=100, help="clips to show on each "
                    "side of a threshold")] = 3,
    format_: Annotated[StatusFormat, typer.Option("--format", help="how it is printed")
                       ] = StatusFormat.table,
    memory_limit: MemoryLimit = None,
) -> None:
    """What a recipe or a predicate would take, rule by rule, before anything is frozen."""
    from clipmill.jobs.subset import explain

    explain(dataset, recipe, where=where, seed=seed, overrides=set_ or [], near=near,
            format=format_.value, memory_limit=memory_limit)


@subsets.command("recipes")
def subset_recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="print this one, to start "
                    "one of your own from", autocompletion=completion.subset_recipes)] = None,
) -> None:
    """Names and purposes of the ready-made subset recipes."""
    from clipmill.jobs.subset import recipes as print_recipes

    print_recipes(name)
