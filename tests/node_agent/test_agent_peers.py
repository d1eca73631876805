"""Two node agents as processes with a real HAProxy each: a file goes from one store to the other, to nobody else."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from core.identities import Identity, Role
from core.infra import cluster
from core.infra.entropy import SystemEntropy
from node_agent import identity
from protos.slice.node.v1 import node_pb2
from tests.node_agent import controllers, nodes, trees
from tests.node_agent.benches import safetensors_bytes, sha256
from tests.node_agent.controllers import Controller
from tests.node_agent.nodes import Node
from tests.node_agent.planes import CLUSTER, DOOR, Caller, Papers

DATA = safetensors_bytes("w", 3_000_000)
DIGEST = sha256(DATA)
NOWHERE = "https://127.0.0.1:9/model.safetensors"


class Member:
    """One node of a cluster of two, and the controller that it listens to."""

    def __init__(self, root: Path, papers: Papers, first_port: int) -> None:
        root.mkdir()
        self.node = Node(root)
        self.node.config["engine_ports"] = (first_port, first_port + 8)
        self.papers, self.port = papers, first_port + 9
        cluster.make_private_dir(self.node.data_dir)
        self.node_id = identity.node_id(self.node.data_dir, SystemEntropy())
        self.identity = Identity(cluster_id=CLUSTER, role=Role.NODE, name=self.node_id)
        papers.equip(root / "tls", self.identity)
        self.node.config["plane"] = {
            "host": "127.0.0.1",
            "port": self.port,
            "tls_dir": str(root / "tls"),
            "files_socket": str(self.node.runtime / "files.sock"),
        }
        self.controller = Controller()

    @property
    def peer(self) -> node_pb2.Peer:
        return node_pb2.Peer(node_id=self.node_id, host="127.0.0.1", port=self.port)

    async def call(self, who: Identity) -> Caller:
        """Return a connection of `who` to this node's plane."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.papers.context(who), server_hostname=self.identity.dns_name
        )
        return Caller(reader, writer)

    def stored(self) -> set[str]:
        return {one.sha256 for one in self.controller.observed[-1].files if not one.want_id}


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[tuple[Member, Member]]:
    papers = Papers(tmp_path)
    async with contextlib.AsyncExitStack() as stack:
        found = []
        first_port, _ = nodes.free_ports(20)
        for number, name in enumerate(("a", "b")):
            member = Member(tmp_path / name, papers, first_port + 10 * number)
            stack.push_async_callback(member.node.close)
            await stack.enter_async_context(controllers.serving(member.node.control, member.controller))
            await member.node.start()
            found.append(member)
        for member in found:
            await trees.until(lambda member=member: member.controller.hellos, 30.0)
        first, second = found
        (tmp_path / "model.safetensors").write_bytes(DATA)
        order = node_pb2.FileWant(want_id="pul_1", source=f"file:{tmp_path}/model.safetensors")
        await first.controller.want(nodes.desired(1, files=[order]))
        await trees.until(lambda: DIGEST in first.stored(), 30.0)
        yield first, second


async def test_a_replica_without_internet_starts_with_a_file_from_another_node(two: tuple[Member, Member]) -> None:
    first, second = two
    want = nodes.want()
    file = node_pb2.FileWant(sha256=DIGEST, size_bytes=len(DATA), path="model.safetensors")
    want.files.append(file)
    await second.controller.want(nodes.desired(1, want))
    await nodes.until_state(second.controller, "fetching")
    assert DIGEST not in second.stored(), "it waits: no way is known yet"

    want.files[0].source = NOWHERE
    want.files[0].peers.append(first.peer)
    await second.controller.want(nodes.desired(2, want))
    await nodes.until_state(second.controller, "ready")
    assert DIGEST in second.stored()
    came = [event for event in second.node.events() if event["event"] == "file_came_from_peer"]
    assert [(event["sha256"], event["peer"]) for event in came] == [(DIGEST, first.node_id)]


async def test_a_door_gets_no_file_and_a_node_nothing_but_files(two: tuple[Member, Member]) -> None:
    first, _ = two
    for who, path, expected in (
        (DOOR, f"/slice/files/{DIGEST}", 403),
        (Identity(cluster_id=CLUSTER, role=Role.NODE, name="nod_x"), f"/slice/files/{'0' * 64}", 404),
        (Identity(cluster_id=CLUSTER, role=Role.NODE, name="nod_x"), "/v1/models", 403),
        (Identity(cluster_id=CLUSTER, role=Role.NODE, name="nod_x"), f"/slice/files/{DIGEST}", 200),
    ):
        caller = await first.call(who)
        answer = await caller.ask(path, method="GET", body=b"")
        assert answer.status == expected
        if expected == 200:
            assert answer.body == DATA
        caller.close()


async def test_the_file_server_is_back_with_the_next_node_agent(two: tuple[Member, Member]) -> None:
    first, second = two
    assert await first.node.end() == 0
    assert not (first.node.runtime / "files.sock").exists()
    hellos = len(first.controller.hellos)
    await first.node.start()
    await trees.until(lambda: len(first.controller.hellos) > hellos, 30.0)
    order = node_pb2.FileWant(
        want_id="cpy_1.0", sha256=DIGEST, size_bytes=len(DATA), path="model.safetensors", source=NOWHERE
    )
    order.peers.append(first.peer)
    await second.controller.want(nodes.desired(1, files=[order]))
    await trees.until(lambda: DIGEST in second.stored(), 30.0)
