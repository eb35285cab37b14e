"""The wheel that users install: only one name, whatever else has the names of its parts."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("clipmill", "schemas", "stages", "pipeline", "jobs")
MADE = shutil.ignore_patterns("__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, unpacked."""
    source = tmp_path_factory.mktemp("source")
    for part in PARTS:
        shutil.copytree(ROOT / part, source / part, ignore=MADE)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--no-build-isolation",
            "--wheel-dir",
            str(source / "wheel"),
            str(source),
        ],
        stdin=subprocess.DEVNULL,
        check=True,
        capture_output=True,
        timeout=120,
    )
    [made] = (source / "wheel").iterdir()
    unpacked = source / "unpacked"
    zipfile.ZipFile(made).extractall(unpacked)
    return unpacked


def python(code: str, wheel: Path, folder: Path) -> subprocess.CompletedProcess:
    """Runs code in `folder` that imports from the wheel, not the checkout."""
    # -S leaves out the checkout's editable install; the libraries' folder is added back.
    libraries = next(place for place in sys.path if place.endswith("site-packages"))
    return subprocess.run(
        [sys.executable, "-S", "-c", code],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        check=False,
        timeout=120,
        env={"PYTHONPATH": f"{wheel}:{libraries}", "PATH": "/usr/bin:/bin", "HOME": str(folder)},
    )


def test_only_one_name_is_installed(wheel: Path):
    names = {path.name for path in wheel.iterdir()}
    assert names == {"clipmill", f"clipmill-{version()}.dist-info"}


def version() -> str:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_everything_in_the_tree_is_in_the_wheel(wheel: Path):
    tracked = subprocess.run(
        ["git", "ls-files", *PARTS],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
        check=False,
    ).stdout.split("\n")
    if not any(tracked):
        pytest.skip("not a git checkout")
    parts = [Path(name) for name in tracked if name]
    expected = {
        Path("clipmill", *(part.parts[1:] if part.parts[0] == "clipmill" else part.parts))
        for part in parts
        if (ROOT / part).exists()
    }
    assert expected <= {path.relative_to(wheel) for path in wheel.rglob("*")}


def test_wheel_runs_in_a_folder_with_packages_of_the_same_names(wheel: Path, tmp_path: Path):
    for part in PARTS[1:]:
        (tmp_path / part).mkdir()
        (tmp_path / part / "__init__.py").write_text("raise ImportError('a stranger')\n")
    (tmp_path / "list.csv").write_text("url\n")
    said = python(
        "import sys; sys.argv = ['clipmill', 'recipe', 'show', 'timestamps-only']\n"
        "import clipmill.jobs.cli; clipmill.jobs.cli.main()",
        wheel,
        tmp_path,
    )
    assert said.returncode == 0, said.stderr
    assert "split_clips:" in said.stdout
    said = python(
        "import sys; sys.argv = ['clipmill', 'run', 'timestamps-only', '--sources', "
        "'list.csv', '--dataset', 'd', '--engine', 'local']\n"
        "import clipmill.jobs.cli; clipmill.jobs.cli.main()",
        wheel,
        tmp_path,
    )
    assert said.returncode == 2, said.stderr
    assert "list.csv gives no sources" in said.stderr


@pytest.mark.slow  # `make test-wheel` runs Ray with it, too
def test_ray_workers_import_the_wheel_there_too(wheel: Path, tmp_path: Path, made):
    for part in PARTS[1:]:
        (tmp_path / f"{part}.py").write_text("raise ImportError('a stranger')\n")
    films = made.loaded.recipe.sources[0].path
    said = python(
        "import clipmill\n"
        f"result = clipmill.run('timestamps-only', sources={str(films)!r}, "
        "dataset='d', settings={'ray.num_cpus': 2})\n"
        "print(clipmill.__path__[0], result['split_clips']['kept'])",
        wheel,
        tmp_path,
    )
    assert said.returncode == 0, said.stderr
    assert said.stdout.split() == [str(wheel / "clipmill"), str(len(made.films))]


def test_import_loads_nothing_heavy(wheel: Path, tmp_path: Path):
    said = python(
        "import sys, clipmill; print(sorted(name for name in "
        "('torch', 'ray', 'pyarrow', 'duckdb', 'av') if name in sys.modules))\n"
        "print(clipmill.Stage.__name__, clipmill.RowFailed.__name__)",
        wheel,
        tmp_path,
    )
    assert said.stdout.splitlines() == ["[]", "Stage RowFailed"], said.stderr


def test_public_names_are_listed():
    import clipmill

    assert set(clipmill.__all__) <= set(dir(clipmill))
    assert all(getattr(clipmill, name) for name in clipmill.__all__)
    with pytest.raises(AttributeError, match=re.escape("has no attribute 'sql'")):
        clipmill.sql  # noqa: B018  the access itself is tested
