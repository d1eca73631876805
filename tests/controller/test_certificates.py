"""Certificates over real TLS: who may hold a session with which, how they are renewed, and what ends them."""

import asyncio
import contextlib
import io
import socket
import ssl
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from controller.api.node_listeners import NodeListeners
from controller.identity.authority import AuthorityFiles
from controller.identity.certificates import Certificates
from core.errors import Failure
from core.identities import Identity, Role
from core.infra import certificates, postgres
from core.infra.clock import SystemClock
from core.infra.grpc import CHANNEL_OPTIONS, bearer
from core.infra.logs import Log
from protos.slice.node.v1 import node_pb2 as pb
from protos.slice.node.v1 import node_pb2_grpc
from protos.slice.routes.v1 import routes_pb2 as routes
from protos.slice.routes.v1 import routes_pb2_grpc
from tests.controller.cluster import DOOR, NODE, Cluster
from tests.controller.played import PlayedNode
from tests.controller.remote import Machine, RemoteNode, free_ports, identity, minted
from tests.controller.test_joining import until_rejected, until_shown
from tests.waiting import until_async


@pytest.fixture
async def joined(url: str, runtime: Path) -> AsyncIterator[tuple[Cluster, Machine]]:
    """A controller that other machines reach, and one that has joined."""
    async with Cluster(url, runtime, node_port=free_ports()) as running:
        await running.ready()
        machine = Machine(authority=runtime / "authority.pem", port=running.node_port)
        await machine.join(await minted(running))
        yield running, machine


def signed(runtime: Path, who: Identity, *, lifetime: timedelta = certificates.LIFETIME) -> tuple[str, str]:
    """Return a certificate and its key that the cluster's own authority signed behind the controller's back."""
    authority = certificates.whole_authority(
        (runtime / "authority_key.pem").read_text(), (runtime / "authority.pem").read_text()
    )
    request = certificates.new_request(who)
    given = certificates.issued(authority, request.csr_pem, who, datetime.now(UTC), lifetime)
    return given.certificate_pem, request.key_pem


async def renewed(channel: Any, csr_pem: str, token: str = "") -> pb.RenewReply:
    async with channel:
        stub: Any = node_pb2_grpc.NodeControlStub(channel)
        metadata = bearer(token) if token else None
        reply: pb.RenewReply = await stub.Renew(pb.RenewRequest(csr_pem=csr_pem), metadata=metadata, timeout=10)
    return reply


async def certified(cluster: Cluster, door_id: str, csr_pem: str) -> routes.CertifyReply:
    async with grpc.aio.insecure_channel(f"unix:{cluster.socket}", options=CHANNEL_OPTIONS) as channel:
        stub: Any = routes_pb2_grpc.RoutesStub(channel)
        request = routes.CertifyRequest(door_id=door_id, csr_pem=csr_pem)
        reply: routes.CertifyReply = await stub.Certify(request, metadata=bearer(DOOR), timeout=10)
    return reply


async def test_a_node_renews_over_its_own_certificate_and_goes_on_with_the_next(
    joined: tuple[Cluster, Machine],
) -> None:
    cluster, machine = joined
    request = certificates.new_request(identity())
    reply = await renewed(machine.channel(), request.csr_pem)
    assert (reply.reject.code, reply.authority_pem.encode()) == ("", machine.root())
    assert certificates.holder_of(reply.certificate_pem).identity == identity()
    machine.certificate_pem, machine.request = reply.certificate_pem, request
    async with RemoteNode(machine):
        await until_shown(cluster, "far", "ready")
    async with cluster.database() as connection:
        rows = await connection.execute("SELECT role, subject, count(*) FROM controller.certificate GROUP BY 1, 2")
        assert sorted(await rows.fetchall()) == [("controller", "0", 1), ("node", "nod_far", 2)]


async def test_a_node_gets_no_certificate_for_another_name(joined: tuple[Cluster, Machine]) -> None:
    _, machine = joined
    for name in (identity("nod_1"), identity("0", role=Role.CONTROLLER), identity("d-1", role=Role.DOOR)):
        reply = await renewed(machine.channel(), certificates.new_request(name).csr_pem)
        assert (reply.reject.code, reply.reject.is_fatal, reply.certificate_pem) == ("node.csr_refused", True, "")


async def test_the_controllers_own_node_asks_by_its_socket_and_for_itself_alone(
    joined: tuple[Cluster, Machine],
) -> None:
    cluster, _ = joined

    def local() -> Any:
        return grpc.aio.insecure_channel(f"unix:{cluster.socket}", options=CHANNEL_OPTIONS)

    own = certificates.new_request(identity("nod_1"))
    assert (await renewed(local(), own.csr_pem, NODE)).reject.code == "node.hello_required"
    async with PlayedNode(cluster.socket):
        await until_shown(cluster, "box", "ready")
        reply = await renewed(local(), own.csr_pem, NODE)
        assert certificates.holder_of(reply.certificate_pem).identity == identity("nod_1")
        for other in (identity(), identity("nod_1", cluster_id="clu_x"), identity("nod_1", role=Role.DOOR)):
            refused = await renewed(local(), certificates.new_request(other).csr_pem, NODE)
            assert refused.reject.code in {"node.hello_required", "node.csr_refused"}
    with pytest.raises(grpc.aio.AioRpcError, match=r"auth\.missing"):
        await renewed(local(), own.csr_pem)


async def test_a_hello_of_another_node_than_the_certificates_is_refused(joined: tuple[Cluster, Machine]) -> None:
    cluster, machine = joined
    async with PlayedNode(cluster.socket) as own, RemoteNode(machine, node_id="nod_1") as liar:
        reject = await until_rejected(liar)
        assert (reject.code, reject.is_fatal) == ("node.certificate_invalid", True)
        await until_shown(cluster, "box", "ready")
        assert own.reject is None


@pytest.mark.parametrize(
    "who",
    [identity("nod_far", role=Role.DOOR), identity("0", role=Role.CONTROLLER), identity(cluster_id="clu_other")],
    ids=["door", "controller", "cluster"],
)
async def test_a_certificate_of_another_role_or_cluster_holds_no_session(
    joined: tuple[Cluster, Machine], runtime: Path, who: Identity
) -> None:
    _, machine = joined
    async with RemoteNode(machine, channel=machine.channel(*signed(runtime, who))) as node:
        assert (await until_rejected(node)).code == "node.certificate_invalid"


async def test_a_certificate_of_another_authority_or_none_reaches_nothing(
    joined: tuple[Cluster, Machine],
) -> None:
    _, machine = joined
    authority = certificates.new_authority("clu_test", datetime.now(UTC))
    request = certificates.new_request(identity())
    forged = certificates.issued(authority, request.csr_pem, identity(), datetime.now(UTC))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await renewed(machine.channel(forged.certificate_pem, request.key_pem), request.csr_pem)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_doors_are_not_served_on_the_port_of_nodes(joined: tuple[Cluster, Machine]) -> None:
    _, machine = joined
    async with machine.channel() as channel:
        stub: Any = routes_pb2_grpc.RoutesStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Certify(routes.CertifyRequest(door_id="d"), metadata=bearer(DOOR), timeout=10)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_session_ends_with_the_certificate_that_it_came_by(
    joined: tuple[Cluster, Machine], runtime: Path
) -> None:
    cluster, machine = joined
    short = machine.channel(*signed(runtime, identity(), lifetime=timedelta(seconds=3)))
    async with RemoteNode(machine, channel=short) as node:
        await until_shown(cluster, "far", "ready")
        reject = await until_rejected(node)
        assert (reject.code, reject.is_fatal) == ("node.certificate_invalid", False)


async def test_a_revoked_certificate_stays_so_over_a_restart_of_the_controller(
    joined: tuple[Cluster, Machine],
) -> None:
    cluster, machine = joined
    async with cluster.database() as connection:
        await connection.execute("UPDATE controller.certificate SET revoked_at = now() WHERE role = 'node'")
    await cluster.stop()
    await cluster.start()
    await cluster.ready()
    async with RemoteNode(machine) as node:
        assert (await until_rejected(node)).code == "node.certificate_invalid"
    reply = await renewed(machine.channel(), certificates.new_request(identity()).csr_pem)
    assert reply.reject.code == "node.certificate_invalid"
    async with machine.channel() as channel:
        stub: Any = node_pb2_grpc.NodeControlStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.SendLog(iter([pb.LogChunk(request_id="r", is_last=True)]), timeout=10)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


async def test_a_node_that_no_row_knows_is_not_made_one_by_its_certificate(
    joined: tuple[Cluster, Machine], runtime: Path
) -> None:
    cluster, machine = joined
    unknown = machine.channel(*signed(runtime, identity("nod_gone")))
    async with RemoteNode(machine, node_id="nod_gone", channel=unknown) as node:
        reject = await until_rejected(node)
        assert (reject.code, reject.is_fatal) == ("node.not_joined", True)
    assert (await cluster.request("GET", "/api/v1/nodes/nod_gone"))[0] == 404


async def test_a_copy_of_a_joined_node_on_the_controllers_machine_is_refused(joined: tuple[Cluster, Machine]) -> None:
    cluster, machine = joined
    async with PlayedNode(cluster.socket, node_id=machine.node_id) as copy:
        assert (await until_rejected(copy)).code == "node.identity_conflict"


async def test_a_door_is_certified_under_its_own_name_alone(cluster: Cluster, runtime: Path) -> None:
    door = identity("host-1-ab12", role=Role.DOOR)
    request = certificates.new_request(door)
    reply = await certified(cluster, door.name, request.csr_pem)
    assert (reply.code, reply.cluster_id) == ("", "clu_test")
    assert certificates.holder_of(reply.certificate_pem).identity == door
    assert reply.authority_pem == (runtime / "authority.pem").read_text()
    for door_id, csr_pem in (("host-2", request.csr_pem), ("a b", request.csr_pem), (door.name, "no request")):
        refused = await certified(cluster, door_id, csr_pem)
        assert (refused.code, refused.certificate_pem) == ("node.csr_refused", "")


async def test_a_message_over_the_limit_ends_the_session_by_its_size(joined: tuple[Cluster, Machine]) -> None:
    cluster, machine = joined
    async with RemoteNode(machine) as node:
        await until_shown(cluster, "far", "ready")
        reports = [pb.FileReport(state="done", message="x" * 1024) for _ in range(5 * 1024)]
        with contextlib.suppress(grpc.aio.AioRpcError):
            await node.say(pb.NodeMessage(observed=pb.Observed(files=reports)))
        # Ended by the server while it was being written, a write may fail on its own before the reason is read.
        assert await node.stream.code() in {grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await renewed(machine.channel(), "x" * 5 * 1024**2)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    async with RemoteNode(machine) as again:
        await until_shown(cluster, "far", "ready")
        assert again.reject is None


@pytest.mark.parametrize(
    ("first", "code", "is_fatal"),
    [
        (pb.NodeMessage(heartbeat=pb.Heartbeat(sequence=1)), "node.hello_required", False),
        (pb.NodeMessage(), "node.hello_required", False),
        (pb.NodeMessage(hello=pb.Hello()), "request.invalid_field", True),
        (
            pb.NodeMessage(hello=pb.Hello(node_id="nod_far", machine_id="m2", protocol_min=0, protocol_max=0)),
            "node.protocol_too_old",
            True,
        ),
        (
            pb.NodeMessage(
                hello=pb.Hello(
                    node_id="nod_far",
                    machine_id="m2",
                    protocol_min=1,
                    protocol_max=1,
                    observed=pb.Observed(replicas=[pb.ReplicaReport(replica_id="rep_1")]),
                )
            ),
            "request.invalid_field",
            True,
        ),
        (
            pb.NodeMessage(
                hello=pb.Hello(
                    node_id="nod_far", machine_id="m2", protocol_min=1, protocol_max=1, max_leader_epoch_seen=9
                )
            ),
            "controller.not_ready",
            False,
        ),
    ],
    ids=["a heartbeat", "nothing", "an empty hello", "an old protocol", "an unspecified state", "a newer leader"],
)
async def test_a_first_message_that_is_not_right_is_refused_by_its_code(
    joined: tuple[Cluster, Machine], first: pb.NodeMessage, code: str, is_fatal: bool
) -> None:
    _, machine = joined
    async with machine.channel() as channel:
        stub: Any = node_pb2_grpc.NodeControlStub(channel)
        call = stub.Session(timeout=10)
        await call.write(first)
        reject = (await call.read()).reject
    assert (reject.code, reject.is_fatal) == (code, is_fatal)
    assert reject.message


async def test_a_heartbeat_that_goes_back_ends_the_session(joined: tuple[Cluster, Machine]) -> None:
    cluster, machine = joined
    async with RemoteNode(machine) as node:
        await until_shown(cluster, "far", "ready")
        node.is_beating = False
        for sequence in (900, 899):
            await node.say(pb.NodeMessage(heartbeat=pb.Heartbeat(sequence=sequence, devices=node.devices())))
        assert (await until_rejected(node)).code == "node.stale_sequence"


async def test_a_taken_port_ends_the_controller_with_a_failure_that_names_it(url: str, runtime: Path) -> None:
    port = free_ports()
    with socket.create_server(("127.0.0.1", port + 1)):
        async with Cluster(url, runtime, node_port=port) as cluster:
            with pytest.raises(Failure, match=f"127.0.0.1:{port + 1}") as caught:
                await cluster.ended()
    assert caught.value.code == "cluster.port_taken"


class _Movable(SystemClock):
    """The real clock, wound back."""

    def __init__(self, back: timedelta) -> None:
        self.back = back

    def now(self) -> datetime:
        return super().now() - self.back


async def test_the_controllers_own_certificate_is_replaced_while_a_connection_goes_on(
    database: postgres.Database, tmp_path: Path
) -> None:
    clock, port = _Movable(timedelta(hours=13)), free_ports()
    service = Certificates(
        database=database,
        authority=AuthorityFiles(tmp_path, cluster_id="clu_test", clock=clock),
        clock=clock,
        cluster_id="clu_test",
    )
    log = Log("test", clock, io.StringIO())
    listeners = NodeListeners(host="127.0.0.1", port=port, certificates=service, clock=clock, log=log)
    listeners.add(nodes=node_pb2_grpc.NodeControlServicer(), joins=node_pb2_grpc.NodeJoinServicer())

    def serial() -> str:
        return certificates.holder_of(ssl.get_server_certificate(("127.0.0.1", port + 1))).serial

    async def unserved(channel: Any) -> None:
        stub: Any = node_pb2_grpc.NodeControlStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Renew(pb.RenewRequest(), timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED

    await listeners.start()
    try:
        machine = Machine(authority=tmp_path / "authority.pem", port=port)
        machine.request = certificates.new_request(identity())
        async with machine.channel(*signed(tmp_path, identity())) as channel:
            await unserved(channel)
            first = await asyncio.to_thread(serial)
            await listeners.refresh()
            assert await asyncio.to_thread(serial) == first
            clock.back = timedelta()
            await listeners.refresh()
            assert await asyncio.to_thread(serial) != first
            await unserved(channel)
    finally:
        await listeners.stop()


async def test_a_holder_that_asks_for_certificates_without_end_has_to_wait(joined: tuple[Cluster, Machine]) -> None:
    _, machine = joined
    csr_pem = certificates.new_request(identity()).csr_pem
    async with machine.channel() as channel:
        stub: Any = node_pb2_grpc.NodeControlStub(channel)
        replies = [await stub.Renew(pb.RenewRequest(csr_pem=csr_pem), timeout=10) for _ in range(31)]
    assert [reply.reject.code for reply in replies] == [""] * 30 + ["node.certificate_limited"]
    assert not replies[-1].reject.is_fatal


async def test_no_certificate_is_issued_past_a_revocation_that_memory_does_not_know_yet(
    joined: tuple[Cluster, Machine],
) -> None:
    cluster, machine = joined
    csr_pem = certificates.new_request(identity()).csr_pem
    async with cluster.database() as connection, connection.transaction():
        turn = "SELECT pg_advisory_xact_lock(hashtextextended('slice certificate node nod_far', 0))"
        await connection.execute(turn)
        asked = asyncio.create_task(renewed(machine.channel(), csr_pem))

        async def waits() -> bool:
            cursor = await connection.execute(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
            )
            return (await cursor.fetchone()) == (1,)

        await until_async(waits, timeout_s=8, what="the renewal to wait")
        await connection.execute("UPDATE controller.certificate SET revoked_at = now() WHERE subject = 'nod_far'")
    assert (await asked).reject.code == "node.certificate_invalid"


async def test_the_authority_is_made_once_and_its_certificate_can_be_made_again(tmp_path: Path) -> None:
    def files() -> AuthorityFiles:
        return AuthorityFiles(tmp_path, cluster_id="clu_test", clock=SystemClock())

    made = await files().get()
    assert await files().get() == made
    (tmp_path / "authority.pem").unlink()
    again = await files().get()
    assert (again.key_pem, again.pin) == (made.key_pem, made.pin)


@pytest.mark.parametrize("name", ["authority.pem", "authority_key.pem"])
async def test_a_damaged_or_foreign_authority_is_told_and_left_as_it_is(tmp_path: Path, name: str) -> None:
    other = certificates.new_authority("clu_test", datetime.now(UTC))
    foreign = other.key_pem if name == "authority_key.pem" else other.certificate_pem
    for text in ("no PEM", foreign):
        await AuthorityFiles(tmp_path, cluster_id="clu_test", clock=SystemClock()).get()
        before = (tmp_path / name).read_text()
        (tmp_path / name).write_text(text)
        with pytest.raises(Failure, match="authority") as caught:
            await AuthorityFiles(tmp_path, cluster_id="clu_test", clock=SystemClock()).get()
        assert caught.value.code == "cluster.data_dir_unusable"
        assert "PRIVATE" not in str(caught.value)
        assert (tmp_path / name).read_text() == text
        (tmp_path / name).write_text(before)
    (tmp_path / "authority_key.pem").unlink()
    with pytest.raises(Failure, match="its key is missing"):
        await AuthorityFiles(tmp_path, cluster_id="clu_test", clock=SystemClock()).get()
