"""Attempts, pauses between them, and what ends them."""

from __future__ import annotations

import pytest

from clipmill.schemas.retries import Backoff, retried


class Server:
    """Fails as long as there are `errors`; the pauses that it was given are noted."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.pauses: list[float] = []
        self.asked = 0

    def answer(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def test_pauses_double_up_to_the_longest():
    server = Server(*[TimeoutError()] * 4)
    backoff = Backoff(retries=4, first_seconds=1.0, longest_seconds=3.0)
    assert retried(server.answer, backoff, TimeoutError, sleep=server.pauses.append) == "answer"
    assert server.pauses == [1.0, 2.0, 3.0, 3.0]


def test_a_spread_pause_stays_near():
    backoff = Backoff(retries=1, first_seconds=1.0, longest_seconds=9.0, spread=0.25)
    pauses = {backoff.pause_seconds(1) for _ in range(20)}
    assert len(pauses) > 1
    assert all(1.5 <= pause <= 2.5 for pause in pauses)


def test_the_last_error_is_raised_without_a_pause():
    server = Server(TimeoutError("first"), TimeoutError("second"), TimeoutError("never"))
    with pytest.raises(TimeoutError, match="second"):
        retried(server.answer, Backoff(1, 1.0, 1.0), TimeoutError, sleep=server.pauses.append)
    assert (server.asked, len(server.pauses)) == (2, 1)


@pytest.mark.parametrize("error", [KeyError(), TimeoutError("for good")])
def test_what_cannot_pass_is_not_tried_again(error):
    server = Server(error)
    with pytest.raises(type(error)):
        retried(
            server.answer,
            Backoff(5, 1.0, 1.0),
            TimeoutError,
            may_pass=lambda error: "for good" not in str(error),
            sleep=server.pauses.append,
        )
    assert server.asked == 1


def test_a_pause_is_what_was_asked_for():
    server = Server(TimeoutError())
    retried(
        server.answer,
        Backoff(1, 1.0, 1.0),
        TimeoutError,
        sleep=server.pauses.append,
        pause_of=lambda error, seconds, is_last: seconds + 10,
    )
    assert server.pauses == [11.0]
