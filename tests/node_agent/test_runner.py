"""One replica's owner with a real engine, and faults of ours in the tasks around it."""

import asyncio
import contextlib
import io
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from adapters import registry
from core.infra import processes
from core.infra.clock import SystemClock
from core.infra.logs import Log
from core.infra.tasks import TaskGuard
from core.states import ReplicaState
from node_agent import replica
from node_agent.containers.house import ContainerHouse
from node_agent.devices.cpu import CpuSource
from node_agent.devices.reading import Devices
from node_agent.engines import EngineHouse
from node_agent.files import wiring
from node_agent.files.origins import SourceOrigins
from node_agent.ports import Ports
from node_agent.runner import Runner
from node_agent.subprocesses import Children
from node_agent.surroundings import Surroundings
from protos.slice.node.v1 import node_pb2
from tests.node_agent import nodes, trees
from tests.node_agent.nodes import Node


class Fault:
    """Works, until it is told to fail once."""

    def __init__(self) -> None:
        self.is_due = False

    def chance(self) -> float:
        self._fail()
        return 0.5

    def changed(self) -> None:
        task = asyncio.current_task()
        if task is not None and task.get_name() == "watch memory":
            self._fail()

    def _fail(self) -> None:
        if self.is_due:
            self.is_due = False
            raise RuntimeError("a fault of ours")


@contextlib.asynccontextmanager
async def runner_of(
    node: Node,
    chance: Callable[[], float],
    changed: Callable[[], None] = lambda: None,
    want: node_pb2.ReplicaWant | None = None,
    containers: ContainerHouse | None = None,
) -> AsyncIterator[Runner]:
    clock = SystemClock()
    log = Log("test", clock, io.StringIO())
    environment = {"PATH": os.environ["PATH"]}
    async with TaskGuard(log) as guard:
        children = Children(node.data_dir / "children")
        store, pulls = wiring.wired(
            data_dir=node.data_dir,
            origins=SourceOrigins(),
            wheel_dir="",
            environment=environment,
            children=children,
            guard=guard,
            clock=clock,
            log=log,
            changed=lambda: None,
        )
        around = Surroundings(
            replicas_dir=node.data_dir / "replicas",
            shim_dir=node.shim_dir,
            environment=environment,
            start_timeout_s=30.0,
            adapter=registry.adapter,
            store=store,
            pulls=pulls,
            engines=EngineHouse(
                root=node.data_dir / "engines",
                adapter=registry.adapter,
                wheel_dir="",
                environment=environment,
                children=children,
                guard=guard,
                log=log,
            ),
            containers=containers
            or ContainerHouse(
                data_dir=node.data_dir, environment=environment, children=children, log=log, may_pull=False
            ),
            ports=Ports(range(*node.config["engine_ports"])),
            devices=Devices((CpuSource(),), log),
            clock=clock,
            chance=chance,
            changed=changed,
            log=log,
            policy=replica.RestartPolicy(first_delay_s=0.01),
        )
        yield Runner(want or nodes.want(), around)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    node = Node(tmp_path)
    try:
        yield node
    finally:
        await node.close()


@contextlib.asynccontextmanager
async def running(runner: Runner) -> AsyncIterator["asyncio.Task[None]"]:
    task = asyncio.ensure_future(runner.run())
    await asyncio.sleep(0)  # it has begun: what it reports is of this life
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait({task})


async def test_a_watcher_that_dies_ends_its_owner_who_begins_anew(node: Node) -> None:
    fault = Fault()
    async with runner_of(node, fault.chance) as runner:
        async with running(runner) as task:
            await trees.until(lambda: runner.state is ReplicaState.READY and runner.report().pid)
            fault.is_due = True
            os.kill(runner.report().pid, signal.SIGKILL)
            await asyncio.wait({task}, timeout=10)
            assert task.done()
            error = task.exception()
            assert isinstance(error, ExceptionGroup)
            assert error.subgroup(RuntimeError) is not None
        async with running(runner):
            await trees.until(lambda: runner.state is ReplicaState.READY and runner.report().incarnation == 2)


async def test_an_owner_that_begins_anew_adopts_the_engine_that_runs(node: Node) -> None:
    fault = Fault()
    fault.is_due = True
    async with runner_of(node, lambda: 0.5, fault.changed) as runner:
        async with running(runner) as task:
            await trees.until(lambda: runner.state is ReplicaState.READY and runner.report().pid)
            first = runner.report()
            await asyncio.wait({task}, timeout=10)
            assert task.done()
            assert isinstance(task.exception(), ExceptionGroup)
        assert processes.mark(first.pid) is not None
        async with running(runner):
            await trees.until(lambda: runner.state is ReplicaState.READY and runner.report().pid)
            assert (runner.report().pid, runner.report().incarnation) == (first.pid, 1)
