"""`clipmill show`: prints the clip's row and its frames, and plays the span."""

from __future__ import annotations

import base64
import io
import json
import os
import pty
import re
import select
import shutil
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import av
import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from clipmill.jobs.cli import app
from clipmill.jobs.terminal_pictures import show_picture, way_of_terminal
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.schemas.errors import ClipmillError, UsageError
from clipmill.stages.measure_text import TEXT_MEASURES
from tests.synthetic import START, STEPS, build_dataset, run_record, write_run, write_shard

ROOT = Path(__file__).resolve().parents[2]


def ask(dataset: Path, query: str) -> list[dict]:
    with open_catalog(dataset) as catalog:
        return catalog.ask(query).read_all().to_pylist()


def clipmill(*words: object):
    return CliRunner().invoke(
        app, [*map(str, words)], env={"COLUMNS": "200"}, catch_exceptions=False
    )


@pytest.fixture(scope="module")
def clips(made) -> list[dict]:
    return ask(made.dataset, "SELECT * FROM clips ORDER BY clip_id LIMIT 2")


@pytest.fixture
def without_frames(made, tmp_path: Path) -> Path:
    """The dataset after its frames were dropped."""
    dataset = Path(shutil.copytree(made.dataset, tmp_path / "dataset"))
    shutil.rmtree(dataset / "frames")
    return dataset


def test_row_is_shown_and_printed_as_json(made, clips):
    ids = [clip["clip_id"] for clip in clips]
    said = clipmill("show", made.dataset, *reversed(ids))
    assert said.exit_code == 0
    blocks = re.split(r"^(?=\S)", said.stdout, flags=re.M)[1:]
    assert [block.split()[0] for block in blocks] == ids[::-1]
    for block, clip in zip(blocks, reversed(clips), strict=True):
        assert re.search(rf"^  caption +{re.escape(clip['caption'])}$", block, re.M)
        assert re.search(rf"^  aesthetic +{clip['aesthetic']:.6g}$", block, re.M)
        assert clip["tags"][0]["tag"] in block
    rows = json.loads(clipmill("show", made.dataset, *reversed(ids), "--format", "json").stdout)
    assert [row["clip_id"] for row in rows] == ids[::-1]
    assert rows[0].keys() == clips[0].keys()


def test_reason_for_a_missing_value_is_shown(tmp_path: Path):
    dataset = build_dataset(tmp_path / "dataset", shards=1).path
    path = dataset / "tag_clips" / "t1" / "000000.parquet"
    table = pq.read_table(path)
    clip_id = table["clip_id"][0].as_py()
    rejection = {"rule": "skipped", "detail": "where motion > 2"}
    rows = [{"clip_id": clip_id, "rejection": rejection}, *table.to_pylist()[1:]]
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    # And lists of records have a line each.
    texts = [
        {"seconds": 61.5, "last_seconds": 62.0, "text": f"line {number}", "confidence": 0.98765}
        for number in range(22)
    ]
    measured = {"clip_id": clip_id, "text_lines": texts, "text_read": ["A", "B"]}
    write_shard(dataset, "measure_text", "m1", "000000", [measured], TEXT_MEASURES)
    steps = {**STEPS, "measure_text": ("measure_text", "m1", TEXT_MEASURES)}
    write_run(dataset, run_record("r9", START + timedelta(days=9), steps))
    said = clipmill("show", dataset, clip_id)
    assert re.search(r"^  skipped by +tag_clips: where motion > 2$", said.stdout, re.M)
    first = r"^  text_lines +1:01.5–1:02.0  text line 0, confidence 0.988$"
    assert re.search(first, said.stdout, re.M)
    assert re.search(r"text line 19, .*\n +and 2 more$", said.stdout, re.M)
    assert re.search(r"^  text_read +A\n +B$", said.stdout, re.M)


def test_unknown_clip_is_one_error_with_similar_ids(made, clips):
    clip_id = clips[0]["clip_id"]
    with pytest.raises(UsageError, match=rf"no clip '{clip_id}9'.*did you mean {clip_id}\b"):
        clipmill("show", made.dataset, f"{clip_id}9")


def test_frames_are_the_kept_ones_or_else_decoded(
    made, without_frames: Path, clips, tmp_path: Path
):
    """A row per clip, in the requested order; both ways show the same pictures."""
    ids = [clip["clip_id"] for clip in clips]
    pictures = []
    for dataset, name in ((made.dataset, "kept.png"), (without_frames, "decoded.png")):
        assert (
            clipmill("show", dataset, *ids, "--frames", 5, "--output", tmp_path / name).exit_code
            == 0
        )
        pictures.append(cv2.imread(str(tmp_path / name)).astype(int))
    kept, decoded = pictures
    width = round(180 * clips[0]["width"] / clips[0]["height"])
    assert kept.shape == decoded.shape == (2 * 180 + 4, 5 * width + 4 * 4, 3)
    assert np.abs(kept - decoded).mean() < 6  # kept frames may be their neighbours
    assert np.abs(kept[:180] - kept[184:]).mean() > 6


def test_row_is_shown_even_if_the_file_is_gone(without_frames: Path, clips, tmp_path: Path):
    shutil.rmtree(without_frames / "index")
    for place in (without_frames / "download_videos").glob("*/*.parquet"):
        _forget_paths(place)
    clip_id = clips[0]["clip_id"]
    assert clip_id in clipmill("show", without_frames, clip_id).stdout
    for words in (["--output", tmp_path / "strip.png"], ["--open"]):
        with pytest.raises(ClipmillError, match=r"the file of .* is missing"):
            clipmill("show", without_frames, clip_id, *words)
    assert not (tmp_path / "strip.png").exists()


def _forget_paths(place: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(place)
    at = table.schema.get_field_index("path")
    gone = [None if path is None else "/nowhere/film.mp4" for path in table["path"].to_pylist()]
    pq.write_table(table.set_column(at, table.schema.field(at), pa.array(gone, pa.string())), place)


@pytest.mark.parametrize("has_player", [True, False])
def test_open_plays_the_span(made, clips, tmp_path: Path, monkeypatch, has_player):
    """A cut with just the clip's frames, for the desktop's player; else its path is printed."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    if has_player:
        player = tmp_path / "xdg-open"
        player.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/played\n')
        player.chmod(0o755)
    done = clipmill("show", made.dataset, clips[0]["clip_id"], "--open")
    assert done.exit_code == 0
    (cut,) = tmp_path.glob("clipmill-*/clip.mp4")
    if has_player:
        assert (tmp_path / "played").read_text().strip() == str(cut)
    else:
        assert f"play {cut}" in done.output
    with av.open(str(cut)) as container:
        count = sum(1 for _ in container.decode(video=0))
    assert count == clips[0]["end_frame"] - clips[0]["start_frame"]


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("environment", "way"),
    [
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm2"),
        (
            {"TERM": "tmux-256color", "TERM_PROGRAM": "iTerm.app", "COLORTERM": "truecolor"},
            "blocks",
        ),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm"}, None),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, None),
        ({}, None),
    ],
)
def test_best_method_of_the_terminal_is_used(environment, way):
    assert way_of_terminal(Screen(), environment) == way
    assert way_of_terminal(io.StringIO(), environment) is None


PICTURE = np.zeros((5, 7, 3), np.uint8)
PICTURE[:3, :4] = (255, 0, 51)
PICTURE[4, 6] = (0, 255, 255)


def shown(way: str) -> str:
    screen = Screen()
    show_picture(PICTURE, way, screen)
    return screen.getvalue()


def test_kitty_and_iterm_get_a_png():
    for way, pattern in (
        ("kitty", r"\x1b_Ga=T,f=100,q=2,m=0;([^\x1b]*)\x1b\\"),
        ("iterm2", r"\x1b\]1337;File=inline=1;[^:]*:([^\a]*)\a"),
    ):
        data = base64.b64decode(re.match(pattern, shown(way))[1])
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB)
        assert np.array_equal(image, PICTURE)


def test_blocks_show_two_rows_per_line():
    lines = shown("blocks").splitlines()
    assert [line.count("▀") for line in lines] == [7, 7, 7]
    assert lines[0].startswith("\x1b[38;2;255;0;51;48;2;255;0;51m▀")
    assert lines[2].endswith("\x1b[38;2;0;255;255;48;2;0;255;255m▀\x1b[0m\n".rstrip("\n"))


def test_sixels_round_trip():
    """Decoded by the format's rules: colours in per cent, six rows per band, `!` repeats."""
    said = shown("sixel").strip()
    head = re.match(r'\x1bPq"1;1;7;5', said)
    palette, image, row, column, colour = {}, np.zeros((6, 7, 3), int), 0, 0, None
    tokens = re.finditer(
        r"#(\d+)(?:;2;(\d+);(\d+);(\d+))?|!(\d+)(.)|([?-~])|([$-])", said[head.end() : -2]
    )
    for token in tokens:
        number, *percent = token.groups()[:4]
        if number and percent[0]:
            palette[number] = [int(part) for part in percent]
        elif number:
            colour = palette[number]
        elif token[8] == "$":
            column = 0
        elif token[8] == "-":
            row, column = row + 6, 0
        else:
            bits = ord(token[6] or token[7]) - 63
            count = int(token[5] or 1)
            for bit in range(6):
                if bits >> bit & 1:
                    image[row + bit, column : column + count] = colour
            column += count
    assert np.array_equal(image[:5], np.rint(PICTURE / 255 * 100))


def test_picture_is_shown_on_a_terminal_with_sixels(made, clips):
    """The terminal's attributes are requested, and its answer is not shown."""
    parent, child = pty.openpty()
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("COLORTERM", "TERM_PROGRAM", "KITTY_WINDOW_ID", "LC_TERMINAL")
    }
    with subprocess.Popen(
        [sys.executable, "-m", "clipmill.jobs.cli", "show", str(made.dataset), clips[0]["clip_id"]],
        cwd=ROOT,
        stdin=child,
        stdout=child,
        stderr=child,
        start_new_session=True,
        env={**environment, "TERM": "xterm-256color", "COLUMNS": "100"},
    ) as process:
        os.close(child)
        seen, answered = b"", False
        while select.select([parent], [], [], 120)[0]:
            try:
                seen += os.read(parent, 65536)
            except OSError:
                break
            if not answered and b"\x1b[c" in seen:
                os.write(parent, b"\x1b[?62;4;22c")
                answered = True
        assert process.wait(60) == 0
    os.close(parent)
    assert answered
    assert clips[0]["clip_id"].encode() in seen
    assert b'\x1bPq"1;1;' in seen
    assert b"62;4;22c" not in seen
