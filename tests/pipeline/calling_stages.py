"""A stage whose transform is called from several threads, for tests of the runner."""

from __future__ import annotations

import os
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from clipmill.schemas.errors import ClipmillError
from clipmill.stages import usage
from clipmill.stages.protocol import Rows, Stage, Workspace, resource
from tests.pipeline.own_stages import asked


def until_named(dataset: Path, clip: str) -> None:
    """Hangs until the run has reported this clip."""
    (log,) = dataset.glob("logs/*/driver.jsonl")
    for _ in range(600):
        lines = log.read_text().splitlines()
        if any('"standstill"' in line and f'"{clip}"' in line for line in lines):
            return
        time.sleep(0.1)
    raise AssertionError("nobody noticed")


class AskWords(Stage):
    """A text for each clip, after `pace_seconds`; says in `diary` when each call begins and ends.

    The first calls wait until `together` of them are there.

    By its URL, a clip whose id ends in -1 fails, kills its process, hangs or ends the run, unless
    the stage is `calm`. The first clip of a batch takes longest.
    """

    name = "ask_words"
    reads = ("cut_words.start_seconds", "fetch_words.url")
    writes = pa.schema([("said", pa.string())])
    batch_rows: int = resource(1)
    calls: int = resource(6)
    pace_seconds: float = resource(0.0)
    together: int = resource(1)
    diary: str | None = resource(None)
    calm: bool = resource(False)

    @property
    def calls_at_once(self) -> int:
        return self.calls

    @contextmanager
    def open(self, workspace: Workspace):
        lock, begun = threading.Lock(), [0]
        all_there = threading.Event()

        def note(line: str) -> None:
            if self.diary:
                with lock, open(self.diary, "a") as file:
                    file.write(line + "\n")

        def transform(batch):
            keys = batch["clip_id"].to_pylist()
            note(f"+{','.join(keys)}")
            with lock:
                begun[0] += 1
                if begun[0] >= self.together:
                    all_there.set()
            assert all_there.wait(60)
            rows = Rows(self)
            for number, (clip, url) in enumerate(zip(keys, batch["url"].to_pylist(), strict=True)):
                usage.use(usage.REQUESTS)
                time.sleep(self.pace_seconds * (1 if number else 2))
                asks = clip.endswith("-1") and not self.calm
                want = asked(url).get("ask") if asks else None
                if want == "fail":
                    raise ValueError("as asked")
                if want == "die":
                    os._exit(9)
                if want == "hang":
                    until_named(workspace.dataset, clip)
                if want == "stop":
                    raise ClipmillError("no further row would fare better")
                rows.keep(clip, said=f"said {clip}")
            note(f"-{','.join(keys)}")
            return rows.table()

        yield transform


class CountSaid(Stage):
    """The length of the text, in one call at a time; each must come from the same thread."""

    name = "count_said"
    reads = ("ask_words.said",)
    writes = pa.schema([("length", pa.int32()), ("thread", pa.int64())])
    batch_rows: int = resource(2)

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            rows = Rows(self)
            for clip, said in zip(
                *batch.select(["clip_id", "said"]).to_pydict().values(), strict=True
            ):
                rows.keep(clip, length=len(said), thread=threading.get_ident())
            return rows.table()

        yield transform
