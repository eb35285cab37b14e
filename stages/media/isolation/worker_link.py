"""Lets a function in a helper process ask its worker, which alone knows the answers."""

from __future__ import annotations

import threading
from typing import Any, Protocol


class Link(Protocol):
    """A call's connection to the worker."""

    def ask(self, question: str, *args: Any) -> Any: ...

    def report_alive(self) -> None: ...

    def end_with(self, error: Exception) -> None: ...


_link: Link | None = None
_lock = threading.Lock()


def ask(question: str, *args: Any) -> Any:
    """The worker's answer to a question; raises the exception that the worker met.

    Threads ask one after the other.
    """
    with _lock:
        if _link is None:
            raise RuntimeError("the call that this thread belongs to has ended")
        return _link.ask(question, *args)


def report_alive() -> None:
    """Tells the worker that this process runs, though nothing may have come forward."""
    if _link is not None:
        _link.report_alive()


def end_with(error: Exception) -> None:
    """Ends this process with `error` as the outcome of its call, whatever its threads do."""
    if _link is not None:
        _link.end_with(error)


def connect(link: Link | None) -> None:
    """Sets the link of the call that begins; None when it ends, once no thread is asking."""
    global _link
    with _lock:
        _link = link
