"""Formats `--help`: readable at 80 columns, with commands in groups."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import typer
from typer import BadParameter, TyperException
from typer.core import TyperCommand, TyperGroup

from clipmill.schemas.words import nearest


class Commands(typer.Typer):
    """Commands under one heading of `clipmill --help`."""

    def __init__(self, heading: str | None = None, **details: Any) -> None:
        super().__init__(
            cls=CommandGroup, rich_markup_mode=None, pretty_exceptions_enable=False, **details
        )
        self._heading = heading

    def command(self, name: str | None = None, **details: Any) -> Callable[..., Any]:
        return super().command(name, cls=Command, rich_help_panel=self._heading, **details)

    def add_group(self, name: str, group: typer.Typer) -> None:
        self.add_typer(group, name=name, rich_help_panel=self._heading)


class _Page:
    """Formatting shared by commands and groups of commands."""

    get_params: Callable[[Any], list[Any]]
    options_metavar: str | None

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        given = [
            shown(param) for param in self.get_params(ctx) if param.param_type_name == "argument"
        ]
        return [*given, self.options_metavar] if self.options_metavar else given

    def format_options(self, ctx: Any, formatter: Any) -> None:
        for kind, title in (("argument", "Arguments"), ("option", "Options")):
            rows = [
                (shown(param, both=True), _explained(param))
                for param in self.get_params(ctx)
                if param.param_type_name == kind and not getattr(param, "hidden", False)
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Command(_Page, TyperCommand):
    """One command."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, list(args))
        except BadParameter as error:
            error.message = _said_plainly(error)
            raise
        except TyperException as error:
            if error.message.startswith("Got unexpected extra argument"):
                error.message += self._about_quotes(args) or self._about_sources()
            raise

    def _about_quotes(self, args: list[str]) -> str:
        """A hint for unquoted text: the shell splits it into words, and expands `*`."""
        last = [param for param in self.params if param.param_type_name == "argument"][-1:]
        if (last and last[0].name in ("query", "where")) or "--where" in args:
            return '; put the SQL in quotes, e.g. "SELECT count(*) FROM clips"'
        return ""

    def _about_sources(self) -> str:
        if not any("--sources" in param.opts for param in self.params):
            return ""
        return (
            "; name each file, folder or list after a --sources of its own, and put globs in "
            "quotes: --sources 'films/*.mp4'"
        )


def _said_plainly(error: BadParameter) -> str:
    """The message without pydantic's prefix, with a suggested value if there is one."""
    message = error.message.removeprefix("Value error, ")
    if given := re.match(r"'(.*)' is not one of", message):
        near = nearest(given[1], _choices(error.param))
        said = f"; did you mean {near}?" if near else ""
        return f"{message.rstrip('.')}{said}"
    return message


class CommandGroup(_Page, TyperGroup):
    """Several commands; each description is shown in full, under the heading of its group."""

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        return [*super().collect_usage_pieces(ctx), self.subcommand_metavar]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        # The commands first: users look for them.
        under: dict[str, list[tuple[str, str]]] = {}
        longest = max(map(len, self.commands), default=0)
        for name, command in self.commands.items():
            heading = getattr(command, "rich_help_panel", None) or "Commands"
            about = (command.help or "").strip().split("\n\n")[0]
            under.setdefault(heading, []).append((name.ljust(longest), about))
        for heading, rows in under.items():
            with formatter.section(heading):
                formatter.write_dl(rows)
        super().format_options(ctx, formatter)


def shown(param: Any, *, both: bool = False) -> str:
    """A parameter as typed: `NAME`, `--flag`, `--option VALUE`, or both names of a switch."""
    if param.param_type_name == "argument":
        word = param.metavar or param.name.upper()
        return word if param.required or word.startswith("[") else f"[{word}]"
    name = max(param.opts, key=len)
    if param.is_flag:
        return " / ".join([name, *param.secondary_opts]) if both else name
    if (choices := _choices(param)) and not param.metavar:
        return f"{name} {'|'.join(choices)}"
    words = {Path: "PATH", int: "NUMBER", float: "NUMBER"}
    return f"{name} {param.metavar or words.get(param.type_descriptor.annotation, 'TEXT')}"


def _choices(param: Any) -> tuple[str, ...]:
    """The words that a parameter allows; empty if it takes any."""
    kind = getattr(getattr(param, "type_descriptor", None), "annotation", None)
    return get_args(kind) if get_origin(kind) is Literal else ()


def default_shown(param: Any) -> str:
    """A parameter's default as typed; empty if the flag already implies it."""
    value = param.default
    if value is None or value is False or callable(value) or value == []:
        return ""
    if param.param_type_name == "option" and param.is_flag:
        return str(max(param.opts, key=len))
    return str(value)


def limits_shown(param: Any) -> str:
    """The allowed range of a number, in words; empty if any number is allowed."""
    least, most = getattr(param, "min", None), getattr(param, "max", None)
    if least is not None and most is not None:
        return f"{least} to {most}"
    if least is not None:
        return f"at least {least}" if least else ""
    return "" if most is None else f"at most {most}"


def _explained(param: Any) -> str:
    default = default_shown(param)
    more = [
        "required" if param.required and param.param_type_name == "option" else "",
        limits_shown(param),
        f"default: {default}" if default else "",
    ]
    noted = "; ".join(filter(None, more))
    text = param.help or ""
    if text.startswith("Show this message"):  # typer's text for its own option, in our style
        text = "show this page"
    return f"{text} [{noted}]" if noted else text
