"""rewrite_captions: a caption in other words, or corrected by what else is known of its clip."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from clipmill.schemas.errors import RowFailed
from clipmill.schemas.tables import CLIP_CAPTION, clip_table
from clipmill.stages.models.completions import Completion
from clipmill.stages.models.fitting import fitted, spread
from clipmill.stages.models.outputs.json_answers import texts_of
from clipmill.stages.models.outputs.stored import LENGTH, STOP, stored_text
from clipmill.stages.models.outputs.wording import is_request, normal
from clipmill.stages.models.prompted import PromptedStage
from clipmill.stages.models.prompts import own_words, variables_of
from clipmill.stages.models.rewriting_prompts import NAMED_REWRITINGS
from clipmill.stages.protocol import Stage
from clipmill.stages.references import ModelReference
from clipmill.stages.wires import ONE_TEXT, ColumnName, check_wires

if TYPE_CHECKING:
    from clipmill.stages.models.text_models import TextModel

REWRITTEN = clip_table(
    ("captions_rewritten", pa.list_(pa.string())),
    ("rewritten_finish_reason", pa.string()),
    ("rewritten_prompt_tokens", pa.int32()),
    ("rewritten_new_tokens", pa.int32()),
    ("rewritten_cleaned_by", pa.list_(pa.string())),
    # Why there are fewer than asked for.
    ("rewritten_reason", pa.string()),
)

# Which columns a prompt needs for each variable beside the caption; a clip may lack any of them.
_READS = {
    "tags": "tag_clips.tags?",
    "coarse": "caption_frames.caption_coarse?",
    "fine": "caption_frames.captions_fine?",
}
_CLIP = "clip"
_VARIABLES = ("caption", *_READS, _CLIP, "variants")
_FIELD = "captions"


class RewriteCaptions(PromptedStage):
    """Further captions of a clip, made of one that it has, by a language model.

    With `variants` above 1, the model is asked for a list of different texts in one request. Texts
    that say the same as the caption, or as another of them, are left out; rewritten_reason says how
    many. Which clips are rewritten is up to a gate, such as `where: similarity < 0.2`.
    """

    name: ClassVar[str] = "rewrite_captions"
    writes: ClassVar[pa.Schema] = REWRITTEN

    model: ModelReference = Field(
        ModelReference(hub="Qwen/Qwen2.5-1.5B-Instruct"),
        description="language model: hub id, folder, or server",
    )
    caption: ColumnName = Field(
        "summarize_captions.caption", description="the column of the caption, LABEL.COLUMN"
    )
    clip_caption: ColumnName = Field(
        CLIP_CAPTION,
        description="the column with another caption of the whole clip for prompts, LABEL.COLUMN",
    )
    variants: int = Field(1, ge=1, le=32, description="texts asked for")
    prompt: str = Field(
        "paraphrase",
        description="paraphrase (the same in other words), correct (as little as needed, so that "
        "it agrees with tags and the other captions), or a Jinja template with the variables "
        "caption, tags (list of texts), coarse, fine (list of texts), clip (see clip_caption) "
        "and variants",
    )
    system: str | None = Field(
        None, description="the system's message; by default none, or that of a named prompt"
    )

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, template: str) -> str:
        if template not in NAMED_REWRITINGS and "caption" not in variables_of(template, _VARIABLES):
            raise ValueError(
                "the template doesn't use caption, and there is no prompt of that name; there are "
                f"{', '.join(NAMED_REWRITINGS)}"
            )
        return template

    @model_validator(mode="after")
    def _check(self) -> RewriteCaptions:
        self.check_server(self.model, self.generation)
        if self.clip_caption != CLIP_CAPTION and _CLIP not in self._used:
            raise ValueError("clip_caption is set, but the prompt doesn't use clip")
        return self

    @property
    def _used(self) -> frozenset[str]:
        return variables_of(self.template, _VARIABLES)

    @property
    def is_named(self) -> bool:
        return self.prompt in NAMED_REWRITINGS

    @property
    def template(self) -> str:
        return NAMED_REWRITINGS[self.prompt].prompt if self.is_named else self.prompt

    def system_message(self) -> str | None:
        if self.system is None and self.is_named:
            return NAMED_REWRITINGS[self.prompt].system
        return self.system

    def answer_schema(self) -> dict[str, Any] | None:
        if self.variants == 1:
            return None
        count = {"minItems": self.variants, "maxItems": self.variants}
        texts = {"type": "array", "items": {"type": "string"}, **count}
        return {
            "type": "object",
            "properties": {_FIELD: texts},
            "required": [_FIELD],
            "additionalProperties": False,
        }

    def columns_read(self) -> tuple[str, ...]:
        return (
            f"{self.caption} as caption",
            *(read for name, read in _READS.items() if name in self._used),
            *([f"{self.clip_caption} as {_CLIP}?"] if _CLIP in self._used else []),
        )

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        """ValueError if a caption is no text, or the other one's stage is missing."""
        check_wires(self, before, {"caption": ONE_TEXT, "clip_caption": ONE_TEXT})

    def prompts(self) -> dict[str, str]:
        found = {"prompt": self.template, "system": self.system_message()}
        return {name: text for name, text in found.items() if text is not None}

    def prompt_for(self, row: Mapping[str, Any], model: TextModel) -> str:
        """With as many fine captions as fit."""
        if not (row["caption"] or "").strip():
            raise RowFailed("model", f"the clip has no {self.caption}")
        fine = [one["text"] for one in row.get("captions_fine") or [] if one["text"]]
        values = {
            "caption": row["caption"],
            "tags": [entry["tag"] for entry in row.get("tags") or []],
            "coarse": row.get("caption_coarse") or "",
            _CLIP: row.get(_CLIP) or "",
            "variants": self.variants,
        }
        return fitted(
            lambda lines: self._render({**values, "fine": [*spread(fine, lines)]}), len(fine), model
        )

    def _render(self, values: Mapping[str, Any]) -> str:
        prompt = self.rendered(values)
        if self.variants == 1:
            return prompt
        return (
            f'{prompt}\n\nAnswer with one JSON object whose field "{_FIELD}" is a list of '
            f"{self.variants} texts."
        )

    def columns_for(
        self, answer: Completion | RowFailed, row: Mapping[str, Any], prompt: str
    ) -> dict[str, Any]:
        """RowFailed if no text of the answer can be used."""
        if isinstance(answer, RowFailed):
            raise answer
        texts, rules = self._texts_in(answer)
        kept: dict[str, str] = {}
        faults: list[str] = []
        same = 0
        for text in texts[: self.variants]:
            try:
                stored = stored_text(
                    text,
                    when_cut_off=self.when_cut_off or "fail",
                    limit=self.max_new_tokens,
                    setting="max_new_tokens",
                    asked=self.echoes(prompt),
                    off=self.text_rules_off,
                )
            except RowFailed as failure:
                faults.append(failure.message)
                continue
            rules += stored.cleaned_by
            words = normal(stored.text)
            if words == normal(row["caption"]) or words in kept:
                same += 1
            else:
                kept[words] = stored.text
        if not kept and not same:
            raise RowFailed("model", faults[0] if faults else "the answer has no texts")
        return {
            "captions_rewritten": list(kept.values()),
            "rewritten_finish_reason": STOP if answer.complete else LENGTH,
            "rewritten_prompt_tokens": answer.prompt_tokens,
            "rewritten_new_tokens": answer.new_tokens,
            "rewritten_cleaned_by": list(dict.fromkeys(rules)),
            "rewritten_reason": self._reason(len(kept), same, faults),
        }

    def echoes(self, prompt: str) -> Sequence[str]:
        # Where the template is little more than the caption, that may come back unchanged.
        whole = (prompt,) if is_request(own_words(self.template)) else ()
        return super().echoes(prompt) or whole

    def _texts_in(self, answer: Completion) -> tuple[list[Completion], tuple[str, ...]]:
        """The texts of an answer, and the rules that were needed to find them."""
        if self.variants == 1:
            return [answer], ()
        if not answer.complete and self.when_cut_off in (None, "fail"):
            raise RowFailed(
                "model", f"the answer was cut off at {self.max_new_tokens} tokens (max_new_tokens)"
            )
        texts, rules = texts_of(answer.text, _FIELD, off=self.text_rules_off)
        return [Completion(text) for text in texts], rules

    def _reason(self, kept: int, same: int, faults: list[str]) -> str | None:
        if kept == self.variants:
            return None
        said = [f"{kept} of {self.variants} texts"]
        said += [f"{same} say what others say"] * bool(same)
        return "; ".join([*said, *faults])
