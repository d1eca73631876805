"""A certificate's life: renewed by itself, used at the next dial, and told of when it has run out."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from core.identities import Identity, Role, identity_of
from core.infra import certificates, credentials
from core.infra.certificates import Holder
from node_agent import renewal
from protos.slice.node.v1 import node_pb2
from tests.joining import desk as desks
from tests.joining.desk import Desk, serving
from tests.joining.machine import a_machine
from tests.node_agent import controllers
from tests.node_agent.nodes import Node
from tests.waiting import until_async

START = datetime(2026, 11, 25, tzinfo=UTC)
HOLDER = Holder(
    identity=Identity(cluster_id="c", role=Role.NODE, name="n"),
    serial="1",
    valid_from=START,
    expires_at=START + timedelta(hours=24),
)
shares = st.floats(0, 1)


async def _true(is_so: object) -> object:
    return is_so


@given(st.floats(0, 24), shares)
def test_it_is_due_between_half_of_its_life_and_six_tenths(hours: float, chance: float) -> None:
    wait_s = renewal.due_in_s(HOLDER, START + timedelta(hours=hours), chance)
    assert (wait_s == 0.0) >= (hours >= 14.4)
    assert (wait_s > 0.0) >= (hours < 11.9)
    assert wait_s <= max(0.0, 14.4 - hours) * 3600 + 1


def test_without_one_it_is_due_at_once() -> None:
    assert renewal.due_in_s(None, START, 0.5) == 0.0


@given(st.integers(0, 10_000), st.floats(-1e6, 86400), shares)
def test_a_failed_attempt_is_repeated_in_time(attempt: int, left_s: float, chance: float) -> None:
    wait_s = renewal.back_off_s(attempt, left_s, chance)
    assert 1.0 <= wait_s <= 600.0
    if left_s > 10.0:
        assert wait_s <= left_s / 10.0 + 1.0


async def test_a_node_renews_and_its_next_dial_shows_the_new_certificate() -> None:
    desk = Desk(lifetime=timedelta(seconds=60))  # due at once: a certificate's life begins five minutes early
    async with a_machine() as machine:
        async with serving(desk) as served:
            await machine.slice("node", "join", served.line())
            await until_async(
                lambda: _true(set(served.controller.renewed) - set(served.controller.serials)), what="a renewal"
            )
            await until_async(lambda: _true(_serial(machine.block.tls_dir) == served.controller.renewed[-1]))
            assert len(served.controller.serials) == 1, "a renewal does not touch the session"
            port, first = served.port, served.controller
        async with serving(desk, port=port) as served:
            await until_async(lambda: _true(served.controller.serials), what="the next session")
            assert served.controller.serials[0] not in first.serials
            assert served.controller.serials[0] in first.renewed


def _serial(tls_dir: Path) -> str:
    own = credentials.load(tls_dir)
    assert own is not None
    return own.holder.serial


async def test_a_certificate_that_ran_out_is_told_and_joining_again_heals() -> None:
    desk = Desk(lifetime=timedelta(seconds=8))
    async with a_machine() as machine:
        async with serving(desk) as served:
            refusal = node_pb2.Reject(code="node.certificate_invalid", message="this node was told to leave")
            served.controller.refuse_renewal = refusal
            await machine.slice("node", "join", served.line())
            port = served.port
            own = credentials.load(machine.block.tls_dir)
            assert own is not None
            expires_at = own.holder.expires_at
            assert machine.logs().count("certificate_not_renewed") == 1
        await until_async(lambda: _true(desks.now() > expires_at), what="the end of its life")
        desk.lifetime = timedelta(hours=1)
        async with serving(desk, port=port) as served:

            async def state() -> Any:
                return (await machine.json("status"))["state"] == "refused"

            await until_async(state, what="the node to see it")
            stands = await machine.json("status")
            assert "ran out" in stands["message"]
            assert "slice node join LINE --again" in stands["message"]
            done = await machine.slice("up", code=4)
            assert "node.certificate_invalid" in done.err
            await machine.slice("doctor", code=1)
            assert "session_impossible" in machine.logs()
            assert served.controller.serials == []
            await machine.slice("node", "join", served.line(), "--again")
            assert len(served.controller.serials) == 1
            assert (await machine.json("status"))["state"] == "open"


class LocalController(controllers.Controller):
    """Renews over the unix socket, where the bearer token says that it is the machine's own node."""

    def __init__(self) -> None:
        super().__init__()
        self.authority = certificates.new_authority("clu_own", desks.now())
        self.named: list[Identity] = []

    async def Renew(self, request: node_pb2.RenewRequest, context: Any) -> node_pb2.RenewReply:
        csr = x509.load_pem_x509_csr(request.csr_pem.encode())
        names = csr.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        who = identity_of(names.get_values_for_type(x509.UniformResourceIdentifier)[0])
        assert who is not None
        self.named.append(who)
        own = certificates.issued(self.authority, request.csr_pem, who, desks.now())
        return node_pb2.RenewReply(certificate_pem=own.certificate_pem, authority_pem=self.authority.certificate_pem)


async def test_the_controllers_own_node_gets_its_first_certificate_over_the_socket(tmp_path: Path) -> None:
    node, controller = Node(tmp_path), LocalController()
    tls_dir = tmp_path / "tls"
    try:
        async with controllers.serving(node.control, controller):
            await node.start(cluster_id="clu_own", tls_dir=str(tls_dir), standing_file=str(tmp_path / "session.json"))
            await until_async(lambda: _true(tls_dir.exists()), what="the certificate")
            own = credentials.load(tls_dir)
            assert own is not None
            assert own.holder.identity == controller.named[0]
            await until_async(lambda: _true(controller.hellos), what="the session")
            assert own.holder.identity.name == controller.hellos[0].node_id
            assert len(controller.named) == 1, "a fresh one is not renewed again"
    finally:
        await node.close()
