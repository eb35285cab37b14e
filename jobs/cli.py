"""The `clipmill` command. Thin on purpose; heavy imports wait until a command needs them."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from typing import Annotated

import typer

from clipmill.jobs.commands import auditing, choosing, helping, keeping, looking, making
from clipmill.jobs.help_pages import Commands

app = Commands(
    name="clipmill",
    help="Turns video sources into a queryable video–text dataset.",
    no_args_is_help=True,
    epilog="\b\nFirst steps:\n  clipmill demo\n  clipmill run timestamps-only --sources videos/\n"
    "  clipmill run --help",
)
for commands in (helping, making, looking, choosing, auditing, keeping):
    app.add_typer(commands.app)


def _print_version(asked: bool) -> None:
    if asked:
        from clipmill.pipeline.dataset.versions import code_version

        print(f"clipmill {code_version()}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool,
        typer.Option("--version", help="print the version", is_eager=True, callback=_print_version),
    ] = False,
    debug: Annotated[
        bool,
        typer.Option(
            "--debug", help="show tracebacks of errors; may stand anywhere in the command"
        ),
    ] = False,
) -> None:
    pass  # main() handles it, wherever it stands


def _refuse_empty(arguments: list[str]) -> None:
    """UsageError for an empty argument: as a path it would mean the working folder."""
    from clipmill.schemas.errors import UsageError

    for before, word in zip(["clipmill", *arguments], arguments, strict=False):
        name = before if not word else word[:-1] if re.fullmatch(r"--[\w-]+=", word) else None
        if name is not None:
            raise UsageError(f"what follows {name} is empty; is a variable not set?")


def main() -> None:
    """Runs the command; errors are one message on standard error and an exit status."""
    from clipmill.jobs.encoding import speak_utf_8
    from clipmill.pipeline.engine.interrupts import (
        ended_by_signals,
        interruption_behind,
        leave_at_once,
    )
    from clipmill.schemas.errors import ClipmillError, printable
    from clipmill.schemas.extras import missing_extra
    from clipmill.schemas.storage import full_storage

    speak_utf_8(main)
    arguments = [word for word in sys.argv[1:] if word != "--debug"]
    debug = len(arguments) < len(sys.argv) - 1
    try:
        with ended_by_signals():
            try:
                _refuse_empty(arguments)
                app(arguments)
            except OSError as error:
                if (full := full_storage(error, None)) is None:
                    raise
                raise full from error
    except ClipmillError as error:
        if debug:
            raise
        print(f"Error: {printable(str(error))}", file=sys.stderr)
        if error.leaves_threads:
            leave_at_once(error.exit_status)
        sys.exit(error.exit_status)
    except ModuleNotFoundError as error:
        said = missing_extra(error)
        if debug or said is None:
            raise
        print(f"Error: {said}", file=sys.stderr)
        sys.exit(1)
    except BrokenPipeError:
        # The reader of a pipe has exited (`| head`): not an error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except BaseException as leaving:
        stopped = interruption_behind(leaving)
        if stopped is None:
            if debug or not isinstance(leaving, OSError) or leaving.filename is None:
                raise
            where = printable(str(leaving.filename))
            print(f"Error: {where}: {leaving.strerror} (--debug shows more)", file=sys.stderr)
            sys.exit(1)
        with contextlib.suppress(OSError):  # the terminal may be closed
            print(
                "Stopped. What is committed stays; run the same command to continue.",
                file=sys.stderr,
                flush=True,
            )
        leave_at_once(128 + stopped)


if __name__ == "__main__":
    main()
