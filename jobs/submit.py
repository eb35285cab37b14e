"""`clipmill submit`: runs a recipe as a job on a Ray cluster, through its job server."""

from __future__ import annotations

import shlex
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import clipmill
from clipmill import jobs, pipeline, schemas, stages
from clipmill.pipeline.costs.budget import read_budget
from clipmill.pipeline.dataset.versions import ROOT
from clipmill.pipeline.engine.having import with_folders
from clipmill.pipeline.engine.interrupts import interruption_behind, leave_at_once
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import LoadedRecipe, load_recipe
from clipmill.pipeline.recipes.stage_classes import class_reference
from clipmill.pipeline.subsets.choosing import check_wish
from clipmill.pipeline.subsets.wishes import Wish, check_limit
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.schemas.folders import is_dataset
from clipmill.stages.download_videos import DownloadVideos
from clipmill.stages.media.fetch.files_on_disk import check_folders
from clipmill.stages.references import DataFile

if TYPE_CHECKING:
    from clipmill.pipeline.engine.ray_jobs import Job

CONSTRAINTS = ROOT / "constraints.txt"


def submit(
    recipe: str,
    address: str,
    *,
    dataset: Path | None,
    sources: Sequence[str],
    overrides: Sequence[str],
    until: str | None,
    limit: int | None,
    where: str | None = None,
    subset: str | None = None,
    sample: int | None = None,
    seed: int = 0,
    have: Sequence[Path] = (),
    budget: Sequence[str] = (),
    locked: bool,
    wait: bool,
) -> None:
    """Checks the recipe and what is asked for, sends both to the cluster, prints the job's id.

    With `wait`, the job's log follows on standard output, and a failed job is exit status 1.
    """
    wish = Wish(where, subset, sample, seed)
    check_limit(wish, limit)
    path = recipe_path(recipe)
    folders = [folder.expanduser().absolute() for folder in have]
    loaded = with_folders(
        load_recipe(path, overrides=overrides, sources=sources, engine="ray"), folders
    )
    read_budget(budget, loaded.recipe.prices)
    place = dataset or (Path(loaded.recipe.dataset) if loaded.recipe.dataset else None)
    if place is None or not place.is_absolute():
        raise UsageError(
            "submit needs the dataset's absolute path on storage that every node "
            "mounts: --dataset /shared/NAME"
        )
    if locked and not CONSTRAINTS.exists():
        raise UsageError(
            "the locked versions come with a checkout of Clipmill, which this is not; "
            "use the nodes' own versions with --environment cluster"
        )
    if is_dataset(place):  # this machine mounts the cluster's storage
        check_folders(folders)
        check_wish(place, wish)
    from clipmill.pipeline.engine.ray_jobs import submit_job

    options: dict[str, Sequence[object]] = {
        "--dataset": [place],
        "--set": [_absolute_paths(one) for one in (*overrides, *_safe_defaults(loaded))],
        "--sources": [one if "://" in one else Path(one).absolute() for one in sources],
        "--until": [until],
        "--limit": [limit],
        **wish.options(),
        "--have": folders,
        "--budget": budget,
    }
    command = ["python", "-m", "clipmill.jobs.cli", "run", f"recipe/{path.name}"]
    for option, values in options.items():
        for value in values:
            if value is not None:
                command += [option, str(value)]
    with tempfile.TemporaryDirectory(prefix="clipmill-submit-") as folder:
        _stage_working_directory(Path(folder), path, loaded)
        job = submit_job(
            address, shlex.join(command), Path(folder), CONSTRAINTS if locked else None
        )
        print(job.id, flush=True)
        if not wait:
            print(f"Sent. {_how_to_look(job, place)}", file=sys.stderr)
            return
        try:
            state = job.follow(sys.stdout)
        except KeyboardInterrupt as leaving:
            print(
                f"The job continues. {_how_to_look(job, place)} To stop it: "
                f"`ray job stop --address {job.address} {job.id}`.",
                file=sys.stderr,
                flush=True,
            )
            leave_at_once(128 + (interruption_behind(leaving) or signal.SIGINT))
    if state != "SUCCEEDED":
        raise ClipmillError(f"job {job.id} ended as {state}: {job.message()}")


def _how_to_look(job: Job, dataset: Path) -> str:
    return (
        f"Follow it with `ray job logs --address {job.address} --follow {job.id}`; inspect the "
        f"dataset with `clipmill status {shell_word(dataset)}`."
    )


def _safe_defaults(loaded: LoadedRecipe) -> list[str]:
    """Safe settings for a cluster's network, because lists of URLs may be a stranger's.

    Raises UsageError if the recipe needs what they forbid.
    """
    found = []
    for label, stage in loaded.stages.items():
        if not isinstance(stage, DownloadVideos) or "private_addresses" in stage.model_fields_set:
            continue
        setting = f"{label}.private_addresses"
        if stage.sections or stage.yt_dlp.get("external_downloader"):
            raise UsageError(
                f"submit refuses private addresses, but {label} downloads with a program that "
                f"can't be kept from them; add --set {setting}=allow if you trust the URLs"
            )
        found.append(f"{setting}=refuse")
    return found


def _stage_working_directory(folder: Path, path: Path, loaded: LoadedRecipe) -> None:
    """Copies what the job needs: Clipmill's packages, the recipe, and the local files it names."""
    for package in (clipmill, jobs, pipeline, schemas, stages):
        shutil.copytree(
            package.__path__[0],
            folder.joinpath(*package.__name__.split(".")),
            ignore=shutil.ignore_patterns("__pycache__"),
            dirs_exist_ok=True,
        )
    (folder / "recipe").mkdir()
    shutil.copy(path, folder / "recipe" / path.name)
    for named in _files_beside(path.resolve().parent, loaded):
        target = folder / "recipe" / named.relative_to(path.resolve().parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        if named.is_dir():
            shutil.copytree(named, target, dirs_exist_ok=True)
        else:
            shutil.copy(named, target)


def _files_beside(folder: Path, loaded: LoadedRecipe) -> list[Path]:
    """Files and model folders below the recipe's own folder that its settings name."""
    named: list[Path] = []
    for stage in loaded.stages.values():
        for value in stage.references().values():
            place = value.path if isinstance(value, DataFile) else value.folder
            if place:
                named.append(Path(place))
        place = class_reference(stage).partition(":")[0]
        if place.endswith(".py"):
            named.append(Path(place))
    if loaded.recipe.exclude_ids is not None and loaded.recipe.exclude_ids.path is not None:
        named.append(Path(loaded.recipe.exclude_ids.path))
    named += [
        folder / path for item in loaded.recipe.sources if (path := getattr(item, "path", None))
    ]
    return [
        path
        for path in dict.fromkeys(named)
        if path.is_relative_to(folder) and path.exists() and path.suffix != ".mp4"
    ]


def _absolute_paths(override: str) -> str:
    """Makes a relative path in an override absolute, relative to here."""
    name, _, value = override.partition("=")
    return f"{name}={Path(value).absolute()}" if value.startswith(("./", "../")) else override
