"""Writes docs/reference/ from the code: stages, tables and views, the command line.

`python -m clipmill.jobs.reference` writes the pages; a test fails where they are stale.
"""

from __future__ import annotations

import enum
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import annotated_types
import pyarrow as pa
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from clipmill.jobs.help_pages import default_shown, limits_shown, shown
from clipmill.pipeline.catalog import views
from clipmill.pipeline.ingest.source_spec import SourceSpec
from clipmill.pipeline.recipes.recipe import RaySettings, Recipe
from clipmill.pipeline.recipes.stage_classes import built_in_stage_names, stage_class
from clipmill.schemas import tables
from clipmill.schemas.errors import ERROR_KINDS
from clipmill.schemas.sql_text import duckdb_type
from clipmill.schemas.step_tables import STAGE_TABLES
from clipmill.stages.protocol import Middle, PerSecond, Stage, Uniform

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"
_MADE = ("<!-- Made by `python -m clipmill.jobs.reference` (`make docs`) from the code. "
         "Don't edit. -->\n")


def _cell(text: object) -> str:
    return " ".join(str(text).split()).replace("|", "\\|")


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    names = list(head)
    lines = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _type_words(kind: Any) -> str:
    """A setting's type as a user would say it."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is typing.Annotated:
        return _type_words(inner[0])
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (Union, types.UnionType):
        some = [_type_words(item) for item in inner if item is not type(None)]
        return " or ".join(dict.fromkeys(some))
    if origin in (list, tuple):
        items = [item for item in inner if item is not Ellipsis]
        words = dict.fromkeys(_type_words(item) for item in items)
        count = f"{len(items)} × " if origin is tuple and Ellipsis not in inner else "list of "
        return count + " or ".join(words)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return "mapping"
    names = {bool: "true or false", int: "whole number", float: "number", str: "text",
             Any: "anything", Path: "path"}
    if kind in names:
        return names[kind]
    plain = {"ModelReference": "model reference", "DataFile": "file", "SourceSpec": "entries"}
    name: str = kind.__name__
    return plain.get(name, name)


def _limits(info: FieldInfo) -> str:
    signs = ((annotated_types.Ge, "ge", "≥"), (annotated_types.Gt, "gt", ">"),
             (annotated_types.Le, "le", "≤"), (annotated_types.Lt, "lt", "<"))
    found = [f"{sign} {getattr(limit, name)}" for limit in info.metadata
             for kind, name, sign in signs if isinstance(limit, kind)]
    return ", ".join(found)


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    value = info.get_default(call_default_factory=True)
    if value is None or value is PydanticUndefined:
        return "not set"
    if isinstance(value, bool):
        return "`true`" if value else "`false`"
    if isinstance(value, enum.Enum):
        return f"`{value.value}`"
    if hasattr(value, "model_dump") and not getattr(type(value), "__str__", None):
        return "see below"
    if isinstance(value, str) and (len(value) > 60 or "\n" in value):
        return "see below"
    if value in ("", [], (), {}):
        return "none"
    return f"`{value}`"


def _settings(fields: Mapping[str, FieldInfo]) -> str:
    rows = []
    for name, info in fields.items():
        limits = _limits(info)
        kind = _type_words(info.annotation)
        rows.append((f"`{name}`", f"{kind}, {limits}" if limits else kind, _default(info),
                     info.description or ""))
    page = _table(("setting", "type", "default", "what it is"), rows)
    for name, info in fields.items():
        if not info.is_required() and _default(info) == "see below":
            page += f"\nDefault of `{name}`:\n\n```text\n{info.get_default()}\n```\n"
    return page


def _schema(schema: pa.Schema) -> str:
    return _table(
        ("column", "type"), ((f"`{field.name}`", f"`{_sql(field.type)}`") for field in schema)
    )


def _sql(kind: pa.DataType) -> str:
    return duckdb_type(kind).replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ").replace(
        '"', "")


def _ordered_stages() -> list[type[Stage]]:
    known = list(STAGE_TABLES)
    names = sorted(built_in_stage_names(),
                   key=lambda name: known.index(name) if name in known else len(known))
    return [stage_class(name, Path()) for name in names]


def stages_page() -> str:
    common = {name: Stage.model_fields[name] for name in Stage.model_fields}
    parts = [
        _MADE,
        "# Stages and their settings\n",
        "How a stage works is told in [stages.md](../stages.md). In a recipe a setting stands "
        "under its stage; on the command line it is `--set stage.setting=value`. A setting marked "
        "◦ changes speed or place and not the result, so changing it does nothing again.\n",
        "## The recipe itself\n",
        _settings({n: i for n, i in Recipe.model_fields.items() if n != "ray"}),
        "### `sources`\n",
        "Each entry is one of these, or a bare text that is a path or a URL.\n",
        _settings(SourceSpec.model_fields),
        "### `ray`\n",
        _settings(RaySettings.model_fields),
        "## Settings of every stage\n",
        _settings(_marked(common)),
    ]
    for cls in _ordered_stages():
        parts += [f"## `{cls.name}`\n", *_stage_parts(cls, common)]
    return "\n".join(parts)


def _marked(fields: Mapping[str, FieldInfo]) -> dict[str, FieldInfo]:
    """Settings with ◦ before the description of those that do not change the result."""
    found = {}
    for name, info in fields.items():
        extra = info.json_schema_extra
        if isinstance(extra, dict) and extra.get("resource"):
            shown = FieldInfo.merge_field_infos(info, description=f"◦ {info.description or ''}")
            found[name] = shown
        else:
            found[name] = info
    return found


def _stage_parts(cls: type[Stage], common: Mapping[str, FieldInfo]) -> Iterable[str]:
    doc = (cls.__doc__ or "").strip()
    if doc and not doc.startswith((Stage.__doc__ or "").strip()[:20]):
        yield "\n".join(line.strip() for line in doc.splitlines()) + "\n"
    if cls.name == "scan_videos":
        yield "An inner step of `split_clips`: its settings come from there.\n"
    # What a stage reads may hang on its settings: these are the reads of the defaults.
    stage = cls.model_construct()
    reads = ", ".join(f"`{read}`" for read in stage.columns_read()) or "nothing but its key"
    yield f"- key: `{cls.key}`, version {cls.version}\n- reads: {reads}"
    if stage.frames_picked():
        yield f"- frames of each clip: {', '.join(map(_pick, stage.frames_picked()))}"
    if cls.score:
        yield f"- score: `{cls.score}`"
    yield (f"- a failure that names no kind is `{cls.error_kind}`"
           + ("; rows run one by one, journalled\n" if cls.fragile else "\n"))
    own = {}
    for name, info in cls.model_fields.items():
        inherited = common.get(name)
        if inherited is None or info.default != inherited.default:
            own[name] = info
    if own and cls.name != "scan_videos":
        yield _settings(_marked(own))
    further = ", ".join(f"`{name}`" for name in cls.more_tables)
    yield f"Writes the table `{cls.name}`" + (f", and beside it {further}.\n" if further else ".\n")


def _pick(pick: object) -> str:
    if isinstance(pick, Middle):
        return "the middle one"
    if isinstance(pick, Uniform):
        return f"{pick.count} evenly spaced"
    assert isinstance(pick, PerSecond)  # the three kinds of picks that there are
    return f"{pick.rate:g} a second, at least {pick.at_least}"


def tables_page() -> str:
    parts = [
        _MADE,
        "# Tables and views\n",
        "Types are DuckDB's. Half floats on disk are read as `FLOAT`.\n",
        "## Views\n",
        "What `clipmill sql` offers, over what the newest run's recipe makes. Columns may be added "
        "behind these, never taken away. `at` is a keyword of SQL and is written `\"at\"`. "
        "`steps.<step>` shows every row of a step's table, with its outcome and its shard.\n",
    ]
    for name, columns in views.VIEWS.items():
        parts += [f"### `{name}`\n"]
        if name == "clips":
            parts += ["Before `url` stand a column for every further scorer, named by its label, "
                      "and the columns of stages of your own.\n"]
        parts += [_schema(pa.schema(list(columns)))]
    parts += [
        "## Tables on disk\n",
        "Parquet, `<label>/<fingerprint>/<shard>.parquet`; see "
        "[ADR 2](../adr/0002-a-folder-names-the-work.md). A row is kept when `rejection` and "
        f"`error` are null. Kinds of errors: {', '.join(f'`{kind}`' for kind in ERROR_KINDS)}.\n",
        "### `sources`\n",
        _schema(tables.SOURCES),
    ]
    for name, schema in STAGE_TABLES.items():
        parts += [f"### `{name}`\n", _schema(schema)]
        if name == "scan_videos":
            parts += ["### `frames`\n", _schema(tables.FRAMES)]
        if name == "split_clips":
            parts += ["### `shots`\n", _schema(tables.SHOTS)]
    return "\n".join(parts)


def cli_page() -> str:
    from typer.main import get_command

    from clipmill.jobs.cli import app

    parts = [
        _MADE,
        "# The command line\n",
        "Exit status: `0` done (failed rows are reported, not fatal), `1` could not be completed, "
        "`2` wrong use. Results go to standard output, all else to standard error. `--debug` shows "
        "tracebacks.\n",
    ]
    parts += _command_parts("clipmill", get_command(app))
    return "\n".join(parts)


def _command_parts(name: str, command: Any) -> list[str]:
    inner = getattr(command, "commands", None)
    if inner:
        return [part for word, each in inner.items() for part in _command_parts(f"{name} {word}",
                                                                                each)]
    given = [param for param in command.params if param.param_type_name == "argument"]
    options = [param for param in command.params if param.param_type_name == "option"]
    usage = " ".join([name, *(shown(param) for param in given), *(["[OPTIONS]"] if options else [])
                      ])
    parts = [f"## `{name}`\n", f"{(command.help or '').strip()}\n", f"```text\n{usage}\n```\n"]
    rows = [(f"`{shown(param)}`", _what_it_is(param), _option_default(param))
            for param in [*given, *options]]
    if rows:
        parts.append(_table(("argument or option", "what it is", "default"), rows))
    return parts


def _what_it_is(param: Any) -> str:
    limits = limits_shown(param)
    return f"{param.help or ''} ({limits})" if limits else param.help or ""


def _option_default(param: Any) -> str:
    default = default_shown(param)
    return "required" if param.required else f"`{default}`" if default else ""


PAGES: dict[str, Callable[[], str]] = {
    "stages.md": stages_page,
    "tables.md": tables_page,
    "cli.md": cli_page,
}


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, page in PAGES.items():
        (FOLDER / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
