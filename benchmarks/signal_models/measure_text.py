"""Measures measure_text: found and read text of known places, kinds, cost, real films.

    python -m benchmarks.signal_models --stage measure_text [--parts sizes kinds …]

Text is drawn on frames of real films, which lie next to the checkout, at the size of kept frames.
"""

from __future__ import annotations

import argparse
import difflib
import statistics
import time
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from benchmarks.signal_models._drawn_text import (
    Drawn,
    draw_line,
    film_frames,
    pages,
    phrase,
    staged_clip,
)
from clipmill.schemas.tables import FRAME
from clipmill.stages.measure_text import MeasureText
from clipmill.stages.models.text_boxes import TextDetector, covered, network_input, network_size
from clipmill.stages.protocol import Workspace

FOOTAGE = Path(__file__).resolve().parents[2].parent / "shared" / "videos"
# Films without text of their own.
PLAIN = (
    "sam2_dog_catch.mp4",
    "flower_bloom.mp4",
    "tears_of_steel_room_17s_vp9.webm",
    "venus_transit_12s.mov",
    "dog_eating_14s.mp4",
)
HEIGHTS = (10, 14, 20, 28)
SIZES = (256, 320, 384, 512, 736)
FOUND_FROM = 0.6
SENTENCES = {
    "English": "Breaking news from the market",
    "German": "Größte Übung für Ärzte",
    "French": "Déjà vu à Noël, ça va",
    "Spanish": "Mañana será un gran día",
    "Polish": "Zażółć gęślą jaźń",
    "Czech": "Příliš žluťoučký kůň",
    "Turkish": "İstanbul ışığı güneş",
    "Vietnamese": "Tiếng Việt rất đẹp",
    "Greek": "Τελευταία νέα σήμερα",
    "Russian": "Последние новости дня",
    "Hebrew": "שלום עולם וברוך הבא",
    "Arabic": "أخبار اليوم في المدينة",
}
FONT = "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf"


def main(options: Sequence[str]) -> None:
    parts: dict[str, Callable[[argparse.Namespace], Iterator[str]]] = {
        "sizes": sizes,
        "kinds": kinds,
        "reading": reading,
        "speed": speed,
        "films": films,
    }
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.signal_models --stage measure_text",
        description=(__doc__ or "").partition("\n")[0],
    )
    parser.add_argument("--parts", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--sizes", nargs="+", type=int, default=SIZES, help="short sides")
    parser.add_argument("--frames", type=int, default=2, help="frames per film for text")
    parser.add_argument("--clips", type=int, default=4, help="clips per film and mix of kinds")
    parser.add_argument("--rounds", type=int, default=4, help="times that speed is measured")
    given = parser.parse_args(options)
    for name in given.parts:
        for line in parts[name](given):
            print(line, flush=True)
        print(flush=True)


def backgrounds(frames: int) -> list[list[np.ndarray]]:
    return [film_frames(FOOTAGE / name, frames) for name in PLAIN]


def detector(**settings: Any) -> TextDetector:
    return MeasureText(**settings)._detector("measure_text")


def sizes(given: argparse.Namespace) -> Iterator[str]:
    """Found lines, and area, by the detector's frame size and the text's height."""
    frames = [frame for film in backgrounds(given.frames) for frame in film]
    drawn = list(pages(frames, np.random.default_rng(5), HEIGHTS))
    lines = 3 * len(drawn) // len(HEIGHTS)
    yield f"Share of {lines} lines per height that are found, IoU of areas, area / drawn area"
    yield "| short side | CPU s per frame | " + " | ".join(f"{h} px" for h in HEIGHTS) + " |"
    yield "|---|---|" + "---|" * len(HEIGHTS)
    for side in given.sizes:
        find = detector(short_side=side)
        find([drawn[0][1].image])
        began = time.process_time()
        boxes = find([one.image for _, one in drawn])
        spent = (time.process_time() - began) / len(drawn)
        cells = []
        for height in HEIGHTS:
            own = [(one, b) for (h, one), b in zip(drawn, boxes, strict=True) if h == height]
            found, overlaps, ratios = 0, [], []
            for one, b in own:
                shape = one.image.shape[:2]
                truth = covered(one.corners, shape)
                ours = covered([box.corners for box in b], shape)
                overlaps.append((truth & ours).sum() / (truth | ours).sum())
                ratios.append(ours.sum() / truth.sum())
                for corners in one.corners:
                    inside = covered([corners], shape)
                    found += bool(ours[inside].mean() >= FOUND_FROM)
            cells.append(f"{found / lines:.2f}, {np.mean(overlaps):.2f}, {np.mean(ratios):.2f}")
        yield f"| {side} | {spent:.3f} | {' | '.join(cells)} |"
    clean = [
        covered([box.corners for box in boxes], frame.shape[:2]).mean()
        for frame, boxes in zip(frames, detector()(frames), strict=True)
    ]
    wrong = sum(area > 0 for area in clean)
    yield f"Of {len(frames)} frames without text {wrong} have a box; mean area {np.mean(clean):.4f}"


def rows_of(clips: Sequence[Sequence[np.ndarray]], seconds: float = 1.5) -> pa.Table:
    """The input of the stage: clips of these frames as JPEG."""
    frames = [
        [
            {
                "frame_number": at,
                "seconds": at * seconds,
                "jpeg": cv2.imencode(".jpg", image[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])[
                    1
                ].tobytes(),
            }
            for at, image in enumerate(clip)
        ]
        for clip in clips
    ]
    return pa.table(
        {
            "clip_id": [f"clip-{number}" for number in range(len(clips))],
            "frames": pa.array(frames, pa.list_(FRAME)),
        }
    )


def measured(clips: Sequence[Sequence[np.ndarray]], **settings: Any) -> list[dict[str, Any]]:
    with MeasureText(**settings).open(Workspace(Path(), Path())) as transform:
        table = transform(rows_of(clips))
    assert isinstance(table, pa.Table)
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


MIXES = (
    ("overlay",),
    ("subtitle",),
    ("scene",),
    ("overlay", "subtitle"),
    ("overlay", "scene"),
    ("subtitle", "scene"),
    ("overlay", "subtitle", "scene"),
)


def kinds(given: argparse.Namespace) -> Iterator[str]:
    """What kind each line was taken for, over clips with every mix of kinds."""
    random = np.random.default_rng(11)
    clips: list[list[Drawn]] = []
    for film in backgrounds(4):
        for number in range(given.clips):
            clips += [staged_clip(film, random, MIXES[(number + i) % 7]) for i in range(7)]
    for read in (False, True):
        rows = measured([[one.image for one in clip] for clip in clips], read=read)
        table: Counter[tuple[str, str]] = Counter()
        for clip, row in zip(clips, rows, strict=True):
            for at, one in enumerate(clip):
                table.update(_kinds_of(one, at * 1.5, row["text_lines"]))
        told = ("overlay", "subtitle", "scene", "nothing")
        yield f"Lines by their kind, {len(clips)} clips, read: {str(read).lower()}"
        yield "| drawn as | " + " | ".join(f"taken for {kind}" for kind in told) + " |"
        yield "|---|" + "---|" * len(told)
        for kind in told[:3]:
            yield f"| {kind} | " + " | ".join(str(table[kind, other]) for other in told) + " |"


def _kinds_of(
    drawn: Drawn, seconds: float, lines: Sequence[dict[str, Any]]
) -> Iterator[tuple[str, str]]:
    height, width = drawn.image.shape[:2]
    there = [line for line in lines if line["seconds"] <= seconds <= line["last_seconds"]]
    for corners, kind in zip(drawn.corners, drawn.kinds, strict=True):
        x, y = corners.mean(axis=0) / (width, height)
        if not (0 < x < 1 and 0 < y < 1):
            continue
        # A line's place is where it was read best: text of the scene may be elsewhere now.
        near = [
            line["kind"]
            for line in there
            if line["top"] - 0.1 <= y <= line["bottom"] + 0.1
            and (kind == "scene" or line["left"] <= x <= line["right"])
        ]
        yield kind, kind if kind in near else (near[0] if near else "nothing")


def reading(given: argparse.Namespace) -> Iterator[str]:
    """Characters read right, by height of the text and by language."""
    frames = [frame for film in backgrounds(given.frames) for frame in film]
    random = np.random.default_rng(7)
    yield "| text | characters right | lines kept |"
    yield "|---|---|---|"
    for height in HEIGHTS:
        drawn = [one for _, one in pages(frames, random, (height,))]
        yield f"| English, {height} px | {_read_right(drawn)} |"
    for turn in (90, -90, 180, 15):
        drawn = [Drawn(frame.copy()) for frame in frames]
        for one in drawn:
            middle = (one.image.shape[1] / 2, one.image.shape[0] / 2)
            draw_line(one, phrase(random, 3), middle, 24, centred=True, degrees=turn)
        yield f"| English, 24 px, turned by {turn}° | {_read_right(drawn)} |"
    for language, text in SENTENCES.items():
        drawn = [Drawn(frame.copy()) for frame in frames[::2]]
        for one in drawn:
            middle = (one.image.shape[1] / 2, one.image.shape[0] * 0.5)
            draw_line(one, text, middle, 24, centred=True, file=FONT)
        yield f"| {language}, 24 px | {_read_right(drawn)} |"


def _read_right(drawn: Sequence[Drawn]) -> str:
    rows = measured([[one.image] for one in drawn], read=True, frames_per_clip=1)
    right = total = kept = lines = 0
    for one, row in zip(drawn, rows, strict=True):
        said = " ".join(row["text_read"])
        for text in one.texts:
            blocks = difflib.SequenceMatcher(
                None, _plain(text), _plain(said), autojunk=False
            ).get_matching_blocks()
            right += sum(block.size for block in blocks)
            total += len(_plain(text))
            lines += 1
        kept += len(row["text_read"])
    return f"{right / total:.2f} | {kept / lines:.2f}"


def _plain(text: str) -> str:
    return "".join(unicodedata.normalize("NFC", text).casefold().split())


def speed(given: argparse.Namespace) -> Iterator[str]:
    """The bare ONNX Runtime loop's time as a share of the stage's, in turns."""
    random = np.random.default_rng(3)
    film = [frame for frames in backgrounds(4) for frame in frames][:16]
    plain = [list(film[at : at + 4]) for at in range(0, len(film), 4)]
    staged = [staged_clip(clip, random, MIXES[-1]) for clip in plain]
    written = [[one.image for one in clip] for clip in staged]
    yield "| clips | read | bare / stage, processor time | time | CPU s per clip |"
    yield "|---|---|---|---|---|"
    for said, clips, read in (
        ("without text", plain, False),
        ("3 lines per frame", written, False),
        ("3 lines per frame", written, True),
    ):
        stage = MeasureText(read=read)
        table = rows_of(clips)
        bare = _bare(stage, [image for clip in clips for image in clip])
        shares, costs = [], []
        with stage.open(Workspace(Path(), Path())) as transform:
            both: tuple[Callable[[], object], ...] = (bare, lambda: transform(table))  # noqa: B023  (called in this round)
            for call in both:
                call()
            for number in range(given.rounds):
                order = (0, 1) if number % 2 else (1, 0)
                spent = {at: _spent_on(both[at]) for at in order}
                shares.append([spent[0][i] / spent[1][i] for i in (0, 1)])
                costs.append(spent[1][0] / len(clips))
        cpu, clock = (statistics.median(column) for column in zip(*shares, strict=True))
        cost = statistics.median(costs)
        yield f"| {said} | {str(read).lower()} | {cpu:.3f} | {clock:.3f} | {cost:.2f} |"


def _bare(stage: MeasureText, images: Sequence[np.ndarray]) -> Callable[[], object]:
    """The models alone, over the same batches, which are ready."""
    find = stage._detector("measure_text")
    # One frame per call, as the stage does it on a CPU.
    ready = []
    for image in images:
        one = np.empty((1, 3, *network_size(image, stage.short_side)), np.float32)
        network_input(image, one[0])
        ready.append(one)
    calls: list[tuple[Any, str, np.ndarray]] = [(find._model, find._input, one) for one in ready]
    if stage.read:
        reader = stage._reader("measure_text")
        model = reader._model
        run = model.run
        kept: list[np.ndarray] = []

        def noted(inputs: dict[str, np.ndarray], outputs: Any = None) -> list[np.ndarray]:
            kept.extend(inputs.values())
            return run(inputs, outputs)

        model.run = noted  # type: ignore[method-assign]  # only to note what the stage asks it
        from clipmill.stages.models import screen_text

        clips = [
            screen_text.ClipFrames.of(range(4), images[at : at + 4])
            for at in range(0, len(images), 4)
        ]
        screen_text.detect(clips, find)
        screen_text.read(clips, reader)
        model.run = run  # type: ignore[method-assign]  # as it was
        calls += [(model, reader._input, one) for one in kept]
    return lambda: [model.run({name: array}) for model, name, array in calls]


def _spent_on(call: Callable[[], object]) -> tuple[float, float]:
    cpu, clock = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - clock


def films(given: argparse.Namespace) -> Iterator[str]:
    """What the real films show."""
    yield "| film | text_area | largest | overlay | subtitle | scene | boxes | read |"
    yield "|---|---|---|---|---|---|---|---|"
    for path in sorted(FOOTAGE.iterdir()):
        if path.suffix not in (".mp4", ".webm", ".mov", ".ts"):
            continue
        (row,) = measured([film_frames(path, 8)], read=True, frames_per_clip=8)
        numbers = (
            row[f"text_area{kind}"] for kind in ("", "_max", "_overlay", "_subtitle", "_scene")
        )
        cells = " | ".join("" if one is None else f"{one:.3f}" for one in numbers)
        texts = "; ".join(row["text_read"])[:60]
        yield f"| {path.name} | {cells} | {row['text_boxes']:.1f} | {texts} |"
