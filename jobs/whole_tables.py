"""Prints tables of figures: a truncated number is worse than a line that the terminal wraps."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_whole(console: Console, table: Table) -> None:
    """Prints a table in its full width."""
    # Measured in the console's own width, a table is never too wide.
    unlimited = console.options.update(width=1_000_000)
    width = console.width
    console.width = max(width, console.measure(table, options=unlimited).maximum)
    console.print(table)
    console.width = width
