"""A full or read-only disk ends a run with one error, wherever it writes; no row is blamed.

The dataset is on a small tmpfs. If nothing can be mounted, tests that need it are skipped.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipmill.jobs.run import run
from clipmill.pipeline.dataset.locks import dataset_lock
from clipmill.pipeline.dataset.run_records import run_records
from clipmill.pipeline.run import load
from clipmill.schemas.errors import ClipmillError
from tests.http_server import File, serve
from tests.media import Scene, cached
from tests.pipeline.conftest import words  # noqa: F401 (a fixture)

WRITER = Path(__file__).with_name("disk_stages.py")


class Disk:
    """A small separate file system, which `full()` and `read_only()` change within their block."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def full(self, but_bytes: int = 0) -> Iterator[None]:
        filler = self.folder / "filler"
        with contextlib.suppress(OSError), open(filler, "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        if but_bytes:
            os.truncate(filler, filler.stat().st_size - but_bytes)
        try:
            yield
        finally:
            filler.unlink()

    @contextlib.contextmanager
    def read_only(self, place: Path) -> Iterator[None]:
        _mount("--bind", place, place)
        _mount("-o", "remount,bind,ro", place)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", place], stdin=subprocess.DEVNULL, check=True)


def _mount(*arguments: object) -> None:
    subprocess.run(
        ["mount", *map(str, arguments)], stdin=subprocess.DEVNULL, check=True, capture_output=True
    )


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        _mount("-t", "tmpfs", "-o", "size=8m", "tmpfs", folder)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a tmpfs")
    try:
        yield Disk(folder)
    finally:
        subprocess.run(["umount", "-l", folder], stdin=subprocess.DEVNULL, check=True)


def recipe(folder: Path, sources: list[str], **stages: dict) -> Path:
    import yaml

    (folder / "urls.txt").write_text("\n".join(sources) + "\n")
    path = folder / "disk.yaml"
    path.write_text(
        yaml.safe_dump(
            {"sources": ["urls.txt"], "shard_videos": 2, "engine": "local", "stages": stages},
            sort_keys=False,
        )
    )
    return path


def films() -> list[Path]:
    return [
        cached((Scene(colour, 3.0),), size=(320, 240), rate=10)[0]
        for colour in ("red", "blue", "green", "yellow")
    ]


RULES = {"min_duration_seconds": 1, "min_height": None, "retries": 0}


def refuses(loaded, dataset: Path, text: str = "No space left on device; free some space") -> None:
    with pytest.raises(ClipmillError, match=f"cannot write to {dataset}.*{text}") as caught:
        run(loaded, dataset)
    assert caught.value.exit_status == 1


def no_row_failed(dataset: Path) -> None:
    import pyarrow.parquet as pq

    for path in dataset.glob("*/*/*.parquet"):
        if path.parts[-3] != "index":
            assert pq.read_table(path)["error"].null_count == pq.read_metadata(path).num_rows


@pytest.mark.parametrize("room", [0, 4096, 20_000, 60_000, 300_000])
@pytest.mark.parametrize("how", ["http", "copy"])
def test_full_disk_is_not_a_failure_of_a_download(disk, tmp_path, how, room):
    """Wherever it fills up: a note, the file itself, a table, the run record."""
    data = [path.read_bytes() + bytes(200_000) for path in films()]
    with serve() as site:
        if how == "http":
            sources = [site.script(f"/{n}.mp4", File(body)) for n, body in enumerate(data)]
        else:
            sources = []
            for number, body in enumerate(data):
                (tmp_path / f"{number}.mp4").write_bytes(body)
                sources.append(str(tmp_path / f"{number}.mp4"))
        path = recipe(
            tmp_path, sources, download_videos={**RULES, "copy_local_files": how == "copy"}
        )
        loaded, dataset = load(str(path), None), disk.folder / "dataset"
        with disk.full(but_bytes=room):
            refuses(loaded, dataset)
            no_row_failed(dataset)
        assert run(loaded, dataset)
    no_row_failed(dataset)
    assert len(list((dataset / "media").glob("*.mp4"))) == len(data)
    assert not list(dataset.rglob("*.tmp"))
    assert [record["state"] for record in run_records(dataset)][-1] == "done"


@pytest.mark.parametrize("how", ["scratch", "wrapped", "journal", "table"])
def test_full_disk_is_not_a_failure_of_a_row(disk, words, how):  # noqa: F811
    """In a stage's scratch folder, behind a stage's own error, in the runner's files."""
    data = words("a?clips=3", "b?clips=2", "c", "d")
    data.run(until="fetch_words")
    dataset = disk.folder / "dataset"
    loaded = data.loaded(f"filling.stage={WRITER}:FillDisk", f"filling.how={how}")
    for label in ("cut_words", "name_words", "count_letters", "guess_words"):
        loaded.stages.pop(label)
    with disk.full(but_bytes=280_000):  # enough for everything except what the stage writes
        refuses(loaded, dataset)
        no_row_failed(dataset)
    assert run(loaded, dataset)
    no_row_failed(dataset)
    assert not list(dataset.rglob("*.tmp"))
    assert not list(dataset.glob(".scratch/*"))


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_read_only_folder_is_reported(disk, words, when):  # noqa: F811
    """Before the first byte, and in the middle of a run."""
    data = words("a", "b", "c", "d")
    dataset = disk.folder / "dataset"
    loaded = data.loaded(f"filling.stage={WRITER}:FillDisk", "filling.how=nothing")
    for label in ("cut_words", "name_words", "count_letters", "guess_words"):
        loaded.stages.pop(label)
    data.run(until="fetch_words")
    if when == "before":
        dataset.mkdir()
        with disk.read_only(disk.folder):
            refuses(loaded, dataset, "Read-only file system; make it writable")
    else:
        run(loaded, dataset, until="fetch_words")
        with (
            disk.read_only(dataset),
            pytest.raises(ClipmillError, match="Read-only file system; make it writable"),
        ):
            run(loaded, dataset)
    assert run(loaded, dataset)


def test_unwritable_lock_is_reported(disk):
    """The first file that a command writes in a dataset."""
    dataset = disk.folder / "dataset"
    dataset.mkdir()
    told = "No space left on device; free some space"
    with disk.full(), pytest.raises(ClipmillError, match=told), dataset_lock(dataset):
        pass
    with dataset_lock(dataset):
        pass


def test_unwritable_logs_stop_nothing(disk, words):  # noqa: F811
    data = words("a", "b")
    dataset = disk.folder / "dataset"
    dataset.mkdir()
    (dataset / "logs").write_text("in the way")
    assert run(data.loaded(), dataset)
