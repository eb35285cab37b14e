"""Everything in the README works as shown."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import yaml
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.jobs.run import run
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe, read_yaml
from clipmill.schemas.errors import UsageError

ROOT = Path(__file__).resolve().parent.parent


def block(language: str, beginning: str) -> str:
    found = re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (text,) = [text for text in found if text.startswith(beginning)]
    return text


def test_documented_custom_stage_runs_and_adds_its_columns(made, tmp_path):
    """Only the new stage runs: all before it is done already."""
    (tmp_path / "count_words.py").write_text(block("python", "# count_words.py"))
    recipe = read_yaml(recipe_path("demo"))
    models = str(recipe_path("demo").parent.parent / "demo")
    recipe = yaml.safe_load(yaml.safe_dump(recipe, sort_keys=False).replace("../demo", models))
    recipe["stages"] |= yaml.safe_load(block("yaml", "stages:\n  # …"))["stages"]
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    dataset = Path(shutil.copytree(made.dataset, tmp_path / "dataset"))
    before = set(dataset.rglob("*.parquet"))
    run(load_recipe(tmp_path / "own.yaml", engine="local"), dataset)
    made_now = {path.parts[-3] for path in set(dataset.rglob("*.parquet")) - before}
    assert made_now - {"index"} == {"count_words"}
    with open_catalog(dataset) as catalog:
        rows = catalog.ask("SELECT caption, n_words, is_long FROM clips").read_all().to_pylist()
    assert rows
    for row in rows:
        assert row["n_words"] == len(row["caption"].split())
        assert row["is_long"] == (row["n_words"] >= 15)


def test_readme_names_existing_commands_and_files():
    text = (ROOT / "README.md").read_text()
    for link in re.findall(r"\]\(([^)#]+)\)", text):
        assert (ROOT / link).exists(), link
    targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
    for word in re.findall(r"(?:`|^)make ([a-z-]+)", text, re.M):
        assert word in targets, word


def test_commands_from_a_catalog_to_training_data_work(made, tmp_path, monkeypatch):
    """All except the import, whose file is missing here, and the recipe for a missing scorer."""
    shutil.copytree(made.dataset, tmp_path / "my-dataset")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RAY_ADDRESS", "")
    commands = block("sh", "clipmill subset explain")
    run_here = [
        line.partition("#")[0]
        for line in commands.splitlines()
        if "internvid-aes" not in line and "import" not in line
    ]
    assert len(run_here) == 4
    for line in run_here:
        words = line.replace("NAME", "'no such uploader'")
        words = shlex.split(words)[1:]
        if words[0] == "export":
            words += ["--engine", "local"]
        done = CliRunner().invoke(app, words)
        if words[0] == "remove":
            assert isinstance(done.exception, UsageError)  # the films have no uploader
        else:
            assert done.exit_code == 0, done.output
    assert (tmp_path / "shards" / "export.json").exists()
    snippet = block("python", "from clipmill import ClipDataset")
    assert len(snippet.strip().splitlines()) <= 10
    names: dict = {}
    exec(snippet.replace("num_workers=8", "num_workers=2").replace("range(10)", "range(1)"), names)
    assert names["video"].shape[1:] == (8, 3, 224, 224)
    assert len(names["captions"]) == len(names["video"])
