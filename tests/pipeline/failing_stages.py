"""A small custom stage whose rows fail as their source's URL says."""

from __future__ import annotations

from contextlib import contextmanager

import pyarrow as pa

from clipmill.schemas.errors import RowFailed, ServerRefused
from clipmill.stages.protocol import Rows, Stage, Workspace, resource
from tests.pipeline.own_stages import asked


class SayWords(Stage):
    """A text for each clip; `say=broken` raises, `bad` is a bad file, `refused` a server's 401."""

    name = "say_words"
    reads = ("cut_words.start_seconds", "fetch_words.url")
    writes = pa.schema([("said", pa.string())])
    batch_rows: int = resource(3)

    @contextmanager
    def open(self, workspace: Workspace):
        def transform(batch):
            rows = Rows(self)
            with (workspace.dataset / "calls.txt").open("a") as calls:
                calls.write(f"{batch.num_rows}\n")
            for clip, url in zip(
                *batch.select(["clip_id", "url"]).to_pydict().values(), strict=True
            ):
                match asked(url).get("say"):
                    case "broken":
                        raise RuntimeError(f"the model can't say '{clip}' at step {len(calls_of)}")
                    case "bad":
                        raise RowFailed("bad_media", "no frame of this clip can be read")
                    case "refused":
                        raise ServerRefused(
                            "blocked",
                            "http://127.0.0.1/v1 answered 401; the key is read from $KEY",
                            401,
                            "say_words.model",
                        )
                calls_of.append(clip)
                rows.keep(clip, said=f"{clip}!")
            return rows.table()

        calls_of: list[str] = []
        yield transform


class SayMoreWords(SayWords):
    """The same, after it: needs what was said."""

    name = "say_more_words"
    reads = ("say_words.said", "fetch_words.url")

    @contextmanager
    def open(self, workspace: Workspace):
        yield lambda batch: pa.table({"clip_id": batch["clip_id"], "said": batch["said"]})
