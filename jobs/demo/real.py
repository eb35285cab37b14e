"""`clipmill demo --real`: runs the recipe `signals` on rendered films, or on the user's own."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path

from clipmill.jobs.demo.demo import print_figures, shown_path, this_command
from clipmill.jobs.demo.measure_real import measure_real
from clipmill.jobs.demo.real_films import FILMS, SPEAKER, can_speak, render_films
from clipmill.jobs.report.page import report_on
from clipmill.jobs.run import run
from clipmill.jobs.status import print_status
from clipmill.pipeline.engine.preflight import check_models
from clipmill.pipeline.recipes.plan import build_plan
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError

RECIPE = "signals"


def run_real_demo(dataset: Path, films: Sequence[str], *, engine: str) -> None:
    """Runs the recipe, writes a report beside the dataset, and prints a checklist.

    Raises ClipmillError if a figure misses its target.
    """
    path = recipe_path(RECIPE)
    # What isn't installed is said before films are rendered.
    check_models(build_plan(load_recipe(path)).steps)
    sources = list(films) or [str(_rendered(dataset / "world"))]
    run(load_recipe(path, sources=sources, engine=engine), dataset)
    print_status(dataset)
    sys.stdout.flush()
    page = dataset.with_name(f"{dataset.name}-report.html")
    report_on(dataset, page)
    sys.stdout.flush()
    figures = measure_real(dataset, own_films=bool(films))
    title = "What was measured" if films else "Measured against what was rendered"
    print_figures(title, figures)
    name = shown_path(dataset)
    print(f"\nLook at {shown_path(page)}. Try next:")
    for words in _WORDS:
        print(f"  {this_command()} {words.format(name)}")
    if missed := [figure.name for figure in figures if not figure.reached]:
        raise ClipmillError(
            f"the demo missed its targets: {', '.join(missed)}; "
            f"`clipmill failures {shell_word(dataset)}` may say why"
        )


_WORDS = (
    'sql {} "SELECT clip_id, text_read FROM clips WHERE text_area > 0.01 LIMIT 5"',
    'sql {} "SELECT language, count(*) AS clips, avg(speech_share) FROM clips GROUP BY ALL"',
    'subset explain {} --where "text_area < 0.02 AND vmaf_motion > 0.1"',
)


def _rendered(world: Path) -> Path:
    """The list of the rendered films, which are rendered if they aren't there."""
    listing = world / "films.csv"
    if listing.exists():
        return listing
    world.mkdir(parents=True, exist_ok=True)
    for number, _ in enumerate(render_films(world), 1):
        if sys.stderr.isatty():
            print(f"Rendering film {number} of {len(FILMS)}", end="\r", file=sys.stderr)
    if not can_speak():
        print(f"{SPEAKER} is not installed: the films have no voice.", file=sys.stderr)
    # The list is written last: it marks the films as complete.
    with listing.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "title"])
        writer.writerows([f"{film.name}.mp4", film.title] for film in FILMS)
    print(f"Rendered {len(FILMS)} films to {world}.", file=sys.stderr)
    return listing
