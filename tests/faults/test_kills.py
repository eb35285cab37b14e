"""Runs that are killed, or lose their disk, at random moments have the same tables in the end.

Each seed is a plan (kill_harness.py). For a single one: `pytest tests/faults -m faults -k seed7-`.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.kill_harness import Case, Harm, Plan, busy_plan_of, gated_plan_of, note, plan_of
from tests.faults.kill_world import World
from tests.http_server import serve

# For other seeds: CLIPMILL_FAULT_SEEDS=34:64, a half-open range.
SEEDS = range(*map(int, os.environ.get("CLIPMILL_FAULT_SEEDS", "0:34").split(":")))
CHEAP = {
    "driver": Plan("local", False, (Harm("driver", 2, 0.1),), pace_seconds=0.1),
    "worker": Plan("ray", False, (Harm("worker", 2, 0.1),), pace_seconds=0.1),
    "calls": Plan("local", False, (Harm("driver", 6, 0.1),), pace_seconds=0.1, calls=4),
    "full": Plan("local", False, (Harm("full", 3, 0.0),), pace_seconds=0.1),
    "gates": Plan(
        "local", False, (Harm("driver", 8, 0.1), Harm("driver", 1, 0.0)), 0.1, gated=True
    ),
}


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with serve() as site:
        world = World(tmp_path_factory.mktemp("kills"), site)
        world.make_films()
        yield world


def carry_out(name: str, plan: Plan, world: World, folder: Path, seed: int = 0) -> None:
    world.right(plan.captions, plan.gated)
    began, ended = time.monotonic(), "not equal"
    case = Case(plan, world, folder, seed)
    try:
        case.carry_out()
        ended = "equal"
    finally:
        note(name, plan, case.told, time.monotonic() - began, ended)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHEAP)
def test_one_fault_leaves_no_trace(name, world, tmp_path):
    carry_out(name, CHEAP[name], world, tmp_path)


@pytest.mark.faults
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [pytest.param(n, id=f"seed{n}-") for n in SEEDS])
def test_faults_at_random_moments_leave_no_trace(seed, world, tmp_path):
    carry_out(f"seed{seed}", plan_of(seed), world, tmp_path, seed)


@pytest.mark.faults
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [pytest.param(n, id=f"gates{n}-") for n in range(10)])
def test_faults_while_gates_change_leave_no_trace(seed, world, tmp_path):
    carry_out(f"gates{seed}", gated_plan_of(seed), world, tmp_path, seed)


@pytest.mark.faults
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", [pytest.param(n, id=f"calls{n}-") for n in range(10)])
def test_faults_while_several_calls_are_in_flight_leave_no_trace(seed, world, tmp_path):
    carry_out(f"calls{seed}", busy_plan_of(seed), world, tmp_path, seed)
