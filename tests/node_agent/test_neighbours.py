"""Two node agents on one machine, with replicas of one name: whatever happens to one, the other's engines live."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.infra import processes
from node_agent import shim_client
from tests.node_agent import controllers, nodes, trees
from tests.node_agent.controllers import Controller
from tests.node_agent.nodes import Node

Both = tuple[tuple[Node, Controller], tuple[Node, Controller]]


@pytest.fixture
async def both(tmp_path: Path) -> AsyncIterator[Both]:
    async with contextlib.AsyncExitStack() as stack:
        found = []
        first, _ = nodes.free_ports(16)
        for number, name in enumerate(("left", "right")):
            (tmp_path / name).mkdir()
            node = Node(tmp_path / name)
            node.config["engine_ports"] = (first + 8 * number, first + 8 * (number + 1))
            stack.push_async_callback(node.close)
            controller = await stack.enter_async_context(controllers.serving(node.control, Controller()))
            await node.start()
            await trees.until(lambda controller=controller: controller.hellos)
            await controller.want(nodes.desired(1, nodes.want(fork_tree=2)))
            await nodes.until_state(controller, "ready")
            found.append((node, controller))
        yield found[0], found[1]


def tree_of(node: Node) -> list[processes.ProcessMark]:
    record = shim_client.read_record(node.data_dir / "replicas" / "rep_one")
    assert record is not None
    assert record.status.shim is not None
    return processes.family(frozenset({record.status.shim.pid}))


async def test_a_node_that_is_torn_down_takes_nothing_of_its_neighbour_along(both: Both) -> None:
    (left, _), (right, controller) = both
    mine, theirs = tree_of(left), tree_of(right)
    assert len(mine) == len(theirs) == 4
    await left.end(signal.SIGKILL)
    os.kill(mine[0].pid, signal.SIGKILL)
    await left.close()
    assert not [member for member in mine if processes.is_alive(member)]
    assert all(processes.is_alive(member) for member in theirs)
    report = controller.replica("rep_one")
    assert (report.state, report.incarnation) == ("ready", 1)


async def test_a_node_that_sweeps_after_its_killed_shim_leaves_its_neighbour_alone(both: Both) -> None:
    (left, controller), (right, _) = both
    mine, theirs = tree_of(left), tree_of(right)
    for member in mine[:2]:
        os.kill(member.pid, signal.SIGKILL)
    await trees.until(lambda: (r := controller.replica("rep_one")).incarnation == 2 and r.state == "ready")
    assert not [member for member in mine if processes.is_alive(member)]
    assert all(processes.is_alive(member) for member in theirs)


async def test_a_tree_whose_node_agent_shim_and_leader_are_killed_at_once_is_ended_by_the_next(both: Both) -> None:
    (left, controller), (right, _) = both
    mine, theirs = tree_of(left), tree_of(right)
    await left.end(signal.SIGKILL)
    for member in mine[:2]:
        os.kill(member.pid, signal.SIGKILL)
    await asyncio.gather(*(trees.until(lambda m=member: not processes.is_alive(m)) for member in mine[:2]))
    await left.start()
    await trees.until(
        lambda: len(controller.hellos) == 2 and (r := controller.replica("rep_one")) and r.incarnation == 2
    )
    assert not [member for member in mine if processes.is_alive(member)]
    assert all(processes.is_alive(member) for member in theirs)
