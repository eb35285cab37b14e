"""`clipmill show`: prints a clip's row and a strip of its frames, and plays its span."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from clipmill.jobs.formats import write_rows
from clipmill.jobs.report.sample_clips import clock
from clipmill.jobs.terminal_pictures import Way, show_picture, way_of_terminal, width_in_pixels
from clipmill.pipeline.catalog.catalog import Catalog, open_catalog
from clipmill.pipeline.catalog.kept_frames import ClipSpan, KeptFrame, kept_frames
from clipmill.pipeline.catalog.links import clip_link
from clipmill.pipeline.catalog.user_sql import readable_errors
from clipmill.pipeline.exports.output_places import check_output
from clipmill.schemas.clocks import FILE_ZERO_SQL
from clipmill.schemas.command_line import shell_word
from clipmill.schemas.errors import ClipmillError, RowFailed, UsageError, printable
from clipmill.schemas.sql_text import literal
from clipmill.schemas.words import counted
from clipmill.stages.media.cutting.cut import cut_clips_isolated
from clipmill.stages.media.cutting.requests import CutOptions, CutRequest
from clipmill.stages.media.isolation.isolated import Limits, collect_isolated
from clipmill.stages.media.read.images import decode_jpeg, fit, png_bytes
from clipmill.stages.media.read.seek import read_frames
from clipmill.stages.protocol import Uniform

FRAMES = 8
_FRAME_HEIGHT = 180
_GAP = 4
_QUALITY = 90
# The minimum width of a recognisable picture, in characters.
_COLUMNS_A_FRAME = 38
_PLAYER_SECONDS = 2.0
# Of a list, such as the words that somebody says.
_MOST_ITEMS = 20
_TIMES = ("start_seconds", "seconds", "last_seconds", "end_seconds")


@dataclass(frozen=True)
class _Media:
    """A video's file; `problem` says why it can't be read."""

    path: Path
    starts_at_seconds: float
    problem: str | None


def show(
    dataset: Path,
    clip_ids: Sequence[str],
    *,
    frames: int = FRAMES,
    format: str = "table",
    output: Path | None = None,
    play: bool = False,
) -> None:
    """Shows clips on standard output; with `output`, writes their frames to a PNG file, a row per
    clip.

    Uses the kept frames, or else decodes them from the video's file. Raises UsageError for ids
    that the dataset doesn't have, ClipmillError if requested frames or cuts can't be made.
    """
    _check_png(dataset, output)
    ids = list(dict.fromkeys(clip_ids))
    with open_catalog(dataset) as catalog, readable_errors():
        rows = _rows(catalog, ids)
        if format != "table":
            wanted = ", ".join(map(literal, ids))
            write_rows(
                catalog.ask(
                    f"SELECT * FROM clips WHERE clip_id IN ({wanted}) ORDER BY "
                    f"list_position([{wanted}], clip_id)"
                ),
                format,
            )
        skipped = _skipped(catalog, ids) if format == "table" else {}
        media = _media(catalog, rows)
        way = way_of_terminal(sys.stdout) if format == "table" else None
        pictured = output is not None or (format == "table" and sys.stdout.isatty())
        strips: dict[str, list[np.ndarray]] = {}
        problems: dict[str, str] = {}
        if pictured:
            strips, problems = _strips(catalog, rows, media, frames)
    if format == "table":
        for row in rows:
            _print_row(row, skipped.get(row["clip_id"], []))
            if pictured:
                _print_strip(row["clip_id"], strips, problems, way, output)
    failed = []
    if output is not None:
        failed = [f"{clip_id}: {problem}" for clip_id, problem in problems.items()]
        if strips:
            _write_png(
                output,
                [_side_by_side(strips[row["clip_id"]]) for row in rows if row["clip_id"] in strips],
            )
            print(f"{output}: the frames of {counted(len(strips), 'clip')}", file=sys.stderr)
    if play:
        failed += [
            problem for row in rows if (problem := _play(row, media[row["video_id"]])) is not None
        ]
    if failed:
        raise ClipmillError("\n".join(dict.fromkeys(failed)))


def _check_png(dataset: Path, output: Path | None) -> None:
    if output is None:
        return
    check_output(dataset, output)
    if output.suffix.lower() != ".png" or output.is_dir():
        raise UsageError(
            f"--output {output}: give a file name that ends in .png; --format json prints the row"
        )
    if not output.parent.is_dir():
        raise UsageError(f"--output {output}: no folder {output.parent}; create it first")


def _rows(catalog: Catalog, ids: Sequence[str]) -> list[dict[str, Any]]:
    """The clips' rows in the order of the ids; UsageError with similar ids for unknown ones."""
    found = catalog.execute(
        f"SELECT * FROM clips WHERE clip_id IN ({', '.join('?' for _ in ids)})", list(ids)
    )
    names = [name for name, *_ in found.description]
    rows = {
        row[names.index("clip_id")]: dict(zip(names, row, strict=True)) for row in found.fetchall()
    }
    missing = [clip_id for clip_id in ids if clip_id not in rows]
    if missing:
        near = catalog.execute(
            "SELECT clip_id FROM clips ORDER BY jaro_winkler_similarity(clip_id, ?) DESC, clip_id "
            "LIMIT 3",
            [missing[0]],
        ).fetchall()
        hint = (
            f"did you mean {', '.join(clip_id for (clip_id,) in near)}?"
            if near
            else f"it has no clips yet; see `clipmill status {shell_word(catalog.layout.dataset)}`"
        )
        also = f" (nor {len(missing) - 1:,} of the others)" if len(missing) > 1 else ""
        raise UsageError(f"the dataset has no clip {printable(missing[0])!r}{also}; {hint}")
    return [rows[clip_id] for clip_id in ids]


def _skipped(catalog: Catalog, ids: Sequence[str]) -> dict[str, list[str]]:
    """Why stages have skipped each clip."""
    found: dict[str, list[str]] = {}
    rows = catalog.execute(
        f"SELECT key, stage, detail FROM skipped WHERE key IN ({', '.join('?' for _ in ids)}) "
        "ORDER BY key, stage",
        list(ids),
    ).fetchall()
    for clip_id, stage, detail in rows:
        found.setdefault(clip_id, []).append(_line(f"{stage}: {detail}"))
    return found


def _media(catalog: Catalog, clips: Sequence[Mapping[str, Any]]) -> dict[str, _Media]:
    names = sorted({clip["video_id"] for clip in clips})
    rows = catalog.execute(
        f"SELECT video_id, path, {FILE_ZERO_SQL} FROM videos "
        f"WHERE video_id IN ({', '.join('?' for _ in names)})",
        names,
    ).fetchall()
    found = {video: _Media(Path(), 0.0, f"the dataset has no file for {video}") for video in names}
    for clip in clips:
        if clip["media"] != "present":
            why = "the clip is only published: its video is not downloaded yet"
            if clip["media"] == "failed":
                why = "its video failed or was rejected; see `clipmill failures`"
            found[clip["video_id"]] = _Media(Path(), 0.0, why)
    for video, path, file_zero in rows:
        if path is not None:
            place = catalog.layout.dataset / path
            problem = None if place.is_file() else f"the file of {video} is missing: {place}"
            found[video] = _Media(place, file_zero, problem)
    return found


def _strips(
    catalog: Catalog, rows: Sequence[Mapping[str, Any]], media: Mapping[str, _Media], count: int
) -> tuple[dict[str, list[np.ndarray]], dict[str, str]]:
    """Frames by clip, and the reasons for clips without any."""
    spans = [
        ClipSpan(row["clip_id"], row["video_id"], row["start_seconds"], row["end_seconds"])
        for row in rows
    ]
    images = {clip_id: _decoded(frames) for clip_id, frames in kept_frames(catalog, spans, count)}
    strips = {clip_id: found for clip_id, found in images.items() if found}
    problems = {}
    for span in spans:
        if span.clip_id in strips:
            continue
        file = media[span.video_id]
        if file.problem is not None:
            problems[span.clip_id] = (
                file.problem
                if file.path == Path()
                else f"its frames were not kept, and {file.problem}"
            )
            continue
        try:
            strips[span.clip_id] = _decoded(_read(file, span, count))
        except RowFailed as error:
            problems[span.clip_id] = error.message
        if not strips.get(span.clip_id):
            strips.pop(span.clip_id, None)
            problems.setdefault(span.clip_id, "none of its frames can be decoded")
    return strips, problems


def _read(file: _Media, span: ClipSpan, count: int) -> list[KeptFrame]:
    asked = [(span.start_seconds, span.end_seconds, (Uniform(count),))]
    frames, _ = collect_isolated(
        read_frames,
        file.path,
        asked,
        _FRAME_HEIGHT,
        _QUALITY,
        file.starts_at_seconds,
        limits=Limits(),
    )
    return [KeptFrame(frame["seconds"], frame["jpeg"]) for frame in frames]


def _decoded(frames: Iterable[KeptFrame]) -> list[np.ndarray]:
    """The pictures, all of the same height."""
    images = []
    for frame in frames:
        try:
            image = decode_jpeg(frame.jpeg)
        except RowFailed:
            continue
        height, width = image.shape[:2]
        images.append(
            fit(image, (_FRAME_HEIGHT, max(1, round(_FRAME_HEIGHT * width / height))), "squash")
        )
    return images


def _side_by_side(images: Sequence[np.ndarray]) -> np.ndarray:
    gap = np.zeros((_FRAME_HEIGHT, _GAP, 3), np.uint8)
    return np.concatenate([part for image in images for part in (gap, image)][1:], axis=1)


def _below(strips: Sequence[np.ndarray]) -> np.ndarray:
    width = max(strip.shape[1] for strip in strips)
    padded = [
        np.pad(strip, ((0, _GAP if n else 0), (0, width - strip.shape[1]), (0, 0)))
        for n, strip in zip(reversed(range(len(strips))), strips, strict=True)
    ]
    return np.concatenate(padded)


def _write_png(output: Path, strips: Sequence[np.ndarray]) -> None:
    try:
        output.write_bytes(png_bytes(_below(strips)))
    except OSError as error:
        raise ClipmillError(f"--output {output}: cannot be written: {error.strerror}") from error


def _print_strip(
    clip_id: str,
    strips: Mapping[str, list[np.ndarray]],
    problems: Mapping[str, str],
    way: Way | None,
    output: Path | None,
) -> None:
    if clip_id in problems:
        print(printable(f"No picture: {problems[clip_id]}."))
        return
    images = strips[clip_id]
    if way is None:
        if output is None:
            with tempfile.NamedTemporaryFile(
                prefix="clipmill-", suffix=".png", delete=False
            ) as file:
                file.write(png_bytes(_side_by_side(images)))
            print(f"This terminal can't show pictures; the frames are in {file.name}")
        return
    columns = Console().width
    in_a_row = max(1, min(len(images), columns // _COLUMNS_A_FRAME))
    picture = _below(
        [_side_by_side(images[at : at + in_a_row]) for at in range(0, len(images), in_a_row)]
    )
    height, width = picture.shape[:2]
    most = width_in_pixels(way, columns)
    if width > most:
        picture = fit(picture, (max(1, round(height * most / width)), most), "squash")
    show_picture(picture, way, sys.stdout)


def _print_row(row: Mapping[str, Any], skipped: Sequence[str]) -> None:
    """All columns of the clip, one line each, and the stages that have skipped it."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=200)
    span = f"{clock(row['start_seconds'])}–{clock(row['end_seconds'])}"
    console.print(
        Text(row["clip_id"], style="bold"),
        Text(f"{span}, {row['duration_seconds']:.3g} s"),
        soft_wrap=True,
    )
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    there = {**row, "url": clip_link(row["url"], row["start_seconds"], row["end_seconds"])}
    said = {name: _said(name, value) for name, value in there.items() if name != "clip_id"}
    for name, text in said.items():
        if text:
            table.add_row(Text(f"  {name}"), Text(text))
    if without := [name for name, text in said.items() if text is None]:
        table.add_row(Text("  no value"), Text(", ".join(without), style="dim"))
    if skipped:
        table.add_row(Text("  skipped by"), Text("\n".join(skipped)))
    with console.capture() as captured:
        console.print(table)
    console.file.write("\n".join(map(str.rstrip, captured.get().splitlines())) + "\n")


def _said(name: str, value: Any) -> str | None:
    """A value as text; None if there is none, empty if it isn't readable."""
    if value is None or value == []:
        return None
    if isinstance(value, list) and isinstance(value[0], int | float):
        return ""  # hashes and vectors
    if name == "captions_fine":
        return "\n".join(f"{clock(one['seconds'])}  {_line(one['text'])}" for one in value)
    if name == "tags":
        return ", ".join(f"{_line(one['tag'])} ({one['score']:.3g})" for one in value)
    if isinstance(value, list):
        lines = [_item(one) for one in value[:_MOST_ITEMS]]
        more = [f"and {len(value) - _MOST_ITEMS} more"] if len(value) > _MOST_ITEMS else []
        return "\n".join(lines + more)
    if isinstance(value, float):
        return f"{value:.6g}"
    return _line(value)


def _item(value: Any) -> str:
    """One of a list: a text, a record, or a key and value of a map."""
    if isinstance(value, tuple):
        return ": ".join(map(_line, value))
    if not isinstance(value, dict):
        return _line(value)
    times = [value[name] for name in _TIMES if value.get(name) is not None]
    parts = [
        f"{name} {f'{one:.3g}' if isinstance(one, float) else _line(one)}"
        for name, one in value.items()
        if one is not None and name not in _TIMES
    ]
    return "  ".join(filter(None, ["–".join(dict.fromkeys(map(clock, times))), ", ".join(parts)]))


def _line(value: Any) -> str:
    return " ".join(printable(str(value)).split())


def _play(row: Mapping[str, Any], media: _Media) -> str | None:
    """Cuts the span to a temporary file and opens it; returns the problem if that fails."""
    if media.problem is not None:
        return f"--open: {media.problem}"
    folder = Path(tempfile.mkdtemp(prefix="clipmill-"))
    request = CutRequest(
        row["clip_id"], row["start_seconds"], row["end_seconds"], folder / "clip.mp4"
    )
    (result,) = cut_clips_isolated(
        media.path,
        [request],
        CutOptions(media="exact", threads=0),
        starts_at_seconds=media.starts_at_seconds,
    )
    if result.problem is not None or result.path is None:
        folder.rmdir()
        return f"--open: {row['clip_id']}: {result.problem.message if result.problem else '?'}"
    if _opened(result.path):
        print(f"Playing {result.path}", file=sys.stderr)
    else:
        print(f"Found no program to open videos; play {result.path}", file=sys.stderr)
    return None


def _opened(path: Path) -> bool:
    """Hands the file to the desktop's player; False if there is none."""
    if sys.platform == "win32":
        os.startfile(path)
        return True
    command = "open" if sys.platform == "darwin" else "xdg-open"
    try:
        player = subprocess.Popen(
            [command, str(path)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError:
        return False
    try:
        return player.wait(_PLAYER_SECONDS) == 0
    except subprocess.TimeoutExpired:
        return True  # it is the player itself, and still runs
