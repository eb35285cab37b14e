"""Small custom stages, without media or models, for tests of the runner.

A source's URL determines its outcome: `https://NAME.test/?clips=3&fail=name`.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pyarrow as pa

from clipmill.schemas.errors import RowFailed
from clipmill.stages.protocol import Rows, Stage, Workspace, resource


def asked(url: str) -> dict[str, str]:
    return {name: values[0] for name, values in parse_qs(urlsplit(url).query).items()}


def until_named(dataset: Path) -> None:
    """Hangs until the run has reported it."""
    (log,) = dataset.glob("logs/*/driver.jsonl")
    for _ in range(600):
        if '"standstill"' in log.read_text():
            return
        time.sleep(0.1)
    raise AssertionError("nobody noticed")


class FetchWords(Stage):
    """source_key → video_id; `fail=fetch` fails, `reject=fetch` is rejected, by `rule=…`."""

    name = "fetch_words"
    key = "source_key"
    reads = ("sources.url",)
    writes = pa.schema([("video_id", pa.string()), ("url", pa.string())])
    batch_rows: int = resource(4)

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            rows = Rows(self)
            for key, url in zip(
                *batch.select(["source_key", "url"]).to_pydict().values(), strict=True
            ):
                if asked(url).get("reject") == "fetch":
                    rows.reject(key, asked(url).get("rule", "fetch_words.rule"), "as asked")
                else:
                    rows.keep(key, video_id="v-" + urlsplit(url).netloc.partition(".")[0], url=url)
            return rows.table()

        yield transform


class CutWords(Stage):
    """video_id → clips; `kill=cut` kills the worker while the file of that name exists."""

    name = "cut_words"
    key = "video_id"
    reads = ("fetch_words.url",)
    writes = pa.schema(
        [("clip_id", pa.string()), ("start_seconds", pa.float64()), ("end_seconds", pa.float64())]
    )
    fragile = True
    error_kind = "bad_media"
    length: float = 1.0

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            rows = Rows(self)
            for key, url in zip(
                *batch.select(["video_id", "url"]).to_pydict().values(), strict=True
            ):
                want = asked(url)
                if "kill" in want:
                    os._exit(1)
                if want.get("stand") == "cut":
                    time.sleep(1000)
                if want.get("fail") == "cut":
                    raise ValueError("cannot be cut")
                if want.get("lose") == "cut":
                    continue
                for i in range(int(want.get("clips", 2))):
                    rows.keep(
                        key,
                        clip_id=f"{key}-{i}",
                        start_seconds=i * self.length,
                        end_seconds=(i + 1) * self.length,
                    )
            return rows.table()

        yield transform


class NameWords(Stage):
    """A word for each clip, from its id; fails for the ids in `fail_ids` while that exists."""

    name = "name_words"
    reads = ("cut_words.start_seconds", "fetch_words.url")
    writes = pa.schema([("word", pa.string()), ("word_score", pa.float32())])
    score = "word_score"
    prefix: str = "clip"
    batch_rows: int = resource(3)
    mend_file: str | None = resource(None)

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            rows = Rows(self)
            for clip, url in zip(
                *batch.select(["clip_id", "url"]).to_pydict().values(), strict=True
            ):
                if asked(url).get("stand") == "name" and clip.endswith("-1"):
                    os.kill(os.getpid(), signal.SIGSTOP)
                    time.sleep(1000)  # another thread may handle the signal, and take a while
                if asked(url).get("stand") == "until_named":
                    until_named(workspace.dataset)
                bad = asked(url).get("fail") == "name" and clip.endswith("-1")
                if bad and not (self.mend_file and Path(self.mend_file).exists()):
                    raise RowFailed("model", f"no word for {clip}")
                rows.keep(clip, word=f"{self.prefix} {clip}", word_score=0.5)
            return rows.table()

        yield transform


class CountLetters(Stage):
    """The length of the word; returns only its key and column, as a custom stage may."""

    name = "count_letters"
    reads = ("name_words.word",)
    writes = pa.schema([("letters", pa.int32())])

    @contextmanager
    def open(self, workspace: Workspace):
        yield lambda batch: pa.table(
            {
                "clip_id": batch["clip_id"],
                "letters": pa.array([len(word) for word in batch["word"].to_pylist()], pa.int32()),
            }
        )


class GuessWords(Stage):
    """Works with or without a word."""

    name = "guess_words"
    reads = ("cut_words.start_seconds", "name_words.word?")
    writes = pa.schema([("guess", pa.string())])

    @contextmanager
    def open(self, workspace: Workspace):
        yield lambda batch: pa.table(
            {
                "clip_id": batch["clip_id"],
                "guess": pa.array([word or "none" for word in batch["word"].to_pylist()]),
            }
        )
