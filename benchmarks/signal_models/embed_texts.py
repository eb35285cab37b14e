"""Measures embed_texts: its speed, how far like and unlike captions are apart, and a search.

    python -m benchmarks.signal_models --stage embed_texts [--only speed]

Speed: captions of 5 to 40 words; the bare loop runs the same model on tokenized batches that are
sorted by length. They take turns, and the median ratio counts. `--clips` times a search over that
many stored embeddings, and says how much memory it took.

Captions: of each scene below, the same said in other words, and a caption that differs in one fact
(who, what, how many, where). Unlike are captions of different scenes.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.embed import seconds
from benchmarks.embedded_videos import one_frame_each, vectors
from clipmill.stages.embed_texts import EMBEDDED_TEXTS, NEAR_DUPLICATES, EmbedTexts
from clipmill.stages.protocol import Workspace

SCENES = Path(__file__).parent / "scenes.txt"
QUERIES = {
    "guitar": 0,
    "dog at the sea": 1,
    "cooking vegetables": 2,
    "skyline from above": 3,
    "kids playing in the sand": 4,
    "mountain road": 6,
    "sports goal": 9,
    "mathematics lesson": 12,
    "railway": 14,
    "workout at home": 15,
    "statistics presentation": 18,
    "operation in a hospital": 20,
    "space launch": 22,
    "plants growing": 24,
}


def main(options: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=["speed", "captions", "search"])
    parser.add_argument("--rounds", type=int, default=5, help="times that both are timed")
    parser.add_argument("--texts", type=int, default=1024, help="texts a round")
    parser.add_argument("--clips", type=int, default=200_000, help="clips to search")
    given = parser.parse_args(options)
    if given.only in (None, "speed"):
        speed(given.texts, given.rounds)
    if given.only in (None, "captions"):
        captions()
    if given.only in (None, "search"):
        search(given.clips)


def all_scenes() -> list[list[str]]:
    """Of each scene: a caption, the same in other words, and one with another fact."""
    lines = SCENES.read_text("utf-8").splitlines()[1:]
    return [[part.strip() for part in line.split("|")] for line in lines]


def captions() -> None:
    model = EmbedTexts(cpus=2).load()
    scenes = all_scenes()
    same, other, changed = (
        model.embed_texts([scene[kind] for scene in scenes]) for kind in range(3)
    )
    like = (same * other).sum(axis=1)
    fact = (same * changed).sum(axis=1)
    everything = np.concatenate([same, other, changed])
    apart = np.arange(len(everything))[:, None] % len(scenes) != np.arange(len(everything)) % len(
        scenes
    )
    unlike = (everything @ everything.T)[apart]
    print("| captions | median | lowest | highest |\n|---|---|---|---|")
    for name, cosines in (
        ("same scene, other words", like),
        ("one other fact", fact),
        ("different scenes", unlike),
    ):
        print(f"| {name} | {np.median(cosines):.2f} | {cosines.min():.2f} | {cosines.max():.2f} |")
    print(
        "\n| min_cosine | same scene found | one other fact | different scenes |\n|---|---|---|---|"
    )
    for threshold in (0.7, 0.8, 0.85, 0.87, 0.9, 0.95):
        shares = [f"{(cosines >= threshold).mean():.0%}" for cosines in (like, fact, unlike)]
        print(f"| {threshold} | {' | '.join(shares)} |")
    print(f"\ndefault: {', '.join(map(str, NEAR_DUPLICATES.values()))}")
    towards = model.embed_texts(list(QUERIES), model.layout.query_prompt)
    found = (towards @ same.T).argsort(axis=1)[:, ::-1]
    places = [list(row).index(at) for row, at in zip(found, QUERIES.values(), strict=True)]
    print(f"{len(places)} searches: {sum(p == 0 for p in places)} find their caption first\n")


def speed(count: int, rounds: int) -> None:
    import torch

    stage = EmbedTexts(text="a.b", cpus=torch.get_num_threads())
    rng = np.random.default_rng(0)
    words = " ".join(part for scene in all_scenes() for part in scene).split()
    texts = [" ".join(rng.choice(words, rng.integers(5, 41))) for _ in range(count)]
    batch = pa.table({"clip_id": [f"clip-{i}" for i in range(count)], "text": texts})
    model = stage.load()
    ordered = sorted(texts, key=lambda text: -model.token_counts([text])[0])
    ready = [model.tokens(ordered[i : i + 32]) for i in range(0, count, 32)]

    def bare() -> object:
        with torch.inference_mode():
            return [model.forward(tokens) for tokens in ready]

    parts = [batch.slice(start, stage.batch_rows) for start in range(0, count, stage.batch_rows)]
    ratios, times = [], []
    bare()
    for _ in range(rounds):
        # Each round anew: the stage remembers texts.
        with stage.open(Workspace(Path(), Path())) as transform:
            ours = seconds(lambda run=transform: [run(part) for part in parts])
        times.append(ours)
        ratios.append(seconds(bare) / ours)
    print(
        f"{count} texts of 5 to 40 words: embed_texts {count / statistics.median(times):.0f} "
        f"texts/s; {statistics.median(ratios):.2f} of the bare model loop\n"
    )


def search(clips: int) -> None:
    import clipmill
    from tests.pipeline.subsets.test_embeddings_of_kinds import texts, with_identity
    from tests.scored_catalog import Clip, build
    from tests.synthetic import write_shard

    width, rows = 384, 10_000
    with tempfile.TemporaryDirectory() as folder:
        dataset = build(Path(folder) / "dataset", [Clip("generic-v0", 0.0, 1.0)], [texts()])
        with_identity(dataset, "embed_texts", "model", EmbedTexts().identity()["model"])
        made = one_frame_each(vectors(np.random.default_rng(0), rows, width))
        for number in range(-(-clips // rows)):
            place = ("embed_texts", "embed_texts-1", f"{number:06d}", [], EMBEDDED_TEXTS)
            path = write_shard(dataset, *place)
            ids = [f"generic-v{number}-{i * 1000}-{i * 1000 + 900}" for i in range(rows)]
            own = {"clip_id": pa.array(ids), "embeddings": made}
            schema = pq.read_schema(path)
            columns = [own.get(field.name, pa.nulls(rows, field.type)) for field in schema]
            pq.write_table(pa.table(columns, schema=schema), path)
        with clipmill.open(dataset, memory_limit="1GB") as opened:
            opened.search("a dog", where="false")  # loads the model
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            started, cpu = time.perf_counter(), time.process_time()
            opened.search("a dog")
            took, cpu = time.perf_counter() - started, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(
            f"search over {clips:,} clips of {width} numbers: {took:.1f} s, {cpu:.1f} s of "
            f"processor time; peak memory {peak / 1024:.0f} MB, {before / 1024:.0f} MB before"
        )
