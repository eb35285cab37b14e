"""Runs record versions, devices and dtypes."""

from __future__ import annotations

import json
from importlib import metadata

import torch

from clipmill.pipeline.catalog.catalog import open_catalog

NAMES = ("numpy", "open_clip_torch", "timm", "tokenizers", "torch", "transformers")


def test_run_records_library_versions(made):
    with open_catalog(made.dataset) as catalog:
        [(versions,)] = catalog.execute("SELECT versions FROM runs").fetchall()
    assert {name: versions[name] for name in NAMES} == {
        name: metadata.version(name) for name in NAMES
    }
    assert "python" in versions


def test_run_records_where_each_model_was_opened(made):
    """The demo's captioner and language model are set to float32, on the CPU or the first GPU."""
    with open_catalog(made.dataset) as catalog:
        rows = catalog.execute(
            "SELECT s.stage, m.setting, p.device, p.dtype FROM (SELECT unnest(stages) AS s FROM "
            "runs), LATERAL (SELECT unnest(s.models) AS m), LATERAL (SELECT unnest(m.places) AS p)"
        ).fetchall()
    found = {(stage, setting): place for stage, setting, *place in rows}
    assert len(rows) == len(found)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for stage in ("caption_frames", "summarize_captions", "embed_clips", "score_similarity"):
        where, numbers = found[stage, "model"]
        assert where.startswith(device)
        assert numbers == "float32" or stage in ("embed_clips", "score_similarity")
    assert found["score_aesthetic", "head"] == ["cpu", "float64"]


def test_log_has_devices_and_dtypes_of_models(made):
    """The demo's captioner is set to float32."""
    lines = [
        json.loads(line)
        for path in (made.dataset / "logs").rglob("*.jsonl")
        for line in path.read_text("utf-8").splitlines()
    ]
    said = [line["message"] for line in lines if "computes on" in str(line.get("message"))]
    assert any(
        text.startswith("caption_frames.model (") and text.endswith(") computes on cpu in float32")
        for text in said
    )
    assert any(
        text.startswith("embed_clips.model (") and " computes on cpu in " in text for text in said
    )
