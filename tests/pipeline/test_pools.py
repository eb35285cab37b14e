"""Assigning steps to pools: never more than the machine has, and no deadlock."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipmill.pipeline.engine.pools import Machine, plan_legs
from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.schemas.errors import ClipmillError
from clipmill.stages.protocol import Stage


class Some(Stage):
    """A stage that does nothing, with given resources."""

    name = "some"
    writes = pa.schema([])


class Fetch(Some):
    """A stage over sources."""

    key = "source_key"


class Decode(Some):
    """A stage over videos."""

    key = "video_id"


class Served(Some):
    """A stage that waits for servers, of which more workers would be of no use."""

    @property
    def most_workers(self) -> int | None:
        return self.workers or 1


def step(label: str, cls=Some, **resources) -> PlannedStep:
    return PlannedStep.of(label, label, cls(**resources), "0" * 16, {})


def recipe(**model) -> tuple[PlannedStep, ...]:
    return (
        step("fetch", Fetch),
        step("decode", Decode),
        step("caption", **model),
        step("embed", **model),
    )


def shape(legs) -> list[list[tuple[str, int]]]:
    return [[("+".join(s.label for s in pool.steps), pool.workers) for pool in leg] for leg in legs]


def test_two_cores_get_a_pool_for_fetching_and_decoding_and_one_for_models():
    assert shape(plan_legs(recipe(), Machine(2, 0), 10)) == [
        [("fetch+decode", 1), ("caption+embed", 1)]
    ]


def test_one_core_runs_everything_in_one_process():
    assert shape(plan_legs(recipe(), Machine(1, 0), 10)) == [[("fetch+decode+caption+embed", 1)]]


def test_larger_machine_gets_more_workers_of_each():
    (leg,) = plan_legs(recipe(), Machine(12, 0), 100)
    assert [pool.workers for pool in leg] == [4, 4, 4]


def test_no_more_workers_than_shards():
    (leg,) = plan_legs(recipe(), Machine(12, 0), 2)
    assert [pool.workers for pool in leg] == [2, 2, 2]


def test_fixed_number_of_workers_is_kept():
    (leg,) = plan_legs(
        (step("fetch", Fetch, workers=2), step("decode", Decode)), Machine(8, 0), 100
    )
    assert shape([leg]) == [[("fetch", 2), ("decode", 6)]]


def test_models_that_fill_a_gpu_run_one_after_the_other():
    legs = plan_legs(recipe(gpus=1.0), Machine(8, 1), 10)
    assert [[pool.gpus for pool in leg] for leg in legs] == [[0, 0, 1.0], [1.0]]


def test_models_that_share_a_gpu_share_a_process():
    (leg,) = plan_legs(recipe(gpus=0.5), Machine(8, 1), 10)
    assert shape([leg])[0][-1] == ("caption+embed", 1)


def test_stage_that_cannot_fit_is_refused_with_the_setting_to_change():
    with pytest.raises(ClipmillError, match=r"caption asks for 1 gpus.*set caption\.gpus"):
        plan_legs(recipe(gpus=1.0), Machine(8, 0), 10)
    with pytest.raises(ClipmillError, match=r"set fetch\.cpus to at most 2"):
        plan_legs((step("fetch", Fetch, cpus=4),), Machine(2, 0), 10)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([Fetch, Decode, Some]),
            st.sampled_from([0.25, 0.5, 1.0, 2.0]),
            st.sampled_from([0.0, 0.25, 0.5, 1.0, 2.0]),
        ),
        min_size=1,
        max_size=8,
    ),
    st.integers(2, 64),
    st.integers(2, 8),
    st.integers(1, 50),
)
def test_every_leg_fits_the_machine_and_every_step_runs_once(stages, cpus, gpus, n_shards):
    steps = tuple(step(f"s{i}", cls, cpus=c, gpus=g) for i, (cls, c, g) in enumerate(stages))
    legs = plan_legs(steps, Machine(cpus, gpus), n_shards)
    assert [s for leg in legs for pool in leg for s in pool.steps] == list(steps)
    for leg in legs:
        assert sum(pool.workers * pool.cpus for pool in leg) <= cpus
        assert sum(pool.workers * pool.gpus for pool in leg) <= gpus
        assert all(1 <= pool.workers <= n_shards for pool in leg)


def test_stage_that_waits_for_servers_has_one_worker_unless_more_are_set():
    def pools(**settings):
        steps = (step("tag"), step("caption", Served, **settings), step("embed"))
        return shape(plan_legs(steps, Machine(12, 0), 100))

    assert pools() == [[("tag", 6), ("caption", 1), ("embed", 5)]]
    assert pools(workers=3)[0][1] == ("caption", 3)
    # In a process with others there are as many as those have use for.
    joined = (step("tag"), step("caption", Served))
    assert shape(plan_legs(joined, Machine(1, 0), 100)) == [[("tag+caption", 1)]]
