"""Captions of whole clips in a run: forms, corrections by a gate, the best of all, a summary."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from clipmill.jobs.run import run
from clipmill.pipeline.catalog.caption_texts import text_counts
from clipmill.pipeline.catalog.catalog import open_catalog
from clipmill.pipeline.recipes.ready_made import recipe_path
from clipmill.pipeline.recipes.recipe import load_recipe
from clipmill.pipeline.verify import verify
from tests.conftest import Made
from tests.openai_stand_in import openai_server

CLIP = "package:clipmill.jobs/demo/models/clip"


def answer(request: dict[str, Any]) -> str:
    """A caption, a filled form, or a list of texts: whatever is asked for."""
    shape = request.get("response_format")
    if shape is None:
        return "A red circle moves to the left."
    if "captions" in shape["json_schema"]["schema"]["properties"]:
        return json.dumps({"captions": ["A circle moves.", "A red circle goes left."]})
    said = {"short": "A blue square moves.", "shapes": 1, "watermark": "unsure"}
    return json.dumps({**said, "text_on_screen": []})


def recipe(url: str) -> Any:
    served = f"{url}#tiny"
    return load_recipe(
        recipe_path("demo"),
        overrides=[
            "caption_clip.stage=caption_clip",
            f"caption_clip.model={served}",
            "caption_clip.clip_frames=2",
            "caption_clip.fields={short: text, shapes: integer, text_on_screen: null}",
            "caption_clip.questions={watermark: 'Is there a watermark?'}",
            "rewrite_captions.stage=rewrite_captions",
            f"rewrite_captions.model={served}",
            "rewrite_captions.caption=caption_clip.short",
            "rewrite_captions.prompt=correct",
            "rewrite_captions.variants=2",
            "rewrite_captions.where=shapes = 1 AND watermark IS NULL",
            "choose_caption.stage=choose_caption",
            f"choose_caption.model={CLIP}",
            "choose_caption.captions=[summarize_captions.caption, caption_clip.short, "
            "rewrite_captions.captions_rewritten]",
            "fused.stage=summarize_captions",
            f"fused.model={served}",
            "fused.prompt=fuse",
            "fused.clip_caption=choose_caption.caption_chosen",
            "fused.on_screen_text=caption_clip.text_on_screen",
        ],
        engine="local",
    )


def test_run_writes_typed_columns_and_does_nothing_twice(made: Made, tmp_path: Path):
    dataset = Path(shutil.copytree(made.dataset, tmp_path / "dataset"))
    with openai_server(answer) as stand_in:
        run(recipe(stand_in.url), dataset, take_sources=False)
        asked = len(stand_in.requests)
        run(recipe(stand_in.url), dataset, take_sources=False)
        assert len(stand_in.requests) == asked
    with open_catalog(dataset) as catalog:
        rows = catalog.ask("SELECT * FROM clips").read_all().to_pylist()
        counted = {count["column"]: count["texts"] for count in text_counts(catalog)}
    assert rows
    for row in rows:
        assert (row["short"], row["shapes"], row["text_on_screen"]) == (row["caption_clip"], 1, [])
        assert (row["watermark"], row["watermark_answer"]) == (None, "unsure")
        assert row["clip_fields_reason"] == "watermark: the model is unsure"
        assert row["captions_rewritten"] == ["A circle moves.", "A red circle goes left."]
        texts = [one["text"] for one in row["caption_candidates"]]
        assert texts == [row["caption"], row["short"], *row["captions_rewritten"]]
        best = max(row["caption_candidates"], key=lambda one: one["similarity"])
        assert row["caption_chosen"] == best["text"]
        assert row["fused_caption"] == "A red circle moves to the left."
    assert counted["caption_clip"] == len(rows)
    prompts = [
        request["messages"][-1]["content"]
        for request in stand_in.requests
        if request["messages"][0]["role"] == "system"
        and request["messages"][0]["content"].startswith("You write captions of video clips")
    ]
    chosen = {row["caption_chosen"] for row in rows}
    assert {prompt.partition("\n")[0].removeprefix("The whole clip: ") for prompt in prompts} == (
        chosen
    )
    assert not verify(dataset, media=False).faults
