"""Commands that say what there is to run, and what this machine lacks for it."""

from __future__ import annotations

from typing import Annotated

import typer

from clipmill.jobs import completion
from clipmill.jobs.help_pages import Commands

app = Commands("Get started")
recipes = Commands(help="Ready-made recipes.", no_args_is_help=True)
app.add_group("recipe", recipes)


@recipes.command("list")
def recipe_list() -> None:
    """Names and purposes of the ready-made recipes, of runs and of subsets."""
    from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, described

    print("For `clipmill run`:", *described(), "", "For `clipmill subset explain` and `create`:",
          *described(SUBSET_FOLDER), sep="\n")


@recipes.command("show")
def recipe_show(name: Annotated[str, typer.Argument(metavar="RECIPE", help="a ready-made name, of "
                "a run's recipe or a subset's, or a YAML file",
                autocompletion=completion.any_recipes)]) -> None:
    """Print a recipe, to start one of your own from."""
    from clipmill.pipeline.recipes.ready_made import any_recipe_path

    print(any_recipe_path(name).read_text("utf-8"), end="")


@app.command()
def doctor(
    recipe: Annotated[str | None, typer.Argument(metavar="[RECIPE]", help="a ready-made name or a "
                      "YAML file", autocompletion=completion.run_recipes)] = None,
) -> None:
    """What this machine lacks: libraries, codecs, models of a recipe."""
    from clipmill.jobs.doctor import examine

    raise typer.Exit(examine(recipe))
