"""detect_language: right answers by kind of text, and texts per second beside py3langid alone."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pyarrow as pa
import yaml

from clipmill.stages.detect_language import DetectLanguage
from clipmill.stages.download_videos import VIDEOS
from clipmill.stages.media.fetch.data_files import local_file
from clipmill.stages.protocol import Workspace

TEXTS = Path(__file__).parents[2] / "tests" / "files" / "texts_by_language.yaml"


def main(options: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.signal_models --stage detect_language"
    )
    parser.add_argument("--rounds", type=int, default=20, help="times that all texts are read")
    rounds = parser.parse_args(options).rounds
    texts = yaml.safe_load(TEXTS.read_text())
    stage = DetectLanguage(texts=("title",))
    detector = stage.detector(stage.name)
    print("| texts | number | right | unsure | wrong | characters, median |")
    print("|---|---|---|---|---|---|")
    for kind in ("titles", "captions", "descriptions"):
        found = [
            (language, text, detector.detect(text))
            for language, kinds in texts.items()
            for text in kinds[kind]
        ]
        right = sum(one.language == language for language, _, one in found)
        unsure = sum(one.language is None for *_, one in found)
        lengths = sorted(len(text) for _, text, _ in found)
        print(
            f"| {kind} | {len(found)} | {right} | {unsure} | {len(found) - right - unsure} "
            f"| {lengths[len(lengths) // 2]} |"
        )
    _compare(
        stage,
        [text for kinds in texts.values() for found in kinds.values() for text in found],
        rounds,
    )


def _compare(stage: DetectLanguage, texts: list[str], rounds: int) -> None:
    from py3langid.langid import LanguageIdentifier

    weights = local_file(stage.model, setting="model")
    bare = LanguageIdentifier.from_modelpath(str(weights), norm_probs=True)
    # No text twice: the stage remembers the last ones.
    batches = [[f"{text} {number}" for text in texts] for number in range(rounds)]
    schema = pa.schema([("video_id", pa.string()), VIDEOS.field("title")])
    tables = [pa.table([batch, batch], schema=schema) for batch in batches]
    with stage.open(Workspace(Path(), Path())) as transform:
        alone, within = 0.0, 0.0
        # In turns, so that whatever else the machine does slows both.
        for batch, table in zip(batches, tables, strict=True):
            alone += _seconds(lambda batch=batch: [bare.rank(text) for text in batch])
            within += _seconds(lambda table=table: transform(table))
    number = rounds * len(texts)
    print(
        f"\n{number / within:.0f} texts per processor second in the stage, "
        f"{alone / within:.2f} of py3langid's `rank` alone"
    )


def _seconds(work: Callable[[], object]) -> float:
    begun = time.process_time()
    work()
    return time.process_time() - begun
