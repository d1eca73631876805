"""Joining over real gRPC and TLS: who gets in, who does not and why, and what one may do who waits."""

import asyncio
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from core.infra import certificates
from core.joining import JoinLine
from protos.slice.node.v1 import node_pb2 as pb
from tests.controller.cluster import Cluster
from tests.controller.played import PlayedNode
from tests.controller.remote import Machine, RemoteNode, free_ports, identity, minted
from tests.waiting import until_async


@pytest.fixture
async def open_cluster(url: str, runtime: Path) -> AsyncIterator[Cluster]:
    """A controller that other machines reach."""
    async with Cluster(url, runtime, node_port=free_ports()) as running:
        await running.ready()
        yield running


@pytest.fixture
def machine(open_cluster: Cluster, runtime: Path) -> Machine:
    return Machine(authority=runtime / "authority.pem", port=open_cluster.node_port)


async def until_rejected(node: PlayedNode) -> pb.Reject:
    async def is_rejected() -> bool:
        return node.reject is not None

    await until_async(is_rejected, timeout_s=8, what="a reject")
    assert node.reject is not None
    return node.reject


async def until_shown(cluster: Cluster, name: str, state: str) -> Any:
    async def is_shown() -> bool:
        status, body = await cluster.request("GET", f"/api/v1/nodes/{name}")
        return status == 200 and body["state"] == state

    await until_async(is_shown, timeout_s=8, what=f"node {name} {state}")
    return await cluster.get(f"nodes/{name}")


async def events(cluster: Cluster, kind: str) -> list[Any]:
    return [one for one in (await cluster.get("events?limit=1000"))["items"] if one["kind"] == kind]


async def test_a_machine_joins_once_and_is_a_node_with_the_labels_of_its_token(
    open_cluster: Cluster, machine: Machine, runtime: Path
) -> None:
    line = await minted(open_cluster, labels={"zone": "b"}, name="far")
    assert (line.host, line.port) == ("127.0.0.1", machine.port)
    assert line.is_pinned(certificates.pin_of(machine.root().decode()))
    reply = await machine.join(line)
    assert (reply.reject.code, reply.node_name, reply.is_approved) == ("", "far", True)
    assert reply.authority_pem.encode() == machine.root()
    assert certificates.holder_of(reply.certificate_pem).identity == identity()
    assert (await open_cluster.get("nodes/far"))["state"] == "offline"
    async with RemoteNode(machine) as node:
        shown = await until_shown(open_cluster, "far", "ready")
        assert shown["labels"]["zone"] == "b"
        assert node.reject is None
    assert [one["subject"] for one in await events(open_cluster, "node_joined")] == ["far"]
    for name in ("authority_key.pem", "authority.pem"):
        assert stat.S_IMODE((runtime / name).stat().st_mode) == 0o600


async def test_the_name_that_it_joined_with_stays_whatever_the_node_says(
    open_cluster: Cluster, machine: Machine
) -> None:
    await machine.join(await minted(open_cluster))
    machine.name = "somebody-else"
    async with RemoteNode(machine):
        assert (await until_shown(open_cluster, "far", "ready"))["id"] == "nod_far"


async def _used(cluster: Cluster, machine: Machine) -> JoinLine:
    line = await minted(cluster)
    first = Machine(authority=machine.authority, port=machine.port, node_id="nod_1st", name="first")
    assert (await first.join(line)).certificate_pem
    return line


async def _expired(cluster: Cluster, machine: Machine) -> JoinLine:
    line = await minted(cluster)
    async with cluster.database() as connection:
        await connection.execute(
            "UPDATE controller.join_token SET created_at = now() - interval '1 h', expires_at = now() - interval '1 s'"
        )
    return line


async def _revoked(cluster: Cluster, machine: Machine) -> JoinLine:
    line = await minted(cluster)
    assert (await cluster.ok("DELETE", f"nodes/tokens/{line.token_id}"))["state"] == "revoked"
    return line


async def _of_another_name(cluster: Cluster, machine: Machine) -> JoinLine:
    return await minted(cluster, name="gpu7")


async def _with_another_secret(cluster: Cluster, machine: Machine) -> JoinLine:
    line, other = await minted(cluster), await minted(cluster)
    return JoinLine(host=line.host, port=line.port, token_id=line.token_id, secret=other.secret, pin=line.pin)


async def _with_a_taken_name(cluster: Cluster, machine: Machine) -> JoinLine:
    await _used(cluster, machine)
    machine.name = "first"
    return await minted(cluster)


@pytest.mark.parametrize(
    ("given", "code", "word"),
    [
        (_used, "node.join_token_used", "nod_1st"),
        (_expired, "node.join_token_expired", "expired at"),
        (_revoked, "node.join_token_invalid", "revoked at"),
        (_with_another_secret, "node.join_token_invalid", "not one of this cluster"),
        (_of_another_name, "node.join_name_refused", "gpu7"),
        (_with_a_taken_name, "node.name_taken", "first"),
    ],
    ids=["used", "expired", "revoked", "another secret", "another name", "a taken name"],
)
async def test_a_token_that_does_not_fit_is_refused_under_a_code_of_its_own_and_written_down(
    open_cluster: Cluster, machine: Machine, given: Any, code: str, word: str
) -> None:
    line = await given(open_cluster, machine)
    reply = await machine.join(line)
    assert (reply.reject.code, reply.reject.is_fatal, reply.certificate_pem) == (code, True, "")
    assert word in reply.reject.message
    written = await events(open_cluster, "node_join_refused")
    assert [one["reason"] for one in written] == [code]
    assert line.secret not in str(written) + open_cluster.log.getvalue()
    assert "far" not in [one["name"] for one in (await open_cluster.get("nodes"))["items"]]


def _weak_request() -> str:
    names = x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(identity().uri), x509.DNSName(identity().dns_name)]
    )
    builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).add_extension(names, critical=False)
    csr = builder.sign(rsa.generate_private_key(65537, 1024), hashes.SHA256())
    return csr.public_bytes(serialization.Encoding.PEM).decode()


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"csr_pem": certificates.new_request(identity("nod_other")).csr_pem}, "node.csr_refused"),
        ({"csr_pem": certificates.new_request(identity(cluster_id="clu_other")).csr_pem}, "node.csr_refused"),
        ({"csr_pem": _weak_request()}, "node.csr_refused"),
        ({"csr_pem": "x" * 20_000}, "node.csr_refused"),
        ({"csr_pem": ""}, "node.csr_refused"),
        ({"protocol_min": 3, "protocol_max": 4}, "node.protocol_too_new"),
        ({"protocol_min": 0, "protocol_max": 0}, "node.protocol_too_old"),
        ({"node_name": "../etc"}, "request.invalid_name"),
        ({"node_id": "nod far"}, "request.invalid_field"),
        ({"machine_id": ""}, "request.invalid_field"),
    ],
    ids=["node", "cluster", "weak key", "long", "none", "newer", "older", "name", "id", "machine"],
)
async def test_a_request_that_is_not_right_is_refused_and_the_token_still_works(
    open_cluster: Cluster, machine: Machine, fields: dict[str, Any], code: str
) -> None:
    line = await minted(open_cluster)
    assert (await machine.join(line, **fields)).reject.code == code
    assert [one["reason"] for one in await events(open_cluster, "node_join_refused")] == [code]
    assert (await machine.join(line)).certificate_pem


async def test_of_many_who_join_with_one_token_at_once_one_gets_in(open_cluster: Cluster, machine: Machine) -> None:
    line = await minted(open_cluster)
    machines = [
        Machine(authority=machine.authority, port=machine.port, node_id=f"nod_{number}", name=f"n{number}")
        for number in range(8)
    ]
    replies = await asyncio.gather(*(one.join(line) for one in machines))
    assert sorted(reply.reject.code for reply in replies) == ["", *["node.join_token_used"] * 7]
    assert len((await open_cluster.get("nodes"))["items"]) == 1


async def test_who_lost_the_answer_may_ask_again_with_the_same_key_alone(
    open_cluster: Cluster, machine: Machine
) -> None:
    line = await minted(open_cluster)
    first = (await machine.join(line)).certificate_pem
    again = (await machine.join(line)).certificate_pem
    assert again
    assert again != first
    machine.request = None
    assert (await machine.join(line)).reject.code == "node.join_token_used"
    assert len(await events(open_cluster, "node_joined")) == 1


async def test_another_machine_cannot_take_the_id_of_one_that_lives(open_cluster: Cluster, machine: Machine) -> None:
    await machine.join(await minted(open_cluster))
    async with RemoteNode(machine) as node, PlayedNode(open_cluster.socket):
        await until_shown(open_cluster, "far", "ready")
        await until_shown(open_cluster, "box", "ready")
        copy = Machine(authority=machine.authority, port=machine.port, machine_id="m3")
        assert (await copy.join(await minted(open_cluster))).reject.code == "node.identity_conflict"
        own = Machine(authority=machine.authority, port=machine.port, node_id="nod_1", name="one", machine_id="m1")
        assert (await own.join(await minted(open_cluster))).reject.code == "node.identity_conflict"
        assert node.reject is None


async def test_whoever_fails_often_is_not_listened_to_for_a_while(open_cluster: Cluster, machine: Machine) -> None:
    line = await _with_another_secret(open_cluster, machine)
    codes = [(await machine.join(line)).reject.code for _ in range(12)]
    assert codes == ["node.join_token_invalid"] * 10 + ["node.join_limited"] * 2
    reply = await machine.join(await minted(open_cluster))
    assert (reply.reject.code, reply.reject.is_fatal) == ("node.join_limited", False)
    assert 0 < reply.reject.retry_after_ms <= 60_000
    assert len(await events(open_cluster, "node_join_refused")) == 10


async def test_a_node_that_waits_gets_nothing_before_its_approval(open_cluster: Cluster, machine: Machine) -> None:
    reply = await machine.join(await minted(open_cluster, is_approving=False))
    assert not reply.is_approved
    async with RemoteNode(machine) as node:
        node.engines = [pb.EngineFact(engine="fake", is_usable=True, device_kinds=["cpu"], installed_versions=["1"])]
        assert not (await until_shown(open_cluster, "far", "ready"))["is_approved"]
        await open_cluster.ok("PUT", "secrets/s3", {"value": "very-secret"})
        await open_cluster.ok("POST", "pulls", {"name": "smollm2"})
        await open_cluster.ok("POST", "deployments", {"model": "fake", "engine": "fake"})

        async def is_refused() -> bool:
            shown = await open_cluster.get("deployments/fake")
            return "waits for `slice node approve`" in str(shown)

        await until_async(is_refused, what="the refusal")
        assert all(not told.replicas and not told.files for told in node.desired)
        shown = await open_cluster.ok("POST", "nodes/far/approve")
        assert shown["is_approved"]
        await node.until_told(lambda told: len(told.replicas) == 1 and len(told.files) == 1)
        assert (await open_cluster.ok("POST", "nodes/far/approve"))["is_approved"]
    assert len(await events(open_cluster, "node_approved")) == 1


async def test_a_token_for_one_who_waits_does_not_take_over_a_node_that_works(
    open_cluster: Cluster, machine: Machine
) -> None:
    await machine.join(await minted(open_cluster))
    copy = Machine(authority=machine.authority, port=machine.port, machine_id="m9")
    reply = await copy.join(await minted(open_cluster, is_approving=False))
    assert reply.reject.code == "node.identity_conflict"


async def test_a_node_that_joins_again_ends_what_its_former_certificate_began(
    open_cluster: Cluster, machine: Machine
) -> None:
    await machine.join(await minted(open_cluster))
    former = (machine.certificate_pem, machine.request)
    async with RemoteNode(machine) as node:
        await until_shown(open_cluster, "far", "ready")
        machine.request = None
        assert (await machine.join(await minted(open_cluster))).certificate_pem
        reject = await until_rejected(node)
        assert (reject.code, reject.is_fatal) == ("node.certificate_invalid", True)
    assert former[1] is not None
    async with RemoteNode(machine, channel=machine.channel(former[0], former[1].key_pem)) as stale:
        assert (await until_rejected(stale)).code == "node.certificate_invalid"
    async with RemoteNode(machine) as fresh:
        await until_shown(open_cluster, "far", "ready")
        assert fresh.reject is None


async def test_without_a_node_host_there_is_no_token_and_no_authority(cluster: Cluster, runtime: Path) -> None:
    status, body = await cluster.request("POST", "/api/v1/nodes/tokens", {})
    assert (status, body["error"]["code"]) == (409, "node.not_listening")
    assert (await cluster.get("status"))["node_listener"] is None
    assert not (runtime / "authority.pem").exists()


async def test_tokens_are_listed_without_secrets_and_a_repeated_request_shows_the_line_once(
    open_cluster: Cluster,
) -> None:
    headers = {"Idempotency-Key": "k1"}
    first = await open_cluster.request("POST", "/api/v1/nodes/tokens", {"ttl_s": 60}, headers=headers)
    again = await open_cluster.request("POST", "/api/v1/nodes/tokens", {"ttl_s": 60}, headers=headers)
    assert (first[0], again[0]) == (201, 201)
    assert first[1]["line"].startswith("slice node join 127.0.0.1:")
    assert again[1] == {**first[1], "line": None}
    listed = (await open_cluster.get("nodes/tokens"))["items"]
    assert [(one["id"], one["state"]) for one in listed] == [(first[1]["id"], "usable")]
    assert "line" not in listed[0]
    assert "secret" not in str(listed)
    assert (await open_cluster.get("status"))["node_listener"]["host"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"ttl_s": 1}, "request.out_of_range"),
        ({"name": "a b"}, "request.invalid_name"),
        ({"labels": {"a b": "c"}}, "request.invalid_field"),
        ({"labels": {"container.program": "podman"}}, "request.invalid_field"),
        ({"for": "me"}, "request.unknown_field"),
    ],
    ids=["ttl", "name", "label", "own label", "field"],
)
async def test_a_wish_for_a_token_that_is_not_right_is_refused(
    open_cluster: Cluster, body: dict[str, Any], code: str
) -> None:
    status, answer = await open_cluster.request("POST", "/api/v1/nodes/tokens", body)
    assert (status, answer["error"]["code"]) == (400, code)
    assert (await open_cluster.get("nodes/tokens"))["items"] == []


async def test_a_join_that_is_too_large_is_refused_by_its_size(open_cluster: Cluster, machine: Machine) -> None:
    line = await minted(open_cluster)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await machine.join(line, csr_pem="x" * 100_000)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
