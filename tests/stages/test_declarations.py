"""A stage declares the columns and frames that it reads: for all settings, or in a method."""

from typing import ClassVar

import pyarrow as pa

from clipmill.stages.protocol import Middle, Stage, Uniform


class CountWords(Stage):
    name: ClassVar[str] = "count_words"
    reads: ClassVar[tuple[str, ...]] = ("caption_frames.caption_coarse",)
    frames: ClassVar[tuple[Middle, ...]] = (Middle(),)
    writes: ClassVar[pa.Schema] = pa.schema([("words", pa.int64())])


class CountSome(CountWords):
    column: str = "caption_coarse"
    frames_per_clip: int = 2

    def columns_read(self) -> tuple[str, ...]:
        return (f"caption_frames.{self.column}",)

    def frames_picked(self) -> tuple[Uniform, ...]:
        return (Uniform(self.frames_per_clip),)


class CountByProperty(CountWords):
    """Like stages written before there were methods to override."""

    column: str = "caption_coarse"

    @property
    def reads(self) -> tuple[str, ...]:
        return (f"summarize_captions.{self.column}",)


def test_class_variables_apply_to_all_settings():
    assert CountWords().columns_read() == ("caption_frames.caption_coarse",)
    assert CountWords().frames_picked() == (Middle(),)


def test_methods_can_depend_on_settings():
    stage = CountSome(column="captions_fine", frames_per_clip=3)
    assert stage.columns_read() == ("caption_frames.captions_fine",)
    assert stage.frames_picked() == (Uniform(3),)


def test_property_still_works():
    assert CountByProperty(column="caption").columns_read() == ("summarize_captions.caption",)


class CountByKind(CountWords):
    kinds: tuple[str, ...] = ()

    def columns_written(self) -> pa.Schema:
        return pa.schema([*self.writes, *((kind, pa.int64()) for kind in self.kinds)])


def test_columns_may_depend_on_settings():
    assert CountWords().table_schema.names == ["clip_id", "words", "rejection", "error"]
    assert CountByKind(kinds=("verbs",)).table_schema.names[:3] == ["clip_id", "words", "verbs"]
