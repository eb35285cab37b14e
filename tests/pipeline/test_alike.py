"""A stage that only fails ends the run, and none of its rows is recorded as failed."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipmill.pipeline.engine.alike import Alike, AllRows
from clipmill.pipeline.status import status_report
from clipmill.pipeline.verify import verify
from clipmill.schemas.errors import ClipmillError

STAGES = Path(__file__).parent / "failing_stages.py"
SAY = (
    f"say_words.stage={STAGES}:SayWords",
    f"say_more_words.stage={STAGES}:SayMoreWords",
    "stop_after_alike_failures=6",
)
GO_ON = (*SAY[:2], "stop_after_alike_failures=0")


def outcomes(words, label: str = "say_words") -> list[str]:
    rows = words.table(label, *SAY)
    return sorted((row["error"] or {}).get("kind", "kept") for row in rows)


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_a_run_that_only_fails_stops_and_charges_nothing(words, engine):
    """With shards of two rows, so that several are kept back before it is clear."""
    world = words(*[f"{name}?say=broken" for name in "abcdefgh"], shard_videos=1)
    with pytest.raises(ClipmillError) as caught:
        world.run(*SAY, engine=engine)
    said = str(caught.value)
    assert "say_words: the first 6 rows all failed alike (model): RuntimeError: the model" in said
    assert "--set stop_after_alike_failures=0" in said
    assert world.shards("say_words", *SAY) == []
    assert world.shards("say_more_words", *SAY) == []
    assert len(world.shards("guess_words", *SAY)) >= (3 if engine == "local" else 0)
    assert world.records()[-1]["state"] == "failed"
    # When the cause is gone, or is the rows' own, a later run does them, as its first attempt.
    world.run(*GO_ON, engine="local")
    rows = world.table("say_words", *SAY)
    assert len(rows) == 16
    assert {row["error"]["attempts"] for row in rows} == {1}
    assert verify(world.dataset, media=False).faults == []


def test_failures_before_the_first_success_are_recorded_at_the_end(words, capsys):
    """Each row once, and in the counts once; its neighbours are not asked for again."""
    world = words("a?say=broken", "b?say=broken", "c", "d", shard_videos=1)
    world.run(*SAY)
    assert outcomes(world) == ["kept"] * 4 + ["model"] * 4
    assert outcomes(world, "say_more_words") == ["kept"] * 4
    assert "alike" not in capsys.readouterr().err
    [stage] = [s for s in status_report(world.dataset)["stages"] if s["stage"] == "say_words"]
    assert (stage["kept"], stage["failed"], stage["pending"]) == (4, 4, 0)
    assert verify(world.dataset, media=False).faults == []


def test_few_rows_that_all_fail_alike_are_named_at_the_end(words, capsys):
    world = words("a?say=broken", "b?say=broken", shard_videos=1)
    world.run(*SAY)
    assert outcomes(world) == ["model"] * 4
    assert (
        "say_words: all 4 rows failed alike: RuntimeError: the model can't say"
        in capsys.readouterr().err
    )


def test_rows_that_are_to_blame_themselves_stop_nothing(words):
    world = words(*[f"{name}?say=bad" for name in "abcdef"], shard_videos=2)
    world.run(*SAY)
    assert outcomes(world) == ["bad_media"] * 12


def test_failures_after_a_success_stop_nothing(words):
    world = words("a", *[f"{name}?say=broken" for name in "bcdef"], shard_videos=1)
    world.run(*SAY)
    assert outcomes(world) == ["kept"] * 2 + ["model"] * 10


def test_retried_rows_may_fail_alike_again(words):
    world = words("a", *[f"{name}?say=broken" for name in "bcdef"], shard_videos=8)
    world.run(*SAY)
    world.run(*SAY, retry_kinds=[])
    assert {row["error"]["attempts"] for row in world.table("say_words", *SAY)[12:]} == {2}


def test_a_refusing_server_ends_the_run_at_once(words):
    world = words("a", "b?say=refused", "c", shard_videos=1)
    with pytest.raises(ClipmillError) as caught:
        world.run(*SAY)
    assert str(caught.value) == (
        "say_words.model: http://127.0.0.1/v1 answered 401; the key is read from $KEY; set it to "
        "a key that the server accepts. No row is recorded as failed: run again to continue"
    )
    assert outcomes(world) == ["kept"] * 2
    # Each was asked for once: a refusal is not tried row by row.
    assert (world.dataset / "calls.txt").read_text().split() == ["2", "2"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("caption at 1.25 s: the text is empty", "caption at 31.5 s: the text is empty"),
        ("cannot open /data/a b/x.jpg", "cannot open /data/a b/y9.jpg"),
        ("RuntimeError: size of 'a dog runs'", "RuntimeError: size of 'it is a cat'"),
        ("http://127.0.0.1:8000/v1 answered 500: oops", "http://127.0.0.1:9/v1 answered 500: oops"),
    ],
)
def test_failures_that_differ_in_what_they_name_are_alike(one, other):
    assert Alike.of("model", one) == Alike.of("model", other)
    assert Alike.of("model", one) != Alike.of("transient", one)
    assert Alike.of("model", one) != Alike.of("model", "something else")


def test_workers_failures_are_counted_together():
    """No worker sees enough of them; a success of any of them clears the stage."""
    one, rows = Alike.of("model", "broken"), AllRows(6)
    assert not rows.add("say", {one: 4})
    assert rows.add("say", {one: 2})
    assert "say: the first 6 rows all failed alike" in str(rows.problem())
    assert not rows.add("say", {"kept": 1})
    assert rows.problem() is None
