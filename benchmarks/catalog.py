"""Measures time and peak memory of catalog commands at a million clips and more.

    python -m benchmarks.catalog [--clips 1000000] [--folder DIR] [--only index count …]

Writes real tables with the distributions that InternVid publishes (durations, similarity,
aesthetics, caption lengths; clips per video are skewed), 64 videos per shard, without media. Then
runs each command in a separate process. A folder that already holds the dataset is reused.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipmill.pipeline.dataset.run_records import write_run
from clipmill.pipeline.dataset.shards import ShardMetadata, shard_name, shard_path
from clipmill.schemas import tables
from clipmill.schemas.ids import source_key
from clipmill.stages.caption_frames import CAPTIONS
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.hash_frames import FRAME_HASHES
from clipmill.stages.scan_videos import SCANS
from clipmill.stages.score_aesthetic import AESTHETIC
from clipmill.stages.score_similarity import SIMILARITY
from clipmill.stages.split_clips import CLIPS
from clipmill.stages.summarize_captions import SUMMARIES
from clipmill.stages.take_given_score import GIVEN_SCORE

ROOT = Path(__file__).resolve().parent.parent
SHARD_VIDEOS = 64
CLIPS_A_VIDEO = 33  # 234M clips of 7.1M videos
FINE_CAPTIONS = 4
COPIES = 0.03
"""The share of clips that look like a clip of another video, according to their frames' hashes."""
FINGERPRINT = "0123456789abcdef"
STEPS: dict[str, tuple[str, pa.Schema, list[str]]] = {
    # label: name of the stage, table, what it depends on
    "download_videos": ("download_videos", VIDEOS, []),
    "scan_videos": ("split_clips", SCANS, ["download_videos"]),
    "split_clips": ("split_clips", CLIPS, ["scan_videos"]),
    "caption_frames": ("caption_frames", CAPTIONS, ["split_clips"]),
    "summarize_captions": ("summarize_captions", SUMMARIES, ["split_clips", "caption_frames"]),
    "score_similarity": ("score_similarity", SIMILARITY, ["split_clips", "summarize_captions"]),
    "score_aesthetic": ("score_aesthetic", AESTHETIC, ["split_clips"]),
    "umt_sim": ("take_given_score", GIVEN_SCORE, ["split_clips"]),
    "hash_frames": ("hash_frames", FRAME_HASHES, ["split_clips"]),
}
SCORES = {
    "score_similarity": "similarity",
    "score_aesthetic": "aesthetic",
    "umt_sim": "given_score",
}
LANGUAGES = ("en", "es", "fr", "de", "ru", "ja", "ko", "zh", "pt", "it", "hi")
CATEGORIES = tuple(f"category {n}" for n in range(16))
ALL_OF_IT = ("--scores", "--recipes")
_VOCABULARY = pa.array(
    [
        f"{a}{b}{c}"
        for a in ("ra", "to", "mi", "ne", "lu", "so", "ka", "be")
        for b in ("n", "st", "l", "rd", "m", "ck", "w", "pp")
        for c in ("ing", "er", "o", "a", "ed", "y", "s", "le", "ion", "ow")
    ]
)


class ShardMaker:
    """The rows of one shard; deterministic."""

    def __init__(self, shard: int, seed: int, videos: int = SHARD_VIDEOS) -> None:
        self.random = np.random.default_rng([seed, shard])
        self.videos = [f"youtube-{shard * SHARD_VIDEOS + n:011d}" for n in range(videos)]
        # Skewed: half the videos have fewer than 20 clips, some have hundreds.
        counts = np.exp(self.random.normal(math.log(CLIPS_A_VIDEO) - 0.5, 1.0, videos))
        self.counts = np.clip(counts.round().astype(np.int64), 1, 600)
        self.n = int(self.counts.sum())
        self.spans()

    def spans(self) -> None:
        """85% of the clips last 2–10 s, the others longer, 11.7 s on average; one after another."""
        random, n = self.random, self.n
        short = random.random(n) < 0.85
        self.seconds = np.where(
            short, random.triangular(2, 4, 10, n), np.minimum(10 + random.exponential(36, n), 600)
        ).round(3)
        ends = np.cumsum(self.seconds)
        first = np.concatenate([[0], np.cumsum(self.counts)[:-1]])
        begin = np.repeat(ends[first] - self.seconds[first], self.counts)
        self.ends = (ends - begin).round(3)
        self.starts = (self.ends - self.seconds).round(3)
        self.lengths = self.ends[np.cumsum(self.counts) - 1]
        owner = np.repeat(np.arange(len(self.videos)), self.counts)
        self.owner = pa.DictionaryArray.from_arrays(
            pa.array(owner, pa.int32()), pa.array(self.videos)
        ).cast(pa.string())
        times = [
            pa.array((seconds * 1000).round().astype(np.int64)).cast(pa.string())
            for seconds in (self.starts, self.ends)
        ]
        self.clips = pc.binary_join_element_wise(self.owner, *times, "-")

    def texts(self, lengths: np.ndarray) -> pa.Array:
        """Sentences with the given numbers of words; common words are common."""
        words = len(_VOCABULARY) * self.random.power(0.35, int(lengths.sum()))
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        picked = _VOCABULARY.take(pa.array(words.astype(np.int32)))
        return pc.binary_join(pa.ListArray.from_arrays(pa.array(offsets), picked), " ")

    def caption_lengths(self) -> np.ndarray:
        """34% have fewer than ten words, 55% ten to twenty, 11% more."""
        random, n = self.random, self.n
        kind = random.random(n)
        return np.where(
            kind < 0.34,
            random.integers(4, 10, n),
            np.where(kind < 0.89, random.integers(10, 21, n), random.integers(21, 100, n)),
        )

    def normal(self, mean: float, deviation: float, low: float, high: float) -> np.ndarray:
        return np.clip(self.random.normal(mean, deviation, self.n), low, high)

    def tables(self) -> Iterator[tuple[str, pa.Table]]:
        """The rows by step, without columns that are null everywhere."""
        random, n, videos = self.random, self.n, len(self.videos)
        urls = [f"https://www.youtube.com/watch?v={video[8:]}" for video in self.videos]
        keys = [source_key(f"youtube {video[8:]}") for video in self.videos]
        heights = np.where(random.random(videos) < 0.85, 720, random.choice((360, 480), videos))
        yield (
            "sources",
            pa.table(
                {
                    "source_key": keys,
                    "url": urls,
                    "extractor": ["youtube"] * videos,
                    "platform_id": [video[8:] for video in self.videos],
                }
            ),
        )
        yield (
            "download_videos",
            pa.table(
                {
                    "source_key": keys,
                    "video_id": self.videos,
                    "url": urls,
                    "extractor": ["youtube"] * videos,
                    "title": self.texts(random.integers(3, 12, videos)),
                    "description": self.texts(random.integers(5, 60, videos)),
                    "language": [
                        LANGUAGES[n] for n in (random.zipf(1.7, videos) - 1) % len(LANGUAGES)
                    ],
                    "category": [CATEGORIES[n] for n in random.integers(0, 16, videos)],
                    "duration_seconds": self.lengths,
                    "height": heights,
                    "width": heights * 16 // 9,
                    "fps": np.full(videos, 30.0),
                    "size_bytes": random.integers(10**6, 10**8, videos),
                    "sha256": [f"{video:0>64}" for video in self.videos],
                    "path": [f"media/{video}.mp4" for video in self.videos],
                }
            ),
        )
        frames = (self.lengths * 30).astype(np.int64)
        yield (
            "scan_videos",
            pa.table(
                {
                    "video_id": self.videos,
                    "fps": np.full(videos, 30.0),
                    "source_frames": frames,
                    "decoded_frames": frames,
                    "end_seconds": self.lengths,
                }
            ),
        )
        height = np.repeat(heights, self.counts)
        yield (
            "split_clips",
            pa.table(
                {
                    "video_id": self.owner,
                    "clip_id": self.clips,
                    "shot": np.arange(n),
                    "start_seconds": self.starts,
                    "end_seconds": self.ends,
                    "duration_seconds": self.seconds,
                    "start_frame": (self.starts * 30).astype(np.int64),
                    "end_frame": (self.ends * 30).astype(np.int64),
                    "fps": np.full(n, 30.0),
                    "width": height * 16 // 9,
                    "height": height,
                    "motion": random.gamma(2, 3, n),
                    "motion_max": random.gamma(4, 6, n),
                    "sharpness": random.gamma(2, 100, n),
                    "brightness": self.normal(0.45, 0.15, 0, 1),
                }
            ),
        )
        texts = self.texts(random.integers(5, 11, n * FINE_CAPTIONS))
        places = np.repeat(self.starts, FINE_CAPTIONS) + np.tile(
            np.arange(FINE_CAPTIONS), n
        ) * np.repeat(self.seconds / FINE_CAPTIONS, FINE_CAPTIONS)
        fine = pa.ListArray.from_arrays(
            pa.array(np.arange(0, n * FINE_CAPTIONS + 1, FINE_CAPTIONS, dtype=np.int32)),
            pa.StructArray.from_arrays([pa.array(places), texts], ["seconds", "text"]),
        )
        yield (
            "caption_frames",
            pa.table(
                {
                    "clip_id": self.clips,
                    "caption_coarse": self.texts(random.integers(6, 13, n)),
                    "coarse_seconds": (self.starts + self.ends) / 2,
                    "captions_fine": fine,
                }
            ),
        )
        yield (
            "summarize_captions",
            pa.table({"clip_id": self.clips, "caption": self.texts(self.caption_lengths())}),
        )
        # More than 80% in 0.3–0.4; 75% of the aesthetic scores in 4–6.
        fits = self.normal(0.35, 0.037, 0.09, 0.6)
        yield "score_similarity", pa.table({"clip_id": self.clips, "similarity": fits * 0.8})
        yield (
            "score_aesthetic",
            pa.table({"clip_id": self.clips, "aesthetic": self.normal(5.0, 0.87, -0.89, 9.02)}),
        )
        yield "umt_sim", pa.table({"clip_id": self.clips, "given_score": fits})
        hashes = random.integers(0, 2**64, (n, 4), dtype=np.uint64)
        copies = random.choice(n, int(n * COPIES), replace=False)
        flipped = np.uint64(1) << random.integers(0, 64, (len(copies), 4), dtype=np.uint64)
        hashes[copies] = hashes[random.integers(0, n, len(copies))] ^ flipped
        yield (
            "hash_frames",
            pa.table(
                {
                    "clip_id": self.clips,
                    "frame_hashes": pa.ListArray.from_arrays(
                        pa.array(np.arange(0, 4 * n + 1, 4, dtype=np.int32)),
                        pa.array(hashes.ravel()),
                    ),
                }
            ),
        )


def write_shard(dataset: Path, number: int, seed: int) -> int:
    """Writes one shard of every step; returns its number of clips."""
    maker = ShardMaker(number, seed)
    shard = shard_name(number)
    for step, found in maker.tables():
        schema = STEPS[step][1] if step in STEPS else tables.SOURCES
        columns = [
            found[field.name].cast(field.type)
            if field.name in found.column_names
            else pa.nulls(found.num_rows, field.type)
            for field in schema
        ]
        stage = "split_clips" if step == "scan_videos" else step
        metadata = ShardMetadata(
            stage,
            step,
            shard,
            FINGERPRINT,
            "r1",
            inputs=found.num_rows,
            kept=found.num_rows,
            outputs=found.num_rows,
            seconds=1.0,
            decoded_frames=pc.sum(found["decoded_frames"]).as_py() if step == "scan_videos" else 0,
        )
        folder = dataset / "sources" if step == "sources" else dataset / step / FINGERPRINT
        pq.write_table(
            pa.table(columns, schema=schema.with_metadata(metadata.encode())),
            shard_path(folder, shard),
            compression="zstd",
        )
    return maker.n


def make_dataset(dataset: Path, clips: int, seed: int) -> int:
    """Writes shards until there are about this many clips; returns how many there are."""
    for step in STEPS:
        (dataset / step / FINGERPRINT).mkdir(parents=True)
    (dataset / "sources").mkdir()
    shards = max(1, round(clips / (SHARD_VIDEOS * CLIPS_A_VIDEO)))
    work = [(dataset, number, seed) for number in range(shards)]
    with multiprocessing.Pool(os.cpu_count()) as pool:
        total = sum(pool.starmap(write_shard, work, chunksize=8))
    write_run(dataset, _run_record())
    (dataset / "made.json").write_text(json.dumps({"clips": total, "shards": shards}))
    return total


def _run_record() -> dict:
    stages: dict[str, dict] = {}
    for step, (name, schema, upstream) in STEPS.items():
        label = "split_clips" if step == "scan_videos" else step
        stage = stages.setdefault(
            label,
            {
                "stage": label,
                "name": name,
                "steps": [],
                "score": SCORES.get(label),
                "reads": [],
                "settings": {"scorer": "UMT-SIM", "column": "UMT_Score"}
                if label == "umt_sim"
                else {},
                "models": {},
                "prompts": {},
            },
        )
        stage["steps"].append(
            {
                "step": step,
                "key": schema.names[0],
                "fingerprint": FINGERPRINT,
                "upstream": upstream,
                "tables": {step: f"{step}/{FINGERPRINT}"},
                "schema_columns": schema.names,
            }
        )
    now = datetime.now(UTC).isoformat()
    return {
        "run_id": "r1",
        "started_at": now,
        "finished_at": now,
        "state": "done",
        "recipe_name": "synthetic",
        "recipe": {"stages": {}},
        "code_version": "benchmark",
        "engine": "local",
        "stages": list(stages.values()),
    }


@dataclass(frozen=True)
class Measure:
    """One command to measure."""

    name: str
    says: str
    command: tuple[str, ...]


COUNT = "SELECT count(*) FROM clips WHERE umt_sim >= 0.35 AND duration_seconds BETWEEN 2 AND 30"
GROUPS = (
    "SELECT language, count(*), avg(aesthetic), sum(duration_seconds) / 3600 FROM clips "
    "GROUP BY ALL ORDER BY 2 DESC"
)
NO_INDEX = f"""
from clipmill.pipeline.catalog.catalog import open_catalog
import sys
from pathlib import Path
with open_catalog(Path(sys.argv[1]), use_index=False, memory_limit="4GB") as catalog:
    print(catalog.execute({COUNT!r}).fetchone())
"""
NEAR = """description: near-duplicates by the frames' hashes
rules:
  - deduplicate: {by: frames, max_distance: 6, prefer: "aesthetic DESC"}
"""


def measures(dataset: Path, clips: int, scratch: Path) -> list[Measure]:
    clipmill = (sys.executable, "-m", "clipmill.jobs.cli")
    data = str(dataset)
    # InternVid takes 10.6M of its 234M clips.
    size = f"clips={max(1, round(clips * 10_647_458 / 234_000_000))}"
    near = scratch / "near.yaml"
    near.write_text(NEAR)
    create = (*clipmill, "subset", "create", data)
    return [
        Measure("no-index", "filtered count, no index", (sys.executable, "-c", NO_INDEX, data)),
        Measure("index", "`index`, from scratch", (*clipmill, "index", data)),
        Measure(
            "open",
            "`sql`: count of all clips",
            (*clipmill, "sql", data, "SELECT count(*) FROM clips"),
        ),
        Measure("count", "`sql`: filtered count", (*clipmill, "sql", data, COUNT)),
        Measure("groups", "`sql`: averages by language", (*clipmill, "sql", data, GROUPS)),
        Measure("again", "`index`, nothing new", (*clipmill, "index", data)),
        Measure("status", "`status`", (*clipmill, "status", data)),
        Measure(
            "explain",
            "`subset explain internvid-flt`",
            (*clipmill, "subset", "explain", data, "internvid-flt", "--set", size),
        ),
        Measure(
            "explain-all",
            "the same with `--scores --recipes`",
            (*clipmill, "subset", "explain", data, "internvid-flt", "--set", size, *ALL_OF_IT),
        ),
        Measure(
            "div",
            "`subset create internvid-div`",
            (*create, "internvid-div", "--name", "div", "--set", size),
        ),
        Measure(
            "flt",
            "`subset create internvid-flt`",
            (*create, "internvid-flt", "--name", "flt", "--set", size),
        ),
        Measure(
            "near",
            "`subset create`, near-duplicates by frames",
            (*create, str(near), "--name", "near"),
        ),
        Measure(
            "export",
            "`export --format parquet` of FLT",
            (
                *clipmill,
                "export",
                data,
                "--format",
                "parquet",
                "--subset",
                "flt",
                "--media",
                "none",
                "--output",
                str(scratch / "exported"),
            ),
        ),
        Measure(
            "report",
            "`report`",
            (*clipmill, "report", data, "--output", str(scratch / "report.html")),
        ),
        Measure(
            "report-flt",
            "`report --subset` of FLT",
            (*clipmill, "report", data, "--subset", "flt", "--output", str(scratch / "flt.html")),
        ),
    ]


def measure(one: Measure) -> tuple[float, float, float, str]:
    """Wall seconds, processor seconds, peak resident megabytes, and the last line printed."""
    started = time.monotonic()
    with subprocess.Popen(
        one.command, stdin=subprocess.DEVNULL, cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        output = process.stdout.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{one.name} ended with status {process.returncode}: {one.command}")
    return (
        time.monotonic() - started,
        used.ru_utime + used.ru_stime,
        used.ru_maxrss / 1024,
        (output.strip().splitlines() or [""])[-1],
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--folder", type=Path, help="where the dataset is made and kept")
    parser.add_argument("--only", nargs="*", help="names of what is measured; all by default")
    parser.add_argument("--seed", type=int, default=42)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="clipmill-catalog-") as temporary:
        dataset = given.folder or Path(temporary) / "dataset"
        if not (dataset / "made.json").is_file():
            shutil.rmtree(dataset, ignore_errors=True)
            started = time.monotonic()
            make_dataset(dataset, given.clips, given.seed)
            print(f"made in {time.monotonic() - started:.0f} s", file=sys.stderr)
        made = json.loads((dataset / "made.json").read_text())
        print(
            f"{made['clips']:,} clips, {made['shards']:,} shards, "
            f"{made['shards'] * (len(STEPS) + 1):,} files\n"
        )
        print("| | seconds | processor seconds | peak MB |\n|---|---|---|---|")
        for one in measures(dataset.absolute(), made["clips"], Path(temporary)):
            if given.only and one.name not in given.only:
                continue
            seconds, busy, megabytes, last = measure(one)
            print(f"| {one.says} | {seconds:.1f} | {busy:.1f} | {megabytes:.0f} |", flush=True)
            print(f"  {one.name}: {last}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
