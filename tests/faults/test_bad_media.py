"""Bad and odd media in real runs: every file has an allowed outcome, and affects only itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import av
import pyarrow.parquet as pq
import pytest

from tests.faults.corpus import CRASH, KEPT, Case, Facts, all_cases, named, write
from tests.faults.media_run import (
    SPLIT_ONLY,
    Outcome,
    Ran,
    check_accounting,
    clipmill,
    outcome_of,
    outcomes,
    rows_of,
    run_recipe,
    wrong_facts,
    wrong_picture,
    wrong_pictures,
)
from tests.faults.summary import log_cases

MEMORY_BYTES = 400 << 20
"""Additional memory, in one process, for files that declare a wrong size: a few pictures of
7680x4320, which the decoder allocates before they turn out not to be pictures."""
MOST_MEMORY_BYTES = 800 << 20
"""The same for pictures of 8192x8192, the largest that are decoded, of 100 MB each."""

# From every family, the cases most relevant to another part of the reader.
SMALL = (
    "mp4 cut off at 5/10",
    "mp4 moov first cut off at 9/10",
    "mkv cut off at 4/10",
    "ts cut off at 7/10",
    "webm cut off at 8/10",
    "mp4 header 4 bits seed 2",
    "mkv header 16 bits seed 3",
    "mp4 index 1 bits seed 0",
    "mp4 hevc payload 16 bits seed 3",
    "ts payload 64 bits seed 4",
    "no bytes",
    "mp4 payload all zeroed",
    "ts called .mp4",
    "ts and the same again, later",
    "mkv with noise behind it",
    "16x16",
    "161x91 libx264 yuv444p",
    "changing size in ts",
    "768x432 and then 384x216 in .ts",
    "turned by 90 in .mp4",
    "variable in .mkv",
    "mp4 that begins at 0.4 s",
    "begins at 1.5 s in .mkv",
    "ts h264 whose clock wraps",
    "ts that jumps back by 30 s",
    "h264 with two-way frames in avi",
    "mp4 without moov",
    "10 bit hevc",
    "alpha in vp9",
    "interlaced mpeg2",
    "bt709 full range",
    "two videos in .mkv",
    "cover picture first",
    "ts h264 without its first packet",
    "vp9 pictures of 65535x65535",
    "h264 pictures of 7680x4320",
    "mkv of 12 hours",
    "one frame in .mp4",
    "jpg called mp4",
    "m4a of sound called mp4",
    "ffconcat called mp4",
    "name with newline",
    "name with leading dash",
    "name with 255 bytes",
    "fifo",
    "link to itself",
)


def check(
    way: str,
    folder: Path,
    cases: Sequence[Case],
    dataset: Path,
    ran: Ran,
    *,
    facts_of: Callable[[Case], Facts | None] = lambda case: case.facts,
) -> dict[str, Outcome]:
    """Compares the cases' outcomes with the allowed ones; writes the log.

    `facts_of` returns the facts for the way in which they were read.
    """
    assert ran.status == 0, ran.errors[-3000:]
    found = outcomes(dataset)
    problems, lines = [], []
    for case in cases:
        outcome = outcome_of(case, folder, found)
        lines.append(
            {
                "way": way,
                "family": case.family,
                "case": case.name,
                "ended": outcome.ended,
                "message": outcome.message[:300],
            }
        )
        facts = facts_of(case)
        if outcome.ended not in case.allowed:
            problems.append(
                f"{case.name}: {outcome.ended}, not "
                f"{' or '.join(sorted(case.allowed))}: {outcome.message[:300]}"
            )
        elif outcome.ended == KEPT and facts is not None:
            problems += [f"{case.name}: {w}" for w in wrong_facts(outcome, facts)]
    log_cases("media", lines)
    assert problems == [], "\n".join(problems)
    check_accounting(dataset)
    verified = clipmill("verify", dataset, limit_seconds=300)
    assert verified.status == 0, verified.printed + verified.errors
    return found


def check_neighbours(
    neighbours: Sequence[Path],
    found: dict[str, Outcome],
    tmp_path: Path,
    ran: Ran,
    memory_bytes: int,
    chosen: Sequence[str] = (),
) -> None:
    """Sound files have the same rows as without bad ones; memory stays near theirs."""
    listing = tmp_path / "neighbours.jsonl"
    listing.write_text("".join(json.dumps({"path": str(path)}) + "\n" for path in neighbours))
    alone = run_recipe(
        SPLIT_ONLY.format(shard_videos=32),
        [listing],
        tmp_path / "alone",
        *chosen,
        limit_seconds=120,
    )
    assert alone.status == 0, alone.errors
    expected = outcomes(tmp_path / "alone")
    assert len(expected) == len(neighbours)
    for path in map(str, neighbours):
        assert found[path].ended == expected[path].ended == KEPT
        assert wrong_facts(found[path], Facts()) == []
        assert rows_of(found[path]) == rows_of(expected[path]), path
    assert ran.peak_bytes < alone.peak_bytes + memory_bytes


# Each reads hundreds of files.
pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return all_cases()


@pytest.fixture(scope="module")
def corpus(cases, tmp_path_factory) -> tuple[Path, list[Path]]:
    """The whole corpus as a folder, and the intact files in it."""
    folder = tmp_path_factory.mktemp("corpus") / "files"
    return folder, write(folder, cases)


@pytest.mark.slow
@pytest.mark.parametrize("detector", ["content", "cascade"])
def test_forty_bad_files_in_a_folder_have_allowed_outcomes(detector, tmp_path):
    """One run over all; the good files between them have the same rows as alone."""
    cases = named(all_cases(), SMALL)
    folder = tmp_path / "files"
    neighbours = write(folder, cases)
    chosen = ("--set", f"split_clips.detector={detector}")
    ran = run_recipe(
        SPLIT_ONLY.format(shard_videos=16),
        [folder],
        tmp_path / "dataset",
        *chosen,
        limit_seconds=600,
    )
    found = check(f"{detector}, small", folder, cases, tmp_path / "dataset", ran)
    check_neighbours(neighbours, found, tmp_path, ran, MEMORY_BYTES, chosen)


@pytest.mark.faults
def test_every_bad_file_has_an_allowed_outcome_if_not_all_is_decoded(cases, corpus, tmp_path):
    folder, _ = corpus
    ran = run_recipe(
        SPLIT_ONLY.format(shard_videos=32),
        [folder],
        tmp_path / "dataset",
        "--set",
        "split_clips.detector=cascade",
        limit_seconds=900,
    )
    check("cascade", folder, cases, tmp_path / "dataset", ran)


@pytest.mark.faults
def test_every_bad_file_has_an_allowed_outcome(cases, corpus, tmp_path):
    folder, neighbours = corpus
    assert len(cases) >= 300
    ran = run_recipe(
        SPLIT_ONLY.format(shard_videos=32), [folder], tmp_path / "dataset", limit_seconds=900
    )
    found = check("default", folder, cases, tmp_path / "dataset", ran)
    check_neighbours(neighbours, found, tmp_path, ran, MOST_MEMORY_BYTES)
    again = run_recipe(
        SPLIT_ONLY.format(shard_videos=32), [folder], tmp_path / "dataset", limit_seconds=60
    )
    assert "Nothing to do" in again.errors


@pytest.mark.faults
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_every_bad_file_has_an_allowed_outcome_in_exact_mode(engine, cases, corpus, tmp_path):
    """Both engines find the same; PySceneDetect's own reader treats some files differently."""
    folder, _ = corpus
    ran = run_recipe(
        SPLIT_ONLY.format(shard_videos=32),
        [folder],
        tmp_path / "dataset",
        "--set",
        "split_clips.exact=true",
        engine=engine,
        limit_seconds=900,
    )
    check(f"exact, {engine}", folder, cases, tmp_path / "dataset", ran)


def listed(folder: Path, cases: Sequence[Case], tmp_path: Path) -> Path:
    """A list of the cases' files."""
    listing = tmp_path / "list.jsonl"
    listing.write_text(
        "".join(json.dumps({"path": str(folder / case.file)}) + "\n" for case in cases)
    )
    return listing


SOUND = (
    "codecs and containers",
    "sizes",
    "rotated",
    "frame rates",
    "edit lists",
    "time stamps",
    "pixels",
    "several streams",
    "wrong extension",
)
"""Families whose files must be kept, mostly."""

_MADE_UP_TIMES = ("h264 with two-way frames in avi", "mpg called .flv")
"""Containers without some timestamps, which readers reconstruct in different ways."""


@pytest.fixture(scope="module")
def sound(cases, corpus, tmp_path_factory) -> tuple[Path, list[Case], dict[str, Outcome]]:
    """The files that must be kept, and their dataset."""
    folder, _ = corpus
    some = [
        case
        for case in cases
        if case.family in SOUND and case.allowed == {KEPT} and case.facts is not None
    ]
    assert len(some) > 60
    place = tmp_path_factory.mktemp("sound")
    ran = run_recipe(
        SPLIT_ONLY.format(shard_videos=32),
        [listed(folder, some, place)],
        place / "dataset",
        limit_seconds=120,
    )
    assert ran.status == 0, ran.errors
    found = outcomes(place / "dataset")
    # That each of them is kept is asserted where all files are run.
    kept = [case for case in some if outcome_of(case, folder, found).ended == KEPT]
    return place / "dataset", kept, found


@pytest.mark.faults
def test_given_spans_of_odd_files_have_the_right_frames(corpus, sound, tmp_path):
    """Seeking gives frames of the same number, time and colour as a full read."""
    folder, _ = corpus
    _, some, whole = sound
    # Spans count from 0; by a clock that wraps, a video may begin earlier.
    some = [case for case in some if outcome_of(case, folder, whole).scan["seconds"][0] >= 0]
    lines, begins = [], {}
    for case in some:
        outcome = outcome_of(case, folder, whole)
        seconds = outcome.scan["seconds"]
        begins[case.name] = seconds[0]
        for share, end in ((0.1, 0.35), (0.6, 0.85)):
            lines.append(
                {
                    "path": str(folder / case.file),
                    "start_seconds": seconds[int(share * len(seconds))],
                    "end_seconds": seconds[int(end * len(seconds))],
                }
            )
    listing = tmp_path / "list.jsonl"
    listing.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ran = run_recipe(
        SPLIT_ONLY.format(shard_videos=32),
        [listing],
        tmp_path / "dataset",
        "--set",
        "split_clips.boundaries=given",
        "--set",
        "split_clips.min_clip_seconds=0",
        limit_seconds=600,
    )
    found = check(
        "given spans", folder, some, tmp_path / "dataset", ran, facts_of=lambda case: None
    )
    problems = []
    for case in some:
        given, read = (outcome_of(case, folder, each) for each in (found, whole))
        times = read.scan["seconds"]
        slack = 0.13 if case.name in _MADE_UP_TIMES else 0.002
        off = [
            n
            for n, at in zip(given.scan["frame_numbers"], given.scan["seconds"], strict=True)
            if not 0 <= n < len(times) or abs(times[n] - at) > slack
        ]
        if off and case.facts.frames is not None:
            problems.append(
                f"{case.name}: frames {off[:5]} have another time than when read through"
            )
        problems += [
            f"{case.name}: {w}"
            for w in wrong_pictures(given, replace(case.facts, frames=None), begins[case.name])
        ]
    assert problems == [], "\n".join(problems)


@pytest.mark.faults
@pytest.mark.parametrize("media", ["copy", "exact"])
def test_clips_cut_from_odd_files_are_right(media, corpus, sound, tmp_path):
    """Every clip is cut; its frames are upright, of the right colour, and complete with `exact`."""
    folder, _ = corpus
    dataset, some, found = sound
    out = tmp_path / "out"
    ran = clipmill(
        "export",
        dataset,
        "--format",
        "parquet",
        "--media",
        media,
        "--output",
        out,
        "--engine",
        "local",
        limit_seconds=900,
    )
    assert ran.status == 0, ran.errors
    failed = (out / "failures.jsonl").read_text() if (out / "failures.jsonl").exists() else ""
    rows = [
        row for file in sorted(out.glob("*.parquet")) for row in pq.read_table(file).to_pylist()
    ]
    of_video = {outcome_of(case, folder, found).video["video_id"]: case for case in some}
    not_cut = {line["video_id"]: line for line in map(json.loads, failed.splitlines())}
    for video_id, line in not_cut.items():
        # Codecs that no clip container supports, and files that don't store times.
        why = (of_video[video_id].name, line)
        assert media == "copy", why
        assert line["kind"] in ("permanent", "bad_media"), why
        assert "--media exact" in line["message"], why
    assert len(not_cut) < 10
    assert {row["clip_id"] for row in rows} == {
        clip["clip_id"]
        for video_id, case in of_video.items()
        if video_id not in not_cut
        for clip in outcome_of(case, folder, found).clips
    }
    problems = []
    for row in rows:
        case = of_video[row["video_id"]]
        begins = outcome_of(case, folder, found).scan["seconds"][0]
        try:
            problems += [
                f"{case.name}: {w}"
                for w in wrong_clip(
                    out / row["media_path"],
                    row,
                    case.facts,
                    begins,
                    media,
                    3 if case.name in _MADE_UP_TIMES else 0,
                )
            ]
        except av.FFmpegError as error:
            problems.append(f"{case.name}: {error}")
    assert problems == [], "\n".join(problems)


def wrong_clip(
    path: Path, row: dict, facts: Facts, begins: float, media: str, may_miss: int
) -> list[str]:
    """What is wrong with a cut clip."""
    from clipmill.stages.media.read.orientation import orientation_of

    wrong = []
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
    if len(frames) != row["media_frames"]:
        wrong.append(f"{len(frames)} frames, not the {row['media_frames']} that are reported")
    missing = row["end_frame"] - row["start_frame"] - len(frames)
    if media == "exact" and abs(missing) > may_miss:
        wrong.append(f"{len(frames)} frames, not {row['end_frame'] - row['start_frame']}")
    for frame in (frames[len(frames) // 3], frames[-1]):
        image = orientation_of(frame).upright(frame.to_ndarray(format="rgb24"))
        at = row["media_start_seconds"] - begins + frame.time - frames[0].time
        wrong += wrong_picture(image, at, replace(facts, slack_colour=facts.slack_colour + 8))
    return wrong


@pytest.mark.faults
def test_odd_pictures_pass_through_all_stages_of_the_demo(cases, corpus, tmp_path):
    """Captioners, embedders and scorers get pictures of every depth, shape and rotation."""
    folder, _ = corpus
    some = [
        case
        for case in cases
        if case.family in ("pixels", "rotated", "sizes") and case.allowed == {KEPT}
    ]
    ran = run_recipe(
        "demo",
        [listed(folder, some, tmp_path)],
        tmp_path / "dataset",
        "--set",
        "download_videos.min_duration_seconds=null",
        "--set",
        "download_videos.min_height=null",
        limit_seconds=900,
    )
    found = check("whole demo recipe", folder, some, tmp_path / "dataset", ran)
    from clipmill.pipeline.catalog.catalog import open_catalog

    with open_catalog(tmp_path / "dataset") as catalog:
        clips = catalog.ask("SELECT * FROM clips").read_all().to_pylist()
    assert len(clips) == sum(len(outcome.clips) for outcome in found.values())
    for clip in clips:
        for column in (
            "caption",
            "caption_coarse",
            "captions_fine",
            "tags",
            "similarity",
            "aesthetic",
        ):
            assert clip[column] is not None, (clip["url"], column)


@pytest.mark.faults
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("decord_aborts.mp4", CRASH),
        # Its container leaves seeking to PyAV, which reads it.
        ("decord_segfaults.mkv", KEPT),
    ],
)
def test_file_that_kills_the_decoder_affects_only_itself(name, expected, tmp_path):
    """Found by fuzzing: decord kills the process that opens them."""
    write(tmp_path / "files", [])
    folder = tmp_path / "files"
    (folder / name).write_bytes((Path(__file__).parent / "files" / name).read_bytes())
    neighbour = write(folder, named(all_cases(), ("16x16",)))[0]
    spans = [
        {"path": str(path), "start_seconds": start, "end_seconds": start + 0.5}
        for path in (folder / name, neighbour)
        for start in (0.2, 1.2)
    ]
    listing = tmp_path / "list.jsonl"
    listing.write_text("".join(json.dumps(span) + "\n" for span in spans))
    ran = run_recipe(
        SPLIT_ONLY.format(shard_videos=4),
        [listing],
        tmp_path / "dataset",
        "--set",
        "download_videos.max_duration_seconds=null",
        limit_seconds=120,
    )
    assert ran.status == 0, ran.errors
    found = outcomes(tmp_path / "dataset")
    ended = found[str(folder / name)]
    log_cases(
        "media",
        [
            {
                "way": "given spans",
                "family": "crashes of decord",
                "case": name,
                "ended": ended.ended,
                "message": ended.message,
            }
        ],
    )
    assert ended.ended == expected, ended.message
    assert found[str(neighbour)].ended == KEPT
    assert len(found[str(neighbour)].clips) == 2
