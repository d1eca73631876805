"""Who is told that a certificate was revoked: nodes by their session, doors by their table, and data planes by both."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from controller.identity import certificates as identities
from controller.identity.certificates import Certificates
from core.identities import Identity, Role
from core.infra.certificates import holder_of
from core.infra.clock import SystemClock
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedDoor
from tests.controller.remote import Machine, RemoteNode, free_ports, minted
from tests.node_agent import nodes
from tests.node_agent.nodes import Node
from tests.waiting import until_async

BOUND_S = 10.0


class Hand(SystemClock):
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.at = 0.0

    def monotonic(self) -> float:
        return self.at


@pytest.fixture
async def listening(url: str, runtime: Path) -> AsyncIterator[Cluster]:
    async with Cluster(url, runtime, node_port=free_ports()) as running:
        await running.ready()
        yield running


async def joined(cluster: Cluster, runtime: Path, name: str) -> Machine:
    machine = Machine(
        authority=runtime / "authority.pem",
        port=cluster.node_port,
        node_id=f"nod_{name}",
        name=name,
        machine_id=f"m-{name}",
    )
    assert not (await machine.join(await minted(cluster))).reject.code
    return machine


async def until(condition: Any, what: str) -> None:
    async def holds() -> bool:
        return bool(condition())

    await until_async(holds, BOUND_S, what)


async def test_nodes_and_doors_are_told_of_a_forgotten_nodes_certificate_and_the_former_release_is_not(
    listening: Cluster, runtime: Path
) -> None:
    one, other, gone = [await joined(listening, runtime, name) for name in ("one", "other", "gone")]
    serial = holder_of(gone.certificate_pem).serial
    newer, former = RemoteNode(one), RemoteNode(other)
    newer.protocol = (1, 2)
    async with newer, former, PlayedDoor(listening.socket) as door:
        await until(lambda: newer.revoked and door.tables and former.ack, "both sessions")
        assert newer.revoked == [frozenset()]
        assert newer.ack is not None
        assert former.ack is not None
        assert (newer.ack.protocol, former.ack.protocol) == (2, 1)
        assert (await listening.request("DELETE", "/api/v1/nodes/gone?force=true"))[0] == 204
        await until(lambda: serial in newer.revoked[-1], "the node's word")
        await until(lambda: serial in door.tables[-1].revoked_serials, "the door's word")
        assert former.revoked == []
        # A node that was away hears of it with its next hello.
        await newer.hang_up()
        newer.revoked.clear()
        await newer.dial()
        await until(lambda: newer.revoked == [frozenset({serial})], "the whole set")
    # And after the controller's restart.
    await listening.stop()
    await listening.start()
    await listening.ready()
    async with newer:
        await until(lambda: newer.revoked[-1] == frozenset({serial}), "the set of the next reign")


async def test_joining_again_revokes_what_a_node_had(listening: Cluster, runtime: Path) -> None:
    one, again = await joined(listening, runtime, "one"), await joined(listening, runtime, "again")
    first = holder_of(again.certificate_pem).serial
    watching = RemoteNode(one)
    watching.protocol = (1, 2)
    async with watching:
        await again.join(await minted(listening))
        await until(lambda: watching.revoked and watching.revoked[-1] == {first}, "the former certificate")


async def test_a_revoked_certificate_is_remembered_for_as_long_as_it_could_be_valid() -> None:
    clock = Hand()
    made: Any = Certificates
    kept: Certificates = made(database=None, authority=None, clock=clock, cluster_id="clu_1")
    kept.forbid(frozenset({"aa"}))
    waiting = asyncio.ensure_future(kept.next_revoked(frozenset({"aa"})))
    clock.at += identities.REMEMBERED_S - 1
    kept.forbid(frozenset({"bb"}))
    assert await waiting == {"aa", "bb"}
    clock.at += 2
    kept.forbid(frozenset({"cc"}))
    assert kept.revoked == {"bb", "cc"}
    assert not kept.is_revoked("aa")


async def test_a_real_plane_refuses_a_forgotten_node_within_the_bound(url: str, runtime: Path, tmp_path: Path) -> None:
    """A real controller, a real node agent, its real HAProxy, and a certificate that the controller gave."""
    node = Node(tmp_path)
    port, tls_dir = nodes.free_ports(1)[0], tmp_path / "tls"
    async with Cluster(url, runtime, node_port=free_ports()) as cluster:
        await cluster.ready()
        thief, other = [await joined(cluster, runtime, name) for name in ("thief", "other")]
        files = {"tls_dir": str(tls_dir), "files_socket": str(node.runtime / "files.sock")}
        plane = {"host": "127.0.0.1", "port": port, **files}

        async def answers(machine: Machine, status: str) -> bool:
            """Return whether a request for a file that is not there is answered so; "" is no answer."""
            try:
                async with asyncio.timeout(5):
                    return (await asked(machine, node, port, tmp_path))[9:12] == status
            except OSError:
                return not status

        try:
            await node.start(
                control_target=f"unix:{cluster.socket}", plane=plane, cluster_id="clu_test", tls_dir=str(tls_dir)
            )
            await until_async(lambda: answers(thief, "404"), 40, "the plane")
            assert (await cluster.request("DELETE", "/api/v1/nodes/thief?force=true"))[0] == 204
            await until_async(lambda: answers(thief, ""), BOUND_S, "the refusal")
            assert await answers(other, "404")
        finally:
            await node.close()


async def asked(machine: Machine, node: Node, port: int, place: Path) -> str:
    """Ask a node's plane under a machine's certificate; return the first line of the answer."""
    assert machine.request is not None
    pair = place / f"{machine.node_id}.pem"
    pair.write_text(machine.certificate_pem + machine.request.key_pem)
    context = ssl.create_default_context(cadata=machine.root().decode())
    context.load_cert_chain(pair)
    node_id = json.loads((node.data_dir / "identity.json").read_text())["node_id"]
    name = Identity(cluster_id="clu_test", role=Role.NODE, name=node_id).dns_name
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname=name)
    try:
        writer.write(f"GET /slice/files/{'0' * 64} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
        return (await reader.readline()).decode()
    finally:
        writer.close()
