"""Distinguishes a run that can't continue from a slow one, by what a cluster reports.

Independent of Ray: the engine reports which nodes exist, and which workers say that they are
alive. A slow stage is not a hang, nor is a model that takes minutes to load: a run can't continue
if no worker is there to do the work and none can start.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from clipmill.pipeline.engine.activity import Beat
from clipmill.pipeline.engine.pools import Pool
from clipmill.pipeline.engine.standstill import SILENT_SECONDS
from clipmill.pipeline.recipes.plan import PlannedStep
from clipmill.schemas.words import counted

BEAT_SECONDS = 2.0
"""How often a worker reports that it is alive."""
STARVED_SECONDS = 20.0
"""A pool without a worker, and without room for one, for this long ends the run."""
UNANSWERED_SECONDS = 30.0
"""A cluster that doesn't answer for this long is lost. Ray itself ends the process at 60 s."""
STARTS_ALLOWED = 8
"""How many workers of one pool may start without a shard being done."""


@dataclass(frozen=True)
class Node:
    """A living node, and its total resources."""

    id: str
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Tasks:
    """Work without dedicated workers, which needs room for one task; it represents a pool."""

    cpus: float
    gpus: float = 0.0
    workers: int = 0
    names: str = "this command"
    steps: tuple[PlannedStep, ...] = ()


@dataclass
class Watchdog:
    """State of one phase's workers, or of tasks; times are monotonic seconds."""

    leg: Sequence[Pool | Tasks]
    rows_a_shard: int
    began: float
    _nodes: dict[str, Node] = field(default_factory=dict)
    _lost: set[str] = field(default_factory=set)
    _answered: float = field(init=False)
    _beats: dict[str, Beat] = field(default_factory=dict)
    _heard: dict[str, float] = field(default_factory=dict)
    _starts: Counter[int] = field(default_factory=Counter)
    _starved_since: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._answered = self.began

    def saw_nodes(self, alive: Iterable[Node], now: float) -> None:
        """Records that the cluster answered."""
        self._answered = now
        found = {node.id: node for node in alive}
        self._lost |= self._nodes.keys() - found.keys()
        self._nodes = found

    def heard(self, beats: Mapping[str, Beat], now: float) -> None:
        """Records the latest report of each worker that reported since the last call."""
        for worker, beat in beats.items():
            before = self._beats.get(worker)
            if before is None:
                self._starts[beat.pool] += 1
            if beat.done > (before.done if before else 0):
                self._starts[beat.pool] = 0
            self._beats[worker] = beat
            self._heard[worker] = now

    def ended(self, pool: int) -> None:
        """Records that a worker was killed because it hung; its replacement doesn't count as a
        restart."""
        self._starts[pool] -= 1

    def is_unanswered(self, now: float) -> bool:
        return now - self._answered > UNANSWERED_SECONDS

    def problem(self, now: float) -> str | None:
        """Why the run can't continue; None if it can, as far as is known."""
        if self.is_unanswered(now):
            return (
                f"the Ray cluster has not answered for {now - self._answered:.0f} s: its head "
                "is gone or unreachable; restart it, then run again"
            )
        for number, pool in enumerate(self.leg):
            allowed = (
                pool.workers
                + STARTS_ALLOWED
                + (2 * self.rows_a_shard if any(step.stage.fragile for step in pool.steps) else 0)
            )
            if self._starts[number] > allowed:
                return (
                    f"workers of {pool.names} die again and again: {self._starts[number]} "
                    "have started since one last finished a shard; see the run's log for what "
                    "they did last, and the system's log for lack of memory"
                )
        return self._starved(now)

    def _starved(self, now: float) -> str | None:
        if not self._nodes:
            return None
        live = [
            beat
            for worker, beat in self._beats.items()
            if now - self._heard[worker] <= SILENT_SECONDS and beat.node in self._nodes
        ]
        free = {node.id: [node.cpus, node.gpus] for node in self._nodes.values()}
        for beat in live:
            free[beat.node][0] -= self.leg[beat.pool].cpus
            free[beat.node][1] -= self.leg[beat.pool].gpus
        have_workers = {beat.pool for beat in live}
        for number, pool in enumerate(self.leg):
            if number in have_workers or _fits(pool, list(free.values())):
                self._starved_since.pop(number, None)
            elif now - self._starved_since.setdefault(number, now) > STARVED_SECONDS:
                return self._no_place(pool)
        return None

    def _no_place(self, pool: Pool | Tasks) -> str:
        lost = len(self._lost - self._nodes.keys())
        why = (
            f"{counted(lost, 'node')} of the cluster went away"
            if lost
            else "the cluster has enough in total, but a worker must fit on one node"
        )
        gpus = f" and {pool.gpus:g} GPUs" if pool.gpus else ""
        return (
            f"no node has room for a worker of {pool.names} ({pool.cpus:g} CPUs{gpus}): "
            f"{why}; run again to plan for what the cluster has then"
            + (", or give the stage fewer CPUs" if pool.steps else "")
        )


def _fits(pool: Pool | Tasks, free: Sequence[Sequence[float]]) -> bool:
    return any(cpus >= pool.cpus - 1e-6 and gpus >= pool.gpus - 1e-6 for cpus, gpus in free)
