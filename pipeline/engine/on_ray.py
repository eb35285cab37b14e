"""The Ray engine: shard names stream through pools of workers.

Ray moves names, storage moves data: a row of the Ray dataset is one shard's name, and the worker
commits the shard itself. If an actor dies, Ray replaces it and runs its shard again; the crash
journal stops this for a row that kills every worker.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import socket
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from inspect import signature
from pathlib import Path
from typing import Any

# Threads may still make calls after disconnecting: these must not open a new connection.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")

import ray
from ray.data import ActorPoolStrategy, DataContext
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from clipmill.pipeline.dataset.run_logs import LogLimits
from clipmill.pipeline.engine.activity import (
    Activity,
    Beat,
    Place,
    Process,
    ProcessFinding,
    end,
    look_at,
)
from clipmill.pipeline.engine.cluster_probe import (
    ANSWER_SECONDS,
    ClusterLost,
    ClusterProbe,
    check_answers,
)
from clipmill.pipeline.engine.flow import shards_at_once
from clipmill.pipeline.engine.halting import is_halted
from clipmill.pipeline.engine.pools import Leg, Machine, Pool, plan_legs
from clipmill.pipeline.engine.ray_noise import without_noise
from clipmill.pipeline.engine.run_health import BEAT_SECONDS, Node, Tasks, Watchdog
from clipmill.pipeline.engine.runner import Report, Worker
from clipmill.pipeline.engine.shard_rows import blame
from clipmill.pipeline.engine.standstill import Lookout, Standstills
from clipmill.pipeline.engine.step_inputs import rows_a_shard
from clipmill.pipeline.engine.task_results import MAX_DEATHS, TaskResult, attempt_in_a_worker, died
from clipmill.pipeline.recipes.plan import Plan, PlannedStep, ShardList, pending
from clipmill.pipeline.recipes.recipe import RaySettings
from clipmill.schemas.errors import ClipmillError
from clipmill.stages.media.isolation.terminal import leave_terminal, null_input
from clipmill.stages.models.device_errors import DeviceBroken

POLL_SECONDS = 0.5
_SHUTDOWN_SECONDS = 30.0
_CONNECT_SECONDS = 10.0
_NODE_ANSWER_SECONDS = 60.0  # a process may have to be started there first
_STILL_THERE_SECONDS = 30.0
# From here on, Ray Data appends its own settings to the text of a worker's exception.
_RAYS_OWN_WORDS = "\nFailed to apply UDF transform"
_MAX_REASON_CHARACTERS = 600


@contextlib.contextmanager
def cluster(settings: RaySettings) -> Iterator[Machine]:
    """Joins the cluster that the settings or the environment name, or starts one here."""
    mine = not ray.is_initialized()
    if mine:
        # Ray's log messages would drown ours; its errors still come as exceptions.
        logging.getLogger("ray").setLevel(logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.CRITICAL)
        address = settings.address or os.environ.get("RAY_ADDRESS")
        started: dict[str, Any] = (
            {"address": address}
            if address
            else {
                "address": "local",  # otherwise Ray would join any cluster that it finds here
                "num_cpus": settings.num_cpus,
                "object_store_memory": settings.object_store_megabytes * 2**20,
                "include_dashboard": False,
            }
        )
        # The package's location: workers must import it even if Clipmill is not installed.
        root = str(Path(str(files("clipmill"))).resolve().parent)
        paths = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        place = address or "this machine"
        if address:
            _check_reachable(address)
        try:
            # Ray's processes and its workers inherit signal handling and standard input from here.
            with _own_sigterm(), null_input():
                ray.init(
                    logging_level=logging.ERROR,
                    log_to_driver=True,
                    runtime_env={"env_vars": {"PYTHONPATH": paths, "PYTHONUTF8": "1"}},
                    **started,
                )
        except Exception as error:  # Ray raises a bare Exception on a timeout
            raise ClipmillError(f"Ray could not be started on {place}: {error}") from error
    try:
        have = ray.cluster_resources()
        yield Machine(have.get("CPU", 0), have.get("GPU", 0))
    except ClusterLost as error:
        if mine and error.is_whole:
            _shut_down()
        raise
    except BaseException:
        if mine:
            _shut_down()
        raise
    if mine and not _shut_down():
        raise ClusterLost(
            f"Ray did not shut down within {_SHUTDOWN_SECONDS:.0f} s; all work is "
            "committed, and running again does the rest"
        )


def _check_reachable(address: str) -> None:
    """ClipmillError if nothing listens at `host:port`: Ray would retry for minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon or not port.isdecimal():
        return  # `auto` or similar
    try:
        socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise ClipmillError(
            f"Ray could not be started on {address}: nothing answers there ({error}); start the "
            "cluster, or set another address with ray.address or RAY_ADDRESS"
        ) from error


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keeps this program's signal handler: Ray installs one that exits silently."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before if before is not None else signal.SIG_DFL)


def _shut_down() -> bool:
    """Disconnects, and ends our own cluster; False if that does not finish."""
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(_SHUTDOWN_SECONDS)
    return not thread.is_alive()


@ray.remote(num_cpus=0, max_restarts=-1)
class _Tally:
    """Collects the workers' reports until the driver asks for them."""

    def __init__(self) -> None:
        self._counts: dict[str, Counter[Any]] = {}
        self._beats: dict[str, Beat] = {}

    def add(self, label: str, counts: Counter[Any]) -> None:
        self._counts.setdefault(label, Counter()).update(counts)

    def beat(self, worker: str, beat: Beat) -> None:
        self._beats[worker] = beat

    def take(self) -> tuple[dict[str, Counter[Any]], dict[str, Beat]]:
        found, self._counts, self._beats = (self._counts, self._beats), {}, {}
        return found


class _Heart:
    """Reports from a separate thread that a worker is alive, whatever it is doing."""

    def __init__(self, tally: Any, pool: int, activity: Activity) -> None:
        self._tally, self._pool, self._activity = tally, pool, activity
        self._name = uuid.uuid4().hex
        self._node = ray.get_runtime_context().get_node_id()
        self.done = 0
        self._counting = threading.Lock()
        threading.Thread(target=self._go_on, daemon=True).start()

    def finished(self) -> None:
        """Counts a shard."""
        with self._counting:
            self.done += 1

    def _go_on(self) -> None:
        while True:
            with contextlib.suppress(Exception):  # the collector may be restarting
                self._tally.beat.remote(
                    self._name, Beat.of(self._activity, self._pool, self._node, self.done)
                )
            time.sleep(BEAT_SECONDS)


class _ShardRunner:
    """Contents of an actor in a pool: one worker that runs the pool's steps."""

    def __init__(
        self,
        plan: dict[str, Any],
        labels: list[str],
        pool: int,
        dataset: str,
        run_id: str,
        shards: ShardList,
        tally: Any,
        gpus: float,
        log_limits: LogLimits,
    ) -> None:
        # A cluster may have been started from a terminal, and stages import what starts programs.
        leave_terminal()
        # Before anything that may kill the process, so that this start is counted.
        activity = Activity()
        self._heart = _Heart(tally, pool, activity)
        if not gpus:
            # Some versions of Ray give an actor without GPUs access to them: it must not use one.
            os.environ["CUDA_VISIBLE_DEVICES"] = ""
        whole = Plan.from_spec(plan)
        steps = tuple(whole.by_label[label] for label in labels)
        self._worker = Worker(
            whole,
            steps,
            Path(dataset),
            run_id,
            shards,
            tally.add.remote,
            # Killing and restarting a whole run does not count as a crash of its current row.
            journal_over_runs=False,
            log_limits=log_limits,
            activity=activity,
        )

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Runs a shard; called by several threads where several are in flight."""
        for shard in batch["shard"]:
            try:
                self._worker.run(str(shard))
            except DeviceBroken:
                os._exit(1)  # Ray starts a replacement
            self._heart.finished()
        return batch


def run_on_ray(
    plan: Plan,
    steps: tuple[PlannedStep, ...],
    shards: ShardList,
    dataset: Path,
    run_id: str,
    report: Report,
    machine: Machine,
    log_limits: LogLimits,
    lookout: Lookout,
) -> None:
    """Runs what is pending, phase by phase; returns when all is committed, or the run halted.

    Raises ClipmillError if a stage can't continue at all (for example, a model does not load).
    """
    for leg in legs_of(plan, steps, shards, dataset, machine):
        if is_halted(dataset, run_id):
            return
        labels = [step.label for pool in leg for step in pool.steps]
        # Shards that were kept back come last, and are not judged again.
        for stop_after in dict.fromkeys((plan.stop_after, 0)):
            todo = pending(plan, [plan.by_label[label] for label in labels], shards, dataset)
            names = sorted({shard for missing in todo.values() for shard in missing})
            if names and not is_halted(dataset, run_id):
                of_leg = replace(
                    plan, stop_after=stop_after, keeps_back=stop_after > 0 and len(names) > 1
                )
                _run_leg(of_leg, leg, names, shards, dataset, run_id, report, log_limits, lookout)


def legs_of(
    plan: Plan, steps: tuple[PlannedStep, ...], shards: ShardList, dataset: Path, machine: Machine
) -> tuple[Leg, ...]:
    """The phases of what is pending; steps with nothing to do get no workers."""
    todo = pending(plan, steps, shards, dataset)
    busy = tuple(step for step in steps if todo[step.label])
    most = max((len(missing) for missing in todo.values()), default=0)
    return plan_legs(busy, machine, most) if busy else ()


def _run_leg(
    plan: Plan,
    leg: Leg,
    names: list[str],
    shards: ShardList,
    dataset: Path,
    run_id: str,
    report: Report,
    log_limits: LogLimits,
    lookout: Lookout,
) -> None:
    here = ray.get_runtime_context().get_node_id()
    check_answers(lambda: _nodes(here), _STILL_THERE_SECONDS)  # after an earlier phase, say
    # On the driver's node: if that is lost, the run is over anyway.
    actor: Any = _Tally  # `ray.remote` turned the class into an actor class
    tally = actor.options(
        scheduling_strategy=NodeAffinitySchedulingStrategy(here, soft=True)
    ).remote()

    rows = rows_a_shard(dataset, names)

    def batches() -> Iterator[Any]:
        # Watched from the start: each of these calls may wait for a cluster that is lost.
        context = DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        context.raise_original_map_exception = True  # Ray's wrapper would lose it on the way
        stream = ray.data.from_items(
            [{"shard": name} for name in names], override_num_blocks=len(names)
        )
        spec = plan.spec()
        for number, pool in enumerate(leg):
            at_once = min(shards_at_once(pool.steps, rows), -(-len(names) // pool.workers))
            stream = _through(
                stream, number, pool, at_once, spec, dataset, run_id, shards, tally, log_limits
            )
        yield from stream.iter_batches(batch_size=1, prefetch_batches=0)

    watchdog = Watchdog(leg, rows, time.monotonic())

    def end_worker(beat: Beat) -> None:
        watchdog.ended(beat.pool)
        _on_its_node(end, beat, here)

    def blame_rows(place: Place) -> None:
        blame(plan, dataset, run_id, place.step, place.shard, place.keys)

    standstills = Standstills(lookout, lambda beat: _look(beat, here), end_worker, blame_rows)
    probe = ClusterProbe(watchdog, lambda: _nodes(here), lambda: _take(tally), report, standstills)
    with without_noise():
        for _ in _watched(batches(), probe):
            pass


def _watched(items: Iterable[Any], probe: ClusterProbe) -> Iterator[Any]:
    """The items, passed through Ray; ClusterLost if no more can arrive."""
    flow = _Flow(items)
    try:
        while True:
            probe.check()
            with contextlib.suppress(queue.Empty):
                if (item := flow.came.get(timeout=POLL_SECONDS)) is _END:
                    break
                yield item
        if flow.error is not None:
            own = _own(flow.error)
            if own is None:
                probe.check_cluster()
            raise own or _reason(flow.error) from flow.error
    finally:
        probe.stop()


def _nodes(here: str) -> tuple[list[Node], str | None]:
    """The living nodes, and the socket of this process's node."""
    found = ray.nodes()
    alive = [
        Node(node["NodeID"], node["Resources"].get("CPU", 0), node["Resources"].get("GPU", 0))
        for node in found
        if node["Alive"]
    ]
    return alive, next(
        (node.get("RayletSocketName") for node in found if node["NodeID"] == here), None
    )


def _look(beat: Beat, here: str) -> ProcessFinding:
    if beat.node not in {node.id for node in _nodes(here)[0]}:
        return ProcessFinding(is_gone=True)
    finding: ProcessFinding = _on_its_node(look_at, beat, here)
    return finding


def _on_its_node(function: Callable[[Process], Any], beat: Beat, here: str) -> Any:
    """The function's result for a worker's process, computed on the process's node."""
    process = beat.process
    assert process is not None  # every worker reports its own
    if beat.node == here:
        return function(process)
    there = NodeAffinitySchedulingStrategy(beat.node, soft=False)
    task = ray.remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=there)
    return ray.get(task.remote(process), timeout=_NODE_ANSWER_SECONDS)


def _take(tally: Any) -> tuple[dict[str, Counter[Any]], dict[str, Beat]]:
    taken: tuple[dict[str, Counter[Any]], dict[str, Beat]] = ray.get(
        tally.take.remote(), timeout=ANSWER_SECONDS
    )
    return taken


_END = object()


class _Flow:
    """Iterates over items in a separate thread, so that the main thread can abandon them."""

    def __init__(self, items: Iterable[Any]) -> None:
        self.came: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.error: BaseException | None = None
        self._items = items
        threading.Thread(target=self._go_on, daemon=True).start()

    def _go_on(self) -> None:
        try:
            for item in self._items:
                self.came.put(item)
        except BaseException as error:  # noqa: BLE001 (raised again where it is waited for)
            self.error = error
        finally:
            self.came.put(_END)


def _through(
    stream: Any,
    number: int,
    pool: Pool,
    at_once: int,
    spec: dict[str, Any],
    dataset: Path,
    run_id: str,
    shards: ShardList,
    tally: Any,
    log_limits: LogLimits,
) -> Any:
    compute: dict[str, Any] = {"size": pool.workers}
    several: dict[str, Any] = {}
    if at_once > 1:
        # As many names as an actor has shards in flight, so that others find some, too.
        compute |= {"max_tasks_in_flight_per_actor": at_once, "enable_true_multi_threading": True}
        if "max_concurrent_calls_per_actor" in signature(ActorPoolStrategy).parameters:
            compute["max_concurrent_calls_per_actor"] = at_once
        else:  # before Ray 2.60
            several["max_concurrency"] = at_once
    # Ray names the operator and its actors after the class.
    named = type(pool.names, (_ShardRunner,), {})
    return stream.map_batches(
        named,
        fn_constructor_args=(
            spec,
            [step.label for step in pool.steps],
            number,
            str(dataset),
            run_id,
            shards,
            tally,
            pool.gpus,
            log_limits,
        ),
        batch_size=1,
        batch_format="numpy",
        compute=ActorPoolStrategy(**compute),
        num_cpus=pool.cpus,
        num_gpus=pool.gpus,
        **several,
    )


def map_on_ray(
    function: Callable[[Any], Any], items: Sequence[Any]
) -> Iterator[TaskResult[Any, Any]]:
    """The Ray implementation of `parallel_map.py`. Raises ClusterLost if nobody can work."""
    with cluster(RaySettings()) as machine:
        here = ray.get_runtime_context().get_node_id()
        largest = max((node.cpus for node in _nodes(here)[0]), default=0)
        # Requiring more than any node has would wait forever.
        each = min(1.0, largest) or 1.0
        watchdog = Watchdog((Tasks(each),), 1, time.monotonic())
        tasks = _TaskFlow(function, items, each, machine)
        probe = ClusterProbe(watchdog, lambda: _nodes(here), lambda: ({}, {}), lambda *_: None)
        try:
            with without_noise():
                yield from _watched(tasks.results(probe), probe)
        except ClusterLost:
            raise  # a lost cluster can't be asked to end the rest
        except BaseException:
            tasks.end()
            raise


class _TaskFlow:
    """Submits items as tasks, a few more than can run at once."""

    def __init__(
        self, function: Callable[[Any], Any], items: Sequence[Any], cpus: float, machine: Machine
    ) -> None:
        # Deaths are counted here: Ray does not count workers killed by the memory monitor.
        self._task = ray.remote(attempt_in_a_worker).options(num_cpus=cpus, max_retries=0)
        self._function = ray.put(ray.cloudpickle.dumps(function))
        # A few more than can run, so that no CPU waits for the next task.
        at_once = int(machine.cpus // cpus)
        self._ahead = 2 + at_once + at_once // 2
        self._todo = deque(enumerate(items))
        self._deaths: Counter[int] = Counter()
        self._leaving, self._ended = threading.Event(), threading.Event()

    def end(self) -> None:
        """Stops the running tasks when their results are no longer needed."""
        self._leaving.set()
        self._ended.wait(ANSWER_SECONDS)

    def results(self, probe: ClusterProbe) -> Iterator[TaskResult[Any, Any]]:
        """Results as they arrive; `probe` is asked whether the cluster is to blame for deaths."""
        running: dict[Any, tuple[int, Any]] = {}
        try:
            while (self._todo or running) and not self._leaving.is_set():
                while self._todo and len(running) < self._ahead:
                    number, item = self._todo.popleft()
                    running[self._task.remote(self._function, item)] = (number, item)
                ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL_SECONDS)
                for reference in ready:
                    result = self._result(reference, *running.pop(reference), probe)
                    if result is not None:
                        yield result
        finally:
            for reference in running:
                ray.cancel(reference, force=True)
            self._ended.set()

    def _result(
        self, reference: Any, number: int, item: Any, probe: ClusterProbe
    ) -> TaskResult[Any, Any] | None:
        """A task's result; None if its process died and the item will be tried again."""
        try:
            return TaskResult(item, *ray.get(reference))
        except ray.exceptions.RayTaskError as error:
            raise _reason(error) from None
        except ray.exceptions.RayError as error:
            # No item is to blame for a lost node.
            self._deaths[number] += not isinstance(error, ray.exceptions.NodeDiedError)
            if self._deaths[number] < MAX_DEATHS:
                self._todo.append((number, item))
                return None
            probe.check_cluster()  # a lost cluster kills everything: no item is to blame
            return TaskResult(item, problem=died(_how_it_died(error)))


def _how_it_died(error: Exception) -> str:
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        return "because the node ran out of memory"
    return f"according to Ray: {str(error).strip().splitlines()[0]}"


def _own(error: BaseException | None) -> ClipmillError | None:
    """The ClipmillError that a worker raised, extracted from Ray's wrapper."""
    while error is not None:
        # Ray's wrapper has the error's class, too, but its text is the whole traceback.
        if isinstance(error, ClipmillError) and not isinstance(error, ray.exceptions.RayTaskError):
            said = str(error.args[0]) if error.args else str(error)
            return type(error)(said.partition(_RAYS_OWN_WORDS)[0])
        error = getattr(error, "cause", None) or error.__cause__
    return None


def _reason(error: BaseException) -> ClipmillError:
    """The ClipmillError that a worker raised, otherwise one with the end of the traceback."""
    if own := _own(error):
        return own
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    shown = " ".join(lines)
    if len(shown) > _MAX_REASON_CHARACTERS:
        # The end of a traceback says most.
        shown = f"{lines[0]} … {' '.join(lines)[-_MAX_REASON_CHARACTERS:]}"
    return ClipmillError(f"the run stopped in a Ray worker: {type(error).__name__}: {shown}")
