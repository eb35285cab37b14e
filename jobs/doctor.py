"""`clipmill doctor`: checks this machine for what a recipe needs."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape

from clipmill.schemas.errors import ClipmillError
from clipmill.schemas.extras import EXTRAS
from clipmill.schemas.words import counted

if TYPE_CHECKING:
    from clipmill.pipeline.recipes.recipe import LoadedRecipe

LIBRARIES = {
    "ray": "ray",
    "yt_dlp": "yt-dlp",
    "scenedetect": "scenedetect-headless",
    "decord": "decord",
    "av": "av",
    "cv2": "opencv-python-headless",
    "pyarrow": "pyarrow",
    "duckdb": "duckdb",
    "torch": "torch",
    "transformers": "transformers",
    "open_clip": "open_clip_torch",
}
_OF_RUNS = {name for name in LIBRARIES if EXTRAS.get(name) == "run"}
_OF_MODELS = {name for name in LIBRARIES if EXTRAS.get(name) == "models"}
_PROGRAM_NAMES = {"httpie": "http", "quickjs": "qjs"}  # if they differ from yt-dlp's names
_UNFIT = "unfit: "
CODECS = ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "aac", "opus")


def examine(recipe: str | None) -> int:
    """Prints one line per finding; the exit status is 1 if something is missing."""
    console = Console(highlight=False)
    missing = 0
    for what, problem in _findings(recipe):
        missing += problem is not None
        mark = "[red]missing[/red]" if problem else "[green]ok[/green]     "
        if problem and problem.startswith(_UNFIT):
            mark = "[red]wrong[/red]  "
        console.print(f"{mark} {escape(what)}", soft_wrap=True)
        if problem:
            console.print(f"        {escape(problem.removeprefix(_UNFIT))}", soft_wrap=True)
    return 1 if missing else 0


def _findings(recipe: str | None) -> Iterator[tuple[str, str | None]]:
    yield f"Python {sys.version.split()[0]}, {os.cpu_count()} CPUs", None
    found = {name for name in LIBRARIES if importlib.util.find_spec(name) is not None}
    runs, computes = found >= _OF_RUNS, found >= _OF_MODELS
    wants_models = recipe is None or not runs or _names_models(recipe)
    for name in LIBRARIES:
        if name in found or wants_models or name not in _OF_MODELS:
            yield _library(name)
        else:
            yield f"{LIBRARIES[name]}: not installed; {recipe} names no model", None
    if runs:
        yield from _decoders()
    if computes:
        yield _gpu(), None
    if runs and recipe is not None:
        yield from _recipe_findings(recipe)


def _decoders() -> Iterator[tuple[str, str | None]]:
    import av

    for name in CODECS:
        known = name in av.codecs_available
        yield f"decoder {name}", None if known else "PyAV's FFmpeg was built without it"
    yield _ffmpeg()


def _names_models(recipe: str) -> bool:
    from clipmill.pipeline.recipes.ready_made import recipe_path
    from clipmill.pipeline.recipes.recipe import load_recipe

    return any(stage.references() for stage in load_recipe(recipe_path(recipe)).stages.values())


def _library(module: str) -> tuple[str, str | None]:
    from clipmill.stages.models.torch_setup import prepare_torch

    name = LIBRARIES[module]
    if importlib.util.find_spec(module) is None:
        extra = f"clipmill[{EXTRAS[module]}]" if module in EXTRAS else "clipmill"
        return name, f"not installed: pip install '{extra}'"
    try:
        if module in ("transformers", "open_clip"):
            prepare_torch()
        importlib.import_module(module)
        return f"{name} {metadata.version(name)}", None
    except (ImportError, OSError, RuntimeError) as error:
        return name, f"cannot be imported: {error}"


def _ffmpeg() -> tuple[str, str | None]:
    from clipmill.stages.media.isolation.ffmpeg_program import ffmpeg_problem, ffmpeg_program

    what = "ffmpeg, for merging yt-dlp downloads and for download_videos.sections"
    problem = ffmpeg_problem()
    return (f"{what}: {ffmpeg_program()}", None) if problem is None else (what, problem)


def _gpu() -> str:
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        return f"GPUs: {', '.join(names)}"
    return "no GPU: models run on the CPU"


def _recipe_findings(recipe: str) -> Iterator[tuple[str, str | None]]:
    from clipmill.pipeline.engine.preflight import examine_models, problems_of
    from clipmill.pipeline.recipes.plan import build_plan
    from clipmill.pipeline.recipes.ready_made import recipe_path
    from clipmill.pipeline.recipes.recipe import load_recipe

    path = recipe_path(recipe)
    loaded = load_recipe(path)
    try:
        plan = build_plan(loaded)
    except ClipmillError as error:
        yield f"recipe {loaded.name}", str(error)
        return
    yield f"recipe {loaded.name}: {', '.join(loaded.stages)}", None
    yield from _programs(loaded)
    yield from _sources(loaded)
    findings = examine_models(plan.steps)
    for one in findings:
        what = f"{one} ({one.note})" if one.note else str(one)
        problem = one.problem if one.reason is None else "not on this machine; see below"
        if problem and one.is_here:
            problem = _UNFIT + problem.removeprefix(f"{one.setting}: ")
        yield what, problem
    if unreachable := [one for one in findings if one.reason is not None]:
        yield "files to download", "\n        ".join(problems_of(unreachable)[0].split("\n"))


def _sources(loaded: LoadedRecipe) -> Iterator[tuple[str, str | None]]:
    """The files that a recipe's sources match; lists and sites are not read."""
    from clipmill.pipeline.ingest.source_files import Finder, describe_passed_over
    from clipmill.pipeline.ingest.source_rows import is_pattern_of_lists

    for spec in loaded.recipe.sources:
        if spec.path is None:
            continue
        finder = Finder(loaded.recipe.take_suffixes)
        path = loaded.folder / Path(spec.path).expanduser()
        if path.is_file():
            yield f"source {spec.path}: a file", None
            continue
        if is_pattern_of_lists(spec.path, loaded.folder):
            lists = len(finder.lists_of_pattern(loaded.folder, spec.path))
            yield f"source {spec.path}: {counted(lists, 'list')}", None if lists else "no such file"
            continue
        found = (
            finder.in_folder(path)
            if path.is_dir()
            else (finder.of_pattern(loaded.folder, spec.path))
        )
        count = sum(1 for _ in found)
        passed_over = describe_passed_over(finder.passed_over)
        what = f"source {spec.path}: {counted(count, 'file')} to use"
        yield (
            (f"{what}; {passed_over}" if passed_over else what),
            (None if count else "it contains nothing that looks like a video"),
        )
        for folder, why in finder.unreadable:
            yield f"folder {folder}", f"can't be read: {why}"


def _programs(loaded: LoadedRecipe) -> Iterator[tuple[str, str | None]]:
    """Programs that the recipe lets yt-dlp start; it does without missing ones."""
    from clipmill.stages.download_videos import DownloadVideos

    for label, stage in loaded.stages.items():
        if not isinstance(stage, DownloadVideos):
            continue
        wanted = stage.yt_dlp.get("external_downloader") or {}
        names = [
            *(wanted.values() if isinstance(wanted, Mapping) else [wanted]),
            *(stage.yt_dlp.get("js_runtimes") or {}),
        ]
        for name in dict.fromkeys(names):
            if name in ("native", "ffmpeg"):
                continue
            program = _PROGRAM_NAMES.get(name, name)
            yield (
                f"{program}, named by {label}.yt_dlp",
                None
                if shutil.which(program)
                else ("not found on PATH; install it, or remove it from the recipe"),
            )
