"""Damaged files: every command names the file and the next step, and a repair fixes all."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from tests.in_process import call, heard
from tests.media import Scene, render

FILES = {
    "sources": "sources/000000.parquet",
    "videos": "download_videos/*/000001.parquet",
    "scans": "scan_videos/*/000001.parquet",
    "shots": "shots/*/000001.parquet",
    "clips": "split_clips/*/000001.parquet",
    "retried": "download_videos/*/000000.retry1.parquet",
    "frames": "frames/*/000001.parquet",
    "first_run": "runs/*.json",
    "newest_run": "runs/*.json",
    "request": "retries/000000.retry1.json",
    "journal": "journal/*.json",
    "list": "sources/.lists/*.json",
    "removal": "removed/*.json",
    "subset": "subsets/long/subset.json",
    "subset_clips": "subsets/long/clips-000000.parquet",
    "manifest": "index/*/manifest.json",
    "index": "index/*/clips-*.parquet",
    "log": "logs/*/driver.jsonl",
    "lock": ".lock",
    "commits": ".commits",
}
LEFT_TO_JUDGE = {"removal", "subset", "subset_clips"}
LOCKS = {"lock", "commits"}
# Rebuilt by earlier commands, or reported when read: a log's lines, for example.
PASSED_OVER = {"manifest", "index", "log", *LOCKS}


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100][: path.stat().st_size // 2])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def fill_with_zeros(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def fill_with_garbage(path: Path) -> None:
    path.write_bytes(random.Random(5).randbytes(max(8, path.stat().st_size)))


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def put_latin_1(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + "müde".encode("latin-1"))


def put_another_object(path: Path) -> None:
    path.write_bytes(b'{"keys": 3}')


def turn_pages(path: Path) -> None:
    """The footer stays valid: only readers of the rows notice, or nobody, if none needs them."""
    data = bytearray(path.read_bytes())
    for place in range(len(data) // 4, len(data) // 2):
        data[place] ^= 0x5A
    path.write_bytes(data)


HARMS = [
    truncate,
    empty,
    fill_with_zeros,
    fill_with_garbage,
    put_a_folder,
    put_a_pipe,
    put_latin_1,
    put_another_object,
    turn_pages,
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dataset with a file of every kind: a retried failure, a subset, an index."""
    folder = tmp_path_factory.mktemp("damage")
    films = folder / "films"
    films.mkdir()
    for number in (0, 1):
        render(
            films / f"film{number}.mp4",
            [Scene("red", 1.0 + number), Scene("blue", 1.0)],
            rate=10,
            size=(96, 64),
        )
    (films / "a-bad-one.mp4").write_bytes(b"no film" * 40)
    (folder / "small.yaml").write_text(
        yaml.safe_dump(
            {
                "sources": [{"path": "films"}],
                "shard_videos": 1,
                "engine": "local",
                "stages": {
                    "download_videos": {"min_duration_seconds": None, "min_height": None},
                    "split_clips": {"keep_frames": True},
                },
            },
            sort_keys=False,
        ),
        "utf-8",
    )
    (folder / "long.yaml").write_text(
        yaml.safe_dump(
            {
                "description": "d",
                "source": "nowhere",
                "verified": False,
                "rules": [{"where": "duration_seconds > 0.1"}],
            }
        ),
        "utf-8",
    )
    dataset = folder / "dataset"
    for arguments in (
        ("run", folder / "small.yaml", "--dataset", dataset),
        ("retry", dataset),
        ("subset", "create", dataset, folder / "long.yaml"),
        ("verify", dataset),
    ):
        assert call(*arguments) == 0
    print_ = next((dataset / "download_videos").iterdir()).name
    for place, value in (
        (f"journal/download_videos-{print_}-000001.json", {"run_id": "r", "started": {"k": 1}}),
        (
            "sources/.lists/0123456789abcdef0123.json",
            {
                "url": "http://x",
                "results": None,
                "entries": [{"url": "http://x/1", "title": "Bär"}],
            },
        ),
        (
            "removed/20260101T000000000000-abcdef.json",
            {
                "at": "2026-01-01T00:00:00+00:00",
                "reason": "wünscht es",
                "purged_at": "2026-01-01T00:00:00+00:00",
                "videos": [{"video_id": "gone", "source_keys": ["k"]}],
            },
        ),
    ):
        (dataset / place).parent.mkdir(exist_ok=True)
        (dataset / place).write_text(json.dumps(value, ensure_ascii=False), "utf-8")
    return dataset


@pytest.fixture
def clipmill(capfd, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Runs a command like the program does; returns its exit status and all its output."""
    monkeypatch.setenv("COLUMNS", "1000")

    def run(*arguments: object) -> tuple[int, str]:
        done = heard(capfd, *arguments)
        return done.returncode, done.stdout + done.stderr

    return run


def file_of(dataset: Path, kind: str) -> Path:
    found = sorted(dataset.glob(FILES[kind]))
    return found[-1 if kind == "newest_run" else 0]


def rows_of(dataset: Path) -> dict[str, list[str]]:
    """All rows of all tables except caches; for sources without their position in the list."""
    found: dict[str, list[str]] = {}
    for path in sorted(dataset.rglob("[!.]*.parquet")):
        parts = path.relative_to(dataset).parts
        if parts[0] not in ("index", "quarantine", "frames", "subsets"):
            found.setdefault(parts[0], []).extend(
                repr(
                    {
                        name: value
                        for name, value in row.items()
                        if name not in ("downloaded_at", "position", "error")
                    }
                )
                for row in pq.read_table(path).to_pylist()
            )
    # A source that is ingested again fails again, in a new shard instead of a retry.
    return {name: sorted(set(rows)) for name, rows in found.items()}


def commands(dataset: Path) -> dict[str, tuple[object, ...]]:
    recipe = dataset.parent / "recipe.yaml"
    return {
        "run": ("run", "--dataset", dataset),
        "run recipe": ("run", recipe, "--dataset", dataset),
        "status": ("status", dataset),
        "report": ("report", dataset, "--output", dataset.parent / "report.html"),
        "sql": ("sql", dataset, "SELECT * FROM clips"),
        "sql runs": ("sql", dataset, "SELECT count(*) FROM runs"),
        "sql steps": ("sql", dataset, "SELECT * FROM steps.split_clips"),
        "failures": ("failures", dataset),
        "logs": ("logs", dataset),
        "subset list": ("subset", "list", dataset),
        "subset show": ("subset", "show", dataset, "long"),
        "export": (
            "export",
            dataset,
            "--format",
            "csv",
            "--subset",
            "long",
            "--output",
            dataset.parent / "export",
        ),
        "remove": ("remove", dataset, "--uploader", "nobody", "--dry-run"),
        "index": ("index", dataset),
        "retry": ("retry", dataset),
        "verify": ("verify", dataset),
    }


def check(
    whole: Path,
    folder: Path,
    kind: str,
    harm: Callable[[Path], None],
    clipmill,
    only: tuple[str, ...] = (),
) -> None:
    dataset = Path(shutil.copytree(whole, folder / "dataset"))
    recipe = yaml.safe_load((whole.parent / "small.yaml").read_text("utf-8"))
    recipe["sources"] = [{"path": str(whole.parent / "films")}]
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    before = rows_of(dataset)
    path = file_of(dataset, kind)
    harm(path)
    where = path.relative_to(dataset).as_posix()
    for name, arguments in commands(dataset).items():
        if only and name not in only:
            continue
        shutil.rmtree(folder / "export", ignore_errors=True)
        status, said = clipmill(*arguments)
        wrong_use = name == "remove" and status == 2 and "no video of the dataset" in said
        assert status in (0, 1) or wrong_use, (name, status, said)
        assert "Traceback" not in said
        if status == 1:
            # A subset is reported by its folder, removals all together.
            named = {where, "subsets/long"} if kind.startswith("subset") else {where}
            assert any(place in said for place in named), (name, said)
            assert "clipmill verify" in said or kind in LEFT_TO_JUDGE | LOCKS, (name, said)
    if kind in LOCKS and not path.is_file():
        assert clipmill("verify", dataset)[0] == 1
        path.rmdir() if path.is_dir() else path.unlink()
    is_fault = clipmill("verify", dataset)[0] == 1
    assert is_fault or kind in PASSED_OVER
    status, said = clipmill("verify", dataset, "--repair")
    assert status == (1 if is_fault and kind in LEFT_TO_JUDGE else 0), said
    if kind in LEFT_TO_JUDGE:
        shutil.rmtree(dataset / "subsets" / "long") if kind != "removal" else (
            path.rmdir() if path.is_dir() else path.unlink()
        )
    status, said = clipmill("run", folder / "recipe.yaml", "--dataset", dataset)
    assert status == 0, said
    if kind == "request":
        assert clipmill("retry", dataset)[0] == 0
    status, said = clipmill("verify", dataset)
    assert status == 0, said
    assert rows_of(dataset) == before


PAIRS = [(kind, harm) for kind in FILES for harm in HARMS]
# Each kind of damage, and each file that a run needs; `make test-slow` has all pairs.
SOME = [
    ("clips", truncate),
    ("request", empty),
    ("journal", fill_with_garbage),
    ("videos", put_a_pipe),
    ("subset", put_another_object),
]
FEW = ("run", "status", "sql steps", "failures", "retry")
IDS = {"ids": lambda value: value if isinstance(value, str) else value.__name__}


@pytest.mark.parametrize(("kind", "harm"), SOME, **IDS)
def test_damaged_file_is_named_by_every_command_and_repaired(whole, tmp_path, kind, harm, clipmill):
    check(whole, tmp_path, kind, harm, clipmill, only=FEW)


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "harm"), PAIRS, **IDS)
def test_every_kind_of_file_damaged_in_every_way(whole, tmp_path, kind, harm, clipmill):
    check(whole, tmp_path, kind, harm, clipmill)


def test_named_pipe_next_to_shards_does_not_block(whole, tmp_path, clipmill):
    dataset = Path(shutil.copytree(whole, tmp_path / "dataset"))
    folder = next((dataset / "split_clips").iterdir())
    os.mkfifo(folder / "000009.parquet")
    where = f"split_clips/{folder.name}/000009.parquet"
    for arguments in (("status", dataset), ("run", "--dataset", dataset), ("verify", dataset)):
        status, said = clipmill(*arguments)
        assert status == 1
        assert where in said
        assert "a named pipe" in said or arguments[0] == "verify"  # for which it is an orphan
    assert clipmill("verify", dataset, "--repair")[0] == 0
    assert clipmill("run", "--dataset", dataset)[0] == 0


@pytest.mark.parametrize("harm", [put_a_folder, put_a_pipe])
def test_shard_that_is_not_a_file_is_not_skipped(whole, tmp_path, clipmill, harm):
    dataset = Path(shutil.copytree(whole, tmp_path / "dataset"))
    path = file_of(dataset, "scans")
    harm(path)
    status, said = clipmill("sql", dataset, "SELECT count(*) FROM steps.scan_videos")
    assert status == 1
    assert f"{path.relative_to(dataset)} is damaged (it is a" in said
    assert clipmill("sql", dataset, "SELECT count(*) FROM clips")[0] == 0


def test_wrong_sql_is_a_usage_error_despite_damaged_files(whole, tmp_path, clipmill):
    dataset = Path(shutil.copytree(whole, tmp_path / "dataset"))
    truncate(file_of(dataset, "scans"))
    for query in (
        "SELECT nothing FROM clips",
        "SELECT error('no magic bytes')",
        "SELEC",
        "SELECT * FROM no_such_view",
    ):
        status, said = clipmill("sql", dataset, query)
        assert status == 2
        assert "damaged" not in said


def test_folder_instead_of_the_lock_is_named_with_a_remedy(whole, tmp_path, clipmill):
    dataset = Path(shutil.copytree(whole, tmp_path / "dataset"))
    put_a_folder(dataset / ".lock")
    status, said = clipmill("run", "--dataset", dataset)
    assert status == 1
    assert f"{dataset / '.lock'} is a folder" in said
    assert "delete or move it" in said


@pytest.mark.slow
def test_ray_workers_name_a_damaged_shard(whole, tmp_path, clipmill):
    dataset = Path(shutil.copytree(whole, tmp_path / "dataset"))
    file_of(dataset, "clips").unlink()
    damaged = file_of(dataset, "scans")
    truncate(damaged)
    recipe = yaml.safe_load((whole.parent / "small.yaml").read_text("utf-8"))
    recipe |= {
        "sources": [{"path": str(whole.parent / "films")}],
        "engine": "ray",
        "ray": {"num_cpus": 2},
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), "utf-8")
    status, said = clipmill("run", tmp_path / "recipe.yaml", "--dataset", dataset)
    assert status == 1
    assert f"Error: {damaged.relative_to(dataset)} is damaged (" in said
    assert f"clipmill verify {dataset} --repair" in said
    assert "Traceback" not in said
