"""Arguments, options and values shared by several commands."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from clipmill.jobs import completion
from clipmill.schemas.errors import ERROR_KINDS, UsageError

Engine = Literal["ray", "local"]
RunEngine = Literal["auto", "ray", "local"]
Format = Literal["table", "csv", "json", "jsonl", "parquet"]
ExportFormat = Literal[
    "webdataset", "parquet", "huggingface", "internvid", "csv", "jsonl", "interleaved"
]
ExportMedia = Literal["none", "copy", "exact"]
CutStart = Literal["before", "nearest"]
Crop = Literal["safe"]
Documents = Literal["a", "b", "c"]
ImportFormat = Literal[
    "internvid", "panda-70m", "koala-36m", "openvid-1m", "miradata", "spatialvid", "howto100m"
]
CardFormat = Literal["markdown", "json"]
LogLevel = Literal["info", "warning", "error"]
Environment = Literal["locked", "cluster"]

Dataset = Annotated[Path, typer.Argument(metavar="DATASET", help="the dataset's folder")]
RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE",
        help="a ready-made name or a YAML file",
        autocompletion=completion.run_recipes,
    ),
]
Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--sources",
        metavar="PATH",
        help="list, folder, glob, video file or URL to use "
        "instead of the recipe's sources; repeatable",
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="A.B=VALUE",
        help="change a setting, e.g. "
        "split_clips.min_clip_seconds=2, or add a stage: LABEL.stage=NAME with its settings; "
        "repeatable",
        autocompletion=completion.settings,
    ),
]


def _known_kinds(kinds: list[str] | None) -> list[str]:
    for kind in kinds or []:
        if kind not in ERROR_KINDS:
            raise UsageError(f"--kind {kind}: allowed: {', '.join(ERROR_KINDS)}")
    return kinds or []


Kinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        callback=_known_kinds,
        metavar="K",
        help="only failures of this kind: permanent, transient, "
        "blocked, bad_media, model or crash; repeatable",
        autocompletion=completion.failure_kinds,
    ),
]
SubsetRecipe = Annotated[
    str | None,
    typer.Argument(
        metavar="[RECIPE]",
        help="a ready-made subset recipe or a YAML file",
        autocompletion=completion.subset_recipes,
    ),
]
Predicate = Annotated[
    str | None,
    typer.Option(
        "--where",
        metavar="SQL",
        help='instead of a recipe: only clips for which this is true, e.g. "similarity > 0.3"',
    ),
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="NAME=VALUE",
        help="set a parameter of the recipe, or accept "
        "any scorer for a column with scorers.COLUMN=any; repeatable",
    ),
]
Seed = Annotated[int | None, typer.Option(min=0, help="random seed; by default the recipe's")]
MemoryLimit = Annotated[
    str | None,
    typer.Option(
        "--memory-limit",
        metavar="SIZE",
        help="memory that DuckDB may use "
        "before it spills to disk, e.g. 4GB; by default half of the machine's",
    ),
]
Wait = Annotated[
    bool,
    typer.Option(
        "--wait",
        help="if another command is using the dataset, wait until it is done instead of failing",
    ),
]
StatusFormat = Annotated[Literal["table", "json"], typer.Option("--format", help="output format")]
OutputFormat = Annotated[Format, typer.Option("--format", help="how rows are printed")]
Output = Annotated[
    Path | None, typer.Option("--output", help="write to this file instead of standard output")
]
Limit = Annotated[int | None, typer.Option(min=1, help="use at most this many sources")]
Have = Annotated[
    list[Path] | None,
    typer.Option(
        "--have",
        metavar="FOLDER",
        help="don't download videos that are in this folder, under names that give their published "
        "ids: ID.mp4, Title [ID].mp4 and others; repeatable",
    ),
]
Until = Annotated[
    str | None,
    typer.Option(metavar="STAGE", help="stop after this stage", autocompletion=completion.stages),
]
SubsetName = Annotated[
    str | None,
    typer.Option(
        "--subset",
        metavar="NAME",
        help="a frozen subset; by default all clips",
        autocompletion=completion.subset_names,
    ),
]
Where = Annotated[
    str | None,
    typer.Option(
        metavar="SQL",
        help="work only on the clips for which this is true, and on their videos, e.g. "
        '"aesthetic >= 4 AND umt_sim > 0.35"; a wider choice later does only what is new',
    ),
]
ChosenSubset = Annotated[
    str | None,
    typer.Option(
        "--subset",
        metavar="NAME",
        help="work only on the clips of this frozen subset",
        autocompletion=completion.subset_names,
    ),
]
Sample = Annotated[int | None, typer.Option(min=1, help="work only on this many random sources")]
SampleSeed = Annotated[int, typer.Option(min=0, help="random seed of --sample")]
Budget = Annotated[
    list[str] | None,
    typer.Option(
        "--budget",
        metavar="AMOUNT",
        help='end the run in order when it has spent this, e.g. "20 cpu_hours", '
        '"50 USD", "8 hours", "2 million_tokens"; repeatable',
    ),
]
