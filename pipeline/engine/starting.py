"""What a command starts from: the recipe that its arguments mean, and the dataset's folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from clipmill.pipeline.dataset import run_records as records
from clipmill.pipeline.dataset.locks import wait_until_free
from clipmill.pipeline.engine.having import with_folders
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import LoadedRecipe, load_recipe
from clipmill.schemas.command_line import start_a_run
from clipmill.schemas.errors import UsageError


def load(
    recipe: str | None,
    dataset: Path | None,
    *,
    overrides: Sequence[str] = (),
    sources: Sequence[str] = (),
    engine: str | None = None,
    have: Sequence[Path] = (),
    wait: bool = False,
) -> LoadedRecipe:
    """The recipe for a RECIPE argument; without one, that of the dataset's newest run.

    With `wait`, it is the newest after the command that uses the dataset has ended. `have` are
    folders with videos that need not be downloaded.
    """
    if recipe is not None:
        found = load_recipe(
            recipe_path(recipe), overrides=overrides, sources=sources, engine=engine
        )
        return with_folders(found, have)
    if dataset is None:
        raise UsageError(
            "name a RECIPE (`clipmill recipe list`), or with --dataset a dataset "
            "whose newest run's recipe should be used"
        )
    records.require_dataset(dataset)
    if wait:
        wait_until_free(dataset)
    record = records.latest_run(dataset)
    if record is None:
        raise UsageError(f"{dataset} has no run yet; {start_a_run(dataset)}")
    found = LoadedRecipe.from_record(record["recipe"], overrides, sources=sources, engine=engine)
    return with_folders(found, have)


def dataset_folder(loaded: LoadedRecipe, given: Path | None) -> Path:
    """The dataset's folder: the caller's, otherwise the recipe's, otherwise a name here."""
    if given is not None:
        return given.expanduser().absolute()
    if loaded.recipe.dataset:
        return Path(loaded.recipe.dataset).expanduser().absolute()
    return (Path.cwd() / f"{loaded.name}-dataset").absolute()
