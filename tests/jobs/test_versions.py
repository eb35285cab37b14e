"""What computed a run is kept with it: versions, devices, number formats."""

from __future__ import annotations

import json
from importlib import metadata

from pipeline.catalog import open_catalog

NAMES = ("numpy", "open_clip_torch", "timm", "tokenizers", "torch", "transformers")


def test_a_run_keeps_the_versions_of_what_computed_it(made):
    with open_catalog(made.dataset) as catalog:
        [(versions,)] = catalog.execute("SELECT versions FROM runs").fetchall()
    assert {name: versions[name] for name in NAMES} == {
        name: metadata.version(name) for name in NAMES}
    assert "python" in versions


def test_the_log_says_where_models_compute_and_in_which_numbers(made):
    """The demo's captioner is set to float32."""
    lines = [json.loads(line) for path in (made.dataset / "logs").rglob("*.jsonl")
             for line in path.read_text("utf-8").splitlines()]
    said = [line["message"] for line in lines if "computes on" in str(line.get("message"))]
    assert "caption_frames computes on cpu in float32" in said
    assert any(text.startswith("embed_clips.model ") and " computes on cpu in " in text
               for text in said)
