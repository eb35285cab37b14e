"""The front door: `clipmill`. Thin on purpose; heavy imports wait until a command needs them."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from jobs.cli_options import (
    CardFormat,
    CutStart,
    Dataset,
    Documents,
    Engine,
    Environment,
    ExportFormat,
    Format,
    ImportFormat,
    Kinds,
    LogLevel,
    Media,
    MemoryLimit,
    Output,
    OutputFormat,
    Parameters,
    RecipeArgument,
    Seed,
    Set,
    Sources,
    StatusFormat,
    SubsetRecipe,
    Wait,
)

app = typer.Typer(
    name="clipmill",
    help="Video sources in, a queryable video–text dataset out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
recipes = typer.Typer(help="Ready-made recipes.", no_args_is_help=True)
app.add_typer(recipes, name="recipe")
subsets = typer.Typer(help="Subsets: what a recipe would take, and frozen lists of clips.",
                      no_args_is_help=True)
app.add_typer(subsets, name="subset")


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks of errors; may stand "
                     "anywhere in the command")] = False,
) -> None:
    pass  # main() has taken it already, wherever it stood


@app.command()
def run(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="a ready-made name or a "
                      "YAML file; by default the recipe of the --dataset's newest run, whose "
                      "sources are not looked at again")] = None,
    dataset: Annotated[Path | None, typer.Option(help="the dataset's folder; by default the "
                       "recipe's, else NAME-dataset here")] = None,
    sources: Sources = None,
    engine: Annotated[Engine | None, typer.Option(help="where stages run; by default as the "
                      "recipe says, else ray")] = None,
    set_: Set = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="stop after this stage")
                     ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="take at most this many sources")
                     ] = None,
    wait: Wait = False,
) -> None:
    """Run what is not done yet; run again, it does only what is missing."""
    from jobs.run import closing_table, dataset_folder, load
    from jobs.run import run as execute

    loaded = load(recipe, dataset, overrides=set_ or [], sources=sources or [],
                  engine=engine.value if engine else None, wait=wait)
    folder = dataset_folder(loaded, dataset)
    execute(loaded, folder, until=until, limit=limit,
            take_sources=recipe is not None or bool(sources), wait=wait)
    closing_table(folder)


@app.command("import")
def import_(
    dataset: Dataset,
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="JSON lines, also "
                     "gzipped, or Parquet; give all files of a dataset at once")],
    format_: Annotated[ImportFormat, typer.Option("--format", help="whose metadata it is")],
    limit: Annotated[int | None, typer.Option(min=1, help="take the first so many videos, with "
                     "all their clips")] = None,
    shard_videos: Annotated[int, typer.Option(min=1, max=1_000_000, help="videos a shard, "
                            "the unit of work; take more for millions of videos")] = 16,
    exclude_ids: Annotated[Path | None, typer.Option(metavar="FILE", help="known ids, one a line, "
                           "which are rejected")] = None,
    wait: Wait = False,
) -> None:
    """Take published metadata in, as sources with given spans, captions and scores."""
    from jobs.importing import import_internvid

    import_internvid(dataset, files, shard_videos=shard_videos, limit=limit,
                     exclude_ids=exclude_ids, wait=wait)


@app.command()
def retry(dataset: Dataset, kind: Kinds = None, wait: Wait = False) -> None:
    """Try failed rows again, and only those, with the newest run's recipe."""
    from jobs.run import closing_table, load
    from jobs.run import run as execute
    from pipeline.records import require_dataset
    from schemas.errors import ERROR_KINDS, UsageError

    for word in kind or []:
        if word not in ERROR_KINDS:
            raise UsageError(f"--kind {word}: allowed: {', '.join(ERROR_KINDS)}")
    execute(load(None, require_dataset(dataset), wait=wait), dataset.absolute(),
            retry_kinds=kind or [], wait=wait)
    closing_table(dataset)


@app.command()
def status(
    dataset: Dataset,
    format_: Annotated[StatusFormat, typer.Option("--format", help="how it is printed")
                       ] = StatusFormat.table,
) -> None:
    """Per stage: inputs, kept, rejected, failed, pending, seconds, rows per second."""
    from jobs.query import print_status

    print_status(dataset, format_.value)


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
    from jobs.query import run_sql

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
    from jobs.query import print_failures

    print_failures(dataset, kinds=kind or [], format=format_.value, output=output, history=all_)


@app.command()
def remove(
    dataset: Dataset,
    video: Annotated[list[str] | None, typer.Option("--video", metavar="ID", help="a video_id; may "
                     "be given several times")] = None,
    uploader: Annotated[list[str] | None, typer.Option("--uploader", metavar="NAME", help="all "
                        "videos of this uploader that the dataset has; may be given several "
                        "times")] = None,
    reason: Annotated[str | None, typer.Option(help="a note, kept in the view `removed`")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would go")] = False,
    wait: Wait = False,
) -> None:
    """Take videos out of tables, media and later exports, for good."""
    from jobs.remove import remove as take_out

    take_out(dataset, videos=video or [], uploaders=uploader or [], reason=reason,
             dry_run=dry_run, wait=wait)


@app.command()
def export(
    dataset: Dataset,
    format_: Annotated[ExportFormat, typer.Option("--format", help="what the files are")],
    output: Annotated[Path, typer.Option(metavar="DIR", help="a new or empty folder, or that of "
                      "the same export, which is gone on with")],
    subset: Annotated[str | None, typer.Option(metavar="NAME", help="a frozen subset; by default "
                      "all clips")] = None,
    where: Annotated[str | None, typer.Option(metavar="SQL", help="only clips for which this is "
                     "true, e.g. \"similarity > 0.3\"")] = None,
    media: Annotated[Media, typer.Option(help="none; copy: cut at key frames, without encoding "
                     "anew; exact: encoded anew, right to the frame")] = Media.none,
    redact: Annotated[bool, typer.Option("--redact", help="leave out titles, descriptions and "
                      "names of uploaders, and addresses that tell them")] = False,
    shard_size: Annotated[str, typer.Option(metavar="SIZE", help="how large a file may get")
                          ] = "1GB",
    caption: Annotated[str, typer.Option(metavar="COLUMN", help="the text of a clip, a column of "
                       "clips")] = "caption",
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
    from jobs.export import export as write
    from pipeline.exports.request import (
        ExportRequest,
        cut_options,
        interleaving_options,
        size_in_bytes,
    )

    write(ExportRequest(
        dataset.absolute(), output.absolute(), format_.value, subset=subset, where=where,
        redact=redact, shard_bytes=size_in_bytes(shard_size, "--shard-size"), caption=caption,
        uncaptioned=keep_uncaptioned,
        interleaving=interleaving_options(format_.value, documents and documents.value, drop,
                                          seed),
        cut=cut_options(media.value, audio=audio, start=start and start.value, encoder=encoder,
                        crf=crf, preset=preset, short_side=short_side),
        engine=engine and engine.value,
    ), memory_limit=memory_limit)


@app.command()
def index(dataset: Dataset, wait: Wait = False) -> None:
    """Make the catalog's index by hand; every run brings it up to date at its end."""
    from jobs.indexing import index_dataset

    index_dataset(dataset, wait=wait)


@app.command()
def report(
    dataset: Dataset,
    output: Annotated[Path, typer.Option(metavar="FILE.html", help="where the page goes; what is "
                      "there is replaced")],
    subset: Annotated[str | None, typer.Option(metavar="NAME", help="a frozen subset to report on, "
                      "beside the whole catalog")] = None,
    samples: Annotated[int, typer.Option(metavar="N", min=0, max=60, help="show at most this many "
                       "sample clips")] = 36,
    seed: Annotated[int, typer.Option(help="of the clips shown at random")] = 0,
) -> None:
    """Write one self-contained page: funnel, distributions, captions, samples, failures."""
    from jobs.report.page import report_on

    report_on(dataset, output, subset=subset, sample_count=samples, seed=seed)


@app.command()
def verify(
    dataset: Dataset,
    repair: Annotated[bool, typer.Option("--repair", help="set aside in DATASET/quarantine what is "
                      "broken and can be made again; `clipmill run` then makes it")] = False,
    media: Annotated[bool, typer.Option("--media/--no-media", help="read the videos' files, too: "
                     "checksums and lengths")] = True,
    format_: OutputFormat = Format.table,
    wait: Wait = False,
) -> None:
    """Re-read everything; a line for each fault, and exit status 1 where there is one."""
    from jobs.verify import verify_dataset

    raise typer.Exit(verify_dataset(dataset, repairs=repair, media=media, format=format_.value,
                                    wait=wait))


@app.command()
def runs(dataset: Dataset, format_: OutputFormat = Format.table, output: Output = None) -> None:
    """The runs so far, with models, prompts and fingerprints."""
    from jobs.query import print_runs

    print_runs(dataset, format=format_.value, output=output)


@app.command()
def logs(
    dataset: Dataset,
    run: Annotated[str | None, typer.Option("--run", metavar="ID", help="of this run, or the only "
                   "one whose id begins so; by default the newest")] = None,
    level: Annotated[LogLevel, typer.Option(help="this and what is worse")] = LogLevel.info,
    follow: Annotated[bool, typer.Option("--follow", help="go on with what is written until the "
                      "run ends")] = False,
    format_: OutputFormat = Format.table,
    output: Output = None,
) -> None:
    """What a run's driver and workers wrote, by time: shards, failures, warnings, tracebacks."""
    from jobs.logs import show_logs

    show_logs(dataset, run, level=level.value, follow=follow, format=format_.value, output=output)


@app.command()
def submit(
    recipe: RecipeArgument,
    address: Annotated[str, typer.Option(help="the cluster's job server, e.g. "
                       "http://head:8265")],
    dataset: Annotated[Path | None, typer.Option(help="the dataset's folder, absolute, on storage "
                       "that every node mounts")] = None,
    sources: Sources = None,
    set_: Set = None,
    until: Annotated[str | None, typer.Option(metavar="STAGE", help="stop after this stage")
                     ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="take at most this many sources")
                     ] = None,
    environment: Annotated[Environment, typer.Option(help="locked: the versions that this "
                           "release was tested with; cluster: what the nodes have installed")
                           ] = Environment.locked,
    wait: Annotated[bool, typer.Option("--wait", help="follow the logs until it ends")] = False,
) -> None:
    """Send the run to a Ray cluster as a job."""
    from jobs.submit import submit as send

    send(recipe, address, dataset=dataset, sources=sources or [], overrides=set_ or [],
         until=until, limit=limit, locked=environment is Environment.locked, wait=wait)


@app.command()
def demo(
    dataset: Annotated[Path, typer.Option(help="the dataset's folder")] = Path("demo-dataset"),
    engine: Annotated[Engine, typer.Option(help="where stages run")] = Engine.ray,
) -> None:
    """Run the full recipe on a small rendered world, offline, and measure it against the truth."""
    from jobs.demo.demo import run_demo

    run_demo(dataset.absolute(), engine=engine.value)


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="a ready-made name or a "
                      "YAML file")] = None,
) -> None:
    """What this machine lacks: libraries, codecs, models of a recipe."""
    from jobs.doctor import examine

    raise typer.Exit(examine(recipe))


@subsets.command("create")
def subset_create(
    dataset: Dataset,
    recipe: SubsetRecipe,
    name: Annotated[str | None, typer.Option(metavar="N", help="the subset's name; by default the "
                    "recipe's")] = None,
    seed: Seed = None,
    set_: Parameters = None,
    memory_limit: MemoryLimit = None,
) -> None:
    """Freeze the clips that a recipe takes, with all that is needed to make the list again."""
    from jobs.subset import create

    create(dataset, recipe, name=name, seed=seed, overrides=set_ or [], memory_limit=memory_limit)


@subsets.command("list")
def subset_list(
    dataset: Dataset, format_: OutputFormat = Format.table, output: Output = None
) -> None:
    """The frozen subsets of a dataset."""
    from jobs.subset import list_subsets

    list_subsets(dataset, format=format_.value, output=output)


@subsets.command("show")
def subset_show(
    dataset: Dataset,
    name: Annotated[str, typer.Argument(metavar="NAME", help="the subset's name")],
    format_: Annotated[CardFormat, typer.Option("--format", help="how it is printed")
                       ] = CardFormat.markdown,
) -> None:
    """The data card of a frozen subset."""
    from jobs.subset import show

    show(dataset, name, format=format_.value)


@subsets.command("explain")
def subset_explain(
    dataset: Dataset,
    recipe: SubsetRecipe,
    seed: Seed = None,
    set_: Parameters = None,
    near: Annotated[int, typer.Option(metavar="K", min=0, max=100, help="clips to show on each "
                    "side of a threshold")] = 3,
    format_: Annotated[StatusFormat, typer.Option("--format", help="how it is printed")
                       ] = StatusFormat.table,
    memory_limit: MemoryLimit = None,
) -> None:
    """What a recipe would take, rule by rule, before anything is frozen."""
    from jobs.subset import explain

    explain(dataset, recipe, seed=seed, overrides=set_ or [], near=near, format=format_.value,
            memory_limit=memory_limit)


@subsets.command("recipes")
def subset_recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="print this one, to start "
                    "one of your own from")] = None,
) -> None:
    """Names and purposes of the ready-made subset recipes."""
    from jobs.subset import recipes as print_recipes

    print_recipes(name)


@recipes.command("list")
def recipe_list() -> None:
    """Names and purposes of the ready-made recipes, of runs and of subsets."""
    from jobs.ready_made import SUBSET_FOLDER, described

    print("For `clipmill run`:", *described(), "", "For `clipmill subset explain` and `create`:",
          *described(SUBSET_FOLDER), sep="\n")


@recipes.command("show")
def recipe_show(name: Annotated[str, typer.Argument(metavar="RECIPE", help="a ready-made name, of "
                "a run's recipe or a subset's, or a YAML file")]) -> None:
    """Print a recipe, to start one of your own from."""
    from jobs.ready_made import any_recipe_path

    print(any_recipe_path(name).read_text("utf-8"), end="")


def main() -> None:
    """Runs the command; errors are one message on standard error and an exit status."""
    from jobs.encoding import speak_utf_8
    from jobs.interrupts import ended_by_signals, interruption_behind, leave_at_once
    from schemas.errors import ClipmillError, printable
    from schemas.storage import full_storage

    speak_utf_8(main)
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        with ended_by_signals():
            try:
                app(arguments)
            except OSError as error:
                if (full := full_storage(error, None)) is None:
                    raise
                raise full from error
    except ClipmillError as error:
        if debug:
            raise
        print(f"Error: {printable(str(error))}", file=sys.stderr)
        if error.leaves_threads:
            leave_at_once(error.exit_status)
        sys.exit(error.exit_status)
    except BrokenPipeError:
        # The reader of a pipe went away (`| head`): no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except BaseException as leaving:
        stopped = interruption_behind(leaving)
        if stopped is None:
            raise
        with contextlib.suppress(OSError):  # of a terminal that is closed
            print("Stopped. What is committed stays; run the same command to go on.",
                  file=sys.stderr, flush=True)
        leave_at_once(128 + stopped)


if __name__ == "__main__":
    main()
