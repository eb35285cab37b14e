"""Every file of a folder is ingested, or counted by kind."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.jobs.cli import main
from clipmill.jobs.doctor import examine
from clipmill.pipeline.ingest.sources import IngestReport, SourceSpec, ingest, list_source_shards
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.schemas.errors import UsageError
from tests.download_helpers import make_video
from tests.faults.corpus import film
from tests.pipeline.test_sources import read

OLDER = (".vob", ".f4v", ".mxf", ".3g2", ".ogg", ".asf", ".divx", ".rm", ".mpe", ".VOB")
RECIPE = """
sources: [films]
stages: {download_videos: {min_duration_seconds: null, min_height: null}}
"""


def put(folder: Path, *names: str, data: bytes = b"") -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return [str(folder / name) for name in names]


def take(folder: Path, path: str, *suffixes: str) -> tuple[list[str], IngestReport]:
    dataset = folder / f"dataset{len(list(folder.iterdir()))}"
    report = ingest(
        dataset,
        [SourceSpec(path=path)],
        shard_videos=99,
        base_folder=folder,
        take_suffixes=suffixes,
    )
    return sorted(row["url"] for row in read(dataset)), report


def test_all_video_suffixes_of_archives_are_ingested(tmp_path):
    wanted = put(tmp_path, *(f"films/a{number}{suffix}" for number, suffix in enumerate(OLDER)))
    found, report = take(tmp_path, "films")
    assert found == sorted(wanted)
    assert "passed over" not in report.describe()


@pytest.mark.parametrize("kind", ["mp4", "mkv", "webm", "ts", "mpg", "avi", "flv", "wmv"])
def test_file_without_a_suffix_is_recognised_by_its_first_bytes(tmp_path, kind):
    wanted = put(
        tmp_path, "films/a film", "films/2019.07.14", "films/Film No. 5", data=film(kind)[:4096]
    )
    put(tmp_path, "films/README", data=b"These are films.")
    found, report = take(tmp_path, "films")
    assert found == sorted(wanted)
    assert report.passed_over == {"without a suffix": 1}


def test_skipped_files_are_counted_by_kind(tmp_path):
    put(
        tmp_path,
        "films/a.mp4",
        *(f"films/{n}.JPG" for n in range(9)),
        *(f"films/b/{n}.txt" for n in range(3)),
    )
    for path in ("films", "films/**", "films/**/*"):
        found, report = take(tmp_path, path)
        assert found == [str(tmp_path / "films" / "a.mp4")]
        assert report.describe().endswith(
            "; 12 files passed over: 9 .jpg, 3 .txt; `--set take_suffixes=.jpg` takes such files."
        )
        found, report = take(tmp_path, path, ".jpg", ".txt")
        assert len(found) == 13
        assert "passed over" not in report.describe()


def test_pattern_matches_the_suffix_that_it_names(tmp_path):
    put(tmp_path, "films/a.dat", "films/b.srt", "films/c.mp4", "films/more/d.mp4")
    found, report = take(tmp_path, "films/*.dat")
    assert [Path(name).name for name in found] == ["a.dat"]
    assert not report.passed_over
    found, report = take(tmp_path, "films/*")
    assert [Path(name).name for name in found] == ["c.mp4"]
    assert "2 files passed over: 1 .dat, 1 .srt" in report.describe()
    assert "1 folder not searched" in report.describe()


def test_single_file_is_recognised_by_its_name_or_bytes(tmp_path):
    [wanted] = put(tmp_path, "film.dat", data=film("mkv"))
    assert take(tmp_path, "film.dat")[0] == [wanted]
    put(tmp_path, "other.dat", data=b"no video")
    with pytest.raises(UsageError, match=r"`--set take_suffixes=\.dat` treats it as one"):
        take(tmp_path, "other.dat")
    assert take(tmp_path, "other.dat", ".dat")[0] == [str(tmp_path / "other.dat")]


def test_pattern_of_lists_reads_each_list(tmp_path):
    for name in "ab":
        text = f"url,caption\nhttps://a.example/{name}.mp4,A film.\n"
        put(tmp_path, f"lists/part_{name}.csv", data=text.encode())
    found, report = take(tmp_path, "lists/part_*.csv")
    assert found == ["https://a.example/a.mp4", "https://a.example/b.mp4"]
    assert [Path(counts.name).name for counts in report.lists] == ["part_a.csv", "part_b.csv"]
    with pytest.raises(UsageError, match=r"2 \.csv; lists are read if you name them: .*/\*\.csv"):
        take(tmp_path, "lists")
    with pytest.raises(UsageError, match=r"part_z\*.csv gives no sources; no file matches"):
        take(tmp_path, "lists/part_z*.csv")


@pytest.mark.parametrize("name", ["000.tar", "films.zip", "shard.tar.gz"])
def test_archives_are_to_be_unpacked(tmp_path, name):
    put(tmp_path, f"packed/{name}", data=b"000.mp4" + bytes(600))
    with pytest.raises(UsageError, match="is an archive, which is not opened; unpack it"):
        take(tmp_path, f"packed/{name}")
    with pytest.raises(UsageError, match="archives are not opened: unpack them") as raised:
        take(tmp_path, "packed")
    assert "take_suffixes" not in str(raised.value)


@pytest.mark.parametrize(
    ("column", "kind"),
    [
        ("video", pa.struct([("bytes", pa.binary()), ("path", pa.string())])),
        ("video", pa.binary()),
        ("mp4", pa.binary()),
    ],
)
def test_videos_inside_parquet_are_not_taken_for_names(tmp_path, column, kind):
    data = film("mp4")[:4096]
    value = data if kind == pa.binary() else {"bytes": data, "path": "a.mp4"}
    table = pa.table({column: pa.array([value], kind), "caption": ["A film."]})
    pq.write_table(table, tmp_path / "train.parquet")
    with pytest.raises(UsageError, match=f"column '{column}' holds files, not their paths or URLs"):
        take(tmp_path, "train.parquet")


def test_folder_without_videos_is_reported_with_its_contents(tmp_path):
    put(tmp_path, "films/a.jpg", "films/b")
    with pytest.raises(
        UsageError,
        match=r"2 files passed over: 1 \.jpg, 1 without a suffix; "
        "`--set take_suffixes=all` takes them",
    ):
        take(tmp_path, "films")
    assert len(take(tmp_path, "films", "all")[0]) == 2


def test_link_to_a_folder_is_counted_and_a_pipe_does_not_block(tmp_path):
    put(tmp_path, "films/a.mp4", "else/b.mp4")
    (tmp_path / "films" / "linked").symlink_to(tmp_path / "else")
    os.mkfifo(tmp_path / "films" / "pipe")
    found, report = take(tmp_path, "films")
    assert [Path(name).name for name in found] == ["a.mp4", "pipe"]
    assert "1 link to folders not followed" in report.describe()


def test_unreadable_folder_is_a_failure_row(tmp_path, monkeypatch):
    put(tmp_path, "films/a.mp4", "films/locked/b.mp4")
    scandir = os.scandir

    def locked(path):
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    report = ingest(
        tmp_path / "dataset", [SourceSpec(path="films")], shard_videos=9, base_folder=tmp_path
    )
    assert (report.kept, report.failed) == (1, 1)
    [failed] = [row for row in read(tmp_path / "dataset") if row["error"]]
    assert "locked can't be read: Permission denied" in failed["error"]["message"]


def test_command_reports_skipped_files_and_its_hint_works(tmp_path, monkeypatch, capsys):
    put(tmp_path, "films/a.mp4", data=make_video())
    put(tmp_path, "films/b.dat", data=make_video(seed=1))
    (tmp_path / "run.yaml").write_text(RECIPE)
    words = [
        "clipmill",
        "run",
        str(tmp_path / "run.yaml"),
        "--engine",
        "local",
        "--dataset",
        str(tmp_path / "dataset"),
    ]

    def ran(*more: str) -> str:
        monkeypatch.setattr("sys.argv", [*words, *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        return " ".join(capsys.readouterr().err.split())

    assert "1 file passed over: 1 .dat; `--set take_suffixes=.dat` takes it" in ran()
    assert "passed over" not in ran("--set", "take_suffixes=.dat")
    assert len(list_source_shards(tmp_path / "dataset")) == 2


@pytest.mark.parametrize(
    ("written", "meant"),
    [(".dat,.bin", (".dat", ".bin")), ("[dat, '*.BIN']", (".dat", ".bin")), ("all", ("all",))],
)
def test_suffixes_can_be_written_in_several_ways(tmp_path, written, meant):
    (tmp_path / "run.yaml").write_text(f"take_suffixes: {written}\n{RECIPE}")
    assert load_recipe(tmp_path / "run.yaml").recipe.take_suffixes == meant
    (tmp_path / "run.yaml").write_text(f"take_suffixes: 5\n{RECIPE}")
    with pytest.raises(UsageError, match=r"take_suffixes: expected file endings"):
        load_recipe(tmp_path / "run.yaml")


def test_doctor_lists_the_files_in_a_recipes_folders(tmp_path, capsys):
    put(tmp_path, "films/a.mp4", "films/b.jpg")
    put(tmp_path, "lists/a.csv")
    text = RECIPE.replace("[films]", "[films, 'lists/*.csv', 'none/*.mp4']")
    (tmp_path / "run.yaml").write_text(text)
    assert examine(str(tmp_path / "run.yaml")) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "source films: 1 file to use; 1 file passed over: 1 .jpg; "
        "`--set take_suffixes=.jpg` takes it"
    ) in said
    assert "source lists/*.csv: 1 list" in said
    assert "source none/*.mp4: 0 files to use it contains nothing that looks like a video" in said
