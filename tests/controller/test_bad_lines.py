"""A node agent on another machine whose line to its controller goes bad: the real ones of both, and a proxy between."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.controller.cluster import Cluster
from tests.controller.remote import Machine, free_ports, minted
from tests.fakes.proxy import Proxy, Way, proxied
from tests.node_agent.nodes import Node
from tests.waiting import until_async

LEASE_WORDS = "no heartbeat was acknowledged"


@dataclass(kw_only=True)
class Line:
    """A controller, a node agent that joined it, one engine there, and the line between the two."""

    cluster: Cluster
    node: Node
    proxy: Proxy

    async def state(self) -> str:
        return str((await self.cluster.get("nodes/far"))["state"])

    async def until_state(self, *states: str, timeout_s: float = 40.0) -> None:
        async def is_so() -> bool:
            return await self.state() in states

        await until_async(is_so, timeout_s, f"the node to be {states}")

    async def replica(self) -> dict[str, Any]:
        (found,) = (await self.cluster.get("replicas"))["items"]
        return {name: found[name] for name in ("id", "state", "pid", "restarts")}

    async def until_ready(self) -> dict[str, Any]:
        async def is_so() -> bool:
            items = (await self.cluster.get("replicas"))["items"]
            return [one["state"] for one in items] == ["ready"]

        await until_async(is_so, 40.0, "one ready replica")
        return await self.replica()

    def sessions(self) -> tuple[int, int]:
        """Return how many sessions the controller has opened, and how many of them live."""
        said = [json.loads(line)["event"] for line in self.cluster.log.getvalue().splitlines()]
        opened = said.count("node_session")
        return opened, opened - said.count("node_session_ended")

    async def until_sessions(self, opened: int) -> None:
        """Wait for at least so many sessions in all, of which exactly one lives."""

        async def is_so() -> bool:
            found, living = self.sessions()
            return found >= opened and living == 1

        await until_async(is_so, 40.0, f"{opened} sessions and one that lives, not {self.sessions()}")

    async def kinds(self) -> list[str]:
        return [event["kind"] for event in (await self.cluster.get("events?limit=1000"))["items"]]

    def endings(self) -> list[str]:
        """Return why the node agent's sessions ended, as it says."""
        return [str(event["reason"]) for event in self.node.events() if event["event"] == "session_ended"]


async def joined(cluster: Cluster, runtime: Path, tmp_path: Path, port: int) -> Node:
    """Return a node that has joined and whose way to the controller is `port`."""
    machine = Machine(authority=runtime / "authority.pem", port=cluster.node_port)
    await machine.join(await minted(cluster, name="far"))
    assert machine.request is not None
    node = Node(tmp_path)
    node.data_dir.mkdir(mode=0o700)
    (node.data_dir / "identity.json").write_text(json.dumps({"node_id": machine.node_id}))
    tls = tmp_path / "tls"
    tls.mkdir(mode=0o700)
    (tls / "key.pem").write_text(machine.request.key_pem)
    (tls / "certificate.pem").write_text(machine.certificate_pem)
    (tls / "authority.pem").write_bytes(machine.root())
    node.config |= {"token": "", "cluster_id": "clu_test", "tls_dir": str(tls), "node_name": "far"}
    node.config["control_target"] = f"127.0.0.1:{port}"
    return node


@pytest.fixture
def heartbeat_s() -> float:
    return 0.2


@pytest.fixture
async def line(url: str, runtime: Path, tmp_path: Path, heartbeat_s: float) -> AsyncIterator[Line]:
    async with (
        Cluster(url, runtime, node_port=free_ports(), heartbeat_s=heartbeat_s) as cluster,
        proxied(cluster.node_port) as proxy,
    ):
        await cluster.ready()
        node = await joined(cluster, runtime, tmp_path, proxy.port)
        try:
            await node.start()
            found = Line(cluster=cluster, node=node, proxy=proxy)
            await found.until_state("ready")
            await cluster.ok("POST", "deployments", {"model": "fake", "engine": "fake"})
            await found.until_ready()
            yield found
        finally:
            await node.close()


async def test_a_line_that_is_reset_again_and_again_costs_dials_and_nothing_else(line: Line) -> None:
    before = await line.replica()
    for count in range(2, 6):
        assert line.proxy.reset() >= 1  # the session's, and the readings' where that is open already
        await line.until_sessions(count)
        await line.until_state("ready")
    assert await line.until_ready() == before
    assert "node_lost" not in await line.kinds()


BREAKS: dict[str, Callable[[Proxy], object]] = {
    "what the node sends is swallowed": lambda proxy: proxy.mute(Way.UP),
    "what the controller sends is swallowed": lambda proxy: proxy.mute(Way.DOWN),
    "everything is swallowed": lambda proxy: proxy.mute(),
    "dials hang": lambda proxy: (proxy.hang(), proxy.reset()),
}


@pytest.mark.parametrize("how", BREAKS)
async def test_a_line_that_says_nothing_is_noticed_at_both_ends_and_taken_up_again(line: Line, how: str) -> None:
    before, dialled = await line.replica(), line.proxy.accepted
    BREAKS[how](line.proxy)
    await line.until_state("suspect", "lost")
    await line.until_state("lost")

    async def has_dialled() -> bool:
        return line.proxy.accepted > dialled

    await until_async(has_dialled, 20.0, "another dial of the node")
    if how != "dials hang":
        assert any(LEASE_WORDS in words for words in line.endings()), line.endings()
    line.proxy.heal()
    await line.until_sessions(2)
    await line.until_state("ready")
    assert await line.until_ready() == before


async def test_a_stream_whose_end_never_arrives_gives_way_to_the_nodes_next_one(line: Line) -> None:
    before = await line.replica()
    line.proxy.mute(Way.UP)
    await line.node.end()
    assert line.sessions() == (1, 1), "the controller does not know yet"
    async with proxied(line.cluster.node_port) as other:
        await line.node.start(control_target=f"127.0.0.1:{other.port}")
        await line.until_sessions(2)
        await line.until_state("ready")
        assert await line.until_ready() == before
        await line.node.end()


@pytest.mark.parametrize("heartbeat_s", [1.0], ids=["lost after 7 s"])
async def test_a_node_behind_a_slow_line_keeps_its_lease(line: Line) -> None:
    before = await line.replica()
    line.proxy.delay(1.0)  # seconds, each way
    await beats(line, 12)
    assert await line.until_ready() == before
    assert line.sessions() == (1, 1)
    assert "node_lost" not in await line.kinds()
    # What is asked of it arrives too, and its answer comes back.
    await line.cluster.ok("PATCH", "deployments/fake", {"replicas": 2})

    async def are_two() -> bool:
        items = (await line.cluster.get("replicas"))["items"]
        return [one["state"] for one in items] == ["ready"] * 2

    await until_async(are_two, 40.0, "a second replica")


async def beats(line: Line, count: int) -> None:
    """Wait until the node was heard of so many times more."""
    silences = [0.0]

    async def are_enough() -> bool:
        silences.append((await line.cluster.get("nodes/far"))["last_seen_s_ago"])
        return sum(after < before for before, after in pairwise(silences)) >= count

    await until_async(are_enough, 60.0, f"{count} heartbeats")
