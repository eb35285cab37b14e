"""Injects faults into a run at random moments, resumes it until done, and compares results.

A plan is drawn from a seed: where the run takes place (in one process, on its own Ray cluster, on
a cluster of two nodes that it joins), and one to three faults, each after a number of shards and a
delay. Faults that remain when a run has ended go to the next.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import psutil

from tests.faults.kill_world import (
    GATES,
    ROOT,
    World,
    check_whole,
    clipmill,
    command,
    environment,
    failures,
    newest,
    tables_of,
)
from tests.faults.summary import log_cases

POOL_STEPS = 5
"""Tables that a shard goes through; sources exist before."""
ENDS_WITHIN_SECONDS = 60.0
"""A run that can't continue reports it within a minute of the fault."""
RUN_SECONDS = 240.0
"""No run takes longer, with faults that it can continue from."""
DISK_MEGABYTES = 48
FATAL = frozenset(("driver", "head", "full", "readonly", "sigterm"))
IN_PROCESS = ("driver", "driver", "full", "readonly", "sigterm", "helper")
OWN_CLUSTER = ("driver", "worker", "worker", "worker", "full", "readonly", "head", "sigterm")
TWO_NODES = ("driver", "worker", "worker", "node", "node", "head", "full")

# Plans missing from the first thirty by chance, at moments drawn in the same way.
DRAWN_TOO_SELDOM = {
    30: ("ray", ["driver", "worker"]),
    31: ("cluster", ["head"]),
    32: ("ray", ["driver", "driver"]),
    33: ("cluster", ["head", "driver"]),
}


@dataclass(frozen=True)
class Harm:
    """A fault, injected after `after_shards` more commits and `delay_seconds`."""

    what: str
    after_shards: int
    delay_seconds: float
    lasts_seconds: float = 4.0


@dataclass(frozen=True)
class Plan:
    engine: str
    captions: bool
    harms: tuple[Harm, ...]
    pace_seconds: float = 0.25
    node_cpus: int = 3
    """CPUs of each of two nodes: one node with 5 has room for all workers, one with 3 has not."""
    gated: bool = False
    """Whether the stages have gates, which change when half of the faults have happened."""
    calls: int = 1
    """Calls at once of describe_clips; with more than one, several shards are in flight."""


def plan_of(seed: int) -> Plan:
    draw = random.Random(seed)
    # In turn, so that any ten seeds have all three.
    engine = (
        "local",
        "ray",
        "local",
        "cluster",
        "ray",
        "local",
        "cluster",
        "local",
        "ray",
        "cluster",
    )[seed % 10]
    kinds = {"local": IN_PROCESS, "ray": OWN_CLUSTER, "cluster": TWO_NODES}[engine]
    harms = []
    count = draw.randint(1, 3)
    given: list[str] = []
    if seed in DRAWN_TOO_SELDOM:
        engine, given = DRAWN_TOO_SELDOM[seed]
    for number in range(len(given) or count):
        what = given[number] if given else draw.choice(kinds)
        harms.append(
            Harm(
                what,
                draw.choice((0, 0, 1, 2, 4, 6, 9, 13)),
                draw.uniform(0, 1.5),
                draw.uniform(1, 5),
            )
        )
    return Plan(engine, draw.random() < 0.25, tuple(harms), node_cpus=draw.choice((5, 5, 3)))


def gated_plan_of(seed: int) -> Plan:
    """A plan with gates that change, and a fault or two before that and after it."""
    draw = random.Random(seed + 5000)
    plan = plan_of(seed)
    kinds = {"local": IN_PROCESS, "ray": OWN_CLUSTER, "cluster": TWO_NODES}[plan.engine]
    harms = [
        Harm(draw.choice(kinds), draw.choice(most), draw.uniform(0, 1), draw.uniform(1, 5))
        for most in ((0, 2, 6, 13), (0, 0, 1, 2), (0, 1, 3))[: draw.randint(2, 3)]
    ]
    return Plan(plan.engine, False, tuple(harms), node_cpus=plan.node_cpus, gated=True)


def busy_plan_of(seed: int) -> Plan:
    """A plan in which a stage has several calls at a time, and shards are in flight together."""
    return replace(plan_of(seed), captions=False, calls=3, pace_seconds=0.4)


@dataclass
class Told:
    """The outcome, for the log of faults."""

    runs: list[int] = field(default_factory=list)
    harmed: list[dict[str, Any]] = field(default_factory=list)
    missed: int = 0
    longest_end_seconds: float = 0.0
    retried: int = 0


class Cluster:
    """Two nodes in a separate process."""

    def __init__(self, cpus: int = 3) -> None:
        # On a busy machine Ray's own timeout for a start may expire.
        for _ in range(3):
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("kill_cluster.py")), str(cpus)],
                cwd=ROOT,
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                stderr=subprocess.DEVNULL,
            )
            lines = iter(self._process.stdout.readline, "")
            said = next((line for line in lines if line.startswith("{")), None)
            if said is not None:
                break
            self.end()
        assert said is not None, "no cluster came up"
        self.pids: dict[str, int] = (found := json.loads(said))
        self.address: str = found["address"]
        self.whole = True

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> None:
        children = []
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.pid).children(recursive=True)
        self._process.stdin.close()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        for child in children:
            with contextlib.suppress(psutil.NoSuchProcess):
                child.kill()


class Case:
    """One plan, carried out on one dataset."""

    def __init__(self, plan: Plan, world: World, folder: Path, seed: int = 0) -> None:
        self.plan, self.world = plan, world
        self.disk = folder / "disk"
        self.dataset = self.disk / "dataset"
        self.told = Told()
        self._folder = folder
        self._draw = random.Random(seed + 1000)
        self._cluster: Cluster | None = None
        self._left: list[Harm] = []
        self._gates: tuple[str, ...] = ()
        self._restore: list[tuple[float, Any]] = []

    def carry_out(self) -> Told:
        """Runs until done, with the faults injected; raises AssertionError if a result is wrong."""
        with self._mounted():
            try:
                if not self.plan.gated:
                    self._run_until_done(self.plan.harms)
                else:
                    halves = (self.plan.harms[:1], self.plan.harms[1:])
                    for gates, harms in zip(GATES, halves, strict=True):
                        self._gates = gates
                        self._run_until_done(harms)
            finally:
                if self._cluster is not None:
                    self._cluster.end()
            self._compare()
        return self.told

    def _run_until_done(self, harms: Sequence[Harm]) -> None:
        self._left = list(harms)
        for _ in range(len(harms) + 3):
            if self._run() == 0:
                self.told.missed += len(self._left)  # completed before the fault's moment
                return
        raise AssertionError(f"not done after {len(self.told.runs)} runs: {self.told}")

    def _compare(self) -> None:
        right = self.world.right(self.plan.captions, self.plan.gated)
        if failed := set(failures(self.dataset)) - self._right_failures(right):
            # For example a row in progress in a process that was killed twice.
            assert {kind for *_, kind in failed} <= {"transient", "crash"}, failed
            self.told.retried = len(failed)
            done = clipmill("retry", self.dataset, "--kind", "transient", "--kind", "crash")
            assert done.returncode == 0, done.stderr
        found = tables_of(self.dataset)
        if not self.told.retried and not self.plan.gated:  # keys may be let in by fewer shards
            assert found.keys() == right.keys()
            for place, rows in right.items():
                assert found[place] == rows, place
        assert newest(found) == newest(right)
        check_whole(self.dataset)

    def _right_failures(self, right: Any) -> set[tuple[str, str, str]]:
        return {
            (label, row[next(iter(row))], row["error"]["kind"])
            for (label, _, _), rows in right.items()
            for row in rows
            if row.get("error") and label != "sources"
        }

    # One run and its faults.

    def _run(self) -> int:
        more = {}
        if self.plan.engine == "cluster":
            if self._cluster is not None and not self._cluster.whole:
                self._cluster.end()
                self._cluster = None
            if self._cluster is None:
                self._cluster = Cluster(self.plan.node_cpus)
            more["RAY_ADDRESS"] = self._cluster.address
        recipe = self.world.recipe(
            captions=self.plan.captions, pace_seconds=self.plan.pace_seconds, calls=self.plan.calls
        )
        words = [
            "run",
            recipe,
            "--dataset",
            self.dataset,
            "--engine",
            "local" if self.plan.engine == "local" else "ray",
            *(word for setting in self._gates for word in ("--set", setting)),
        ]
        told = self._folder / f"run{len(self.told.runs)}.txt"
        with open(told, "w") as output:
            process = subprocess.Popen(
                command(*words),
                stdin=subprocess.DEVNULL,
                cwd=ROOT,
                env=environment(**more),
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            try:
                harmed = self._watch(process)
            finally:
                if process.poll() is None:
                    process.kill()
                    process.wait()
                self._put_right()
        said = told.read_text()
        status = process.returncode
        self.told.runs.append(status)
        self._judge(status, said, harmed)
        return status

    def _watch(self, process: subprocess.Popen) -> list[str]:
        """Injects faults into the run at their moments until it ends; returns the injected ones."""
        began = time.monotonic()
        harmed: list[str] = []
        last_fatal: float | None = None
        base, due = self._committed(), None
        while process.poll() is None:
            now = time.monotonic()
            assert now - began < RUN_SECONDS, f"a run goes on for ever after {harmed}"
            if last_fatal is not None and harmed[-1] != "readonly":
                assert now - last_fatal < ENDS_WITHIN_SECONDS, (
                    f"a run that can't go on does not end after {harmed}"
                )
            for at, put_right in list(self._restore):
                if at and now >= at:
                    put_right()
                    self._restore.remove((at, put_right))
            if self._left and last_fatal is None:
                harm = self._left[0]
                if due is None and self._committed() - base >= harm.after_shards:
                    due = now + harm.delay_seconds
                if due is not None and now >= due and self._harm(harm, process):
                    self._left.pop(0)
                    harmed.append(harm.what)
                    self.told.harmed.append(
                        {
                            "what": harm.what,
                            "run": len(self.told.runs),
                            "after_seconds": round(now - began, 2),
                            "shards": self._committed(),
                        }
                    )
                    base, due = self._committed(), None
                    if harm.what in FATAL:
                        last_fatal = time.monotonic()
            time.sleep(0.02)
        if last_fatal is not None and harmed[-1] != "readonly":
            self.told.longest_end_seconds = max(
                self.told.longest_end_seconds, round(time.monotonic() - last_fatal, 2)
            )
        return harmed

    def _judge(self, status: int, said: str, harmed: list[str]) -> None:
        """Checks the run's exit status against its faults, and whether it gave a reason."""
        where = f"{harmed}: {status}\n{said[-3000:]}"
        if "driver" in harmed:
            # If the fault came late, the run may have been ending already.
            assert status in (-signal.SIGKILL, 0, *((1,) if len(harmed) > 1 else ())), where
        elif "sigterm" in harmed:
            assert status in (128 + signal.SIGTERM, 0, *((1,) if len(harmed) > 1 else ())), where
            if status > 1:
                assert "Stopped. What is committed stays" in said, where
        else:
            assert status in ((0, 1) if harmed else (0,)), where
        if status == 1:
            assert re.search(r"^Error: \S", said, re.M), where
            assert "Traceback" not in said, where
            if set(harmed) <= {"full", "readonly"}:
                assert re.search(r"^Error: cannot write to \S+: .*run again", said, re.M), where

    def _committed(self) -> int:
        return sum(1 for _ in self.dataset.glob("*/*/[0-9]*.parquet"))

    def _harm(self, harm: Harm, process: subprocess.Popen) -> bool:
        """Injects the fault, if its target exists by now."""
        if harm.what in ("driver", "sigterm"):
            if not self.dataset.exists():
                return False  # nothing has started
            process.send_signal(signal.SIGKILL if harm.what == "driver" else signal.SIGTERM)
            return True
        if harm.what == "full":
            return self._fill(process)
        if harm.what == "readonly":
            return self.dataset.exists() and self._make_readonly(harm.lasts_seconds)
        return self._kill_part(harm.what, process)

    def _kill_part(self, what: str, process: subprocess.Popen) -> bool:
        root = self._cluster.pid if self._cluster is not None else process.pid
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(root).children(recursive=True)
            if what in ("head", "node") and self._cluster is not None:
                pid = self._cluster.pids[
                    self._draw.choice(("gcs", "head")) if what == "head" else "node"
                ]
                self._cluster.whole = False
                found = [child for child in children if child.pid == pid]
            elif what == "head":
                found = [child for child in children if child.name() in ("raylet", "gcs_server")]
            elif what == "helper":
                found = children
            else:
                found = [
                    child
                    for child in children
                    if child.name().startswith("ray::") and "Agent" not in child.name()
                ]
            if not found or (
                what in ("worker", "head", "node")
                and not any(
                    "MapWorker(" in " ".join(child.cmdline())
                    for child in children
                    if child.is_running()
                )
            ):
                return False  # no worker has started yet
            self._draw.choice(sorted(found, key=lambda child: child.pid)).kill()
            return True
        return False

    # Disk faults.

    @contextlib.contextmanager
    def _mounted(self) -> Iterator[None]:
        self.disk.mkdir()
        if (
            os.geteuid() != 0
            or subprocess.run(
                ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", self.disk],
                stdin=subprocess.DEVNULL,
                check=False,
                capture_output=True,
            ).returncode
        ):
            yield
            return
        try:
            yield
        finally:
            self._put_right()
            subprocess.run(["umount", "-l", self.disk], stdin=subprocess.DEVNULL, check=True)

    def _fill(self, process: subprocess.Popen) -> bool:
        if not os.path.ismount(self.disk):
            # If nothing can be mounted, a file size limit replaces the full disk.
            with contextlib.suppress(psutil.NoSuchProcess):
                whole = psutil.Process(process.pid)
                for each in (whole, *whole.children(recursive=True)):
                    each.rlimit(psutil.RLIMIT_FSIZE, (1000, 1000))
            return True
        filler = self.disk / "filler"
        for piece in (1 << 16, 512):
            with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
                while True:
                    file.write(bytes(piece))
        self._restore.append((0.0, filler.unlink))
        return True

    def _make_readonly(self, seconds: float) -> bool:
        if not os.path.ismount(self.disk):
            folders = [self.dataset, *(p for p in self.dataset.rglob("*") if p.is_dir())]
            for folder in folders:
                folder.chmod(0o555)

            def put_right() -> None:
                for folder in folders:
                    if folder.exists():
                        folder.chmod(0o755)
        else:
            # Bind-mounts the dataset over itself: open files stay writable, nothing else does.
            subprocess.run(
                ["mount", "--bind", self.dataset, self.dataset],
                stdin=subprocess.DEVNULL,
                check=True,
            )
            self._make_read_only()

            def put_right() -> None:
                subprocess.run(["umount", "-l", self.dataset], stdin=subprocess.DEVNULL, check=True)

        self._restore.append((time.monotonic() + seconds, put_right))
        return True

    def _make_read_only(self) -> None:
        """The kernel refuses while a file opened through the mount is open for writing."""
        until = time.monotonic() + 5
        while subprocess.run(
            ["mount", "-o", "remount,bind,ro", self.dataset],
            stdin=subprocess.DEVNULL,
            check=time.monotonic() > until,
        ).returncode:
            time.sleep(0.02)

    def _put_right(self) -> None:
        while self._restore:
            self._restore.pop()[1]()


def note(case: str, plan: Plan, told: Told, seconds: float, ended: str) -> None:
    """Adds a line to the log of faults."""
    log_cases(
        "kills",
        [
            {
                "case": case,
                "family": plan.engine,
                "ended": ended,
                "captions": plan.captions,
                "planned": [harm.what for harm in plan.harms],
                "seconds": round(seconds, 1),
                **asdict(told),
            }
        ],
    )
