"""check_captions: measures captions, and compares their words with what was measured otherwise."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field, model_validator

from clipmill.schemas.errors import RowFailed
from clipmill.schemas.tables import clip_table
from clipmill.stages.clip_signals import CLIP_SIGNALS
from clipmill.stages.models.outputs.claims import (
    camera_named,
    colors_named,
    names_speech,
    names_stillness,
    names_text,
    texts_missing,
    texts_named,
)
from clipmill.stages.protocol import FramePick, Rows, Stage, Transform, Uniform, Workspace
from clipmill.stages.wires import NUMBER, ONE_TEXT, PLAIN_TEXTS, ColumnName, check_wires

COLOR_SHARE = pa.struct([("color", pa.string()), ("share", pa.float32())])

CAPTION_CHECKS = clip_table(
    ("caption_words", pa.int32()),
    # 0 within the bounds, else the factor beyond them in powers of two: -1 is half the shortest.
    ("caption_length_outlier", pa.float32()),
    # The share of four-character pieces that occurred before in the caption.
    ("caption_repetition", pa.float32()),
    # Each colour that the caption names, with the largest share of it in any frame.
    ("caption_colors", pa.list_(COLOR_SHARE)),
    ("colors_unseen", pa.list_(pa.string())),
    # What the caption says, and whether a measurement contradicts it; null without one.
    ("text_named", pa.bool_()),
    ("text_unseen", pa.bool_()),
    ("speech_named", pa.bool_()),
    ("speech_unheard", pa.bool_()),
    ("stillness_named", pa.bool_()),
    ("stillness_unseen", pa.bool_()),
    ("camera_named", pa.list_(pa.string())),
    ("camera_unseen", pa.list_(pa.string())),
    # What the caption says can be read, and of that what was not; null without what was read.
    ("texts_named", pa.list_(pa.string())),
    ("texts_unread", pa.list_(pa.string())),
)

_MEASURED = ("text_area", "voice", "motion", "camera_pan", "camera_tilt", "camera_zoom")
_TEXTS = ("text_read", "text_claimed")
# What each bound is a bound of.
_BOUNDS = {
    "least_color_share": ("frames_for_colors",),
    "least_text_area": ("text_area",),
    "least_voice": ("voice",),
    "most_motion_of_still": ("motion",),
    "least_camera_motion": ("camera_pan", "camera_tilt", "camera_zoom"),
}
_PIECE = 4
# Scripts without spaces between words: a character is about half a word.
_IDEOGRAPH = re.compile("[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
# Each claim about the camera: the measurement, and the sign that it should have.
_MOVES = {
    "pan_left": ("camera_pan", -1),
    "pan_right": ("camera_pan", 1),
    "tilt_up": ("camera_tilt", 1),
    "tilt_down": ("camera_tilt", -1),
    "zoom_in": ("camera_zoom", 1),
    "zoom_out": ("camera_zoom", -1),
}


class CheckCaptions(Stage):
    """Numbers about a caption, and its words compared with pixels and measurements.

    No model is needed, and no clip is rejected: the columns are for the rules of subsets. Words are
    looked up in English. The share of a colour is an upper bound, because the ranges of
    neighbouring colours overlap. What a caption says about text, speech, movement or the camera is
    compared only with columns that the settings name, as LABEL.COLUMN.
    """

    name: ClassVar[str] = "check_captions"
    writes: ClassVar[pa.Schema] = CAPTION_CHECKS

    caption: ColumnName = Field(
        "summarize_captions.caption", description="the column of the caption, LABEL.COLUMN"
    )
    fewest_words: int = Field(3, ge=1, description="captions of fewer words are outliers")
    most_words: int = Field(120, ge=1, description="captions of more words are outliers")
    frames_for_colors: int = Field(
        4, ge=0, le=64, description="frames in which colours are looked for; 0 looks at none"
    )
    least_color_share: float = Field(
        0.002,
        ge=0,
        le=1,
        description="a colour that the caption names is unseen if it covers a smaller share of "
        "every frame",
    )
    text_area: ColumnName | None = Field(
        None,
        description="a column with the share of the picture that text covers, such as "
        "measure_text.text_area",
    )
    least_text_area: float = Field(
        0.001, ge=0, description="text that the caption names is unseen below this text_area"
    )
    text_read: ColumnName | None = Field(
        None,
        description="a column with the texts that were read on the screen, such as "
        "measure_text.text_read: what the caption quotes is looked for there",
    )
    text_claimed: ColumnName | None = Field(
        None,
        description="a column with further texts that a captioner says it reads, such as "
        "caption_clip.text_on_screen: they are looked for in text_read too",
    )
    voice: ColumnName | None = Field(
        None, description="a column with the share of the clip in which somebody speaks"
    )
    least_voice: float = Field(
        0.02, ge=0, description="speech that the caption names is unheard below this voice"
    )
    motion: ColumnName | None = Field(
        None, description="a column with the amount of movement, such as split_clips.motion"
    )
    most_motion_of_still: float = Field(
        8.0, ge=0, description="stillness that the caption names is unseen above this motion"
    )
    camera_pan: ColumnName | None = Field(
        None,
        description="a column with the camera's turn, negative to the left, such as "
        "split_clips.camera_pan",
    )
    camera_tilt: ColumnName | None = Field(
        None,
        description="a column with the camera's tilt, negative downwards, such as "
        "split_clips.camera_tilt",
    )
    camera_zoom: ColumnName | None = Field(
        None,
        description="a column with the camera's zoom, negative outwards, such as "
        "split_clips.camera_zoom",
    )
    least_camera_motion: float = Field(
        0.0,
        ge=0,
        description="in the unit of these columns: a movement that the caption names is unseen if "
        "it is smaller or the other way; a fixed camera, if one is larger and this is above 0",
    )

    @model_validator(mode="after")
    def _check(self) -> CheckCaptions:
        if self.fewest_words > self.most_words:
            raise ValueError("fewest_words is more than most_words")
        for bound, needed in _BOUNDS.items():
            is_set = getattr(self, bound) != type(self).model_fields[bound].default
            if is_set and not any(getattr(self, name) for name in needed):
                raise ValueError(f"{bound} is set, but {' or '.join(needed)} is not")
        if self.text_claimed is not None and self.text_read is None:
            raise ValueError(
                "text_claimed is set, but text_read, which it is compared with, is not"
            )
        return self

    def _wired(self) -> dict[str, str]:
        names = (*_MEASURED, *_TEXTS)
        return {name: place for name in names if (place := getattr(self, name)) is not None}

    def columns_read(self) -> tuple[str, ...]:
        # A clip without a measurement has its caption all the same.
        wired = [f"{place} as {name}?" for name, place in self._wired().items()]
        return (f"{self.caption} as caption", *wired)

    def check_upstream(self, before: Mapping[str, Stage]) -> None:
        """ValueError if the caption is no text, or a measurement can't come or is another type."""
        kinds = dict.fromkeys(_MEASURED, NUMBER) | dict.fromkeys(_TEXTS, PLAIN_TEXTS)
        check_wires(self, before, {"caption": ONE_TEXT, **kinds})
        for name, place in self._wired().items():
            label, _, column = place.partition(".")
            if column in CLIP_SIGNALS.names and column not in before[label].table_schema.names:
                raise ValueError(f"{name} is {place}, which is there with {label}.signals: true")

    def frames_picked(self) -> tuple[FramePick, ...]:
        return (Uniform(self.frames_for_colors),) if self.frames_for_colors else ()

    @contextmanager
    def open(self, workspace: Workspace) -> Iterator[Transform]:
        yield self._transform

    def _transform(self, batch: pa.Table) -> pa.Table:
        rows = Rows(self)
        for row in batch.to_pylist():
            try:
                rows.keep(row["clip_id"], **self._columns(row))
            except RowFailed as failure:
                rows.record(row["clip_id"], failure)
        return rows.table()

    def _columns(self, row: Mapping[str, Any]) -> dict[str, Any]:
        caption = row["caption"]
        if not (caption or "").strip():
            raise RowFailed("model", "there is no caption to check")
        words = count_words(caption)
        colors = self._colors(colors_named(caption), row.get("frames"))
        named = {
            "text": names_text(caption),
            "speech": names_speech(caption),
            "stillness": names_stillness(caption),
        }
        camera = camera_named(caption)
        texts, unread = self._texts(caption, row)
        return {
            "caption_words": words,
            "caption_length_outlier": self._outlier(words),
            "caption_repetition": repetition(caption),
            "caption_colors": colors,
            "colors_unseen": None
            if colors is None
            else [one["color"] for one in colors if one["share"] < self.least_color_share],
            **{f"{name}_named": value for name, value in named.items()},
            "text_unseen": _contradicted(
                named["text"], row.get("text_area"), lambda area: area < self.least_text_area
            ),
            "speech_unheard": _contradicted(
                named["speech"], row.get("voice"), lambda voice: voice < self.least_voice
            ),
            "stillness_unseen": _contradicted(
                named["stillness"],
                row.get("motion"),
                lambda motion: motion > self.most_motion_of_still,
            ),
            "camera_named": camera,
            "camera_unseen": self._camera_unseen(camera, row),
            "texts_named": texts,
            "texts_unread": unread,
        }

    @staticmethod
    def _texts(caption: str, row: Mapping[str, Any]) -> tuple[list[str] | None, list[str] | None]:
        """The texts that are named, and those of them that were not read; None if none could be."""
        if row.get("text_read") is None:
            return None, None
        named = [*dict.fromkeys([*texts_named(caption), *_as_list(row.get("text_claimed"))])]
        return named, texts_missing(named, _as_list(row["text_read"]))

    def _outlier(self, words: int) -> float:
        if words < self.fewest_words:
            return math.log2(max(words, 0.5) / self.fewest_words)
        return math.log2(words / self.most_words) if words > self.most_words else 0.0

    def _colors(self, named: list[str], frames: Any) -> list[dict[str, Any]] | None:
        """The largest share of each named colour in any frame; None without frames."""
        if not frames:
            return None
        if not named:
            return []
        from clipmill.stages.media.read.basic_colors import color_shares

        shares = [color_shares(frame["jpeg"]) for frame in frames]
        return [{"color": name, "share": max(one[name] for one in shares)} for name in named]

    def _camera_unseen(self, named: list[str], row: Mapping[str, Any]) -> list[str] | None:
        """The named movements that a measurement contradicts; None if there is no measurement."""
        measured = {
            name: float(value)
            for name in ("camera_pan", "camera_tilt", "camera_zoom")
            if (value := row.get(name)) is not None and math.isfinite(value)
        }
        if not measured:
            return None
        unseen: list[str] = []
        for claim in named:
            if claim == "static":
                moved = max(map(abs, measured.values())) > self.least_camera_motion > 0
                unseen += [claim] if moved else []
                continue
            place, sign = _MOVES[claim]
            if place in measured and measured[place] * sign <= self.least_camera_motion:
                unseen.append(claim)
        return unseen


def _as_list(texts: str | list[str] | None) -> list[str]:
    found = [texts] if isinstance(texts, str) else texts or []
    return [text for text in found if text]


def _contradicted(named: bool, value: Any, against: Callable[[float], bool]) -> bool | None:
    """Whether a claim is made and a value speaks against it; None without a value."""
    if value is None or not math.isfinite(value):
        return None
    return named and against(float(value))


def count_words(text: str) -> int:
    """Words; two characters of a script without spaces count as one."""
    ideographs = len(_IDEOGRAPH.findall(text))
    spaced = sum(1 for word in _IDEOGRAPH.sub(" ", text).split() if any(map(str.isalnum, word)))
    return spaced + math.ceil(ideographs / 2)


def repetition(text: str) -> float:
    """The share of four-character pieces that occurred before, in any language: 0 is none."""
    plain = " ".join(text.casefold().split())
    pieces = [plain[i : i + _PIECE] for i in range(len(plain) - _PIECE + 1)]
    return 1 - len(set(pieces)) / len(pieces) if pieces else 0.0
