"""Names of all failures and rejections of rows, and errors of commands."""

from __future__ import annotations

from typing import Any, Literal, get_args

ErrorKind = Literal["permanent", "transient", "blocked", "bad_media", "model", "crash"]
"""The closed list of failure kinds.

permanent: private, deleted, geo-blocked, 404 · transient: 429, 5xx, timeout, reset · blocked: bot
check, cookies needed, robots · bad_media: not a video, truncated, undecodable · model: out of
memory, empty or repetitive output · crash: killed its worker or ran out of time.
"""

ERROR_KINDS: tuple[str, ...] = get_args(ErrorKind)

MAX_MESSAGE_CHARACTERS = 2000


def storable(text: str) -> str:
    """The text with escapes for what no table can store (half a surrogate pair)."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def printable(text: str) -> str:
    """The text with spaces for characters that could control a terminal; lines and tabs stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


class RowFailed(Exception):
    """One row could not be processed; the runner writes it as a failure row of this kind."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        if kind not in ERROR_KINDS:
            raise ValueError(f"unknown error kind {kind!r}; allowed: {', '.join(ERROR_KINDS)}")
        self.kind: ErrorKind = kind
        self.message = storable(message)
        super().__init__(self.message)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.message)


class ServerRefused(RowFailed):
    """A server refuses a model's requests whatever they ask: no other row would fare better.

    The key is wrong (`status` 401, 403), its account has no credit (402), or there is no such model
    or address (404, a redirect). `setting` names the model, as `<stage>.<setting>`.
    """

    def __init__(self, kind: ErrorKind, message: str, status: int, setting: str) -> None:
        super().__init__(kind, message)
        self.status = status
        self.setting = setting

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.kind, self.message, self.status, self.setting)


class RowRejected(Exception):
    """A rule rejected this row; `rule` is `<stage>.<setting>`, as the user would set it."""

    def __init__(self, rule: str, detail: str) -> None:
        self.rule = rule
        self.detail = storable(detail)
        super().__init__(f"{rule}: {self.detail}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rule, self.detail)


class ClipmillError(Exception):
    """The command cannot be completed (exit status 1). The message is shown unchanged.

    `leaves_threads`: parts of the process may still be running and must not be waited for.
    """

    exit_status = 1
    leaves_threads = False


class UsageError(ClipmillError):
    """Wrong use: a bad flag, recipe or query, or a missing input (exit status 2)."""

    exit_status = 2
