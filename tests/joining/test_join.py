"""`slice node join` against a desk that may lie, and what the commands mean on a machine that joined."""

import asyncio
import json
import os
import signal
import stat
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from core.identities import Role
from core.infra import certificates, credentials
from protos.slice.node.v1 import node_pb2
from tests.joining import desk as desks
from tests.joining.desk import Desk, serving
from tests.joining.machine import Machine, a_machine
from tests.node_agent.nodes import desired, want
from tests.waiting import until_async


@pytest.fixture
async def machine() -> AsyncIterator[Machine]:
    async with a_machine() as made:
        yield made


def error(done: object) -> str:
    return str(done.err).split("]")[0].partition("[")[2]  # type: ignore[attr-defined]


async def test_a_machine_joins_works_and_leaves_nothing_when_it_is_down(machine: Machine) -> None:
    async with serving(Desk()) as served:
        facts = await machine.json("node", "join", served.line(), "--name", "gpu-3")
        block = machine.block
        assert facts["node_name"] == block.node_name == "gpu-3"
        assert facts["cluster_id"] == block.cluster_id == desks.CLUSTER
        assert block.plane_host == "127.0.0.1"
        assert served.controller.hellos[-1].node_id == block.node_id == served.desk.asked[-1].node_id
        assert served.controller.hellos[-1].node_name == "gpu-3"
        own = credentials.load(block.tls_dir)
        assert own is not None
        assert served.controller.serials == [own.holder.serial]
        assert own.holder.identity == block.identity
        for name in credentials.FILES:
            assert stat.S_IMODE((block.tls_dir / name).stat().st_mode) == 0o600
        assert stat.S_IMODE(block.file.stat().st_mode) == 0o600

        stands = await machine.json("status")
        assert (stands["state"], stands["node_name"], stands["is_certificate_valid"]) == ("open", "gpu-3", True)
        doctor = await machine.slice("doctor", code=0)
        assert "hears it" in doctor.out
        assert "PostgreSQL" not in doctor.out
        assert "session_open" in (await machine.slice("logs", "node_agent")).out
        again = await machine.slice("up")
        assert "gpu-3" in again.out

        await machine.slice("down")
        assert machine.leftovers() == []
        assert len(served.controller.goodbyes) == 1
        assert (await machine.json("status"))["state"] == "down"
        await machine.slice("up")
        await until_async(lambda: _true(len(served.controller.serials) == 2), what="the second session")


async def _true(is_so: bool) -> bool:
    return is_so


async def test_commands_of_the_controller_say_where_to_run_them(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await machine.slice("node", "join", served.line())
        for words in (("list",), ("ps",), ("run", "smollm2", "hi"), ("node", "list")):
            done = await machine.slice(*words, code=6)
            assert "its controller is at 127.0.0.1" in done.err
            assert "slice context add" in done.err
        refused = await machine.slice("up", "--port", "7999", code=2)
        assert "port is a setting of a controller" in refused.err
        unknown = await machine.slice("logs", "smollm2", code=3)
        assert "node_agent, supervisor" in unknown.err


async def test_who_joined_already_must_say_so(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await machine.slice("node", "join", served.line())
        done = await machine.slice("node", "join", served.line(), code=5)
        assert error(done) == "node.already_joined"
        assert "--again" in done.err
        assert len(served.desk.asked) == 1


async def test_joining_again_changes_the_certificate_and_no_engine_notices(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await machine.slice("node", "join", served.line(), "--name", "one")
        await served.controller.want(desired(1, want()))
        await until_async(lambda: _true(_state(served) == "ready"), what="the engine")
        report = served.controller.replica("rep_one")
        assert report is not None
        before, serial = machine.block, served.controller.serials[-1]
        served.controller.desired = None
        await machine.slice("node", "join", served.line(), "--again")
        assert machine.block == before
        await until_async(lambda: _true(served.controller.serials[-1] != serial), what="the new certificate")
        assert served.controller.hellos[-1].node_id == before.node_id
        after = served.controller.hellos[-1].observed.replicas
        assert [(item.pid, item.state) for item in after] == [(report.pid, "ready")]


def _state(served: desks.Served) -> str:
    report = served.controller.replica("rep_one")
    return report.state if report is not None else ""


async def test_a_line_of_another_cluster_does_not_take_a_node_away(machine: Machine) -> None:
    other = Desk(authority=certificates.new_authority("clu_other", desks.now()))
    async with serving(Desk()) as served:
        await machine.slice("node", "join", served.line())
        before = machine.block
        pair = _pair_of("clu_other", other)
        async with serving(other, chain=pair) as second:
            done = await machine.slice("node", "join", second.line(), "--again", code=5)
            assert "is a node of cluster clu_desk, the line is of clu_other" in done.err
            assert second.desk.asked == []
        assert machine.block == before


def _pair_of(cluster_id: str, desk: Desk) -> tuple[bytes, bytes]:
    who = desks.Identity(cluster_id=cluster_id, role=Role.CONTROLLER, name="0")
    request = certificates.new_request(who)
    own = certificates.issued(desk.authority, request.csr_pem, who, desks.now()).certificate_pem
    return request.key_pem.encode(), (own + desk.authority.certificate_pem).encode()


async def refused(machine: Machine, served: desks.Served, code: str, exit_code: int, **line: object) -> str:
    """Join, see that it is refused with `code`, and that nothing whatever is left of it."""
    done = await machine.slice("node", "join", served.line(**line), code=exit_code)
    assert error(done) == code, done.err
    assert not machine.data_dir.exists()
    assert machine.leftovers() == []
    assert desks.SECRET not in done.err + done.out
    return done.err


async def test_another_authority_gets_no_token(machine: Machine) -> None:
    async with serving(Desk()) as served:
        text = await refused(machine, served, "node.authority_mismatch", 4, pin="0" * 32)
        assert "controller's CA at" in text
        assert "does not match the token; possible interception" in text
        assert served.desk.asked == []


async def test_a_stranger_who_shows_the_right_authority_beside_a_certificate_of_his_own_gets_no_token(
    machine: Machine,
) -> None:
    right = Desk()
    stranger = certificates.new_authority(desks.CLUSTER, desks.now())
    key, chain = desks.server_pair(stranger)
    leaf = chain.split(b"-----END CERTIFICATE-----\n")[0] + b"-----END CERTIFICATE-----\n"
    async with serving(right, chain=(key, leaf + right.authority.certificate_pem.encode())) as served:
        await refused(machine, served, "node.authority_mismatch", 4)
        assert right.asked == []


async def test_a_node_that_plays_the_controller_gets_no_token(machine: Machine) -> None:
    desk = Desk()
    async with serving(desk, chain=desks.server_pair(desk.authority, Role.NODE)) as served:
        await refused(machine, served, "node.authority_mismatch", 4)
        assert desk.asked == []


async def test_clocks_that_differ_are_named(machine: Machine) -> None:
    desk = Desk(authority=certificates.new_authority(desks.CLUSTER, desks.now() - timedelta(days=9)))
    late = desks.server_pair(desk.authority, at=desks.now() + timedelta(hours=2, minutes=5))
    async with serving(desk, chain=late) as served:
        text = await refused(machine, served, "node.certificate_invalid", 4)
        assert "not yet valid: this host's clock is 2.0 h behind" in text


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [
        ("node.join_token_used", 4),
        ("node.join_token_expired", 4),
        ("node.identity_conflict", 5),
        ("node.csr_refused", 2),
        ("storage.unavailable", 6),
    ],
)
async def test_the_controllers_no_is_told_in_its_words(machine: Machine, code: str, exit_code: int) -> None:
    async with serving(Desk(reject=node_pb2.Reject(code=code, message="because", hint="do that"))) as served:
        text = await refused(machine, served, code, exit_code)
        assert "because" in text
        assert "do that" in text


async def test_an_answer_that_got_lost_is_asked_for_again_with_the_same_key(machine: Machine) -> None:
    async with serving(Desk(lost_answers=2)) as served:
        await machine.slice("node", "join", served.line(), "--no-start")
        assert len({request.csr_pem for request in served.desk.asked}) == 1
        assert len(served.desk.asked) == 3


async def test_a_controller_that_never_answers_leaves_nothing(machine: Machine) -> None:
    async with serving(Desk(lost_answers=9)) as served:
        assert "the line was cut" in await refused(machine, served, "controller.unreachable", 6)


async def test_a_name_that_no_node_may_have_is_refused_before_the_token_is_sent(machine: Machine) -> None:
    async with serving(Desk()) as served:
        done = await machine.slice("node", "join", served.line(), "--name", "Box 1", code=2)
        assert error(done) == "request.invalid_name"
        assert served.desk.asked == []


async def test_a_certificate_for_somebody_else_is_not_taken(machine: Machine) -> None:
    desk = Desk()
    other = desks.identity("nod_other")
    given = certificates.issued(desk.authority, certificates.new_request(other).csr_pem, other, desks.now())
    desk.answer = node_pb2.JoinReply(
        cluster_id=desks.CLUSTER,
        certificate_pem=given.certificate_pem,
        authority_pem=desk.authority.certificate_pem,
    )
    async with serving(desk) as served:
        await refused(machine, served, "node.certificate_invalid", 4)


async def test_nobody_there_and_no_tls_there_are_told_apart(machine: Machine) -> None:
    port = desks.free_pair()
    served = desks.Served(desk=Desk(), controller=desks.SecureController(Desk()), port=port)
    assert "refused" in await refused(machine, served, "controller.unreachable", 6)

    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(plain, "127.0.0.1", port + 1)
    async with server:
        assert "does not speak TLS" in await refused(machine, served, "controller.unreachable", 6)


async def test_a_line_that_is_no_line_is_refused_before_anything(machine: Machine) -> None:
    done = await machine.slice("node", "join", "127.0.0.1:7082/abc", code=2)
    assert error(done) == "node.join_line_invalid"
    assert not machine.data_dir.exists()


async def test_a_directory_of_somebody_else_is_left_alone(machine: Machine) -> None:
    machine.data_dir.mkdir()
    (machine.data_dir / "thesis.txt").write_text("mine")
    async with serving(Desk()) as served:
        done = await machine.slice("node", "join", served.line(), code=4)
        assert error(done) == "cluster.data_dir_unusable"
        assert served.desk.asked == []
    assert [item.name for item in machine.data_dir.iterdir()] == ["thesis.txt"]
    (machine.data_dir / "thesis.txt").unlink()


async def test_what_was_in_the_directory_outlives_a_refusal(machine: Machine) -> None:
    machine.data_dir.mkdir()
    (machine.data_dir / "slice.toml").write_text('devices = "cpu"\n')
    async with serving(Desk(reject=node_pb2.Reject(code="node.join_token_used", message="used"))) as served:
        await machine.slice("node", "join", served.line(), code=4)
    assert [item.name for item in machine.data_dir.iterdir()] == ["slice.toml"]


async def test_a_node_that_waits_for_approval_is_told_so(machine: Machine) -> None:
    async with serving(Desk(is_approving=False)) as served:
        done = await machine.slice("node", "join", served.line(), "--name", "late")
        assert "slice node approve late" in done.out


async def test_without_a_controller_it_starts_and_says_that_nobody_hears_it(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await machine.slice("node", "join", served.line())
        await served.controller.want(desired(1, want()))
        await until_async(lambda: _true(_state(served) == "ready"), what="the engine")
        await machine.slice("down")
    done = await machine.slice("up", code=6)
    assert error(done) == "controller.unreachable"
    stands = await machine.json("status")
    assert (stands["state"], stands["engines"]) == ("dialling", 1)
    assert "down" in (await machine.slice("down")).out


async def test_a_killed_node_agent_is_back_and_its_engine_never_noticed(machine: Machine) -> None:
    async with serving(Desk()) as served:
        await machine.slice("node", "join", served.line())
        await served.controller.want(desired(1, want()))
        await until_async(lambda: _true(_state(served) == "ready"), what="the engine")
        report = served.controller.replica("rep_one")
        assert report is not None
        pid = json.loads((machine.block.parts_dir / "node_agent.json").read_text())["pid"]
        sessions = len(served.controller.hellos)
        os.kill(pid, signal.SIGKILL)
        await until_async(lambda: _true(len(served.controller.hellos) > sessions), what="the next session")
        after = served.controller.hellos[-1].observed.replicas
        assert [(item.pid, item.state) for item in after] == [(report.pid, "ready")]
