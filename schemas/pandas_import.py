"""Keeps pyarrow from importing pandas only to learn that a list is no Series.

pyarrow does so once in a process, at the first array made of Python objects, where pandas is
installed. That takes longer than all else that a command imports for this.
"""

from __future__ import annotations

import contextlib
import sys

import pyarrow as pa

_spared = False


class _WithoutPandas:
    """A finder through which pandas seems not to be installed."""

    @staticmethod
    def find_spec(name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError(name)


def spare_pandas() -> None:
    """For a command's process, in which nothing of pandas is given to pyarrow.

    `to_pandas` works as ever.
    """
    global _spared
    if "pandas" in sys.modules:
        return
    sys.meta_path.insert(0, _WithoutPandas)
    try:
        pa.array([None])
    finally:
        sys.meta_path.remove(_WithoutPandas)
    _spared = True


def allow_pandas() -> None:
    """Undoes that, before code that may pass pandas objects to pyarrow."""
    global _spared
    if _spared:
        _spared = False
        with contextlib.suppress(ImportError):
            pa.array([None]).to_pandas()
