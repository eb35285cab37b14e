"""summarize_captions: merges the captions of a clip into one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
from pydantic import Field, field_validator, model_validator

from clipmill.schemas.errors import RowFailed
from clipmill.schemas.tables import CLIP_CAPTION, clip_table
from clipmill.stages.media.read.speech import Lines, said_within, speaking_track, with_words
from clipmill.stages.models.fitting import fitted, spread
from clipmill.stages.models.outputs.stored import stored_text
from clipmill.stages.models.prompted import PromptedStage
from clipmill.stages.models.prompts import render, variables_of
from clipmill.stages.models.summary_prompts import NAMED_PROMPTS
from clipmill.stages.protocol import Stage
from clipmill.stages.references import ModelReference
from clipmill.stages.wires import ONE_TEXT, PLAIN_TEXTS, ColumnName, check_wires

if TYPE_CHECKING:
    from clipmill.stages.models.completions import Completion
    from clipmill.stages.models.text_models import TextModel

SUMMARIES = clip_table(
    ("caption", pa.string()),
    # How the text ended (stop or length), its tokens, and what cleaned it; null in earlier tables.
    ("caption_finish_reason", pa.string()),
    ("caption_prompt_tokens", pa.int32()),
    ("caption_new_tokens", pa.int32()),
    ("caption_cleaned_by", pa.list_(pa.string())),
)

# Which columns a prompt needs for each variable that it may use.
_READS = {
    "coarse": ("caption_frames.caption_coarse",),
    "fine": ("caption_frames.captions_fine",),
    "fine_at": ("caption_frames.captions_fine", "split_clips.start_seconds"),
    "tags": ("tag_clips.tags?",),
    "title": ("download_videos.title?",),
    "subtitles": (
        "download_videos.subtitles?",
        "download_videos.subtitle_words?",
        "download_videos.language?",
        "split_clips.start_seconds",
        "split_clips.end_seconds",
    ),
}
_CLIP = "clip"
PROMPT_VARIABLES = (*_READS, _CLIP)
# What describes the pictures themselves: without any of it, a named prompt has nothing to fuse.
_OF_PICTURES = (_CLIP, "coarse", "fine", "fine_at")
_ON_SCREEN = "on_screen"
_SPOKEN = "spoken"
# The same for all clips, from settings of the same names.
_SETTINGS = ("language", "sentences")

DEFAULT_PROMPT = """\
Summarize what happens in a video clip in one sentence.
{% if coarse %}
The clip shows: {{ coarse }}
{% endif %}
{% if fine %}
Moments of the clip, in time order: {{ fine|join('. ') }}.
{% endif %}
{% if tags %}
It may contain: {{ tags|join(', ') }}.
{% endif %}
"""


class SummarizeCaptions(PromptedStage):
    """The clip's caption, by a language model.

    An answer that is no caption (empty, repeating itself, a refusal, reasoning) is a failure of
    kind `model`, and so is one that was cut off at max_new_tokens. No other caption ever replaces
    it.
    """

    name: ClassVar[str] = "summarize_captions"
    # 2: one subtitle track is used per video, and a clip gets the words said in it.
    version: ClassVar[int] = 2
    writes: ClassVar[pa.Schema] = SUMMARIES

    model: ModelReference = Field(
        ModelReference(hub="google/flan-t5-base"),
        description="language model: hub id, folder, or server",
    )
    prompt: str = Field(
        DEFAULT_PROMPT,
        description="Jinja template with the variables coarse (text), fine (list of texts), "
        "fine_at (list of {seconds, text}, seconds from the clip's start), tags (list of texts), "
        "title (text), subtitles (text spoken in the clip), clip (text, see clip_caption), "
        "on_screen (list of texts, see on_screen_text), language and sentences; only what it uses "
        "is read. Or the name of a prompt: fuse, which uses all that the recipe has, forbids to "
        "invent anything, and brings its own system's message",
    )
    system: str | None = Field(
        None,
        description="the system's message, a Jinja template with language and sentences; by "
        "default none, or that of a named prompt",
    )
    language: str = Field("English", description="for prompts: the language of the summary")
    sentences: int = Field(2, ge=1, description="for prompts: the most sentences of the summary")
    clip_caption: ColumnName = Field(
        CLIP_CAPTION,
        description="the column with a caption of the whole clip for prompts, LABEL.COLUMN, such "
        "as choose_caption.caption_chosen",
    )
    on_screen_text: ColumnName | None = Field(
        None,
        description="a column with text on the screen for prompts, LABEL.COLUMN: a text or a list "
        "of texts, such as measure_text.text_read or caption_clip.text_on_screen",
    )
    spoken_text: ColumnName | None = Field(
        None,
        description="a column with what is said in the clip, LABEL.COLUMN, such as "
        "transcribe_clips.transcript: it is the prompt's subtitles where it isn't null",
    )
    max_new_tokens: int = Field(120, ge=1, description="longest text, in tokens")
    max_prompt_tokens: int | None = Field(
        None,
        ge=1,
        description="longer prompts get fewer fine captions, subtitles and texts on the screen, "
        "evenly thinned; by "
        "default the model's context (no limit for a server; there a token is counted "
        "as 4 characters)",
    )

    @field_validator("prompt")
    @classmethod
    def _check_prompt(cls, template: str) -> str:
        if template in NAMED_PROMPTS:
            return template
        of_clips = (*PROMPT_VARIABLES, _ON_SCREEN)
        if not variables_of(template, (*of_clips, *_SETTINGS)) & {*of_clips}:
            raise ValueError(
                "every clip would get the same prompt: the template uses none of the "
                f"variables {', '.join(of_clips)}, and there is no prompt of that name (there is "
                f"{', '.join(NAMED_PROMPTS)})"
            )
        return template

    @field_validator("system")
    @classmethod
    def _check_system(cls, template: str | None) -> str | None:
        if template is not None:
            variables_of(template, _SETTINGS)
        return template

    @model_validator(mode="after")
    def _check(self) -> SummarizeCaptions:
        self.check_server(self.model, self.generation)
        used = variables_of(self.template, (*PROMPT_VARIABLES, _ON_SCREEN, *_SETTINGS))
        if self.on_screen_text is not None and _ON_SCREEN not in used:
            raise ValueError("on_screen_text is set, but the prompt doesn't use on_screen")
        if self.clip_caption != CLIP_CAPTION and _CLIP not in used:
            raise ValueError("clip_caption is set, but the prompt doesn't use clip")
        if self.spoken_text is not None and "subtitles" not in used:
            raise ValueError("spoken_text is set, but the prompt doesn't use subtitles")
        if _ON_SCREEN in used and self.on_screen_text is None and not self.is_named:
            raise ValueError("the prompt uses on_screen; set on_screen_text to a column with it")
        used |= variables_of(self._system_template or "", _SETTINGS)
        for name in _SETTINGS:
            if getattr(self, name) != type(self).model_fields[name].default and name not in used:
                raise ValueError(f"{name} is set, but neither prompt nor system uses it")
        return self

    @property
    def is_named(self) -> bool:
        return self.prompt in NAMED_PROMPTS

    @property
    def template(self) -> str:
        return NAMED_PROMPTS[self.prompt].prompt if self.is_named else self.prompt

    @property
    def _system_template(self) -> str | None:
        named = NAMED_PROMPTS[self.prompt].system if self.is_named else None
        return named if self.system is None else self.system

    @property
    def _variables(self) -> frozenset[str]:
        """Those of the template that are of clips, and that the recipe can fill."""
        used = variables_of(self.template, (*PROMPT_VARIABLES, _ON_SCREEN, *_SETTINGS))
        return used - {*_SETTINGS, *([_ON_SCREEN] if self.on_screen_text is None else [])}

    def columns_read(self) -> tuple[str, ...]:
        """Reads only what the prompt uses: otherwise new tags would make old summaries stale."""
        needed = [read for name in _READS if name in self._variables for read in _READS[name]]
        if self.is_named:
            # It takes what there is.
            needed = [
                read if read.endswith("?") or read.startswith("split_clips.") else f"{read}?"
                for read in needed
            ]
        if _CLIP in self._variables:
            needed.append(f"{self.clip_caption} as {_CLIP}?")
        if self.on_screen_text is not None:
            needed.append(f"{self.on_screen_text} as {_ON_SCREEN}?")
        if self.spoken_text is not None:
            needed.append(f"{self.spoken_text} as {_SPOKEN}?")
        return tuple(dict.fromkeys(needed))

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        """ValueError if the recipe has nothing to fuse, or no such text on the screen."""
        captioners = ("caption_frames", self.clip_caption.partition(".")[0])
        if self.is_named and not any(label in before for label in captioners):
            raise ValueError(
                f"the prompt {self.prompt} fuses captions, but no stage "
                f"{' or '.join(captioners)} comes before it"
            )
        kinds = {"clip_caption": ONE_TEXT, "on_screen_text": PLAIN_TEXTS, "spoken_text": ONE_TEXT}
        check_wires(self, before, kinds)

    def prompts(self) -> dict[str, str]:
        found = {"prompt": self.template, "system": self._system_template}
        return {name: text for name, text in found.items() if text is not None}

    def system_message(self) -> str | None:
        template = self._system_template
        return None if template is None else render(template, self._settings)

    @property
    def _settings(self) -> dict[str, Any]:
        """The variables that are the same for all clips."""
        return {"language": self.language, "sentences": self.sentences}

    def prompt_for(self, row: Mapping[str, Any], model: TextModel) -> str:
        """With as many fine captions, subtitles and texts on the screen as fit."""
        material = _Material.of(row)
        return fitted(
            lambda lines: self._render(material.thinned(lines)),
            material.lines,
            model,
            self.max_prompt_tokens,
        )

    def _render(self, material: _Material) -> str:
        values = material.values()
        # A title alone is no reason to write about pictures.
        needed = self._variables & {*_OF_PICTURES} if self.is_named else self._variables
        if not any(values[name] for name in needed):
            raise RowFailed(
                "model", f"there is nothing to summarise: empty are {', '.join(sorted(needed))}"
            )
        return self.rendered(values | self._settings)

    def columns_for(
        self, answer: Completion | RowFailed, row: Mapping[str, Any], prompt: str
    ) -> dict[str, Any]:
        stored = stored_text(
            answer,
            when_cut_off=self.when_cut_off or "fail",
            limit=self.max_new_tokens,
            setting="max_new_tokens",
            asked=self.echoes(prompt),
            off=self.text_rules_off,
        )
        return {
            "caption": stored.text,
            "caption_finish_reason": stored.finish_reason,
            "caption_prompt_tokens": stored.prompt_tokens,
            "caption_new_tokens": stored.new_tokens,
            "caption_cleaned_by": list(stored.cleaned_by),
        }


@dataclass(frozen=True)
class _Material:
    """What is known about one clip."""

    coarse: str
    fine: tuple[tuple[float, str], ...]
    tags: tuple[str, ...]
    title: str
    subtitles: tuple[str, ...]
    clip: str
    on_screen: tuple[str, ...]

    @classmethod
    def of(cls, row: Mapping[str, Any]) -> _Material:
        start = row.get("start_seconds") or 0.0
        on_screen = row.get(_ON_SCREEN) or []
        return cls(
            coarse=row.get("caption_coarse") or "",
            fine=tuple(
                (round(entry["seconds"] - start, 3), entry["text"])
                for entry in row.get("captions_fine") or []
                if entry["text"]
            ),
            tags=tuple(entry["tag"] for entry in row.get("tags") or []),
            title=row.get("title") or "",
            subtitles=_subtitles(row, start),
            clip=row.get(_CLIP) or "",
            on_screen=tuple(
                text for text in ([on_screen] if isinstance(on_screen, str) else on_screen) if text
            ),
        )

    @property
    def lines(self) -> int:
        return max(len(self.fine), len(self.subtitles), len(self.on_screen))

    def thinned(self, lines: int) -> _Material:
        """With at most `lines` fine captions, and as many lines of the others, evenly spread."""
        return replace(
            self,
            fine=spread(self.fine, lines),
            subtitles=spread(self.subtitles, lines),
            on_screen=spread(self.on_screen, lines),
        )

    def values(self) -> dict[str, Any]:
        """The variables of the prompt."""
        return {
            "coarse": self.coarse,
            "fine": [text for _, text in self.fine],
            "fine_at": [{"seconds": seconds, "text": text} for seconds, text in self.fine],
            "tags": list(self.tags),
            "title": self.title,
            "subtitles": " ".join(self.subtitles),
            "clip": self.clip,
            "on_screen": list(self.on_screen),
        }


def _subtitles(row: Mapping[str, Any], start_seconds: float) -> tuple[str, ...]:
    """What was transcribed of the clip, else its part of the video's subtitles."""
    if said := row.get(_SPOKEN):
        return (said,)
    return spoken(
        with_words(row.get("subtitles"), row.get("subtitle_words")),
        start_seconds,
        row.get("end_seconds"),
        row.get("language"),
    )


def spoken(
    subtitles: Lines, start_seconds: float, end_seconds: float | None, language: str | None = None
) -> tuple[str, ...]:
    """Lines said within the span, from the video's track for this language."""
    return said_within(speaking_track(subtitles, language), start_seconds, end_seconds)
