"""Commands that list the recipes and check what this machine lacks for them."""

from __future__ import annotations

from typing import Annotated

import typer

from clipmill.jobs import completion
from clipmill.jobs.help_pages import Commands

app = Commands("Get started")
recipes = Commands(help="List and print ready-made recipes.", no_args_is_help=True)
app.add_group("recipe", recipes)


@recipes.command("list")
def recipe_list() -> None:
    """List the ready-made recipes, for runs and for subsets."""
    from clipmill.pipeline.recipes.ready_made import SUBSET_FOLDER, described

    print(
        "For `clipmill run`:",
        *described(),
        "",
        "For `clipmill subset explain` and `create`:",
        *described(SUBSET_FOLDER),
        sep="\n",
    )


@recipes.command("show")
def recipe_show(
    name: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE",
            help="a ready-made run or subset recipe, or a YAML file",
            autocompletion=completion.any_recipes,
        ),
    ],
) -> None:
    """Print a recipe, as a start for your own."""
    from clipmill.pipeline.recipes.ready_made import any_recipe_path

    print(any_recipe_path(name).read_text("utf-8"), end="")


@app.command()
def doctor(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="[RECIPE]",
            help="a ready-made name or a YAML file",
            autocompletion=completion.run_recipes,
        ),
    ] = None,
) -> None:
    """Check what this machine lacks for a recipe: libraries, codecs, models."""
    from clipmill.jobs.doctor import examine

    raise typer.Exit(examine(recipe))
